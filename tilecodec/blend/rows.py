"""A region's windows, row by row from the top, each blended with those before it into final pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tilecodec.blend.weights import UNIT, axis_weights
from tilecodec.tiles import Margin, TileGrid, TilePosition, Window
from tilecodec.tiles.rolling import Block, RollingRows


class RowBlender:
    """Turns windows that overlap into blocks of final pixels, which lie side by side.

    A window settles the pixels that it shares with the windows above and on its left, and those of its own. What it
    gives to the rows shared with the windows below waits for them. Most pixels lie in one window only and are copied;
    sums are formed where windows share pixels.

    Args:
        grid: the level's tiles.
        share: of the windows, see :class:`~tilecodec.tiles.Margin`; they are blended over all that they share.
        region: the pixels wanted, in the true picture.
    """

    def __init__(self, grid: TileGrid, share: Margin, region: Window) -> None:
        self._grid, self._share, self._region = grid, share, region
        seam = share.seam if len(grid.row_range(region.y0, region.y1, share)) > 1 else 0
        # what the windows above give to the shared rows, in 1/256 grey levels; from left to right replaced by what
        # those of this row give to the rows shared with the ones below
        self._shared = RollingRows(seam, region.width, seam, dtype=np.uint16)
        self._left: NDArray[np.uint16] | None = None
        self._rows = (0, 0, 0, 0)
        self._weights: NDArray[np.uint32] = np.empty((0, 1, 1), np.uint32)
        self._row = -1

    def close(self) -> None:
        """Frees what waits."""
        self._shared.close()

    def _begin(self, row: int) -> None:
        """Starts the next row of windows."""
        grid, share, region = self._grid, self._share, self._region
        core, window = grid.core(TilePosition(row, 0)), grid.window(TilePosition(row, 0), share)
        top, bottom = max(window.y0, region.y0), min(window.y1, region.y1)
        own = max(top, min(core.y0 + share.after, bottom)) if row > 0 else top
        end = core.y1 - share.before
        below = max(end, own) if row + 1 < grid.rows and end < region.y1 else bottom
        self._rows = (top - window.y0, own - window.y0, below - window.y0, bottom - window.y0)
        vertical = axis_weights(window.height, share.seam, share.seam, row > 0, row + 1 < grid.rows)
        self._weights = vertical[self._rows[0] : self._rows[1], None, None].astype(np.uint32)
        self._left, self._row = None, row

    def add(self, at: TilePosition, pixels: NDArray[np.uint8]) -> Block:
        """Adds the next window, of which only the part in the region, uint8 (rows, columns, 3), and returns what it
        settles.

        Windows come from left to right, rows of them from the top. Blocks of a row of windows have the same rows; one
        may have no pixels.
        """
        if at.row != self._row:
            self._begin(at.row)
        grid, share, x0 = self._grid, self._share, self._region.x0
        core, window = grid.core(at), grid.window(at, share)
        left, right = max(window.x0, x0), min(window.x1, self._region.x1)
        # columns shared with the window on the left, own columns, columns shared with the one on the right
        own = max(left, min(core.x0 + share.after, right)) if at.col > 0 else left
        end = min(right, max(core.x1 - share.before, own)) if at.col + 1 < grid.cols else right
        weights = axis_weights(window.width, share.seam, share.seam, at.col > 0, at.col + 1 < grid.cols)[:, None]
        weights = weights[left - window.x0 : right - window.x0]
        top, middle, below, bottom = self._rows
        y = window.y0 + top
        middle, below, bottom = middle - top, below - top, bottom - top
        shared = own - left
        mixed = pixels[:, :shared] * weights[:shared]
        if shared:
            assert self._left is not None
            mixed += self._left
        self._left = pixels[:, end - left :] * weights[end - left :]
        out = np.empty((below, end - left, 3), np.uint8)
        out[middle:, :shared] = (mixed[middle:below] + np.uint16(UNIT // 2)) // np.uint16(UNIT)
        out[middle:, shared:] = pixels[middle:below, shared : end - left]
        if middle and end > left:
            mine = self._blended(mixed[:middle], pixels[:middle, shared : end - left])
            above = self._shared.read(0, middle, left - x0, end - x0)
            total = mine * self._weights + above * (np.uint32(UNIT) - self._weights)
            out[:middle] = (total + np.uint32(UNIT * UNIT // 2)) >> np.uint32(16)
        if bottom > below and end > left:
            self._shared.write(0, left - x0, self._blended(mixed[below:], pixels[below:, shared : end - left]))
        return Block(y, left, out)

    @staticmethod
    def _blended(mixed: NDArray[np.uint16], own: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Shared and own columns side by side, in 1/256 grey levels."""
        return np.concatenate((mixed, own * np.uint16(UNIT)), axis=1)
