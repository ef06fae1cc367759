"""The tile payload: a small header, two checks, one entropy-coded stream. Specified in ``formats/payload.md``."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tilecodec.errors import CorruptTileError

VERSION: Final = 1
HEADER: Final = struct.Struct("<BBHHHII")
"""version u8, flags u8 (zero), height u16, width u16, quality u16 (1/256), symbol check u32, CRC32C u32."""


@dataclass(frozen=True, slots=True)
class TilePayload:
    """A tile as it is stored."""

    height: int
    """True rows of the tile, 1 to 65535 (its part of the padding left out)."""
    width: int
    quality: float
    """1 to 100, in steps of 1/256."""
    symbol_check: int
    """CRC32C of the symbols, see :func:`symbol_check`."""
    words: NDArray[np.uint32]
    """The entropy-coded stream."""

    def to_bytes(self) -> bytes:
        """Header and stream. The CRC32C covers the header up to itself, then the stream."""
        stream = self.words.astype("<u4").tobytes()
        quality = round(self.quality * 256)
        head = HEADER.pack(VERSION, 0, self.height, self.width, quality, self.symbol_check, 0)[:-4]
        return head + struct.pack("<I", google_crc32c.value(head + stream)) + stream


def parse_payload(data: bytes, where: str) -> TilePayload:
    """The inverse of :meth:`TilePayload.to_bytes`.

    Raises:
        CorruptTileError: shorter than its header, another version, or a CRC that differs.
    """
    if len(data) < HEADER.size or (len(data) - HEADER.size) % 4:
        raise CorruptTileError(
            "the payload has an impossible length",
            got=len(data),
            expected=f"{HEADER.size} + 4 n bytes",
            where=where,
            reason="payload-length",
        )
    version, flags, height, width, quality, check, crc = HEADER.unpack_from(data)
    actual = google_crc32c.value(data[: HEADER.size - 4] + data[HEADER.size :])
    if actual != crc:
        raise CorruptTileError(
            "the payload's bytes fail their CRC32C",
            got=f"{actual:08x}",
            expected=f"{crc:08x}",
            where=where,
            reason="payload-crc",
        )
    if version != VERSION or flags:
        raise CorruptTileError(
            "the payload is of another version",
            got=(version, flags),
            expected=(VERSION, 0),
            where=where,
            reason="payload-version",
        )
    words = np.frombuffer(data, dtype="<u4", offset=HEADER.size).astype(np.uint32)
    return TilePayload(height, width, quality / 256, check, words)


def symbol_check(z: NDArray[np.int32], y: NDArray[np.int32]) -> int:
    """CRC32C of the symbols as little-endian int32, z then y, each in (channel, row, column) order."""
    return int(google_crc32c.extend(google_crc32c.value(z.astype("<i4").tobytes()), y.astype("<i4").tobytes()))
