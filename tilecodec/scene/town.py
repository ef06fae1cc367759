"""Built land: a town of blocks, houses and gardens, villages, roads and cars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from tilecodec.scene.canvas import Canvas, Numbered, fraction, step, turned
from tilecodec.scene.noise import Cells, Grain, Mask, Plane, hashed, smooth

BLOCK_S: Final = 168.0
BLOCK_T: Final = 120.0
"""Spacing of streets along and across, pixels."""
STREET: Final = 6.0
"""Half the width of a street."""
ASPHALT: Final = (108.0, 108.0, 110.0)
ROOFS: Final = np.array(
    [(150, 88, 68), (168, 108, 82), (96, 92, 92), (118, 94, 78), (152, 148, 142), (132, 74, 60)], np.float32
)
FLAT_ROOFS: Final = np.array([(178, 176, 170), (150, 150, 150), (202, 200, 196), (128, 134, 142)], np.float32)
CARS: Final = np.array([(230, 230, 230), (40, 42, 48), (150, 152, 156), (150, 50, 46), (58, 80, 120)], np.float32)
GRASS: Final = (104.0, 124.0, 70.0)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The town's pixels, all arrays (n,), in coordinates of their block; lengths in pixels."""

    i: Cells
    j: Cells
    s: Plane
    t: Plane
    """Place along and across in the block, from its corner's street line."""
    curb: Plane
    """Distance inwards from the block's curb; negative on the street."""
    numbered: Numbered
    """The blocks, for what all pixels of one share."""
    kind: Plane
    """Which sort of block, 0 to 1."""


def _urban(y: Plane, x: Plane, size: int) -> Plane:
    """Return how much a place is town: above 0 inside."""
    wave = 0.16 * np.sin(x / 310 + 1) * np.sin(y / 270) + 0.1 * np.sin((x + y) / 150)
    best = np.full_like(y, -9)
    for cy, cx, radius in ((0.45, 0.31, 0.25), (0.83, 0.50, 0.07), (0.74, 0.90, 0.06), (0.10, 0.12, 0.06)):
        away = np.hypot(y - np.float32(cy * size), x - np.float32(cx * size)) / np.float32(radius * size)
        best = np.maximum(best, 1 - away + wave)
    return best


def paint_town(canvas: Canvas, size: int, grain: Grain) -> None:
    """Paint streets, houses with gardens, flats, halls, old courtyards and parks into the town's blocks."""
    s, t = turned(canvas.y, canvas.x, -23)
    s = s + 22 * np.sin(t / 330)
    t = t + 18 * np.sin(s / 410 + 1)
    i, j = (np.floor(c / np.float32(p)).astype(np.int32) for c, p in ((s, BLOCK_S), (t, BLOCK_T)))
    # A block is town as a whole, so the question is asked once a block and looked up by the pixels.
    every = Numbered(i, j)
    middle_s, middle_t = (
        (every.i + np.float32(0.5)) * np.float32(BLOCK_S),
        (every.j + np.float32(0.5)) * np.float32(BLOCK_T),
    )
    middle_x, middle_y = turned(middle_t, middle_s, 23)
    urbanity = _urban(middle_y, middle_x, size)
    urbanity[urbanity < (hashed(every.i, every.j, 200) - np.float32(0.5)) * np.float32(0.25)] = -1
    if urbanity.max() < 0:
        return
    urban = every(urbanity)
    where = urban > -1
    if not where.any():
        return
    i, j, urban = i[where], j[where], urban[where]
    s, t = s[where] - i * np.float32(BLOCK_S), t[where] - j * np.float32(BLOCK_T)
    wide = np.where(i % 4 == 0, np.float32(STREET + 5), np.float32(STREET))
    curb_t = np.float32(BLOCK_T / 2 - STREET) - np.abs(t - np.float32(BLOCK_T / 2))
    curb = np.minimum(np.minimum(s - wide, np.float32(BLOCK_S - STREET) - s), curb_t)
    numbered = Numbered(i, j)
    blocks = _Blocks(i=i, j=j, s=s, t=t, curb=curb, numbered=numbered, kind=numbered.random(201))

    noise = (1 + np.float32(0.02) * grain(canvas.area) + np.float32(0.05) * smooth(canvas.area, 40, 202))[where]
    paint = _Paint(len(s))
    paint.put(np.ones(len(s), bool), GRASS, trees=0.2)
    old = urban > 0.62
    flats = ~old & (blocks.kind < 0.13) & (urban > 0.2)
    halls = ~old & (blocks.kind > 0.87)
    park = ~halls & (blocks.kind > 0.80)
    _houses(paint, blocks, ~old & ~flats & ~halls & ~park)
    _courtyards(paint, blocks, old & ~park)
    _flats(paint, blocks, flats)
    _halls(paint, blocks, halls)
    _park(paint, blocks, park)
    paint.put((curb > 0) & (curb < 2.2), (164, 160, 154))
    _streets(paint, blocks)
    canvas.paint(where, paint.colour * noise[:, None], paint.height)
    canvas.trees[where] = paint.trees


class _Paint:
    """Colour (n, 3), height (n,) and chance of trees (n,) of the town's pixels."""

    def __init__(self, count: int) -> None:
        self.colour = np.zeros((count, 3), np.float32)
        self.height = np.zeros(count, np.float32)
        self.trees = np.zeros(count, np.float32)

    def put(
        self, where: Mask, colour: Plane | tuple[float, float, float], height: Plane | float = 0.0, trees: float = 0.0
    ) -> None:
        """Cover the pixels ``where`` (n,); a colour or height array has one entry for each pixel of all n."""
        self.colour[where] = colour[where] if isinstance(colour, np.ndarray) and colour.ndim == 2 else colour
        self.height[where] = height[where] if isinstance(height, np.ndarray) else height
        self.trees[where] = trees


def _pick(palette: Plane, number: Plane) -> Plane:
    picked: Plane = palette[(number * len(palette)).astype(np.int32)]
    return picked


def _houses(paint: _Paint, blocks: _Blocks, where: Mask) -> None:
    """Two rows of lots, each with a gabled house, a drive, a garden, now and then a shed or a pool."""
    lot_width = 26 + 10 * blocks.numbered.random(210)
    lot = np.floor((blocks.s - 8) / lot_width).astype(np.int32)
    upper = blocks.t < BLOCK_T / 2
    front = np.where(upper, blocks.t, np.float32(BLOCK_T) - blocks.t) - np.float32(STREET)
    lots = Numbered(blocks.i * 8 + lot, blocks.j * 2 + upper)
    a = blocks.s - 8 - (lot + np.float32(0.5)) * lot_width + 3 * (lots.random(211) - np.float32(0.5))
    h = [lots.random(212 + k) for k in range(8)]
    whole = where & (blocks.s > 10) & ((lot + 1) * lot_width + 8 < BLOCK_S - 4)
    lawn = np.asarray(GRASS, np.float32) * (np.float32(0.78) + np.float32(0.42) * h[0])[:, None]
    lawn = lawn * np.where(h[1] > 0.8, np.asarray((1.25, 1.05, 1.1), np.float32)[:, None], 1).T
    paint.put(whole, lawn, trees=0.3)
    paint.put(whole & (np.abs(np.abs(a) - lot_width / 2) < 1.2) & (h[2] > 0.4), (72, 90, 52), 2.0)
    paint.put(whole & (h[3] > 0.78) & (np.hypot(a - 3, (front - 40) * 1.6) < 4.6), (92, 168, 186))
    drive = whole & (np.abs(a - lot_width * np.float32(0.36)) < 2.2) & (front < 20)
    paint.put(drive, (158, 152, 144))
    half_a, half_b = 6.5 + 3.5 * h[4], 5.5 + 3.5 * h[5]
    b = front - 17 - 4 * h[6]
    along = h[7] > 0.5
    ridge = np.where(along, half_b - np.abs(b), half_a - np.abs(a))
    house = whole & (np.abs(a) < half_a) & (np.abs(b) < half_b) & (h[1] > 0.06)
    paint.put(
        house, _pick(ROOFS, h[2]) * (np.float32(0.85) + np.float32(0.3) * h[0])[:, None], 6 + ridge * np.float32(0.55)
    )
    chimney = house & (np.abs(a - 2) < 1.1) & (np.abs(b - 1) < 1.1)
    paint.put(chimney, (86, 70, 64), 11.0)
    shed = whole & (h[6] > 0.55) & (np.abs(a + lot_width * np.float32(0.28)) < 3) & (np.abs(front - 44) < 2.6)
    paint.put(shed, _pick(ROOFS, h[5]), 3.0)


def _courtyards(paint: _Paint, blocks: _Blocks, where: Mask) -> None:
    """Old town: a ring of houses around the block, wall to wall, their ridges along the street."""
    depth = 17 + 7 * blocks.numbered.random(230)
    corner = np.minimum(blocks.s, BLOCK_S - blocks.s) - blocks.curb < 12
    number = (
        np.floor(np.where(corner, blocks.t, blocks.s) / 19).astype(np.int32)
        + 16 * (blocks.t < BLOCK_T / 2)
        + 32 * corner
    )
    houses = Numbered(blocks.i * 64 + number, blocks.j)
    h = [houses.random(231 + k) for k in range(3)]
    paint.put(where, (138, 132, 122), trees=0.12)
    paint.put(where & (blocks.numbered.random(234) > 0.5), (98, 116, 70), trees=0.4)
    ring = where & (blocks.curb > 2.5) & (blocks.curb < depth)
    half = depth * np.float32(0.5)
    ridge = half - np.abs(blocks.curb - half)
    colour = _pick(ROOFS[:4], h[0]) * (np.float32(0.8) + np.float32(0.35) * h[1])[:, None]
    paint.put(ring, colour, np.float32(9) + 4 * h[2] + ridge * np.float32(0.55))


def _flats(paint: _Paint, blocks: _Blocks, where: Mask) -> None:
    """Long flat-roofed houses with lifts' boxes on the roof, lawn and parked cars between."""
    paint.put(where, (112, 128, 76), trees=0.25)
    lot = where & (np.abs(blocks.t - BLOCK_T / 2) < 12) & (blocks.curb > 8)
    paint.put(lot, ASPHALT)
    _parked(paint, blocks, lot & (np.abs(np.abs(blocks.t - BLOCK_T / 2) - 7.5) < 3.2))
    inner = np.abs(blocks.t - BLOCK_T / 2)
    house = (
        where
        & (np.abs(inner - 33) < 9.5)
        & (blocks.s > 20)
        & (blocks.s < BLOCK_S - 14)
        & (np.abs(blocks.s % 52 - 26) < 24.5)
    )
    paint.put(house, _pick(FLAT_ROOFS, blocks.numbered.random(241)), 15.0)
    paint.put(house & (np.abs(blocks.s % 17 - 8) < 2) & (np.abs(inner - 31) < 2), (120, 118, 116), 18.0)


def _halls(paint: _Paint, blocks: _Blocks, where: Mask) -> None:
    """One large hall with rows of skylights, and a car park."""
    paint.put(where, (126, 124, 120))
    lot = where & (blocks.t > BLOCK_T * 0.66) & (blocks.curb > 5)
    _parked(paint, blocks, lot & (blocks.t % 12 < 6.4))
    long = BLOCK_S * (0.6 + 0.3 * blocks.numbered.random(251))
    hall = where & (blocks.s > 18) & (blocks.s < long) & (blocks.t > 14) & (blocks.t < BLOCK_T * 0.62)
    paint.put(hall, _pick(FLAT_ROOFS, blocks.numbered.random(252)), 11.0)
    paint.put(hall & (blocks.s % 22 < 3) & (blocks.t > 20) & (blocks.t < BLOCK_T * 0.56), (214, 220, 226), 11.6)
    paint.put(hall & (np.abs(blocks.s % 37 - 18) < 2) & (np.abs(blocks.t % 29 - 14) < 2), (108, 108, 112), 13.5)


def _park(paint: _Paint, blocks: _Blocks, where: Mask) -> None:
    """Lawn, groups of trees, crossing paths."""
    paint.put(where, (100, 126, 66), trees=0.5)
    across = np.abs((blocks.s - BLOCK_S / 2) * np.float32(BLOCK_T / BLOCK_S)) - np.abs(blocks.t - BLOCK_T / 2)
    round_path = np.hypot(blocks.s - BLOCK_S / 2, blocks.t - BLOCK_T / 2) - 24
    paint.put(where & (round_path < -2), (112, 138, 72), trees=0.04)
    paint.put(where & (np.minimum(np.abs(across), np.abs(round_path)) < 1.8), (186, 174, 148))


def _streets(paint: _Paint, blocks: _Blocks) -> None:
    """Asphalt with a middle line on wide streets and cars along the curb."""
    street = blocks.curb <= 0
    paint.put(street, ASPHALT)
    from_s = np.minimum(blocks.s, BLOCK_S - blocks.s)
    from_t = np.minimum(blocks.t, BLOCK_T - blocks.t)
    paint.put(street & (blocks.i % 4 == 0) & (np.abs(blocks.s - 5) < 0.8) & (blocks.t % 16 < 8), (196, 196, 190))
    curb = -blocks.curb
    along = np.where(from_t < STREET, blocks.s, blocks.t)
    crossing = (from_s < STREET + 8) & (from_t < STREET + 4)
    _cars(
        paint,
        street & ~crossing & (np.abs(curb - 2) < 1.15),
        along,
        11.0,
        blocks.i * 2 + (blocks.s < 30),
        blocks.j * 2 + (blocks.t < 30),
        0.42,
    )


def _parked(paint: _Paint, blocks: _Blocks, where: Mask) -> None:
    _cars(
        paint, where, blocks.s, 4.2, blocks.i, np.floor(blocks.t / 6).astype(np.int32) + 64 * blocks.j, 0.6, length=2.6
    )


def _cars(
    paint: _Paint, where: Mask, along: Plane, spacing: float, i: Cells, j: Cells, chance: float, length: float = 5.6
) -> None:
    """Put cars on the lane ``where``, every ``spacing`` px with some chance."""
    place = along / np.float32(spacing)
    slot = np.floor(place).astype(np.int32)
    on = np.abs(place - slot - np.float32(0.5)) < length / (2 * spacing)
    number = hashed(i * 64 + slot, j, 260)
    car = where & on & (number < chance)
    paint.put(car, _pick(CARS, fraction(number * np.float32(7 / chance))), 2.2)


def paint_roads(canvas: Canvas, size: int) -> None:
    """Paint a motorway across the picture, with a bridge over the river, and a country road down it."""
    area = canvas.area
    x = canvas.x[:1]
    middle = size * 0.2 + 150 * np.sin(x / 590 + 2.1) + 48 * np.sin(x / 233)
    slope = 150 / 590 * np.cos(x / 590 + 2.1) + 48 / 233 * np.cos(x / 233)
    part = canvas.within(int(middle.min()) - 40, int(middle.max()) + 40, area.x0, area.x1)
    if part is not None:
        _road(part, (part.y - middle) / np.sqrt(1 + slope * slope), part.x, 15.0, 300)
    y = canvas.y[:, :1]
    middle = size * 0.47 + 120 * np.sin(y / 470 + 0.5) + 40 * np.sin(y / 171)
    slope = 120 / 470 * np.cos(y / 470 + 0.5) + 40 / 171 * np.cos(y / 171)
    part = canvas.within(area.y0, area.y1, int(middle.min()) - 40, int(middle.max()) + 40)
    if part is not None:
        _road(part, (part.x - middle) / np.sqrt(1 + slope * slope), part.y, 6.0, 301)


def _road(canvas: Canvas, across: Plane, along: Plane, half: float, salt: int) -> None:
    """Paint a road by the signed distance from its middle and the place along it, pixels."""
    away = np.abs(across)
    verge = away < half + 7
    canvas.trees[verge] = 0
    canvas.height[away < half + 1] = 0
    canvas.blend(step(half + 6, half + 3, away) * np.float32(0.8), (126, 128, 88))
    canvas.blend(step(half + 1, half - 0.5, away), (118, 117, 116))
    motorway = half > 10
    lines = step(1.1, 0.4, np.abs(away - (half - 1.6)))
    if motorway:
        dashes = step(1.0, 0.4, np.abs(away - 8)) * (along % 22 < 9)
        canvas.blend(step(2.4, 1.6, away), (112, 124, 80))
    else:
        dashes = step(1.0, 0.4, away) * (along % 18 < 8)
    canvas.blend(np.maximum(lines, dashes), (206, 206, 200))
    for lane in (4.8, 11.0) if motorway else (3.0,):
        for side in (-1, 1):
            on = np.abs(across - side * lane) < 1.4
            place = along / 34
            slot = np.floor(place[on]).astype(np.int32)
            number = hashed(slot, np.full(1, round(lane * side), np.int32), salt)
            length = np.where(fraction(number * 31) > 0.8, 0.36, 0.17)
            car = (number < 0.4) & (np.abs(place[on] - slot - 0.5) < length / 2)
            pixels = tuple(axis[car] for axis in np.nonzero(on))
            canvas.colour[pixels] = _pick(CARS, fraction(number[car] * 17))
            canvas.height[pixels] = 2.4
