"""A drawn landscape of any size, seen from above: the picture `tilecodec demo` compresses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from tilecodec.scene.canvas import Canvas, step
from tilecodec.scene.land import paint_fields, paint_hills, paint_trees, paint_water, paint_woods, woods
from tilecodec.scene.noise import SEED, Area, Grain, Plane, fractal
from tilecodec.scene.town import paint_roads, paint_town

__all__ = ["Scene"]

BAND: Final = 256
"""Rows drawn at once."""
COLUMNS: Final = 512
"""Columns painted at once, so that what is being worked on stays in the processor's cache."""
_REACH: Final = 24
"""Pixels drawn around a band, for shadows that fall into it."""
_SUN: Final = (0.7, 1.0)
"""Step (y, x) of a shadow for each unit of height."""


class Scene:
    """A landscape of size x size pixels: fields, woods, hills, a river, lakes, a town, roads, clouds.

    Every pixel is a function of its place, so the picture can be drawn in bands of rows in bounded memory, at any
    size. The same size gives the same picture.
    """

    def __init__(self, size: int) -> None:
        """Plan a scene of ``size`` pixels a side."""
        self.size = size
        self._fine = Grain(0.3, 1)
        self._coarse = Grain(1.0, 2)

    def bands(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Draw the picture from the top in bands (at most BAND, size, 3) uint8."""
        for y in range(0, self.size, BAND):
            yield self._band(y, min(y + BAND, self.size))

    def _band(self, y0: int, y1: int) -> npt.NDArray[np.uint8]:
        area = Area(y0=y0 - _REACH, y1=y1 + _REACH, x0=-_REACH, x1=self.size + _REACH)
        canvas = Canvas(area)
        for x in range(area.x0, area.x1, COLUMNS):
            part = canvas.within(area.y0, area.y1, x, x + COLUMNS)
            if part is not None:
                self._paint(part)
        picture = _lit(canvas)
        _paint_clouds(picture, Area(y0=y0 - 1, y1=y1 + 1, x0=-1, x1=self.size + 1))
        return self._sensed(picture, y0)

    def _paint(self, canvas: Canvas) -> None:
        paint_fields(canvas, self._coarse)
        paint_woods(canvas, woods(canvas, self.size))
        paint_hills(canvas, self.size, self._coarse)
        paint_town(canvas, self.size, self._fine)
        paint_water(canvas, self.size, self._coarse)
        paint_roads(canvas, self.size)
        paint_trees(canvas, self._fine)
        canvas.colour *= 1 + np.float32(0.03) * self._fine(canvas.area)[..., None]

    def _sensed(self, picture: Plane, y0: int) -> npt.NDArray[np.uint8]:
        """Return what a camera makes of light (h + 2, w + 2, 3): a little blur and noise, 8 bits."""
        rows = (picture[:-2] + picture[2:] + 4 * picture[1:-1]) * np.float32(1 / 6)
        blurred = (rows[:, :-2] + rows[:, 2:] + 4 * rows[:, 1:-1]) * np.float32(1 / 6)
        noise = np.random.default_rng((SEED, y0)).standard_normal(blurred.shape, np.float32)
        pixels: npt.NDArray[np.uint8] = np.clip(blurred + 1.3 * noise + np.float32(0.5), 0, 255).astype(np.uint8)
        return pixels


def _lit(canvas: Canvas) -> Plane:
    """Return the light (h, w, 3) of a canvas less _REACH - 1 pixels a side: slopes to the sun bright, shadows dark."""
    edge = _REACH - 1
    rows, columns = canvas.height.shape

    def shifted(dy: int, dx: int) -> Plane:
        return canvas.height[edge + dy : rows - edge + dy, edge + dx : columns - edge + dx]

    here = shifted(0, 0)
    rise = (shifted(1, 1) - shifted(-1, -1)) + (shifted(0, 1) - shifted(0, -1))
    shade = 1 + np.clip(rise * np.float32(0.07), -0.34, 0.3)
    over = np.zeros_like(here)
    for k in range(1, edge):
        np.maximum(over, shifted(-round(k * _SUN[0]), -round(k * _SUN[1])) - np.float32(k), out=over)
    shadow = np.clip(over - here, 0, 1)[..., None]
    colour = canvas.colour[edge : rows - edge, edge : columns - edge] * shade[..., None]
    colour *= 1 - shadow * np.asarray((0.58, 0.52, 0.44), np.float32)
    return colour


def _paint_clouds(picture: Plane, area: Area) -> None:
    """Add a few thin clouds (h, w) and their shadows, in place."""
    away = Area(y0=area.y0 - 110, y1=area.y1 - 110, x0=area.x0 - 160, x1=area.x1 - 160)
    for place, is_shadow in ((away, True), (area, False)):
        field = fractal(place, 700, 3, 400, 0.52)
        if field.max() < 1.4:
            continue
        field += np.float32(0.14) * fractal(place, 87, 3, 403, 0.52)
        cover = step(1.75, 2.9, field)[..., None]
        if is_shadow:
            picture *= 1 - np.float32(0.45) * cover
        else:
            picture += np.float32(0.93) * cover * (np.float32(238) - picture)
