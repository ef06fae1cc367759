"""Where the time goes: milliseconds per megapixel of every stage of encode and decode, as in the paper's table 3.

Each stage's calls are timed in whole runs, on whichever thread they run. A stage's time is its own: that of stages
within it is taken off. What the stages leave of the process's CPU time is a row as well.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from bench.common import MEGAPIXEL, Check, add_arguments, mosaic, start, table

SOURCE: Final = "source read"
ANALYSIS: Final = "analysis"
HYPER: Final = "hyper-analysis"
ENTROPY: Final = "entropy network"
CODING: Final = "entropy coding (rANS)"
PYRAMID: Final = "pyramid"
PACK: Final = "pack, store"
READ: Final = "store read, checks"
BRANCHES: Final = "synthesis branches"
DIT: Final = "DiT"
VAE: Final = "VAE decoder"
BLEND: Final = "blend"
SINK: Final = "sink"
REST: Final = "rest (cutting, assembling, order)"
OTHERS: Final = "other threads (stores' I/O, TIFF compression)"
STAGES: Final = {
    "encode": (SOURCE, ANALYSIS, HYPER, ENTROPY, CODING, PYRAMID, PACK),
    "decode": (READ, ENTROPY, CODING, BRANCHES, DIT, VAE, BLEND, SINK),
}
ON_DEVICE: Final = frozenset({ANALYSIS, HYPER, BRANCHES, DIT, VAE})

Watch = tuple[Any, str, Callable[[Callable[..., Any]], Callable[..., Any]]]
"""An object, one of its functions, and what makes of the function the one that takes its place."""


class StageClock:
    """Adds up seconds and calls of stages over all threads.

    Args:
        settle: waits for what the thread has given to the device.
    """

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle
        self.cpu: dict[str, float] = defaultdict(float)
        self.wall: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._lock, self._thread = threading.Lock(), threading.local()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what is done within, but for stages within it."""
        if not hasattr(self._thread, "inner"):
            self._thread.inner = []
        inner: list[list[float]] = self._thread.inner
        settle = self._settle if name in ON_DEVICE else bool
        settle()
        inner.append([0.0, 0.0])
        begin = time.thread_time(), time.perf_counter()
        try:
            yield
        finally:
            settle()
            cpu, wall = time.thread_time() - begin[0], time.perf_counter() - begin[1]
            cpu_within, wall_within = inner.pop()
            if inner:
                inner[-1][0] += cpu
                inner[-1][1] += wall
            with self._lock:
                self.cpu[name] += cpu - cpu_within
                self.wall[name] += wall - wall_within
                self.calls[name] += 1

    def timed(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Makes functions that are timed; of a generator, every step is."""

        def make(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def call(*args: Any, **words: Any) -> Any:
                with self.stage(name):
                    return function(*args, **words)

            @functools.wraps(function)
            def steps(*args: Any, **words: Any) -> Iterator[Any]:
                coming = function(*args, **words)
                while True:
                    with self.stage(name):
                        found = next(coming, coming)
                    if found is coming:
                        return
                    yield found

            return steps if inspect.isgeneratorfunction(function) else call

        return make

    def entropy(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """The entropy network's run, which calls the coder in between."""
        coding = self.timed(CODING)
        return self.timed(ENTROPY)(lambda symbols, code_step: run(symbols, coding(code_step)))

    def submit(self, submit: Callable[..., Any]) -> Callable[..., Any]:
        """A pool's ``submit``, so that all work of its threads is timed."""
        rest = self.timed(REST)
        return lambda call, *args, **words: submit(rest(call), *args, **words)


@contextmanager
def watching(watches: Sequence[Watch]) -> Iterator[None]:
    """Puts functions in the place of others, for as long as it is entered."""
    with ExitStack() as stack:
        for owner, name, make in watches:
            kept = vars(owner).get(name)
            stack.callback(delattr, owner, name) if kept is None else stack.callback(setattr, owner, name, kept)
            setattr(owner, name, make(getattr(owner, name)))
        yield


def watches(way: str, model: Any, clock: StageClock) -> list[Watch]:
    """Where the stages of encode or decode are met.

    Args:
        way: ``encode`` or ``decode``.
        model: loaded, the one that is used.
        clock: that times them.
    """
    import tilecodec.encoder
    import tilecodec.sink
    from tilecodec.blend import RowBlender
    from tilecodec.container.store import ByteStore
    from tilecodec.decoder.engine import LevelDecoder
    from tilecodec.decoder.reader import TileReader
    from tilecodec.entropy.codec import POOL
    from tilecodec.entropy.payload import TilePayload
    from tilecodec.tiles.rolling import RollingRows

    network, codec, timed = model.network, model.tile_codec, clock.timed
    found: list[Watch] = [(POOL, "submit", clock.submit), (codec._model, "run", clock.entropy)]
    if way == "encode":
        return [
            *found,
            (tilecodec.encoder, "read_padded", timed(SOURCE)),
            (network, "analyse_levels", timed(ANALYSIS)),
            (network.codec.h_a, "forward", timed(HYPER)),
            (codec, "encode_many", timed(CODING)),
            (TilePayload, "to_bytes", timed(CODING)),
            (tilecodec.encoder, "halve", timed(PYRAMID)),
            (RollingRows, "read", timed(PYRAMID)),
            (RollingRows, "write", timed(PYRAMID)),
            (tilecodec.encoder, "pack_chunk", timed(PACK)),
            (ByteStore, "set", timed(PACK)),
        ]
    found += [
        (TileReader, "read", timed(READ)),
        (ByteStore, "get_range", timed(READ)),
        (codec, "decode_many", timed(CODING)),
        (network, "denoise", timed(BRANCHES)),
        (network, "render_levels", timed(VAE)),
        (RowBlender, "add", timed(BLEND)),
        (LevelDecoder, "blocks", timed(REST)),
        (tilecodec.sink, "write_blocks", timed(SINK)),
    ]
    if network.DiT is not None:
        found += [(network.DiT, "forward", timed(DIT)), (network.prompter, "forward", timed(DIT))]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    import tifffile

    import tilecodec
    from tilecodec.entropy.codec import POOL
    from tilecodec.entropy.model import shared_model

    parser = argparse.ArgumentParser(prog="python -m bench.stages", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--size", type=int, default=4096, help="side of the mosaic (default 4096)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each with stages timed, and as many without")
    parser.add_argument("--quality", type=float, default=50)
    parser.add_argument("--model", default="default", help="name or path")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args(argv)
    bench = start(parser, args, "stages", argv)
    size, runs = (512, 1) if bench.smoke else (args.size, args.runs)
    megapixels = size * size / MEGAPIXEL
    source, container, out = (bench.work / name for name in ("mosaic.tif", "mosaic.zarr", "out.tif"))
    pixels = mosaic(bench.pictures, size, size)
    tifffile.imwrite(source, pixels, tile=(512, 512), photometric="rgb", compression="adobe_deflate")
    options = {"model": args.model, "device": args.device, "precision": args.precision, "overwrite": True}
    levels = 2 if bench.smoke else "auto"
    model = shared_model(args.model, args.device, args.precision)

    def encode() -> None:
        tilecodec.encode(source, container, quality=args.quality, levels=levels, **options)

    def decode() -> None:
        tilecodec.decode(container, out, **options)

    rows: list[dict[str, Any]] = []
    checks: list[Check] = []
    lines: list[str] = []
    for way, call in {"encode": encode, "decode": decode}.items():
        bench.note(way)
        clock = StageClock(functools.partial(_settle, model.device))
        call()
        bare: list[float] = []
        watched: list[float] = []
        cpu = 0.0
        for _ in range(runs):  # by turns, so that the machine's moods meet both
            bare.append(_seconds(call))
            begin = time.process_time()
            with watching(watches(way, model, clock)):
                watched.append(_seconds(clock.timed(REST)(call)))
            cpu += time.process_time() - begin
        found = _rows(way, clock, cpu, megapixels * runs, on_cpu=model.device.type == "cpu")
        rows += found
        expected = [stage for stage in STAGES[way] if stage != DIT or model.network.DiT is not None]
        missing = [stage for stage in expected if not clock.calls[stage]]
        checks.append(
            Check(
                what=f"{way}, stages met",
                wanted=f"all {len(expected)}",
                measured=f"all but {', '.join(missing)}" if missing else f"all {len(expected)}",
                ok=not missing,
                exact=True,
            )
        )
        per_mp = [1000 * statistics.median(seconds) / megapixels for seconds in (bare, watched)]
        lines.append(
            f"{way}: {per_mp[0]:.1f} ms per MP from begin to end ({1000 / per_mp[0]:.2f} MP/s), {per_mp[1]:.1f} with "
            f"stages timed; {1000 * cpu / runs / megapixels:.1f} ms of CPU time per MP on {POOL.workers} threads"
        )
    bench.write_csv(rows)
    return bench.finish(_body(args, size, runs, model, lines, rows), checks)


def _rows(way: str, clock: StageClock, cpu: float, megapixels: float, *, on_cpu: bool) -> list[dict[str, Any]]:
    """One row for each stage; shares are of all CPU seconds, or on a device of the stages' seconds."""
    rows = []
    known = [stage for stage in (*STAGES[way], REST) if clock.calls[stage]]
    whole = cpu if on_cpu else sum(clock.wall[stage] for stage in known if stage != REST)
    for stage in known:
        own = clock.cpu[stage] if on_cpu else clock.wall[stage]
        rows.append(
            {
                "way": way,
                "stage": stage,
                "calls": clock.calls[stage],
                "cpu_ms_mp": round(1000 * clock.cpu[stage] / megapixels, 3),
                "wall_ms_mp": round(1000 * clock.wall[stage] / megapixels, 3),
                "share_percent": round(100 * own / whole, 2) if on_cpu or stage != REST else "-",
            }
        )
    left = cpu - sum(clock.cpu.values())
    rows.append(
        {
            "way": way,
            "stage": OTHERS,
            "calls": "-",
            "cpu_ms_mp": round(1000 * left / megapixels, 3),
            "wall_ms_mp": "-",
            "share_percent": round(100 * left / whole, 2) if on_cpu else "-",
        }
    )
    return rows


def _body(
    args: argparse.Namespace, size: int, runs: int, model: Any, lines: Sequence[str], rows: Sequence[dict[str, Any]]
) -> str:
    name = Path(args.model).name
    shares = "all CPU time" if model.device.type == "cpu" else "the stages' wall-clock time"
    body = (
        f"{size} x {size} px from TIFF to container to TIFF, quality {args.quality:g}, model {name} in "
        f"{model.precision} on {model.device.type}, {runs} runs by turns after a warm one.\n\n"
        "Times of stages are their own, without stages within them, added up over threads that run side by side, so "
        "they add up to more than the time from begin to end. *cpu_ms_mp* is CPU time of the threads that ran the "
        "stage; *wall_ms_mp* counts waiting as well: for other threads, for Python's lock, and in the last stages of a "
        f"decode for the networks. Shares are of {shares}. The encode's stages are those of all levels of the pyramid, "
        "per megapixel of the picture itself.\n\n"
    )
    if model.device.type != "cpu":
        body += (
            "A thread waits for its stream before and after each stage on the device. Streams share the device, so a "
            "stage's time counts others' work there as well; with `--threads 1` there is one stream.\n\n"
        )
    body += "\n".join(f"- {line}" for line in lines) + "\n\n"
    return body + table(list(rows[0]), [list(row.values()) for row in rows])


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _settle(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


if __name__ == "__main__":
    sys.exit(main())
