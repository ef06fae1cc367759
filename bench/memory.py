"""Peak resident memory of encode and of full decode to TIFF, each in a process of its own, for growing BigTIFFs."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from bench.common import BENCH, Check, Picture, add_arguments, mosaic, start, table

LIMIT_GIB: Final = 2.5
RATIO: Final = 1.10
TILE: Final = 512
"""Side of the source's TIFF tiles."""
UNIT: Final = 5
"""Side of the mosaic that repeats, TIFF tiles."""


def write_bigtiff(path: Path, size: int, pictures: Sequence[Picture]) -> None:
    """A tiled, deflated BigTIFF of ``size`` x ``size`` px: a mosaic repeated, written tile by tile."""
    import imagecodecs
    import tifffile

    unit = mosaic(pictures, UNIT * TILE, UNIT * TILE)
    coded = [
        [
            bytes(imagecodecs.zlib_encode(unit[y : y + TILE, x : x + TILE].tobytes()))
            for x in range(0, UNIT * TILE, TILE)
        ]
        for y in range(0, UNIT * TILE, TILE)
    ]
    across = size // TILE

    def tiles() -> Iterator[bytes]:
        for row in range(across):
            for column in range(across):
                yield coded[row % UNIT][column % UNIT]

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(
            tiles(),
            shape=(size, size, 3),
            dtype="uint8",
            tile=(TILE, TILE),
            photometric="rgb",
            compression="adobe_deflate",
        )


def peak_bytes() -> int:
    """This process's largest resident size: its own since it started, not its parent's (as ``ru_maxrss`` may be)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def child(way: str, source: Path, target: Path, options: dict[str, Any], threads: int | None) -> None:
    """Does one encode or decode and prints its peak memory as JSON."""
    import tilecodec

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    begin = time.perf_counter()
    if way == "encode":
        tilecodec.encode(source, target, **options)
    else:
        tilecodec.decode(source, target)
    print(json.dumps({"peak": peak_bytes(), "seconds": time.perf_counter() - begin}))


def measure(way: str, source: Path, target: Path, options: dict[str, Any], threads: int | None) -> tuple[float, float]:
    """Peak GiB and seconds of one encode or decode in a process of its own."""
    words = [way, str(source), str(target), json.dumps(options), json.dumps(threads)]
    command = [sys.executable, "-m", "bench.memory", "--child", *words]
    done = subprocess.run(command, cwd=BENCH.parent, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    return result["peak"] / 2**30, result["seconds"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["--child"]:
        child(words[1], Path(words[2]), Path(words[3]), json.loads(words[4]), json.loads(words[5]))
        return 0
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--sizes", default="5120,20480", help=f"sides, multiples of {TILE} (default 5120,20480)")
    parser.add_argument("--quality", type=float, default=50)
    parser.add_argument("--model", default="default", help="name or path")
    args = parser.parse_args(argv)
    threads, args.threads = args.threads, None
    bench = start(parser, args, "memory", argv)
    sizes = [TILE] if bench.smoke else [int(part) for part in args.sizes.split(",")]
    if any(size % TILE for size in sizes):
        parser.error(f"--sizes: multiples of {TILE} are needed")
    rows: list[dict[str, Any]] = []
    for size in sizes:
        source, container, out = (bench.work / f"{size}.{suffix}" for suffix in ("tif", "zarr", "out.tif"))
        bench.note(f"writing {size} x {size} px")
        write_bigtiff(source, size, bench.pictures)
        options = {"quality": args.quality, "model": args.model}
        for way, paths in (("encode", (source, container)), ("decode", (container, out))):
            bench.note(f"{way} {size} x {size} px")
            peak, seconds = measure(way, *paths, options, threads)
            rows.append({"way": way, "size": size, "peak_gib": round(peak, 4), "seconds": round(seconds, 2)})
        source.unlink()
        out.unlink()
        shutil.rmtree(container)
    bench.write_csv(rows)
    checks = []
    for way in ("encode", "decode"):
        peaks = [r["peak_gib"] for r in rows if r["way"] == way]
        limit, ratio = f"at most {LIMIT_GIB} GiB", peaks[-1] / peaks[0]
        what = f"{way}, {sizes[-1]} x {sizes[-1]} px"
        checks.append(Check(what=what, wanted=limit, measured=f"{peaks[-1]:.3f} GiB", ok=peaks[-1] <= LIMIT_GIB))
        if len(sizes) == 1:
            continue
        what += f", against {sizes[0]} x {sizes[0]} px"
        checks.append(Check(what=what, wanted=f"at most {RATIO:g} x", measured=f"{ratio:.3f} x", ok=ratio <= RATIO))
    return bench.finish(table(list(rows[0]), [list(r.values()) for r in rows]), checks)


if __name__ == "__main__":
    sys.exit(main())
