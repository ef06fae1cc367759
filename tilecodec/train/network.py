"""The network as training sees it: noise for the rate, straight-through rounding for the signal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from compressai.entropy_models import EntropyBottleneck
from torch import Tensor, nn

from tilecodec.model.ditic import Denoised, DiTIC
from tilecodec.train.losses import gaussian_bits


@dataclass(frozen=True, slots=True)
class TrainingPass:
    """What one forward pass gives the losses."""

    picture: Tensor
    """Reconstruction before clamping, (B, 3, H, W)."""
    latent: Tensor
    """The encoder's latent, (B, C, h, w)."""
    denoised: Denoised
    bpp_y: Tensor
    """Bits per pixel of the code, (B,)."""
    bpp_z: Tensor


def _straight_through_round(x: Tensor) -> Tensor:
    return x + (torch.round(x) - x).detach()


class TrainingNetwork(nn.Module):
    """A DiTIC with the factorised prior that only training evaluates in floats."""

    def __init__(self, model: DiTIC) -> None:
        super().__init__()
        self.model = model
        self.bottleneck = EntropyBottleneck(model.config.codec.z_channels)

    def forward(self, x: Tensor, rate_B: Tensor, *, diffuse: bool = True) -> TrainingPass:
        """Args: x (B, 3, H, W) in [-1, 1], sides multiples of ``z_stride``; rate_B (B,) in [0, 1]."""
        codec = self.model.codec
        latent = self.model.encode_latent(x)
        aux = None if self.model.aux_codec is None else self.model.aux_codec((x + 1) / 2)
        gain, inverse = codec.rate_gains(rate_B)
        y = codec.g_a(latent, aux).float() * gain
        z = codec.h_a(y).float()
        with torch.autocast(x.device.type, enabled=False):
            _, z_likelihood = self.bottleneck(z, training=True)
            median = self.bottleneck.quantiles[:, :, 1:2].reshape(1, -1, 1, 1).detach()
            z_hat = _straight_through_round(z - median) + median
        base = codec.h_s(z_hat).float()

        def code_step(_step: int, mean: Tensor, _scale: Tensor, mask: Tensor) -> Tensor:
            mean = mean.float()
            return (_straight_through_round(y - mean) + mean) * mask

        result = codec.run_context(base, code_step)
        noise = torch.rand_like(y) - 0.5
        bits = gaussian_bits(y + noise - result.mean, result.scale.float())
        pixels = x.shape[2] * x.shape[3]
        bpp_y = bits.sum((1, 2, 3)) / pixels
        bpp_z = -torch.log2(z_likelihood).sum((1, 2, 3)) / pixels
        denoised = self.model.denoise(result.y_hat * inverse, result.scale * inverse, rate_B, diffuse=diffuse)
        scaled = denoised.x0 / self.model.config.vae.scaling_factor
        return TrainingPass(self.model.vae.decode(scaled), latent, denoised, bpp_y, bpp_z)  # type: ignore[operator]
