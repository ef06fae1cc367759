"""Encode and decode in MP/s against threads, memory budgets and tile sizes; each in a process of its own, warm."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.common import BENCH, MEGAPIXEL, Bench, Check, add_arguments, mosaic, start, table
from bench.memory import peak_bytes

TILES: Final = (256, 512, 1024)
TILE: Final = 512
BUDGETS: Final = ("1GiB", "1.5GiB", "2GiB", "4GiB")
THREADED: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What one process does: one untimed run and some timed ones, of one way and setting."""

    way: str
    """``encode`` or ``decode``."""
    vary: str
    """What differs from the plain setting."""
    value: str
    threads: int
    source: str
    """The picture as ``.npy`` (H, W, 3)."""
    target: str
    """The container."""
    runs: int
    options: dict[str, Any] = field(default_factory=dict)
    """Of the call."""


def run(job: Job) -> dict[str, Any]:
    """Does a job in this process: seconds of the runs and peak bytes; or why the setting was refused."""
    import torch

    import tilecodec

    torch.set_num_threads(job.threads)
    picture = np.load(job.source) if job.way == "encode" else None

    def once() -> None:
        if picture is not None:
            tilecodec.encode(picture, job.target, overwrite=True, **job.options)
        else:
            tilecodec.open(job.target, cache_bytes=0, **job.options)[:, :, :]

    seconds = []
    try:
        for _ in range(job.runs + 1):
            begin = time.perf_counter()
            once()
            seconds.append(time.perf_counter() - begin)
    except tilecodec.errors.NotEnoughMemoryError as error:
        return {"refused": str(error)}
    return {"seconds": seconds[1:], "peak": peak_bytes()}


def in_a_process(job: Job) -> dict[str, Any]:
    """Does a job in a process of its own, whose libraries have as many threads from the start."""
    command = [sys.executable, "-m", "bench.sweep", "--job", json.dumps(asdict(job))]
    environment = os.environ | dict.fromkeys(THREADED, str(job.threads))
    done = subprocess.run(command, cwd=BENCH.parent, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4 ... and all cores."""
    return sorted({1 << n for n in range(cores.bit_length()) if 1 << n <= cores} | {cores})


def settings(args: argparse.Namespace) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """What is varied, its value, the threads and the options; the first is the plain setting."""
    counts = [int(part) for part in args.thread_counts.split(",")]
    most = max(counts)
    for count in sorted(counts, reverse=True):
        yield "threads", str(count), count, {}
    for tile in (int(part) for part in args.tiles.split(",")):
        if tile != TILE:
            yield "tile", str(tile), most, {"tile": tile}
    for budget in args.budgets.split(","):
        yield "memory", budget, most, {"memory": budget}
    for also in args.also:
        name, _, values = also.partition("=")
        for value in values.split(","):
            yield name, value, most, {name: int(value) if value.isdecimal() else value}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["--job"]:
        print(json.dumps(run(Job(**json.loads(words[1])))))
        return 0
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--size", type=int, default=4096, help="side of the mosaic (default 4096)")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each (default 3)")
    counts = ",".join(map(str, thread_counts(cores)))
    parser.add_argument("--thread-counts", default=counts, help=f"default {counts}; the rest runs on the most of them")
    parser.add_argument("--tiles", default=",".join(map(str, TILES)), help="tile sides (default 256,512,1024)")
    parser.add_argument("--budgets", default=",".join(BUDGETS), help=f"of memory (default {','.join(BUDGETS)})")
    parser.add_argument(
        "--also", action="append", default=[], metavar="NAME=A,B", help="another option of encode, open or both, varied"
    )
    parser.add_argument("--quality", type=float, default=50)
    parser.add_argument("--model", default="default", help="name or path")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    args.threads = None
    bench = start(parser, args, "sweep", argv)
    if bench.smoke:
        args.size, args.runs, args.thread_counts, args.tiles, args.budgets = 512, 1, "1", "512", "4GiB"
    source = bench.work / "mosaic.npy"
    np.save(source, mosaic(bench.pictures, args.size, args.size))
    rows = [row for setting in settings(args) for row in _measured(bench, args, source, setting)]
    plain = {row["way"]: row["mp_s"] for row in rows[:2]}
    for row in rows:
        row["of_plain"] = round(row["mp_s"] / plain[row["way"]], 3) if row["mp_s"] != "-" else "-"
    bench.write_csv(rows)
    body = (
        f"{args.size} x {args.size} px from memory and back, quality {args.quality:g}, model {Path(args.model).name}, "
        f"medians of {args.runs} runs after a warm one; every row is a process of its own. The plain setting is the "
        f"first: tiles of {TILE} px, no memory budget, {rows[0]['value']} threads. Of a budget that is refused, there "
        "are no numbers. A decode's peak counts the array that is returned, "
        f"{3 * args.size**2 / 2**20:.0f} MiB, which the budget does not.\n\n"
    )
    return bench.finish(body + table(list(rows[0]), [list(row.values()) for row in rows]), _checks(rows, args.size))


def _measured(
    bench: Bench, args: argparse.Namespace, source: Path, setting: tuple[str, str, int, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A row for encode and one for decode."""
    import tilecodec
    from tilecodec.config import DecodeOptions, EncodeOptions

    vary, value, threads, options = setting
    target = bench.work / "mosaic.zarr"
    own = {"encode": {f.name for f in fields(EncodeOptions)}, "decode": {f.name for f in fields(DecodeOptions)}}
    if not own["encode"] | own["decode"] >= options.keys():
        raise SystemExit(f"--also: neither encode nor open has an option {vary}")
    common = {"quality": args.quality, "model": args.model, "device": args.device}
    for way in ("encode", "decode"):
        bench.note(f"{way}, {vary} {value}")
        given = {name: v for name, v in (common | options).items() if name in own[way]}
        job = Job(
            way=way,
            vary=vary,
            value=value,
            threads=threads,
            source=str(source),
            target=str(target),
            runs=args.runs,
            options=given,
        )
        found = in_a_process(job)
        if "refused" in found:
            bench.note(found["refused"])
            if way == "encode":  # the decode needs a container
                without = {name: v for name, v in given.items() if name != "memory"}
                tilecodec.encode(np.load(source), target, overwrite=True, **without)
        rates = [args.size**2 / MEGAPIXEL / s for s in found.get("seconds", ())]
        yield {
            "way": way,
            "vary": vary,
            "value": value,
            "threads": threads,
            "mp_s": round(statistics.median(rates), 3) if rates else "-",
            "min_mp_s": round(min(rates), 3) if rates else "-",
            "max_mp_s": round(max(rates), 3) if rates else "-",
            "peak_gib": round(found["peak"] / 2**30, 3) if rates else "-",
        }
    shutil.rmtree(target)


def _checks(rows: Sequence[dict[str, Any]], size: int) -> list[Check]:
    """Budgets are kept."""
    from tilecodec.config import parse_budget

    checks = []
    for row in rows:
        budget = parse_budget(row["value"]) if row["vary"] == "memory" else None
        if budget is None or row["mp_s"] == "-":
            continue
        returned = 3 * size**2 if row["way"] == "decode" else 0
        peak = row["peak_gib"] - returned / 2**30
        checks.append(
            Check(
                what=f"{row['way']} with {row['value']}, peak" + (", the returned array not counted" * bool(returned)),
                wanted=f"at most {row['value']}",
                measured=f"{peak:.3f} GiB",
                ok=peak * 2**30 <= budget,
            )
        )
    return checks


if __name__ == "__main__":
    sys.exit(main())
