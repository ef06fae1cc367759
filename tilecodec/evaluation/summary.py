"""What the rows of all pictures say: metrics at common rates, gains on the same pictures, BD-rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tilecodec.evaluation.curves import Curve, at_rate, bd_rate
from tilecodec.evaluation.quality import METRICS
from tilecodec.evaluation.rows import OURS, Row

ALL: Final = "all"
"""Stands for every domain."""
SHARES: Final = (1.0, 0.9, 0.75, 0.5)
SPAN: Final = 1.5
STEPS: Final = 24
"""Points of a mean curve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mean:
    """A codec's mean metric at a rate."""

    domain: str
    codec: str
    metric: str
    bpp: float
    mean: float | None
    """None: the codec reaches this rate on no picture."""
    pictures: int
    """On which the codec reaches this rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Our codec beside another at one rate, on the pictures that both reach."""

    bpp: float
    gain: float
    """Mean gain, positive = ours is better; NaN without pictures."""
    won: int
    compared: int
    missed: int
    """Pictures that the other codec codes at this rate and ours does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BDRate:
    """Bytes of our codec beside another's at equal quality."""

    domain: str
    against: str
    metric: str
    """MS-SSIM is compared in dB."""
    percent: float | None
    """Mean over the pictures, negative = ours needs fewer bytes; None: no picture on which the curves share quality."""
    pictures: int
    """That the mean is of."""


def codecs_of(rows: Sequence[Row]) -> list[str]:
    """The codecs that have rows, in their order."""
    return list(dict.fromkeys(row.codec for row in rows))


def domains_of(rows: Sequence[Row]) -> list[str]:
    """The domains in their order; before several stands :data:`ALL`."""
    domains = list(dict.fromkeys(row.domain for row in rows))
    return [ALL, *(d for d in domains if d != ALL)] if len(domains) > 1 else domains


def curves(rows: Sequence[Row], codec: str, domain: str, metric: str) -> dict[str, Curve]:
    """Points of bits per pixel and metric for each picture; points without a finite metric are left out."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        value = row.metric(metric)
        if row.codec == codec and domain in (ALL, row.domain) and math.isfinite(value):
            points.setdefault(f"{row.domain}/{row.picture}", []).append((row.bpp, value))
    return {picture: np.array(p) for picture, p in points.items()}


def growing(metric: str, curve: Curve) -> Curve:
    """The curve in a scale that grows with quality: LPIPS and DISTS negated, MS-SSIM in dB."""
    bpp, value = curve[:, 0], curve[:, 1]
    if not METRICS[metric].rising:
        value = -value
    elif metric == "ms_ssim":
        value = -10 * np.log10(1 - np.minimum(value, 1 - 1e-9))
    return np.stack([bpp, value], 1)


def at_common(
    rows: Sequence[Row], codec: str, domain: str, metric: str, rates: Sequence[float]
) -> dict[float, dict[str, float]]:
    """For each rate, the metric interpolated for each picture on which the codec reaches that rate."""
    found = curves(rows, codec, domain, metric)
    values = {bpp: {name: at_rate(curve, bpp) for name, curve in found.items()} for bpp in rates}
    return {bpp: {k: v for k, v in per.items() if not math.isnan(v)} for bpp, per in values.items()}


def means(rows: Sequence[Row], domain: str, metric: str, rates: Sequence[float]) -> list[Mean]:
    """Every codec's mean at every rate."""
    return [
        Mean(
            domain=domain,
            codec=codec,
            metric=metric,
            bpp=bpp,
            mean=float(np.mean(list(values.values()))) if values else None,
            pictures=len(values),
        )
        for codec in codecs_of(rows)
        for bpp, values in at_common(rows, codec, domain, metric, rates).items()
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanCurve:
    """A codec's mean curve over one set of pictures, the same at every rate."""

    points: Curve
    """(N, 2) float64: bits per pixel growing, mean metric; empty where no range is reached on half of the pictures."""
    pictures: int
    """That the mean is of."""
    total: int
    """Pictures of the domain."""


def mean_curve(rows: Sequence[Row], codec: str, domain: str, metric: str) -> MeanCurve:
    """The mean over the pictures on which ``codec`` reaches the widest common range of rates.

    That is all pictures where they share a range of a factor of :data:`SPAN` or more, else the largest of the
    :data:`SHARES` of them that does: a mean over other pictures at other rates would show steps that no picture has.
    """
    found = list(curves(rows, codec, domain, metric).values())
    total = len({(row.domain, row.picture) for row in rows if domain in (ALL, row.domain)})
    lows, highs = sorted(c[:, 0].min() for c in found), sorted((c[:, 0].max() for c in found), reverse=True)
    for share in SHARES:
        need = math.ceil(share * total)
        if len(found) < need:
            continue
        low, high = lows[need - 1], highs[need - 1]
        kept = [c for c in found if c[:, 0].min() <= low and c[:, 0].max() >= high]
        if kept and high >= SPAN * low:
            grid = np.geomspace(low, high, STEPS)
            grid[0], grid[-1] = low, high
            values = [float(np.mean([at_rate(c, float(bpp)) for c in kept])) for bpp in grid]
            return MeanCurve(points=np.stack([grid, values], 1), pictures=len(kept), total=total)
    return MeanCurve(points=np.empty((0, 2)), pictures=0, total=total)


def paired(rows: Sequence[Row], codec: str, domain: str, metric: str, rates: Sequence[float]) -> list[Pair]:
    """Our codec beside ``codec`` at each rate."""
    sign = 1 if METRICS[metric].rising else -1
    ours, theirs = (at_common(rows, name, domain, metric, rates) for name in (OURS, codec))
    pairs = []
    for bpp in rates:
        gains = [sign * (ours[bpp][p] - theirs[bpp][p]) for p in ours[bpp] if p in theirs[bpp]]
        pairs.append(
            Pair(
                bpp=bpp,
                gain=float(np.mean(gains)) if gains else float("nan"),
                won=sum(g > 0 for g in gains),
                compared=len(gains),
                missed=sum(p not in ours[bpp] for p in theirs[bpp]),
            )
        )
    return pairs


def bd_rate_against(rows: Sequence[Row], codec: str, domain: str, metric: str) -> BDRate:
    """BD-rate of our codec against ``codec``, the mean over the pictures on which the curves share quality."""
    ours, theirs = (curves(rows, name, domain, metric) for name in (OURS, codec))
    rates = [bd_rate(growing(metric, ours[p]), growing(metric, theirs[p])) for p in ours if p in theirs]
    rates = [rate for rate in rates if not math.isnan(rate)]
    percent = 100 * float(np.mean(rates)) if rates else None
    return BDRate(domain=domain, against=codec, metric=metric, percent=percent, pictures=len(rates))
