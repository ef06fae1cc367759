"""What the pipelines add to their networks: time of encode and decode over that of their network stages alone.

The stages' inputs are recorded in one run; then the stages alone run over them, as many at a time as in the pipeline:
analysis and hyper-analysis, the integer entropy network, and the decoder from latents to pixels.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch

from bench.common import MEGAPIXEL, Check, add_arguments, mosaic, start, table

LIMITS: Final = {"decode": 1.15, "encode": 1.20}
Call = Callable[[], Any]


class Recorder:
    """Keeps the calls of a method, to be done again."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Call]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def watching(self, owner: Any, name: str, again: Callable[..., Call] | None = None) -> Iterator[None]:
        """Records the method's calls; ``again`` makes of a call's arguments and result what is done later."""
        method = getattr(owner, name)

        def recorded(*args: Any, **words: Any) -> Any:
            result = method(*args, **words)
            call = (lambda: method(*args, **words)) if again is None else again(method, args, result)
            with self._lock:
                self.calls.setdefault(name, []).append(call)
            return result

        setattr(owner, name, recorded)
        try:
            yield
        finally:
            setattr(owner, name, method)


def entropy_again(method: Callable[..., Any], args: Sequence[Any], _result: Any) -> Call:
    """The entropy network alone, no coding: it takes as long whatever the symbols are."""
    return lambda: method(args[0], lambda _step, seen: torch.zeros(seen.mean.shape, dtype=torch.int32))


def alone(calls: Sequence[Call]) -> float:
    """Seconds that calls take side by side in the pool."""
    from tilecodec.entropy.codec import POOL

    begin = time.perf_counter()
    for future in [POOL.submit(call) for call in calls]:
        future.result()
    return time.perf_counter() - begin


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    import tilecodec
    from tilecodec.entropy.model import shared_model

    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--size", type=int, default=4096, help="side of the mosaic (default 4096)")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each (default 3)")
    parser.add_argument("--quality", type=float, default=50)
    parser.add_argument("--model", default="default", help="name or path")
    args = parser.parse_args(argv)
    bench = start(parser, args, "engine", argv)
    size, runs = (512, 1) if bench.smoke else (args.size, args.runs)
    pixels, target = mosaic(bench.pictures, size, size), bench.work / "mosaic.zarr"
    model = shared_model(args.model, "auto", "auto")

    def encode() -> None:
        tilecodec.encode(pixels, target, quality=args.quality, model=args.model, overwrite=True)

    def decode() -> None:
        tilecodec.open(target, cache_bytes=0)[:, :, :]

    entropy = model.tile_codec._model
    ways: dict[str, tuple[Call, list[tuple[Any, str, Any]]]] = {
        "encode": (encode, [(model, "analyse", None), (model, "hyper_analyse", None), (entropy, "run", entropy_again)]),
        "decode": (decode, [(entropy, "run", entropy_again), (model, "reconstruct", None)]),
    }
    rows: list[dict[str, Any]] = []
    for way, (call, watched) in ways.items():
        bench.note(way)
        recorder = Recorder()
        with ExitStack() as stack:
            for watch in watched:
                stack.enter_context(recorder.watching(*watch))
            call()
        whole: list[float] = []
        stages: dict[str, list[float]] = {name: [] for name in recorder.calls}
        for _ in range(runs):  # by turns, so that the machine's moods meet both
            begin = time.perf_counter()
            call()
            whole.append(time.perf_counter() - begin)
            for name, calls in recorder.calls.items():
                stages[name].append(alone(calls))
        networks = [sum(times) for times in zip(*stages.values(), strict=True)]
        ratio = statistics.median(w / n for w, n in zip(whole, networks, strict=True))
        rows.append(
            {
                "way": way,
                "mp_s": round(size * size / MEGAPIXEL / statistics.median(whole), 3),
                "seconds": round(statistics.median(whole), 3),
                "networks_seconds": round(statistics.median(networks), 3),
                "ratio": round(ratio, 3),
                **{f"stage_{n + 1}": f"{k}: {statistics.median(v):.3f} s" for n, (k, v) in enumerate(stages.items())},
            }
        )
        rows[-1].setdefault("stage_3", "-")
    bench.write_csv(rows)
    checks = [
        Check(
            what=f"{row['way']}, time over that of its networks alone",
            wanted=f"at most {LIMITS[row['way']]:g}",
            measured=f"{row['ratio']:.3f}",
            ok=row["ratio"] <= LIMITS[row["way"]],
        )
        for row in rows
    ]
    body = f"{size} x {size} px, quality {args.quality:g}, {runs} runs by turns after one that records.\n\n"
    return bench.finish(body + table(list(rows[0]), [list(row.values()) for row in rows]), checks)


if __name__ == "__main__":
    sys.exit(main())
