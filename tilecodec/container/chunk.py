"""One Zarr chunk: a small index, then the payloads of its tiles. Specified in ``formats/container.md``."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

import google_crc32c

from tilecodec.errors import CorruptTileError

MAGIC: Final = b"TCK1"
HEAD: Final = struct.Struct("<4sBBBB")
"""magic, version u8, tile rows u8, tile columns u8, flags u8 (zero)."""
ENTRY: Final = struct.Struct("<BI")
"""state u8, payload length u32."""
VERSION: Final = 1


class TileState(enum.IntEnum):
    """What a chunk's index says of a tile."""

    LOST = 0
    """No data: an error for the reader."""
    CODED = 1
    """An entropy-coded payload."""
    EMPTY = 2
    """One constant colour; see :func:`pack_colour`."""
    NODATA = 3
    """No data by intent; no payload. Reads as the array's fill value."""


COLOUR: Final = struct.Struct("<3sI")
"""An empty tile's bytes: R G B, and their CRC32C."""


def pack_colour(colour: bytes) -> bytes:
    """What is stored of an empty tile.

    Args:
        colour: R, G, B.
    """
    return COLOUR.pack(colour, google_crc32c.value(colour))


def parse_colour(data: bytes, where: str) -> tuple[int, int, int]:
    """The inverse of :func:`pack_colour`.

    Raises:
        CorruptTileError: the bytes fail their CRC.
    """
    colour, crc = COLOUR.unpack(data)
    actual = google_crc32c.value(colour)
    if actual != crc:
        raise CorruptTileError(
            "an empty tile's colour fails its CRC32C",
            got=f"{actual:08x}",
            expected=f"{crc:08x}",
            where=where,
            reason="colour-crc",
        )
    return colour[0], colour[1], colour[2]


@dataclass(frozen=True, slots=True)
class TileEntry:
    """A tile's place in its chunk."""

    state: TileState
    offset: int
    """Bytes from the chunk's start."""
    length: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class ChunkIndex:
    """The index of a chunk, tiles in row-major order."""

    rows: int
    cols: int
    entries: tuple[TileEntry, ...]

    def entry(self, row: int, col: int) -> TileEntry:
        """The entry of the tile at ``row``, ``col`` within the chunk."""
        return self.entries[row * self.cols + col]


def index_bytes(rows: int, cols: int) -> int:
    """Length of the index of a chunk with this many tiles."""
    return HEAD.size + rows * cols * ENTRY.size + 4


def pack_chunk(rows: int, cols: int, tiles: list[tuple[TileState, bytes]]) -> bytes:
    """A chunk's bytes from its tiles' states and payloads, in row-major order."""
    head = HEAD.pack(MAGIC, VERSION, rows, cols, 0)
    index = head + b"".join(ENTRY.pack(state, len(payload)) for state, payload in tiles)
    return b"".join([index, struct.pack("<I", google_crc32c.value(index)), *(payload for _, payload in tiles)])


def parse_index(data: bytes, rows: int, cols: int, where: str) -> ChunkIndex:
    """The index from a chunk's first :func:`index_bytes` bytes.

    Args:
        data: at least the index; more is ignored.
        rows: tile rows that the level's geometry gives this chunk.
        cols: tile columns likewise.
        where: named in errors.

    Raises:
        CorruptTileError: cut short, another magic or version, a CRC that differs, other numbers of tiles.
    """
    size = index_bytes(rows, cols)
    if len(data) < size:
        raise CorruptTileError(
            "the chunk is cut short in its index", got=len(data), expected=size, where=where, reason="index-length"
        )
    magic, version, got_rows, got_cols, flags = HEAD.unpack_from(data)
    if magic != MAGIC:
        raise CorruptTileError(
            "the chunk does not begin with its magic", got=magic, expected=MAGIC, where=where, reason="index-magic"
        )
    if (version, flags) != (VERSION, 0):
        raise CorruptTileError(
            "the chunk is of another version",
            got=(version, flags),
            expected=(VERSION, 0),
            where=where,
            reason="index-version",
        )
    if (got_rows, got_cols) != (rows, cols):
        raise CorruptTileError(
            "the chunk holds another number of tiles",
            got=(got_rows, got_cols),
            expected=(rows, cols),
            where=where,
            reason="index-shape",
        )
    (crc,) = struct.unpack_from("<I", data, size - 4)
    if google_crc32c.value(data[: size - 4]) != crc:
        raise CorruptTileError(
            "the chunk's index fails its CRC32C",
            got=f"{google_crc32c.value(data[: size - 4]):08x}",
            expected=f"{crc:08x}",
            where=where,
            reason="index-crc",
        )
    entries, offset = [], size
    for n in range(rows * cols):
        state, length = ENTRY.unpack_from(data, HEAD.size + n * ENTRY.size)
        if state > TileState.NODATA or (state in (TileState.LOST, TileState.NODATA) and length):
            raise CorruptTileError(
                "a tile's state is unknown, or has bytes that it should not have",
                got=f"state {state}, {length} bytes",
                expected="0 to 3; bytes in 1 and 2 only",
                where=where,
                reason="index-state",
            )
        entries.append(TileEntry(TileState(state), offset, length))
        offset += length
    return ChunkIndex(rows, cols, tuple(entries))
