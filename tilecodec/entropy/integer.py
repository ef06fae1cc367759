"""Evaluates an integer program with torch: fast, and the same numbers on every device, path, batch and thread count.

Shape legend: N tiles, h w positions, C channels. Registers are int16 tensors (N, h, w, C).

A convolution is a matrix product of 16-bit values with 8-bit weights. It is computed on the values' high and low
bytes, with sums that are exact whatever the order of the additions:

    ``int8``     int8 x int8 products, int32 sums (torch._int_mm)
    ``float32``  the same integers as floats, sums below 2^24
    ``float64``  16-bit values at once, sums below 2^53

:func:`pick_arithmetic` takes ``int8`` only where it gets the extremes right: some processors' instructions saturate.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tilecodec.entropy.program import HIGH, LOW, RESULTS, Instruction, Layer, Program
from tilecodec.model.blocks import TURNS

Arithmetic = Literal["auto", "int8", "float32", "float64"]


class IntegerNetwork:
    """An integer program on one device.

    Args:
        program: what to evaluate.
        device: where registers live.
        arithmetic: how products are summed; results do not depend on it.
    """

    def __init__(self, program: Program, *, device: torch.device, arithmetic: Arithmetic = "auto") -> None:
        self.arithmetic: Final = pick_arithmetic(device) if arithmetic == "auto" else arithmetic
        layers = program.layers
        self._dense = {n: _Dense(layers[n], device, self.arithmetic) for n in _named(program, "conv")}
        self._depthwise = {n: _Depthwise(layers[n], device) for n in _named(program, "depthwise")}
        self._tables = {n: torch.from_numpy(t).to(device) for n, t in program.tables.items()}

    def run(self, code: tuple[Instruction, ...], registers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The registers after ``code``, each int16 (N, h, w, C)."""
        r = dict(registers)
        last_use = {name: n for n, i in enumerate(code) for name in i.inputs}
        n = 0
        while n < len(code):
            i = code[n]
            follower = code[n + 1] if n + 1 < len(code) else None
            fused = (
                i.op == "conv" and follower is not None and follower.op == "lut" and follower.inputs == (i.output,)
            ) and (last_use[i.output] == n + 1 and i.output not in RESULTS)
            if fused and follower is not None:
                table = self._tables[str(follower.argument)]
                r[follower.output] = self._dense[str(i.argument)].looked_up(r[i.inputs[0]], table)
                n += 1
            else:
                r[i.output] = self._one(i, [r[name] for name in i.inputs])
            n += 1
        return r

    def _one(self, i: Instruction, x: list[Tensor]) -> Tensor:
        match i.op:
            case "conv":
                return self._dense[str(i.argument)].sums(x[0]).to(torch.int16)
            case "depthwise":
                return self._depthwise[str(i.argument)](x[0])
            case "lut":
                return _look_up(x[0].int(), self._tables[str(i.argument)])
            case "add":
                return _saturate(x[0].int().add_(x[1]))
            case "gate":
                first, second = x[0].chunk(2, dim=-1)
                return _saturate(first.int().add_(second))
            case "scale":
                shift = cast(int, i.argument)
                wide = x[0].int()
                return _saturate(wide << -shift if shift < 0 else (wide + (1 << shift >> 1)) >> shift)
            case "shuffle":
                n, h, w, c = x[0].shape
                blocks = x[0].reshape(n, h, w, c // 4, 2, 2)
                return blocks.permute(0, 1, 4, 2, 5, 3).reshape(n, 2 * h, 2 * w, c // 4)
            case "concat":
                return torch.cat(x, dim=-1)


class StepNetwork:
    """One context step of a program: mean and scale of the elements that the step codes, a quarter of them.

    Where pointwise convolutions of one register give both, as in most programs, they are computed at those elements
    alone.

    Args:
        network: the program's.
        program: the program.
        step: 0 to 3.
        device: where the registers live.
    """

    def __init__(self, network: IntegerNetwork, program: Program, step: int, device: torch.device) -> None:
        self._network, self._step, self._code = network, step, program.steps[step]
        self._groups: list[_Dense] = []
        ends = {i.output: i for i in self._code[-2:]}
        if set(ends) != {"mean", "scale"} or any(i.op != "conv" for i in ends.values()):
            return
        layers = [program.layers[str(ends[name].argument)] for name in ("mean", "scale")]
        if ends["mean"].inputs != ends["scale"].inputs or any(layer.weight.shape[2] != 1 for layer in layers):
            return
        self._code, (self._input,) = self._code[:-2], ends["mean"].inputs
        channels = len(layers[0].weight) // len(TURNS)
        for group in range(len(TURNS)):
            part = slice(group * channels, (group + 1) * channels)
            weight, bias, shift = (
                np.concatenate([getattr(layer, name)[part] for layer in layers]) for name in ("weight", "bias", "shift")
            )
            self._groups.append(_Dense(Layer(weight, bias, shift), device, network.arithmetic))

    def __call__(self, base: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale, each int16 (N, n) in coding order.

        Args:
            base: int16 (N, h, w, C).
            at: the elements in coding order, flat indexes into (h, w, C).
        """
        r, n = self._network.run(self._code, {"base": base}), len(base)
        if not self._groups:
            mean, scale = (r[name].reshape(n, -1).index_select(1, at) for name in ("mean", "scale"))
            return mean, scale
        x, means, scales = r[self._input], [], []
        for dense, place in zip(self._groups, TURNS[self._step], strict=True):
            sums = dense.sums(x[:, place // 2 :: 2, place % 2 :: 2]).to(torch.int16)
            mean, scale = sums.flatten(1, 2).transpose(1, 2).chunk(2, dim=1)  # by channel, then by place
            means.append(mean.flatten(1))
            scales.append(scale.flatten(1))
        return torch.cat(means, dim=1), torch.cat(scales, dim=1)


class _Dense:
    """A 1x1 or 3x3 convolution."""

    def __init__(self, layer: Layer, device: torch.device, arithmetic: Arithmetic) -> None:
        out, _, self._kernel, _ = layer.weight.shape
        weight = torch.from_numpy(layer.weight).permute(0, 2, 3, 1).reshape(out, -1)  # (O, kh kw I)
        bias, shift = (torch.from_numpy(a.astype("int64")) for a in (layer.bias, layer.shift))
        constant = bias + (1 << shift >> 1)
        self._arithmetic = arithmetic
        if arithmetic == "float64":
            self._constant, self._shift = constant.to(device), shift.to(device)
            self._weight = weight.double().T.contiguous().to(device)
        else:
            # the low byte goes in less 128, so that it is signed too
            if arithmetic == "int8":
                constant = constant + 128 * weight.long().sum(1)
            self._constant, self._shift = constant.int().to(device), shift.int().to(device)
            self._weight = (weight if arithmetic == "int8" else weight.float()).to(device).T
        # the constant that makes sums begin at 0, for tables, where no sum can leave 32 bits with it
        largest = 32768 * weight.long().abs().sum(1) + bias.abs() + (1 << shift >> 1) + (1 << shift) * -LOW
        raised = constant + (1 << shift) * -LOW
        self._raised = raised.to(self._constant) if int(largest.max()) < 1 << 31 else None

    def sums(self, x: Tensor) -> Tensor:
        """(N, h, w, O) int32 within 16 bits."""
        return self._totals(x, self._constant).clamp_(LOW, HIGH)

    def looked_up(self, x: Tensor, table: Tensor) -> Tensor:
        """``table`` at the sums, (N, h, w, O) int16."""
        if self._raised is None:
            return _look_up(self.sums(x), table)
        places = self._totals(x, self._raised).clamp_(0, HIGH - LOW)
        return table.index_select(0, places.reshape(-1)).reshape(places.shape)

    def _totals(self, x: Tensor, constant: Tensor) -> Tensor:
        """The shifted sums, before they are limited, (N, h, w, O) int32."""
        if self._kernel == 3:
            x = _neighbours(x)
        n, h, w, c = x.shape
        rows = x.reshape(-1, c)
        if self._arithmetic == "float64":
            total = (rows.double() @ self._weight).long().add_(constant) >> self._shift
            return total.clamp_(4 * LOW, 4 * HIGH).int().reshape(n, h, w, -1)
        count = len(rows)
        if self._arithmetic == "int8":
            halves = torch.empty(2 * count, c, dtype=torch.int8, device=x.device)
            halves[:count] = rows >> 8
            halves[count:] = rows ^ 0x80
            products = torch._int_mm(halves, self._weight)
        else:
            halves = torch.empty(2 * count, c, dtype=torch.float32, device=x.device)
            halves[:count] = rows >> 8
            halves[count:] = rows & 0xFF
            with torch.autocast(x.device.type, enabled=False):  # a caller's own would round the sums
                products = (halves @ self._weight).int()
        total = products[count:].add_(products[:count], alpha=256).add_(constant)
        return torch.bitwise_right_shift(total, self._shift, out=total).reshape(n, h, w, -1)


class _Depthwise:
    """A 3x3 convolution of each channel with its own kernel, as nine shifted products in int32."""

    def __init__(self, layer: Layer, device: torch.device) -> None:
        self._weight = torch.from_numpy(layer.weight.astype("int32")).reshape(-1, 9).T.contiguous().to(device)
        shift = torch.from_numpy(layer.shift.astype("int32"))
        self._constant = (torch.from_numpy(layer.bias) + (1 << shift >> 1)).to(device)
        self._shift = shift.to(device)

    def __call__(self, x: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        padded = F.pad(x, (0, 0, 1, 1, 1, 1)).int()
        total = torch.addcmul(self._constant, padded[:, :h, :w], self._weight[0])
        for tap in range(1, 9):
            dy, dx = divmod(tap, 3)
            total.addcmul_(padded[:, dy : dy + h, dx : dx + w], self._weight[tap])
        return _saturate(torch.bitwise_right_shift(total, self._shift, out=total))


def _neighbours(x: Tensor) -> Tensor:
    """(N, h, w, C) to (N, h, w, 9 C): the 3x3 neighbourhood of every position, zeros outside."""
    _, h, w, _ = x.shape
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    return torch.cat([padded[:, dy : dy + h, dx : dx + w] for dy in range(3) for dx in range(3)], dim=-1)


def _saturate(x: Tensor) -> Tensor:
    """int32, which it overwrites, to int16."""
    return x.clamp_(LOW, HIGH).to(torch.int16)


def _look_up(x: Tensor, table: Tensor) -> Tensor:
    """table[x + 32768] for int32 x within 16 bits, which it overwrites."""
    return table.index_select(0, x.add_(-LOW).reshape(-1)).reshape(x.shape)


def _named(program: Program, op: str) -> list[str]:
    """Names of the layers that instructions of one kind use."""
    sections = [program.hyper, *program.steps, *program.corrections]
    return sorted({str(i.argument) for code in sections for i in code if i.op == op})


@lru_cache(maxsize=8)
def pick_arithmetic(device: torch.device) -> Literal["int8", "float32"]:
    """``int8`` where the device's int8 products come out exactly even at the extremes, else ``float32``.

    Without oneDNN they are exact but far slower.
    """
    if device.type != "cpu" or not hasattr(torch, "_int_mm") or not torch.backends.mkldnn.is_available():
        return "float32"
    try:
        for count, inner in ((2, 8), (64, 256), (70, 515)):
            a = torch.full((count, inner), -128, dtype=torch.int8)
            a[::2] = 127
            b = torch.full((inner, 24), 127, dtype=torch.int8)
            b[:, ::3] = -127
            if not torch.equal(torch._int_mm(a, b).double(), a.double() @ b.double()):
                return "float32"
    except RuntimeError:
        return "float32"
    return "int8"
