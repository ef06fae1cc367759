"""Seams: steps across tile borders beside those elsewhere, and tiled decode beside decode in one window."""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bench.common import Bench, Check, Pixels, add_arguments, mosaic, start, table

LIMIT: Final = 0.03
WHOLE_DB: Final = 45.0
Steps = npt.NDArray[np.float64]


def steps(pixels: Pixels, axis: int) -> Steps:
    """Mean absolute step from each row (axis 0) or column (axis 1) to the next, entry 0 from 0 to 1."""
    lines = np.moveaxis(pixels, axis, 0)
    return np.array([np.abs(b.astype(np.int16) - a).mean() for a, b in itertools.pairwise(lines)])


def line_ratio(step: Steps, tile: int, offset: int = 0) -> float:
    """Mean step across the lines at multiples of ``tile`` plus ``offset``, over that across all other lines."""
    chosen = (np.arange(1, len(step) + 1) - offset) % tile == 0
    return float(step[chosen].mean() / step[~chosen].mean())


def read(path: Any) -> Pixels:
    """Level 0 of a container, (H, W, 3)."""
    import tilecodec

    return np.ascontiguousarray(tilecodec.open(path)[:, :, :].transpose(1, 2, 0))


def borders(bench: Bench, picture: Pixels, quality: float, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Compares steps at the tile borders, and at both edges of the blended strips, with the original's."""
    import tilecodec

    target = bench.work / "mosaic.zarr"
    tilecodec.encode(picture, target, quality=quality, tile=args.tile, levels=1, model=args.model)
    overlap = tilecodec.info(target).overlap
    decoded = read(target)
    shutil.rmtree(target)
    rows = []
    for axis, name in ((1, "vertical"), (0, "horizontal")):
        ours, theirs = steps(decoded, axis), steps(picture, axis)
        for offset in dict.fromkeys((0, -overlap, overlap)):
            ratio, original = line_ratio(ours, args.tile, offset), line_ratio(theirs, args.tile, offset)
            rows.append(
                {
                    "quality": quality,
                    "lines": name,
                    "offset": offset,
                    "ratio": round(ratio, 5),
                    "original_ratio": round(original, 5),
                    "excess": round(ratio - original, 5),
                }
            )
    return rows


def whole_psnr(bench: Bench, picture: Pixels, quality: float, args: argparse.Namespace) -> float:
    """PSNR in dB between tiled decode and decode of the same symbols in one window."""
    import tilecodec
    from tilecodec.decoder.reference import decode_whole
    from tilecodec.metrics import psnr

    target = bench.work / "whole.zarr"
    tilecodec.encode(picture, target, quality=quality, tile=args.tile, levels=1, model=args.model)
    value = psnr(read(target), decode_whole(target, 0))
    shutil.rmtree(target)
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.seams", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--size", type=int, default=4096, help="side of the mosaic (default 4096)")
    parser.add_argument("--whole-size", type=int, default=2048, help="side of the picture decoded in one window")
    parser.add_argument("--qualities", default="30,60", help="comma-separated (default 30,60)")
    parser.add_argument("--tile", type=int, default=512, help="tile side (default 512)")
    parser.add_argument("--model", default="default", help="name or path")
    args = parser.parse_args(argv)
    bench = start(parser, args, "seams", argv)
    if bench.smoke:
        args.size, args.whole_size, args.tile, args.qualities = 384, 256, 128, "30"
    picture = mosaic(bench.pictures, args.size, args.size)
    part = np.ascontiguousarray(picture[: args.whole_size, : args.whole_size])
    rows, checks = [], []
    for quality in (float(text) for text in args.qualities.split(",")):
        bench.note(f"quality {quality:g}")
        found = borders(bench, picture, quality, args)
        rows += found
        for row in found:
            if row["offset"] == 0:
                checks.append(
                    Check(
                        what=f"quality {quality:g}, {row['lines']} tile borders: ratio minus the original's",
                        wanted=f"at most {LIMIT}",
                        measured=f"{row['excess']:+.4f}",
                        ok=row["excess"] <= LIMIT,
                    )
                )
        decibels = whole_psnr(bench, part, quality, args)
        checks.append(
            Check(
                what=f"quality {quality:g}, tiled against one window of {args.whole_size} x {args.whole_size} px",
                wanted=f"at least {WHOLE_DB:g} dB",
                measured=f"{decibels:.2f} dB",
                ok=decibels >= WHOLE_DB,
            )
        )
    bench.write_csv(rows)
    body = (
        f"{args.size} x {args.size} px, tiles of {args.tile} px, {len(bench.pictures)} pictures. Ratio: mean absolute "
        "step across the lines at multiples of the tile side plus `offset`, over that across all other lines of that "
        "direction. Offset 0 is the tile border, the others are the edges of the blended strips.\n\n"
    )
    return bench.finish(body + table(list(rows[0]), [list(r.values()) for r in rows]), checks)


if __name__ == "__main__":
    sys.exit(main())
