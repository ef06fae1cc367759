"""A folder in diffusers' layout: the configs of autoencoder and transformer, and the weights that LoRA is merged onto.

BASE/vae/config.json, BASE/transformer/config.json; weights beside them, as ``diffusion_pytorch_model.safetensors`` or
in shards with an index.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast

from torch import Tensor

from tilecodec.errors import CheckpointError, MissingFileError, ModelConfigError
from tilecodec.model.config import DiTICConfig, TransformerConfig, VAEConfig, official_config
from tilecodec.model.dc_ae import ATTENTION_STAGES
from tilecodec.models.checkpoint import read_tensors

FOLDERS: Final = {"vae": "vae.", "transformer": "DiT."}
"""Folders of a base, and what their tensors' names begin with in a merged checkpoint."""
WEIGHTS: Final = "diffusion_pytorch_model.safetensors"


def read_config(base: Path) -> DiTICConfig:
    """The official config with the autoencoder and the transformer that a base describes.

    Raises:
        MissingFileError: the folder lacks a config.
        ModelConfigError: it describes networks of another kind; everything that differs is listed.
    """
    vae, transformer = (_json(base / folder / "config.json") for folder in FOLDERS)
    whole = official_config()
    assert whole.transformer is not None
    for data, folder in ((vae, "vae"), (transformer, "transformer")):
        _check_types(data, base / folder / "config.json")
    made = _vae(vae, whole.vae, base)
    guidance = dataclasses.replace(whole.guidance, caption_channels=transformer.get("caption_channels", 2304))
    settings = _transformer(transformer, whole.transformer, made.latent_channels, base)
    return dataclasses.replace(whole, vae=made, guidance=guidance, transformer=settings)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFileError(
            "the base lacks a config",
            got=path.parent.parent,
            expected=[f"{folder}/config.json" for folder in FOLDERS],
            where=path,
            hint="Give the folder of a diffusers pipeline: one that has model_index.json",
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelConfigError("a config of the base is no JSON", got=error, where=path) from error
    if not isinstance(data, dict):
        raise ModelConfigError("a config of the base is no object", got=type(data).__name__, where=path)
    return data


_COUNTS: Final = (
    "latent_channels",
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "num_cross_attention_heads",
    "cross_attention_head_dim",
    "patch_size",
    "caption_channels",
)
_FACTORS: Final = ("scaling_factor", "mlp_ratio", "timestep_scale")
_LISTS: Final = ("encoder_block_out_channels", "encoder_layers_per_block", "decoder_layers_per_block")


def _check_types(data: Mapping[str, Any], where: Path) -> None:
    """Numbers that are read are positive numbers."""

    def count(value: object) -> bool:
        return type(value) is int and 0 < value < 1 << 20

    def factor(value: object) -> bool:
        return type(value) in (int, float) and 0 < cast(float, value) < 1e6

    wrong = {k: data[k] for k in _COUNTS if k in data and not count(data[k])}
    wrong |= {k: data[k] for k in _FACTORS if k in data and not factor(data[k])}
    for key in _LISTS:
        value = data.get(key, [1])
        if not isinstance(value, list) or not 0 < len(value) <= 16 or not all(map(count, value)):
            wrong[key] = value
    if wrong:
        raise ModelConfigError("a config of the base is wrong", got=wrong, expected="positive numbers", where=where)


def _vae(data: Mapping[str, Any], official: VAEConfig, base: Path) -> VAEConfig:
    widths = tuple(data.get("encoder_block_out_channels", official.widths))
    stages = len(widths)
    plain = max(stages - ATTENTION_STAGES, 0)
    blocks = ["ResBlock"] * plain + ["EfficientViTBlock"] * ATTENTION_STAGES
    multiscales: list[list[int]] = [[]] * plain + [[5]] * ATTENTION_STAGES
    kind = data.get("downsample_block_type")
    downsampling = kind if isinstance(kind, str) and kind.lower() == "conv" else "Conv"  # written either way
    wanted: dict[str, tuple[object, object]] = {  # what the network is made for, and diffusers' default
        "in_channels": (3, 3),
        "attention_head_dim": (32, 32),
        "decoder_block_out_channels": (list(widths), list(official.widths)),
        "encoder_block_types": (blocks, "ResBlock"),
        "decoder_block_types": (blocks, "ResBlock"),
        "encoder_qkv_multiscales": (multiscales, multiscales),
        "decoder_qkv_multiscales": (multiscales, multiscales),
        "upsample_block_type": ("interpolate", "pixel_shuffle"),
        "downsample_block_type": (downsampling, "pixel_unshuffle"),
        "decoder_norm_types": ("rms_norm", "rms_norm"),
        "decoder_act_fns": ("silu", "silu"),
        "encoder_out_shortcut": (True, True),
        "decoder_in_shortcut": (True, True),
        "decoder_conv_act_fn": ("relu", "relu"),
    }
    _check(data, wanted, stages, base / "vae")
    _check_widths(widths, data.get("latent_channels", official.latent_channels), base / "vae" / "config.json")
    return dataclasses.replace(
        official,
        latent_channels=data.get("latent_channels", official.latent_channels),
        stride=2 ** (stages - 1),
        scaling_factor=data.get("scaling_factor", 1.0),
        widths=widths,
        encoder_layers=tuple(data.get("encoder_layers_per_block", official.encoder_layers)),
        decoder_layers=tuple(data.get("decoder_layers_per_block", official.decoder_layers)),
    )


def _check_widths(widths: tuple[int, ...], latent: int, where: Path) -> None:
    """Attention works in heads of 32 channels; shortcuts repeat channels, or take means of as many."""
    heads = all(width % 32 == 0 for width in widths[-ATTENTION_STAGES:])
    if not heads or widths[-1] % latent or any(4 * a % b or 4 * a < b for a, b in pairwise(widths)):
        raise ModelConfigError(
            "the autoencoder's widths do not fit each other",
            got=f"{list(widths)}, then {latent}",
            expected="multiples of 32 where it attends, each a divisor of four times the one before",
            where=where,
        )


def _transformer(data: Mapping[str, Any], official: TransformerConfig, channels: int, base: Path) -> TransformerConfig:
    defaults = {
        "num_layers": 20,
        "num_attention_heads": 70,
        "attention_head_dim": 32,
        "num_cross_attention_heads": 20,
        "cross_attention_head_dim": 112,
        "mlp_ratio": 2.5,
        "patch_size": 1,
    }
    values = {key: data.get(key, default) for key, default in defaults.items()}
    across = values["num_cross_attention_heads"] * values["cross_attention_head_dim"]
    wanted: dict[str, tuple[object, object]] = {
        "in_channels": (channels, 32),
        "out_channels": (channels, 32),
        "cross_attention_dim": (across, 2240),
        "attention_bias": (False, False),
        "norm_elementwise_affine": (False, False),
        "norm_eps": (1e-6, 1e-6),
        "guidance_embeds": (False, False),
        "qk_norm": (None, None),
    }
    _check(data, wanted, 0, base / "transformer")
    timestep = official.timestep * data.get("timestep_scale", 1.0)
    return dataclasses.replace(official, **values, timestep=timestep)


def _check(data: Mapping[str, Any], wanted: Mapping[str, tuple[object, object]], stages: int, where: Path) -> None:
    """Compares what the network fixes; one word stands for one of each stage."""
    different = {}
    for key, (needed, default) in wanted.items():
        value = data.get(key, default)
        same = value == needed or (isinstance(value, str) and [value] * stages == needed)
        each = isinstance(needed, str) and isinstance(value, list) and value and all(v == needed for v in value)
        if not (same or each):
            different[key] = (value, needed)
    if different:
        raise ModelConfigError(
            "the base is a network of another kind",
            got={k: v for k, (v, _) in different.items()},
            expected={k: v for k, (_, v) in different.items()},
            where=where / "config.json",
        )


def read_weights(base: Path) -> dict[str, Tensor]:
    """A base's tensors by the merged checkpoint's names, mapped.

    Raises:
        MissingFileError: no weights, or a shard that the index names is absent.
        CheckpointError: a file is damaged.
    """
    tensors: dict[str, Tensor] = {}
    for folder, prefix in FOLDERS.items():
        for file in _files(base / folder):
            tensors |= {prefix + name: tensor for name, tensor in read_tensors(file).items()}
    return tensors


def _files(folder: Path) -> list[Path]:
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        shards = _json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointError("an index of shards is malformed", expected="a weight_map", where=index)
        return [folder / Path(name).name for name in sorted(set(shards.values()))]
    found = sorted(folder.glob("*.safetensors"))
    plain = [file for file in found if file.name.count(".") == 1] or found  # model.fp16.safetensors is a variant
    if len(plain) != 1:
        raise MissingFileError(
            "the base lacks weights" if not found else "the base has more than one file of weights",
            got=[file.name for file in found],
            expected=f"{WEIGHTS}, or shards with an index",
            where=folder,
        )
    return plain
