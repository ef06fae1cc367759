"""DiTIC: the whole network, assembled from a config.

    pixels ─► vae.encode ─► g_a ─► y ─► (entropy model) ─► y_hat ─► mean, sigma, residual, prompt
                                                                      │
    pixels ◄─ vae.decode ◄─ x0 = mean - sigma0 * weight(sigma) * DiT(mean | prompt) + residual

Shape legend: B batch; H, W pixels; h, w latent positions. Pixels are floats in [-1, 1].

Source: DiT-IC, arXiv 2603.13162.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tilecodec.model.config import DiTICConfig
from tilecodec.model.guidance import LatentGuidance
from tilecodec.model.latent_codec import LatentCodec
from tilecodec.model.light_vae import LightVAE
from tilecodec.model.parts import Needs, cut
from tilecodec.model.transformer import SanaTransformer


@dataclass(frozen=True, slots=True)
class Denoised:
    """The one diffusion step's inputs and result, each (B, latent_channels, h, w) unless said."""

    mean: Tensor
    log_scale: Tensor
    """Log-variance, before its clamp to [-30, 20]."""
    residual: Tensor
    prompt: Tensor
    """Prompt features, (B, prompt_channels, h', w')."""
    caption: Tensor | None
    """Caption tokens, (B, tokens, caption_channels); None without a transformer."""
    velocity: Tensor | None
    x0: Tensor


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the decoder works out from the whole of a picture, see :class:`Denoised`."""

    mean: Tensor
    velocity: Tensor | None
    prompt: Tensor
    caption: Tensor | None


class DiTIC(nn.Module):
    """One-step diffusion-transformer image codec; the official network and the default model are two configs of it."""

    def __init__(self, config: DiTICConfig) -> None:
        super().__init__()
        self.config = config
        latent = config.vae.latent_channels
        if config.vae.kind == "light":
            self.vae: nn.Module = LightVAE(config.vae)
        else:
            from tilecodec.model.dc_ae import DCAE

            self.vae = DCAE(config.vae)
        self.aux_codec: nn.Module | None = None
        if config.aux_encoder is not None:
            from tilecodec.model.elic import ElicAnalysis

            self.aux_codec = ElicAnalysis(config.aux_encoder)
        aux_channels = config.aux_encoder.channels if config.aux_encoder else 0
        self.codec = LatentCodec(config.codec, latent, aux_channels)
        self.DiT: SanaTransformer | None = None
        self.prompter: LatentGuidance | None = None
        if config.transformer is not None:
            self.DiT = SanaTransformer(config.transformer, latent, config.guidance.caption_channels)
            self.prompter = LatentGuidance(config.guidance, config.codec.prompt_channels)

    def analyse(self, x_B3HW: Tensor) -> Tensor:
        """Pixels in [-1, 1], sides multiples of ``y_stride``, to the code y before its gain, (B, Cy, h, w)."""
        latent = self.encode_latent(x_B3HW)
        aux = None if self.aux_codec is None else self.aux_codec((x_B3HW + 1) / 2)
        return self.codec.g_a(latent, aux)  # type: ignore[no-any-return]

    def analyse_levels(self, levels: Tensor) -> Tensor:
        """For inference, :meth:`analyse` of uint8 (H, W, 3): the code (1, Cy, h, w)."""
        if isinstance(self.vae, LightVAE) and self.aux_codec is None:
            latent = self.vae.encode_levels(levels)
            code: Tensor = self.codec.g_a(_scaled(latent, self.config.vae.scaling_factor), None)
            return code
        x = levels.permute(2, 0, 1)[None].float().div_(127.5).sub_(1)
        return self.analyse(x.to(next(self.parameters()).dtype))

    def encode_latent(self, x_B3HW: Tensor) -> Tensor:
        """Pixels to the scaled VAE latent."""
        return self.vae.encode(x_B3HW) * self.config.vae.scaling_factor  # type: ignore[operator,no-any-return]

    def denoise(self, y_hat: Tensor, scale: Tensor, rate_B: Tensor, *, diffuse: bool = True) -> Denoised:
        """The decoder up to the denoised latent.

        Args:
            y_hat: decoded code in latent units (inverse gain applied), (B, Cy, h/2, w/2).
            scale: Gaussian scales in the same units.
            rate_B: rate position in [0, 1] of each picture.
            diffuse: False leaves the diffusion step out (as training does before the trunk has settled).
        """
        return self.settle(self.predict(y_hat, rate_B, diffuse=diffuse), y_hat, scale)

    def predict(self, y_hat: Tensor, rate_B: Tensor, *, diffuse: bool = True) -> Prediction:
        """:meth:`denoise` as far as it takes the whole picture."""
        mean = self.codec.g_s(y_hat)
        prompt = self.codec.prompt(y_hat)
        if not diffuse or self.DiT is None or self.prompter is None or self.config.transformer is None:
            return Prediction(mean, None, prompt, None)
        settings = self.config.transformer
        caption = self.prompter(prompt)
        timestep = settings.timestep - settings.timestep_span * rate_B
        return Prediction(mean, self.DiT(mean, caption, timestep), prompt, caption)

    def settle(self, found: Prediction, y_hat: Tensor, scale: Tensor) -> Denoised:
        """The rest of :meth:`denoise`."""
        residual = self.codec.aux(y_hat)
        log_scale = self.codec.scale(scale)
        x0 = self._settled(found.mean, found.velocity, log_scale, residual)
        return Denoised(found.mean, log_scale, residual, found.prompt, found.caption, found.velocity, x0)

    def _settled(self, mean: Tensor, velocity: Tensor | None, log_scale: Tensor, residual: Tensor) -> Tensor:
        if velocity is None or self.config.transformer is None:
            return mean + residual
        sigma = torch.exp(log_scale.float().clamp(-30.0, 20.0) / 2)
        weight = torch.where(sigma < 4, 0.15 * sigma + 0.4, 1.0)
        return mean - self.config.transformer.sigma * weight.to(mean.dtype) * velocity + residual

    def settle_part(self, mean: Tensor, velocity: Tensor | None, y_hat: Tensor, scale: Tensor, part: Needs) -> Tensor:
        """The denoised latent of a part of a window: those of :meth:`denoise`, bit for bit.

        Args:
            mean: of the whole window, see :class:`Prediction`.
            velocity: likewise.
            y_hat: of the whole window, see :meth:`denoise`.
            scale: likewise.
            part: what is needed.

        Returns:
            (B, latent_channels, h, w) of the part's latents.
        """

        def branch(layers: nn.Sequential, code: Tensor) -> Tensor:
            made: Tensor = layers[-1](cut(layers[:-1](cut(code, part.code)), part.widened))
            return made[:, :, *part.unwidened]

        moved = None if velocity is None else cut(velocity, part.latent)
        log_scale = branch(self.codec.scale.synthesis_transform, scale)
        residual = branch(self.codec.aux.block, y_hat)
        return self._settled(cut(mean, part.latent), moved, log_scale, residual)

    def render(self, x0: Tensor) -> Tensor:
        """Denoised latent to pixels clamped to [-1, 1], (B, 3, H, W)."""
        return self.vae.decode(x0 / self.config.vae.scaling_factor).clamp(-1, 1)  # type: ignore[operator,no-any-return]

    def render_part(self, x0: Tensor, part: Needs) -> Tensor:
        """For inference, a part of what :meth:`render_levels` gives, bit for bit: uint8 (h, w, 3).

        Args:
            x0: what :meth:`settle_part` gives.
            part: what is needed; of a network with the light autoencoder.
        """
        assert isinstance(self.vae, LightVAE)
        levels = self.vae.decode_levels(_scaled(x0, 1 / self.config.vae.scaling_factor), part.inner)
        return levels[part.pixels]

    def render_levels(self, x0: Tensor) -> Tensor:
        """For inference, :meth:`render` of one picture's latent as uint8 (H, W, 3)."""
        if isinstance(self.vae, LightVAE):
            return self.vae.decode_levels(_scaled(x0, 1 / self.config.vae.scaling_factor))
        pixels = self.render(x0)[0].float()
        return pixels.add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor
