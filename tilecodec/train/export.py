"""A training checkpoint to a model file: averaged weights in bf16, integer CDF tables."""

from __future__ import annotations

from pathlib import Path

import torch
from compressai.entropy_models import EntropyBottleneck
from torch import Tensor

from tilecodec.entropy.tables import CDFTable, gaussian_table
from tilecodec.model.config import DiTICConfig
from tilecodec.model.weights import save_model

EXACT = ("gains.", "vae.front.", "vae.back.", "vae.lap.")
"""Tensors kept in float32: small, and pixels or rates hang on them directly."""


def hyper_table(bottleneck: EntropyBottleneck) -> tuple[CDFTable, Tensor]:
    """The hyper-latent's integer tables, one row per channel, and the medians (Cz,) float32."""
    bottleneck.update(force=True)
    table = CDFTable(
        bottleneck._quantized_cdf.int().numpy(), bottleneck._cdf_length.int().numpy(), bottleneck._offset.int().numpy()
    )
    return table, bottleneck.quantiles[:, 0, 1].detach().float()


def export(checkpoint: Path, target: Path, *, alias: str) -> str:
    """Writes the model folder ``target`` from ``ema.pt`` and returns the model's sha256."""
    state = torch.load(checkpoint, weights_only=True)
    config = DiTICConfig.from_dict(state["config"])
    weights = {k.removeprefix("model."): v for k, v in state["ema"].items() if k.startswith("model.")}
    bottleneck = EntropyBottleneck(config.codec.z_channels)
    own = {k.removeprefix("bottleneck."): v for k, v in state["ema"].items() if k.startswith("bottleneck.")}
    bottleneck.load_state_dict(own)
    z_table, median = hyper_table(bottleneck)
    tensors = {
        k: v.float() if any(part in k for part in EXACT) else v.to(torch.bfloat16)
        for k, v in weights.items()
        if v.is_floating_point()
    }
    tables: dict[str, Tensor] = {"z.median": median}
    for name, table in (("y", gaussian_table()), ("z", z_table)):
        for field in ("cdf", "length", "offset"):
            tables[f"{name}.{field}"] = torch.from_numpy(getattr(table, field))
    return save_model(target, alias=alias, config=config, tensors=tensors, tables=tables)
