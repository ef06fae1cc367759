"""Peak resident memory of encode and of full decode to TIFF under one memory budget, pictures from small to huge.

The pictures are drawn while they are read, so the largest take no room but their containers. Each encode and each
decode is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from bench.common import BENCH, MEGAPIXEL, Check, add_arguments, mosaic, start, table
from bench.memory import peak_bytes

SHAPES: Final = "1024x1024,4096x4096,8192x8192,16384x16384,32768x32768,65536x65536,131072x1024,262144x2048"
RATIO: Final = 1.05
"""Peak of the largest picture over that of the reference, at most."""
REFERENCE: Final = (8192, 8192)
UNIT: Final = 2560
"""Side of the mosaic that repeats, pixels."""
CHUNK: Final = 1024
"""Side of what is drawn at a time, pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What one process does."""

    way: str
    """``encode`` or ``decode``."""
    height: int
    width: int
    unit: str
    """The mosaic that repeats, as ``.npy`` (UNIT, UNIT, 3)."""
    container: str
    target: str
    """A TIFF, of a decode."""
    memory: str | None
    quality: float
    model: str
    threads: int | None


def drawn(unit_path: str, height: int, width: int) -> Any:
    """A dask array (height, width, 3) uint8, a picture repeated, each chunk made when it is asked for."""
    import dask.array

    unit = np.load(unit_path)

    def chunk(block_info: Any) -> Any:
        rows, cols = (np.arange(*block_info[None]["array-location"][axis]) % UNIT for axis in range(2))
        return unit[rows[:, None], cols]

    sides = [tuple(min(CHUNK, n - at) for at in range(0, n, CHUNK)) for n in (height, width)]
    map_blocks: Any = dask.array.map_blocks
    return map_blocks(chunk, chunks=(*sides, (3,)), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))


def run(job: Job) -> dict[str, float]:
    """Does a job in this process; seconds and peak bytes."""
    import tilecodec

    if job.threads is not None:
        import torch

        torch.set_num_threads(job.threads)
    begin = time.perf_counter()
    if job.way == "encode":
        picture = drawn(job.unit, job.height, job.width)
        tilecodec.encode(picture, job.container, quality=job.quality, model=job.model, memory=job.memory)
    else:
        tilecodec.decode(job.container, job.target, model=job.model, memory=job.memory)
    return {"seconds": time.perf_counter() - begin, "peak": peak_bytes()}


def in_a_process(job: Job) -> dict[str, float]:
    """Does a job in a process of its own."""
    command = [sys.executable, "-m", "bench.memory_sizes", "--job", json.dumps(asdict(job))]
    done = subprocess.run(command, cwd=BENCH.parent, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def parse_shapes(text: str) -> list[tuple[int, int]]:
    """Heights and widths of ``WIDTHxHEIGHT,...``."""
    pairs = [part.split("x") for part in text.split(",")]
    return [(int(height), int(width)) for width, height in pairs]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    from tilecodec.config import parse_bytes

    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["--job"]:
        print(json.dumps(run(Job(**json.loads(words[1])))))
        return 0
    parser = argparse.ArgumentParser(prog="python -m bench.memory_sizes", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--shapes", default=SHAPES, help=f"WIDTHxHEIGHT,... (default {SHAPES})")
    parser.add_argument("--ways", default="encode,decode", help="encode, or encode,decode (default)")
    parser.add_argument("--memory", default="2GiB", help="the budget (default 2GiB)")
    parser.add_argument("--quality", type=float, default=50)
    parser.add_argument("--model", default="default", help="name or path")
    args = parser.parse_args(argv)
    threads, args.threads = args.threads, None
    bench = start(parser, args, "memory_sizes", argv)
    shapes = [(300, 700)] if bench.smoke else parse_shapes(args.shapes)
    unit = bench.work / "unit.npy"
    np.save(unit, mosaic(bench.pictures, UNIT, UNIT))
    container, target = bench.work / "picture.zarr", bench.work / "picture.tif"
    rows: list[dict[str, Any]] = []
    for height, width in shapes:
        for way in args.ways.split(","):
            bench.note(f"{way} {width} x {height} px")
            found = in_a_process(
                Job(
                    way=way,
                    height=height,
                    width=width,
                    unit=str(unit),
                    container=str(container),
                    target=str(target),
                    memory=args.memory,
                    quality=args.quality,
                    model=args.model,
                    threads=threads,
                )
            )
            rows.append(
                {
                    "way": way,
                    "width": width,
                    "height": height,
                    "megapixels": round(height * width / MEGAPIXEL, 3),
                    "peak_gib": round(found["peak"] / 2**30, 4),
                    "seconds": round(found["seconds"], 2),
                    "mp_s": round(height * width / MEGAPIXEL / found["seconds"], 3),
                }
            )
            bench.write_csv(rows)
        shutil.rmtree(container)
        target.unlink(missing_ok=True)
    body = f"Quality {args.quality:g}, a budget of {args.memory}; pictures drawn in chunks of {CHUNK} px.\n\n"
    body += table(list(rows[0]), [list(row.values()) for row in rows])
    return bench.finish(body, _checks(rows, shapes, args.memory, parse_bytes(args.memory)))


def _checks(rows: Sequence[dict[str, Any]], shapes: Sequence[tuple[int, int]], named: str, budget: int) -> list[Check]:
    """The budget is kept, and memory does not grow with the picture."""
    checks = []
    first = REFERENCE if REFERENCE in shapes else shapes[0]
    last = max(shapes, key=lambda shape: shape[0] * shape[1])
    for way in dict.fromkeys(row["way"] for row in rows):
        peaks = {(row["height"], row["width"]): row["peak_gib"] for row in rows if row["way"] == way}
        most = max(peaks.values())
        checks.append(
            Check(
                what=f"{way}, largest peak of all",
                wanted=f"at most {named}",
                measured=f"{most:.3f} GiB",
                ok=most * 2**30 <= budget,
            )
        )
        if first != last:
            ratio = peaks[last] / peaks[first]
            checks.append(
                Check(
                    what=f"{way}, {last[1]} x {last[0]} px against {first[1]} x {first[0]} px",
                    wanted=f"at most {RATIO:g} x",
                    measured=f"{ratio:.3f} x",
                    ok=ratio <= RATIO,
                )
            )
    return checks


if __name__ == "__main__":
    sys.exit(main())
