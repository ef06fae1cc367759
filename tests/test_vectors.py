"""The test vectors: every decoder makes of them what the manifest says."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vectors
from vectors import ARITHMETICS, FOLDER, by_oracle, cases, content, digest, fast, manifest
from zarr.storage import LocalStore

from tilecodec.container.metadata import CodecConfiguration, LevelLayout, read_metadata
from tilecodec.container.store import ByteStore
from tilecodec.decoder.reader import TileReader
from tilecodec.entropy.payload import parse_payload
from tilecodec.errors import ContainerError, CorruptTileError, TileError
from tilecodec.tiles import TileGrid, TilePosition


def ids(case: Any) -> str:
    return case["name"]


def test_the_generator_makes_these_vectors() -> None:
    command = [sys.executable, str(FOLDER / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('    ("plain", 64, 64, "usual"),\n', "", "no longer made"),
        ('"quality": 12800', '"quality": 12801', "would change"),
    ],
)
def test_the_generator_never_changes_a_case(tmp_path: Path, before: str, after: str, message: str) -> None:
    copy = tmp_path / "vectors"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    code = (copy / "vector_payloads.py").read_text()
    assert before in code
    (copy / "vector_payloads.py").write_text(code.replace(before, after))
    text = (copy / "manifest.json").read_text()
    for flags in ([], ["--check"]):
        command = [sys.executable, str(copy / "generate.py"), *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert message in done.stderr
        assert (copy / "manifest.json").read_text() == text


def test_files_are_those_of_the_manifest() -> None:
    for case in manifest()["cases"]:
        assert hashlib.sha256(content(case)).hexdigest() == case["sha256"], case["name"]
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.suffix != ".pyc") < 450_000


# Payloads


@pytest.mark.parametrize("case", cases("payload", "valid"), ids=ids)
def test_valid_payloads_decode_to_their_symbols(case: Any) -> None:
    data = content(case)
    size = case["height"], case["width"]
    symbols = by_oracle(case["model"], data, size)
    assert digest(symbols) == case["symbols_sha256"]
    assert [list(s.shape) for s in symbols] == [case["z_shape"], case["y_shape"]]
    payload = parse_payload(data, case["name"])
    assert (payload.height, payload.width) == size
    for arithmetic in ARITHMETICS:
        codec, model = fast(case["model"], arithmetic)
        for _ in range(2):  # the second time as the first
            (again,) = vectors.decoded(codec, model, [payload])
            assert digest(again) == case["symbols_sha256"], arithmetic


def by_fast_path(name: str, data: bytes, size: tuple[int, int]) -> None:
    """Decodes as ``decoder/reader.py`` and the tile codec do."""
    payload = parse_payload(data, "here")
    if (payload.height, payload.width) != size:
        raise CorruptTileError(reason="payload-size")
    if not 1 <= payload.quality <= 100:
        raise CorruptTileError(reason="payload-quality")
    fast(name)[0].decode(payload, "here")


@pytest.mark.parametrize("case", cases("payload", "faulty"), ids=ids)
def test_faulty_payloads_give_their_reason(case: Any) -> None:
    data, size = content(case), (case["height"], case["width"])
    with pytest.raises(CorruptTileError) as caught:
        by_oracle(case["model"], data, size)
    assert caught.value.reason == case["reason"]
    with pytest.raises(CorruptTileError) as caught:
        by_fast_path(case["model"], data, size)
    assert caught.value.reason == case["reason"]


def test_a_tile_s_faults_leave_its_batch_alone() -> None:
    (good,) = (c for c in cases("payload", "valid") if c["name"] == "valid/plain-64x64-usual.payload")
    codec, _ = fast("plain")
    whole = parse_payload(content(good), "good")
    wrong = parse_payload(content(good), "wrong")
    object.__setattr__(wrong, "symbol_check", whole.symbol_check ^ 1)
    first, second, third = codec.decode_many([whole, wrong, whole], ["a", "b", "c"])
    assert isinstance(second, CorruptTileError)
    assert second.where == "b"
    np.testing.assert_array_equal(first.y_hat, third.y_hat)
    np.testing.assert_array_equal(first.y_hat, codec.decode(whole, "alone").y_hat)


@pytest.mark.parametrize("name", ["example", "example-1x1-zero", "plain-64x64-usual", "extreme-64x64-usual"])
def test_every_flipped_bit_of_a_payload_is_an_error(name: str) -> None:
    (case,) = (c for c in cases("payload", "valid") if c["name"] == f"valid/{name}.payload")
    data = bytearray(content(case))
    codec, _ = fast(case["model"])
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptTileError):
            by_oracle(case["model"], bytes(data))
        with pytest.raises(CorruptTileError):
            codec.decode(parse_payload(bytes(data), "here"), "here")
        data[bit // 8] ^= 1 << bit % 8


# Chunks


class OneChunk:
    """A store of one value."""

    def __init__(self, key: str, data: bytes) -> None:
        self.key, self.data = key, data

    def get_range(self, key: str, offset: int, length: int) -> bytes | None:
        return self.data[offset : offset + length] if key == self.key else None


def reader_of(case: Any, data: bytes) -> TileReader:
    grid = TileGrid(*(case[k] for k in ("height", "width", "tile", "stride")))
    codec = CodecConfiguration(
        model="sha256:" + "0" * 64, quality=50, tile=case["tile"], stride=case["stride"], overlap=0, blend=0, halo=0
    )
    layout = LevelLayout(path="0", grid=grid, chunk_tiles=case["chunk_tiles"], codec=codec, number=0)
    return TileReader(OneChunk(layout.key(case["chunk_row"], case["chunk_col"]), data), layout)


@pytest.mark.parametrize("case", cases("chunk", "valid"), ids=ids)
def test_valid_chunks_hold_their_tiles(case: Any) -> None:
    data = content(case)
    reader = reader_of(case, data)
    codec, model = fast(case["model"])
    for fact in case["tiles"]:
        at = TilePosition(fact["row"], fact["col"])
        entry = reader.entry(at)
        assert (entry.state.name, entry.offset, entry.length) == (fact["state"], fact["offset"], fact["bytes"])
        part = data[entry.offset : entry.offset + entry.length]
        assert hashlib.sha256(part).hexdigest() == fact["sha256"]
        stored = reader.read(at)
        if fact["state"] == "CODED":
            assert digest(vectors.decoded(codec, model, [stored.payload])[0]) == fact["symbols_sha256"]
            assert digest(by_oracle(case["model"], part)) == fact["symbols_sha256"]
        else:
            assert bytes(stored.colour) == (part[:3] or bytes(3))


@pytest.mark.parametrize("case", cases("chunk", "faulty"), ids=ids)
def test_faulty_chunks_give_their_reason(case: Any) -> None:
    reader = reader_of(case, content(case))
    at = TilePosition(case["row"], case["col"])
    with pytest.raises(TileError) as caught:
        read_and_decode(reader, at, case["model"])
    assert caught.value.reason == case["reason"]
    assert "level 0" in str(caught.value)


def read_and_decode(reader: TileReader, at: TilePosition, name: str) -> None:
    payload = reader.read(at).payload
    if payload is not None:
        fast(name)[0].decode(payload, reader.layout.where(at))


def test_every_flipped_bit_of_an_index_is_an_error() -> None:
    for case in cases("chunk", "valid"):
        data = bytearray(content(case))
        at = TilePosition(case["tiles"][0]["row"], case["tiles"][0]["col"])
        for bit in range(8 * (24 + 9 * len(case["tiles"]))):
            data[bit // 8] ^= 1 << bit % 8
            with pytest.raises(CorruptTileError, match="level 0"):
                reader_of(case, bytes(data)).entry(at)
            data[bit // 8] ^= 1 << bit % 8


# Metadata


def container(folder: Path, case: Any = None) -> ByteStore:
    """The sound documents, one of them replaced by a case's."""
    shutil.copytree(FOLDER / "valid" / "metadata", folder)
    if case is not None:
        (folder / case["place"]).write_bytes(content(case))
    return ByteStore(LocalStore(folder))


def test_valid_metadata_are_read(tmp_path: Path) -> None:
    meta = read_metadata(container(tmp_path / "c"), where="c")
    assert [(level.grid.height, level.grid.width) for level in meta.levels] == [(300, 200), (150, 100)]
    assert {(level.codec.bitstream, level.codec.blend) for level in meta.levels} == {(1, 64)}
    meta = read_metadata(ByteStore(LocalStore(FOLDER / "valid" / "metadata-2")), where="c")
    assert {(level.codec.bitstream, level.codec.blend) for level in meta.levels} == {(2, 8)}


@pytest.mark.parametrize("case", cases("metadata", "faulty"), ids=ids)
def test_faulty_metadata_give_their_reason(case: Any, tmp_path: Path) -> None:
    store = container(tmp_path / "c", case)
    with pytest.raises(ContainerError) as caught:
        read_metadata(store, where="c")
    assert caught.value.reason == case["reason"]


# Completeness


def test_every_reason_has_a_vector() -> None:
    tabled = set()
    for text in ("container.md", "payload.md"):
        body = (FOLDER.parent / text).read_text()
        tabled |= set(re.findall(r"^\|[^|]*\| `([a-z-]+)` \|$", body, flags=re.MULTILINE))
    covered = {c["reason"] for c in manifest()["cases"] if "reason" in c}
    by_absence = {"no-metadata", "chunk-absent"}  # faults without bytes: tests/faulty.py
    whole_only = {"chunk-rest"}  # told only by a check of the whole container
    assert tabled - covered == by_absence | whole_only
    assert len(covered) > 35
