"""Model files of the authors' architecture with reproducible random weights: what a converted checkpoint weighs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tilecodec.model.config import (
    AuxEncoderConfig,
    BranchConfig,
    CodecConfig,
    DiTICConfig,
    GuidanceConfig,
    TilingConfig,
    TransformerConfig,
    VAEConfig,
)

SPREAD = 1.5
"""Standard deviation of the codes that the integer entropy model is calibrated with."""


def small_config() -> DiTICConfig:
    """Every part of the official network, as narrow as it goes."""
    return DiTICConfig(
        vae=VAEConfig(
            kind="dc-ae",
            latent_channels=8,
            stride=32,
            scaling_factor=0.41407,
            widths=(16, 16, 32, 32, 32, 32),
            encoder_layers=(1,) * 6,
            decoder_layers=(1,) * 6,
        ),
        aux_encoder=AuxEncoderConfig(width=16, channels=32),
        codec=CodecConfig(
            y_channels=32,
            z_channels=16,
            analysis_pre=16,
            analysis_aux=16,
            context_width=32,
            context_blocks=1,
            context_kernel=3,
            residual_prediction=True,
            scale_activation="identity",
            synthesis=BranchConfig(blocks=1, mid=32),
            residual=BranchConfig(blocks=1, mid=32),
            variance=BranchConfig(blocks=1, mid=16),
            prompt=BranchConfig(blocks=1, mid=32),
            prompt_channels=32,
        ),
        guidance=GuidanceConfig(caption_channels=64),
        transformer=TransformerConfig(
            num_layers=2,
            num_attention_heads=4,
            attention_head_dim=16,
            num_cross_attention_heads=2,
            cross_attention_head_dim=32,
            patch_size=1,
        ),
        tiling=TilingConfig(overlap=64, halo=64),
    )


def write_golden_model(folder: Path, config: DiTICConfig, dtype: Any = None, *, seed: str = "g0") -> Path:
    """Writes a model file with the weights of :func:`tilecodec.testing.golden_weight` and returns its folder.

    Args:
        folder: of the model.
        config: the network's config.
        dtype: of the stored weights; ``torch.bfloat16`` unless given.
        seed: see :func:`tilecodec.testing.golden_weight`.
    """
    import torch

    from tilecodec.entropy.quantise import CalibrationTile, quantise
    from tilecodec.entropy.tables import gaussian_table, scale_table
    from tilecodec.model.ditic import DiTIC
    from tilecodec.model.weights import INTEGER_PARTS, save_model
    from tilecodec.testing import golden_weight

    dtype = dtype or torch.bfloat16
    with torch.device("meta"):
        network = DiTIC(config)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    tensors, floats = {}, {}
    for name, shape in shapes.items():
        value = torch.from_numpy(golden_weight(name, shape, seed=seed))
        if name.startswith("codec."):
            floats[name.removeprefix("codec.")] = value
        if not name.startswith(INTEGER_PARTS):
            tensors[name] = value.to(dtype)
    codec = network.codec
    codec.load_state_dict(floats, assign=True)
    generator = torch.Generator().manual_seed(0)
    code = torch.randn(config.codec.y_channels, 16, 16, generator=generator) * SPREAD
    with torch.inference_mode():
        hyper = codec.h_a(code[None])[0]
    median = np.zeros(config.codec.z_channels, np.float32)
    program = quantise(codec.eval(), median, scale_table().astype(np.float32), [CalibrationTile(code, hyper)])
    gaussian = gaussian_table()
    rows: dict[str, Any] = {"y": slice(None), "z": np.full(config.codec.z_channels, 24)}
    tables = {
        f"{name}.{field}": torch.from_numpy(np.ascontiguousarray(getattr(gaussian, field)[pick]))
        for name, pick in rows.items()
        for field in ("cdf", "length", "offset")
    }
    save_model(
        folder,
        alias=folder.name,
        config=config,
        tensors=tensors,
        tables=tables,
        program=program.header(),
        program_tensors={k: torch.from_numpy(v) for k, v in program.tensors().items()},
    )
    return folder
