"""Entropy parameters: what decides each symbol's table row and mean, in integers.

:class:`EntropyModel` evaluates a model's integer program for a batch of tiles of one shape. It works on flat tensors:
the code of a tile has Cy h w elements, and every context step codes the quarter of them that :func:`places` lists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilecodec.entropy.integer import Arithmetic, IntegerNetwork, StepNetwork
from tilecodec.entropy.program import HIGH, LOW, Program
from tilecodec.entropy.tables import CDFTable
from tilecodec.model.blocks import quadtree_masks

STEPS = 4


@dataclass(frozen=True, eq=False)
class EntropyTables:
    """The integer tables of a model."""

    y: CDFTable
    """One row per Gaussian scale."""
    z: CDFTable
    """One row per hyper-latent channel."""


@dataclass(frozen=True, eq=False, slots=True)
class StepParameters:
    """What one context step sees, for the elements it codes: (N, n) each, in coding order."""

    mean: Tensor
    """int16, in steps of ``2^-base_bits``."""
    rows: NDArray[np.uint8]
    """CDF rows."""


@dataclass(frozen=True, eq=False, slots=True)
class CodedStep:
    """What one context step leaves behind: (N, n) integers each, in coding order."""

    mean: Tensor
    """In steps of ``2^-base_bits``."""
    symbols: Tensor
    raw: Tensor
    """The scale register's values; the network's activation is not applied."""


@dataclass(frozen=True, eq=False, slots=True)
class DecodedCode:
    """What the four steps leave behind. It is put together when it is asked for: an encoder does not ask."""

    shape: tuple[int, int, int, int]
    """(N, Cy, h, w)."""
    steps: tuple[CodedStep, ...]
    mean_step: float
    """Real size of one step of a mean, in symbols."""
    scale_step: float
    """Likewise of the scale register."""

    def symbols(self) -> Tensor:
        """(N, Cy, h, w) int32."""
        return self._whole([step.symbols for step in self.steps])

    def y_hat(self, symbols: Tensor) -> Tensor:
        """Decoded values in symbol units, (N, Cy, h, w) float32, exact.

        Args:
            symbols: those of :meth:`symbols`.
        """
        return symbols.float().add_(self._whole([step.mean for step in self.steps]).float().mul_(self.mean_step))

    def scale(self) -> Tensor:
        """The scale register's real values, likewise."""
        return self._whole([step.raw for step in self.steps]).float().mul_(self.scale_step)

    def _whole(self, parts: list[Tensor]) -> Tensor:
        n, c, h, w = self.shape
        flat = torch.empty(n, c * h * w, dtype=torch.int32)
        for step, part in enumerate(parts):
            flat.index_copy_(1, places(c, h, w, step)[1], part.int())
        return flat.view(self.shape)


CodeStep = Callable[[int, StepParameters], Tensor]
"""``(step, parameters) -> symbols``: (N, n) int32, in coding order."""


class EntropyModel:
    """A model's integer program on one device. Safe to call from several threads.

    Args:
        program: the integer program.
        device: where it runs; results do not depend on it.
        arithmetic: see :mod:`tilecodec.entropy.integer`; results do not depend on it.
    """

    def __init__(self, program: Program, *, device: torch.device, arithmetic: Arithmetic = "auto") -> None:
        self._program, self._device = program, device
        self.network = IntegerNetwork(program, device=device, arithmetic=arithmetic)
        self._steps = [StepNetwork(self.network, program, step, device) for step in range(STEPS)]
        self._median = torch.from_numpy(program.z_median.astype(np.int32)).to(device)
        self._rows = torch.from_numpy(program.rows).to(device)

    @property
    def z_step(self) -> float:
        """Real size of one step of the hyper-latent's median."""
        return 2.0**-self._program.z_bits

    @property
    def mean_step(self) -> float:
        """Real size of one step of a mean, in symbols."""
        return 2.0**-self._program.base_bits

    def run(self, z_symbols: NDArray[np.int32], code_step: CodeStep) -> DecodedCode:
        """The hyper-synthesis and the four context steps.

        Args:
            z_symbols: (N, Cz, h/4, w/4) int32.
            code_step: codes or decodes one step's symbols.
        """
        program = self._program
        symbols = torch.from_numpy(z_symbols).to(self._device).permute(0, 2, 3, 1)
        z = _to_register(symbols, self._median, program.z_bits)
        base = self.network.run(program.hyper, {"z": z})["base"].contiguous()
        n, h, w, c = base.shape
        flat = base.view(n, -1)
        steps: list[CodedStep] = []
        for step in range(STEPS):
            at = places(c, h, w, step)[0].to(self._device)
            mean, raw = self._steps[step](base, at)
            rows = self._rows.index_select(0, raw.int().sub_(LOW).reshape(-1)).reshape(n, -1)
            coded = code_step(step, StepParameters(mean.cpu(), rows.cpu().numpy())).to(self._device)
            value = _to_register(coded, mean, program.base_bits)
            mean = mean.int()
            if program.corrections:
                decoded = torch.zeros_like(flat).index_copy_(1, at, value)
                given = {"decoded": decoded.view(base.shape), "base": base}
                correction = self.network.run(program.corrections[step], given)["correction"]
                extra = correction.reshape(n, -1).index_select(1, at).int()
                value = value.int().add_(extra).clamp_(LOW, HIGH).to(torch.int16)
                mean = mean + extra
            flat.index_copy_(1, at, value)
            steps.append(CodedStep(mean.cpu(), coded.cpu(), raw.cpu()))
        return DecodedCode((n, c, h, w), tuple(steps), self.mean_step, 2.0**-program.scale_bits)


def _to_register(symbols: Tensor, offset: Tensor, bits: int) -> Tensor:
    """``sat(clip(symbol) << bits + offset)`` as int16."""
    return symbols.clamp(LOW, HIGH).mul_(1 << bits).add_(offset).clamp_(LOW, HIGH).to(torch.int16)


@lru_cache(maxsize=16)
def places(channels: int, height: int, width: int, step: int) -> tuple[Tensor, Tensor]:
    """The elements that a step codes, in coding order: (channel, row, column).

    Returns:
        Flat indexes, int64 (n,): into (height, width, channels) and into (channels, height, width).
    """
    mask = quadtree_masks(height, width)[step].repeat_interleave(channels // STEPS, dim=0)
    c, y, x = mask.nonzero(as_tuple=True)
    return (y * width + x) * channels + c, (c * height + y) * width + x
