"""Rate against quality: tilecodec beside JPEG, JPEG 2000, WebP, AVIF and JPEG XL on whole pictures.

A container's bytes are those of all its files. The reference codecs' rows are kept in
``results/rate_quality_reference.csv``; with ``--reuse`` only what is missing there is measured.
"""

from __future__ import annotations

import argparse
import csv
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

import numpy as np

from bench.codecs import CODECS, RATES, at_rates
from bench.common import Bench, Check, Picture, Pixels, add_arguments, container_bytes, start, table
from bench.curves import Curve, at_rate, bd_rate
from bench.quality import Meter, Quality

OURS: Final = "tilecodec"
QUALITIES: Final = (1, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90)
COMMON: Final = (0.15, 0.2, 0.25, 0.3, 0.35)
"""Bits per pixel at which codecs are compared."""
SMOKE_RATES: Final = (0.3, 0.8)
METRICS: Final = ("psnr", "ms_ssim", "lpips")
MUST_BEAT: Final = {"ms_ssim": ("jpeg", "jpeg2000", "webp", "jpegxl"), "lpips": ("jpeg", "jpeg2000", "webp")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One picture coded by one codec at one setting."""

    codec: str
    setting: str
    domain: str
    picture: str
    bytes: int
    bpp: float
    psnr: float
    ms_ssim: float
    lpips: float

    def metric(self, name: str) -> float:
        """A metric by name."""
        return float(getattr(self, name))


def _row(codec: str, setting: str, picture: Picture, size: int, area: int, quality: Quality) -> Row:
    return Row(
        codec=codec,
        setting=setting,
        domain=picture.domain,
        picture=picture.name,
        bytes=size,
        bpp=round(8 * size / area, 5),
        psnr=round(quality.psnr, 4),
        ms_ssim=round(quality.ms_ssim, 6),
        lpips=round(quality.lpips, 6),
    )


def _load(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        numbers = {f.name for f in fields(Row) if f.type == "float"}
        return [
            Row(**{k: float(v) if k in numbers else int(v) if k == "bytes" else v for k, v in line.items()})  # type: ignore[arg-type]
            for line in csv.DictReader(file)
        ]


def _pixels(picture: Picture, bench: Bench) -> Pixels:
    pixels = picture.pixels()
    return np.ascontiguousarray(pixels[:256, :256]) if bench.smoke else pixels


def measure_references(
    bench: Bench, meter: Meter, rates: Sequence[float], known: Sequence[Row], names: Sequence[str]
) -> list[Row]:
    """Measures what ``known`` lacks; the CSV grows as it goes, so a stopped run can go on."""
    rows, done = list(known), {(r.codec, r.domain, r.picture) for r in known}
    for picture in bench.pictures:
        missing = [c for c in CODECS if c.name in names and (c.name, picture.domain, picture.name) not in done]
        if not missing:
            continue
        original = _pixels(picture, bench)
        for codec in missing:
            bench.note(f"{picture.name}: {codec.name}")
            results = at_rates(codec, original, rates)
            for coded, quality in zip(results, meter([c.pixels for c in results], original), strict=True):
                rows.append(_row(codec.name, coded.setting, picture, coded.size, original[..., 0].size, quality))
            bench.write_csv([asdict(r) for r in rows], "rate_quality_reference")
    return rows


def encode_ours(pixels: Pixels, quality: float, target: Path, args: argparse.Namespace) -> tuple[int, Pixels, str]:
    """Bytes of the container, the decoded picture (H, W, 3), and the model's id."""
    import tilecodec

    chosen = {} if args.model is None else {"model": args.model}
    report = tilecodec.encode(pixels, target, quality=quality, **chosen)
    image = tilecodec.open(target)
    decoded = np.ascontiguousarray(np.asarray(image[:, :, :]).transpose(1, 2, 0))
    size = container_bytes(target)
    shutil.rmtree(target)
    return size, decoded, str(report.model)


def measure_ours(bench: Bench, meter: Meter, args: argparse.Namespace) -> tuple[list[Row], str]:
    """Rows of our codec at default options, and the model's id."""
    rows: list[Row] = []
    model = ""
    for picture in bench.pictures:
        original = _pixels(picture, bench)
        bench.note(f"{picture.name}: {OURS}")
        coded = [encode_ours(original, quality, bench.work / "picture.zarr", args) for quality in args.qualities]
        measured = meter([decoded for _, decoded, _ in coded], original)
        for quality, (size, _, _), m in zip(args.qualities, coded, measured, strict=True):
            rows.append(_row(OURS, f"quality={quality:g}", picture, size, original[..., 0].size, m))
        model = coded[-1][2]
        bench.write_csv([asdict(r) for r in rows], "rate_quality")
    return rows, model


def _curves(rows: Sequence[Row], codec: str, domain: str, metric: str) -> dict[str, Curve]:
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.codec == codec and domain in ("all", row.domain):
            points.setdefault(row.picture, []).append((row.bpp, row.metric(metric)))
    return {picture: np.array(p) for picture, p in points.items()}


def _growing(metric: str, curve: Curve) -> Curve:
    """The curve in a scale that grows with quality: LPIPS negated, MS-SSIM in dB."""
    bpp, value = curve[:, 0], curve[:, 1]
    if metric == "lpips":
        value = -value
    elif metric == "ms_ssim":
        value = -10 * np.log10(1 - np.minimum(value, 1 - 1e-9))
    return np.stack([bpp, value], 1)


def _at_common(rows: Sequence[Row], codec: str, domain: str, metric: str) -> dict[float, dict[str, float]]:
    curves = _curves(rows, codec, domain, metric)
    values = {bpp: {name: at_rate(curve, bpp) for name, curve in curves.items()} for bpp in COMMON}
    return {bpp: {k: v for k, v in per.items() if not math.isnan(v)} for bpp, per in values.items()}


def metric_tables(rows: Sequence[Row], domain: str, metrics: Sequence[str]) -> Iterator[str]:
    """For each metric, every codec's mean at the common rates, with the number of pictures that reach it."""
    codecs = list(dict.fromkeys(r.codec for r in rows))
    for metric in metrics:
        body = []
        for codec in codecs:
            at = _at_common(rows, codec, domain, metric)
            cells = [f"{np.mean(list(v.values())):.4g} ({len(v)})" if v else "-" for v in at.values()]
            body.append([codec, *cells])
        yield f"{metric}, {domain}, mean (number of pictures for which the codec reaches that rate):\n\n" + table(
            ["codec", *(f"{b} bpp" for b in COMMON)], body
        )


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


def paired(rows: Sequence[Row], codec: str, domain: str, metric: str) -> list[Pair]:
    """Our codec beside ``codec`` at each common rate."""
    sign = -1 if metric == "lpips" else 1
    ours, theirs = (_at_common(rows, name, domain, metric) for name in (OURS, codec))
    pairs = []
    for bpp in COMMON:
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


def paired_tables(rows: Sequence[Row], domain: str, metrics: Sequence[str]) -> Iterator[str]:
    """For each metric, our gain over every reference codec on the same pictures."""
    for metric in metrics:
        body = [
            [codec.name, *(f"{p.gain:+.3g} ({p.won}/{p.compared})" if p.compared else "-" for p in pairs)]
            for codec in CODECS
            for pairs in [paired(rows, codec.name, domain, metric)]
        ]
        yield (
            f"Gain of {OURS} in {metric}, {domain}, on the same pictures, positive = better (won/compared):\n\n"
            + table(["against", *(f"{b} bpp" for b in COMMON)], body)
        )


def bd_table(rows: Sequence[Row], domain: str, metrics: Sequence[str]) -> str:
    """BD-rate of our codec against each reference codec, mean over the pictures."""
    body = []
    for codec in CODECS:
        cells = [codec.name]
        for metric in metrics:
            ours, theirs = (_curves(rows, name, domain, metric) for name in (OURS, codec.name))
            rates = [bd_rate(_growing(metric, ours[p]), _growing(metric, theirs[p])) for p in ours if p in theirs]
            rates = [r for r in rates if not math.isnan(r)]
            cells.append(f"{100 * np.mean(rates):+.1f} % ({len(rates)})" if rates else "-")
        body.append(cells)
    return (
        f"BD-rate of {OURS}, {domain}: bytes more (+) or less (-) at equal quality, mean over pictures (their number); "
        "MS-SSIM in dB:\n\n" + table(["against", *metrics], body)
    )


def checks(rows: Sequence[Row], domain: str) -> Iterator[Check]:
    """What has to be better than what, at every common rate."""
    for metric, codecs in MUST_BEAT.items():
        for codec in codecs:
            pairs = paired(rows, codec, domain, metric)
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
    parser.add_argument("--model", help="our model, name or path (default: the package's)")
    parser.add_argument("--codecs", default=",".join(c.name for c in CODECS), help="reference codecs to measure")
    parser.add_argument("--reuse", action="store_true", help="keep the rows in results/rate_quality_reference.csv")
    parser.add_argument("--references-only", action="store_true", help="do not measure our codec")
    parser.add_argument("--summary-only", action="store_true", help="measure nothing, report on the CSV files")
    parser.add_argument("--crops", type=Path, metavar="DIR", help="also write side-by-side crops at near-equal rate")
    parser.add_argument("--crops-bpp", type=float, default=0.2, help="the rate of the crops (default 0.2)")
    parser.add_argument("--crops-size", type=int, default=512, help="side of the crops in pixels (default 512)")
    args = parser.parse_args(argv)
    bench = start(parser, args, "rate_quality", argv)
    if bench.smoke:
        args.qualities = [20.0, 60.0]
        bench = replace(bench, pictures=bench.pictures[:2])
    stored, model = _load(bench.out / "results" / "rate_quality.csv"), ""
    known = _load(bench.out / "results" / "rate_quality_reference.csv") if args.reuse or args.summary_only else []
    if args.summary_only:
        rows = known + stored
    else:
        meter = Meter(args.lpips)
        rates = SMOKE_RATES if bench.smoke else RATES
        rows = measure_references(bench, meter, rates, known, args.codecs.split(","))
        if not args.references_only:
            ours, model = measure_ours(bench, meter, args)
            rows = ours + rows
    rows = sorted(rows, key=lambda r: r.codec != OURS)
    if args.crops is not None:
        from bench.crops import write_crops

        write_crops(bench, args)
    return report(bench, rows, model)


def report(bench: Bench, rows: Sequence[Row], model: str) -> int:
    """Writes the summary; returns the exit status."""
    domains = list(dict.fromkeys(r.domain for r in rows))
    if len(domains) > 1:
        domains.insert(0, "all")
    have_ours = any(r.codec == OURS for r in rows)
    body = [
        "Bytes are whole: every file of the container, headers of the others. Metrics are interpolated per picture "
        "(linear in log bpp, never beyond a codec's own range) and then averaged. Encoders: "
        + "; ".join(f"{c.name}: {c.fixed}" for c in CODECS)
        + f"; {OURS}: default options"
        + (f", model {model}." if model else "."),
        "LPIPS (SqueezeNet, v0.1) favours a model that had it among its training losses; its model card says so.",
    ]
    shown = [m for m in METRICS if not all(math.isnan(r.metric(m)) for r in rows)]
    for domain in domains:
        body.append(f"## {domain}")
        body += metric_tables(rows, domain, shown)
        if have_ours:
            body += [*paired_tables(rows, domain, shown), bd_table(rows, domain, shown)]
    wanted = "photo" if "photo" in domains else domains[0]
    return bench.finish("\n\n".join(body), list(checks(rows, wanted)) if have_ours else [])


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
