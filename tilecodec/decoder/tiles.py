"""Fetching tiles: from a level's store to decoded latents, through a bounded cache."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from tilecodec.container.chunk import TileState
from tilecodec.container.metadata import LevelLayout
from tilecodec.container.store import ByteStore
from tilecodec.decoder.cache import BoundedCache
from tilecodec.decoder.reader import StoredTile, TileReader, check_model
from tilecodec.entropy.codec import POOL
from tilecodec.entropy.model import CodecModel, LatentWindow
from tilecodec.limits import DEFAULT_LIMITS, Limits
from tilecodec.tiles import TilePosition


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

    def __init__(
        self,
        store: ByteStore,
        layout: LevelLayout,
        model: CodecModel,
        *,
        cache_bytes: int,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        check_model(layout, model, limits)
        self._reader, self.layout, self._model = TileReader(store, layout, limits), layout, model
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
        tile = self._decode(self._reader.read(at))
        self._tiles.put(at, tile, 2 * tile.y_hat.numel() * tile.y_hat.element_size())
        return tile

    def state(self, at: TilePosition) -> TileState:
        """A tile's state, from its chunk's index alone."""
        return self._reader.entry(at).state

    def _decode(self, tile: StoredTile) -> DecodedTile:
        model = self._model
        if tile.payload is None:
            y_hat, scale = model.constant_latent(tile.colour, self.layout.codec.quality)
            return DecodedTile(tile.state, tile.colour, y_hat.to(model.dtype), scale.to(model.dtype))
        latent = model.tile_codec.decode(tile.payload, self.layout.where(tile.at))
        with torch.inference_mode():
            _, inverse = model.gain(tile.payload.quality)
            y_hat, scale = ((t * inverse).to(model.dtype) for t in (latent.y_hat, latent.scale))
        return DecodedTile(tile.state, None, y_hat, scale)


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
