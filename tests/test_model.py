"""The networks' inference paths: the same function as the networks that are trained."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import tiny
import torch

from tilecodec.model.blocks import DepthConvBlock
from tilecodec.model.ditic import DiTIC
from tilecodec.model.light_vae import LightVAE


@pytest.mark.parametrize("lapped", [False, True])
@pytest.mark.parametrize("size", [(128, 256), (768, 256)])
def test_grey_levels_go_the_way_of_pixels(lapped: bool, size: tuple[int, int]) -> None:
    """The merged ends, and the order in which they take pixels, against the plain network in float32."""
    torch.manual_seed(0)
    network = DiTIC(replace(tiny.TINY, vae=replace(tiny.TINY.vae, lapped=lapped))).eval()
    assert isinstance(network.vae, LightVAE)
    for layer in (network.vae.encoder[0], network.vae.decoder[-1], network.vae.front, network.vae.back):
        torch.nn.init.normal_(layer.weight, std=0.1)
        torch.nn.init.normal_(layer.bias, std=0.1)
    if network.vae.lap is not None:
        torch.nn.init.normal_(network.vae.lap.weight, std=0.1)
    fast = copy.deepcopy(network)
    assert isinstance(fast.vae, LightVAE)
    with torch.inference_mode():
        fast.vae.merge_ends()
        for module in fast.modules():
            if isinstance(module, DepthConvBlock):
                module.fold()
        levels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
        x = levels.permute(2, 0, 1)[None].float() / 127.5 - 1
        torch.testing.assert_close(fast.analyse_levels(levels), network.analyse(x), rtol=1e-4, atol=1e-4)
        latent = torch.randn(1, network.config.vae.latent_channels, size[0] // 16, size[1] // 16)
        expected = ((network.render(latent)[0] + 1) * 127.5).permute(1, 2, 0)
        actual = fast.render_levels(latent)
        assert actual.dtype == torch.uint8
        assert actual.shape == (*size, 3)
        assert (actual - expected).abs().max() <= 0.5 + 1e-3
        assert expected.std() > 20


def test_loading_a_model_imports_no_compiler() -> None:
    code = (
        "import sys; from tilecodec.entropy.model import load_model; load_model(sys.argv[1]); "
        "print(sorted({'diffusers', 'transformers', 'sympy', 'torch._dynamo'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, tiny.tiny_model()]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
