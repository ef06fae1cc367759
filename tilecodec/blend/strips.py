"""A row of windows blended along x, from left to right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tilecodec.blend.weights import axis_weights
from tilecodec.tiles import TileGrid, TilePosition


class Strips:
    """The part of a region that one row of windows covers, in three strips of rows.

    Most pixels lie in one window only and are copied; sums are formed where windows share pixels.

    Args:
        grid: the level's tiles.
        overlap: margin the tiles were grown by.
        x0: the region's first column.
        x1: the column after its last.
        top: the first row of the upper strip, which the windows above share.
        middle: the first row that no other row of windows shares.
        below: the first row of the lower strip, which the windows below share.
        bottom: the row after its last.
    """

    def __init__(
        self, grid: TileGrid, overlap: int, x0: int, x1: int, top: int, middle: int, below: int, bottom: int
    ) -> None:
        self._grid, self._overlap = grid, overlap
        self._x0, self._x1, self._rows = x0, x1, (top, middle, below, bottom)
        self.above: NDArray[np.uint16] = np.zeros((middle - top, x1 - x0, 3), np.uint16)
        """(rows, columns, 3) in 1/256 grey levels, exact."""
        self.middle: NDArray[np.uint8] = np.empty((below - middle, x1 - x0, 3), np.uint8)
        """(rows, columns, 3), final."""
        self.below: NDArray[np.uint16] = np.zeros((bottom - below, x1 - x0, 3), np.uint16)
        """Like ``above``."""
        self._left: NDArray[np.uint16] | None = None

    def add(self, at: TilePosition, pixels: NDArray[np.uint8]) -> None:
        """Adds the next window to the right, uint8 (height, width, 3)."""
        grid, overlap = self._grid, self._overlap
        core, window = grid.core(at), grid.window(at, overlap)
        left, right = max(window.x0, self._x0), min(window.x1, self._x1)
        weights = axis_weights(window.width, overlap, at.col > 0, at.col + 1 < grid.cols)[:, None]
        weights = weights[left - window.x0 : right - window.x0]
        into = slice(left - self._x0, right - self._x0)
        top, middle, below, bottom = (y - window.y0 for y in self._rows)
        pixels = pixels[:, left - window.x0 : right - window.x0]
        if middle > top:
            self.above[:, into] += pixels[top:middle] * weights
        if bottom > below:
            self.below[:, into] += pixels[below:bottom] * weights
        if below == middle:
            return
        own = pixels[middle:below]
        # columns shared with the left window, own columns, columns shared with the right one
        mine_from = max(left, min(core.x0 + overlap, right)) if at.col > 0 else left
        mine_to = min(right, max(core.x1 - overlap, mine_from)) if at.col + 1 < grid.cols else right
        self.middle[:, mine_from - self._x0 : mine_to - self._x0] = own[:, mine_from - left : mine_to - left]
        if mine_from > left:
            total = own[:, : mine_from - left] * weights[: mine_from - left]
            assert self._left is not None
            total += self._left
            total += 128
            total >>= 8
            self.middle[:, left - self._x0 : mine_from - self._x0] = total
        self._left = own[:, mine_to - left :] * weights[mine_to - left :] if mine_to < right else None
