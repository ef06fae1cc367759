"""Entropy parameters: what decides each symbol's table row and mean.

:class:`EntropyParameters` is the seam: the float network below evaluates the same numbers on one machine, tile by
tile, in float32 and on one thread; an integer evaluation that is exact everywhere takes its place behind the same two
methods.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tilecodec.entropy.tables import CDFTable, scale_table
from tilecodec.model.latent_codec import CodeStep, ContextResult, LatentCodec


@dataclass(frozen=True, eq=False)
class EntropyTables:
    """The integer tables of a model."""

    y: CDFTable
    """One row per Gaussian scale."""
    z: CDFTable
    """One row per hyper-latent channel."""
    z_median: NDArray[np.float32]
    """(Cz,): hyper-latent symbols are ``round(z - median)``."""


class EntropyParameters(Protocol):
    """Evaluates the entropy model of one tile. Implementations decide alike for encoder and decoder."""

    def base(self, z_symbols: NDArray[np.int32]) -> Tensor:
        """Hyper-latent symbols (Cz, h/4, w/4) to the state before step 0, (1, Cy, h, w)."""
        ...

    def run(self, base: Tensor, code_step: CodeStep) -> ContextResult:
        """The four context steps, see :meth:`LatentCodec.run_context`."""
        ...

    def rows(self, scale: Tensor) -> Tensor:
        """Scales to table rows, int64 of the same shape."""
        ...


class FloatParameters:
    """The network's own float32 evaluation, batch 1, on the CPU.

    Equal for encoder and decoder where torch, processor and thread count are: :mod:`tilecodec.entropy.codec` runs it
    on one thread always. Elsewhere a difference is caught by the symbol check, not prevented.
    """

    def __init__(self, codec: LatentCodec, tables: EntropyTables) -> None:
        self._codec = entropy_part(codec)
        self._median = torch.from_numpy(tables.z_median.astype(np.float32)).reshape(1, -1, 1, 1)
        self._scales = torch.from_numpy(scale_table().astype(np.float32))

    def base(self, z_symbols: NDArray[np.int32]) -> Tensor:
        z_hat = torch.from_numpy(z_symbols.astype(np.float32))[None] + self._median
        return self._codec.h_s(z_hat.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]

    def run(self, base: Tensor, code_step: CodeStep) -> ContextResult:
        return self._codec.run_context(base, code_step)

    def rows(self, scale: Tensor) -> Tensor:
        return torch.searchsorted(self._scales, scale.contiguous()).clamp_max(len(self._scales) - 1)


def entropy_part(codec: LatentCodec) -> LatentCodec:
    """A float32 copy on the CPU of what the entropy model evaluates; the other branches are left out."""
    keep = {"h_s", "adapter_in", "g_c", "adapter_out", "LRP", "gains"}
    part = copy.copy(codec)
    part._modules = {  # a shallow copy with its own module table
        name: copy.deepcopy(module) if name in keep else nn.Identity() for name, module in codec._modules.items()
    }
    return part.to("cpu", torch.float32).to(memory_format=torch.channels_last).eval()
