"""Symbols under every setting: threads, batch, oneDNN, arithmetic and the oracle; entropy decode time of each.

Tiles are cut from the pictures at random places, in random sizes and qualities, analysed by the model and coded. Each
is then decoded by the numpy oracle and under nine settings in which any two values of arithmetic, threads and batch
meet, and the symbols are compared. Every tenth group of tiles is decoded under all settings with oneDNN, every fiftieth
also under those without, where 8-bit products are slow.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from bench.common import MEGAPIXEL, Bench, Check, Pixels, add_arguments, start, table
from tilecodec.entropy.codec import TileCodec
from tilecodec.entropy.integer import Arithmetic
from tilecodec.entropy.model import CodecModel, load_model
from tilecodec.entropy.oracle import decode_payload
from tilecodec.entropy.parameters import CodeStep, DecodedCode, EntropyModel
from tilecodec.entropy.payload import parse_payload

GROUP: Final = 8
"""Tiles of one size, decoded together at most."""
ARITHMETICS: Final[tuple[Arithmetic, ...]] = ("int8", "float32", "float64")
THREADS: Final = (1, 2, 4)
BATCHES: Final = (1, 3, 8)
SELDOM: Final = 10
"""One group of tiles in this many sees all settings with oneDNN, the others the square."""
RARE: Final = 50
"""One in this many sees those without."""

Symbols = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class Setting:
    """One way of decoding."""

    arithmetic: Arithmetic
    threads: int
    mkldnn: bool
    batch: int

    @property
    def in_square(self) -> bool:
        """Whether it is one of the nine in which any two values meet: a Latin square."""
        places = ARITHMETICS.index(self.arithmetic), THREADS.index(self.threads), BATCHES.index(self.batch)
        return self.mkldnn and sum(places) % 3 == 0


@dataclass(slots=True)
class Tally:
    """What a setting has decoded."""

    tiles: int = 0
    pixels: int = 0
    differing: int = 0
    wall: float = 0.0
    cpu: float = 0.0


class Recorder(EntropyModel):
    """Keeps the symbols that pass through it, which a tile codec does not give away."""

    last: Symbols

    def run(self, z_symbols: npt.NDArray[np.int32], code_step: CodeStep) -> DecodedCode:
        code = super().run(z_symbols, code_step)
        self.last = z_symbols, code.symbols().numpy()
        return code

    def symbols(self, n: int) -> Symbols:
        """Of tile ``n`` of the last batch."""
        z, y = self.last
        return z[n], y[n]


@dataclass(frozen=True, eq=False)
class Codec:
    """A tile codec of one arithmetic."""

    model: CodecModel
    arithmetic: Arithmetic
    recorder: Recorder = field(init=False)
    tiles: TileCodec = field(init=False)

    def __post_init__(self) -> None:
        program = self.model.program
        recorder = Recorder(program, device=torch.device("cpu"), arithmetic=self.arithmetic)
        codec = TileCodec(
            recorder, self.model.tables, program.z_median, self.model.config.y_stride, torch.nn.Identity()
        )
        object.__setattr__(self, "recorder", recorder)
        object.__setattr__(self, "tiles", codec)


@contextmanager
def torch_settings(threads: int, mkldnn: bool) -> Iterator[None]:
    """Threads of torch, and whether it may use oneDNN."""
    before = torch.get_num_threads()
    enabled = torch.backends.mkldnn.set_flags(_enabled=mkldnn)[0]
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.backends.mkldnn.set_flags(_enabled=enabled)


def cut(rng: np.random.Generator, pictures: Sequence[Pixels], model: CodecModel, side: int) -> list[tuple[Any, ...]]:
    """A group of tiles of one size: code, hyper-latent, quality, true height and width of each."""
    stride, halo = model.config.z_stride, model.config.z_stride
    rows, cols = (int(n) * stride for n in rng.integers(1, side // stride + 1, 2))
    short = [int(n) for n in rng.integers(0, stride, 2)] if rng.random() < 0.5 else [0, 0]
    tiles = []
    for _ in range(GROUP):
        picture = pictures[rng.integers(len(pictures))]
        height, width = rows + 2 * halo, cols + 2 * halo
        spare = max(0, height - picture.shape[0]), max(0, width - picture.shape[1])
        padded = np.pad(picture, ((0, spare[0]), (0, spare[1]), (0, 0)), mode="symmetric")
        y0, x0 = (int(rng.integers(n - m + 1)) for n, m in zip(padded.shape[:2], (height, width), strict=True))
        window = np.ascontiguousarray(padded[y0 : y0 + height, x0 : x0 + width])
        quality = float(rng.integers(1, 101))
        core = slice(halo, halo + rows), slice(halo, halo + cols)
        y = model.analyse(window, core, quality)
        (z,) = model.hyper_analyse([y])
        tiles.append((y, z, quality, rows - short[0], cols - short[1]))
    return tiles


def alike(a: Symbols, b: Symbols) -> bool:
    """Whether the symbols are equal."""
    return np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])


def decode(codec: Codec, payloads: list[bytes], wanted: list[Symbols], setting: Setting, tally: Tally) -> None:
    """Decodes a group under a setting and counts what differs."""
    parsed = [parse_payload(data, f"tile {n}") for n, data in enumerate(payloads)]
    for begin in range(0, len(parsed), setting.batch):
        part = parsed[begin : begin + setting.batch]
        wall, cpu = time.perf_counter(), time.process_time()
        found = codec.tiles.decode_many(part, [f"tile {begin + n}" for n in range(len(part))])
        tally.wall += time.perf_counter() - wall
        tally.cpu += time.process_time() - cpu
        whole = not any(isinstance(f, Exception) for f in found)
        for n in range(len(part)):
            tally.tiles += 1
            tally.pixels += part[n].height * part[n].width
            tally.differing += not (whole and alike(codec.recorder.symbols(n), wanted[begin + n]))


def run(bench: Bench, args: argparse.Namespace) -> tuple[dict[Setting, Tally], Tally, int]:
    """The matrix: a tally for each setting, the oracle's, and tiles whose bytes depend on the encoder's arithmetic."""
    model = load_model(args.model, device="cpu")
    codecs = {a: Codec(model, a) for a in ARITHMETICS}
    threads, batches = (THREADS[:2], BATCHES[1:]) if bench.smoke else (THREADS, BATCHES)
    tallies = {Setting(*s): Tally() for s in itertools.product(ARITHMETICS, threads, (True, False), batches)}
    rng = np.random.default_rng(args.seed)
    pictures = [p.pixels() for p in bench.pictures]
    oracle, other_bytes = Tally(), 0
    for group in range(-(-args.tiles // GROUP)):
        if group % 10 == 0:
            bench.note(f"tile {group * GROUP} of {args.tiles}")
        with torch_settings(1, True):
            tiles = cut(rng, pictures, model, args.tile)
            coded = {
                a: [c.tiles.encode(y, z, quality=q, height=h, width=w).to_bytes() for y, z, q, h, w in tiles]
                for a, c in codecs.items()
            }
            payloads = coded["float64"]
            other_bytes += sum(len({coded[a][n] for a in ARITHMETICS}) > 1 for n in range(GROUP))
            wanted = []
            for data, (_, _, _, h, w) in zip(payloads, tiles, strict=True):
                wall, cpu = time.perf_counter(), time.process_time()
                stride = model.config.z_stride
                wanted.append(decode_payload(data, model.program, model.tables.z, model.tables.y, stride, size=(h, w)))
                oracle.wall += time.perf_counter() - wall
                oracle.cpu += time.process_time() - cpu
                oracle.tiles += 1
                oracle.pixels += h * w
        for setting, tally in tallies.items():
            if group % (SELDOM if setting.mkldnn else RARE) and not setting.in_square:
                continue
            with torch_settings(setting.threads, setting.mkldnn):
                if group == 0:  # first calls prepare; they are not timed
                    decode(codecs[setting.arithmetic], payloads, wanted, setting, Tally())
                decode(codecs[setting.arithmetic], payloads, wanted, setting, tally)
    return tallies, oracle, other_bytes


def row(names: dict[str, object], tally: Tally) -> dict[str, object]:
    """A line of the table."""
    megapixels = tally.pixels / MEGAPIXEL
    return names | {
        "tiles": tally.tiles,
        "differing": tally.differing,
        "wall_ms_per_mp": round(1000 * tally.wall / megapixels, 2),
        "cpu_ms_per_mp": round(1000 * tally.cpu / megapixels, 2),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.entropy_matrix", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--tiles", type=int, default=2000, help="number of tiles (default 2000)")
    parser.add_argument("--tile", type=int, default=512, help="largest side of a tile, pixels (default 512)")
    parser.add_argument("--seed", type=int, default=0, help="of places, sizes and qualities (default 0)")
    parser.add_argument("--model", default="default", help="name or path")
    args = parser.parse_args(argv)
    bench = start(parser, args, "entropy_matrix", argv)
    if bench.smoke:
        args.tiles, args.tile = GROUP, 128
    tallies, oracle, other_bytes = run(bench, args)
    rows = [
        row({"arithmetic": s.arithmetic, "threads": s.threads, "onednn": s.mkldnn, "batch": s.batch}, tally)
        for s, tally in tallies.items()
    ]
    rows.append(row({"arithmetic": "oracle", "threads": 1, "onednn": False, "batch": 1}, oracle))
    differing = sum(t.differing for t in tallies.values())
    decoded = sum(t.tiles for t in tallies.values())
    checks = [
        Check(
            what=f"tiles decoded to other symbols than the oracle's, of {decoded} decoded in {len(tallies)} settings",
            wanted="0",
            measured=str(differing),
            ok=differing == 0,
            exact=True,
        ),
        Check(
            what=f"payloads that depend on the encoder's arithmetic, of {oracle.tiles}",
            wanted="0",
            measured=str(other_bytes),
            ok=other_bytes == 0,
            exact=True,
        ),
        Check(what="different tiles", wanted="at least 2000", measured=str(oracle.tiles), ok=oracle.tiles >= 2000),
    ]
    bench.write_csv(rows)
    body = (
        f"{oracle.tiles} tiles of up to {args.tile} px, {oracle.pixels / MEGAPIXEL:.1f} MP, cut from "
        f"{len(bench.pictures)} pictures at random places, sizes and qualities. Times are those of entropy decoding "
        "alone, payload to symbols, per megapixel of picture; `threads` are torch's.\n\n"
        + table(list(rows[0]), [list(r.values()) for r in rows])
    )
    return bench.finish(body, checks)


if __name__ == "__main__":
    sys.exit(main())
