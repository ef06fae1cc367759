"""A tiny model with random weights: everything but the picture quality is as in a real one, and it is fast."""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tilecodec.entropy.quantise import CalibrationTile, quantise
from tilecodec.entropy.tables import gaussian_table, scale_table
from tilecodec.model.config import (
    BranchConfig,
    CodecConfig,
    DiTICConfig,
    GuidanceConfig,
    TransformerConfig,
    VAEConfig,
)
from tilecodec.model.ditic import DiTIC
from tilecodec.model.weights import save_model

TINY = DiTICConfig(
    vae=VAEConfig(latent_channels=16, widths=(16, 16), encoder_layers=(1, 1), decoder_layers=(1, 1)),
    codec=CodecConfig(
        y_channels=16,
        z_channels=8,
        analysis_pre=16,
        context_width=16,
        context_blocks=1,
        rate_points=3,
        synthesis=BranchConfig(blocks=1, mid=16),
        residual=BranchConfig(blocks=0, mid=16),
        variance=BranchConfig(blocks=0, mid=8),
        prompt=BranchConfig(blocks=0, mid=None),
        prompt_channels=8,
    ),
    guidance=GuidanceConfig(pooled_tokens=4, learned_tokens=2, caption_channels=16),
    transformer=TransformerConfig(
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        timestep_span=900.0,
    ),
)


def make_bitstream_1(path: Path) -> None:
    """Turns a container into one of bitstream 1, which differs in its windows alone."""
    for file in path.glob("[0-9]*/zarr.json"):
        document = json.loads(file.read_text())
        configuration = document["codecs"][0]["configuration"]
        del configuration["blend"]
        configuration["bitstream"] = 1
        file.write_text(json.dumps(document))


def write_tiny_model(folder: Path, *, seed: int = 0, diffuse: bool = True) -> Path:
    """Writes a tiny model of random weights into ``folder`` and returns it."""
    torch.manual_seed(seed)
    config = TINY if diffuse else replace(TINY, transformer=None)
    network = DiTIC(config)
    with torch.no_grad():
        network.codec.g_a.analysis_transform[-1].ffn[2].weight.mul_(8)  # so that symbols are not all zero
    tensors = {k: v for k, v in network.state_dict().items() if v.is_floating_point()}
    gaussian = gaussian_table()
    rows = np.full(config.codec.z_channels, 24)
    tables = {}
    for name, pick in (("y", slice(None)), ("z", rows)):
        for field in ("cdf", "length", "offset"):
            tables[f"{name}.{field}"] = torch.from_numpy(np.ascontiguousarray(getattr(gaussian, field)[pick]))
    program = quantise(
        network.codec.eval(),
        np.zeros(config.codec.z_channels, np.float32),
        scale_table().astype(np.float32),
        [CalibrationTile(torch.randn(config.codec.y_channels, 16, 16) * 4, torch.randn(config.codec.z_channels, 4, 4))],
    )
    save_model(
        folder,
        alias="tiny",
        config=config,
        tensors=tensors,
        tables=tables,
        program=program.header(),
        program_tensors={k: torch.from_numpy(v) for k, v in program.tensors().items()},
    )
    return folder


@functools.cache
def tiny_model() -> str:
    """Path of a tiny model, written once per test process."""
    return str(write_tiny_model(Path(tempfile.mkdtemp(prefix="tilecodec-tiny-"))))
