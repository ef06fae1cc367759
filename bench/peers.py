"""Speed beside JPEG 2000, JPEG XL, AVIF, WebP and JPEG at about the same rate, a mosaic's tiles each coded alone.

A thread for each core codes the peers' tiles, one thread to a tile. The peers' settings are those that come nearest to
the bits per pixel of tilecodec's container.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np

from bench.common import MEGAPIXEL, Check, Pixels, add_arguments, container_bytes, mosaic, start, table
from tilecodec.evaluation.anchors import CODECS, Codec

TILE: Final = 512
SAMPLES: Final = 12
"""Tiles that settings are tried on, evenly spread."""
LEAST: Final = {"avif": 1.5, "jpegxl": 1.5}
"""Tilecodec's encode speed over theirs, at least."""
OURS: Final = "tilecodec"
PYRAMID: Final = "tilecodec, with its pyramid"
ENCODE: Final[dict[str, Callable[[Pixels, float], Any]]] = {
    "jpeg2000": lambda a, q: imagecodecs.jpeg2k_encode(a, q, codecformat="jp2", reversible=False, numthreads=1),
    "webp": lambda a, q: imagecodecs.webp_encode(a, int(q), lossless=False, method=6, numthreads=1),
    "avif": lambda a, q: imagecodecs.avif_encode(a, int(q), speed=6, pixelformat="444", codec="aom", numthreads=1),
    "jpegxl": lambda a, q: imagecodecs.jpegxl_encode(a, effort=7, distance=q, numthreads=1),
}
"""As in :mod:`tilecodec.evaluation.anchors`, on one thread; libjpeg-turbo has no more."""
DECODE: Final[dict[str, Callable[[bytes], Pixels]]] = {
    "jpeg2000": lambda data: imagecodecs.jpeg2k_decode(data, numthreads=1),
    "avif": lambda data: imagecodecs.avif_decode(data, numthreads=1),
    "jpegxl": lambda data: imagecodecs.jpegxl_decode(data, numthreads=1),
}


def on_one_thread(codec: Codec) -> Codec:
    """The codec, using one thread."""
    encode, decode = ENCODE.get(codec.name, codec.encode), DECODE.get(codec.name, codec.decode)
    return replace(codec, encode=encode, decode=decode)


def nearest_setting(codec: Codec, tiles: Sequence[Pixels], bpp: float) -> float:
    """The setting that brings tiles nearest (in log rate) to a rate, by bisection.

    Args:
        codec: settings in order of growing size.
        tiles: (H, W, 3) uint8.
        bpp: bits per pixel of them all.
    """
    area = sum(tile[..., 0].size for tile in tiles)
    known: dict[int, float] = {}

    def rate(index: int) -> float:
        if index not in known:
            known[index] = 8 * sum(len(codec.encode(tile, codec.settings[index])) for tile in tiles) / area
        return known[index]

    low, high = 0, len(codec.settings) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if rate(middle) < bpp else (low, middle)
    return codec.settings[min((low, high), key=lambda index: abs(math.log(rate(index) / bpp)))]


Ways = dict[str, Callable[[], object]]
"""``encode`` and ``decode``."""


@dataclass(eq=False, slots=True)
class Times:
    """Seconds of each run."""

    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    """CPU time of the process."""

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(self.walls)

    @property
    def cpu(self) -> float:
        """The median of CPU seconds."""
        return statistics.median(self.cpus)


class Peer:
    """A codec that codes a picture's tiles, as many at a time as there are threads.

    Args:
        codec: one that uses one thread.
        setting: its.
        pixels: (H, W, 3) uint8.
        pool: of the threads.
    """

    def __init__(self, codec: Codec, setting: float, pixels: Pixels, pool: ThreadPoolExecutor) -> None:
        self.setting = f"{codec.setting}={setting:g}"
        self._codec, self._value, self._pixels, self._pool = codec, setting, pixels, pool
        self._places = _places(pixels)
        self._coded: list[bytes] = []

    @property
    def size(self) -> int:
        """Bytes of all tiles, once encoded."""
        return sum(map(len, self._coded))

    def encode(self) -> None:
        """Codes all tiles."""
        self._coded = list(self._pool.map(self._encoded, self._places))

    def decode(self) -> None:
        """Decodes all tiles into one picture."""
        out = np.empty_like(self._pixels)

        def paint(place: tuple[slice, slice], data: bytes) -> None:
            out[place] = self._codec.decode(data)

        list(self._pool.map(paint, self._places, self._coded))

    def _encoded(self, place: tuple[slice, slice]) -> bytes:
        return self._codec.encode(np.ascontiguousarray(self._pixels[place]), self._value)


def _places(pixels: Pixels) -> list[tuple[slice, slice]]:
    """The tiles' rows and columns."""
    height, width = pixels.shape[:2]
    return [
        (slice(y, min(y + TILE, height)), slice(x, min(x + TILE, width)))
        for y in range(0, height, TILE)
        for x in range(0, width, TILE)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    import tilecodec

    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--size", type=int, default=4096, help="side of the mosaic (default 4096)")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each, by turns (default 3)")
    parser.add_argument("--quality", type=float, default=50, help="tilecodec's (default 50)")
    parser.add_argument("--model", default="default", help="name or path")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    bench = start(parser, args, "peers", argv)
    size, runs = (512, 1) if bench.smoke else (args.size, args.runs)
    pixels = mosaic(bench.pictures, size, size)
    options = {"quality": args.quality, "model": args.model, "device": args.device, "tile": TILE, "overwrite": True}

    def ours(name: str, levels: int | str) -> Ways:
        target = bench.work / name
        return {
            "encode": lambda: tilecodec.encode(pixels, target, levels=levels, **options),
            "decode": lambda: tilecodec.open(target, device=args.device, cache_bytes=0)[:, :, :],
        }

    ways = {OURS: ours("flat.zarr", 1), PYRAMID: ours("pyramid.zarr", "auto")}
    for calls in ways.values():
        calls["encode"]()
    sizes = {OURS: container_bytes(bench.work / "flat.zarr"), PYRAMID: container_bytes(bench.work / "pyramid.zarr")}
    bpp = 8 * sizes[OURS] / (size * size)
    threads = args.threads or os.cpu_count() or 1
    rows = []
    with ThreadPoolExecutor(threads) as pool:
        peers: dict[str, Peer] = {}
        places = _places(pixels)
        samples = [np.ascontiguousarray(pixels[p]) for p in places[:: max(1, len(places) // SAMPLES)]]
        for codec in map(on_one_thread, CODECS):
            bench.note(f"a setting of {codec.title}")
            peer = Peer(codec, nearest_setting(codec, samples, bpp), pixels, pool)
            peers[codec.name], ways[codec.name] = peer, {"encode": peer.encode, "decode": peer.decode}
        times = _by_turns(ways, runs)
        sizes |= {name: peer.size for name, peer in peers.items()}
    settings = {name: peer.setting for name, peer in peers.items()}
    titles = {codec.name: codec.title for codec in CODECS}
    megapixels = size * size / MEGAPIXEL
    for name, timed in times.items():
        rows.append(
            {
                "codec": titles.get(name, name),
                "setting": settings.get(name, f"quality={args.quality:g}"),
                "bytes": sizes[name],
                "bpp": round(8 * sizes[name] / (size * size), 4),
                "encode_mp_s": round(megapixels / timed["encode"].seconds, 3),
                "decode_mp_s": round(megapixels / timed["decode"].seconds, 3),
                "encode_cpu_ms_mp": round(1000 * timed["encode"].cpu / megapixels, 2),
                "decode_cpu_ms_mp": round(1000 * timed["decode"].cpu / megapixels, 2),
                "tilecodec_encodes_times": round(timed["encode"].seconds / times[OURS]["encode"].seconds, 3),
                "tilecodec_decodes_times": round(timed["decode"].seconds / times[OURS]["decode"].seconds, 3),
            }
        )
    bench.write_csv(rows)
    checks = []
    for name, least in LEAST.items():
        ratio = times[name]["encode"].seconds / times[OURS]["encode"].seconds
        checks.append(
            Check(
                what=f"encode, MP/s over those of {titles[name]}",
                wanted=f"at least {least:g} x",
                measured=f"{ratio:.2f} x",
                ok=ratio >= least,
            )
        )
    body = (
        f"{size} x {size} px from memory in tiles of {TILE} px, {threads} threads, medians of {runs} runs by turns "
        "after a warm one.\n\n"
        f"Tilecodec is at quality {args.quality:g}, model {Path(args.model).name}, and writes a container, whose bytes "
        "are whole. The others' tiles stay in memory, and their bytes are those of the tiles. Their settings are "
        f"chosen on {len(samples)} of the tiles; of a codec that does not go as low, its lowest. CPU time is of the "
        "whole process. The last two columns say how many times as fast as the row's codec tilecodec is, without a "
        "pyramid, which the others have none of.\n\n"
        f"{'; '.join(f'{codec.title}: {codec.fixed}' for codec in CODECS)}.\n\n"
    )
    return bench.finish(body + table(list(rows[0]), [list(row.values()) for row in rows]), checks)


def _by_turns(ways: dict[str, Ways], runs: int) -> dict[str, dict[str, Times]]:
    """Times of each encode and decode after an untimed run."""
    times = {name: {way: Times() for way in calls} for name, calls in ways.items()}
    for run in range(runs + 1):
        for name, calls in ways.items():
            for way, call in calls.items():
                begin, cpu = time.perf_counter(), time.process_time()
                call()
                if run:
                    times[name][way].walls.append(time.perf_counter() - begin)
                    times[name][way].cpus.append(time.process_time() - cpu)
    return times


if __name__ == "__main__":
    sys.exit(main())
