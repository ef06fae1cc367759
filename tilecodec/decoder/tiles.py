"""Fetching tiles: from a level's store to decoded latents, through a bounded cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from tilecodec.container.chunk import ChunkIndex, TileEntry, TileState, index_bytes, parse_index
from tilecodec.container.metadata import LevelLayout
from tilecodec.container.store import ByteStore
from tilecodec.entropy.codec import POOL
from tilecodec.entropy.model import CodecModel, LatentWindow
from tilecodec.entropy.payload import parse_payload
from tilecodec.errors import CorruptTileError, LostTileError, NotAContainerError
from tilecodec.tiles import TilePosition

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Least recently used values, up to a number of bytes. Thread-safe."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.bytes = 0

    def get(self, key: K) -> V | None:
        """The value, made the most recent; None where it is not held."""
        with self._lock:
            found = self._items.get(key)
            if found is None:
                return None
            self._items.move_to_end(key)
            return found[0]

    def put(self, key: K, value: V, size_bytes: int) -> None:
        """Holds a value, dropping the oldest beyond the limit."""
        with self._lock:
            if key in self._items:
                self.bytes -= self._items.pop(key)[1]
            self._items[key] = (value, size_bytes)
            self.bytes += size_bytes
            while self.bytes > self._limit and self._items:
                self.bytes -= self._items.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Drops everything."""
        with self._lock:
            self._items.clear()
            self.bytes = 0


@dataclass(frozen=True, eq=False, slots=True)
class DecodedTile:
    """A tile's latents in latent units, or what stands for them."""

    state: TileState
    colour: tuple[int, int, int] | None
    """The constant colour of an empty tile, black for nodata; None for a coded tile."""
    y_hat: Tensor
    """(Cy, h, w) of the core, in the model's dtype on the CPU; (Cy, 1, 1) where the colour is constant."""
    scale: Tensor
    """Likewise."""


class TileFetcher:
    """Tiles of one level. Safe to use from several threads."""

    def __init__(self, store: ByteStore, layout: LevelLayout, model: CodecModel, *, cache_bytes: int) -> None:
        self._store, self.layout, self._model = store, layout, model
        if layout.codec.stride != model.config.z_stride:
            raise NotAContainerError(
                "the container's stride is not its model's",
                got=layout.codec.stride,
                expected=model.config.z_stride,
                where=f"level {layout.path}",
                reason="codec-values",
            )
        self._indexes: BoundedCache[tuple[int, int], ChunkIndex] = BoundedCache(1 << 20)
        self._tiles: BoundedCache[TilePosition, DecodedTile] = BoundedCache(cache_bytes)
        self._pending: dict[TilePosition, Future[DecodedTile]] = {}
        self._lock = threading.Lock()

    def request(self, at: TilePosition) -> Callable[[], DecodedTile]:
        """Starts fetching and decoding a tile; the returned call waits for it.

        The call raises LostTileError or CorruptTileError, naming the tile.
        """
        found = self._tiles.get(at)
        if found is not None:
            tile = found
            return lambda: tile
        with self._lock:
            future = self._pending.get(at)
            if future is None:
                future = self._pending[at] = POOL.submit(self._fetch, at)
                future.add_done_callback(lambda _: self._done(at))
        return future.result

    def _done(self, at: TilePosition) -> None:
        with self._lock:
            self._pending.pop(at, None)

    def _fetch(self, at: TilePosition) -> DecodedTile:
        state, data = self.read_payload(at)
        tile = self._decode(at, state, data)
        self._tiles.put(at, tile, 2 * tile.y_hat.numel() * tile.y_hat.element_size())
        return tile

    def index(self, chunk: tuple[int, int]) -> ChunkIndex:
        """A chunk's index, by one range read."""
        found = self._indexes.get(chunk)
        if found is None:
            rows, cols = self.layout.tiles_of(*chunk)
            key = self.layout.key(*chunk)
            where = f"level {self.layout.path}, chunk {key}"
            data = self._store.get_range(key, 0, index_bytes(rows, cols))
            if data is None:
                raise LostTileError("a chunk is absent", where=where, reason="chunk-absent")
            found = parse_index(data, rows, cols, where)
            self._indexes.put(chunk, found, 64 * len(found.entries))
        return found

    def _entry(self, at: TilePosition) -> TileEntry:
        chunk, n = self.layout.chunk_of(at), self.layout.chunk_tiles
        return self.index(chunk).entry(at.row - chunk[0] * n, at.col - chunk[1] * n)

    def state(self, at: TilePosition) -> TileState:
        """A tile's state, from its chunk's index alone."""
        return self._entry(at).state

    def read_payload(self, at: TilePosition) -> tuple[TileState, bytes]:
        """A tile's state and payload bytes, by one range read beside the index."""
        layout, chunk, entry = self.layout, self.layout.chunk_of(at), self._entry(at)
        if entry.state is TileState.LOST:
            raise LostTileError("a tile is marked as lost", where=layout.where(at), reason="tile-lost")
        if not entry.length:
            return entry.state, b""
        data = self._store.get_range(layout.key(*chunk), entry.offset, entry.length)
        if data is None or len(data) != entry.length:
            raise CorruptTileError(
                "the chunk is cut short",
                got=0 if data is None else len(data),
                expected=f"{entry.length} bytes at offset {entry.offset}",
                where=layout.where(at),
                reason="chunk-length",
            )
        return entry.state, data

    def _decode(self, at: TilePosition, state: TileState, data: bytes) -> DecodedTile:
        model, where = self._model, self.layout.where(at)
        if state is not TileState.CODED:
            if state is TileState.EMPTY and len(data) != 3:
                raise CorruptTileError(
                    "an empty tile needs one colour",
                    got=len(data),
                    expected="3 bytes",
                    where=where,
                    reason="empty-colour",
                )
            colour = (data[0], data[1], data[2]) if state is TileState.EMPTY else (0, 0, 0)
            y_hat, scale = model.constant_latent(colour, self.layout.codec.quality)
            return DecodedTile(state, colour, y_hat.to(model.dtype), scale.to(model.dtype))
        payload = parse_payload(data, where)
        core = self.layout.grid.core(at)
        true = self.layout.grid.true_core(at)
        if (payload.height, payload.width) != (true.height, true.width):
            raise CorruptTileError(
                "the payload is of another size than its place",
                got=(payload.height, payload.width),
                expected=(true.height, true.width),
                where=where,
                reason="payload-size",
            )
        latent = model.tile_codec.decode(payload, where)
        expected = (core.height // model.config.y_stride, core.width // model.config.y_stride)
        if tuple(latent.y_hat.shape[1:]) != expected:
            raise CorruptTileError(
                "the tile's latents have another shape",
                got=latent.y_hat.shape,
                expected=expected,
                where=where,
                reason="payload-size",
            )
        with torch.inference_mode():
            _, inverse = model.gain(payload.quality)
            y_hat, scale = ((t * inverse).to(model.dtype) for t in (latent.y_hat, latent.scale))
        return DecodedTile(state, None, y_hat, scale)


def assemble(
    fetcher: TileFetcher, model: CodecModel, at: TilePosition, tiles: dict[TilePosition, DecodedTile]
) -> LatentWindow:
    """The latents of a tile's window, taken from the tile and its neighbours."""
    layout, stride = fetcher.layout, model.config.y_stride
    window = layout.grid.window(at, layout.codec.overlap)
    shape = (window.height // stride, window.width // stride)
    channels = tiles[at].y_hat.shape[0]
    y_hat, scale = (torch.empty((channels, *shape), dtype=model.dtype) for _ in range(2))
    for position, tile in tiles.items():
        core = layout.grid.core(position)
        y0, y1 = max(core.y0, window.y0), min(core.y1, window.y1)
        x0, x1 = max(core.x0, window.x0), min(core.x1, window.x1)
        if y0 >= y1 or x0 >= x1:
            continue
        into = (
            slice(None),
            slice((y0 - window.y0) // stride, (y1 - window.y0) // stride),
            slice((x0 - window.x0) // stride, (x1 - window.x0) // stride),
        )
        take = (
            slice(None),
            slice((y0 - core.y0) // stride, (y1 - core.y0) // stride),
            slice((x0 - core.x0) // stride, (x1 - core.x0) // stride),
        )
        constant = tile.colour is not None
        y_hat[into] = tile.y_hat if constant else tile.y_hat[take]
        scale[into] = tile.scale if constant else tile.scale[take]
    return LatentWindow(y_hat, scale)
