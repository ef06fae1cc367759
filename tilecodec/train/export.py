"""A training checkpoint to a model file: averaged weights in bf16, adapters merged, integer CDF tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from compressai.entropy_models import EntropyBottleneck
from torch import Tensor

from tilecodec.entropy.quantise import CalibrationTile, quantise
from tilecodec.entropy.tables import CDFTable, gaussian_table, scale_table
from tilecodec.model.config import DiTICConfig
from tilecodec.model.ditic import DiTIC
from tilecodec.model.weights import save_model
from tilecodec.train.checkpoint import read
from tilecodec.train.lora import merged, recipe_of

EXACT = ("gains.", "vae.front.", "vae.back.", "vae.lap.")
"""Tensors kept in float32: small, and pixels or rates hang on them directly."""


def hyper_table(bottleneck: EntropyBottleneck) -> tuple[CDFTable, Tensor]:
    """The hyper-latent's integer tables, one row per channel, and the medians (Cz,) float32."""
    bottleneck.update(force=True)
    table = CDFTable(
        bottleneck._quantized_cdf.int().numpy(), bottleneck._cdf_length.int().numpy(), bottleneck._offset.int().numpy()
    )
    return table, bottleneck.quantiles[:, 0, 1].detach().float()


CALIBRATION_QUALITIES = (1, 10, 30, 50, 70, 90, 100)


def calibrate(model: DiTIC, pictures: Tensor) -> list[CalibrationTile]:
    """Codes of pictures, each at one of :data:`CALIBRATION_QUALITIES`.

    Args:
        model: in float32, not folded.
        pictures: (B, 3, H, W) in [-1, 1], sides multiples of ``z_stride``.
    """
    tiles = []
    with torch.inference_mode():
        for n, picture in enumerate(pictures):
            rate = (CALIBRATION_QUALITIES[n % len(CALIBRATION_QUALITIES)] - 1) / 99
            gain, _ = model.codec.rate_gains(torch.tensor([rate]))
            y = model.analyse(picture[None]) * gain
            tiles.append(CalibrationTile(y[0], model.codec.h_a(y)[0]))
    return tiles


def export(checkpoint: Path, target: Path, *, alias: str, pictures: Tensor) -> str:
    """Writes the model folder ``target`` from ``ema.pt`` and returns the model's sha256.

    Args:
        checkpoint: see :meth:`tilecodec.train.loop.Run.save`.
        target: folder of the model.
        alias: friendly name.
        pictures: for calibration, see :func:`calibrate`; some dozens of training crops.

    Raises:
        MissingFileError, TrainingError: no checkpoint, or a damaged one.
        ModelError: a network that is not finite on the pictures.
    """
    state = read(checkpoint)
    config = DiTICConfig.from_dict(state["config"])
    weights = {k.removeprefix("model."): v for k, v in state["ema"].items() if k.startswith("model.")}
    if state.get("lora"):
        weights = merged(config, weights, recipe_of(state["lora"]))
    bottleneck = EntropyBottleneck(config.codec.z_channels)
    own = {k.removeprefix("bottleneck."): v for k, v in state["ema"].items() if k.startswith("bottleneck.")}
    bottleneck.load_state_dict(own)
    z_table, median = hyper_table(bottleneck)
    tensors = {
        k: v.float() if any(part in k for part in EXACT) else v.to(torch.bfloat16)
        for k, v in weights.items()
        if v.is_floating_point()
    }
    model = DiTIC(config).eval()
    model.load_state_dict(weights)
    scales = scale_table().astype(np.float32)
    program = quantise(model.codec, median.numpy(), scales, calibrate(model, pictures))
    tables: dict[str, Tensor] = {}
    for name, table in (("y", gaussian_table()), ("z", z_table)):
        for field in ("cdf", "length", "offset"):
            tables[f"{name}.{field}"] = torch.from_numpy(getattr(table, field))
    integers = {k: torch.from_numpy(v) for k, v in program.tensors().items()}
    return save_model(
        target,
        alias=alias,
        config=config,
        tensors=tensors,
        tables=tables,
        program=program.header(),
        program_tensors=integers,
    )
