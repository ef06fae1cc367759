"""The official pixel autoencoder: diffusers' AutoencoderDC, built from a config and nothing downloaded.

Source: DC-AE, arXiv 2410.10733; layer counts of ``mit-han-lab/dc-ae-f32c32-sana-1.0``.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from tilecodec.errors import ModelConfigError
from tilecodec.model.config import VAEConfig

ATTENTION_STAGES = 3
"""The last stages, the deepest, are EfficientViT blocks; those before them are residual convolutions."""


class DCAE(nn.Module):
    """Pixels in [-1, 1] (B, 3, H, W) to unscaled latents (B, latent_channels, H/stride, W/stride) and back.

    Tensors are named ``encoder.*`` and ``decoder.*``, as in the published checkpoints. Each half can be used, moved or
    dropped without the other.

    Raises:
        ModelConfigError: the config's stages contradict each other.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        stages = len(config.widths)
        if not ATTENTION_STAGES <= stages == len(config.encoder_layers) == len(config.decoder_layers):
            raise ModelConfigError(
                got=(config.widths, config.encoder_layers, config.decoder_layers),
                expected=f"widths, encoder_layers and decoder_layers of one length, {ATTENTION_STAGES} or more",
                where="vae",
            )
        if config.stride != 2 ** (stages - 1):
            raise ModelConfigError(got=config.stride, expected=2 ** (stages - 1), where="vae.stride")
        from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

        plain = stages - ATTENTION_STAGES
        block_types = ("ResBlock",) * plain + ("EfficientViTBlock",) * ATTENTION_STAGES
        multiscales: tuple[tuple[int, ...], ...] = ((),) * plain + ((5,),) * ATTENTION_STAGES
        whole = AutoencoderDC(
            in_channels=3,
            latent_channels=config.latent_channels,
            attention_head_dim=32,
            encoder_block_types=block_types,
            decoder_block_types=block_types,
            encoder_block_out_channels=config.widths,
            decoder_block_out_channels=config.widths,
            encoder_layers_per_block=config.encoder_layers,
            decoder_layers_per_block=config.decoder_layers,
            encoder_qkv_multiscales=multiscales,
            decoder_qkv_multiscales=multiscales,
            downsample_block_type="Conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
        )
        self.encoder = cast(nn.Module, whole.encoder)
        self.decoder = cast(nn.Module, whole.decoder)

    def encode(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], sides multiples of the stride, to the latent before its scaling factor."""
        return self.encoder(x)  # type: ignore[no-any-return]

    def decode(self, latent: Tensor) -> Tensor:
        """(B, latent_channels, h, w), scaling factor divided out, to pixels about [-1, 1], not clamped."""
        return self.decoder(latent)  # type: ignore[no-any-return]
