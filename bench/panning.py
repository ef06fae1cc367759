"""Several threads read random regions of one open image for a while: every pixel compared, the cache watched, latency.

What they are compared with is decoded beforehand by :mod:`tilecodec.decoder.reference`, which shares no code with the
engine above single tiles.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.common import MEGAPIXEL, Check, Pixels, add_arguments, mosaic, start, table
from bench.latency import percentiles
from bench.memory import peak_bytes

SIDES: Final = (64, 1024)
"""Shortest and longest side of a region, pixels; even chances in log size."""
SAMPLE_SECONDS: Final = 0.005


@dataclass(eq=False, slots=True)
class Reads:
    """What a thread has read."""

    seconds: list[tuple[int, float]] = field(default_factory=list)
    """Level, and how long it took."""
    pixels: int = 0
    differing: list[str] = field(default_factory=list)
    """Regions whose pixels are not those expected."""


@dataclass(eq=False, slots=True)
class Held:
    """The most that was seen of what the process holds."""

    cached: int = 0
    """Bytes of decoded windows in the cache that the levels share."""
    resident: int = 0
    """Bytes of the process."""
    samples: int = 0


def pan(image: Any, expected: Sequence[Pixels], seed: Sequence[int], until: float, sides: tuple[int, int]) -> Reads:
    """Reads regions at random until a time.

    Args:
        image: open, shared with other threads.
        expected: pixels of each level, (H, W, 3).
        seed: of the places.
        until: of :func:`time.perf_counter`.
        sides: shortest and longest side of a region.
    """
    rng, reads = np.random.default_rng(seed), Reads()
    while time.perf_counter() < until:
        level = int(rng.integers(len(expected)))
        shape = expected[level].shape[:2]
        h, w = (min(int(np.exp(rng.uniform(*np.log(sides)))), side) for side in shape)
        y, x = (int(rng.integers(side - own + 1)) for side, own in zip(shape, (h, w), strict=True))
        begin = time.perf_counter()
        pixels = image.level(level)[:, y : y + h, x : x + w]
        reads.seconds.append((level, time.perf_counter() - begin))
        reads.pixels += h * w
        if not np.array_equal(pixels.transpose(1, 2, 0), expected[level][y : y + h, x : x + w]):
            reads.differing.append(f"level {level}, y {y}, x {x}, {h} x {w} px")
    return reads


@contextmanager
def watched(image: Any) -> Iterator[Held]:
    """Samples what the process holds, for as long as it is entered."""
    held, done = Held(), threading.Event()
    results = image._shared.windows._results

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            with results._lock:
                cached = results.bytes
            held.cached, held.resident = max(held.cached, cached), max(held.resident, resident_bytes())
            held.samples += 1

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield held
    finally:
        done.set()
        thread.join()


def resident_bytes() -> int:
    """This process's resident size; where the platform does not tell, the largest so far."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_bytes()
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    import tilecodec
    from tilecodec.decoder.reference import decode_reference

    parser = argparse.ArgumentParser(prog="python -m bench.panning", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--size", type=int, default=4096, help="side of the mosaic (default 4096)")
    parser.add_argument("--readers", type=int, default=8, help="threads that read (default 8)")
    parser.add_argument("--seconds", type=float, default=60, help="how long they read (default 60)")
    parser.add_argument("--cache-mib", type=int, default=16, help="bound of the cache of decoded windows (default 16)")
    parser.add_argument("--tile", type=int, default=512, help="tile side (default 512)")
    parser.add_argument("--quality", type=float, default=50)
    parser.add_argument("--model", default="default", help="name or path")
    parser.add_argument("--seed", type=int, default=0, help="of the places (default 0)")
    args = parser.parse_args(argv)
    bench = start(parser, args, "panning", argv)
    levels: dict[str, Any] = {}
    sides, limit = SIDES, args.cache_mib << 20
    if bench.smoke:
        args.size, args.seconds, args.tile, levels = 600, 2, 128, {"levels": 3}
        sides, limit = (64, 256), 1 << 20
    target = bench.work / "mosaic.zarr"
    picture = mosaic(bench.pictures, args.size, args.size)
    tilecodec.encode(picture, target, quality=args.quality, tile=args.tile, model=args.model, **levels)
    del picture
    image = tilecodec.open(target, cache_bytes=limit)
    bench.note("the reference decode")
    expected = [decode_reference(target, level) for level in range(image.levels)]
    image[:, :1, :1]

    before = resident_bytes()
    bench.note(f"{args.readers} threads for {args.seconds:g} s")
    begin = time.perf_counter()
    with watched(image) as held, ThreadPoolExecutor(args.readers) as pool:
        until = begin + args.seconds
        futures = [pool.submit(pan, image, expected, (args.seed, n), until, sides) for n in range(args.readers)]
        errors = [error for error in (future.exception() for future in futures) if error is not None]
    seconds = time.perf_counter() - begin
    reads = [future.result() for future in futures if future.exception() is None]
    differing = [region for found in reads for region in found.differing]
    for problem in (*map(repr, errors[:3]), *differing[:3]):
        bench.note(problem)
    rows = []
    for level in (*range(image.levels), None):
        taken = [s for found in reads for at, s in found.seconds if level in (at, None)]
        if taken:
            rows.append(
                {
                    "level": "all" if level is None else level,
                    "reads": len(taken),
                    "reads_s": round(len(taken) / seconds, 2),
                    **percentiles(taken),
                }
            )
    bench.write_csv(rows)
    total = sum(len(found.seconds) for found in reads)
    checks = [
        Check(what="errors", wanted="none", measured=str(len(errors)), ok=not errors, exact=True),
        Check(
            what="reads equal to the reference decoder's pixels",
            wanted="all bit for bit",
            measured=f"{total - len(differing)} of {total}",
            ok=bool(total) and not differing,
            exact=True,
        ),
        Check(
            what="bytes of decoded windows in the cache",
            wanted=f"at most {limit}",
            measured=f"{held.cached} at most, {held.samples} samples",
            ok=0 < held.cached <= limit,
            exact=True,
        ),
    ]
    megapixels = sum(found.pixels for found in reads) / MEGAPIXEL
    body = (
        f"{args.readers} threads read one open image for {seconds:.1f} s: {total / seconds:.1f} reads a second, "
        f"{megapixels / seconds:.2f} MP/s. {args.size} x {args.size} px in tiles of {args.tile} px, quality "
        f"{args.quality:g}, regions of {sides[0]} to {sides[1]} px a side on {image.levels} levels, seed {args.seed}. "
        "The times hold no comparison. Resident memory "
        f"{before / 2**20:.0f} MiB when the reads began, with the expected pixels and what the reference decoder left; "
        f"{held.resident / 2**20:.0f} MiB at most while they went on; {peak_bytes() / 2**20:.0f} MiB at most since the "
        "process began.\n\n"
    )
    return bench.finish(body + table(list(rows[0]), [list(row.values()) for row in rows]), checks)


if __name__ == "__main__":
    sys.exit(main())
