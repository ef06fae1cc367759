"""Noise that is a function of the pixel's place: hashes, smooth fields and fine grain, the same in any window."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float32]
Cells = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

SEED: Final = 20240607
_GRAIN: Final = 1024
"""Period of the fine grain, pixels."""
_SMALL: Final = 1 << 17
"""Multiplications of a matrix product that one thread does best; OpenBLAS takes more threads from 2^18 on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Area:
    """A window of the endless plane the scene is drawn on."""

    y0: int
    y1: int
    x0: int
    x1: int

    def coordinates(self) -> tuple[Plane, Plane]:
        """Return y (h, 1) and x (1, w), pixels."""
        y, x = np.arange(self.y0, self.y1), np.arange(self.x0, self.x1)
        return y[:, None].astype(np.float32), x[None].astype(np.float32)


def hashed(i: Cells, j: Cells, salt: int) -> Plane:
    """Return a number in [0, 1) for each pair of cell indices; equal pairs and salts give equal numbers.

    Args:
        i: cell rows, one dimension or more.
        j: cell columns, broadcast with ``i``.
        salt: which of many independent hashes.
    """
    bits = (i.astype(np.uint32) * np.uint32(0x9E3779B1)) ^ (j.astype(np.uint32) * np.uint32(0x85EBCA77))
    bits ^= np.uint32((salt * 0xC2B2AE3D + SEED) & 0xFFFFFFFF)
    bits ^= bits >> np.uint32(15)
    bits *= np.uint32(0x2C1B3C6D)
    bits ^= bits >> np.uint32(12)
    bits *= np.uint32(0x297A2D39)
    bits ^= bits >> np.uint32(15)
    numbers: Plane = (bits >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    return numbers


def smooth(area: Area, wavelength: float, salt: int) -> Plane:
    """Return a smooth random field (h, w), mean 0, deviation about 1, with features of ``wavelength`` px."""
    row, down = _spline(area.y0, area.y1, wavelength)
    column, across = _spline(area.x0, area.x1, wavelength)
    i = np.arange(row, row + down.shape[1], dtype=np.int32)[:, None]
    j = np.arange(column, column + across.shape[1], dtype=np.int32)[None]
    return _product(_product(down, (hashed(i, j, salt) - np.float32(0.5)) * np.float32(7)), across.T)


def _product(a: Plane, b: Plane) -> Plane:
    """Return the matrix product, in pieces too small for a BLAS to wake its threads: they cost more than they bring."""
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    rows = max(1, _SMALL // b.size)
    for row in range(0, a.shape[0], rows):
        np.matmul(a[row : row + rows], b, out=out[row : row + rows])
    return out


@lru_cache(maxsize=2048)
def _spline(start: int, stop: int, wavelength: float) -> tuple[int, Plane]:
    """Return the first lattice point that matters and the weights (pixels, points) of it and those after it.

    Source: the uniform cubic B-spline.
    """
    position = np.arange(start, stop) / wavelength
    first = int(np.floor(position[0])) - 1
    points = np.arange(first, int(np.floor(position[-1])) + 3)
    distance = np.abs(position[:, None] - points[None])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.maximum(2 - distance, 0) ** 3 / 6
    return first, np.where(distance < 1, near, far).astype(np.float32)


def fractal(area: Area, wavelength: float, octaves: int, salt: int, gain: float = 0.5) -> Plane:
    """Return a sum (h, w) of ``octaves`` smooth fields, each of half the wavelength and ``gain`` times the height."""
    total = smooth(area, wavelength, salt)
    for octave in range(1, octaves):
        total += np.float32(gain**octave) * smooth(area, wavelength / 2**octave, salt + octave)
    return total


class Grain:
    """Periodic fine noise of amplitude spectrum 1 / f^slope, looked up by place; mean 0, deviation 1."""

    def __init__(self, slope: float, salt: int) -> None:
        white = np.random.default_rng((SEED, salt)).standard_normal((_GRAIN, _GRAIN), np.float32)
        frequency = np.hypot(np.fft.fftfreq(_GRAIN)[:, None], np.fft.rfftfreq(_GRAIN)[None])
        frequency[0, 0] = np.inf
        field = np.fft.irfft2(np.fft.rfft2(white) * frequency**-slope, s=white.shape)
        self._field = (field / field.std()).astype(np.float32)

    def __call__(self, area: Area) -> Plane:
        """Return the grain (h, w) of an area."""
        rows = self._field[np.arange(area.y0, area.y1) % _GRAIN]
        picked: Plane = rows[:, np.arange(area.x0, area.x1) % _GRAIN]
        return picked
