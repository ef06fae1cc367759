"""Entry points for fuzzers that follow coverage: any bytes end in a typed error or in what a decoder agrees with.

``fuzz_atheris.py`` runs them for as long as wanted, ``test_fuzz.py`` on the seeds and little more.
CRCs are set right before the bytes are decoded, so that a fuzzer gets behind them.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import google_crc32c
import vectors
from zarr.storage import LocalStore

from tilecodec.container.chunk import index_bytes, parse_index
from tilecodec.container.metadata import CodecConfiguration, LevelLayout, read_metadata
from tilecodec.container.store import ByteStore
from tilecodec.decoder.reader import TileReader
from tilecodec.entropy.codec import TileCodec
from tilecodec.entropy.payload import parse_payload
from tilecodec.errors import ContainerError, CorruptTileError, TileError
from tilecodec.limits import Limits
from tilecodec.tiles import TileGrid, TilePosition

SIZE = 64, 64
"""Of the tile that payloads are decoded as."""
MODEL = "plain"


@cache
def codec() -> TileCodec:
    return vectors.fast(MODEL)[0]


def with_crc(data: bytes) -> bytes:
    """A payload with the CRC and the size that let it through to the stream."""
    head = data[:2] + struct.pack("<HH", *SIZE) + data[6:12]
    return head + struct.pack("<I", google_crc32c.value(head + data[16:])) + data[16:]


def fast_reason(data: bytes) -> str | None:
    """What the fast path finds wrong with a payload."""
    try:
        payload = parse_payload(data, "tile")
        if (payload.height, payload.width) != SIZE:
            return "payload-size"
        if not 1 <= payload.quality <= 100:
            return "payload-quality"
        codec().decode(payload, "tile")
    except CorruptTileError as error:
        return error.reason
    return None


def oracle_reason(data: bytes) -> str | None:
    """What the oracle finds wrong with it."""
    try:
        vectors.by_oracle(MODEL, data, SIZE)
    except CorruptTileError as error:
        return error.reason
    return None


def payload(data: bytes) -> None:
    """Both decoders, on the bytes as they are and with their CRC set right."""
    for part in (data, with_crc(data)) if len(data) >= 16 else (data,):
        fast, slow = fast_reason(part), oracle_reason(part)
        if fast != slow:
            raise AssertionError(f"the fast path says {fast}, the oracle {slow}")


def index(data: bytes) -> None:
    """The index of chunks of some shapes, as it is and with its CRC set right."""
    for rows, cols in ((1, 1), (2, 2), (16, 16), (data[5] % 16 + 1, data[6] % 16 + 1) if len(data) > 6 else (3, 1)):
        size = index_bytes(rows, cols)
        whole = data[: size - 4] + struct.pack("<I", google_crc32c.value(data[: size - 4])) + data[size:]
        for part in (data, whole):
            try:
                found = parse_index(part, rows, cols, "chunk")
            except CorruptTileError:
                continue
            ends = [e.offset + e.length for e in found.entries]
            if [size, *ends[:-1]] != [e.offset for e in found.entries]:
                raise AssertionError("tiles overlap or leave gaps")


class OneValue:
    """A store of one value."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def get_range(self, key: str, offset: int, length: int) -> bytes | None:
        return self.data[offset : offset + length]


def chunk(data: bytes) -> None:
    """Every tile of a chunk of 2 x 2 tiles, its index's CRC set right."""
    size = index_bytes(2, 2)
    codec_fields = {
        "model": "sha256:" + "0" * 64,
        "quality": 50,
        "tile": 64,
        "stride": 64,
        "overlap": 0,
        "blend": 0,
        "halo": 0,
    }
    layout = LevelLayout(
        path="0", grid=TileGrid(150, 100, 64, 64), chunk_tiles=2, codec=CodecConfiguration(**codec_fields), number=0
    )
    whole = data[: size - 4] + struct.pack("<I", google_crc32c.value(data[: size - 4])) + data[size:]
    for part in (data, whole):
        reader = TileReader(OneValue(part), layout)
        for n in range(4):
            try:
                tile = reader.read(TilePosition(n // 2, n % 2))
                if tile.payload is not None:
                    codec().decode(tile.payload, "tile")
            except TileError:
                continue


@cache
def folder() -> Path:
    """A container whose documents are replaced in turn."""
    path = Path(tempfile.mkdtemp(prefix="tilecodec-fuzz-"))
    for place in ("zarr.json", "0/zarr.json", "1/zarr.json"):
        (path / place).parent.mkdir(exist_ok=True)
        (path / place).write_bytes((vectors.FOLDER / "valid" / "metadata" / place).read_bytes())
    return path


def metadata(data: bytes) -> None:
    """The bytes as each of a container's documents."""
    for place in ("zarr.json", "0/zarr.json", "1/zarr.json"):
        before = (folder() / place).read_bytes()
        (folder() / place).write_bytes(data)
        try:
            read_metadata(ByteStore(LocalStore(folder())), where="container", limits=Limits(metadata_bytes=1 << 16))
        except ContainerError:
            continue
        finally:
            (folder() / place).write_bytes(before)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "payload": payload,
    "index": index,
    "chunk": chunk,
    "metadata": metadata,
}


def seeds(target: str) -> list[bytes]:
    """Vectors to begin with, sound and faulty."""
    kind = "chunk" if target == "index" else target
    found: list[Any] = [*vectors.cases(kind, "valid"), *vectors.cases(kind, "faulty")]
    return [vectors.content(c) for c in found if c["bytes"] <= 4096]
