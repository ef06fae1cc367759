"""Catalogue of small pictures that every mode of the codec is tried on.

Sizes are chosen around :data:`TILE`, the smallest tile the default model allows, so that tests of several tiles stay
small. A case is drawn when it is asked for and kept; its pixels are read-only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from skimage import data

TILE = 128
"""Tile side that the sizes below refer to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One picture."""

    name: str
    pixels: np.ndarray
    """(height, width, 3) uint8, C-contiguous, read-only."""
    traits: frozenset[str]
    """Of: constant, noise, photo, text, thin (a side of 1), small (inside one tile), whole-tiles (both sides are
    multiples of TILE), many-tiles (more than one along both sides), part-empty (has tiles of one colour beside others).
    """

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        return self.pixels.shape[1]


_drawers: dict[str, tuple[Callable[[], np.ndarray], frozenset[str]]] = {}


def _register(name: str, *traits: str) -> Callable[[Callable[[], np.ndarray]], Callable[[], np.ndarray]]:
    def keep(draw: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
        assert name not in _drawers, name
        _drawers[name] = (draw, frozenset(traits))
        return draw

    return keep


def names(*traits: str) -> list[str]:
    """Names of the cases that have all the traits, in catalogue order; of all cases if none is given."""
    chosen = [name for name, (_, has) in _drawers.items() if has.issuperset(traits)]
    assert chosen, f"no case has the traits {traits}"
    return chosen


@functools.cache
def case(name: str) -> Case:
    """The case of that name."""
    draw, traits = _drawers[name]
    pixels = np.ascontiguousarray(draw())
    pixels.setflags(write=False)
    return Case(name=name, pixels=pixels, traits=traits)


def cases(*traits: str) -> list[Case]:
    """The cases that have all the traits."""
    return [case(name) for name in names(*traits)]


def constant(height: int, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    """(height, width, 3) uint8 of one colour."""
    return np.full((height, width, 3), colour, np.uint8)


def noise(height: int, width: int, seed: int = 1) -> np.ndarray:
    """(height, width, 3) uint8, each value drawn evenly from 0 to 255."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def gradient(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: red grows rightwards, green downwards, blue along the diagonal."""
    y, x = np.mgrid[0:height, 0:width]
    across, down = x / max(1, width - 1), y / max(1, height - 1)
    return np.rint(255 * np.stack([across, down, (across + down) / 2], axis=-1)).astype(np.uint8)


@_register("pixel", "constant", "thin", "small")
def _pixel() -> np.ndarray:
    return constant(1, 1, (200, 30, 90))


@_register("row", "photo", "thin")
def _row() -> np.ndarray:
    return data.astronaut()[60:61, 100:300]


@_register("column", "photo", "thin")
def _column() -> np.ndarray:
    return data.astronaut()[100:300, 200:201]


@_register("odd", "photo", "small")
def _odd() -> np.ndarray:
    return data.chelsea()[80:111, 130:163]


@_register("tile-minus-one", "photo", "small")
def _tile_minus_one() -> np.ndarray:
    return data.coffee()[100 : 100 + TILE - 1, 200 : 200 + TILE - 1]


@_register("tile", "photo", "small", "whole-tiles")
def _tile() -> np.ndarray:
    return data.astronaut()[:TILE, 150 : 150 + TILE]


@_register("tile-plus-one", "photo", "many-tiles", "part-empty")
def _tile_plus_one() -> np.ndarray:
    return data.chelsea()[100 : 100 + TILE + 1, 100 : 100 + TILE + 1]


@_register("photo", "photo", "many-tiles")
def _photo() -> np.ndarray:
    return data.coffee()[40:340, 90:510]


@_register("photo-whole-tiles", "photo", "many-tiles", "whole-tiles")
def _photo_whole_tiles() -> np.ndarray:
    return data.astronaut()[: 2 * TILE, : 3 * TILE]


@_register("stain", "photo", "many-tiles")
def _stain() -> np.ndarray:
    return data.immunohistochemistry()[50:250, 100:400]


@_register("black", "constant", "many-tiles")
def _black() -> np.ndarray:
    return constant(150, 260, (0, 0, 0))


@_register("white", "constant", "many-tiles")
def _white() -> np.ndarray:
    return constant(260, 150, (255, 255, 255))


@_register("colour", "constant", "many-tiles", "whole-tiles")
def _colour() -> np.ndarray:
    return constant(2 * TILE, 2 * TILE, (12, 200, 131))


@_register("part-empty", "photo", "part-empty", "many-tiles")
def _part_empty() -> np.ndarray:
    pixels = constant(3 * TILE - 20, 3 * TILE + 7, (242, 240, 244))
    pixels[TILE + 10 : 2 * TILE - 10, TILE + 10 : 3 * TILE] = data.immunohistochemistry()[200:308, 100:346]
    return pixels


@_register("noise", "noise", "many-tiles")
def _noise() -> np.ndarray:
    return noise(150, 170)


@_register("gradient", "many-tiles", "whole-tiles")
def _gradient() -> np.ndarray:
    return gradient(2 * TILE, 2 * TILE)


@_register("text", "text", "many-tiles")
def _text() -> np.ndarray:
    return np.repeat(data.page()[:, :, None], 3, axis=2)
