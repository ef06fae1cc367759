"""Entropy decoding of one megapixel, payloads to latents, with the integer program and with float networks.

Square tiles from the pictures' middles are coded; as many as make a megapixel are then decoded on the workers that
readers use, a tile each. The pictures take turns.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from bench.common import MEGAPIXEL, Check, add_arguments, middle, start, table
from bench.float_entropy import FloatEntropy

LIMIT_MS: Final = 120.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.entropy_speed", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--model", default="default", help="name or path")
    parser.add_argument("--tile", type=int, default=512, help="side of the tiles in pixels (default 512)")
    parser.add_argument("--runs", type=int, default=15, help="megapixels decoded (default 15)")
    parser.add_argument("--quality", type=float, default=50)
    args = parser.parse_args(argv)
    bench = start(parser, args, "entropy_speed", argv)
    side, runs = (128, 2) if bench.smoke else (args.tile, args.runs)
    if not bench.smoke and MEGAPIXEL % (side * side):
        parser.error("--tile: its square has to divide 1024 x 1024")
    from tilecodec.entropy.codec import POOL
    from tilecodec.entropy.model import load_model

    model = load_model(args.model, device="cpu")
    floats = FloatEntropy(model)
    core = slice(0, side)
    jobs: dict[str, list[Callable[[], Any]]] = {"integer": [], "float": []}
    sizes = []
    hyper = side // model.config.z_stride
    for picture in bench.pictures:
        pixels = middle(picture.pixels(), side)
        if len(pixels) != side:
            continue
        y = model.analyse(pixels, (core, core), args.quality)
        (z,) = model.hyper_analyse([y])
        payload = model.tile_codec.encode(y, z, quality=args.quality, height=side, width=side)
        words = floats.encode(y, z)[0]
        sizes.append(len(payload.to_bytes()))
        jobs["integer"].append(lambda p=payload: model.tile_codec.decode(p, "bench"))
        jobs["float"].append(lambda w=words: floats.decode(w, hyper, hyper))
    if not sizes:
        parser.error(f"--data: no picture holds {side} x {side} px")
    count = 1 if bench.smoke else MEGAPIXEL // (side * side)
    rows: list[dict[str, object]] = []
    for kind, calls in jobs.items():
        turns = itertools.cycle(calls)
        seconds, cpu = [], 0.0
        for run in range(runs + 1):
            wall, before = time.perf_counter(), time.process_time()
            for future in [POOL.submit(next(turns)) for _ in range(count)]:
                future.result()
            if run:  # the first one prepares
                seconds.append(time.perf_counter() - wall)
                cpu += time.process_time() - before
        per_mp = MEGAPIXEL / (count * side * side)
        rows.append(
            {
                "entropy": kind,
                "workers": POOL.workers,
                "median_ms_per_mp": round(1000 * per_mp * statistics.median(seconds), 1),
                "worst_ms_per_mp": round(1000 * per_mp * max(seconds), 1),
                "cpu_ms_per_mp": round(1000 * per_mp * cpu / runs, 1),
            }
        )
    bench.write_csv(rows)
    median = float(str(rows[0]["median_ms_per_mp"]))
    checks = [
        Check(
            what=f"entropy decode of one megapixel, {POOL.workers} workers, median",
            wanted=f"at most {LIMIT_MS:g} ms",
            measured=f"{median:g} ms (float: {rows[1]['median_ms_per_mp']} ms)",
            ok=median <= LIMIT_MS,
        )
    ]
    body = (
        f"{runs} megapixels in tiles of {side} px at quality {args.quality:g}, "
        f"{8 * sum(sizes) / (len(sizes) * side * side):.3f} bpp, from {len(sizes)} pictures; torch "
        f"{torch.__version__}.\n\n" + table(list(rows[0]), [list(r.values()) for r in rows])
    )
    return bench.finish(body, checks)


if __name__ == "__main__":
    sys.exit(main())
