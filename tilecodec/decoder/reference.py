"""The slow decoder: every window on its own, blended over the whole level at once. The oracle for the engine."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from tilecodec.blend import axis_weights
from tilecodec.container.chunk import TileState
from tilecodec.container.metadata import LevelLayout, read_metadata
from tilecodec.container.store import ByteStore, open_store
from tilecodec.decoder.tiles import TileCaches, TileFetcher, assemble
from tilecodec.entropy.codec import POOL
from tilecodec.entropy.model import CodecModel, LatentWindow, shared_model
from tilecodec.tiles import TilePosition

CACHE_BYTES = 1 << 30


def _open(path: str | os.PathLike[str], level: int) -> tuple[ByteStore, LevelLayout, CodecModel]:
    store = open_store(path, read_only=True)
    layout = read_metadata(store, where=str(path)).levels[level]
    return store.under(layout.path), layout, shared_model(layout.codec.model)


def decode_reference(
    path: str | os.PathLike[str], level: int = 0, *, fill: tuple[int, int, int] | None = None
) -> NDArray[np.uint8]:
    """A whole level, uint8 (H, W, 3), in the order of the specification.

    Args:
        path: the container.
        level: pyramid level.
        fill: colour of tiles that cannot be decoded; None: such a tile is an error.
    """
    store, layout, model = _open(path, level)
    grid, seam, blend = layout.grid, layout.codec.margin.seam, layout.codec.blend
    fetcher = TileFetcher(store, layout, model, caches=TileCaches(CACHE_BYTES, layout, model), fill=fill)
    positions = [TilePosition(row, col) for row in range(grid.rows) for col in range(grid.cols)]
    windows: dict[TilePosition, NDArray[np.uint8]] = {}
    unblended = np.zeros((grid.padded_height, grid.padded_width, 3), np.uint8)
    for at in positions:
        window, core = layout.window(at), grid.core(at)
        tiles = {position: fetcher.request(position)() for position in grid.tiles_of(window)}
        colours = {tile.colour for tile in tiles.values()}
        if tiles[at].state is TileState.LOST:
            continue
        if len(colours) == 1 and None not in colours:
            windows[at] = np.broadcast_to(np.array(colours.pop(), np.uint8), (window.height, window.width, 3))
        else:
            latent = assemble(fetcher, model, at, tiles)
            windows[at] = POOL.submit(model.reconstruct, latent, layout.codec.quality).result()  # on one thread
        inside = windows[at][core.y0 - window.y0 : core.y1 - window.y0, core.x0 - window.x0 : core.x1 - window.x0]
        unblended[core.y0 : core.y1, core.x0 : core.x1] = inside
    total = np.zeros(unblended.shape, np.uint32)
    for at in positions:
        window = layout.window(at)
        part = (slice(window.y0, window.y1), slice(window.x0, window.x1))
        down = axis_weights(window.height, seam, blend, at.row > 0, at.row + 1 < grid.rows)
        across = axis_weights(window.width, seam, blend, at.col > 0, at.col + 1 < grid.cols)
        weights = down[:, None, None].astype(np.uint32) * across[None, :, None]
        total[part] += windows.get(at, unblended[part]) * weights
    picture = ((total + 32768) >> 16).astype(np.uint8)
    for at in positions:
        tile, core = fetcher.request(at)(), grid.core(at)
        if tile.state is not TileState.CODED:
            colour = fill if tile.state is TileState.LOST else tile.colour
            picture[core.y0 : core.y1, core.x0 : core.x1] = np.array(colour, np.uint8)
    return picture[: grid.height, : grid.width]


def decode_whole(path: str | os.PathLike[str], level: int = 0) -> NDArray[np.uint8]:
    """A whole level as one big window, untiled, from the same symbols: uint8 (H, W, 3).

    Memory grows with the level. Shows what tiling costs.
    """
    store, layout, model = _open(path, level)
    grid, stride = layout.grid, model.config.y_stride
    fetcher = TileFetcher(store, layout, model, caches=TileCaches(CACHE_BYTES, layout, model))
    rows = []
    for row in range(grid.rows):
        tiles = [fetcher.request(TilePosition(row, col))() for col in range(grid.cols)]
        cores = [grid.core(TilePosition(row, col)) for col in range(grid.cols)]
        shapes = [(core.height // stride, core.width // stride) for core in cores]
        rows.append(
            [
                np.concatenate(
                    [
                        np.broadcast_to(part.float().numpy(), (part.shape[0], *shape))
                        for part, shape in zip(parts, shapes, strict=True)
                    ],
                    axis=2,
                )
                for parts in ([t.y_hat for t in tiles], [t.scale for t in tiles])
            ]
        )
    import torch

    y_hat, scale = (torch.from_numpy(np.concatenate([r[n] for r in rows], axis=1)) for n in range(2))
    picture = model.reconstruct(LatentWindow(y_hat, scale), layout.codec.quality)
    return picture[: grid.height, : grid.width]
