"""The networks' inference paths: the same function as the networks that are trained."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load, save

from tilecodec.entropy.model import load_model
from tilecodec.errors import ModelError
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("inputs", [16, 24])
def test_inference_takes_a_block_s_halves_one_by_one(dtype: torch.dtype, shortcut: bool, inputs: int) -> None:
    """In place and in halves, against the plain way that gradients need; what comes in is left as it is."""
    torch.manual_seed(0)
    block = DepthConvBlock(inputs, 16, shortcut=shortcut).eval()
    block.fold()
    block.to(dtype)
    x = torch.randn(2, inputs, 9, 7).to(dtype).to(memory_format=torch.channels_last)
    before, wanted = x.clone(), block(x).detach()
    with torch.inference_mode():
        found = block(x)
    torch.testing.assert_close(found, wanted, rtol=1e-5 if dtype == torch.float32 else 2**-7, atol=1e-5)
    assert torch.equal(x, before)
    assert wanted.float().std() > 0.3


def test_loading_a_model_imports_no_compiler() -> None:
    code = (
        "import sys; from tilecodec.entropy.model import load_model; load_model(sys.argv[1]); "
        "print(sorted({'diffusers', 'transformers', 'sympy', 'torch._dynamo'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, tiny.tiny_model()]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


WEIGHT = "codec.g_s.synthesis_transform.0.ffn.2.weight"
BROKEN: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "weight of another shape": lambda t: t.update({WEIGHT: t[WEIGHT][:1].contiguous()}),
    "weight of integers": lambda t: t.update({WEIGHT: t[WEIGHT].int()}),
    "median in bfloat16": lambda t: t.update({"integer.z_median": t["integer.z_median"].bfloat16()}),
    "table in bfloat16": lambda t: t.update({"tables.y.cdf": t["tables.y.cdf"].bfloat16()}),
}


def tiny_file() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tiny model's tensors and metadata."""
    data = (Path(tiny.tiny_model()) / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    return load(data), json.loads(data[8 : 8 + size])["__metadata__"]


@pytest.mark.parametrize("name", BROKEN)
def test_tensors_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    tensors, metadata = tiny_file()
    BROKEN[name](tensors)
    (tmp_path / "model.safetensors").write_bytes(save(tensors, metadata))
    with pytest.raises(ModelError) as caught:
        load_model(str(tmp_path))
    assert caught.value.got is not None
    assert caught.value.expected is not None
    assert caught.value.where is not None


def test_a_header_deeper_than_the_parser_goes_is_refused(tmp_path: Path) -> None:
    tensors, _ = tiny_file()
    (tmp_path / "model.safetensors").write_bytes(save(tensors, {"tilecodec": "[" * 100_000}))
    with pytest.raises(ModelError):
        load_model(str(tmp_path))


def test_integer_tensors_that_nobody_names_are_ignored(tmp_path: Path) -> None:
    tensors, metadata = tiny_file()
    tensors["integer.of.somebody"] = torch.zeros(3, dtype=torch.bfloat16)
    (tmp_path / "model.safetensors").write_bytes(save(tensors, metadata))
    load_model(str(tmp_path))
