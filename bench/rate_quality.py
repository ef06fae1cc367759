"""Rate against quality: tilecodec beside JPEG, JPEG 2000, WebP, AVIF and JPEG XL on whole pictures.

A container's bytes are those of all its files. The reference codecs' rows are kept in
``results/rate_quality_reference.csv``; with ``--reuse`` only what is missing there is measured. The measurement is
:mod:`tilecodec.evaluation`'s, as in ``tilecodec eval``; this adds the committed tables and what has to be better.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from bench.common import Bench, Check, Picture, add_arguments, start
from tilecodec.errors import UsageError
from tilecodec.evaluation.anchors import CODECS, NAMES, RATES, Codec, pick
from tilecodec.evaluation.measure import Subject, measure_anchors, measure_ours, name_of
from tilecodec.evaluation.quality import Meter
from tilecodec.evaluation.rows import OURS, Row, read_rows
from tilecodec.evaluation.summary import domains_of, paired
from tilecodec.evaluation.tables import bd_table, mean_tables, paired_tables

QUALITIES: Final = (1, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90)
COMMON: Final = (0.15, 0.2, 0.25, 0.3, 0.35)
"""Bits per pixel at which codecs are compared."""
SMOKE_RATES: Final = (0.3, 0.8)
METRICS: Final = ("psnr", "ms_ssim", "lpips")
PLOTTED: Final = ("ms_ssim", "lpips")
MUST_BEAT: Final = {"ms_ssim": ("jpeg", "jpeg2000", "webp", "jpegxl"), "lpips": ("jpeg", "jpeg2000", "webp")}


def _subject(picture: Picture, bench: Bench) -> Subject:
    pixels = picture.pixels()
    cut = np.ascontiguousarray(pixels[:256, :256]) if bench.smoke else pixels
    return Subject(domain=picture.domain, name=picture.name, pixels=cut)


def measure_references(
    bench: Bench, meter: Meter, rates: Sequence[float], known: Sequence[Row], codecs: Sequence[Codec]
) -> list[Row]:
    """Measures what ``known`` lacks; the CSV grows as it goes, so a stopped run can go on."""
    rows, done = list(known), {(r.codec, r.domain, r.picture) for r in known}
    for picture in bench.pictures:
        missing = [c for c in codecs if (c.name, picture.domain, picture.name) not in done]
        if not missing:
            continue
        measured = measure_anchors(_subject(picture, bench), missing, rates, meter)
        for codec, more in zip(missing, measured, strict=True):
            bench.note(f"{picture.name}: {codec.name}")
            rows += more
            bench.write_csv([r.to_dict(METRICS) for r in rows], "rate_quality_reference")
    return rows


def measure_own(bench: Bench, meter: Meter, args: argparse.Namespace) -> list[Row]:
    """Rows of our codec at default options."""
    rows: list[Row] = []
    for picture in bench.pictures:
        bench.note(f"{picture.name}: {OURS}")
        rows += measure_ours(_subject(picture, bench), args.qualities, meter, model=args.model, work=bench.work)
        bench.write_csv([r.to_dict(METRICS) for r in rows], "rate_quality")
    return rows


def checks(rows: Sequence[Row], domain: str) -> Iterator[Check]:
    """What has to be better than what, at every common rate."""
    for metric, codecs in MUST_BEAT.items():
        for codec in codecs:
            pairs = paired(rows, codec, domain, metric, COMMON)
            cells = [f"{p.bpp}: {p.gain:+.3g} ({p.won}/{p.compared})" for p in pairs if p.compared]
            missed = sum(p.missed for p in pairs)
            if missed:
                cells.append(f"{missed} picture rates that only {codec} reaches")
            yield Check(
                what=f"{metric} against {codec}, {domain}: gain (pictures won/compared)",
                wanted=f"better at {COMMON[0]}-{COMMON[-1]} bpp",
                measured="; ".join(cells) or "-",
                ok=not missed and all(p.gain > 0 for p in pairs if p.compared) if cells else None,
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.rate_quality", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--lpips", type=Path, help="safetensors of LPIPS (SqueezeNet); without it LPIPS is left out")
    parser.add_argument("--qualities", type=_numbers, default=list(QUALITIES), help="our qualities, comma-separated")
    parser.add_argument("--model", default="default", help="our model, name or path (default: the package's)")
    parser.add_argument("--codecs", type=_codecs, default=CODECS, help="reference codecs to measure, comma-separated")
    parser.add_argument("--reuse", action="store_true", help="keep the rows in results/rate_quality_reference.csv")
    parser.add_argument("--references-only", action="store_true", help="do not measure our codec")
    parser.add_argument("--summary-only", action="store_true", help="measure nothing, report on the CSV files")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="also draw the photographs' MS-SSIM and LPIPS")
    parser.add_argument("--crops", type=Path, metavar="DIR", help="also write side-by-side crops at near-equal rate")
    parser.add_argument("--crops-bpp", type=float, default=0.2, help="the rate of the crops (default 0.2)")
    parser.add_argument("--crops-size", type=int, default=512, help="side of the crops in pixels (default 512)")
    args = parser.parse_args(argv)
    bench = start(parser, args, "rate_quality", argv)
    if bench.smoke:
        args.qualities = [20.0, 60.0]
        bench = replace(bench, pictures=bench.pictures[:2])
    stored, model = read_rows(bench.out / "results" / "rate_quality.csv"), ""
    known = read_rows(bench.out / "results" / "rate_quality_reference.csv") if args.reuse or args.summary_only else []
    if args.summary_only:
        rows = known + stored
    else:
        meter = Meter(args.lpips)
        rates = SMOKE_RATES if bench.smoke else RATES
        rows = measure_references(bench, meter, rates, known, args.codecs)
        if not args.references_only:
            rows, model = measure_own(bench, meter, args) + rows, name_of(args.model)
    rows = sorted(rows, key=lambda r: r.codec != OURS)
    if args.crops is not None:
        from bench.crops import write_crops

        write_crops(bench, args)
    if args.plot is not None:
        _plot(bench, rows, args.plot)
    return report(bench, rows, model)


def report(bench: Bench, rows: Sequence[Row], model: str) -> int:
    """Writes the summary; returns the exit status."""
    domains = domains_of(rows)
    have_ours = any(r.codec == OURS for r in rows)
    body = [
        "Bytes are whole: every file of the container, headers of the others. Metrics are interpolated per picture "
        "(linear in log bpp, never beyond a codec's own range) and then averaged. Encoders: "
        + "; ".join(f"{c.name}: {c.fixed}" for c in CODECS)
        + f"; {OURS}: default options"
        + (f", model {model}." if model else "."),
        "LPIPS (SqueezeNet, v0.1) favours a model that had it among its training losses; its model card says so.",
    ]
    shown = _measured(rows, METRICS)
    for domain in domains:
        body.append(f"## {domain}")
        body += mean_tables(rows, domain, shown, COMMON)
        if have_ours:
            body += [*paired_tables(rows, domain, shown, COMMON, NAMES), bd_table(rows, domain, shown, NAMES)]
    return bench.finish("\n\n".join(body), list(checks(rows, _wanted(rows))) if have_ours else [])


def _measured(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    return [m for m in metrics if not all(math.isnan(r.metric(m)) for r in rows)]


def _wanted(rows: Sequence[Row]) -> str:
    """The domain that is checked and drawn."""
    domains = domains_of(rows)
    return "photo" if "photo" in domains else domains[0]


def _plot(bench: Bench, rows: Sequence[Row], path: Path) -> None:
    from tilecodec.evaluation.plots import plot_curves

    plot_curves(rows, _wanted(rows), _measured(rows, PLOTTED), [path])
    bench.note(f"plot: {path}")


def _codecs(text: str) -> tuple[Codec, ...]:
    try:
        return pick(text.split(","))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
