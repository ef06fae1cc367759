"""A second decoder of tile payloads, in numpy and plain integers: slow, short, in the order of ``formats/``.

It shares no arithmetic with the fast path: its own range decoder, its own interpreter of the integer program. Tests
hold the two against each other. Shape legend: C channels, h w positions. Registers are int64 (C, h, w).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable
from typing import Final, Protocol

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tilecodec.entropy.program import Instruction, Layer, Program
from tilecodec.errors import CorruptTileError

Register = NDArray[np.int64]
Symbols = NDArray[np.int32]

STEP_CELLS: Final = ("ABCD", "DCBA", "CDAB", "BADC")
"""For each step, the place in every 2x2 cell that it codes, of channel groups 0 to 3."""
LARGEST: Final = (1 << 24) - 1
"""Largest magnitude of a symbol."""


class Table(Protocol):
    """Rows of integer cumulative frequencies."""

    @property
    def cdf(self) -> NDArray[np.int32]:
        """(rows, longest)."""

    @property
    def length(self) -> NDArray[np.int32]:
        """(rows,)."""

    @property
    def offset(self) -> NDArray[np.int32]:
        """(rows,)."""


CodeStep = Callable[[int, NDArray[np.int64], NDArray[np.int64]], Symbols]
"""``(step, means, rows) -> symbols`` of the places that a step codes, (n,) each, in coding order."""


def decode_payload(
    data: bytes,
    program: Program,
    z_table: Table,
    y_table: Table,
    stride: int,
    *,
    size: tuple[int, int] | None = None,
    where: str = "payload",
) -> tuple[Symbols, Symbols]:
    """The symbols of a tile.

    Args:
        data: the payload's bytes.
        program: the model's integer program.
        z_table: table of the hyper-latent, a row per channel.
        y_table: table of the code.
        stride: pixels per hyper-latent position.
        size: height and width that the tile's place has; None: whatever the payload states.
        where: named in errors.

    Returns:
        The hyper-latent's symbols (Cz, h/4, w/4) and the code's (Cy, h, w), int32.

    Raises:
        CorruptTileError: the bytes or the symbols fail a check.
    """

    def refuse(problem: str, reason: str) -> CorruptTileError:
        return CorruptTileError(problem, where=where, reason=reason)

    if len(data) < 16 or len(data) % 4:
        raise refuse("the payload has an impossible length", "payload-length")
    version, flags, height, width, quality, check, crc = struct.unpack_from("<BBHHHII", data)
    if google_crc32c.value(data[:12] + data[16:]) != crc:
        raise refuse("the payload's bytes fail their CRC32C", "payload-crc")
    if version != 1 or flags != 0:
        raise refuse("the payload is of another version", "payload-version")
    if size is not None and (height, width) != size:
        raise refuse("the payload is of another size than its place", "payload-size")
    if not 256 <= quality <= 25600:
        raise refuse("the payload states an impossible quality", "payload-quality")
    words = list(struct.unpack(f"<{len(data) // 4 - 4}I", data[16:]))
    if words and words[-1] == 0:
        raise refuse("the entropy-coded stream ends in a zero word", "stream-form")

    stream = Stream(words)
    z_shape = (len(program.z_median), -(-height // stride), -(-width // stride))
    z_rows = np.repeat(np.arange(z_shape[0]), z_shape[1] * z_shape[2])
    z_symbols = stream.pop_group(z_rows, z_table).reshape(z_shape)
    y_symbols = evaluate(program, z_symbols, lambda _step, _means, rows: stream.pop_group(rows, y_table))

    coded = z_symbols.astype("<i4").tobytes() + y_symbols.astype("<i4").tobytes()
    if google_crc32c.value(coded) != check:
        raise refuse("the decoded symbols differ from those that were coded", "symbol-check")
    if stream.state != 0 or stream.words:
        raise refuse("the entropy-coded stream holds more than its symbols", "stream-rest")
    return z_symbols, y_symbols


# --- the stream


class Stream:
    """A stack of 32-bit words and a 64-bit state.

    Args:
        words: the stream; the last is the top.
    """

    def __init__(self, words: list[int]) -> None:
        self.words = list(words)
        self.state = 0
        while self.state < 1 << 32 and self.words:
            self.state = self.state << 32 | self.words.pop()

    def pop_bin(self, cumulative: list[int]) -> int:
        """The next bin.

        Args:
            cumulative: of one row, multiplied by 256.
        """
        q = self.state & 0xFFFFFF
        i = bisect_right(cumulative, q) - 1
        self._advance(q - cumulative[i], cumulative[i + 1] - cumulative[i])
        return i

    def pop_half(self) -> int:
        """A uniform 16-bit value."""
        q = self.state & 0xFFFFFF
        self._advance(q & 0xFF, 256)
        return q >> 8

    def _advance(self, rest: int, frequency: int) -> None:
        self.state = (self.state >> 24) * frequency + rest
        if self.state < 1 << 32 and self.words:
            self.state = self.state << 32 | self.words.pop()

    def pop_group(self, rows: NDArray[np.int64], table: Table) -> Symbols:
        """The next group's symbols.

        Args:
            rows: the table row of each, (n,).
            table: the table.
        """
        symbols = np.zeros(len(rows), np.int32)
        for row in np.unique(rows).tolist():
            length, offset = int(table.length[row]), int(table.offset[row])
            cumulative = [256 * c for c in table.cdf[row, :length].tolist()]
            bins = length - 2
            places = np.flatnonzero(rows == row)
            index = [self.pop_bin(cumulative) for _ in places]
            for n, bin_ in enumerate(index):
                if bin_ == bins:
                    code = self.pop_half()
                    code += 65536 * self.pop_half()
                    index[n] = bins + code // 2 if code % 2 == 0 else -((code + 1) // 2)
            symbols[places] = [max(-LARGEST, min(LARGEST, offset + i)) for i in index]
        return symbols


# --- the integer program


def evaluate(program: Program, z_symbols: Symbols, code_step: CodeStep) -> Symbols:
    """Runs a tile's entropy model; returns the code's symbols, (Cy, h, w).

    Args:
        program: the integer program.
        z_symbols: the hyper-latent's, (Cz, h/4, w/4).
        code_step: decodes, or hands over, the symbols of one step.
    """
    median = program.z_median.astype(np.int64)[:, None, None]
    z = saturate((saturate(z_symbols.astype(np.int64)) << program.z_bits) + median)
    base = interpret(program, program.hyper, {"z": z})["base"]
    y_symbols = np.zeros(base.shape, np.int32)
    for step in range(4):
        seen = interpret(program, program.steps[step], {"base": base})
        at = step_places(base.shape, step)
        mean = seen["mean"][at]
        rows = program.rows.astype(np.int64)[seen["scale"][at] + 32768]
        y_symbols[at] = code_step(step, mean, rows)
        value = saturate((saturate(y_symbols[at].astype(np.int64)) << program.base_bits) + mean)
        if program.corrections:
            decoded = np.zeros_like(base)
            decoded[at] = value
            found = interpret(program, program.corrections[step], {"decoded": decoded, "base": base})
            value = saturate(value + found["correction"][at])
        base = base.copy()
        base[at] = value
    return y_symbols


def step_places(shape: tuple[int, ...], step: int) -> tuple[NDArray[np.int64], ...]:
    """Channel, row and column of the elements that a step codes, in coding order."""
    channel, row, column = np.indices(shape)
    cell = 2 * (row % 2) + column % 2
    wanted = np.array(["ABCD".index(c) for c in STEP_CELLS[step]])
    return np.nonzero(cell == wanted[channel // (shape[0] // 4)])


def interpret(program: Program, code: tuple[Instruction, ...], given: dict[str, Register]) -> dict[str, Register]:
    """The registers after the instructions of one section."""
    registers = dict(given)
    for instruction in code:
        x = [registers[name] for name in instruction.inputs]
        registers[instruction.output] = _execute(program, instruction, x)
    return registers


def _execute(program: Program, instruction: Instruction, x: list[Register]) -> Register:
    channels, height, width = x[0].shape
    match instruction.op:
        case "conv":
            return _convolve(program.layers[str(instruction.argument)], x[0])
        case "depthwise":
            layer = program.layers[str(instruction.argument)]
            total = np.zeros_like(x[0])
            for dy, dx, moved in _moved(x[0], 3):
                total += layer.weight[:, 0, dy, dx].astype(np.int64)[:, None, None] * moved
            return _rounded(total, layer)
        case "lut":
            return program.tables[str(instruction.argument)].astype(np.int64)[x[0] + 32768]
        case "add":
            return saturate(x[0] + x[1])
        case "gate":
            return saturate(x[0][: channels // 2] + x[0][channels // 2 :])
        case "scale":
            n = int(instruction.argument or 0)
            return saturate(x[0] << -n if n < 0 else (x[0] + (1 << n >> 1)) >> n)
        case "shuffle":
            out = np.empty((channels // 4, 2 * height, 2 * width), np.int64)
            for place in range(4):
                out[:, place // 2 :: 2, place % 2 :: 2] = x[0][place::4]
            return out
        case "concat":
            return np.concatenate(x)


def _convolve(layer: Layer, x: Register) -> Register:
    """Products of at most 2^22, fewer than 2^16 of weight 1 or more to a sum: float64 holds every sum exactly."""
    out, channels, kernel, _ = layer.weight.shape
    _, height, width = x.shape
    total = np.zeros((out, height * width))
    for dy, dx, moved in _moved(x, kernel):
        weight = layer.weight[:, :, dy, dx].astype(np.float64)
        total += weight @ moved.reshape(channels, -1).astype(np.float64)
    return _rounded(total.astype(np.int64).reshape(out, height, width), layer)


def _moved(x: Register, kernel: int) -> list[tuple[int, int, Register]]:
    """For every tap of a kernel its row, its column, and what it sees at each position; zeros outside."""
    _, height, width = x.shape
    margin = kernel // 2
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin)))
    taps = [(dy, dx) for dy in range(kernel) for dx in range(kernel)]
    return [(dy, dx, padded[:, dy : dy + height, dx : dx + width]) for dy, dx in taps]


def _rounded(total: Register, layer: Layer) -> Register:
    shift = layer.shift.astype(np.int64)
    constant = layer.bias.astype(np.int64) + (1 << shift >> 1)
    return saturate((total + constant[:, None, None]) >> shift[:, None, None])


def saturate(x: Register) -> Register:
    """Values within 16 bits."""
    return np.clip(x, -32768, 32767)
