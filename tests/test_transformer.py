"""The lean transformer is diffusers' transformer."""

from __future__ import annotations

import pytest
import tiny
import torch

from tilecodec.model.config import DiTICConfig, default_config
from tilecodec.model.ditic import DiTIC
from tilecodec.model.transformer import SanaTransformer, library_transformer
from tilecodec.testing import reduced_config


@pytest.mark.parametrize("config", [tiny.TINY, default_config(), reduced_config()], ids=["tiny", "default", "reduced"])
def test_the_lean_transformer_equals_the_library_one(config: DiTICConfig) -> None:
    torch.manual_seed(0)
    assert config.transformer is not None
    shape = (config.transformer, config.vae.latent_channels, config.guidance.caption_channels)
    library, lean = library_transformer(*shape).eval(), SanaTransformer(*shape).eval()
    weights = {k: torch.randn_like(v) * 0.5 / max(1, v[0].numel()) ** 0.5 for k, v in library.state_dict().items()}
    library.load_state_dict(weights)
    lean.load_state_dict(weights)
    latent = torch.randn(2, config.vae.latent_channels, 12, 8)
    caption = torch.randn(2, 9, config.guidance.caption_channels)
    timestep = torch.tensor([999.0, 340.0])
    with torch.inference_mode():
        wanted, got = library(latent, caption, timestep), lean(latent, caption, timestep)
    assert float(wanted.std()) > 1e-3
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_the_authors_network_runs_on_the_library() -> None:
    with torch.device("meta"):
        transformer = DiTIC(reduced_config()).DiT
    assert transformer is not None
    assert any(base.__module__.startswith("diffusers.") for base in type(transformer).__mro__)
