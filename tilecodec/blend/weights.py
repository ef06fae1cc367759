"""Separable raised-cosine weights as integers: at every pixel the weights of all windows sum to 256 per axis.

Integers make the blend exact: the same pixel whatever the order, the device or the region asked for.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

UNIT = 256
"""The sum of all windows' weights along one axis; 65536 for both axes together."""


@lru_cache(maxsize=16)
def _ramp(overlap: int) -> NDArray[np.uint16]:
    """Rising weights over the ``2 * overlap`` pixels around a tile border."""
    n = 2 * overlap
    return np.array([round(UNIT * 0.5 * (1 - math.cos(math.pi * (i + 0.5) / n))) for i in range(n)], dtype=np.uint16)


@lru_cache(maxsize=64)
def axis_weights(length: int, overlap: int, rises: bool, falls: bool) -> NDArray[np.uint16]:
    """A window's weights along one axis.

    Args:
        length: window length, pixels, its margins included.
        overlap: margin the tile was grown by.
        rises: there is a neighbour before this window; the first ``2 * overlap`` pixels are shared with it.
        falls: there is one after it.

    Returns:
        uint16 (length,) in 0..256; with the neighbours' weights they sum to 256 at every pixel.
    """
    weights = np.full(length, UNIT, dtype=np.uint16)
    if overlap:
        if rises:
            weights[: 2 * overlap] = _ramp(overlap)
        if falls:
            weights[length - 2 * overlap :] = UNIT - _ramp(overlap)
    weights.setflags(write=False)
    return weights
