"""What each part of DiT-IC's method gives at the default model's size: short trainings that differ in one switch.

All variants start from one trunk (a checkpoint trained without the diffusion step), see the same crops in the same
order and take the same number of steps. Each is exported and measured as any model is: whole containers, integers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.common import BENCH, Bench, add_arguments, middle, start, table
from tilecodec.evaluation.measure import Subject, measure_ours
from tilecodec.evaluation.quality import Meter
from tilecodec.evaluation.rows import OURS, Row
from tilecodec.evaluation.summary import bd_rate_against, domains_of

METRICS: Final = ("psnr", "ms_ssim", "lpips")
QUALITIES: Final = (10.0, 30.0, 50.0, 70.0, 90.0)
RECIPE: Final[dict[str, Any]] = {
    "model": "default",
    "crop": 256,
    "batch": 8,
    "replicas": 2,
    "decay_steps": 100,
    "warmup_steps": 20,
    "transformer": True,
    "integer_weights": True,
    "muon_lr": 2.5e-3,
    "lr": 5e-4,
    "lambda_low": 1.2e-5,
    "lambda_high": 0.08,
    "rate_ramp_steps": 1,
    "mse_weight": 0.5,
    "ms_ssim_weight": 1200,
    "alignment_weight": 0.02,
    "grid_weight": 0.08,
    "ema": 0.98,
    "log_every": 25,
}
"""The default model's second stage, shortened."""
LPIPS_WEIGHT: Final = 350
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "everything": {},
    "no diffusion step": {"transformer": False, "alignment_weight": 0.0},
    "no variance guidance": {"variance_guidance": False},
    "no self-distillation": {"alignment_weight": 0.0},
    "no latent guidance": {"latent_guidance": False},
}


@dataclass(frozen=True, slots=True)
class Trained:
    """A variant after its training."""

    model: Path
    seconds: float
    last: dict[str, float]
    """Means of the last row of its log."""


def train(bench: Bench, args: argparse.Namespace, name: str, switches: dict[str, Any]) -> Trained:
    """Trains a variant in a process of its own."""
    out = bench.work / name.replace(" ", "-")
    recipe: dict[str, Any] = {
        **RECIPE,
        "steps": args.steps,
        "decay_steps": max(1, args.steps // 2),
        "start_from": None if args.start is None else str(args.start.resolve()),
    }
    if args.lpips is not None:
        recipe |= {"lpips_weights": str(args.lpips.resolve()), "lpips_weight": LPIPS_WEIGHT}
    if args.store is not None:
        recipe |= {"store": str(args.store.resolve()), "domains": {"photo": 0.65, "aerial": 0.22, "medical": 0.13}}
    else:
        folder = bench.work / "pictures"
        recipe |= {"data": {"domains": {"photo": {"paths": [str(folder)]}}, "least_crops": 1, "workers": 0}}
    if bench.smoke:
        recipe |= {"crop": 256, "batch": 2, "replicas": 1, "warmup_steps": 1}
    recipe |= switches
    config = bench.work / f"{out.name}.yaml"
    config.write_text(json.dumps({k: v for k, v in recipe.items() if v is not None}))  # JSON is YAML
    command = [sys.executable, "-m", "tilecodec", "train", str(config), "--out", str(out), "--json"]
    begin = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=BENCH.parent, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(done.stdout[done.stdout.index("{") :])
    return Trained(Path(report["model"]), time.perf_counter() - begin, report["last"])


def measure(bench: Bench, args: argparse.Namespace, name: str, model: Path, meter: Meter) -> list[Row]:
    """Rows of a variant."""
    rows: list[Row] = []
    for picture in bench.pictures:
        pixels = np.ascontiguousarray(middle(picture.pixels(), args.side))
        subject = Subject(domain="pictures", name=f"{picture.domain}/{picture.name}", pixels=pixels)
        found = measure_ours(subject, list(args.qualities), meter, model=str(model), work=bench.work)
        rows += [replace(row, codec=name) for row in found]
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.ablation", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--start", type=Path, help="checkpoint or model that all variants start from")
    parser.add_argument("--store", type=Path, help="store of training pictures (default: the pictures measured)")
    parser.add_argument("--steps", type=int, default=150, help="of each variant (default 150)")
    parser.add_argument("--lpips", type=Path, help="safetensors of LPIPS (SqueezeNet), loss and metric")
    parser.add_argument("--side", type=int, default=768, help="largest side of the measured pictures (default 768)")
    parser.add_argument("--qualities", type=float, nargs="+", default=list(QUALITIES))
    args = parser.parse_args(argv)
    bench = start(parser, args, "ablation", argv)
    variants = dict(VARIANTS)
    if bench.smoke:
        args.steps, args.side, args.qualities = 2, 256, [20.0, 80.0]
        variants = {name: VARIANTS[name] for name in ("everything", "no diffusion step")}
    if args.store is None:
        _write_pictures(bench)
    meter = Meter(args.lpips)
    rows: list[Row] = []
    lines: list[dict[str, Any]] = []
    for name, switches in variants.items():
        bench.note(f"training: {name}")
        trained = train(bench, args, name, switches)
        bench.note(f"measuring: {name}")
        rows += measure(bench, args, name, trained.model, meter)
        lines.append(
            {
                "variant": name,
                "steps": args.steps,
                "minutes": round(trained.seconds / 60, 2),
                **{f"train_{k}": round(v, 5) for k, v in trained.last.items() if k in ("loss", "bpp", "ms_ssim")},
            }
        )
    bench.write_csv([row.to_dict(METRICS) for row in rows], "ablation_rates")
    (domain,) = domains_of(rows)
    first = next(iter(variants))
    as_anchor = [row for row in rows if row.codec == first]
    for line in lines:
        for metric in METRICS:
            line[f"bd_rate_{metric}"] = _bd_rate(as_anchor, rows, line["variant"], domain, metric, first)
    bench.write_csv(lines)
    body = (
        f"{args.steps} steps of batch {RECIPE['batch']} from one trunk, {len(bench.pictures)} pictures of at most "
        f"{args.side} px, qualities {', '.join(f'{q:g}' for q in args.qualities)}. BD-rate in % against the first "
        "line: plus means more bytes at equal quality. Differences of one or two percent are within what another seed "
        "changes at so few steps.\n\n" + table(list(lines[0]), [list(line.values()) for line in lines])
    )
    return bench.finish(body)


def _bd_rate(anchor: Sequence[Row], rows: Sequence[Row], name: str, domain: str, metric: str, first: str) -> str:
    if name == first:
        return "0"
    ours = [replace(row, codec=OURS) for row in rows if row.codec == name]
    percent = bd_rate_against([*ours, *anchor], first, domain, metric).percent
    return "-" if percent is None else f"{percent:+.1f}"


def _write_pictures(bench: Bench) -> None:
    import imagecodecs

    folder = bench.work / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for n, picture in enumerate(bench.pictures):
        (folder / f"{n}.png").write_bytes(imagecodecs.png_encode(picture.pixels()))


if __name__ == "__main__":
    sys.exit(main())
