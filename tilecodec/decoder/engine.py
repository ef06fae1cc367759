"""The decoder of one level: windows decoded once, blended into rows, in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tilecodec.blend import axis_weights
from tilecodec.container.chunk import TileState
from tilecodec.container.metadata import LevelLayout
from tilecodec.container.store import ByteStore
from tilecodec.decoder.cache import BoundedCache
from tilecodec.decoder.tiles import DecodedTile, TileFetcher, assemble
from tilecodec.entropy.model import CodecModel
from tilecodec.errors import RegionError
from tilecodec.limits import DEFAULT_LIMITS, Limits
from tilecodec.tiles import TilePosition


class LevelDecoder:
    """Reads any region of a level. Safe to use from several threads.

    The windows are fixed by the file and each is decoded on its own, so a region's pixels do not depend on what else
    is read, in which order, or through which cache.
    """

    def __init__(
        self,
        store: ByteStore,
        layout: LevelLayout,
        model: CodecModel,
        *,
        cache_bytes: int,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.layout, self.model = layout, model
        self.fetcher = TileFetcher(store, layout, model, cache_bytes=max(cache_bytes, 16 << 20), limits=limits)
        self._windows: BoundedCache[TilePosition, NDArray[np.uint8]] = BoundedCache(cache_bytes)
        self._network_lock = threading.Lock()

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
            TileError: a tile that is lost or fails its checks.
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
        carried: NDArray[np.uint32] | None = None
        for row in tile_rows:
            core = grid.core(TilePosition(row, 0))
            falls = row + 1 < grid.rows and core.y1 - overlap < y1
            strip = self._strip(row, tile_cols, y0, y1, x0, x1)
            window = grid.window(TilePosition(row, 0), overlap)
            top = max(window.y0, y0)
            weights = axis_weights(window.height, overlap, row > 0, row + 1 < grid.rows)[top - window.y0 :]
            shared_above = max(0, min(core.y0 + overlap, y1) - top) if row > 0 else 0
            below_from = max(core.y1 - overlap, top) if falls else min(core.y1, y1)
            middle_from = top + shared_above
            if shared_above:
                mixed = strip[:shared_above].astype(np.uint32) * weights[:shared_above, None, None]
                if carried is not None:
                    mixed += carried
                yield self._finish_band(_settle(mixed), top, x0)
            if below_from > middle_from:
                part = strip[middle_from - top : below_from - top]
                yield self._finish_band(((part + np.uint32(128)) >> 8).astype(np.uint8), middle_from, x0)
            carried = None
            if falls:
                begin = max(below_from, middle_from) - top
                carried = strip[begin:].astype(np.uint32) * weights[begin : len(strip), None, None]

    def _strip(self, row: int, tile_cols: range, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint16]:
        """A row of windows blended along x: uint16 (rows, x1 - x0, 3) in 1/256 grey levels, exact."""
        grid, overlap = self.layout.grid, self.layout.codec.overlap
        whole = grid.window(TilePosition(row, 0), overlap)
        top, bottom = max(whole.y0, y0), min(whole.y1, y1)
        strip = np.zeros((bottom - top, x1 - x0, 3), np.uint16)
        for position, pixels in self._windows_of([TilePosition(row, col) for col in tile_cols]):
            window = grid.window(position, overlap)
            left, right = max(window.x0, x0), min(window.x1, x1)
            weights = axis_weights(window.width, overlap, position.col > 0, position.col + 1 < grid.cols)
            part = pixels[top - window.y0 : bottom - window.y0, left - window.x0 : right - window.x0]
            strip[:, left - x0 : right - x0] += part * weights[left - window.x0 : right - window.x0, None]
        return strip

    def _windows_of(self, positions: list[TilePosition]) -> Iterator[tuple[TilePosition, NDArray[np.uint8]]]:
        """Decoded windows in order, with the entropy decoding of the next ones running ahead."""
        ahead = 3
        for n, position in enumerate(positions):
            for later in positions[n : n + ahead]:
                if self._windows.get(later) is None:
                    for neighbour in self._needed(later):
                        self.fetcher.request(neighbour)
            yield position, self.window(position)

    def _needed(self, at: TilePosition) -> list[TilePosition]:
        return list(self.layout.grid.neighbours(at)) if self.layout.codec.overlap else [at]

    def window(self, at: TilePosition) -> NDArray[np.uint8]:
        """A tile's decoded window before blending, uint8 (height, width, 3)."""
        found = self._windows.get(at)
        if found is None:
            tiles = {position: self.fetcher.request(position) for position in self._needed(at)}
            decoded = {position: wait() for position, wait in tiles.items()}
            found = self._reconstruct(at, decoded)
            self._windows.put(at, found, found.nbytes)
        return found

    def _reconstruct(self, at: TilePosition, tiles: dict[TilePosition, DecodedTile]) -> NDArray[np.uint8]:
        own = tiles[at].colour
        if own is not None and all(tile.colour == own for tile in tiles.values()):
            window = self.layout.grid.window(at, self.layout.codec.overlap)
            flat = np.empty((window.height, window.width, 3), np.uint8)
            flat[:] = own
            return flat
        latent = assemble(self.fetcher, self.model, at, tiles)
        with self._network_lock:  # one window at a time: its result must not depend on what runs beside it
            return self.model.reconstruct(latent, self.layout.codec.quality)

    def _finish_band(self, band: NDArray[np.uint8], y: int, x0: int) -> NDArray[np.uint8]:
        """Gives empty tiles their exact colour over their own pixels."""
        grid = self.layout.grid
        y1, x1 = y + len(band), x0 + band.shape[1]
        for row in grid.row_range(y, y1, 0):
            for col in grid.col_range(x0, x1, 0):
                position = TilePosition(row, col)
                if self.fetcher.state(position) is not TileState.CODED:
                    core = grid.core(position)
                    colour = self.fetcher.request(position)().colour
                    band[max(core.y0 - y, 0) : core.y1 - y, max(core.x0 - x0, 0) : core.x1 - x0] = np.array(
                        colour, np.uint8
                    )
        return band


def _settle(total: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Sums of pixels times weights (65536 in all) to grey levels, rounded half up."""
    return ((total + np.uint32(32768)) >> 16).astype(np.uint8)
