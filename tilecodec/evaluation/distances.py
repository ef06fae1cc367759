"""Distances that networks tell: LPIPS and DISTS, with weights from a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from tilecodec.errors import ModelError
from tilecodec.evaluation.anchors import Pixels

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Distance(Protocol):
    """Tells how far pictures are from their original."""

    def __call__(self, pictures: Sequence[Pixels], original: Pixels) -> list[float]:
        """The distance of each picture, 0 = equal; all (H, W, 3) uint8 of one shape."""


def load_lpips(weights: Path, device: str = "cpu") -> Distance:
    """LPIPS v0.1 on SqueezeNet.

    Args:
        weights: a file as :mod:`tilecodec.train.perceptual` describes it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        MissingFileError: no such file.
        ModelError: a file of another kind.
    """
    from tilecodec.train.losses import LPIPSSqueeze

    _check_kind(weights, "LPIPS (SqueezeNet)", "lpips.lin0", "lin0.model.1.weight")
    return _batched(LPIPSSqueeze(weights), device)


def load_dists(weights: Path, device: str = "cpu") -> Distance:
    """DISTS on VGG-16; arguments and errors as for :func:`load_lpips`."""
    from tilecodec.train.dists import DISTS

    _check_kind(weights, "DISTS", "dists.alpha", "alpha")
    return _batched(DISTS(weights), device)


def _check_kind(weights: Path, title: str, *marks: str) -> None:
    """Refuses a safetensors file without the metric's own tensor, before a backbone is looked for elsewhere."""
    if weights.suffix in (".pt", ".pth") or not weights.is_file():
        return  # the network's own loader tells
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, "numpy") as file:
            names = sorted(file.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            "the weights cannot be read", got=str(error), expected=f"weights of {title}", where=str(weights)
        ) from error
    if not any(mark in names for mark in marks):
        got = ", ".join(names[:6]) or "no tensors"
        expected = f"weights of {title}, with a tensor {marks[0]}"
        raise ModelError("weights of another kind", got=got, expected=expected, where=str(weights))


def _batched(network: Any, device: str) -> Distance:
    from tilecodec.entropy.model import pick_devices

    place = pick_devices(device)[0]
    network = network.eval().to(place)

    def distances(pictures: Sequence[Pixels], original: Pixels) -> list[float]:
        with torch.inference_mode():
            a, b = (_tensor(p).to(place).float() / 127.5 - 1 for p in (pictures, [original]))
            # The original is a batch of one: its features are computed once and broadcast.
            return [float(d) for d in network(a, b)]

    return distances


def _tensor(pictures: Sequence[Pixels]) -> torch.Tensor:
    """(B, 3, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2)))
