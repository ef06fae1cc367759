"""The catalogue holds what its traits say, so that a test asking for a trait tries what it means to try."""

from __future__ import annotations

import catalogue
import numpy as np
from catalogue import TILE, Case

TRAITS = {"constant", "noise", "photo", "text", "thin", "small", "whole-tiles", "many-tiles", "part-empty"}


def tiles_of(case: Case) -> list[np.ndarray]:
    rows, columns = range(0, case.height, TILE), range(0, case.width, TILE)
    return [case.pixels[y : y + TILE, x : x + TILE] for y in rows for x in columns]


def is_constant(pixels: np.ndarray) -> bool:
    return bool((pixels == pixels[0, 0]).all())


def test_pixels_are_rgb_uint8_and_read_only(case: Case) -> None:
    assert case.pixels.dtype == np.uint8
    assert case.pixels.shape == (case.height, case.width, 3)
    assert case.pixels.flags.c_contiguous
    assert not case.pixels.flags.writeable


def test_traits_hold(case: Case) -> None:
    sides = (case.height, case.width)
    plain = [is_constant(tile) for tile in tiles_of(case)]
    measured = {
        "constant": is_constant(case.pixels),
        "thin": min(sides) == 1,
        "small": max(sides) <= TILE,
        "whole-tiles": all(side % TILE == 0 for side in sides),
        "many-tiles": min(sides) > TILE,
        "part-empty": any(plain) and not all(plain),
    }
    assert {trait: trait in case.traits for trait in measured} == measured
    assert case.traits <= TRAITS


def test_every_trait_and_edge_size_is_there() -> None:
    assert frozenset().union(*(case.traits for case in catalogue.cases())) >= TRAITS
    sizes = {(case.height, case.width) for case in catalogue.cases()}
    assert {(1, 1), (31, 33), (TILE - 1, TILE - 1), (TILE, TILE), (TILE + 1, TILE + 1)} <= sizes
