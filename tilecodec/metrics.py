"""Measure how far two pictures are apart: PSNR and MS-SSIM, in numpy, memory bounded beside the pictures' own."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from tilecodec.errors import UsageError

Pixels = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]

WEIGHTS: Final = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales, finest first."""
WINDOW: Final = 11
"""Side of the Gaussian window, pixels."""
SIGMA: Final = 1.5
MIN_SIDE: Final = (WINDOW - 1) * 2 ** (len(WEIGHTS) - 1) + 1
"""Smallest side MS-SSIM is defined for: the coarsest scale still has room for a window."""
_C1: Final = (0.01 * 255) ** 2
_C2: Final = (0.03 * 255) ** 2
_BAND: Final = 64
"""Rows worked on at once, so that the intermediate planes stay in the cache."""
_SHIFT: Final = 128.0
"""Taken from the grey values before squaring, for precision in float32."""


def psnr(a: Pixels, b: Pixels) -> float:
    """Return the peak signal-to-noise ratio in dB over all values; infinite for equal pictures.

    Args:
        a: (height, width, channels) uint8.
        b: the same shape and dtype.

    Raises:
        UsageError: the pictures differ in shape, or are not uint8.
    """
    _check(a, b)
    total = 0
    for y in range(0, a.shape[0], _BAND):
        difference = a[y : y + _BAND].astype(np.int32) - b[y : y + _BAND]
        total += int(np.square(difference).sum(dtype=np.int64))
    return math.inf if total == 0 else 10 * math.log10(255**2 * a.size / total)


def ms_ssim(a: Pixels, b: Pixels) -> float:
    """Return the multi-scale structural similarity, at most 1; the mean of the channels' values.

    Gaussian window of 11 px and sigma 1.5 without padding, five scales halved by 2 x 2 means, a negative mean of a
    scale counted as 0.

    Args:
        a: (height, width, channels) uint8, both sides at least :data:`MIN_SIDE`.
        b: the same shape and dtype.

    Raises:
        UsageError: the pictures differ in shape, are not uint8, or are too small.

    Source: Wang, Simoncelli, Bovik, "Multiscale structural similarity for image quality assessment", 2003.
    """
    _check(a, b)
    if min(a.shape[:2]) < MIN_SIDE:
        raise UsageError("the picture is too small for MS-SSIM", got=a.shape[:2], expected=f"{MIN_SIDE} px or more")
    channels = range(a.shape[2])
    return math.fsum(_ms_ssim_plane(a[..., c], b[..., c]) for c in channels) / len(channels)


def _check(a: Pixels, b: Pixels) -> None:
    if a.shape != b.shape or a.ndim != 3 or a.size == 0:
        raise UsageError("the pictures differ in shape", got=f"{a.shape} and {b.shape}", expected="(h, w, c) twice")
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise UsageError("the pictures are not uint8", got=f"{a.dtype} and {b.dtype}", expected="uint8")


def _ms_ssim_plane(a: Pixels, b: Pixels) -> float:
    x = a.astype(np.float32) - np.float32(_SHIFT)
    y = b.astype(np.float32) - np.float32(_SHIFT)
    value = 1.0
    for scale, weight in enumerate(WEIGHTS):
        if scale:
            x, y = _halved(x), _halved(y)
        similarity, contrast = _means(x, y)
        last = scale == len(WEIGHTS) - 1
        value *= float(max(similarity if last else contrast, 0.0) ** weight)
    return value


def _means(x: Plane, y: Plane) -> tuple[float, float]:
    """Return the means of SSIM and of its contrast-structure part over all whole windows of two (h, w) planes."""
    similarity = contrast = 0.0
    height, width = x.shape[0] - WINDOW + 1, x.shape[1] - WINDOW + 1
    for row in range(0, height, _BAND):
        rows = slice(row, min(row + _BAND, height) + WINDOW - 1)
        u, v = x[rows], y[rows]
        mean_u, mean_v = _blurred(u), _blurred(v)
        product = mean_u * mean_v
        squares = mean_u * mean_u + mean_v * mean_v
        variances = _blurred(u * u + v * v) - squares
        covariance = _blurred(u * v) - product
        ratio = (2 * covariance + np.float32(_C2)) / (variances + np.float32(_C2))
        # The luminance term compares the means themselves, so the shift has to be undone.
        sums = np.float32(_SHIFT) * (mean_u + mean_v) + np.float32(_SHIFT**2)
        luminance = (2 * (product + sums) + np.float32(_C1)) / (squares + 2 * sums + np.float32(_C1))
        contrast += float(ratio.sum(dtype=np.float64))
        similarity += float((ratio * luminance).sum(dtype=np.float64))
    return similarity / (height * width), contrast / (height * width)


def _kernel() -> Plane:
    offsets = np.arange(WINDOW) - WINDOW // 2
    kernel = np.exp(-(offsets**2) / (2 * SIGMA**2))
    normed: Plane = (kernel / kernel.sum()).astype(np.float32)
    return normed


_KERNEL: Final = _kernel()


def _blurred(plane: Plane) -> Plane:
    """Return the Gaussian means (h - 10, w - 10) of a plane (h, w)."""
    return _blurred_down(_blurred_down(plane).T).T


def _blurred_down(plane: Plane) -> Plane:
    height = plane.shape[0] - WINDOW + 1
    middle = WINDOW // 2
    out: Plane = plane[middle : middle + height] * _KERNEL[middle]
    for k in range(middle):
        mirrored = WINDOW - 1 - k
        out += (plane[k : k + height] + plane[mirrored : mirrored + height]) * _KERNEL[k]
    return out


def _halved(plane: Plane) -> Plane:
    """Return the means of 2 x 2 values; before an odd side goes a row or column of zero grey, counted as values."""
    pad_y, pad_x = plane.shape[0] % 2, plane.shape[1] % 2
    if pad_y or pad_x:
        plane = np.pad(plane, ((pad_y, 0), (pad_x, 0)), constant_values=-_SHIFT)
    rows = plane[0::2] + plane[1::2]
    halved: Plane = (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)
    return halved
