"""The integer models of the test vectors, made by integer formulas alone: the same on every machine, for ever.

``parts(name)`` gives what a model file holds: the program's header, its tensors, and the two tables. Nothing here is
trained or good at compressing; the programs use every instruction, and registers reach their bounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tilecodec.entropy.program import Program, parse_program

LOW, HIGH = -32768, 32767
STEPS: Final = range(4)
X: Final = np.arange(LOW, HIGH + 1, dtype=np.int64)
"""Every value of a register."""


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """A table of cumulative frequencies."""

    cdf: NDArray[np.int32]
    length: NDArray[np.int32]
    offset: NDArray[np.int32]


@dataclass(frozen=True, eq=False, slots=True)
class VectorModel:
    """A model, as far as entropy coding knows it."""

    name: str
    stride: int
    """Pixels per hyper-latent position."""
    header: dict[str, Any]
    tensors: dict[str, NDArray[Any]]
    z_table: Rows
    y_table: Rows
    program: Program


def numbers(seed: str, count: int) -> NDArray[np.uint64]:
    """Pseudo-random 64-bit numbers: SplitMix64 from the first eight bytes of the seed's SHA-256."""
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = np.uint64(start) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def integers(seed: str, shape: tuple[int, ...], low: int, high: int) -> NDArray[np.int64]:
    """Integers of ``low ... high``."""
    whole = numbers(seed, int(np.prod(shape))) >> np.uint64(11)
    return ((whole % np.uint64(high - low + 1)).astype(np.int64) + low).reshape(shape)


# --- lookup tables

LUTS: Final[dict[str, Callable[[NDArray[np.int64]], NDArray[np.int64]]]] = {
    "fold": lambda x: np.minimum(np.abs(x), HIGH),
    "leaky": lambda x: np.where(x >= 0, x, x >> 3),
    "smooth": lambda x: np.where(x >= 512, x, np.where(x <= -512, 0, (x + 512) ** 2 // 2048)),
    "squash": lambda x: (x * 1024) // (np.abs(x) + 2048),
    "invert": lambda x: -1 - x,
    "steps": lambda x: (x >> 9) << 9,
}


# --- tables of frequencies


def row_of(weights: NDArray[np.int64]) -> list[int]:
    """Cumulative frequencies that sum to 65536, at least 1 to a bin, in proportion to non-negative weights."""
    room = 65536 - len(weights)
    frequency = 1 + weights * room // max(int(weights.sum()), 1)
    frequency[int(np.argmax(frequency))] += 65536 - int(frequency.sum())
    return [0, *np.cumsum(frequency).tolist()]


def table(rows: list[list[int]], offsets: list[int]) -> Rows:
    """Rows of cumulative frequencies, zeros behind the shorter ones."""
    longest = max(map(len, rows))
    cdf = np.array([row + [0] * (longest - len(row)) for row in rows], np.int32)
    return Rows(cdf, np.array([len(row) for row in rows], np.int32), np.array(offsets, np.int32))


def peaked(count: int) -> Rows:
    """``count`` rows of growing width around 0, the last bin (the escape) rare."""
    rows, offsets = [], []
    for n in range(count):
        reach = n * n // 3
        i = np.arange(-reach, reach + 1, dtype=np.int64)
        rows.append(row_of(np.append((reach + 1 - np.abs(i)) ** 2, 1)))
        offsets.append(-reach + n % 3 - 1)
    return table(rows, offsets)


EXAMPLE_ROWS: Final = ([0, 16384, 49152, 65280, 65536], [0, 4096, 12288, 53248, 61440, 65536])
"""The table that ``formats/entropy.md`` explains."""


# --- programs


class Builder:
    """Collects the instructions and tensors of a program."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tensors: dict[str, NDArray[Any]] = {}
        self.code: list[list[Any]] = []

    def section(self) -> list[list[Any]]:
        """The instructions since the last call."""
        code, self.code = self.code, []
        return code

    def emit(self, op: str, inputs: str, output: str, argument: str | int | None = None) -> None:
        """An instruction; ``inputs`` are names with blanks between them."""
        self.code.append([op, inputs.split(), output, argument])
        if op == "lut":
            function = LUTS[str(argument)]
            self.tensors[f"lut.{argument}"] = np.clip(function(X), LOW, HIGH).astype(np.int16)

    def layer(self, name: str, weight: NDArray[np.int64], bias: NDArray[np.int64], shift: NDArray[np.int64]) -> None:
        """A layer's tensors."""
        self.tensors |= {
            f"{name}.weight": weight.astype(np.int8),
            f"{name}.bias": bias.astype(np.int32),
            f"{name}.shift": shift.astype(np.uint8),
        }

    def conv(self, inputs: str, output: str, name: str, shape: tuple[int, ...], op: str = "conv") -> None:
        """A convolution with random weights; shifts keep values about as large as they were."""
        seed = f"{self.name}/{name}"
        weight = integers(f"{seed}/weight", shape, -127, 127)
        typical = max(1, int(np.prod(shape[1:])) * 73 * 73)
        shift = integers(f"{seed}/shift", shape[:1], 0, 1) + (typical.bit_length() // 2)
        bias = integers(f"{seed}/bias", shape[:1], -40000, 40000)
        self.layer(name, weight, bias, shift)
        self.emit(op, inputs, output, name)

    def model(
        self, bits: tuple[int, int, int], sections: dict[str, Any], tables: tuple[Rows, Rows], rows: NDArray[np.int64]
    ) -> VectorModel:
        """The finished model.

        Args:
            bits: z_bits, base_bits, scale_bits.
            sections: hyper, steps, corrections.
            tables: of the hyper-latent and of the code.
            rows: (65536,), the row of each scale.
        """
        z_table, y_table = tables
        channels = len(z_table.length)
        header = dict(zip(("z_bits", "base_bits", "scale_bits"), bits, strict=True)) | sections
        tensors = self.tensors | {"rows": rows.astype(np.uint8)}
        tensors.setdefault("z_median", integers(f"{self.name}/z_median", (channels,), -60, 60).astype(np.int16))
        program = parse_program(header, tensors, y_channels=CHANNELS[self.name], z_channels=channels)
        return VectorModel(self.name, STRIDE[self.name], header, tensors, z_table, y_table, program)


CHANNELS: Final = {"example": 4, "plain": 16, "full": 12, "extreme": 8}
"""Code channels."""
STRIDE: Final = {"example": 32, "plain": 64, "full": 32, "extreme": 64}


def by_size(width: int, count: int) -> NDArray[np.int64]:
    """Rows of a table of ``count`` for every scale: one more for each ``width``."""
    return np.clip(X // width, 0, count - 1)


def example() -> VectorModel:
    """The model of the worked example in ``formats/entropy.md``."""
    b = Builder("example")
    zero = np.zeros(16, np.int64)
    b.layer("spread", np.arange(16).reshape(16, 1, 1, 1), zero, zero + 1)
    b.emit("conv", "z", "a", "spread")
    b.emit("shuffle", "a", "b")
    b.emit("concat", "b b", "c")
    b.emit("concat", "c c", "d")
    b.emit("shuffle", "d", "base")
    hyper = b.section()
    left = np.zeros((4, 1, 3, 3), np.int64)
    left[:, 0, 1, :2] = 1, 2
    b.layer("left", left, zero[:4] - 1, zero[:4] + 2)
    steps = []
    for _ in STEPS:
        b.emit("depthwise", "base", "mean", "left")
        b.emit("lut", "base", "scale", "fold")
        steps.append(b.section())
    b.tensors["z_median"] = np.array([3], np.int16)
    tables = table([EXAMPLE_ROWS[1]], [-2]), table(list(EXAMPLE_ROWS), [-1, -2])
    return b.model((0, 1, 0), {"hyper": hyper, "steps": steps, "corrections": []}, tables, by_size(16, 2))


def plain() -> VectorModel:
    """In the manner of the default model: 1x1 and depthwise layers, no corrections."""
    b = Builder("plain")
    b.conv("z", "a", "h.up", (64, 6, 1, 1))
    b.emit("lut", "a", "a", "leaky")
    b.emit("shuffle", "a", "a")
    b.conv("a", "b", "h.up2", (64, 16, 3, 3))
    b.emit("shuffle", "b", "b")
    b.conv("b", "c", "h.out", (16, 16, 1, 1))
    b.emit("scale", "c", "base", -3)
    hyper, steps = b.section(), []
    for k in STEPS:
        b.conv("base", "x", f"in.{k}", (24, 16, 1, 1))
        b.emit("lut", "x", "t", "leaky")
        b.conv("t", "t", f"depth.{k}", (24, 1, 3, 3), "depthwise")
        b.conv("t", "t", f"out.{k}", (24, 24, 1, 1))
        b.emit("add", "x t", "x")
        b.conv("x", "wide", f"wide.{k}", (48, 24, 1, 1))
        b.emit("lut", "wide", "wide", "smooth")
        b.emit("gate", "wide", "narrow")
        b.conv("narrow", "narrow", f"back.{k}", (24, 24, 1, 1))
        b.emit("add", "x narrow", "x")
        b.conv("x", "mean", f"mean.{k}", (16, 24, 1, 1))
        b.conv("x", "s", f"scale.{k}", (16, 24, 1, 1))
        b.emit("scale", "s", "scale", 1)
        steps.append(b.section())
    tables = peaked(6), peaked(16)
    return b.model((7, 6, 5), {"hyper": hyper, "steps": steps, "corrections": []}, tables, by_size(600, 16))


def full() -> VectorModel:
    """In the manner of the official network: 3x3 layers and corrections; and what a fast path may stumble over."""
    b = Builder("full")
    b.conv("z", "a", "h.in", (16, 5, 3, 3))
    b.emit("shuffle", "a", "a")
    b.conv("a", "a", "h.up", (48, 4, 3, 3))
    b.emit("lut", "a", "a", "smooth")
    b.emit("shuffle", "a", "base")
    hyper, steps, corrections = b.section(), [], []
    for k in STEPS:
        b.conv("base", "x", f"in.{k}.0", (20, 12, 3, 3))
        b.emit("lut", "x", "x", "smooth")
        b.conv("x", "x", f"in.{k}.1", (12, 20, 3, 3))
        if k == 0:  # a result that the next table reads
            b.conv("x", "mean", "mean.0", (12, 12, 1, 1))
            b.emit("lut", "mean", "scale", "fold")
        elif k == 1:  # one layer both as a convolution and as a depthwise one; a given register is written
            b.conv("x", "one", "one", (1, 12, 1, 1))
            b.conv("one", "base", "both", (12, 1, 3, 3))
            b.emit("depthwise", "base", "mean", "both")
            b.emit("lut", "base", "scale", "invert")
        elif k == 2:  # registers that nobody reads; a result that is what was given
            b.emit("concat", "x base", "unread")
            b.emit("lut", "x", "scale", "steps")
            b.emit("scale", "base", "mean", 0)
        else:  # a table applied twice, and a register to itself
            b.emit("add", "x x", "x")
            b.conv("x", "t", "t.3", (12, 12, 1, 1))
            b.emit("lut", "t", "mean", "leaky")
            b.emit("lut", "t", "scale", "fold")
        steps.append(b.section())
        b.emit("concat", "decoded base", "both")
        b.conv("both", "raw", f"fix.{k}", (12, 24, 3, 3))
        b.emit("lut", "raw", "correction", "squash")
        corrections.append(b.section())
    sections = {"hyper": hyper, "steps": steps, "corrections": corrections}
    return b.model((4, 9, 7), sections, (peaked(5), peaked(23)), by_size(40, 23))


def extreme() -> VectorModel:
    """Sums, shifts and registers at their bounds."""
    b = Builder("extreme")
    b.tensors["z_median"] = np.array([LOW, HIGH], np.int16)
    b.conv("z", "z", "one", (2, 1, 3, 3), "depthwise")
    b.emit("scale", "z", "wide", -15)
    for _ in range(8):
        b.emit("concat", "wide wide", "wide")
    inputs = 512
    peak = np.zeros((32, inputs, 1, 1), np.int64)
    peak[:16, :509] = -128
    peak[16:, 3:] = np.where(np.arange(inputs - 3) % 2 == 0, 127, -128)[:, None, None]
    shift = np.tile([16, 14, 8, 0], 8)
    room = 2**31 - 1 - 32896 * np.abs(peak).sum((1, 2, 3)) - ((1 << shift) >> 1)
    b.layer("peak", peak, room * np.tile([1, -1], 16), shift)
    b.emit("conv", "wide", "a", "peak")
    b.emit("shuffle", "a", "a")
    for _ in range(2):
        b.emit("concat", "a a", "a")
    b.emit("shuffle", "a", "base")
    hyper, steps = b.section(), []
    for k in STEPS:
        largest = 2**31 - 1 - 32896 * 128 - 2**29
        b.layer(f"far.{k}", np.full((8, 1, 3, 3), 0), np.tile([largest, -largest], 4), np.full(8, 30))
        b.tensors[f"far.{k}.weight"][:, 0, k // 2 * 2, k % 2 * 2] = -128
        b.emit("depthwise", "base", "far", f"far.{k}")
        b.emit("scale", "base", "big", -(k + 1))
        b.emit("add", "far big", "mean")
        b.emit("concat", "big base", "wide")
        b.emit("gate", "wide", "sum")
        b.emit("scale", "sum", "scale", 15 if k == 3 else 2 * k + 1)
        steps.append(b.section())
    sections = {"hyper": hyper, "steps": steps, "corrections": []}
    return b.model((14, 14, 0), sections, (peaked(2), peaked(31)), by_size(64, 31))


MODELS: Final[dict[str, Callable[[], VectorModel]]] = {
    "example": example,
    "plain": plain,
    "full": full,
    "extreme": extreme,
}
