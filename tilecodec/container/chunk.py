"""One Zarr chunk: a small index, then the payloads of its tiles. Specified in ``formats/container.md``."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

import google_crc32c

from tilecodec.errors import CorruptTileError

MAGIC: Final = b"TCK1"
HEAD: Final = struct.Struct("<4sBBBBIII")
"""magic, version u8, tile rows u8, tile columns u8, flags u8 (zero), level u32, chunk row u32, chunk column u32."""
ENTRY: Final = struct.Struct("<BII")
"""state u8, payload length u32, payload CRC32C u32."""
VERSION: Final = 2


class ChunkPlace(NamedTuple):
    """Where a chunk belongs."""

    level: int | None
    """Number of its level in the container; None where nobody knows."""
    row: int
    col: int


class TileState(enum.IntEnum):
    """What a chunk's index says of a tile."""

    LOST = 0
    """No data: an error for the reader."""
    CODED = 1
    """An entropy-coded payload."""
    EMPTY = 2
    """One constant colour, which is its payload."""
    NODATA = 3
    """No data by intent; no payload. Reads as the array's fill value."""


COLOUR_BYTES: Final = 3
"""Of an empty tile's payload: R, G, B."""


@dataclass(frozen=True, slots=True)
class TileEntry:
    """A tile's place in its chunk."""

    state: TileState
    offset: int
    """Bytes from the chunk's start."""
    length: int
    """Bytes."""
    crc: int
    """CRC32C of them."""


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


def pack_chunk(rows: int, cols: int, tiles: list[tuple[TileState, bytes]], place: ChunkPlace) -> bytes:
    """A chunk's bytes from its tiles' states and payloads, in row-major order."""
    head = HEAD.pack(MAGIC, VERSION, rows, cols, 0, *place)
    index = head + b"".join(ENTRY.pack(state, len(payload), google_crc32c.value(payload)) for state, payload in tiles)
    return b"".join([index, struct.pack("<I", google_crc32c.value(index)), *(payload for _, payload in tiles)])


def parse_index(data: bytes, rows: int, cols: int, where: str, place: ChunkPlace | None = None) -> ChunkIndex:
    """The index from a chunk's first :func:`index_bytes` bytes.

    Args:
        data: at least the index; more is ignored.
        rows: tile rows that the level's geometry gives this chunk.
        cols: tile columns likewise.
        where: named in errors.
        place: where the chunk was found; None where nobody knows.

    Raises:
        CorruptTileError: cut short, another magic or version, a CRC that differs, other numbers of tiles, another
            chunk's place.
    """
    size = index_bytes(rows, cols)
    if len(data) < size:
        raise CorruptTileError(
            "the chunk is cut short in its index", got=len(data), expected=size, where=where, reason="index-length"
        )
    magic, version, got_rows, got_cols, flags, *got_place = HEAD.unpack_from(data)
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
    known = ChunkPlace(*got_place)
    if place is not None and place not in (known, known._replace(level=None)):
        raise CorruptTileError(
            "the chunk belongs elsewhere",
            got=known,
            expected=place,
            where=where,
            reason="index-place",
        )
    entries, offset = [], size
    for n in range(rows * cols):
        state, length, tile_crc = ENTRY.unpack_from(data, HEAD.size + n * ENTRY.size)
        if state > TileState.NODATA or (state in (TileState.LOST, TileState.NODATA) and length):
            raise CorruptTileError(
                "a tile's state is unknown, or has bytes that it should not have",
                got=f"state {state}, {length} bytes",
                expected="0 to 3; bytes in 1 and 2 only",
                where=where,
                reason="index-state",
            )
        entries.append(TileEntry(TileState(state), offset, length, tile_crc))
        offset += length
    return ChunkIndex(rows, cols, tuple(entries))
