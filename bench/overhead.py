"""Container overhead: the share of a container's bytes that is not tile payload, at a low rate."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from bench.common import Bench, Check, Pixels, add_arguments, container_bytes, mosaic, start, table

LIMIT: Final = 0.02
TRIES: Final = 6


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--size", type=int, default=8192, help="side of the mosaic (default 8192)")
    parser.add_argument("--bpp", type=float, default=0.1, help="rate aimed at (default 0.1)")
    parser.add_argument("--quality", type=float, help="use this quality instead of looking for one")
    parser.add_argument("--model", default="default", help="name or path")
    args = parser.parse_args(argv)
    bench = start(parser, args, "overhead", argv)
    import tilecodec

    size = 640 if bench.smoke else args.size
    pixels = mosaic(bench.pictures, size, size)
    quality = args.quality or _quality(pixels, args.bpp, args.model, bench, tries=2 if bench.smoke else TRIES)
    target = bench.work / "mosaic.zarr"
    bench.note(f"encoding {size} x {size} px at quality {quality:g}")
    tilecodec.encode(pixels, target, quality=quality, model=args.model)
    total, payload = container_bytes(target), payload_bytes(target)
    share = (total - payload) / total
    rows = [
        {
            "size": size,
            "quality": quality,
            "bpp": round(8 * total / (size * size), 5),
            "container_bytes": total,
            "payload_bytes": payload,
            "overhead": round(share, 6),
            "files": sum(p.is_file() for p in target.rglob("*")),
            "metadata_bytes": sum(p.stat().st_size for p in target.rglob("zarr.json")),
        }
    ]
    bench.write_csv(rows)
    check = Check(
        what=f"overhead of {size} x {size} px at {8 * total / (size * size):.3f} bpp",
        wanted=f"at most {100 * LIMIT:g} %",
        measured=f"{100 * share:.2f} %",
        ok=share <= LIMIT,
    )
    return bench.finish(table(list(rows[0]), [list(r.values()) for r in rows]), [check])


def payload_bytes(container: Path) -> int:
    """Bytes of all tile payloads of all levels."""
    import tilecodec

    return sum(level.payload_bytes for level in tilecodec.info(container).levels)


def _quality(pixels: Pixels, bpp: float, model: str, bench: Bench, *, tries: int) -> float:
    """The quality whose payloads come nearest to ``bpp``, by bisection on the corner of the picture."""
    import tilecodec

    corner = np.ascontiguousarray(pixels[:2048, :2048])
    low, high = 1.0, 100.0
    best = (float("inf"), low)
    for _ in range(tries):
        middle = round((low + high) / 2, 1)
        target = bench.work / "corner.zarr"
        tilecodec.encode(corner, target, quality=middle, model=model)
        rate = 8 * payload_bytes(target) / (corner.shape[0] * corner.shape[1])
        shutil.rmtree(target)
        best = min(best, (abs(rate - bpp), middle))
        low, high = (middle, high) if rate < bpp else (low, middle)
    return best[1]


if __name__ == "__main__":
    sys.exit(main())
