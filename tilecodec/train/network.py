"""The network as training sees it: noise for the rate, straight-through rounding for the signal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from compressai.entropy_models import EntropyBottleneck
from torch import Tensor, nn

from tilecodec.model.config import DiTICConfig
from tilecodec.model.ditic import Denoised, DiTIC
from tilecodec.train.bottleneck import likelihood
from tilecodec.train.captions import CaptionHead
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


@dataclass(frozen=True, eq=False, slots=True)
class Noise:
    """Uniform noise in [-0.5, 0.5) that stands for rounding where rates are estimated, float32."""

    y: Tensor
    """(B, Cy, H / y_stride, W / y_stride)."""
    z: Tensor
    """(B, Cz, H / z_stride, W / z_stride)."""

    @classmethod
    def draw(cls, config: DiTICConfig, count: int, height: int, width: int) -> Noise:
        """For a batch of so many pictures of that size, from torch's generator of the CPU, whatever the device."""
        parts = ((config.codec.z_channels, config.z_stride), (config.codec.y_channels, config.y_stride))
        z, y = (torch.rand(count, c, height // s, width // s) - 0.5 for c, s in parts)
        return cls(y, z)

    def part(self, index: slice) -> Noise:
        """That of some of the pictures."""
        return Noise(self.y[index], self.z[index])


def _straight_through_round(x: Tensor) -> Tensor:
    return x + (torch.round(x) - x).detach()


class TrainingNetwork(nn.Module):
    """A DiTIC with the factorised prior that only training evaluates in floats.

    Args:
        model: the network.
        embedding: length of the text embeddings that caption tokens are aligned with; None: they are not.
    """

    def __init__(self, model: DiTIC, *, embedding: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.bottleneck = EntropyBottleneck(model.config.codec.z_channels)
        self.captions: CaptionHead | None = None
        if embedding is not None:
            self.captions = CaptionHead(model.config.guidance.caption_channels, embedding)

    def forward(
        self,
        x: Tensor,
        rate_B: Tensor,
        noise: Noise | None = None,
        *,
        diffuse: bool = True,
        block_scale_gradient: bool = False,
    ) -> TrainingPass:
        """Runs the road that training takes.

        Args:
            x: (B, 3, H, W) in [-1, 1], sides multiples of ``z_stride``.
            rate_B: (B,) in [0, 1].
            noise: for the rate; drawn here if it is not given.
            diffuse: whether the diffusion step takes part.
            block_scale_gradient: whether gradients from the diffusion step's weights stop before the scales.
        """
        codec = self.model.codec
        if noise is None:
            noise = Noise.draw(self.model.config, *x.shape[:1], *x.shape[2:])
        latent = self.model.encode_latent(x)
        aux = None if self.model.aux_codec is None else self.model.aux_codec((x + 1) / 2)
        gain, inverse = codec.rate_gains(rate_B)
        y = codec.g_a(latent, aux).float() * gain
        z = codec.h_a(y).float()
        with torch.autocast(x.device.type, enabled=False):
            z_likelihood = likelihood(self.bottleneck, z + noise.z.to(z.device))
            median = self.bottleneck.quantiles[:, :, 1:2].reshape(1, -1, 1, 1).detach()
            z_hat = _straight_through_round(z - median) + median
        base = codec.h_s(z_hat).float()

        def code_step(_step: int, mean: Tensor, _scale: Tensor, mask: Tensor) -> Tensor:
            mean = mean.float()
            return (_straight_through_round(y - mean) + mean) * mask

        result = codec.run_context(base, code_step)
        bits = gaussian_bits(y + noise.y.to(y.device) - result.mean, result.scale.float())
        pixels = x.shape[2] * x.shape[3]
        bpp_y = bits.sum((1, 2, 3)) / pixels
        bpp_z = -torch.log2(z_likelihood).sum((1, 2, 3)) / pixels
        scale = result.scale.detach() if block_scale_gradient else result.scale
        denoised = self.model.denoise(result.y_hat * inverse, scale * inverse, rate_B, diffuse=diffuse)
        scaled = denoised.x0 / self.model.config.vae.scaling_factor
        return TrainingPass(self.model.vae.decode(scaled), latent, denoised, bpp_y, bpp_z)  # type: ignore[operator]
