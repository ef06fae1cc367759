"""The summary as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tilecodec.evaluation.markdown import table
from tilecodec.evaluation.rows import OURS, Row
from tilecodec.evaluation.summary import Mean, bd_rate_against, codecs_of, means, paired


def mean_tables(rows: Sequence[Row], domain: str, metrics: Sequence[str], rates: Sequence[float]) -> Iterator[str]:
    """For each metric, every codec's mean at the rates, with the number of pictures on which it reaches them."""
    for metric in metrics:
        per_codec: dict[str, list[Mean]] = {}
        for mean in means(rows, domain, metric, rates):
            per_codec.setdefault(mean.codec, []).append(mean)
        body = [
            [codec, *("-" if m.mean is None else f"{m.mean:.4g} ({m.pictures})" for m in found)]
            for codec, found in per_codec.items()
        ]
        yield f"{metric}, {domain}, mean (number of pictures for which the codec reaches that rate):\n\n" + table(
            ["codec", *(f"{b} bpp" for b in rates)], body
        )


def paired_tables(
    rows: Sequence[Row], domain: str, metrics: Sequence[str], rates: Sequence[float], codecs: Sequence[str]
) -> Iterator[str]:
    """For each metric, our gain over each of ``codecs`` on the same pictures."""
    for metric in metrics:
        body = [
            [codec, *(f"{p.gain:+.3g} ({p.won}/{p.compared})" if p.compared else "-" for p in pairs)]
            for codec in codecs
            for pairs in [paired(rows, codec, domain, metric, rates)]
        ]
        yield (
            f"Gain of {OURS} in {metric}, {domain}, on the same pictures, positive = better (won/compared):\n\n"
            + table(["against", *(f"{b} bpp" for b in rates)], body)
        )


def bd_table(rows: Sequence[Row], domain: str, metrics: Sequence[str], codecs: Sequence[str]) -> str:
    """BD-rate of our codec against each of ``codecs``, mean over the pictures."""
    body = []
    for codec in codecs:
        cells = [codec]
        for metric in metrics:
            rate = bd_rate_against(rows, codec, domain, metric)
            cells.append("-" if rate.percent is None else f"{rate.percent:+.1f} % ({rate.pictures})")
        body.append(cells)
    return (
        f"BD-rate of {OURS}, {domain}: bytes more (+) or less (-) at equal quality, mean over pictures (their number); "
        "MS-SSIM in dB:\n\n" + table(["against", *metrics], body)
    )


def anchors_of(rows: Sequence[Row]) -> list[str]:
    """The codecs beside ours that have rows."""
    return [codec for codec in codecs_of(rows) if codec != OURS]
