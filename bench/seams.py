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
GRID: Final = 32
"""Pixels between the latents that are coded: a model's own block pattern repeats with it, tiled or not."""
SHIFT: Final = 73
"""Pixels from one cut of the mosaic to the next, both ways."""
Steps = npt.NDArray[np.float64]


def steps(pixels: Pixels, axis: int) -> Steps:
    """Mean absolute step from each row (axis 0) or column (axis 1) to the next, entry 0 from 0 to 1."""
    lines = np.moveaxis(pixels, axis, 0)
    return np.array([np.abs(b.astype(np.int16) - a).mean() for a, b in itertools.pairwise(lines)])


def line_ratio(step: Steps, tile: int, offset: int = 0, grid: int = 1) -> float:
    """Mean step across the lines at multiples of ``tile`` plus ``offset``, over that across all other lines.

    With ``grid``, only those other lines count that lie at multiples of ``grid`` plus ``offset``.
    """
    place = np.arange(1, len(step) + 1) - offset
    chosen = place % tile == 0
    return float(step[chosen].mean() / step[~chosen & (place % grid == 0)].mean())


def read(path: Any) -> Pixels:
    """Level 0 of a container, (H, W, 3)."""
    import tilecodec

    return np.ascontiguousarray(tilecodec.open(path)[:, :, :].transpose(1, 2, 0))


def borders(bench: Bench, pictures: Sequence[Pixels], quality: float, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Compares steps at the tile borders, and in the middle of what windows share, where they are blended, with the
    original's; means over pictures."""
    import tilecodec

    target = bench.work / "mosaic.zarr"
    found: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    for picture in pictures:
        tilecodec.encode(picture, target, quality=quality, tile=args.tile, levels=1, model=args.model)
        overlap = tilecodec.info(target).overlap
        decoded = read(target)
        shutil.rmtree(target)
        for axis, name in ((1, "vertical"), (0, "horizontal")):
            ours, theirs = steps(decoded, axis), steps(picture, axis)
            elsewhere = [
                line_ratio(ours, args.tile, offset) - line_ratio(theirs, args.tile, offset)
                for offset in range(1, args.tile)
                if offset % GRID
            ]
            for offset in dict.fromkeys((0, -overlap)):
                ratio, original = line_ratio(ours, args.tile, offset), line_ratio(theirs, args.tile, offset)
                alike = line_ratio(ours, args.tile, offset, GRID) - line_ratio(theirs, args.tile, offset, GRID)
                numbers = (ratio, original, ratio - original, alike, float(np.std(elsewhere)))
                found.setdefault((name, offset), []).append(numbers)
    rows = []
    for (name, offset), measured in found.items():
        names = ("ratio", "original_ratio", "excess", "excess_on_grid", "sd_elsewhere")
        means = dict(zip(names, np.mean(measured, axis=0), strict=True))
        means["sd_elsewhere"] /= len(measured) ** 0.5
        rows.append(
            {"quality": quality, "lines": name, "offset": offset, **{k: round(float(v), 5) for k, v in means.items()}}
        )
    return rows


def beside_whole(bench: Bench, picture: Pixels, quality: float, args: argparse.Namespace) -> dict[str, float]:
    """Tiled decode beside decode of the same symbols in one window: PSNR in dB, each one's ratio at borders."""
    import tilecodec
    from tilecodec.decoder.reference import decode_whole
    from tilecodec.metrics import psnr

    target = bench.work / "whole.zarr"
    tilecodec.encode(picture, target, quality=quality, tile=args.tile, levels=1, model=args.model)
    tiled, whole = read(target), decode_whole(target, 0)
    shutil.rmtree(target)
    found = {"quality": quality, "psnr": round(psnr(tiled, whole), 3)}
    for axis, name in ((1, "vertical"), (0, "horizontal")):
        for way, pixels in (("tiled", tiled), ("one window", whole), ("original", picture)):
            found[f"{name}, {way}"] = round(line_ratio(steps(pixels, axis), args.tile), 5)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.seams", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--size", type=int, default=4096, help="side of the mosaic (default 4096)")
    parser.add_argument("--whole-size", type=int, default=2048, help="side of the picture decoded in one window")
    parser.add_argument("--qualities", default="30,60", help="comma-separated (default 30,60)")
    parser.add_argument("--tile", type=int, default=512, help="tile side (default 512)")
    parser.add_argument("--places", type=int, default=1, help="cuts of the mosaic whose results are averaged")
    parser.add_argument("--model", default="default", help="name or path")
    args = parser.parse_args(argv)
    bench = start(parser, args, "seams", argv)
    if bench.smoke:
        args.size, args.whole_size, args.tile, args.qualities = 384, 256, 128, "30"
    spare = SHIFT * (args.places - 1)
    large = mosaic(bench.pictures, args.size + spare, args.size + spare)
    pictures = [np.ascontiguousarray(large[n : n + args.size, n : n + args.size]) for n in range(0, spare + 1, SHIFT)]
    part = np.ascontiguousarray(pictures[0][: args.whole_size, : args.whole_size])
    rows, wholes, checks = [], [], []
    for quality in (float(text) for text in args.qualities.split(",")):
        bench.note(f"quality {quality:g}")
        found = borders(bench, pictures, quality, args)
        rows += found
        for row in found:
            where = "tile borders" if row["offset"] == 0 else "blended strips"
            checks.append(
                Check(
                    what=f"quality {quality:g}, {row['lines']} {where}: ratio minus the original's",
                    wanted=f"at most {LIMIT}",
                    measured=f"{row['excess']:+.4f} (without a border: 0 ± {row['sd_elsewhere']:.3f})",
                    ok=row["excess"] <= LIMIT,
                )
            )
        wholes.append(beside_whole(bench, part, quality, args))
        decibels = wholes[-1]["psnr"]
        checks.append(
            Check(
                what=f"quality {quality:g}, tiled against one window of {args.whole_size} x {args.whole_size} px",
                wanted=f"at least {WHOLE_DB:g} dB",
                measured=f"{decibels:.2f} dB",
                ok=decibels >= WHOLE_DB,
            )
        )
    bench.write_csv(rows)
    bench.write_csv(wholes, "seams_whole")
    body = (
        f"{args.places} of {args.size} x {args.size} px, tiles of {args.tile} px, {len(bench.pictures)} pictures. "
        "Ratio: mean absolute step across the lines at multiples of the tile side plus `offset`, over that across all "
        "other lines of that "
        "direction. Offset 0 is the tile border, the other the middle of the blended strips. `excess_on_grid` "
        f"takes as other lines only those {GRID} px apart: a block pattern of the model itself, which tiling neither "
        "makes nor mends, is in `excess` and not in `excess_on_grid`. What lies under the few lines changes the ratio, "
        "too: `sd_elsewhere` is the standard deviation of the excess at other offsets, where there is no "
        f"border, for a mean over {args.places} cuts of the mosaic.\n\n"
        + table(list(rows[0]), [list(r.values()) for r in rows])
        + f"\n\nThe ratio at the same lines of {args.whole_size} x {args.whole_size} px decoded in tiles, in one "
        "window without any tile border, and of the original:\n\n"
        + table(list(wholes[0]), [list(w.values()) for w in wholes])
    )
    return bench.finish(body, checks)


if __name__ == "__main__":
    sys.exit(main())
