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
from tilecodec.model.parts import Part, cut

BLOCK = 8
"""Side of the block transform, in pixels."""
HALF_RANGE = 127.5
"""Grey levels to a unit of the pixels' range."""
MIDDLE = 128
"""A grey level in the middle."""
STRIP = 2048
"""The most blocks that the ends take at a time: their values stay in the cache."""


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

    from_levels: nn.Linear
    to_levels: nn.Linear
    """The merged ends, after :meth:`merge_ends`."""

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
        latent: Tensor = self.encoder(self.front(F.pixel_unshuffle(x, BLOCK)))
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """(B, latent_channels, h, w) to pixels about [-1, 1], (B, 3, 16 h, 16 w), not clamped."""
        trunk = self.decoder[:-1](latent)
        blocks = self.back(self.decoder[-1](trunk))
        if self.lap is not None:
            blocks = blocks + self.lap(trunk)
        return F.pixel_shuffle(blocks, BLOCK)

    def merge_ends(self) -> None:
        """For inference: the ends go from and to grey levels, see :meth:`encode_levels` and :meth:`decode_levels`.

        Each block transform and the pointwise layer beside it become one layer, with the scaling of pixels. Call it
        while all weights are float32. The layer to grey levels stays float32 when the trunk does not
        (:meth:`keep_end_exact`): bf16 would round pixels to half a grey level.
        """
        first, last = cast(nn.Conv2d, self.encoder[0]), cast(nn.Conv2d, self.decoder[-1])
        weight, bias = _product(first, self.front)
        # from levels less MIDDLE, which bf16 holds exactly
        self.from_levels = _linear(
            _interleaved(weight.T).T / HALF_RANGE, bias + weight.sum(1) * (MIDDLE / HALF_RANGE - 1)
        )
        weight, bias = _product(self.back, last)
        self.to_levels = _linear(_interleaved(weight) * HALF_RANGE, (_interleaved(bias) + 1) * HALF_RANGE)
        if self.lap is not None:
            self.lap.weight = nn.Parameter(_interleaved(self.lap.weight) * HALF_RANGE, requires_grad=False)
        self.encoder, self.decoder = self.encoder[1:], self.decoder[:-1]
        del self.front, self.back

    def keep_end_exact(self) -> None:
        """Puts the merged layer to grey levels back to float32 after the network was cast."""
        self.to_levels.float()

    def encode_levels(self, levels: Tensor) -> Tensor:
        """After :meth:`merge_ends`: uint8 (H, W, 3), sides multiples of 16, to (1, latent_channels, H/16, W/16)."""
        height, width, _ = levels.shape
        rows, cols = height // BLOCK, width // BLOCK
        blocks = _swap_rows(levels.contiguous().reshape(rows, BLOCK, cols, 3 * BLOCK)).reshape(rows * cols, -1)
        weight, bias = self.from_levels.weight, self.from_levels.bias
        trunk = torch.empty(rows * cols, weight.shape[0], dtype=weight.dtype, device=levels.device)
        for part, out in zip(blocks.split(STRIP), trunk.split(STRIP), strict=True):
            centred = (part ^ MIDDLE).view(torch.int8)  # the level less MIDDLE
            torch.addmm(bias, centred.to(weight.dtype), weight.T, out=out)
        return self.encoder(trunk.reshape(1, rows, cols, -1).permute(0, 3, 1, 2))  # type: ignore[no-any-return]

    def decode_levels(self, latent: Tensor, inner: Part | None = None) -> Tensor:
        """After :meth:`merge_ends`: (1, latent_channels, h, w) to uint8 (16 h, 16 w, 3).

        Args:
            latent: see above.
            inner: the rows and columns of the latent to go on with beyond the layers at its stride; None: all.
        """
        if inner is None:
            trunk = self.decoder(latent)
        else:
            up = next(n for n, layer in enumerate(self.decoder) if isinstance(layer, Up2))
            trunk = self.decoder[up:](cut(self.decoder[:up](latent), inner))
        _, _, rows, cols = trunk.shape
        strips = -(-rows * cols // STRIP)  # of about one size: a product with few rows may go another way
        parts = trunk.permute(0, 2, 3, 1).reshape(rows * cols, -1).chunk(strips)
        lapped = None
        if self.lap is not None:
            lapped = self.lap(trunk).permute(0, 2, 3, 1).reshape(rows * cols, -1).chunk(strips)
        weight, bias = self.to_levels.weight, self.to_levels.bias
        blocks = torch.empty(rows * cols, weight.shape[0], dtype=torch.uint8, device=latent.device)
        for n, out in enumerate(blocks.chunk(strips)):
            values = F.linear(parts[n].float(), weight, bias)
            if lapped is not None:
                values += lapped[n]
            out.copy_(values.round_().clamp_(0, 255))
        levels = _swap_rows(blocks.reshape(rows, cols, BLOCK, 3 * BLOCK))
        return levels.reshape(rows * BLOCK, cols * BLOCK, 3)


def _product(outer: nn.Conv2d, inner: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one pointwise layer that does ``outer(inner(x))``, float64."""
    a, b = outer.weight[:, :, 0, 0].double(), inner.weight[:, :, 0, 0].double()
    assert outer.bias is not None
    assert inner.bias is not None
    return a @ b, a @ inner.bias.double() + outer.bias.double()


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0]).requires_grad_(False)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer


def _interleaved(x: Tensor) -> Tensor:
    """The first axis from pixel-unshuffle order (channel, row, column) to (row, column, channel)."""
    order = torch.arange(3 * BLOCK * BLOCK).reshape(3, BLOCK, BLOCK).permute(1, 2, 0).reshape(-1)
    return x[order]


def _swap_rows(x: Tensor) -> Tensor:
    """uint8 (a, b, c, 24) to (a, c, b, 24): lines of eight pixels are moved as three 64-bit words."""
    return x.view(torch.int64).transpose(1, 2).contiguous().view(torch.uint8)
