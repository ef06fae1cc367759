"""Weight-only int8: layers that keep their weight in eight bits and widen it for each use.

A weight is ``levels * step``: int8 levels, symmetric, and one step for each output channel. The layer widens it to the
activations' dtype and then computes as the plain layer does, so nothing but the weights is rounded, and no more than
one layer's weight is ever there in full.

torchao's weight-only int8 covers ``nn.Linear`` alone; here most weights are convolutions', 1x1 and 3x3.
"""

from __future__ import annotations

from typing import Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilecodec.errors import ModelError

PEAK: Final = 127
CHUNK: Final = 1 << 20
"""Weights that are looked at at a time, so that a large one is never there in float32."""
LEAST_WEIGHTS: Final = 4096
"""Smaller weights are kept as they are: they cost nothing, and pixels may hang on each."""


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight's levels and steps.

    Args:
        weight: (O, ...) float.

    Returns:
        int8 of the weight's shape, -127...127, and float32 (O, 1, ...): the nearest multiples of the steps, which are
        the largest absolute values of the output channels divided by 127.
    """
    layout = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
    levels = torch.empty_like(weight, dtype=torch.int8, memory_format=layout)
    step = torch.empty(len(weight), *[1] * (weight.ndim - 1), dtype=torch.float32, device=weight.device)
    some = max(1, CHUNK * len(weight) // weight.numel())
    for begin in range(0, len(weight), some):
        part = slice(begin, begin + some)
        values = weight[part].detach().float()
        peak = values.abs().amax(tuple(range(1, weight.ndim)), keepdim=True)
        step[part] = (peak / PEAK).clamp_min(torch.finfo(torch.float32).tiny)
        levels[part] = (values / step[part]).round_()
    return levels, step


class _Int8(nn.Module):
    """A weight in eight bits, and a bias."""

    levels: Tensor
    step: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        levels, step = quantise_weight(weight)
        self.register_buffer("levels", levels)
        self.register_buffer("step", step.to(dtype))
        self.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The weight widened, (O, ...) in the activations' dtype."""
        return self.levels.to(self.step.dtype).mul_(self.step)


class Int8Linear(_Int8):
    """``nn.Linear`` with its weight in eight bits."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Int8Conv2d(_Int8):
    """``nn.Conv2d`` with its weight in eight bits."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__(conv.weight, conv.bias, dtype)
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ModelError("no int8 form of this padding", got=conv.padding_mode, expected="zeros", where="int8")
        self.stride = cast(tuple[int, int], conv.stride)
        self.padding = cast(tuple[int, int], conv.padding)
        self.dilation = cast(tuple[int, int], conv.dilation)
        self.groups = conv.groups

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def int8_layer(layer: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """The int8 form of a layer; None where the layer stays as it is.

    Args:
        layer: with its weights in place, of any float dtype.
        dtype: the activations'.
    """
    if not isinstance(layer, nn.Linear | nn.Conv2d) or layer.weight.numel() < LEAST_WEIGHTS:
        return None
    if isinstance(layer, nn.Linear):
        return Int8Linear(layer.weight, layer.bias, dtype)
    return Int8Conv2d(layer, dtype)
