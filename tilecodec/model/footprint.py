"""How much memory a window takes while the networks run over it: an estimate from the config alone.

It counts the tensors that are alive together at the fullest moment of each stage, of which one stage at a time is
there, and takes the fullest stage. What a layer needs beside its tensors (a library's scratch space, a weight in
another layout) is in :data:`SCRATCH` and :data:`SLACK`. The estimate grows with the window's sides and with the bytes
of a value, and lies above what is measured (``tests/test_precision.py``, ``bench/official.py``). Weights are not in it.

Symbols: px pixels of the window, W its width, b bytes of a value, c channels. Float32 values on the way to values of b
bytes are counted as such.
"""

from __future__ import annotations

from typing import Final

from tilecodec.model.config import AuxEncoderConfig, BranchConfig, DiTICConfig, TransformerConfig, VAEConfig
from tilecodec.model.dc_ae import ATTENTION_STAGES, EXPANSION
from tilecodec.model.strips import strips_bytes

SCRATCH: Final = 48 << 20
"""Bytes of scratch space that any window takes."""
SLACK: Final = 1.25
"""Factor on the tensors: what the allocator cannot use again at once."""
FLOAT: Final = 4
BLOCK_COEFFICIENTS: Final = 192
"""Values of an 8x8 block of the light autoencoder."""


def decode_bytes(config: DiTICConfig, height: int, width: int, value_bytes: int, *, device: str = "cpu") -> int:
    """Bytes that decoding a window takes, from latents to pixels.

    Args:
        config: the network's config.
        height: of the window, pixels.
        width: likewise.
        value_bytes: of the activations' dtype.
        device: type of device, which decides how large strips are.
    """
    px = height * width
    stages = [_branches(config, px, value_bytes)]
    if config.transformer is not None:
        stages.append(_transformer(config.transformer, px // config.vae.stride**2, value_bytes))
    if config.vae.kind == "light":
        stages.append(_light(config.vae, px, value_bytes))
    else:
        stages.append(_dc_ae(config.vae, height, width, value_bytes, device))
    return SCRATCH + int(SLACK * (max(stages) + 3 * FLOAT * px))


def analyse_bytes(config: DiTICConfig, height: int, width: int, value_bytes: int, *, device: str = "cpu") -> int:
    """Bytes that analysing a window takes, from pixels to the code; see :func:`decode_bytes`."""
    px = height * width
    codec = config.codec
    values = 8 * codec.y_channels + 16 * (codec.analysis_pre + codec.analysis_aux)
    stages = [px // config.y_stride**2 * values * value_bytes]
    if config.vae.kind == "light":
        stages.append(_light(config.vae, px, value_bytes))
    else:
        stages.append(_dc_ae(config.vae, height, width, value_bytes, device))
    if config.aux_encoder is not None:
        stages.append(_aux_encoder(config.aux_encoder, px, value_bytes))
    return SCRATCH + int(SLACK * (max(stages) + 3 * (1 + FLOAT + value_bytes) * px))


def hyper_bytes(config: DiTICConfig, places: int, value_bytes: int) -> int:
    """Bytes that the hyper-analysis of tiles takes.

    Args:
        config: the network's config.
        places: code positions of the tiles.
        value_bytes: of the activations' dtype.
    """
    return SCRATCH + int(SLACK * places * config.codec.y_channels * (10 * value_bytes + FLOAT))


def staged_bytes(config: DiTICConfig, height: int, width: int) -> int:
    """Bytes of the process's own memory that a window takes while networks run over it elsewhere: its pixels, and two
    float32 values for each of its code's, in pinned memory, which torch takes in powers of two.

    Args:
        config: the network's config.
        height: of the window, pixels.
        width: likewise.
    """
    px = height * width
    return 2 * (3 * px + 2 * FLOAT * config.codec.y_channels * px // config.y_stride**2)


def _dc_ae(vae: VAEConfig, height: int, width: int, b: int, device: str) -> int:
    """Either half of the official autoencoder: they mirror each other."""
    fullest = 0
    for n, c in enumerate(vae.widths):
        px, rows, wide = height * width >> 2 * n, height >> n, width >> n
        picture = c * px * b
        if n + 1 < len(vae.widths):  # to or from the next stage; its strips hold the four places of a pixel
            deeper = vae.widths[n + 1]
            strips = 3 * strips_bytes(device, 4 * c * (wide // 2 + 1) * b, 16 * c * deeper * b, rows // 2)
            fullest = max(fullest, picture + deeper * px // 4 * b + strips)
        if n < len(vae.widths) - ATTENTION_STAGES:
            # two results, one of them with its kept rows joined on; float32: the norm's input, scaled, and output
            strips = (4 + 3 * FLOAT // b) * strips_bytes(device, c * wide * b, 9 * c * c * b, rows)
            fullest = max(fullest, picture + strips)
        else:
            hidden = 2 * EXPANSION * c
            strips = 4 * strips_bytes(device, hidden * wide * b, hidden * c * b, rows)
            # queries, keys and values, gathered, and mixed; or attended at two scales, mixed, and the float32 norm
            attention = c * px * max(10 * b, 7 * b + 3 * FLOAT)
            fullest = max(fullest, picture + strips, picture + attention)
    return fullest


def _light(vae: VAEConfig, px: int, b: int) -> int:
    """Either half of the light autoencoder: a block at 1/8 holds ten times its width, an end one block twice."""
    at_8 = px // 64
    return at_8 * max(10 * vae.widths[0] * b, 2 * vae.widths[0] * b + BLOCK_COEFFICIENTS * (2 * b + 2)) + px * 3


def _transformer(settings: TransformerConfig, positions: int, b: int) -> int:
    tokens = positions // settings.patch_size**2
    width = settings.num_attention_heads * settings.attention_head_dim
    hidden = int(settings.mlp_ratio * width)
    attention = width * (6 * b + 6 * FLOAT)
    gated = 3 * width * b + 6 * hidden * b
    return tokens * max(attention, gated)


def _branches(config: DiTICConfig, px: int, b: int) -> int:
    """The branches from the code to the transformer's inputs, and their results."""
    y, codec = px // config.y_stride**2, config.codec
    branches = (codec.synthesis, codec.residual, codec.variance, codec.prompt)
    results = 4 * (3 * config.vae.latent_channels + codec.prompt_channels)
    return y * b * (2 * codec.y_channels + results + max(_branch(codec.y_channels, branch) for branch in branches))


def _branch(channels: int, branch: BranchConfig) -> int:
    """Values at a code position: a block's, or the upsampling's before and after its pixels are shuffled."""
    return max(10 * channels, 2 * channels + 8 * (branch.mid or 0) + 4 * (branch.mid or 0))


def _aux_encoder(aux: AuxEncoderConfig, px: int, b: int) -> int:
    return aux.width * (px // 4) * 4 * b
