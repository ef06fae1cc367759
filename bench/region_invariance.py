"""Region invariance: random regions and levels through every way of reading, against one full read, bit for bit."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.common import Check, Pixels, add_arguments, mosaic, start, table

LARGEST: Final = 1100
"""Longest side of a random region, pixels: over two tiles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """A part of a level."""

    level: int
    x: int
    y: int
    width: int
    height: int

    @property
    def index(self) -> tuple[slice, slice, slice]:
        """Its place in an array (c, y, x)."""
        return slice(None), slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)


Reader = Callable[[Region], Pixels]
"""Gives a region's pixels, (3, height, width)."""


def random_regions(count: int, shapes: Sequence[tuple[int, int]], seed: int) -> list[Region]:
    """Regions on all levels, sides from 1 px to LARGEST with even chances in log size; every eighth touches a border.

    Args:
        count: how many.
        shapes: (height, width) of each level.
        seed: of the random generator.
    """
    rng = np.random.default_rng(seed)
    regions = []
    for n in range(count):
        level = int(rng.integers(len(shapes)))
        sides = [int(np.exp(rng.uniform(0, np.log(min(LARGEST, side) + 1)))) for side in shapes[level]]
        spare = [side - own for side, own in zip(shapes[level], sides, strict=True)]
        y, x = (int(rng.integers(s + 1)) for s in spare)
        if n % 8 == 0:
            y, x = (y, spare[1]) if n % 16 else (spare[0], x)
        regions.append(Region(level=level, x=x, y=y, width=sides[1], height=sides[0]))
    return regions


def readers(path: Path, work: Path) -> dict[str, Reader]:
    """Every way of reading, by name."""
    import dask.array
    import zarr

    import tilecodec
    from tilecodec.cli import main as cli

    cached, uncached = tilecodec.open(path), tilecodec.open(path, cache_bytes=0)
    group: Any = zarr.open(path, mode="r")
    from_zarr: Any = dask.array.from_zarr
    lazy = [from_zarr(str(path), component=str(level)) for level in range(cached.levels)]
    out = work / "region.npy"

    def through_cli(region: Region) -> Pixels:
        box = f"{region.x},{region.y},{region.width},{region.height}"
        words = ["decode", str(path), str(out), "--region", box, "--level", str(region.level), "--overwrite"]
        with contextlib.redirect_stdout(sys.stderr):
            status = cli(words)
        if status:
            raise SystemExit(f"exit status {status} from: tilecodec {' '.join(words)}")
        pixels: Pixels = np.load(out)
        return pixels.transpose(2, 0, 1)

    return {
        "tilecodec.open": lambda r: cached.level(r.level)[r.index],
        "tilecodec.open, no cache": lambda r: uncached.level(r.level)[r.index],
        "zarr.open": lambda r: np.asarray(group[str(r.level)][r.index]),
        "dask.array.from_zarr": lambda r: lazy[r.level][r.index].compute(),
        "tilecodec decode": through_cli,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    import tilecodec

    parser = argparse.ArgumentParser(prog="python -m bench.region_invariance", description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--size", type=int, default=3300, help="side of the mosaic (default 3300, no multiple of a tile)"
    )
    parser.add_argument("--regions", type=int, default=200, help="regions through each way (default 200)")
    parser.add_argument("--cli-regions", type=int, default=10, help="regions through the command line (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quality", type=float, default=50)
    parser.add_argument("--tile", type=int, default=512, help="tile side (default 512)")
    parser.add_argument("--model", default="default", help="name or path")
    args = parser.parse_args(argv)
    bench = start(parser, args, "region_invariance", argv)
    levels: dict[str, Any] = {}
    if bench.smoke:
        args.size, args.regions, args.cli_regions, args.tile, levels = 300, 6, 2, 128, {"levels": 2}
    target = bench.work / "mosaic.zarr"
    picture = mosaic(bench.pictures, args.size, args.size)
    tilecodec.encode(picture, target, quality=args.quality, tile=args.tile, model=args.model, **levels)
    image = tilecodec.open(target)
    full = [image.level(level)[:, :, :] for level in range(image.levels)]
    if any(pixels.min() == pixels.max() for pixels in full):
        raise SystemExit("a level decodes to one flat colour: equal regions would prove nothing")
    shapes = [(pixels.shape[1], pixels.shape[2]) for pixels in full]
    regions = random_regions(args.regions, shapes, args.seed)
    rows, checks = [], []
    for way, read in readers(target, bench.work).items():
        chosen = regions[: args.cli_regions] if way == "tilecodec decode" else regions
        bench.note(f"{len(chosen)} regions through {way}")
        wrong, furthest = [], 0
        for region in chosen:
            expected, got = full[region.level][region.index], read(region)
            if got.shape != expected.shape or got.dtype != expected.dtype:
                raise SystemExit(f"{way}: {region}: got {got.dtype} {got.shape}, expected {expected.shape}")
            if not np.array_equal(got, expected):
                wrong.append(region)
                furthest = max(furthest, int(np.abs(got.astype(np.int16) - expected).max()))
        for region in wrong[:3]:
            bench.note(f"differs: {region}")
        rows.append({"way": way, "regions": len(chosen), "differing": len(wrong), "largest_difference": furthest})
        shown = f"{len(chosen) - len(wrong)} of {len(chosen)} equal"
        checks.append(Check(what=way, wanted="all equal bit for bit", measured=shown, ok=not wrong, exact=True))
    bench.write_csv(rows)
    body = f"{args.size} x {args.size} px, tiles of {args.tile} px, {len(shapes)} levels, seed {args.seed}.\n\n"
    return bench.finish(body + table(list(rows[0]), [list(r.values()) for r in rows]), checks)


if __name__ == "__main__":
    sys.exit(main())
