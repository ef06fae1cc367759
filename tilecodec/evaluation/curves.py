"""Rate-quality curves: interpolation at a rate, and BD-rate."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Curve = npt.NDArray[np.float64]
"""(N, 2) float64: bits per pixel, metric."""


def at_rate(curve: Curve, bpp: float) -> float:
    """The metric at ``bpp``, linear in log bpp between the curve's points; NaN outside them."""
    curve = curve[np.argsort(curve[:, 0])]
    if not len(curve) or not curve[0, 0] <= bpp <= curve[-1, 0]:
        return float("nan")
    return float(np.interp(np.log(bpp), np.log(curve[:, 0]), curve[:, 1]))


def bd_rate(curve: Curve, anchor: Curve) -> float:
    """Mean difference in bytes at equal metric, as a fraction: -0.2 when ``curve`` needs 20 % less than ``anchor``.

    Monotone piecewise cubics (PCHIP) of log rate over the metric, integrated over the metrics that both reach. Points
    that cost more than another without being better are dropped first. NaN where the curves share no metric.

    Args:
        curve: (N, 2), metric growing with quality.
        anchor: (M, 2), the same metric.

    Source: G. Bjontegaard, VCEG-M33; piecewise cubic form as in JCTVC common test conditions.
    """
    from scipy.interpolate import PchipInterpolator

    a, b = _efficient(curve), _efficient(anchor)
    if len(a) < 2 or len(b) < 2:
        return float("nan")
    low, high = max(a[0, 1], b[0, 1]), min(a[-1, 1], b[-1, 1])
    if not high > low:
        return float("nan")
    areas = [PchipInterpolator(c[:, 1], np.log(c[:, 0])).integrate(low, high) for c in (a, b)]
    return float(np.expm1((areas[0] - areas[1]) / (high - low)))


def _efficient(curve: Curve) -> Curve:
    """The points that no cheaper point equals, metric strictly growing."""
    kept: list[npt.NDArray[np.float64]] = []
    for point in curve[np.lexsort((-curve[:, 1], curve[:, 0]))]:
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return np.array(kept).reshape(-1, 2)
