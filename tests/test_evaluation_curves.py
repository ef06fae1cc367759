"""Interpolation of rate-quality curves, and BD-rate."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tilecodec.evaluation.curves import at_rate, bd_rate

RATES = np.array([0.1, 0.2, 0.4, 0.8])
CURVE = np.stack([RATES, 30 + 5 * np.log2(RATES)], 1)


def test_bd_rate_of_half_the_bytes() -> None:
    assert bd_rate(CURVE * [0.5, 1], CURVE) == pytest.approx(-0.5)
    assert bd_rate(CURVE, CURVE * [0.5, 1]) == pytest.approx(1.0)
    assert bd_rate(CURVE, CURVE[::-1]) == pytest.approx(0.0, abs=1e-12)


def test_bd_rate_drops_points_that_cost_more_for_nothing() -> None:
    wasteful = np.concatenate([CURVE, [[0.7, CURVE[0, 1]]]])
    assert bd_rate(wasteful, CURVE) == pytest.approx(0.0, abs=1e-12)


def test_bd_rate_without_shared_quality_is_no_number() -> None:
    assert math.isnan(bd_rate(CURVE + np.array([0, 100]), CURVE))
    assert math.isnan(bd_rate(CURVE[:1], CURVE))


def test_metric_at_a_rate_is_linear_in_log_rate_and_never_beyond_the_curve() -> None:
    assert at_rate(CURVE[::-1], math.sqrt(0.1 * 0.2)) == pytest.approx((CURVE[0, 1] + CURVE[1, 1]) / 2)
    assert at_rate(CURVE, 0.8) == pytest.approx(CURVE[-1, 1])
    assert math.isnan(at_rate(CURVE, 0.09))
    assert math.isnan(at_rate(CURVE, 0.81))
