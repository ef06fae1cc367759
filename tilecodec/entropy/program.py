"""The entropy model as an integer program: data that any reader evaluates to the same numbers.

A program is a list of instructions on registers. A register holds integers of 16 bits, (C, h, w) for each tile; what
they stand for in real numbers (a power-of-two step) matters only to the converter and to pixels. Instructions:

    conv        sat((sum_i weight[o, i] x[i] + bias[o] + half) >> shift[o]), kernel 1x1 or 3x3, zeros around
    depthwise   the same, each channel with its own 3x3 kernel
    lut         table[x + 32768]
    add         sat(a + b)
    gate        sat(first half of the channels + second half)
    scale       sat((x + half) >> n), or sat(x << -n) where n < 0
    shuffle     PixelShuffle(2)
    concat      channels of a, then those of b

``sat`` clips to -32768..32767; ``half`` is ``2^(shift - 1)``, 0 for shift 0. Specified in ``formats/entropy.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tilecodec.errors import ModelError

Op = Literal["conv", "depthwise", "lut", "add", "gate", "scale", "shuffle", "concat"]

LOW: Final = -(1 << 15)
HIGH: Final = (1 << 15) - 1
"""A register's smallest and largest value."""
ENTRIES: Final = 1 << 16
"""Entries of a lookup table, one for each value of a register."""
SUM_LIMIT: Final = (1 << 31) - 1
"""A convolution's sums stay within this: ``32896 sum|weight| + |bias| + half``, which leaves evaluations that take a
value's low byte less 128 their room, is at most so for every output."""
REACH: Final = (1 << 15) + (1 << 7)
MAX_SHIFT: Final = 30
MAX_SCALE: Final = 15
MAX_INSTRUCTIONS: Final = 4096
MAX_CHANNELS: Final = 1 << 14
"""Channels of a register."""
RESULTS: Final = ("base", "mean", "scale", "correction")
"""Registers that are read when a section has run."""

INPUTS: Final = {"conv": 1, "depthwise": 1, "lut": 1, "add": 2, "gate": 1, "scale": 1, "shuffle": 1, "concat": 2}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One step of a program."""

    op: Op
    inputs: tuple[str, ...]
    """Registers read."""
    output: str
    """Register written."""
    argument: str | int | None = None
    """conv, depthwise: name of the layer; lut: name of the table; scale: n; else None."""


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """A convolution's integers."""

    weight: NDArray[np.int8]
    """(O, I, k, k) with k 1 or 3; depthwise: (C, 1, 3, 3)."""
    bias: NDArray[np.int32]
    """(O,)."""
    shift: NDArray[np.uint8]
    """(O,), 0 to 30."""
    exponent: NDArray[np.int8] | None = None
    """(O,): a weight stands for the real number ``weight 2^-exponent``. Informative: not needed to evaluate."""
    input_bits: int | None = None
    """The input counts in steps of ``2^-input_bits``, so a bias stands for ``bias 2^-(exponent + input_bits)``.
    Informative likewise."""


@dataclass(frozen=True, eq=False, slots=True)
class Program:
    """The integer entropy model of one DiTIC."""

    z_bits: int
    """Register ``z`` holds ``clip(symbol << z_bits + median)``."""
    base_bits: int
    """Means and decoded values count in steps of ``2^-base_bits``."""
    scale_bits: int
    """The scale register counts in steps of ``2^-scale_bits`` (for pixels: the entropy coder looks rows up)."""
    hyper: tuple[Instruction, ...]
    """Register ``z`` to ``base``."""
    steps: tuple[tuple[Instruction, ...], ...]
    """Of each step: ``base`` to ``mean`` and ``scale``."""
    corrections: tuple[tuple[Instruction, ...], ...]
    """Of each step: ``decoded`` and ``base`` to ``correction``; empty in models without residual prediction."""
    layers: Mapping[str, Layer]
    tables: Mapping[str, NDArray[np.int16]]
    """Lookup tables (65536,): entry ``x + 32768`` is the result for x."""
    z_median: NDArray[np.int16]
    """(Cz,), in steps of ``2^-z_bits``."""
    rows: NDArray[np.uint8]
    """(65536,): the CDF row of each value of the scale register."""

    def header(self) -> dict[str, Any]:
        """What is kept as JSON; tensors beside it, see :meth:`tensors`."""

        def listed(code: tuple[Instruction, ...]) -> list[list[Any]]:
            return [[i.op, list(i.inputs), i.output, i.argument] for i in code]

        return {
            "z_bits": self.z_bits,
            "base_bits": self.base_bits,
            "scale_bits": self.scale_bits,
            "hyper": listed(self.hyper),
            "steps": [listed(code) for code in self.steps],
            "corrections": [listed(code) for code in self.corrections],
        }

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Arrays by the names they are stored under."""
        out: dict[str, NDArray[Any]] = {"z_median": self.z_median, "rows": self.rows}
        for name, layer in self.layers.items():
            out |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias, f"{name}.shift": layer.shift}
            if layer.exponent is not None and layer.input_bits is not None:
                out |= {
                    f"{name}.exponent": layer.exponent,
                    f"{name}.input_bits": np.array([layer.input_bits], np.uint8),
                }
        return out | {f"lut.{name}": table for name, table in self.tables.items()}


def parse_program(header: Any, tensors: Mapping[str, NDArray[Any]], *, y_channels: int, z_channels: int) -> Program:
    """The inverse of :meth:`Program.header` and :meth:`Program.tensors`, everything checked before it is used.

    Args:
        header: the JSON value.
        tensors: arrays by name.
        y_channels: code channels of the model.
        z_channels: hyper-latent channels of the model.

    Raises:
        ModelError: anything that would not evaluate: shapes, bounds, registers read before they are written.
    """
    if not isinstance(header, dict):
        raise ModelError("the integer program is no object", got=type(header).__name__, where="integer")
    bits = {k: _bits(header, k) for k in ("z_bits", "base_bits", "scale_bits")}
    code = {k: _sections(header, k) for k in ("steps", "corrections")}
    hyper = _section(header.get("hyper"), "hyper")
    if len(code["steps"]) != 4 or len(code["corrections"]) not in (0, 4):
        raise ModelError("the integer program has the wrong number of steps", expected="4, and 0 or 4 corrections")
    if len(hyper) + sum(len(c) for k in code.values() for c in k) > MAX_INSTRUCTIONS:
        raise ModelError("the integer program is too long", expected=f"at most {MAX_INSTRUCTIONS} instructions")
    names = {i.argument for c in (hyper, *code["steps"], *code["corrections"]) for i in c if i.op in _WITH_LAYER}
    luts = {i.argument for c in (hyper, *code["steps"], *code["corrections"]) for i in c if i.op == "lut"}
    program = Program(
        **bits,
        hyper=hyper,
        steps=code["steps"],
        corrections=code["corrections"],
        layers={str(n): _layer(tensors, str(n)) for n in sorted(names, key=str)},
        tables={str(n): _array(tensors, f"lut.{n}", np.int16, (ENTRIES,)) for n in sorted(luts, key=str)},
        z_median=_array(tensors, "z_median", np.int16, (z_channels,)),
        rows=_array(tensors, "rows", np.uint8, (ENTRIES,)),
    )
    _check_registers(program.hyper, program.layers, {"z": (z_channels, 0)}, {"base": (y_channels, 2)}, "hyper")
    for n, step in enumerate(program.steps):
        wanted = {"mean": (y_channels, 0), "scale": (y_channels, 0)}
        _check_registers(step, program.layers, {"base": (y_channels, 0)}, wanted, f"steps[{n}]")
    for n, correction in enumerate(program.corrections):
        known = {"base": (y_channels, 0), "decoded": (y_channels, 0)}
        _check_registers(correction, program.layers, known, {"correction": (y_channels, 0)}, f"corrections[{n}]")
    return program


_WITH_LAYER: Final = ("conv", "depthwise")


def _bits(header: Mapping[str, Any], key: str) -> int:
    value = header.get(key)
    if type(value) is not int or not 0 <= value <= 14:
        raise ModelError("a step size of the integer program is wrong", got=value, expected="0 to 14", where=key)
    return value


def _sections(header: Mapping[str, Any], key: str) -> tuple[tuple[Instruction, ...], ...]:
    value = header.get(key)
    if not isinstance(value, list):
        raise ModelError("the integer program lacks a part", got=value, expected="a list", where=key)
    return tuple(_section(part, f"{key}[{n}]") for n, part in enumerate(value[:5]))


def _section(value: Any, where: str) -> tuple[Instruction, ...]:
    if not isinstance(value, list):
        raise ModelError("the integer program lacks a part", got=type(value).__name__, expected="a list", where=where)
    return tuple(_instruction(entry, f"{where}[{n}]") for n, entry in enumerate(value))


def _instruction(entry: Any, where: str) -> Instruction:
    good = (
        isinstance(entry, list)
        and len(entry) == 4
        and entry[0] in get_args(Op)
        and isinstance(entry[1], list)
        and len(entry[1]) == INPUTS[entry[0]]
        and all(isinstance(r, str) for r in (*entry[1], entry[2]))
    )
    if good:
        op, argument = entry[0], entry[3]
        if op in (*_WITH_LAYER, "lut"):
            good = isinstance(argument, str)
        elif op == "scale":
            good = type(argument) is int and -MAX_SCALE <= argument <= MAX_SCALE
        else:
            good = argument is None
    if not good:
        expected = "[op, inputs, output, argument]"
        raise ModelError("an instruction is malformed", got=entry, expected=expected, where=where)
    return Instruction(entry[0], tuple(entry[1]), entry[2], entry[3])


def _array(tensors: Mapping[str, NDArray[Any]], name: str, dtype: type, shape: tuple[int, ...]) -> NDArray[Any]:
    array = tensors.get(name)
    if array is None or array.dtype != dtype or array.shape != shape:
        got = None if array is None else f"{array.dtype} {array.shape}"
        raise ModelError(
            "an integer tensor is wrong", got=got, expected=f"{np.dtype(dtype)} {shape}", where=f"integer.{name}"
        )
    return array


def _layer(tensors: Mapping[str, NDArray[Any]], name: str) -> Layer:
    weight = tensors.get(f"{name}.weight")
    good = weight is not None and weight.dtype == np.int8 and weight.ndim == 4 and weight.size > 0
    if weight is None or not good or weight.shape[2:] not in ((1, 1), (3, 3)):
        got = None if weight is None else f"{weight.dtype} {weight.shape}"
        raise ModelError("a layer is wrong", got=got, expected="int8 (O, I, k, k), k 1 or 3", where=f"integer.{name}")
    count = (len(weight),)
    bias = _array(tensors, f"{name}.bias", np.int32, count)
    shift = _array(tensors, f"{name}.shift", np.uint8, count)
    reach = np.abs(weight.astype(np.int64)).sum((1, 2, 3)) * REACH + np.abs(bias.astype(np.int64))
    half = (1 << shift.astype(np.int64)) >> 1
    if (shift > MAX_SHIFT).any() or (reach + half > SUM_LIMIT).any():
        expected = f"sums up to {SUM_LIMIT}"
        raise ModelError("a layer's sums may leave 32 bits", expected=expected, where=f"integer.{name}")
    if f"{name}.exponent" not in tensors:
        return Layer(weight, bias, shift)
    exponent = _array(tensors, f"{name}.exponent", np.int8, count)
    return Layer(weight, bias, shift, exponent, int(_array(tensors, f"{name}.input_bits", np.uint8, (1,))[0]))


def _check_registers(
    code: tuple[Instruction, ...],
    layers: Mapping[str, Layer],
    given: Mapping[str, tuple[int, int]],
    wanted: Mapping[str, tuple[int, int]],
    where: str,
) -> None:
    """Registers as (channels, times doubled): every one read is there, and the results come out as wanted."""
    known = dict(given)
    for n, i in enumerate(code):
        shapes = [known.get(r) for r in i.inputs]
        result = None
        if None not in shapes:
            result = _result(i, [s for s in shapes if s is not None], layers)
        if result is None or not 1 <= result[0] <= MAX_CHANNELS:
            raise ModelError("an instruction does not fit its registers", got=i, expected=known, where=f"{where}[{n}]")
        known[i.output] = result
    if any(known.get(k) != v for k, v in wanted.items()):
        raise ModelError("the integer program's results are wrong", got=known, expected=wanted, where=where)


def _result(i: Instruction, shapes: list[tuple[int, int]], layers: Mapping[str, Layer]) -> tuple[int, int] | None:
    """(channels, times doubled) of an instruction's output; None where its inputs do not fit."""
    channels, doubled = shapes[0]
    match i.op:
        case "conv":
            weight = layers[str(i.argument)].weight
            return (len(weight), doubled) if weight.shape[1] == channels else None
        case "depthwise":
            weight = layers[str(i.argument)].weight
            return (channels, doubled) if weight.shape == (channels, 1, 3, 3) else None
        case "add":
            return shapes[0] if shapes[0] == shapes[1] else None
        case "concat":
            return (channels + shapes[1][0], doubled) if doubled == shapes[1][1] else None
        case "gate":
            return (channels // 2, doubled) if channels % 2 == 0 else None
        case "shuffle":
            return (channels // 4, doubled + 1) if channels % 4 == 0 and doubled < 2 else None
        case _:
            return channels, doubled
