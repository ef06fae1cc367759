"""Training: losses mean what they say, a run resumes where it stopped, an export codes pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file
from skimage import data

import tilecodec
from tilecodec import metrics
from tilecodec.entropy.quantise import entropy_layers, rounded_weight, weight_exponents

pytest.importorskip("compressai")

from tilecodec.train.data import CropSampler, build_store
from tilecodec.train.export import export
from tilecodec.train.loop import Run, TrainRecipe, learning_rate_factor
from tilecodec.train.losses import LPIPSSqueeze, grid_loss, ms_ssim
from tilecodec.train.network import TrainingNetwork


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two photographs."""
    import imagecodecs

    folder = tmp_path_factory.mktemp("pictures")
    for domain, picture in (("photo", data.astronaut()), ("medical", data.retina()[:640, :640])):
        (folder / domain).mkdir()
        (folder / domain / "one.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(picture)))
    target = tmp_path_factory.mktemp("store")
    assert build_store(folder, target) == 2
    return target


def as_floats(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


def test_ms_ssim_loss_is_the_metric() -> None:
    picture = data.astronaut()[:256, :320]
    rng = np.random.default_rng(0)
    for spread in (2, 12, 40):
        other = np.clip(picture + rng.normal(0, spread, picture.shape), 0, 255).astype(np.uint8)
        loss = float(ms_ssim(as_floats(other), as_floats(picture)))
        assert loss == pytest.approx(metrics.ms_ssim(other, picture), abs=2e-4)


def test_grid_loss_sees_a_block_pattern_and_nothing_else() -> None:
    picture = as_floats(data.astronaut()[:256, :256])
    assert float(grid_loss(picture, picture)) == 0
    blurred = torch.nn.functional.avg_pool2d(picture, 5, 1, 2)
    blocks = blurred.clone()
    blocks[..., 32:64] += 0.2
    assert float(grid_loss(blocks, picture)) > 2 * float(grid_loss(blurred, picture))


def test_lpips_is_zero_for_equal_pictures_and_has_a_gradient(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = {"0": (64, 3, 3), **{f"{n}.squeeze": s for n, s in _squeezes().items()}}
    tensors = {}
    for name, (out, inner, side) in shapes.items():
        tensors[f"features.{name}.weight"] = torch.randn(out, inner, side, side) / (inner * side * side) ** 0.5
        tensors[f"features.{name}.bias"] = torch.zeros(out)
        if name != "0":
            for branch, k in (("expand1x1", 1), ("expand3x3", 3)):
                full = name.replace("squeeze", branch)
                tensors[f"features.{full}.weight"] = torch.randn(4 * out, out, k, k) / (out * k * k) ** 0.5
                tensors[f"features.{full}.bias"] = torch.zeros(4 * out)
    for n, channels in enumerate((64, 128, 256, 384, 384, 512, 512)):
        tensors[f"lpips.lin{n}"] = torch.rand(1, channels, 1, 1)
    save_file(tensors, tmp_path / "lpips.safetensors")
    measure = LPIPSSqueeze(tmp_path / "lpips.safetensors")
    picture = as_floats(data.astronaut()[:128, :128])
    assert float(measure(picture, picture)) == 0
    other = (picture + 0.1 * torch.randn_like(picture)).requires_grad_()
    distance = measure(other, picture)
    distance.sum().backward()
    assert float(distance.detach()) > 0
    assert other.grad is not None
    assert float(other.grad.abs().max()) > 0


def _squeezes() -> dict[str, tuple[int, int, int]]:
    inputs = {"3": 64, "4": 128, "6": 128, "7": 256, "9": 256, "10": 384, "11": 384, "12": 512}
    widths = {"3": 16, "4": 16, "6": 32, "7": 32, "9": 48, "10": 48, "11": 64, "12": 64}
    return {n: (widths[n], inputs[n], 1) for n in inputs}


def test_rounded_weights_fit_eight_bits_and_no_sum_leaves_32() -> None:
    torch.manual_seed(1)
    weight = torch.randn(24, 300, 3, 3) * torch.logspace(-4, 2, 24)[:, None, None, None]
    weight[3] = 0
    whole = rounded_weight(weight) * torch.exp2(weight_exponents(weight)).reshape(-1, 1, 1, 1)
    assert torch.equal(whole, whole.round())
    assert float(whole.abs().max()) <= 127
    assert float(whole.abs().flatten(1).sum(1).max()) * 32896 < 2**31
    plain = torch.randn(8, 64, 1, 1)
    assert float((rounded_weight(plain) - plain).abs().max()) <= float(plain.abs().max()) / 64


def test_learning_rate_warms_up_and_falls() -> None:
    recipe = TrainRecipe(store=Path(), out=Path(), steps=100, decay_steps=50, warmup_steps=10)
    rates = [learning_rate_factor(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[30] == 1
    assert rates[-1] < 0.03
    timed = TrainRecipe(store=Path(), out=Path(), minutes=10, warmup_steps=1)
    assert learning_rate_factor(5, timed, 4.9) == 1
    assert learning_rate_factor(5, timed, 10) == pytest.approx(0.02)


def recipe_of(store: Path, out: Path, **options: object) -> TrainRecipe:
    plain = TrainRecipe(
        store=store,
        out=out,
        steps=3,
        batch=4,
        lr=1e-4,
        muon_lr=1e-4,
        domains={"photo": 1.0},
        ms_ssim_weight=1200,
        mse_weight=0.3,
    )
    return replace(plain, **options)


def test_replicas_share_weights_and_agree_with_one(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plain(_run: Run, network: TrainingNetwork, x: torch.Tensor, _rate: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = network.model.vae.decode(network.model.vae.encode(x)).pow(2).mean()
        return loss, torch.zeros(6)

    one = Run(recipe_of(store, tmp_path / "a"), tiny.TINY)
    two = Run(recipe_of(store, tmp_path / "b", replicas=2), tiny.TINY)
    for a, b in zip(two.network.parameters(), two.replicas[1].parameters(), strict=True):
        assert a.data_ptr() == b.data_ptr()
    batch = one.sampler.batch(4)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "loss", plain)
        for run in (one, two):
            run.gradients(batch)
    pairs = [(a.grad, b.grad) for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True)]
    compared = [(a, b) for a, b in pairs if a is not None]
    assert compared
    for a, b in compared:
        torch.testing.assert_close(a, b)
    assert all(p.grad is None for p in two.replicas[1].parameters())

    before = [p.detach().clone() for p in two.network.parameters()]
    two.optimizer.zero_grad()
    two.train()
    moved = [not torch.equal(a, b) for a, b in zip(before, two.network.parameters(), strict=True)]
    assert sum(moved) > len(moved) // 2
    assert (tmp_path / "b" / "ema.pt").exists()


def test_rounding_in_the_loop_leaves_the_weights(store: Path, tmp_path: Path) -> None:
    run = Run(recipe_of(store, tmp_path, integer_weights=True, transformer=True), tiny.TINY)
    layers = entropy_layers(run.network.model.codec)
    before = {n: m.weight.detach().clone() for n, m in layers.items()}
    with run._rounded():
        assert any(not torch.equal(before[n], m.weight) for n, m in layers.items())
        assert all(torch.equal(rounded_weight(before[n]), m.weight) for n, m in layers.items())
    assert all(torch.equal(before[n], m.weight) for n, m in layers.items())
    parts = run.gradients(run.sampler.batch(4))
    assert torch.isfinite(parts).all()


def test_a_run_resumes_where_it_stopped(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after its second step and taken up again, a run ends with the weights of one that never stopped."""
    whole = Run(recipe_of(store, tmp_path / "whole", steps=4), tiny.TINY)
    whole.train()
    options = {"steps": 4, "minutes_between_checkpoints": 0.0}
    stopped = Run(recipe_of(store, tmp_path / "parts", **options), tiny.TINY)
    gradients = stopped.gradients

    def until_the_third(x: torch.Tensor) -> torch.Tensor:
        if stopped.step == 2:
            raise KeyboardInterrupt
        return gradients(x)

    monkeypatch.setattr(stopped, "gradients", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    again = Run(recipe_of(store, tmp_path / "parts", **options), tiny.TINY)
    assert again.step == 2
    again.train()
    assert again.step == 4
    for mine, other in ((again.network, whole.network), (again.ema, whole.ema)):
        for a, b in zip(mine.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-7)  # steps are small while the rate warms up
    assert torch.load(tmp_path / "parts" / "last.pt", weights_only=False)["step"] == 4


def test_an_untrained_model_is_a_transform_codec_and_its_export_codes_pictures(store: Path, tmp_path: Path) -> None:
    run = Run(recipe_of(store, tmp_path), tiny.TINY)
    run.save()
    pictures = CropSampler(store, crop=256, weights={"photo": 1.0}, seed=2).batch(7)
    sha256 = export(tmp_path / "ema.pt", tmp_path / "model", alias="trained", pictures=pictures)
    picture = data.astronaut()[:300, :260]
    report = tilecodec.encode(picture, tmp_path / "a.zarr", model=str(tmp_path / "model"), quality=100)
    assert sha256[:12] in str(report.model)
    decoded = np.asarray(tilecodec.open(tmp_path / "a.zarr")[:, :, :]).transpose(1, 2, 0)
    assert metrics.psnr(decoded, picture) > 15
