"""The grid of tiles of one pyramid level, and the windows around them.

The picture is padded (edge-replicated) at the bottom and right up to a multiple of the model's hyper-latent stride and
cut into square tiles; those at the bottom and right may be smaller. Windows are tiles with a margin, clipped to the
padded picture. All coordinates are pixels of the level, ``(y, x)``, half-open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tilecodec.errors import UsageError


@dataclass(frozen=True, slots=True, order=True)
class TilePosition:
    """A tile's place in its level's grid."""

    row: int
    col: int


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of pixels, half-open: ``y0 <= y < y1``, ``x0 <= x < x1``."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        """Columns."""
        return self.x1 - self.x0

    def clip(self, height: int, width: int) -> Window:
        """The part inside a picture of this size."""
        return Window(max(self.y0, 0), min(self.y1, height), max(self.x0, 0), min(self.x1, width))

    def meet(self, other: Window) -> Window:
        """What lies in both; they do meet."""
        return Window(max(self.y0, other.y0), min(self.y1, other.y1), max(self.x0, other.x0), min(self.x1, other.x1))

    def covers(self, part: Window) -> bool:
        """Whether all of another window lies in this one."""
        return self.y0 <= part.y0 and part.y1 <= self.y1 and self.x0 <= part.x0 and part.x1 <= self.x1

    def grow(self, margin: int) -> Window:
        """The window with ``margin`` pixels more on each side."""
        return Window(self.y0 - margin, self.y1 + margin, self.x0 - margin, self.x1 + margin)


@dataclass(frozen=True, slots=True)
class Margin:
    """How far windows reach over the edges of their tiles, pixels; at the picture's edge they end with it."""

    before: int
    """Above and on the left."""
    after: int
    """Below and on the right; negative where windows end before their tiles do."""

    @property
    def seam(self) -> int:
        """Rows or columns that two windows beside one another share."""
        return self.before + self.after


NO_MARGIN: Final = Margin(0, 0)


def round_up(value: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Tiles of a level."""

    height: int
    """True height of the level, pixels."""
    width: int
    tile: int
    """Tile side, a multiple of ``stride``."""
    stride: int
    """The model's hyper-latent stride: the padded sides are multiples of it."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise UsageError(
                "a picture needs at least one pixel", got=(self.height, self.width), expected="height, width >= 1"
            )
        if self.tile < self.stride or self.tile % self.stride:
            raise UsageError(
                "the tile side does not fit the model",
                got=self.tile,
                expected=f"a multiple of {self.stride}",
                where="tile",
            )

    @property
    def padded_height(self) -> int:
        """Height after padding."""
        return round_up(self.height, self.stride)

    @property
    def padded_width(self) -> int:
        """Width after padding."""
        return round_up(self.width, self.stride)

    @property
    def rows(self) -> int:
        """Rows of tiles."""
        return -(-self.padded_height // self.tile)

    @property
    def cols(self) -> int:
        """Columns of tiles."""
        return -(-self.padded_width // self.tile)

    def core(self, at: TilePosition) -> Window:
        """The tile's own pixels, in the padded picture."""
        y0, x0 = at.row * self.tile, at.col * self.tile
        return Window(y0, y0 + self.tile, x0, x0 + self.tile).clip(self.padded_height, self.padded_width)

    def true_core(self, at: TilePosition) -> Window:
        """The tile's own pixels that lie in the true picture."""
        return self.core(at).clip(self.height, self.width)

    def window(self, at: TilePosition, margin: Margin) -> Window:
        """The tile with its margin, clipped to the padded picture."""
        core = self.core(at)
        return Window(
            core.y0 - margin.before if at.row else 0,
            core.y1 + margin.after if at.row + 1 < self.rows else self.padded_height,
            core.x0 - margin.before if at.col else 0,
            core.x1 + margin.after if at.col + 1 < self.cols else self.padded_width,
        )

    def row_range(self, y0: int, y1: int, margin: Margin) -> range:
        """Tile rows whose windows meet pixel rows ``y0 <= y < y1``."""
        return _meeting(y0, y1, margin, self.tile, self.rows)

    def col_range(self, x0: int, x1: int, margin: Margin) -> range:
        """Tile columns whose windows meet pixel columns ``x0 <= x < x1``."""
        return _meeting(x0, x1, margin, self.tile, self.cols)

    def windows_of(self, part: Window, margin: Margin) -> Iterator[TilePosition]:
        """The tiles whose windows meet a part of the picture, in row-major order."""
        cols = self.col_range(part.x0, part.x1, margin)
        for row in self.row_range(part.y0, part.y1, margin):
            for col in cols:
                yield TilePosition(row, col)

    def tiles_of(self, part: Window) -> Iterator[TilePosition]:
        """The tiles that meet a part of the picture, in row-major order."""
        return self.windows_of(part, NO_MARGIN)


def _meeting(begin: int, end: int, margin: Margin, tile: int, count: int) -> range:
    """Along one axis, the tiles whose windows meet ``begin <= n < end``."""
    first, last = (begin - margin.after) // tile, (end - 1 + margin.before) // tile
    return range(min(max(first, 0), count - 1), min(last, count - 1) + 1)
