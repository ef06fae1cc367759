"""The decoder of one level: windows decoded once, blended into rows, in bounded memory."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from tilecodec.blend import Strips, axis_weights
from tilecodec.container.chunk import TileState
from tilecodec.container.metadata import LevelLayout
from tilecodec.container.store import ByteStore
from tilecodec.decoder.cache import BoundedCache
from tilecodec.decoder.tiles import DecodedTile, TileFetcher, assemble
from tilecodec.entropy.codec import POOL
from tilecodec.entropy.model import CodecModel
from tilecodec.errors import RegionError
from tilecodec.limits import DEFAULT_LIMITS, Limits
from tilecodec.tiles import TilePosition, Window


class LevelDecoder:
    """Reads any region of a level. Safe to use from several threads.

    The windows are fixed by the file and each is decoded on its own, on one thread, so a region's pixels do not depend
    on what else is read, in which order, or through which cache.
    """

    def __init__(
        self,
        store: ByteStore,
        layout: LevelLayout,
        model: CodecModel,
        *,
        cache_bytes: int,
        limits: Limits = DEFAULT_LIMITS,
        fill: tuple[int, int, int] | None = None,
    ) -> None:
        self.layout, self.model = layout, model
        self.fetcher = TileFetcher(
            store, layout, model, cache_bytes=max(cache_bytes, self._rows_bytes()), limits=limits, fill=fill
        )
        self._windows: BoundedCache[TilePosition, NDArray[np.uint8]] = BoundedCache(cache_bytes)
        self._pending: dict[TilePosition, Future[NDArray[np.uint8]]] = {}
        self._lock = threading.RLock()  # a job that is done at once tells so within the lock

    def _rows_bytes(self) -> int:
        """Bytes of three rows of decoded tiles, which windows in order need, within reason."""
        side = self.layout.grid.tile // self.model.config.y_stride
        tile = 2 * self.model.config.codec.y_channels * side * side * self.model.dtype.itemsize
        return min(max((3 * self.layout.grid.cols + 8) * tile, 16 << 20), 256 << 20)

    @property
    def height(self) -> int:
        """True pixel rows."""
        return self.layout.grid.height

    @property
    def width(self) -> int:
        """True pixel columns."""
        return self.layout.grid.width

    def read(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
        """The region's pixels, uint8 (y1 - y0, x1 - x0, 3).

        Raises:
            RegionError: empty, or outside the level.
            TileError: a tile that is lost or fails its checks, where there is no fill colour.
        """
        out = np.empty((y1 - y0, x1 - x0, 3), np.uint8) if y1 > y0 and x1 > x0 else np.empty((0, 0, 3), np.uint8)
        row = 0
        for band in self.rows(y0, y1, x0, x1):
            out[row : row + len(band)] = band
            row += len(band)
        return out

    def rows(self, y0: int, y1: int, x0: int, x1: int) -> Iterator[NDArray[np.uint8]]:
        """The region as consecutive bands of full rows, each uint8 (h, x1 - x0, 3), as soon as they are ready."""
        if not (0 <= y0 < y1 <= self.height and 0 <= x0 < x1 <= self.width):
            raise RegionError(
                got=f"rows {y0}:{y1}, columns {x0}:{x1}",
                expected=f"a part of {self.height} rows and {self.width} columns",
                where=f"level {self.layout.path}",
            )
        grid, overlap = self.layout.grid, self.layout.codec.overlap
        tile_rows = grid.row_range(y0, y1, overlap)
        tile_cols = grid.col_range(x0, x1, overlap)
        windows = self._windows_of(TilePosition(row, col) for row in tile_rows for col in tile_cols)
        carried: NDArray[np.uint32] | None = None
        for row in tile_rows:
            core, window = grid.core(TilePosition(row, 0)), grid.window(TilePosition(row, 0), overlap)
            top, bottom = max(window.y0, y0), min(window.y1, y1)
            shared_below = row + 1 < grid.rows and core.y1 - overlap < y1
            above_to = max(top, min(core.y0 + overlap, bottom)) if row > 0 else top
            below_from = max(core.y1 - overlap, above_to) if shared_below else bottom
            strips = Strips(grid, overlap, x0, x1, top, above_to, below_from, bottom)
            for _ in tile_cols:
                position, pixels = next(windows)
                strips.add(position, self._beside(position, Window(y0, y1, x0, x1)) if pixels is None else pixels)
            weights = axis_weights(window.height, overlap, row > 0, row + 1 < grid.rows)[top - window.y0 :]
            if above_to > top:
                mixed = _weighted(strips.above, weights[: above_to - top])
                if carried is not None:
                    mixed += carried
                yield self._finish_band(_settle(mixed), top, x0)
            if below_from > above_to:
                yield self._finish_band(strips.middle, above_to, x0)
            carried = _weighted(strips.below, weights[below_from - top : bottom - top])

    def _windows_of(self, positions: Iterable[TilePosition]) -> Iterator[tuple[TilePosition, NDArray[np.uint8] | None]]:
        """Decoded windows in order, None for lost tiles. The next ones' networks run ahead of the reader, and the
        entropy decoding of those after them ahead of the networks."""
        ahead = POOL.workers + 2
        coming = iter(positions)
        fetching: deque[tuple[TilePosition, NDArray[np.uint8] | dict[TilePosition, Callable[[], DecodedTile]]]] = (
            deque()
        )
        running: deque[tuple[TilePosition, NDArray[np.uint8] | Future[NDArray[np.uint8]] | None]] = deque()
        while True:
            for position in itertools.islice(coming, ahead - len(fetching)):
                found = self._windows.get(position)
                fetching.append((position, self._requested(position) if found is None else found))
            while fetching and len(running) < ahead:
                position, tiles = fetching.popleft()
                if isinstance(tiles, dict):
                    running.append((position, self._begin(position, {at: wait() for at, wait in tiles.items()})))
                else:
                    running.append((position, tiles))
            if not running:
                return
            position, window = running.popleft()
            yield position, window.result() if isinstance(window, Future) else window

    def _requested(self, at: TilePosition) -> dict[TilePosition, Callable[[], DecodedTile]]:
        """The tiles that a window is made of, on their way."""
        grid = self.layout.grid
        return {
            near: self.fetcher.request(near) for near in (grid.neighbours(at) if self.layout.codec.overlap else [at])
        }

    def _begin(self, at: TilePosition, tiles: dict[TilePosition, DecodedTile]) -> Future[NDArray[np.uint8]] | None:
        """Starts decoding a window, once for all who ask meanwhile; a lost tile has none."""
        if tiles[at].state is TileState.LOST:
            return None
        with self._lock:
            future = self._pending.get(at)
            if future is None:
                future = self._pending[at] = POOL.submit(self._decode, at, tiles)
                future.add_done_callback(lambda _: self._done(at))
        return future

    def _done(self, at: TilePosition) -> None:
        with self._lock:
            self._pending.pop(at, None)

    def _decode(self, at: TilePosition, tiles: dict[TilePosition, DecodedTile]) -> NDArray[np.uint8]:
        """A tile's decoded window before blending, uint8 (height, width, 3)."""
        own = tiles[at].colour
        if own is not None and all(tile.colour == own for tile in tiles.values()):
            window = self.layout.grid.window(at, self.layout.codec.overlap)
            pixels = np.empty((window.height, window.width, 3), np.uint8)
            pixels[:] = own
        else:
            latent = assemble(self.fetcher, self.model, at, tiles)
            pixels = self.model.reconstruct(latent, self.layout.codec.quality)
        self._windows.put(at, pixels, pixels.nbytes)
        return pixels

    def _beside(self, lost: TilePosition, region: Window) -> NDArray[np.uint8]:
        """What is blended in place of a lost tile's window: each pixel as in the window of the tile it belongs to.

        So the tiles around it are as if it had no weight; its own pixels get the fill colour later on. Only what lies
        in the region is filled in, which takes windows that the region takes anyway.
        """
        grid, overlap = self.layout.grid, self.layout.codec.overlap
        place = grid.window(lost, overlap)
        pixels = np.zeros((place.height, place.width, 3), np.uint8)
        for at in grid.neighbours(lost):
            core, window = grid.core(at), grid.window(at, overlap)
            y0, y1 = max(core.y0, place.y0, region.y0), min(core.y1, place.y1, region.y1)
            x0, x1 = max(core.x0, place.x0, region.x0), min(core.x1, place.x1, region.x1)
            if at == lost or y0 >= y1 or x0 >= x1:
                continue
            ((_, own),) = self._windows_of([at])
            if own is not None:
                part = own[y0 - window.y0 : y1 - window.y0, x0 - window.x0 : x1 - window.x0]
                pixels[y0 - place.y0 : y1 - place.y0, x0 - place.x0 : x1 - place.x0] = part
        return pixels

    def _finish_band(self, band: NDArray[np.uint8], y: int, x0: int) -> NDArray[np.uint8]:
        """Gives empty and lost tiles their exact colour over their own pixels."""
        grid = self.layout.grid
        y1, x1 = y + len(band), x0 + band.shape[1]
        for row in grid.row_range(y, y1, 0):
            for col in grid.col_range(x0, x1, 0):
                position = TilePosition(row, col)
                colour = self.fetcher.exact_colour(position)
                if colour is not None:
                    core = grid.core(position)
                    band[max(core.y0 - y, 0) : core.y1 - y, max(core.x0 - x0, 0) : core.x1 - x0] = np.array(
                        colour, np.uint8
                    )
        return band


def _weighted(strip: NDArray[np.uint16], weights: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """A strip times its rows' weights."""
    return strip.astype(np.uint32) * weights[:, None, None]


def _settle(total: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Sums of pixels times weights (65536 in all) to grey levels, rounded half up."""
    return ((total + np.uint32(32768)) >> 16).astype(np.uint8)
