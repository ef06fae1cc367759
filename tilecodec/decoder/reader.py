"""Reading tiles: from a level's store to checked payloads, before any symbol is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import google_crc32c

from tilecodec.container.chunk import COLOUR_BYTES, ChunkIndex, TileEntry, TileState, index_bytes, parse_index
from tilecodec.container.document import DOCUMENT
from tilecodec.container.metadata import LevelLayout
from tilecodec.container.store import ByteStore
from tilecodec.decoder.cache import BoundedCache
from tilecodec.entropy.payload import TilePayload, parse_payload
from tilecodec.errors import CorruptTileError, LostTileError, NotAContainerError, StorageError, TileLimitError
from tilecodec.limits import DEFAULT_LIMITS, Limits
from tilecodec.tiles import TilePosition

if TYPE_CHECKING:
    from tilecodec.entropy.model import CodecModel

BLACK = (0, 0, 0)


@dataclass(frozen=True, eq=False, slots=True)
class StoredTile:
    """A tile as its container holds it."""

    at: TilePosition
    state: TileState
    """CODED, EMPTY or NODATA."""
    colour: tuple[int, int, int]
    """R, G, B of an empty tile; black for others."""
    payload: TilePayload | None
    """Of a coded tile, its bytes checked, its symbols not decoded; None for others."""


@dataclass(frozen=True, slots=True)
class _Faulty:
    """What lies where a chunk's index should: remembered, so that it is asked for once and not for every tile."""

    data: bytes | None
    """None: the chunk is absent."""


class TileReader:
    """Tiles of one level, each by two range reads. Safe to use from several threads.

    Args:
        store: the level's.
        layout: likewise.
        limits: what tiles may ask for at most.
        keep_faults: do not look again where a chunk was absent or damaged, for readers that go on without it.
    """

    def __init__(
        self, store: ByteStore, layout: LevelLayout, limits: Limits = DEFAULT_LIMITS, *, keep_faults: bool = False
    ) -> None:
        self._store, self.layout, self.limits, self._keep_faults = store, layout, limits, keep_faults
        self._indexes: BoundedCache[tuple[int, int], ChunkIndex | _Faulty] = BoundedCache(1 << 20)

    def index(self, chunk: tuple[int, int], where: str) -> ChunkIndex:
        """A chunk's index.

        Args:
            chunk: its row and column.
            where: named in errors.

        Raises:
            LostTileError: the chunk is absent.
            CorruptTileError: its index fails a check.
            StorageError: the container was replaced by another one.
        """
        found = self._indexes.get(chunk)
        if isinstance(found, ChunkIndex):
            return found
        rows, cols = self.layout.tiles_of(*chunk)
        data = self.read_bytes(chunk, 0, index_bytes(rows, cols)) if found is None else found.data
        if self._keep_faults:
            self._indexes.put(chunk, _Faulty(data), 64 * rows * cols)
        if data is None:
            raise LostTileError("a chunk is absent", where=where, reason="chunk-absent")
        index = parse_index(data, rows, cols, where, self.layout.place(chunk))
        self._indexes.put(chunk, index, 64 * len(index.entries))
        return index

    def entry(self, at: TilePosition) -> TileEntry:
        """A tile's entry in its chunk's index, with the errors of :meth:`index`, which name the tile."""
        chunk, n = self.layout.chunk_of(at), self.layout.chunk_tiles
        where = f"{self.layout.where_chunk(chunk)}, tile row {at.row}, column {at.col}"
        return self.index(chunk, where).entry(at.row - chunk[0] * n, at.col - chunk[1] * n)

    def check_chunk(self, chunk: tuple[int, int]) -> int:
        """The bytes of a chunk, its index read, its tiles not.

        Raises:
            LostTileError, CorruptTileError: see :meth:`index`; and where the chunk goes on after its last payload.
        """
        where = self.layout.where_chunk(chunk)
        last = self.index(chunk, where).entries[-1]
        size = self._store.size(self.layout.key(*chunk))
        if size > last.offset + last.length:
            raise CorruptTileError(
                "the chunk goes on after its last payload",
                got=size,
                expected=last.offset + last.length,
                where=where,
                reason="chunk-rest",
            )
        return size

    def read(self, at: TilePosition, data: bytes | None = None) -> StoredTile:
        """A tile, its bytes checked.

        Args:
            at: its place.
            data: its bytes in the chunk, where they were read before.

        Raises:
            LostTileError: it is absent.
            CorruptTileError: its bytes fail a check.
            TileLimitError: it is larger than the limits.
        """
        entry, where = self.entry(at), self.layout.where(at)
        if entry.state is TileState.LOST:
            raise LostTileError("a tile is marked as lost", where=where, reason="tile-lost")
        if entry.state is TileState.EMPTY and entry.length != COLOUR_BYTES:
            raise CorruptTileError(
                "an empty tile needs one colour",
                got=entry.length,
                expected=f"{COLOUR_BYTES} bytes",
                where=where,
                reason="empty-colour",
            )
        self.limits.check("payload_bytes", entry.length, where, TileLimitError)
        data = self._bytes(at, entry, where, data) if entry.length else b""
        if entry.state is TileState.CODED:
            return StoredTile(at, entry.state, BLACK, self._payload(at, data, where))
        colour = (data[0], data[1], data[2]) if entry.state is TileState.EMPTY else BLACK
        return StoredTile(at, entry.state, colour, None)

    def read_bytes(self, chunk: tuple[int, int], offset: int, length: int) -> bytes | None:
        """Bytes of a chunk, fewer where it ends before; None where it is absent.

        Raises:
            StorageError: the store failed, or another container took the place of the one that the layout is of.
        """
        data, layout = self._store.get_range(self.layout.key(*chunk), offset, length), self.layout
        if layout.stamp is not None and self._store.stamp(DOCUMENT) != layout.stamp:
            raise StorageError(
                "the container was replaced while it was being read",
                where=layout.where_chunk(chunk),
                hint="Open it again",
            )
        return data

    def _bytes(self, at: TilePosition, entry: TileEntry, where: str, data: bytes | None) -> bytes:
        if data is None:
            data = self.read_bytes(self.layout.chunk_of(at), entry.offset, entry.length)
        if data is None or len(data) != entry.length:
            raise CorruptTileError(
                "the chunk is cut short",
                got=0 if data is None else len(data),
                expected=f"{entry.length} bytes at offset {entry.offset}",
                where=where,
                reason="chunk-length",
            )
        if (crc := google_crc32c.value(data)) != entry.crc:
            raise CorruptTileError(
                "the tile's bytes are not those that the chunk's index knows",
                got=f"{crc:08x}",
                expected=f"{entry.crc:08x}",
                where=where,
                reason="tile-crc",
            )
        return data

    def _payload(self, at: TilePosition, data: bytes, where: str) -> TilePayload:
        payload = parse_payload(data, where)
        true = self.layout.grid.true_core(at)
        if (payload.height, payload.width) != (true.height, true.width):
            raise CorruptTileError(
                "the payload is of another size than its place",
                got=(payload.height, payload.width),
                expected=(true.height, true.width),
                where=where,
                reason="payload-size",
            )
        if not 1 <= payload.quality <= 100:
            raise CorruptTileError(
                "the payload states an impossible quality",
                got=payload.quality,
                expected="1 to 100",
                where=where,
                reason="payload-quality",
            )
        return payload


def check_model(layout: LevelLayout, model: CodecModel, limits: Limits) -> None:
    """Whether a level's tiles can be decoded with a model, within the limits.

    Raises:
        NotAContainerError: the container states another stride than the model has.
        LimitError: the model has more channels, or a tile of the level more symbols, than the limits.
    """
    where, config = f"level {layout.path}", model.config
    if layout.codec.stride != config.z_stride:
        raise NotAContainerError(
            "the container's stride is not its model's",
            got=layout.codec.stride,
            expected=config.z_stride,
            where=where,
            reason="codec-values",
        )
    code, hyper = config.codec.y_channels, config.codec.z_channels
    limits.check("channels", max(code, hyper), where)
    core = layout.grid.core(TilePosition(0, 0))  # no tile is larger than the first
    positions = (core.height // config.y_stride) * (core.width // config.y_stride)
    limits.check(
        "symbols", positions * code + (core.height // config.z_stride) * (core.width // config.z_stride) * hyper, where
    )
