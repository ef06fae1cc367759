"""A tiny network of the official kind: DC-AE, ELIC, residual prediction, one rate point; and checkpoints of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tilecodec.model.config import DiTICConfig
from tilecodec.model.ditic import DiTIC
from tilecodec.models.bottleneck import LAYERS
from tilecodec.testing import golden_weight, official_scale_table, small_config

SMALL = small_config()
Z, Y = SMALL.codec.z_channels, SMALL.codec.y_channels


def network() -> DiTIC:
    """The small network on the meta device: names and shapes."""
    with torch.device("meta"):
        return DiTIC(SMALL)


def shapes() -> dict[str, tuple[int, ...]]:
    """Of every weight, by name."""
    return {name: tuple(tensor.shape) for name, tensor in network().state_dict().items()}


def weights(seed: str = "small") -> dict[str, Tensor]:
    """Reproducible weights by name."""
    return {name: torch.from_numpy(golden_weight(name, shape, seed=seed)) for name, shape in shapes().items()}


def bottleneck() -> dict[str, Tensor]:
    """An entropy bottleneck's learned tensors, as a checkpoint names them, without integer tables."""
    draw = np.random.default_rng(5)
    tensors = {"quantiles": torch.tensor([[-9.5, 0.25, 11.0]]).repeat(Z, 1, 1) + torch.arange(Z)[:, None, None] / 64}
    for n in range(LAYERS):
        inputs, outputs = (1 if n == 0 else 3), (1 if n == LAYERS - 1 else 3)
        for kind, columns, middle in (("matrices", inputs, -0.5), ("biases", 1, 0.0), ("factors", 1, 0.0)):
            if kind != "factors" or n < LAYERS - 1:
                values = middle + 0.3 * draw.standard_normal((Z, outputs, columns))
                tensors[f"{kind}.{n}"] = torch.from_numpy(values.astype(np.float32))
    return {f"codec.entropy_bottleneck.{name}": tensor for name, tensor in tensors.items()}


def merged(seed: str = "small") -> dict[str, Tensor]:
    """A merged checkpoint: weights, aliases, bottleneck, and what is ignored."""
    state: dict[str, Tensor] = {"timesteps": torch.tensor([999])}
    for name, tensor in weights(seed).items():
        state[name] = tensor
        for own in (".up.", ".down."):
            if name.startswith("codec.g_") and own in name and ".conv." not in name:
                state[name.replace(own, ".branch1.")] = tensor
    state |= bottleneck()
    state["codec.entropy_bottleneck.target"] = torch.zeros(3)
    state["codec.gaussian_conditional.scale_table"] = torch.from_numpy(official_scale_table())
    state["loss.discriminator.weight"] = torch.ones(2)
    return state


def write_configs(base: Path, config: DiTICConfig = SMALL, **changes: Mapping[str, Any]) -> Path:
    """A base's two configs, as diffusers writes them; ``vae=`` and ``transformer=`` change members."""
    vae, transformer = config.vae, config.transformer
    assert transformer is not None
    plain = len(vae.widths) - 3
    blocks = ["ResBlock"] * plain + ["EfficientViTBlock"] * 3
    documents: dict[str, dict[str, Any]] = {
        "vae": {
            "_class_name": "AutoencoderDC",
            "attention_head_dim": 32,
            "decoder_act_fns": "silu",
            "decoder_block_out_channels": list(vae.widths),
            "decoder_block_types": blocks,
            "decoder_layers_per_block": list(vae.decoder_layers),
            "decoder_norm_types": "rms_norm",
            "decoder_qkv_multiscales": [[]] * plain + [[5]] * 3,
            "downsample_block_type": "Conv",
            "encoder_block_out_channels": list(vae.widths),
            "encoder_block_types": blocks,
            "encoder_layers_per_block": list(vae.encoder_layers),
            "encoder_qkv_multiscales": [[]] * plain + [[5]] * 3,
            "in_channels": 3,
            "latent_channels": vae.latent_channels,
            "scaling_factor": vae.scaling_factor,
            "upsample_block_type": "interpolate",
        },
        "transformer": {
            "_class_name": "SanaTransformer2DModel",
            "attention_bias": False,
            "attention_head_dim": transformer.attention_head_dim,
            "caption_channels": config.guidance.caption_channels,
            "cross_attention_dim": transformer.num_cross_attention_heads * transformer.cross_attention_head_dim,
            "cross_attention_head_dim": transformer.cross_attention_head_dim,
            "in_channels": vae.latent_channels,
            "mlp_ratio": transformer.mlp_ratio,
            "norm_elementwise_affine": False,
            "norm_eps": 1e-06,
            "num_attention_heads": transformer.num_attention_heads,
            "num_cross_attention_heads": transformer.num_cross_attention_heads,
            "num_layers": transformer.num_layers,
            "out_channels": vae.latent_channels,
            "patch_size": transformer.patch_size,
            "sample_size": 32,
        },
    }
    for folder, document in documents.items():
        (base / folder).mkdir(parents=True, exist_ok=True)
        (base / folder / "config.json").write_text(json.dumps(document | dict(changes.get(folder, {}))))
    return base


def write_base(base: Path, tensors: Mapping[str, Tensor], *, shards: int = 1) -> Path:
    """A whole base: configs, and the weights of autoencoder and transformer."""
    write_configs(base)
    for folder, prefix in (("vae", "vae."), ("transformer", "DiT.")):
        own = {k.removeprefix(prefix): v.contiguous() for k, v in tensors.items() if k.startswith(prefix)}
        stem = "diffusion_pytorch_model"
        if shards == 1:
            save_file(own, base / folder / f"{stem}.safetensors")
            continue
        names = sorted(own)
        index = {}
        for n in range(shards):
            file = f"{stem}-{n + 1:05}-of-{shards:05}.safetensors"
            part = names[n::shards]
            save_file({k: own[k] for k in part}, base / folder / file)
            index |= dict.fromkeys(part, file)
        (base / folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return base
