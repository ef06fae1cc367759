"""Turns a trained entropy model into an integer program: float weights and calibration pictures in, integers out.

The converter runs the float network on calibration codes twice. The first run notes the largest value of every kind of
register and so fixes its step; the second emits instructions. Weights get 8 bits, with a power-of-two step for each
output channel; values get 16 bits; activation functions become tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tilecodec.entropy.program import ENTRIES, HIGH, LOW, MAX_SHIFT, REACH, SUM_LIMIT, Instruction, Layer, Op, Program
from tilecodec.errors import ModelError
from tilecodec.model.blocks import Adapter, DepthConvBlock, PointwiseAdapter, SubPixelConv, Up2
from tilecodec.model.latent_codec import STEPS, LatentCodec, ResidualPrediction

HEADROOM = 2.0
"""Registers hold values this many times larger than any seen in calibration."""
MAX_BITS = 12
WEIGHT_PEAK = 127
REACH_BUDGET = 0.96
"""Share of a convolution's range that weights may use; the rest is the bias's."""


@dataclass(frozen=True, eq=False, slots=True)
class CalibrationTile:
    """One tile's code, from which value ranges are learned."""

    y: Tensor
    """Code with its gain, (Cy, h, w) float32."""
    z: Tensor
    """Hyper-latent, (Cz, h/4, w/4) float32."""


def weight_exponents(weight: Tensor) -> Tensor:
    """The exponent k of each output channel: weights are stored as ``round(weight 2^k)``.

    Args:
        weight: (O, I, kh, kw) float.

    Returns:
        float32 (O,), whole numbers: the largest for which every integer is at most 127 and no sum can leave 32 bits.
    """
    flat = weight.detach().float().flatten(1).abs()
    peak = torch.log2(WEIGHT_PEAK / flat.amax(1).clamp_min(1e-12))
    total = torch.log2(REACH_BUDGET * SUM_LIMIT / REACH / flat.sum(1).clamp_min(1e-12))
    return torch.minimum(peak, total).floor().clamp(-8, 20)


def rounded_weight(weight: Tensor) -> Tensor:
    """The real numbers that a weight's integers stand for, same shape and dtype: for training with them in the loop."""
    step = torch.exp2(-weight_exponents(weight)).reshape(-1, *[1] * (weight.ndim - 1)).to(weight.dtype)
    return torch.round(weight / step) * step


def entropy_layers(codec: LatentCodec) -> dict[str, nn.Conv2d]:
    """The convolutions that decide probabilities, by name within the codec."""
    parts = ("h_s.", "adapter_in.", "g_c.", "adapter_out.", "LRP.")
    return {n: m for n, m in codec.named_modules() if isinstance(m, nn.Conv2d) and n.startswith(parts)}


@torch.inference_mode()
def quantise(
    codec: LatentCodec, z_median: NDArray[np.float32], scales: NDArray[np.float32], tiles: Sequence[CalibrationTile]
) -> Program:
    """The integer program of a codec.

    Args:
        codec: the float network, its DepthConvBlocks not folded.
        z_median: medians of the hyper-latent, (Cz,).
        scales: Gaussian scales that have a CDF row, ascending, (rows,).
        tiles: calibration codes, of pictures like those to come, over the whole range of qualities.

    Raises:
        ModelError: no calibration tiles, or a network that is not finite on them.
    """
    if not tiles:
        raise ModelError("there are no calibration tiles", expected="one or more", where="quantise")
    peaks = _Peaks()
    for tile in tiles:
        _walk(codec, z_median, tile, peaks)
    bits = peaks.bits()
    while True:
        writer = _Writer(dict(bits))
        _walk(codec, z_median, tiles[0], writer)
        if writer.bits == bits:
            break
        bits = writer.bits  # an output's step was too fine for its weights
    median = np.clip(np.rint(z_median * 2.0 ** bits["z"]), LOW, HIGH).astype(np.int16)
    raw = torch.arange(LOW, HIGH + 1) * 2.0 ** -bits["scale"]
    real = F.softplus(raw) if codec.config.scale_activation == "softplus" else raw
    rows = np.minimum(np.searchsorted(scales, real.numpy()), len(scales) - 1).astype(np.uint8)
    code = writer.code
    return Program(
        z_bits=bits["z"],
        base_bits=bits["base"],
        scale_bits=bits["scale"],
        hyper=tuple(code["hyper"]),
        steps=tuple(tuple(code[f"step{k}"]) for k in range(STEPS)),
        corrections=tuple(tuple(code[f"correction{k}"]) for k in range(STEPS)) if codec.LRP is not None else (),
        layers=writer.layers,
        tables=writer.tables,
        z_median=median,
        rows=rows,
    )


@torch.inference_mode()
def restore(codec: LatentCodec, program: Program) -> None:
    """Gives a float network the real weights that a program's integers stand for: what the program rounds.

    Args:
        codec: its entropy part is overwritten, the rest left alone.
        program: of the same config, with exponents.
    """
    layers = entropy_layers(codec)
    for name, conv in layers.items():
        head = name.startswith("adapter_out.") and name not in program.layers  # kept as its two halves
        prefix = name.rsplit(".branch1.", 1)[0]
        parts = [program.layers[f"{prefix}.{k}"] for k in ("mean", "scale")] if head else [program.layers[name]]
        weights, biases = [], []
        for part in parts:
            if part.exponent is None or part.input_bits is None:
                raise ModelError("the program does not say what its integers stand for", where=f"integer.{name}")
            step = np.exp2(-part.exponent.astype(np.float64))
            weights.append(part.weight * step[:, None, None, None])
            biases.append(part.bias * step * 2.0**-part.input_bits)
        conv.weight.copy_(torch.from_numpy(np.concatenate(weights)))
        _bias(conv).copy_(torch.from_numpy(np.concatenate(biases)))


@dataclass(frozen=True, eq=False, slots=True)
class _Value:
    """A register together with its real values on a calibration tile."""

    register: str
    kind: str
    """Registers of one kind share a step."""
    real: Tensor


class _Peaks:
    """The first run: the largest value of every kind."""

    def __init__(self) -> None:
        self.peak: dict[str, float] = {}

    def bits(self) -> dict[str, int]:
        """The finest step of each kind that leaves headroom, as a power of two."""
        return {
            kind: max(0, min(MAX_BITS, math.floor(math.log2(HIGH / (HEADROOM * max(peak, 1e-6))))))
            for kind, peak in self.peak.items()
        }

    def begin(self, section: str) -> None:
        """Nothing to do: sections matter to the writer."""

    def value(self, register: str, kind: str, real: Tensor) -> _Value:
        """A register's real values."""
        peak = float(real.abs().max())
        if not math.isfinite(peak):
            raise ModelError("the entropy model is not finite on a calibration tile", got=peak, where=register)
        self.peak[kind] = max(self.peak.get(kind, 0.0), peak)
        return _Value(register, kind, real)

    def emit(self, op: Op, inputs: Sequence[_Value], out: _Value, argument: str | int | None = None) -> _Value:
        """Nothing but the result."""
        return out

    def convolution(self, x: _Value, out: _Value, conv: nn.Conv2d, name: str) -> _Value:
        """Likewise."""
        return out

    def table(self, x: _Value, out: _Value, name: str, function: Callable[[Tensor], Tensor]) -> _Value:
        """Likewise."""
        return out


@dataclass
class _Writer:
    """The second run: instructions, layers and tables."""

    bits: dict[str, int]
    code: dict[str, list[Instruction]] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    tables: dict[str, NDArray[np.int16]] = field(default_factory=dict)
    _section: str = ""

    def begin(self, section: str) -> None:
        """What follows belongs to ``section``."""
        self._section = section
        self.code[section] = []

    def value(self, register: str, kind: str, real: Tensor) -> _Value:
        return _Value(register, kind, real)

    def emit(self, op: Op, inputs: Sequence[_Value], out: _Value, argument: str | int | None = None) -> _Value:
        self.code[self._section].append(Instruction(op, tuple(v.register for v in inputs), out.register, argument))
        return out

    def convolution(self, x: _Value, out: _Value, conv: nn.Conv2d, name: str) -> _Value:
        """An integer convolution; an output step finer than the products' is made coarser for the next round."""
        exponent = weight_exponents(conv.weight)
        shift = exponent + self.bits[x.kind] - self.bits[out.kind]
        if float(shift.min()) < 0:
            self.bits[out.kind] += int(shift.min())
            shift = shift.clamp_min(0)
        exponent = exponent - (shift - MAX_SHIFT).clamp_min(0)
        shift = shift.clamp_max(MAX_SHIFT)
        weight = torch.round(conv.weight.float() * torch.exp2(exponent).reshape(-1, 1, 1, 1)).to(torch.int8)
        assert conv.bias is not None
        bias = torch.round(conv.bias.double() * torch.exp2(exponent.double() + self.bits[x.kind]))
        room = SUM_LIMIT - weight.double().abs().sum((1, 2, 3)) * REACH - torch.exp2(shift.double() - 1)
        bias = torch.minimum(torch.maximum(bias, -room), room)
        self.layers[name] = Layer(
            weight.numpy(),
            bias.int().numpy(),
            shift.to(torch.uint8).numpy(),
            exponent.to(torch.int8).numpy(),
            self.bits[x.kind],
        )
        return self.emit("depthwise" if conv.groups > 1 else "conv", [x], out, name)

    def table(self, x: _Value, out: _Value, name: str, function: Callable[[Tensor], Tensor]) -> _Value:
        name = f"{name}_{self.bits[x.kind]}_{self.bits[out.kind]}"
        if name not in self.tables:
            real = function(torch.arange(LOW, HIGH + 1, dtype=torch.float64) * 2.0 ** -self.bits[x.kind])
            whole = torch.round(real * 2.0 ** self.bits[out.kind]).clamp(LOW, HIGH)
            self.tables[name] = whole.to(torch.int16).numpy()
            assert len(self.tables[name]) == ENTRIES
        return self.emit("lut", [x], out, name)


_Run = _Peaks | _Writer


def _wsilu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(4 * x)


def _half_tanh(x: Tensor) -> Tensor:
    return 0.5 * torch.tanh(x)


def _walk(codec: LatentCodec, z_median: NDArray[np.float32], tile: CalibrationTile, run: _Run) -> None:
    """The float evaluation of one tile as an encoder does it, told to ``run`` step by step."""
    median = torch.from_numpy(z_median)[:, None, None]
    run.begin("hyper")
    z = run.value("z", "z", (torch.round(tile.z.float() - median) + median)[None])
    value = z
    for n, module in enumerate(codec.h_s.increase):
        value = _module(run, module, value, f"h_s.increase.{n}", f"h_s.{n}")
    base = _rescaled(run, value, "base", "base").real
    y = tile.y.float()[None]
    masks = codec.step_masks(y.shape[2], y.shape[3], y.device)
    for step in range(STEPS):
        run.begin(f"step{step}")
        state = run.value("base", "base", base)
        value = _module(run, codec.adapter_in[step], state, f"adapter_in.{step}", "context")
        for n, module in enumerate(codec.g_c.block):
            value = _module(run, module, value, f"g_c.block.{n}", "context" if n == 0 else f"context.{n}")
        mean = _heads(run, codec.adapter_out[step], value, f"adapter_out.{step}")
        decoded = (torch.round(y - mean.real) + mean.real) * masks[step]
        if codec.LRP is not None:
            run.begin(f"correction{step}")
            given = run.value("decoded", "base", decoded), run.value("base", "base", base)
            both = run.emit("concat", given, run.value("both", "base", torch.cat([v.real for v in given], dim=1)))
            raw = _module(run, cast(ResidualPrediction, codec.LRP[step]).block[0], both, f"LRP.{step}.block.0", "raw")
            correction = run.value("correction", "base", _half_tanh(raw.real))
            run.table(raw, correction, "half_tanh", _half_tanh)
            decoded = decoded + correction.real * masks[step]
        base = torch.where(masks[step], decoded, base)
        run.value("base", "base", base)


def _rescaled(run: _Run, x: _Value, kind: str, register: str) -> _Value:
    """``x`` in a register of another kind."""
    out = run.value(register, kind, x.real)
    shift = run.bits[x.kind] - run.bits[kind] if isinstance(run, _Writer) else 0
    return run.emit("scale", [x], out, shift)


def _convolved(run: _Run, conv: nn.Conv2d, x: _Value, name: str, kind: str) -> _Value:
    return run.convolution(x, run.value(name, kind, conv(x.real)), conv, name)


def _activated(run: _Run, x: _Value, name: str, kind: str, label: str, function: Callable[[Tensor], Tensor]) -> _Value:
    return run.table(x, run.value(name, kind, function(x.real)), label, function)


def _module(run: _Run, module: nn.Module, x: _Value, name: str, kind: str) -> _Value:
    """One of the blocks that the entropy model is made of."""
    match module:
        case DepthConvBlock():
            return _block(run, module, x, name, kind)
        case Up2():
            return _module(run, module.conv, _module(run, module.up, x, f"{name}.up", kind), f"{name}.conv", kind)
        case SubPixelConv():
            wide = _convolved(run, _conv(module.conv[0]), x, f"{name}.conv.0", kind)
            return run.emit("shuffle", [wide], run.value(f"{name}.conv.1", kind, F.pixel_shuffle(wide.real, 2)))
        case PointwiseAdapter():
            return _convolved(run, _conv(module.branch1[0]), x, f"{name}.branch1.0", kind)
        case Adapter():
            for n, layer in enumerate(module.branch1):
                step = f"{name}.branch1.{n}"
                if isinstance(layer, nn.GELU):
                    x = _activated(run, x, step, "act", "gelu", F.gelu)
                else:
                    last = n == len(module.branch1) - 1
                    x = _convolved(run, _conv(layer), x, step, kind if last else "act")
            return x
        case nn.Conv2d():
            return _convolved(run, module, x, name, kind)
        case _:
            raise ModelError("the entropy model has a layer without an integer form", got=type(module).__name__)


def _block(run: _Run, block: DepthConvBlock, x: _Value, name: str, kind: str) -> _Value:
    if block.adaptor is not None:
        x = _convolved(run, block.adaptor, x, f"{name}.adaptor", kind)
    elif x.kind != kind:
        x = _rescaled(run, x, kind, f"{name}.in")
    first = x
    expand, depthwise, project = (_conv(block.dc[n]) for n in (0, 2, 3))
    inner = _convolved(run, expand, x, f"{name}.dc.0", "act")
    inner = _activated(run, inner, f"{name}.dc.1", "act", "wsilu", _wsilu)
    inner = _convolved(run, depthwise, inner, f"{name}.dc.2", "depthwise")
    inner = _convolved(run, project, inner, f"{name}.dc.3", kind)
    x = run.emit("add", [x, inner], run.value(f"{name}.dc", kind, x.real + inner.real))
    wide = _convolved(run, _conv(block.ffn[0]), x, f"{name}.ffn.0", "act")
    wide = _activated(run, wide, f"{name}.ffn.1", "act", "wsilu", _wsilu)
    gate = run.emit("gate", [wide], run.value(f"{name}.gate", "act", sum(wide.real.chunk(2, dim=1), torch.zeros(()))))
    narrow = _convolved(run, _conv(block.ffn[2]), gate, f"{name}.ffn.2", kind)
    x = run.emit("add", [x, narrow], run.value(f"{name}.ffn", kind, x.real + narrow.real))
    if block.shortcut:
        x = run.emit("add", [x, first], run.value(f"{name}.out", kind, x.real + first.real))
    return x


def _heads(run: _Run, adapter: nn.Module, x: _Value, name: str) -> _Value:
    """The adapter behind the context network: its last layer as two, for the mean, which is returned, and the scale."""
    layers = list(cast(PointwiseAdapter, adapter).branch1)
    for n, layer in enumerate(layers[:-1]):
        if isinstance(layer, nn.GELU):
            x = _activated(run, x, f"{name}.branch1.{n}", "act", "gelu", F.gelu)
        else:
            x = _convolved(run, _conv(layer), x, f"{name}.branch1.{n}", "act")
    last = _conv(layers[-1])
    outputs = []
    for part, (register, kind) in enumerate((("mean", "base"), ("scale", "scale"))):
        rows = slice(part * last.out_channels // 2, (part + 1) * last.out_channels // 2)
        half = nn.Conv2d(last.in_channels, last.out_channels // 2, 1)
        half.padding = last.padding
        half.weight, half.bias = nn.Parameter(last.weight[rows]), nn.Parameter(_bias(last)[rows])
        out = run.value(register, kind, half(x.real))
        outputs.append(run.convolution(x, out, half, f"{name}.{register}"))
    return outputs[0]


def _conv(module: object) -> nn.Conv2d:
    assert isinstance(module, nn.Conv2d)
    return module


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
