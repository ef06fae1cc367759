"""Random regions of a container: milliseconds, cold (nothing decoded yet) and warm (read before), model loaded."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Final

import numpy as np

from bench.common import Check, add_arguments, mosaic, start, table

SIDES: Final = (256, 512, 2048)
COLD_MS: Final = 400.0
WARM_MS: Final = 5.0
"""p95 of 512 px."""


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and the longest, milliseconds."""
    ms = 1000 * np.array(seconds)
    p50, p95 = np.percentile(ms, [50, 95])
    return {"p50_ms": round(float(p50), 2), "p95_ms": round(float(p95), 2), "max_ms": round(float(ms.max()), 2)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    import tilecodec

    parser = argparse.ArgumentParser(prog="python -m bench.latency", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--size", type=int, default=4096, help="side of the mosaic (default 4096)")
    parser.add_argument("--reads", type=int, default=40, help="cold reads of each size (default 40)")
    parser.add_argument("--tile", type=int, default=512, help="tile side (default 512)")
    parser.add_argument("--quality", type=float, default=50)
    parser.add_argument("--model", default="default", help="name or path")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the places (default 0)")
    args = parser.parse_args(argv)
    bench = start(parser, args, "latency", argv)
    size, reads, sides = (512, 2, (128, 256)) if bench.smoke else (args.size, args.reads, SIDES)
    target = bench.work / "mosaic.zarr"
    tilecodec.encode(
        mosaic(bench.pictures, size, size), target, quality=args.quality, model=args.model, tile=args.tile, levels=1
    )
    tilecodec.open(target, device=args.device)[:, :64, :64]
    rng = np.random.default_rng(args.seed)
    rows: list[dict[str, object]] = []
    for side in sides:
        cold, warm = [], []
        for _ in range(reads):
            y, x = (int(n) for n in rng.integers(0, size - side + 1, 2))
            image = tilecodec.open(target, device=args.device)
            for seconds in (cold, *[warm] * 3):
                begin = time.perf_counter()
                image[:, y : y + side, x : x + side]
                seconds.append(time.perf_counter() - begin)
        for kind, found in (("cold", cold), ("warm", warm)):
            rows.append({"side": side, "kind": kind, "reads": len(found), **percentiles(found)})
    bench.write_csv(rows)
    checks = []
    for row in rows:
        if row["side"] == 512:
            limit = COLD_MS if row["kind"] == "cold" else WARM_MS
            p95 = float(str(row["p95_ms"]))
            wanted = f"at most {limit:g} ms"
            checks.append(
                Check(what=f"{row['kind']} 512 px, p95", wanted=wanted, measured=f"{p95:g} ms", ok=p95 <= limit)
            )
    body = (
        f"{size} x {size} px in tiles of {args.tile} px, quality {args.quality:g}; the file is in the page cache. Each "
        "cold read has a newly opened container; reading the same region again is warm.\n\n"
    )
    return bench.finish(body + table(list(rows[0]), [list(row.values()) for row in rows]), checks)


if __name__ == "__main__":
    sys.exit(main())
