"""Starting weights: the whole network begins as a linear transform codec, learned from pictures by PCA.

From random weights the autoencoder needs thousands of steps to find what a linear transform gives at once, and on the
way low qualities press unused channels to zero for good. So each stage of :class:`LightVAE` and of the latent codec
starts as the principal components of the 2x2 blocks below it, residual branches near zero, and the decoder as the
transposed transforms. Training goes on from there.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilecodec.model.ditic import DiTIC
from tilecodec.model.light_vae import BLOCK, LightVAE, coefficient_gains

EVEN = 0.7
"""Channels are scaled by their size to the power -EVEN, so that large ones do not drown small ones."""
LIFT = 2.5
"""Bias that carries the upsampling's activations into GELU's linear part."""


def _blocks(x: Tensor) -> Tensor:
    """(B, C, h, w) to the 2x2 blocks (n, 4 C), channel-major then row, column."""
    return F.pixel_unshuffle(x, 2).permute(0, 2, 3, 1).reshape(-1, 4 * x.shape[1])


def _components(x: Tensor, count: int) -> Tensor:
    """Orthonormal (count, 4 C): principal components about zero of the 2x2 blocks of x."""
    rows = _blocks(x).double()
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    best: Tensor = vectors[:, values.argsort(descending=True)[:count]].T.float()
    return best


def _evened(x: Tensor) -> Tensor:
    """Per-channel gains (C,) that bring x (B, C, h, w) to similar sizes."""
    return x.pow(2).mean((0, 2, 3)).clamp_min(1e-8) ** (-EVEN / 2)


def _project(x: Tensor, components: Tensor) -> Tensor:
    return F.conv2d(x, components.reshape(len(components), x.shape[1], 2, 2), stride=2)


def _set(layer: nn.Module, weight: Tensor, bias: float = 0.0) -> None:
    conv = cast(nn.Conv2d, layer)
    conv.weight.copy_(weight)
    cast(Tensor, conv.bias).fill_(bias)


def _identity(layer: nn.Module, gain: float = 1.0, bias: float = 0.0) -> None:
    conv = cast(nn.Conv2d, layer)
    nn.init.dirac_(conv.weight)
    conv.weight.mul_(gain)
    cast(Tensor, conv.bias).fill_(bias)


@torch.no_grad()
def start_as_transform(model: DiTIC, pictures: Tensor) -> None:
    """Sets the starting weights.

    Args:
        model: a DiTIC with the light autoencoder.
        pictures: some hundred training crops, float32 (B, 3, H, W) in [-1, 1].
    """
    vae = model.vae
    assert isinstance(vae, LightVAE)
    codec = model.codec
    gains8 = coefficient_gains()[: cast(nn.Conv2d, vae.encoder[0]).out_channels]
    coefficients = vae.front(F.pixel_unshuffle(pictures, BLOCK))[:, : len(gains8)] / gains8[:, None, None]

    down16 = _find(vae.encoder, "down")
    to16 = _components(coefficients, cast(nn.Conv2d, down16.down).out_channels)
    latent = _project(coefficients, to16)
    gains16 = _evened(latent)
    _set(
        cast(nn.Module, down16.down),
        (gains16[:, None, None, None] * to16.reshape(len(to16), -1, 2, 2)) / gains8[:, None, None],
    )
    _identity(vae.encoder[-1], 0.5)  # the block behind it adds its input once more

    kept = codec.config.analysis_pre
    _identity(codec.g_a.pre1[0])
    down32 = cast(nn.Conv2d, _find(codec.g_a.analysis_transform, "down").down)
    to32 = _components(latent[:, :kept], down32.out_channels)
    gains32 = _evened(_project(latent[:, :kept], to32))
    weight = torch.zeros_like(down32.weight)
    weight[:, :, 1:, 1:] = (gains32[:, None, None, None] * to32.reshape(len(to32), kept, 2, 2)) / gains16[
        :kept, None, None
    ]
    _set(down32, weight)

    up32 = _find(codec.g_s.synthesis_transform, "up").up
    _identity(up32[0], 0.5, LIFT)
    back = torch.zeros(cast(nn.Conv2d, up32[2]).weight.shape[:2]).reshape(-1, 4, len(to32))
    back[:kept] = (to32 / gains32[:, None]).T.reshape(kept, 4, len(to32)) * gains16[:kept, None, None]
    back = back.reshape(-1, len(to32)) * 2
    _set(up32[2], back[:, :, None, None])
    cast(Tensor, cast(nn.Conv2d, up32[2]).bias).copy_(-LIFT * back.sum(1))
    _identity(codec.g_s.synthesis_transform[-1])

    _identity(vae.decoder[0])
    up8 = _find(vae.decoder, "up").up.conv[0]
    inverse = (to16 / gains16[:, None]).T.reshape(len(gains8), 4, len(to16)) * gains8[:, None, None]
    _set(up8, 0.5 * inverse.reshape(-1, len(to16))[:, :, None, None])

    for name, parameter in model.named_parameters():
        if name.endswith(("dc.3.weight", "ffn.2.weight")) and not name.startswith(("codec.h_", "codec.g_c")):
            parameter.mul_(0.15)


def _find(layers: nn.Module, attribute: str) -> Any:
    """The first layer that has the attribute."""
    for layer in cast(nn.Sequential, layers):
        if hasattr(layer, attribute):
            return layer
    raise ValueError(f"no layer with {attribute!r}")
