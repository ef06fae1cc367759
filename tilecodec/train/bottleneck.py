"""The hyper-latent's factorised prior: CompressAI's, with noise from outside, and fitted to a model's tables."""

from __future__ import annotations

import math
from typing import Final, cast

import numpy as np
import torch
from compressai.entropy_models import EntropyBottleneck
from numpy.typing import NDArray
from torch import Tensor

from tilecodec.entropy.tables import CDFTable

FIT_STEPS: Final = 250
FIT_LR: Final = 0.05
_TOTAL: Final = 1 << 16
"""What a table's frequencies add up to."""


def likelihood(bottleneck: EntropyBottleneck, z: Tensor) -> Tensor:
    """Probability of each hyper-latent's unit-wide bin, (B, Cz, h, w) float32, of the same shape as ``z``.

    Args:
        bottleneck: CompressAI's.
        z: hyper-latent with its noise, float32.
    """
    values = z.transpose(0, 1)
    flat: Tensor = bottleneck._likelihood(values.reshape(z.shape[1], 1, -1))[0]
    bounded = bottleneck.likelihood_lower_bound(flat) if bottleneck.use_likelihood_bound else flat
    return cast(Tensor, bounded).reshape(values.shape).transpose(0, 1)


def fit_bottleneck(bottleneck: EntropyBottleneck, table: CDFTable, median: NDArray[np.float32]) -> float:
    """Gives a bottleneck the distributions that a model file holds as tables only, so that its training can go on.

    Args:
        bottleneck: its parameters are overwritten.
        table: one row for each channel; the last bin of a row is the escape.
        median: of each channel, (Cz,).

    Returns:
        Bits per symbol that the fit loses against the tables, mean over the channels.
    """
    lengths = torch.from_numpy(table.length.astype(np.int64))
    most = int(lengths.max()) - 2
    bins = torch.arange(most)
    known = bins[None] < (lengths - 2)[:, None]
    cdf = torch.from_numpy(table.cdf.astype(np.int64))
    inside = torch.where(known, torch.diff(cdf, dim=1)[:, :most], 0)
    counts = torch.cat([inside, _TOTAL - inside.sum(1, keepdim=True)], dim=1)  # the last one is the escape's
    share = (counts.double() / _TOTAL).float()
    middle = torch.from_numpy(median.astype(np.float32))
    offset = torch.from_numpy(table.offset.astype(np.float32))
    points = (middle + offset)[:, None] + bins[None]
    with torch.no_grad():
        first, last = middle + offset, middle + offset + lengths - 3
        bottleneck.quantiles.copy_(torch.stack([first, middle, last], 1)[:, None])
    shapes = [*bottleneck.matrices, *bottleneck.biases, *bottleneck.factors]
    optimizer = torch.optim.Adam(shapes, lr=FIT_LR)
    entropy = -torch.special.xlogy(share, share).sum(1) / math.log(2)
    loss = torch.zeros(())
    for step in range(FIT_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = FIT_LR * min(1.0, 2 * (1 - step / FIT_STEPS))
        within = torch.where(known, bottleneck._likelihood(points[:, None])[0][:, 0], 0.0)
        predicted = torch.cat([within, 1 - within.sum(1, keepdim=True)], dim=1)
        bits = -(share * predicted.clamp_min(1e-9).log2()).sum(1)
        loss = (bits - entropy).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())
