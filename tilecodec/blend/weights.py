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
def _ramp(seam: int, blend: int) -> NDArray[np.uint16]:
    """The later window's weights over the pixels that two windows share."""
    spare = (seam - blend) // 2
    steps = (0.5 * (1 - math.cos(math.pi * (i + 0.5) / blend)) for i in range(blend))
    return np.array([*[0] * spare, *(round(UNIT * step) for step in steps), *[UNIT] * spare], dtype=np.uint16)


@lru_cache(maxsize=64)
def axis_weights(length: int, seam: int, blend: int, rises: bool, falls: bool) -> NDArray[np.uint16]:
    """A window's weights along one axis.

    Args:
        length: window length, pixels, its margins included.
        seam: pixels shared with each neighbour.
        blend: pixels in the middle of them over which weights change; both are even.
        rises: there is a neighbour before this window.
        falls: there is one after it.

    Returns:
        uint16 (length,) in 0..256; with the neighbours' weights they sum to 256 at every pixel.
    """
    weights = np.full(length, UNIT, dtype=np.uint16)
    if seam:
        if rises:
            weights[:seam] = _ramp(seam, blend)
        if falls:
            weights[length - seam :] = UNIT - _ramp(seam, blend)
    weights.setflags(write=False)
    return weights
