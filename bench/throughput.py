"""Throughput: encode and decode in MP/s (1 MP = 1024² pixels of the picture itself, pyramid not counted), warm."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from bench.common import MEGAPIXEL, Check, Pixels, add_arguments, mosaic, start, table

WANTED: Final = {"encode": 3.0, "decode": 2.0}
"""MP/s on two CPU cores."""
STRETCH: Final = {"encode": 7.0, "decode": 4.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    import tilecodec

    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--size", type=int, default=4096, help="side of the mosaic (default 4096)")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each (default 3)")
    parser.add_argument("--quality", type=float, default=50)
    parser.add_argument("--model", default="default", help="name or path")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    bench = start(parser, args, "throughput", argv)
    size, runs = (512, 1) if bench.smoke else (args.size, args.runs)

    import tifffile

    pixels = mosaic(bench.pictures, size, size)
    source = bench.work / "mosaic.tif"
    tifffile.imwrite(source, pixels, tile=(512, 512), photometric="rgb", compression="adobe_deflate")
    target = bench.work / "mosaic.zarr"
    options = {"quality": args.quality, "model": args.model, "device": args.device}

    def encode(picture: Path | Pixels, container: Path) -> None:
        tilecodec.encode(picture, container, overwrite=True, **options)

    def read() -> None:
        tilecodec.open(target, device=args.device)[:, :, :]

    def decode(name: str) -> None:
        tilecodec.decode(target, bench.work / name, device=args.device, overwrite=True)

    # Warm: one small picture through both ways, then one untimed run of each case.
    encode(np.ascontiguousarray(pixels[:1024, :1024]), bench.work / "small.zarr")
    tilecodec.open(bench.work / "small.zarr", device=args.device)[:, :, :]
    cases: dict[str, Callable[[], None]] = {
        "encode from TIFF": lambda: encode(source, target),
        "encode from an array": lambda: encode(pixels, target),
        "decode through open()": read,
        "decode to TIFF": lambda: decode("out.tif"),
        "decode to NPY": lambda: decode("out.npy"),
    }
    rows = []
    for case, call in cases.items():
        bench.note(case)
        seconds, cpu = _timed(call, runs)
        rates = [size * size / MEGAPIXEL / s for s in seconds]
        rows.append(
            {
                "case": case,
                "median_mp_s": round(statistics.median(rates), 3),
                "min_mp_s": round(min(rates), 3),
                "max_mp_s": round(max(rates), 3),
                "median_s": round(statistics.median(seconds), 3),
                "cpu_s": round(cpu / runs, 3),
            }
        )
    bench.write_csv(rows)
    checks = []
    for case, way in (
        ("encode from TIFF", "encode"),
        ("decode through open()", "decode"),
        ("decode to TIFF", "decode"),
    ):
        rate = float(next(r["median_mp_s"] for r in rows if r["case"] == case))
        wanted = f"at least {WANTED[way]:g} MP/s (stretch {STRETCH[way]:g})"
        checks.append(Check(what=case, wanted=wanted, measured=f"{rate:.2f} MP/s", ok=rate >= WANTED[way]))
    body = f"{size} x {size} px, quality {args.quality:g}, model {args.model}, {runs} timed runs after a warm one.\n\n"
    return bench.finish(body + table(list(rows[0]), [list(r.values()) for r in rows]), checks)


def _timed(call: Callable[[], None], runs: int) -> tuple[list[float], float]:
    """Seconds of each run after an untimed one, and CPU seconds of all."""
    call()
    seconds, cpu = [], time.process_time()
    for _ in range(runs):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return seconds, time.process_time() - cpu


if __name__ == "__main__":
    sys.exit(main())
