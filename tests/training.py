"""Pictures, recipes and a small DC-AE network for the tests of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file
from skimage import data

from tilecodec.model.config import VAEConfig
from tilecodec.train.dists import CHANNELS, STAGES
from tilecodec.train.recipe import DataRecipe, DomainRecipe, TrainRecipe

if TYPE_CHECKING:
    from tilecodec.train.loop import Run
    from tilecodec.train.objective import Share

CROP = 128
"""The smallest crop the tiny model takes."""
SMALL_DC_AE = replace(
    tiny.TINY,
    vae=VAEConfig(
        kind="dc-ae",
        latent_channels=16,
        stride=8,
        widths=(16, 32, 32, 32),
        encoder_layers=(1, 1, 1, 1),
        decoder_layers=(1, 1, 1, 1),
    ),
    codec=replace(tiny.TINY.codec, rate_points=0),
)
"""The official autoencoder's and transformer's classes, small, with one rate point."""
PICTURES = {
    "photo/astronaut": data.astronaut,
    "photo/more/coffee": data.coffee,
    "medical/retina": lambda: data.retina()[:640, :640],
}


def write_pictures(folder: Path) -> Path:
    """Three photographs as ``folder/<domain>/**/*.png``."""
    for name, draw in PICTURES.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(draw())))
    return folder


def data_of(folder: Path, **options: Any) -> DataRecipe:
    """The pictures of :func:`write_pictures`."""
    domains = {name: DomainRecipe(paths=(folder / name,)) for name in ("photo", "medical")}
    return DataRecipe(domains=domains, workers=0, **options)


def recipe_of(out: Path, **options: Any) -> TrainRecipe:
    """A short stage in float32 on small crops."""
    plain: dict[str, Any] = {
        "crop": CROP,
        "batch": 4,
        "steps": 3,
        "decay_steps": 1,
        "warmup_steps": 1,
        "lr": 1e-4,
        "muon_lr": 1e-4,
        "precision": "fp32",
        "device": "cpu",
        "sample_pictures": 2,
    }
    return TrainRecipe(out=out, **{**plain, **options})


def quiet(_line: str) -> None:
    """Says nothing."""


def lpips_file(path: Path) -> Path:
    """LPIPS weights of the right shapes, drawn."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / max(1, int(np.prod(shape[1:]))) ** 0.5

    inputs = {"3": 64, "4": 128, "6": 128, "7": 256, "9": 256, "10": 384, "11": 384, "12": 512}
    widths = {"3": 16, "4": 16, "6": 32, "7": 32, "9": 48, "10": 48, "11": 64, "12": 64}
    tensors = {"features.0.weight": normal(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}
    for n, width in widths.items():
        for layer, shape in (
            ("squeeze", (width, inputs[n], 1, 1)),
            ("expand1x1", (4 * width, width, 1, 1)),
            ("expand3x3", (4 * width, width, 3, 3)),
        ):
            tensors[f"features.{n}.{layer}.weight"] = normal(*shape)
            tensors[f"features.{n}.{layer}.bias"] = torch.zeros(shape[0])
    for n, channels in enumerate((64, 128, 256, 384, 384, 512, 512)):
        tensors[f"lpips.lin{n}"] = torch.rand(1, channels, 1, 1, generator=generator)
    save_file(tensors, path)
    return path


def dists_tensors() -> dict[str, torch.Tensor]:
    """DISTS weights of the right shapes, drawn, under the names of this package."""
    generator = torch.Generator().manual_seed(1)
    tensors, number, before = {}, 0, 3
    for widths in STAGES:
        for width in widths:
            kernel = torch.randn(width, before, 3, 3, generator=generator) * (2 / (9 * before)) ** 0.5
            tensors[f"features.{number}.weight"] = kernel
            tensors[f"features.{number}.bias"] = torch.zeros(width)
            number, before = number + 2, width
        number += 1
    for name in ("alpha", "beta"):
        tensors[f"dists.{name}"] = torch.rand(1, sum(CHANNELS), 1, 1, generator=generator) + 0.1
    return tensors


def stop_before(run: Run, step: int) -> None:
    """Trains, and is interrupted in the middle of a step."""
    gradients = run.gradients

    def until(share: Share) -> tuple[torch.Tensor, torch.Tensor]:
        if run.step == step:
            raise KeyboardInterrupt
        return gradients(share)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "gradients", until)
        with pytest.raises(KeyboardInterrupt):
            run.train()
