"""Sample pictures of a run: originals in the upper row, what is made of them in the rows below."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilecodec.errors import StorageError
from tilecodec.train.network import TrainingNetwork

RATES: Final = (0.1, 0.5, 0.9)
"""Rate positions of the rows; models with one rate point have one row."""
GAP: Final = 4
"""White pixels between pictures."""


def reconstructions(network: TrainingNetwork, crops: Tensor, *, diffuse: bool, bf16: bool) -> list[Tensor]:
    """What the network makes of crops, at each of :data:`RATES`.

    Args:
        network: none of its parameters wants a gradient. It runs as in training, not as in inference: there, layers
            read their weights past an adapter.
        crops: (B, 3, H, W) float32 in [-1, 1], on the network's device.
        diffuse: whether the diffusion step takes part.
        bf16: whether it runs in bf16.

    Returns:
        (B, 3, H, W) float32 for each rate; torch's generator is left as it was.
    """
    rates = RATES if network.model.codec.gains is not None else RATES[1:2]
    out = []
    for rate in rates:
        position = torch.full((len(crops),), rate, device=crops.device)
        with (
            torch.enable_grad(),
            torch.random.fork_rng(devices=[]),
            torch.autocast(crops.device.type, dtype=torch.bfloat16, enabled=bf16),
        ):
            out.append(network(crops, position, diffuse=diffuse).picture.float())
    return out


def grid(rows: list[Tensor]) -> NDArray[np.uint8]:
    """Rows of pictures, (B, 3, H, W) in [-1, 1] each, as one picture (h, w, 3) uint8."""
    count, _, height, width = rows[0].shape
    out = np.full((len(rows) * (height + GAP) - GAP, count * (width + GAP) - GAP, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        levels = ((row.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        for c, tile in enumerate(levels):
            y, x = r * (height + GAP), c * (width + GAP)
            out[y : y + height, x : x + width] = tile
    return out


def write_png(path: Path, pixels: NDArray[np.uint8]) -> bytes:
    """Writes (h, w, 3) uint8 as PNG and returns its bytes.

    Raises:
        StorageError: it cannot be written.
    """
    data = bytes(imagecodecs.png_encode(pixels))
    partial = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        raise StorageError("the samples cannot be written", got=error.strerror, where=str(path)) from error
    return data
