"""The canvas layers are painted on: colour and height of every pixel of an area."""

from __future__ import annotations

from copy import copy

import numpy as np

from tilecodec.scene.noise import Area, Cells, Mask, Plane, hashed

Colour = tuple[float, float, float]


class Canvas:
    """Colour and height of an area, both painted over by layer after layer."""

    def __init__(self, area: Area) -> None:
        shape = (area.y1 - area.y0, area.x1 - area.x0)
        self.area = area
        self.y, self.x = (np.broadcast_to(c, shape) for c in area.coordinates())
        """Coordinates of every pixel, (h, w) float32."""
        self.colour: Plane = np.zeros((*shape, 3), np.float32)
        """(h, w, 3), sRGB 0 to 255."""
        self.height: Plane = np.zeros(shape, np.float32)
        """(h, w), the length of the shadow it throws, pixels."""
        self.trees: Plane = np.zeros(shape, np.float32)
        """(h, w), how likely a tree is to grow here, 0 to 1."""

    def within(self, y0: int, y1: int, x0: int, x1: int) -> Canvas | None:
        """Return the canvas of the part of the area inside y0..y1, x0..x1, sharing its pixels, or None."""
        area = self.area
        part = Area(y0=max(y0, area.y0), y1=min(y1, area.y1), x0=max(x0, area.x0), x1=min(x1, area.x1))
        if part.y0 >= part.y1 or part.x0 >= part.x1:
            return None
        window = (slice(part.y0 - area.y0, part.y1 - area.y0), slice(part.x0 - area.x0, part.x1 - area.x0))
        canvas = copy(self)
        canvas.area, canvas.y, canvas.x = part, self.y[window], self.x[window]
        canvas.colour, canvas.height, canvas.trees = self.colour[window], self.height[window], self.trees[window]
        return canvas

    def paint(self, where: Mask, colour: Colour | Plane, height: float | Plane = 0.0, trees: float = 0.0) -> None:
        """Cover ``where`` (h, w) with a colour (one, or (n, 3) for its n pixels), a height and a chance of trees."""
        self.colour[where] = colour
        self.height[where] = height
        self.trees[where] = trees

    def blend(self, weight: Plane, colour: Colour) -> None:
        """Mix a colour in by ``weight`` (h, w), 0 to 1."""
        weight = weight[..., None]
        self.colour += weight * (np.asarray(colour, np.float32) - self.colour)


def step(low: float, high: float, value: Plane) -> Plane:
    """Return 0 below ``low``, 1 above ``high`` and a smooth rise between."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    risen: Plane = t * t * (3 - 2 * t)
    return risen


def turned(y: Plane, x: Plane, degrees: float) -> tuple[Plane, Plane]:
    """Return coordinates along and across axes turned by an angle."""
    cosine, sine = np.float32(np.cos(np.radians(degrees))), np.float32(np.sin(np.radians(degrees)))
    return x * cosine + y * sine, y * cosine - x * sine


def cells(position: Plane, salt: int, other: Cells | None = None) -> tuple[Cells, Plane]:
    """Cut a line into cells of about unit length with uneven borders.

    Args:
        position: places on the line, any shape.
        salt: which of many independent cuts.
        other: cell indices of another axis, for borders that differ along it.

    Returns:
        Index of the cell and distance to its nearest border, in units.
    """
    nearest = np.floor(position + np.float32(0.5)).astype(np.int32)
    numbered = Numbered(nearest, np.zeros(1, np.int32) if other is None else other)
    beyond = position - nearest.astype(np.float32) - (numbered.random(salt) - np.float32(0.5)) * np.float32(0.5)
    return nearest - (beyond < 0), np.abs(beyond)


def fraction(value: Plane) -> Plane:
    """Return what lies above the next lower whole number, 0 to 1."""
    rest: Plane = value - np.floor(value)
    return rest


class Numbered:
    """Pairs of cell indices (n,) numbered through, so that what depends on a cell is worked out once a cell."""

    def __init__(self, i: Cells, j: Cells) -> None:
        first_i, first_j = int(i.min()), int(j.min())
        rows, columns = int(i.max()) + 1 - first_i, int(j.max()) + 1 - first_j
        self.index = (i - first_i) * columns + (j - first_j)
        """Number of each pixel's cell."""
        number = np.arange(rows * columns, dtype=np.int32)
        self.i: Cells = number // columns + first_i
        """First index of each cell, (rows * columns,)."""
        self.j: Cells = number % columns + first_j
        """Second index of each cell."""

    def __call__(self, values: Plane) -> Plane:
        """Return each pixel's value, given one or more for each cell."""
        taken: Plane = values.take(self.index, axis=0)
        return taken

    def random(self, salt: int) -> Plane:
        """Return a number in [0, 1) for each pixel, the same within a cell."""
        return self(hashed(self.i, self.j, salt))
