"""The transformer is diffusers' transformer."""

from __future__ import annotations

import pytest
import tiny
import torch

from tilecodec.model.config import DiTICConfig, default_config, official_config
from tilecodec.model.transformer import SanaTransformer
from tilecodec.testing import library_transformer, reduced_config


def our_transformer(config: DiTICConfig) -> SanaTransformer:
    assert config.transformer is not None
    return SanaTransformer(config.transformer, config.vae.latent_channels, config.guidance.caption_channels).eval()


@pytest.mark.parametrize("config", [tiny.TINY, default_config(), reduced_config()], ids=["tiny", "default", "reduced"])
def test_it_is_the_library_s(config: DiTICConfig) -> None:
    torch.manual_seed(0)
    library, lean = library_transformer(config).eval(), our_transformer(config)
    weights = {k: torch.randn_like(v) * 0.5 / max(1, v[0].numel()) ** 0.5 for k, v in library.state_dict().items()}
    library.load_state_dict(weights)
    lean.load_state_dict(weights)
    latent = torch.randn(2, config.vae.latent_channels, 12, 8)
    caption = torch.randn(2, 9, config.guidance.caption_channels)
    timestep = torch.tensor([999.0, 340.0])
    with torch.inference_mode():
        wanted = library(latent, encoder_hidden_states=caption, timestep=timestep, return_dict=False)[0]
        got = lean(latent, caption, timestep)
    assert float(wanted.std()) > 1e-3
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_names_of_the_full_network_are_the_library_s() -> None:
    with torch.device("meta"):
        ours, library = our_transformer(official_config()), library_transformer(official_config())
    shapes = {k: v.shape for k, v in library.state_dict().items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == shapes
