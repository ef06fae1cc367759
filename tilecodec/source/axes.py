"""Which axes of an array are rows, columns and bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilecodec.errors import SourceError, UnsupportedPixelsError
from tilecodec.source.base import BANDS, SUPPORTED, Pixels

_BAND_NAMES = ("c", "channel", "channels", "band", "bands", "s", "sample", "samples")


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """The picture's axes in an array; all others have length 1."""

    shape: tuple[int, ...]
    """Shape of the array."""
    y: int
    """Axis of rows."""
    x: int
    """Axis of columns."""
    c: int | None
    """Axis of bands, if there is one."""

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.shape[self.y]

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.shape[self.x]

    @property
    def bands(self) -> int:
        """Samples per pixel."""
        return 1 if self.c is None else self.shape[self.c]

    @property
    def read_bands(self) -> int:
        """Samples per pixel that are read: a fourth is not."""
        return min(self.bands, 3)

    def index(self, y0: int, y1: int, x0: int, x1: int) -> tuple[slice, ...]:
        """Return the index of a window in the array, with the bands that are read."""
        where = [slice(0, 1)] * len(self.shape)
        where[self.y], where[self.x] = slice(y0, y1), slice(x0, x1)
        if self.c is not None:
            where[self.c] = slice(0, self.read_bands)
        return tuple(where)

    def arrange(self, window: NDArray[np.uint8]) -> Pixels:
        """Return what ``index`` selects as (h, w, s), a view."""
        last = [] if self.c is None else [self.c]
        others = [axis for axis in range(window.ndim) if axis not in (self.y, self.x, *last)]
        turned = window.transpose(self.y, self.x, *last, *others)
        height, width = turned.shape[:2]
        return turned.reshape(height, width, self.read_bands)


def axes_by_shape(shape: Sequence[int], name: str) -> Axes:
    """Find the axes of (h, w), (h, w, bands) or (bands, h, w); bands last where both could be.

    Raises:
        UnsupportedPixelsError: no such shape.
    """
    shape = tuple(int(n) for n in shape)
    if len(shape) == 2:
        return Axes(shape=shape, y=0, x=1, c=None)
    if len(shape) == 3 and shape[2] in BANDS:
        return Axes(shape=shape, y=0, x=1, c=2)
    if len(shape) == 3 and shape[0] in BANDS:
        return Axes(shape=shape, y=1, x=2, c=0)
    raise UnsupportedPixelsError(
        "unsupported array shape",
        got=shape,
        expected="(height, width), (height, width, bands) or (bands, height, width) with 1, 3 or 4 bands",
        where=name,
    )


def axes_by_name(names: Sequence[str], shape: Sequence[int], name: str) -> Axes:
    """Find the axes by their names: y, x, and c if there is one.

    Raises:
        SourceError: no axes y and x, or names that do not match the shape.
        UnsupportedPixelsError: another axis is longer than 1, or the band count has no support.
    """
    shape = tuple(int(n) for n in shape)
    lower = [str(axis).lower() for axis in names]
    if len(lower) != len(shape) or lower.count("y") != 1 or lower.count("x") != 1:
        raise SourceError("axes of another kind", got=f"{list(names)} for shape {shape}", expected="y, x", where=name)
    bands = [i for i, axis in enumerate(lower) if axis in _BAND_NAMES]
    axes = Axes(shape=shape, y=lower.index("y"), x=lower.index("x"), c=bands[0] if bands else None)
    longer = [f"{lower[i]}: {n}" for i, n in enumerate(shape) if n != 1 and i not in (axes.y, axes.x, axes.c)]
    if longer:
        raise UnsupportedPixelsError("a stack of pictures", got=", ".join(longer), expected="length 1", where=name)
    if axes.bands not in BANDS:
        raise UnsupportedPixelsError("unsupported number of bands", got=axes.bands, expected=SUPPORTED, where=name)
    return axes
