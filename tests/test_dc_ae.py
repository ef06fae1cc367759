"""The official autoencoder is diffusers' one, whole and in strips."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tilecodec.model import linear_attention, strips
from tilecodec.model.config import VAEConfig
from tilecodec.model.dc_ae import DCAE, DownBlock, GatedConv, ResBlock, UpBlock
from tilecodec.testing import library_autoencoder, reduced_config

SMALL = VAEConfig(
    kind="dc-ae",
    latent_channels=8,
    stride=32,
    widths=(32, 64, 64, 64, 128, 64),
    encoder_layers=(1, 2, 1, 1, 2, 1),
    decoder_layers=(2, 1, 1, 2, 1, 1),
)


def filled(module: nn.Module) -> nn.Module:
    """Random weights that keep activations in size, and none of them 0 or 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3 if parameter.ndim == 1 else 1 / parameter[0].numel() ** 0.5)
            if parameter.ndim == 1:
                parameter.add_(0.5)
    return module.eval()


@pytest.fixture(params=[2, 3, 4, 1000])
def strip_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a strip: few, or a whole picture; tokens likewise."""
    monkeypatch.setattr(strips, "_rows", lambda *_: request.param)
    monkeypatch.setitem(linear_attention.STRIP_TOKENS, "cpu", 2 * request.param + 1)


@pytest.mark.parametrize("config", [SMALL, reduced_config().vae], ids=["small", "reduced"])
@pytest.mark.parametrize("folded", [False, True])
def test_it_is_the_library_s(config: VAEConfig, folded: bool, strip_size: None) -> None:
    torch.manual_seed(0)
    library, ours = filled(library_autoencoder(config)), DCAE(config).eval()
    ours.load_state_dict(library.state_dict())
    for module in ours.modules():
        if folded and isinstance(module, UpBlock):
            module.fold()
    picture = torch.rand(2, 3, 96, 160) * 2 - 1
    latent = torch.randn(2, config.latent_channels, 2, 3)
    with torch.no_grad():
        for found, wanted in (
            (ours.encode(picture), library.encode(picture).latent),
            (ours.decode(latent), library.decode(latent).sample),
        ):
            assert float(wanted.std()) > 0.01
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


def test_names_are_the_library_s() -> None:
    with torch.device("meta"):
        ours, library = DCAE(SMALL).state_dict(), library_autoencoder(SMALL).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in library.items()}


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "res": lambda: ResBlock(8),
    "gated": lambda: GatedConv(8),
    "down": lambda: DownBlock(8, 16),
    "up": lambda: UpBlock(16, 8),
    "up, as wide": lambda: UpBlock(16, 16),
    "up, twice as wide": lambda: UpBlock(8, 16),
    "up, a quarter": lambda: UpBlock(32, 8),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("height", [2, 4, 6, 10, 22])
@pytest.mark.parametrize("name", BLOCKS)
def test_strips_are_the_whole(name: str, height: int, dtype: torch.dtype, strip_size: None) -> None:
    """The form for training against the form for inference, which overwrites its input."""
    torch.manual_seed(0)
    block = filled(BLOCKS[name]())
    x = torch.randn(1, next(block.parameters()).shape[1], height, 6).contiguous(memory_format=torch.channels_last)
    with torch.enable_grad():
        wanted = block(x.clone()).detach()
    fast = copy.deepcopy(block).to(dtype)
    if isinstance(fast, UpBlock):
        fast.fold()
    with torch.inference_mode():
        found = fast(x.to(dtype, copy=True))
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))


def test_it_can_be_trained() -> None:
    ours = filled(DCAE(SMALL))
    latent: Tensor = torch.randn(1, 8, 1, 2, requires_grad=True)
    loss = ours.encode(ours.decode(latent)).square().mean()
    loss.backward()
    assert latent.grad is not None
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in ours.parameters())
