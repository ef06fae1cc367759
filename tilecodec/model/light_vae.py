"""The default model's autoencoder: a learned 8x8 block transform around DepthConvBlock trunks at 1/8 and 1/16.

The block transform starts as the 8x8 DCT of luma and chroma, so training starts from JPEG's basis and learns on.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilecodec.model.blocks import Down2, Up2, depth_blocks
from tilecodec.model.config import VAEConfig

BLOCK = 8
"""Side of the block transform, in pixels."""


def block_transform() -> Tensor:
    """The orthonormal 8x8 DCT of luma and chroma as one matrix.

    Returns:
        float32 (192, 192): rows are coefficients, low frequencies first, Y Cb Cr of each frequency together; columns
        are the values of an RGB block in pixel-unshuffle order (channel, row, column). Orthonormal up to the colour
        rotation, which is an orthonormal YCbCr-like basis.
    """
    k = torch.arange(BLOCK, dtype=torch.float64)
    dct = torch.cos(math.pi * (2 * k[None, :] + 1) * k[:, None] / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    dct[0] /= math.sqrt(2)
    colour = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, 2.0], [1.0, -1.0, 0.0]], dtype=torch.float64)
    colour = colour / colour.norm(dim=1, keepdim=True)
    full = torch.einsum("vi,uj,dc->vudcij", dct, dct, colour).reshape(64, 3, 192)
    order = sorted(range(64), key=lambda n: (n // 8 + n % 8, n // 8))
    return full[order].reshape(192, 192).float()


def coefficient_gains() -> Tensor:
    """Gains that bring the coefficients of pictures in [-1, 1] to similar sizes, so that the mean does not drown them.

    Returns:
        float32 (192,), in :func:`block_transform`'s order: the typical size to the power -0.7. Sizes are those of
        photographs: 6.9 for the luma mean, 0.65 / r^1.3 at radial frequency r, chroma a quarter of luma.
    """
    order = sorted(range(64), key=lambda n: (n // 8 + n % 8, n // 8))
    radius = torch.tensor([math.hypot(n // 8, n % 8) for n in order])
    luma = torch.where(radius > 0, 0.65 / radius.clamp_min(1) ** 1.3, 6.9)
    return (luma[:, None] * torch.tensor([1.0, 0.25, 0.25])).reshape(192) ** -0.7


class LightVAE(nn.Module):
    """Pixels in [-1, 1] (B, 3, H, W) to latents (B, latent_channels, H/16, W/16) and back."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        c8, c16 = config.widths
        coefficients = 3 * BLOCK * BLOCK
        self.front = nn.Conv2d(coefficients, coefficients, 1)
        self.encoder = nn.Sequential(
            nn.Conv2d(coefficients, c8, 1),
            *depth_blocks(c8, config.encoder_layers[0]),
            Down2(c8, c16),
            *depth_blocks(c16, config.encoder_layers[1]),
            nn.Conv2d(c16, config.latent_channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(config.latent_channels, c16, 1),
            *depth_blocks(c16, config.decoder_layers[1]),
            Up2(c16, c8),
            *depth_blocks(c8, config.decoder_layers[0]),
            nn.Conv2d(c8, coefficients, 1),
        )
        self.back = nn.Conv2d(coefficients, coefficients, 1)
        self.lap = nn.Conv2d(c8, coefficients, 3, padding=1, bias=False) if config.lapped else None
        self.merged = False
        self._start()

    def _start(self) -> None:
        """Starts as a transform codec: DCT in, the low frequencies passed through, DCT out, residuals near zero."""
        if self.front.weight.is_meta:
            return  # the weights are about to be loaded
        matrix = block_transform()[:, :, None, None]
        with torch.no_grad():
            gains = coefficient_gains()[:, None, None, None]
            self.front.weight.copy_(matrix * gains)
            self.back.weight.copy_((matrix / gains).transpose(0, 1))
            for conv in (self.front, self.back):
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # made with a bias
            for conv in (cast(nn.Conv2d, self.encoder[0]), cast(nn.Conv2d, self.decoder[-1])):
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # made with a bias
                nn.init.dirac_(conv.weight)
            if self.lap is not None:
                nn.init.zeros_(self.lap.weight)

    def encode(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], H and W multiples of 16, to (B, latent_channels, H/16, W/16)."""
        trunk = self.front(F.pixel_unshuffle(x, BLOCK))
        if self.merged:
            return self.encoder[1:](trunk.to(self._trunk_dtype))  # type: ignore[no-any-return]
        return self.encoder(trunk)  # type: ignore[no-any-return]

    def decode(self, latent: Tensor) -> Tensor:
        """(B, latent_channels, h, w) to pixels about [-1, 1], (B, 3, 16 h, 16 w), not clamped."""
        trunk = self.decoder[:-1](latent)
        if self.merged:
            blocks = self.back(trunk.to(self.back.weight.dtype))
        else:
            blocks = self.back(self.decoder[-1](trunk))
        if self.lap is not None:
            blocks = blocks + self.lap(trunk)
        return F.pixel_shuffle(blocks, BLOCK)

    def merge_ends(self) -> None:
        """For inference: each block transform and the pointwise layer beside it become one float32 layer.

        Call it while all weights are float32. The merged layers stay float32 when the trunk does not
        (:meth:`keep_ends_exact`): bf16 would round pixels to half a grey level.
        """
        first, last = cast(nn.Conv2d, self.encoder[0]), cast(nn.Conv2d, self.decoder[-1])
        self.front = _product(first, self.front)
        self.back = _product(self.back, last)
        self.merged = True

    def keep_ends_exact(self) -> None:
        """Puts the merged layers back to float32 after the network was cast."""
        self.front.float()
        self.back.float()

    @property
    def _trunk_dtype(self) -> torch.dtype:
        return cast(nn.Conv2d, self.encoder[0]).weight.dtype


def _product(outer: nn.Conv2d, inner: nn.Conv2d) -> nn.Conv2d:
    """One pointwise layer that does ``outer(inner(x))``, multiplied out in float64."""
    a, b = outer.weight[:, :, 0, 0].double(), inner.weight[:, :, 0, 0].double()
    assert outer.bias is not None
    assert inner.bias is not None
    layer = nn.Conv2d(inner.in_channels, outer.out_channels, 1)
    with torch.no_grad():
        layer.weight.copy_((a @ b)[:, :, None, None])
        cast(Tensor, layer.bias).copy_(a @ inner.bias.double() + outer.bias.double())
    return layer
