"""The hyper-latent's integer tables, from what a checkpoint holds of CompressAI's entropy bottleneck.

A checkpoint that was saved after its tables were built holds them; otherwise they are computed here from the learned
densities, to the same integers. The density of a channel is the difference of a cumulative function at x ± 1/2: a
sigmoid of a small monotone network (five layers 1-3-3-3-3-1).

Source: variational image compression with a scale hyperprior, arXiv 1802.01436, appendix 6.1. The rounding of
frequencies is that of CompressAI 1.2.8, which follows ``ryg_rans``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tilecodec.entropy.tables import PRECISION, CDFTable
from tilecodec.errors import ModelError

LAYERS: Final = 5
STORED: Final = ("_quantized_cdf", "_cdf_length", "_offset")
PARAMETERS: Final = (
    *(f"matrices.{n}" for n in range(LAYERS)),
    *(f"biases.{n}" for n in range(LAYERS)),
    *(f"factors.{n}" for n in range(LAYERS - 1)),
)
LONGEST: Final = 1 << 14
"""Bins of a channel; a wider spread of quantiles is that of a bottleneck that was never trained."""


def stored_table(tensors: Mapping[str, Tensor]) -> CDFTable | None:
    """The tables that a checkpoint holds; None where it does not, or holds empty ones.

    Args:
        tensors: the bottleneck's, by name.

    Raises:
        ModelError: they are malformed.
    """
    parts = [tensors.get(name) for name in STORED]
    if any(part is None or part.numel() == 0 for part in parts):
        return None
    cdf, length, offset = (np.ascontiguousarray(part.to(torch.int32).numpy()) for part in parts if part is not None)
    return CDFTable(cdf, length, offset)


def computed_table(tensors: Mapping[str, Tensor]) -> CDFTable:
    """The tables of learned densities.

    Args:
        tensors: the bottleneck's, by name: ``quantiles`` (C, 1, 3) and :data:`PARAMETERS`.

    Raises:
        ModelError: densities that are not finite, or quantiles too far apart.
    """
    quantiles = tensors["quantiles"].float()[:, 0]
    median = quantiles[:, 1]
    below, above = ((d.ceil().clamp_min(0)) for d in (median - quantiles[:, 0], quantiles[:, 2] - median))
    bins = (below + above + 1).tolist()
    if not all(n <= LONGEST for n in bins):  # not a number is refused too
        raise ModelError(
            "the bottleneck's quantiles are too far apart",
            got=max(bins),
            expected=f"at most {LONGEST}",
            where="quantiles",
        )
    lengths = [int(n) for n in bins]
    at = torch.arange(max(lengths)) + (median - below.int())[:, None, None]
    low, high = (_cumulative(tensors, at + step)[:, 0] for step in (-0.5, 0.5))
    mass = torch.sigmoid(high) - torch.sigmoid(low)
    outside = torch.sigmoid(low[:, :1]) + torch.sigmoid(-high[:, -1:])
    cdf = np.zeros((len(lengths), max(lengths) + 2), np.int32)
    for row, n in enumerate(lengths):
        pmf = torch.cat([mass[row, :n], outside[row]]).numpy()
        if not np.isfinite(pmf).all() or not (pmf > 1 / (1 << PRECISION)).any():
            raise ModelError(
                "the bottleneck's densities are no probabilities", got=f"channel {row}", where="entropy_bottleneck"
            )
        cdf[row, : n + 2] = rounded_cdf(pmf)
    return CDFTable(cdf, np.array(lengths, np.int32) + 2, -below.int().numpy())


def _cumulative(tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Logits of the cumulative function of each channel: (C, 1, n) to (C, 1, n)."""
    for layer in range(LAYERS):
        x = F.softplus(tensors[f"matrices.{layer}"].float()) @ x + tensors[f"biases.{layer}"].float()
        if layer < LAYERS - 1:
            x = x + torch.tanh(tensors[f"factors.{layer}"].float()) * torch.tanh(x)
    return x


def rounded_cdf(pmf: NDArray[np.float32]) -> NDArray[np.int64]:
    """Probabilities (n,) to integer cumulative frequencies (n + 1,), from 0 to 65536, no bin empty.

    Each probability is rounded to 16 bits, all are scaled down to the right sum, and a bin that is left with nothing
    takes one from the first of the smallest bins that have more than one.
    """
    whole = 1 << PRECISION
    scaled = pmf.astype(np.float32) * np.float32(whole)
    counts = np.floor(scaled.astype(np.float64) + 0.5).astype(np.int64)  # halves away from zero
    frequency = counts * whole // counts.sum()
    frequency[-1] += whole - frequency.sum()
    for n in range(len(frequency)):
        if frequency[n] == 0:
            rich = np.where(frequency > 1, frequency, whole + 1)
            frequency[int(np.argmin(rich))] -= 1
            frequency[n] = 1
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(frequency)])
