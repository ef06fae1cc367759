"""Open country: fields, hills, woods and water."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from tilecodec.scene.canvas import Canvas, Numbered, cells, fraction, step, turned
from tilecodec.scene.noise import Cells, Grain, Mask, Plane, fractal, hashed, smooth

CROPS: Final = np.array(
    [
        (192, 174, 124),  # ripe wheat
        (116, 136, 76),  # young wheat
        (66, 94, 50),  # maize
        (176, 168, 82),  # rape
        (132, 106, 82),  # ploughed
        (146, 110, 86),  # red soil
        (100, 122, 68),  # pasture
        (174, 162, 130),  # stubble
        (124, 128, 96),  # fallow
        (84, 112, 58),  # clover
    ],
    np.float32,
)
STRIP: Final = 290.0
"""Mean width of a strip of fields, pixels."""


def paint_fields(canvas: Canvas, grain: Grain) -> None:
    """Paint fields everywhere: strips cut into fields of one crop each, rows, tramlines, tracks and hedges between."""
    y, x = canvas.y, canvas.x
    u, v = turned(y, x, 17)
    u = u + 26 * np.sin(v / 410) + 9 * np.sin(v / 131 + 1)
    v = v + 20 * np.sin(u / 530 + 2)
    strip, du = cells(u / np.float32(STRIP), 11)
    strips = Numbered(strip, np.zeros(1, np.int32))
    length = 170 + 330 * strips.random(12)
    field, dv = cells(v / length + 9 * strips.random(13), 14, strip)
    edge = np.minimum(du * np.float32(STRIP), dv * length)

    fields = Numbered(strip, field)
    number = [hashed(fields.i, fields.j, 15 + k) for k in range(6)]
    crop = fields(CROPS[(number[0] * len(CROPS)).astype(np.int32)])
    turn, kind, border = fields(number[1]), fields(number[2]), fields(number[5])
    phase = np.where(turn < 0.45, u, np.where(turn < 0.85, v, np.float32(0.8) * u + np.float32(0.6) * v))
    strength = fields(np.float32(0.13) * number[3] ** 2 + np.float32(0.015))
    rows = (
        np.sin(phase * fields(np.float32(2 * np.pi) / (np.float32(3.2) + 6 * number[2]))) * strength * step(9, 12, edge)
    )
    lane = fields(26 + 26 * number[4])
    track = np.abs(np.abs(fraction(phase / lane) - np.float32(0.5)) * lane - np.float32(2.6))
    rows -= np.float32(0.16) * step(1.3, 0.3, track) * (kind > 0.35)
    patches = fractal(canvas.area, 210, 4, 20, 0.6) * (np.float32(0.02) + np.float32(0.09) * turn)
    canvas.colour[:] = crop * (1 + rows + patches + np.float32(0.035) * grain(canvas.area))[..., None]
    canvas.height[:] = 0

    canvas.blend(step(4.5, 2.5, edge) * (border < 0.55), (112, 118, 78))
    canvas.blend(step(2.6, 1.4, np.abs(edge - 1.5)) * (border > 0.8), (184, 164, 130))
    canvas.trees[:] = np.where(border < 0.4, step(8, 3, edge) * np.float32(0.75), np.float32(0.006) * (kind > 0.7))


def paint_hills(canvas: Canvas, size: int, grain: Grain) -> None:
    """Paint bare hills into the upper right corner: ridges and valleys, grass below, rock and snow above."""
    whole = canvas
    part = canvas.within(whole.area.y0, whole.area.y1, whole.area.y0 + round(0.1 * size), whole.area.x1)
    if part is None or whole.area.y0 > 0.9 * size:
        return
    canvas, area = part, part.area
    place = (canvas.x - canvas.y) / np.float32(size)
    weight = step(0.32, 0.6, place + np.float32(0.07) * fractal(area, 420, 3, 40))
    if not weight.any():
        return
    ridges = np.zeros_like(weight)
    for octave in range(6):
        ridge = 1 - np.abs(smooth(area, 520 / 2**octave, 50 + octave)) * np.float32(0.8)
        ridges += np.float32(0.5**octave) * ridge * (np.float32(0.5) + np.float32(0.5) * np.clip(ridges, 0, 1))
    altitude = ridges * weight * weight
    noisy = altitude + np.float32(0.05) * grain(area)
    grass = np.asarray((98, 110, 66), np.float32) * (1 + np.float32(0.12) * fractal(area, 90, 3, 60))[..., None]
    strata = np.sin(altitude * 70 + 3 * smooth(area, 150, 66)) * np.float32(6) + 5 * grain(area)
    rock = np.asarray((138, 126, 112), np.float32) + strata[..., None]
    canvas.colour += weight[..., None] * (grass - canvas.colour)
    canvas.colour += step(0.62, 0.86, noisy)[..., None] * (rock - canvas.colour)
    canvas.blend(step(1.12, 1.22, noisy), (232, 236, 242))
    canvas.height += 190 * altitude + weight * np.float32(0.35) * grain(area)
    shrubs = np.float32(0.5) * step(0.7, 0.4, noisy) * step(-0.2, 0.9, smooth(area, 170, 67))
    canvas.trees += step(0, 0.3, weight) * (shrubs - canvas.trees)


def woods(canvas: Canvas, size: int) -> Mask:
    """Return where woods stand, (h, w): patches of a smooth field, fewer around the town's side of the picture."""
    area = canvas.area
    return fractal(area, 640, 5, 70, 0.55) + 0.55 * np.sin(canvas.x / size * 5 + 2) > np.float32(0.95)


def paint_woods(canvas: Canvas, where: Mask) -> None:
    """Paint the floor of woods and let trees stand densely."""
    floor = np.asarray((50, 62, 38), np.float32) * (1 + np.float32(0.1) * smooth(canvas.area, 60, 80))[..., None]
    canvas.paint(where, floor[where], trees=0.97)


def paint_water(canvas: Canvas, size: int, grain: Grain) -> None:
    """Paint a river with sand banks and trees beside it, and two lakes."""
    y = canvas.y[:, :1]
    middle, slope = np.full_like(y, size * 0.62), np.zeros_like(y)
    for reach, wavelength, phase in ((250, 290, 0.4), (95, 121, 1.7), (22, 47, 0.2)):
        middle += reach * np.sin(y / wavelength + phase)
        slope += reach / wavelength * np.cos(y / wavelength + phase)
    part = canvas.within(canvas.area.y0, canvas.area.y1, int(middle.min()) - 260, int(middle.max()) + 260)
    if part is not None:
        away = np.abs(part.x - middle) / np.sqrt(1 + slope * slope)
        _paint_shore(part, away - 38 - 9 * smooth(part.area, 260, 95), grain)
    for centre_y, centre_x, high, wide in ((0.60, 0.88, 150, 260), (0.90, 0.12, 190, 120)):
        top, left = round(centre_y * size), round(centre_x * size)
        part = canvas.within(top - high - 120, top + high + 120, left - wide - 120, left + wide + 120)
        if part is not None:
            away = np.hypot((part.y - top) / high, (part.x - left) / wide) - 1
            _paint_shore(part, away * min(high, wide) + 30 * smooth(part.area, 140, 98), grain)


def _paint_shore(canvas: Canvas, shore: Plane, grain: Grain) -> None:
    """Paint water where the distance to its shore (h, w) is negative, sand and trees where it is small."""
    area = canvas.area
    rough = fractal(area, 120, 4, 90)
    shore = shore + 5 * rough
    bank = step(46, 4, shore) * (smooth(area, 110, 96) > -0.2)
    canvas.trees[:] = np.maximum(canvas.trees, bank * np.float32(0.7))
    canvas.height *= step(0, 60, shore)
    sand: Plane = np.float32(3) + 9 * np.clip(smooth(area, 130, 97), -0.2, 1.5)
    canvas.blend(step(3, 0, shore - sand), (182, 168, 136))
    canvas.trees[shore < sand] = 0
    water = shore < 0
    depth = step(0, -34, shore)[water, None]
    shallow, deep = np.asarray((98, 112, 92), np.float32), np.asarray((44, 66, 70), np.float32)
    ripple = 1 + np.float32(0.045) * grain(area)[water] + np.float32(0.05) * rough[water]
    canvas.paint(water, (shallow + depth * (deep - shallow)) * ripple[:, None])


def paint_trees(canvas: Canvas, grain: Grain) -> None:
    """Let trees grow where the canvas has a chance for them: round crowns that stand out and differ in colour."""
    where = np.nonzero(canvas.trees > 0.002)
    y, x, chance = canvas.y[where], canvas.x[where], canvas.trees[where]
    crown, tone = np.zeros_like(y), np.zeros_like(y)
    for cell, salt in ((13.0, 100), (8.0, 110)):
        gy, gx = y / np.float32(cell), x / np.float32(cell)
        top, left = (np.floor(g - np.float32(0.5)).astype(np.int32) for g in (gy, gx))
        likely = chance if cell > 10 else chance * np.float32(0.6)
        for i in (0, 1):
            for j in (0, 1):
                height, number = _crown(gy, gx, top + np.int32(i), left + np.int32(j), salt, likely)
                height *= np.float32(cell * cell)
                higher = height > crown
                np.copyto(crown, height, where=higher)
                np.copyto(tone, number, where=higher)
    kinds = np.asarray([(58, 84, 42), (74, 98, 48), (46, 70, 40), (92, 104, 52), (66, 88, 56)], np.float32)
    colour = (
        kinds[(fraction(tone * 97) * len(kinds)).astype(np.int32)]
        * (np.float32(0.85) + np.float32(0.3) * tone)[:, None]
    )
    grown = crown > 0
    pixels = tuple(axis[grown] for axis in where)
    canvas.colour[pixels] = colour[grown]
    leaves = grain(canvas.area)[pixels]
    canvas.height[pixels] += np.sqrt(crown[grown]) * (np.float32(1.1) + np.float32(0.09) * leaves)


def _crown(gy: Plane, gx: Plane, i: Cells, j: Cells, salt: int, chance: Plane) -> tuple[Plane, Plane]:
    """Return the squared height of cell (i, j)'s tree at places (gy, gx), all in cells, and the tree's own number."""
    index = ((i & 255) << 8) + (j & 255)
    dy, dx, squared_radius, number, presence = (table.take(index) for table in _trees(salt))
    dy += i - gy
    dx += j - gx
    squared_radius -= dy * dy + dx * dx
    squared_radius *= presence < chance
    return squared_radius, number


@lru_cache(maxsize=4)
def _trees(salt: int) -> tuple[Plane, ...]:
    """Return place (y, x) in its cell, squared radius, number and presence of 256 x 256 trees, which then repeat."""
    cell = np.arange(1 << 16, dtype=np.int32)
    random = [hashed(cell >> 8, cell & 255, salt + k) for k in range(5)]
    return (
        np.float32(0.25) + np.float32(0.5) * random[0],
        np.float32(0.25) + np.float32(0.5) * random[1],
        (np.float32(0.36) + np.float32(0.33) * random[2]) ** 2,
        random[3],
        random[4],
    )
