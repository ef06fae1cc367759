"""DiT-IC's method: every part can be switched, and does what its name says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import training
from safetensors.torch import save_file
from skimage import data

from tilecodec.errors import DatasetError, MissingFileError, ModelError, RecipeError
from tilecodec.model.config import DiTICConfig
from tilecodec.model.ditic import DiTIC

pytest.importorskip("compressai")

from tilecodec.model.weights import find_model
from tilecodec.train import checkpoint, lora, perceptual
from tilecodec.train.adversarial import PatchDiscriminator, adaptive_weight, hinge
from tilecodec.train.captions import CaptionEmbeddings, annealed, contrastive_loss
from tilecodec.train.dists import DISTS
from tilecodec.train.export import export
from tilecodec.train.loop import Run, calibration_crops
from tilecodec.train.losses import LPIPSSqueeze, alignment_loss
from tilecodec.train.network import Noise, TrainingNetwork
from tilecodec.train.recipe import (
    AdversarialRecipe,
    BaseRecipe,
    CaptionRecipe,
    LoraRecipe,
    TrainRecipe,
)
from tilecodec.train.samples import reconstructions
from tilecodec.train.schedule import rate_weight
from tilecodec.train.switches import LOG_VARIANCE
from tilecodec.train.weights import Start, read_start

DIT_IC = {
    "objective": "dit-ic",
    "optimizer": "adamw",
    "schedule": "steps",
    "transformer": True,
    "lambda_target": 0.5,
    "alignment_weight": 0.05,
    "freeze_encoder": True,
    "ema": 0.999,
}
LORA = LoraRecipe(vae_rank=2, transformer_rank=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def perceptual_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("weights")
    save_file(training.dists_tensors(), out / "dists.safetensors")
    return {
        "lpips_weights": training.lpips_file(out / "lpips.safetensors"),
        "dists_weights": out / "dists.safetensors",
    }


def make(folder: Path, out: Path, config: DiTICConfig = tiny.TINY, **options: Any) -> Run:
    crop = options.pop("crop", training.CROP)
    pictures = training.data_of(folder, least_crops=1)
    recipe = training.recipe_of(out, data=pictures, crop=crop, batch=2, **{"steps": 2, **options})
    return Run(recipe, config, say=training.quiet)


def small(folder: Path, out: Path, **options: Any) -> Run:
    """The official classes."""
    return make(folder, out, training.SMALL_DC_AE, crop=64, **{**DIT_IC, **options})


def one_pass(run: Run, **options: bool) -> Any:
    torch.manual_seed(1)
    x = run.sampler.extra(2)
    return run.network(x, torch.tensor([0.2, 0.8]), **options)


def exported(run: Run, target: Path) -> Start:
    """The weights of the model file that a run's averaged weights make."""
    run.save()
    if not (run.recipe.out / "calibration.pt").exists():
        run._keep_calibration()
    export(run.recipe.out / "ema.pt", target, alias="x", pictures=calibration_crops(run.recipe.out)[:7])
    return read_start(target)


# --- switches


def test_variance_guidance(folder: Path, tmp_path: Path) -> None:
    """Off, the step's weight is exactly 1 whatever the scales are, during training and in the exported model."""
    on = make(folder, tmp_path / "on", transformer=True)
    off = make(folder, tmp_path / "off", transformer=True, variance_guidance=False)
    with torch.no_grad():
        for run in (on, off):
            torch.nn.init.normal_(run.network.model.DiT.proj_out.weight, 0, 0.1)
    for run, guided in ((on, True), (off, False)):
        denoised = one_pass(run).denoised
        settings = run.network.model.config.transformer
        plain = denoised.mean - settings.sigma * denoised.velocity + denoised.residual
        assert torch.equal(denoised.x0, plain) != guided
    off.train()
    assert torch.all(one_pass(off).denoised.log_scale == LOG_VARIANCE)
    start = exported(off, tmp_path / "model")
    held = {k: v for k, v in start.weights.items() if k.startswith("model.codec.scale.synthesis_transform.1.")}
    assert torch.all(held["model.codec.scale.synthesis_transform.1.bias"] == LOG_VARIANCE)
    assert torch.all(held["model.codec.scale.synthesis_transform.1.weight"] == 0)


def test_latent_guidance(folder: Path, tmp_path: Path) -> None:
    """Off, the caption tokens are the same for every picture, and still learn."""
    for name, same in (("on", False), ("off", True)):
        run = make(folder, tmp_path / name, transformer=True, latent_guidance=not same, steps=3, lr=1e-2)
        tokens = one_pass(run).denoised.caption
        assert torch.equal(tokens[0], tokens[1]) == same
        before = run.network.model.prompter.pattern.detach().clone()
        run.train()
        assert not torch.equal(before, run.network.model.prompter.pattern)
        tokens = one_pass(run).denoised.caption
        assert torch.equal(tokens[0], tokens[1]) == same


def test_a_frozen_encoder_stays(folder: Path, tmp_path: Path) -> None:
    for name, config, ends in (
        ("light", tiny.TINY, ("front", "encoder")),
        ("dc-ae", training.SMALL_DC_AE, ("encoder",)),
    ):
        crop = 64 if name == "dc-ae" else training.CROP
        run = make(folder, tmp_path / name, config, crop=crop, freeze_encoder=True, transformer=True)
        before = {n: p.detach().clone() for n, p in run.network.model.vae.named_parameters()}
        run.train()
        for n, p in run.network.model.vae.named_parameters():
            if n.startswith(ends):
                assert torch.equal(before[n], p), n
        assert any(not torch.equal(before[n], p) for n, p in run.network.model.vae.named_parameters())
        frozen = checkpoint.read(tmp_path / name / "ema.pt")["ema"]
        assert all(f"model.vae.{n}" in frozen for n in before)
        again = make(folder, tmp_path / name, config, crop=crop, freeze_encoder=True, transformer=True, steps=3)
        assert again.step == 2
        again.train()


def test_gradients_of_the_scales_can_be_blocked(folder: Path, tmp_path: Path) -> None:
    run = make(folder, tmp_path, transformer=True)
    torch.nn.init.normal_(run.network.model.DiT.proj_out.weight, 0, 0.1)
    head = run.network.model.codec.adapter_out[3].branch1[0].weight
    found = []
    for block in (False, True):
        run.network.zero_grad()
        one_pass(run, block_scale_gradient=block).denoised.log_scale.sum().backward()
        scales = None if head.grad is None else head.grad[len(head) // 2 :].abs().max()
        found.append(0.0 if scales is None else float(scales))
    # through the decoded code's own road the gradient of log_scale is zero: it depends on the scales alone
    assert found[0] > 0
    assert found[1] == 0


def test_gains_start_where_the_recipe_says(folder: Path, tmp_path: Path) -> None:
    run = make(folder, tmp_path, gain_start=(-1.2, 2.3), transformer=True)
    for network in (run.network, run.ema):
        gains = network.model.codec.gains
        assert gains.log_gain[:, 0].tolist() == pytest.approx([-1.2, 0.55, 2.3])
        assert torch.equal(gains.log_gain, -gains.log_inverse)
    with pytest.raises(RecipeError, match="no gains"):
        small(folder, tmp_path / "b", gain_start=(0.0, 1.0))
    with pytest.raises(RecipeError, match="no transformer"):
        make(folder, tmp_path / "c", replace(tiny.TINY, transformer=None), transformer=True)


# --- rate


def test_the_rate_weight_moves_from_base_to_target() -> None:
    recipe = TrainRecipe(out=Path(), lambda_base=0.5, lambda_target=8.0, pruning_steps=10)
    rate = torch.tensor([0.0, 1.0])
    weights = [float(rate_weight(step, recipe, rate)[0]) for step in (0, 5, 10, 99)]
    assert weights == pytest.approx([0.5, 2.0, 8.0, 8.0])
    spread = replace(recipe, lambda_target_high=2.0, pruning_steps=0)
    assert rate_weight(0, spread, torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([8.0, 4.0, 2.0])


def test_the_objective_of_the_paper(folder: Path, tmp_path: Path, perceptual_files: dict[str, Path]) -> None:
    """λ bits per pixel + MSE on [-1, 1] + LPIPS + 0.2 DISTS + 0.05 alignment, to the digit."""
    run = small(folder, tmp_path, lpips_weight=1.0, dists_weight=0.2, lambda_target=4.0, **perceptual_files)
    share = run.share(run.sampler.draw(0, 2))
    outcome = run.loss(run.network, share)
    logged = dict(zip(run.objective.columns, outcome.parts.tolist(), strict=True))
    with torch.no_grad():
        result = run.network(share.pixels, share.rate, share.noise)
    picture = result.picture
    terms = [
        4 * (result.bpp_y + result.bpp_z).mean(),
        (picture - share.pixels).pow(2).mean(),
        LPIPSSqueeze(perceptual_files["lpips_weights"])(picture, share.pixels).mean(),
        0.2 * DISTS(perceptual_files["dists_weights"])(picture, share.pixels).mean(),
        0.05 * torch.relu(0.5 - torch.cosine_similarity(result.denoised.x0, result.latent, dim=1)).mean(),
    ]
    assert all(float(t) > 0 for t in terms)
    assert logged["loss"] == pytest.approx(sum(float(t) for t in terms), rel=1e-5)
    assert float(outcome.loss.detach()) == pytest.approx(logged["loss"])
    assert logged["alignment"] == pytest.approx(20 * float(terms[4]), rel=1e-5)


def test_alignment_pulls_to_the_latent_as_far_as_the_margin() -> None:
    latent = torch.tensor([1.0, 0.0])[None, :, None, None].requires_grad_()
    for degrees, expected in ((0, 0), (59, 0), (90, 0.5), (180, 1.5)):
        angle = math.radians(degrees)
        x0 = torch.tensor([math.cos(angle), math.sin(angle)])[None, :, None, None].requires_grad_()
        loss = alignment_loss(x0, latent)
        assert float(loss.detach()) == pytest.approx(expected, abs=1e-6)
        loss.sum().backward()
        assert bool(x0.grad.abs().sum() > 1e-6) == (degrees == 90)
    assert latent.grad is None
    assert float(alignment_loss(x0, latent, 0.0).detach()) == pytest.approx(2.0)


# --- perceptual losses


def photo() -> torch.Tensor:
    return torch.from_numpy(data.astronaut()[:96, :96].copy()).permute(2, 0, 1)[None] / 127.5 - 1


def test_dists_by_hand(perceptual_files: dict[str, Path]) -> None:
    measure = DISTS(perceptual_files["dists_weights"])
    a = photo()
    torch.manual_seed(0)
    b = (a + 0.2 * torch.randn_like(a)).clamp(-1, 1)
    assert float(measure(a, a)) == pytest.approx(0, abs=1e-5)
    near, far = float(measure(0.9 * a + 0.1 * b, a)), float(measure(b, a))
    assert 0 < near < far < 1

    weights = training.dists_tensors()
    total = sum(float(weights[f"dists.{n}"].sum()) for n in ("alpha", "beta"))
    alphas, betas = (weights[f"dists.{n}"].double().flatten() / total for n in ("alpha", "beta"))
    parts, first = 0.0, 0
    for x, y in zip(measure._features(a), measure._features(b), strict=True):
        for c in range(x.shape[1]):
            p, q = x[0, c].double().flatten(), y[0, c].double().flatten()
            texture = (2 * p.mean() * q.mean() + 1e-6) / (p.mean() ** 2 + q.mean() ** 2 + 1e-6)
            cross = ((p - p.mean()) * (q - q.mean())).mean()
            structure = (2 * cross + 1e-6) / (p.var(correction=0) + q.var(correction=0) + 1e-6)
            parts += float(alphas[first + c] * texture + betas[first + c] * structure)
        first += x.shape[1]
    assert first == 1475
    assert float(measure(a, b)) == pytest.approx(1 - parts, abs=2e-4)


def test_dists_runs_vgg16(perceptual_files: dict[str, Path]) -> None:
    """The layers are torchvision's VGG-16 with other poolings."""
    import torchvision

    vgg = torchvision.models.vgg16(weights=None).features.eval()
    tensors = {k.removeprefix("features."): v for k, v in training.dists_tensors().items() if k.startswith("features.")}
    vgg.load_state_dict(tensors)
    measure = DISTS(perceptual_files["dists_weights"])
    x = (photo() + 1) / 2
    x = (x - measure.shift) / measure.spread
    expected = []
    for layer in vgg:
        if isinstance(layer, torch.nn.MaxPool2d):
            expected.append(x)
            squares = torch.nn.functional.pad(x.pow(2), (1, 1, 1, 1))
            taps = torch.tensor([1.0, 2.0, 1.0]) / 4
            rows = sum(taps[k] * squares[:, :, k : k + x.shape[2] : 2] for k in range(3))
            x = sum(taps[k] * rows[:, :, :, k : k + x.shape[3] : 2] for k in range(3)).sqrt()
        else:
            x = layer(x)
    for mine, theirs in zip(measure._features(photo())[1:], expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_perceptual_weights_come_in_several_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, perceptual_files: dict[str, Path]
) -> None:
    import torchvision

    own = {k.removeprefix("dists."): v for k, v in training.dists_tensors().items() if k.startswith("dists.")}
    torch.save(own, tmp_path / "weights.pt")  # as its authors publish them: alpha and beta, no backbone
    vgg = torchvision.models.vgg16(weights=None)
    monkeypatch.setattr(torchvision.models, "vgg16", lambda **_: vgg)
    assert torch.equal(DISTS(tmp_path / "weights.pt").features["0"].weight, vgg.features[0].weight)

    def unreachable(weights: object) -> None:
        raise OSError("urlopen error")

    monkeypatch.setattr(torchvision.models, "vgg16", unreachable)
    with pytest.raises(ModelError, match=r"vgg16 is not in the file and cannot be downloaded.*features\.\*"):
        DISTS(tmp_path / "weights.pt")

    lins = {f"lin{n}.model.1.weight": torch.rand(1, c, 1, 1) for n, c in enumerate((64, 128, 256, 384, 384, 512, 512))}
    torch.save(lins, tmp_path / "squeeze.pth")
    squeeze = torchvision.models.squeezenet1_1(weights=None)
    monkeypatch.setattr(torchvision.models, "squeezenet1_1", lambda **_: squeeze)
    measure = LPIPSSqueeze(tmp_path / "squeeze.pth")
    assert torch.equal(measure.lins[3].flatten(), lins["lin3.model.1.weight"].flatten())
    expected = squeeze.features((photo() - measure.shift) / measure.spread)
    norm = expected.pow(2).sum(1, keepdim=True).sqrt() + 1e-10
    torch.testing.assert_close(measure._taps(photo())[-1], expected / norm)

    with pytest.raises(MissingFileError):
        DISTS(tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for name in ("bad.pt", "bad.safetensors"):
        with pytest.raises(ModelError, match="cannot be read"):
            DISTS(tmp_path / name)
    with pytest.raises(ModelError, match=r"lack a tensor.*features\.0\.weight|another network"):
        DISTS(perceptual_files["lpips_weights"])
    with pytest.raises(ModelError):
        perceptual.take({}, "alpha", Path("x"))


# --- adversary


def test_the_discriminator_sees_patches_of_seventy_pixels() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(4)
    x = torch.randn(2, 3, 128, 128, requires_grad=True)
    scores = network(x)
    assert scores.shape == (2, 1, 14, 14)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
            module.running_mean, module.running_var = torch.zeros(len(module.weight)), torch.ones(len(module.weight))
    network(x)[0, 0, 7, 7].backward()
    seen = x.grad[0].abs().sum(0).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [70, 70]
    assert sum(isinstance(m, torch.nn.Conv2d) for m in network.modules()) == 5


def test_hinge_and_adaptive_weight() -> None:
    assert float(hinge(torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.0]))) == pytest.approx(0.5)
    picture = torch.ones(1, 3, 4, 4, requires_grad=True)
    weight = adaptive_weight((6 * picture).sum(), (2 * picture).sum(), picture)
    assert float(weight) == pytest.approx(3, rel=1e-3)


def test_the_adversary_begins_after_its_share(folder: Path, tmp_path: Path) -> None:
    recipe = AdversarialRecipe(channels=4, after=0.5)
    run = small(folder, tmp_path / "a", adversarial=recipe, steps=4, log_every=1, minutes_between_checkpoints=0.0)
    before = [p.detach().clone() for p in run.objective.adversary.network.parameters()]
    rows = []
    advance = run._advance

    def noted() -> torch.Tensor:
        parts = advance()
        rows.append(dict(zip(run.columns, parts.tolist(), strict=True)))
        return parts

    run._advance = noted
    run.train()
    assert [row["discriminator"] > 0 for row in rows] == [False, False, True, True]
    assert [row["deceit"] != 0 for row in rows] == [False, False, True, True]
    after = list(run.objective.adversary.network.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)
    again = small(folder, tmp_path / "a", adversarial=recipe, steps=4, log_every=1)
    for a, b in zip(after, again.objective.adversary.network.parameters(), strict=True):
        assert torch.equal(a, b)


# --- captions


def write_captions(path: Path, names: list[str], size: int = 12) -> Path:
    rng = np.random.default_rng(0)
    np.savez(path, **{name: rng.normal(size=size).astype(np.float32) for name in names})
    return path


def test_embeddings_by_picture(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "c.npz", ["astronaut", "more/coffee.png"])
    found = CaptionEmbeddings(path)
    vectors, described = found.of(["astronaut.png", "retina.png", "more/coffee.png", ""])
    assert vectors.shape == (4, 12)
    assert described.tolist() == [True, False, True, False]
    assert torch.equal(vectors[0], torch.from_numpy(np.load(path)["astronaut"]))
    save_file({"a": torch.ones(5, dtype=torch.bfloat16)}, tmp_path / "c.safetensors")
    assert CaptionEmbeddings(tmp_path / "c.safetensors").size == 5
    with pytest.raises(DatasetError, match=r"no picture has a text embedding.*astronaut.*x\.png"):
        found.check(["x.png"])
    found.check(["x.png", "astronaut.png"])

    np.savez(tmp_path / "two.npz", a=np.ones(3), b=np.ones(4))
    np.savez(tmp_path / "flat.npz", a=np.ones((3, 3)))
    np.savez(tmp_path / "nan.npz", a=np.full(3, np.nan))
    np.savez(tmp_path / "empty.npz")
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], dtype=object))
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for name in ("two.npz", "flat.npz", "nan.npz", "empty.npz", "pickled.npz", "bad.npz", "bad.safetensors"):
        with pytest.raises(ModelError):
            CaptionEmbeddings(tmp_path / name)
    with pytest.raises(MissingFileError):
        CaptionEmbeddings(tmp_path / "none.npz")


def test_the_contrastive_loss_is_clip_s() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 8), torch.randn(4, 8)
    names = ["p", "q", "r", "s"]
    unit = [torch.nn.functional.normalize(v, dim=1) for v in (a, b)]
    logits = unit[0] @ unit[1].T / 0.07
    expected = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()).mean() / 2
    torch.testing.assert_close(contrastive_loss(a, b, names, 0.07), expected)
    matched = contrastive_loss(b, b, names, 0.07)
    assert float(matched) < 0.1 * float(expected)
    one_picture = contrastive_loss(a, b, ["p"] * 4, 0.07)
    assert float(one_picture) == pytest.approx(0, abs=1e-6)
    assert float(contrastive_loss(a[:1], b[:1], ["p"], 0.07)) == 0
    assert float(contrastive_loss(a[:0], b[:0], [], 0.07)) == 0
    recipe = CaptionRecipe(embeddings=Path(), weight=0.2, until=0.3)
    assert [annealed(recipe, done) for done in (0, 0.15, 0.3, 1)] == pytest.approx([0.2, 0.1, 0, 0])


def test_captions_take_part_in_the_first_third_of_a_stage(folder: Path, tmp_path: Path) -> None:
    path = write_captions(tmp_path / "c.npz", ["astronaut", "more/coffee", "retina"])
    captions = CaptionRecipe(embeddings=path, until=0.5, weight=1.0)
    run = make(folder, tmp_path / "a", transformer=True, captions=captions, steps=4, lr=1e-3)
    share = run.share(run.sampler.draw(0, 2))
    assert share.described.tolist() == [True, True]
    run.step = 0
    run.gradients(replace(share, names=("a", "b")))
    pattern = run.network.model.prompter.align[0].weight
    assert float(pattern.grad.abs().max()) > 0
    assert float(run.network.captions.map.weight.grad.abs().max()) > 0
    run.step = 2
    run.network.zero_grad()
    run.gradients(replace(share, names=("a", "b")))
    assert float(run.network.captions.map.weight.grad.abs().max()) == 0
    run.network.zero_grad()
    run.step = 0
    run.train()
    assert "captions" in run.columns
    target = tmp_path / "model"
    assert not any("captions" in name for name in exported(run, target).weights)
    wrong = write_captions(tmp_path / "w.npz", ["x"])
    with pytest.raises(DatasetError, match="no picture has a text embedding"):
        make(folder, tmp_path / "b", transformer=True, captions=replace(captions, embeddings=wrong))


# --- adapters


def test_adapters_start_as_no_change_and_merge_to_the_same_network(folder: Path, tmp_path: Path) -> None:
    plain = small(folder, tmp_path / "plain")
    plain.save()
    options = {"lora": LORA, "start_from": tmp_path / "plain" / "ema.pt", "lr": 1e-2, "warmup_steps": 1}
    run = small(folder, tmp_path / "lora", **options)
    torch.testing.assert_close(one_pass(run).picture, one_pass(plain).picture)
    adapted = {n for n, p in run.network.named_parameters() if p.requires_grad and ".lora_" in n}
    assert any(".vae.decoder." in n for n in adapted)
    assert any(".DiT." in n for n in adapted)
    frozen = {n for n, p in run.network.named_parameters() if not p.requires_grad}
    assert all(n.startswith(("model.vae.", "model.DiT.", "model.aux_codec.")) for n in frozen)
    before = {n: p.detach().clone() for n, p in run.network.named_parameters()}
    run.train()
    for n, p in run.network.named_parameters():
        if n in frozen:
            assert torch.equal(before[n], p)
    assert any(
        not torch.equal(before[n], p) for n, p in run.network.named_parameters() if n.endswith("lora_B.default.weight")
    )

    last = checkpoint._read(tmp_path / "lora" / "last.pt")
    assert not frozen & set(last["network"])  # written once, elsewhere
    state = checkpoint.read(tmp_path / "lora" / "ema.pt")
    weights = {k.removeprefix("model."): v for k, v in state["ema"].items() if k.startswith("model.")}
    merged = lora.merged(training.SMALL_DC_AE, weights, lora.recipe_of(state["lora"]))
    whole = TrainingNetwork(DiTIC(training.SMALL_DC_AE))
    whole.model.load_state_dict(merged)
    whole.bottleneck.load_state_dict(run.ema.bottleneck.state_dict())
    whole.to(memory_format=torch.channels_last).requires_grad_(False)  # other kernels round symbols another way
    torch.manual_seed(1)
    x = run.sampler.extra(2)
    noise = Noise.draw(training.SMALL_DC_AE, 2, 64, 64)
    a, b = (n(x, torch.zeros(2), noise) for n in (run.ema, whole))  # with gradients enabled: see samples.py
    torch.testing.assert_close(a.picture, b.picture, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(a.picture, one_pass(plain).picture, atol=1e-3)
    (shown,) = reconstructions(run.ema, x, diffuse=True, bf16=False)
    assert not shown.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(shown, whole(x, torch.full((2,), 0.5)).picture, rtol=1e-3, atol=1e-3)


def test_a_run_with_adapters_resumes_and_its_next_stage_begins_from_it(folder: Path, tmp_path: Path) -> None:
    options = {"lora": LORA, "minutes_between_checkpoints": 0.0, "lr": 1e-3, "steps": 3}
    whole = small(folder, tmp_path / "whole", **options)
    whole.train()
    training.stop_before(small(folder, tmp_path / "parts", **options), 2)
    again = small(folder, tmp_path / "parts", **options)
    assert again.step == 2
    again.train()
    for a, b in zip(whole.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)

    start = tmp_path / "parts" / "ema.pt"
    with_adapters = small(folder, tmp_path / "next", start_from=start, lora=LORA)
    without = small(folder, tmp_path / "full", start_from=start)
    picture = one_pass(again).picture
    for a, b in zip(again.ema.parameters(), with_adapters.network.parameters(), strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(one_pass(with_adapters).picture, one_pass(without).picture, rtol=1e-4, atol=1e-4)
    assert picture.shape == (2, 3, 64, 64)
    model = exported(with_adapters, tmp_path / "model")
    assert not any(".lora_" in name or "base_layer" in name for name in model.weights)


def test_adapters_without_a_layer_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"no layer for an adapter; got: qq; expected: .*proj_out.*transformer_targets"
    ):
        small(folder, tmp_path, lora=replace(LORA, transformer_targets=("qq",)))
    with pytest.raises(RecipeError, match=r"lora\.vae_targets"):
        make(folder, tmp_path, lora=LORA)  # the light autoencoder has other layers
    with pytest.raises(RecipeError, match="takes no adapter"):
        make(folder, tmp_path, lora=replace(LORA, vae_targets=("ffn.0",)))


# --- starts


def test_published_parts_are_loaded_whole(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(9)
    other = DiTIC(training.SMALL_DC_AE)
    (tmp_path / "transformer").mkdir()
    tensors = {k: v.contiguous() for k, v in other.DiT.state_dict().items()}
    names = sorted(tensors)
    for n, part in enumerate((names[::2], names[1::2])):
        save_file({k: tensors[k] for k in part}, tmp_path / "transformer" / f"part-{n}.safetensors")
    save_file({k: v.contiguous() for k, v in other.vae.state_dict().items()}, tmp_path / "vae.safetensors")
    base = BaseRecipe(vae=tmp_path / "vae.safetensors", transformer=tmp_path / "transformer")
    run = small(folder, tmp_path / "run", base=base, lora=LORA)
    mine = {lora.plain_name(k): v for k, v in run.network.model.state_dict().items()}
    for name, tensor in other.state_dict().items():
        if name.startswith(("vae.", "DiT.")):
            assert torch.equal(mine[name], tensor), name

    save_file({names[0]: tensors[names[0]]}, tmp_path / "part.safetensors")
    (tmp_path / "empty").mkdir()
    for wrong, error, words in (
        (BaseRecipe(vae=tmp_path / "none"), MissingFileError, "none"),
        (BaseRecipe(vae=tmp_path / "empty"), MissingFileError, r"\*\.safetensors"),
        (BaseRecipe(transformer=tmp_path / "part.safetensors"), ModelError, "missing .*base.transformer"),
        (BaseRecipe(aux_encoder=tmp_path / "vae.safetensors"), RecipeError, "no such part"),
    ):
        with pytest.raises(error, match=words):
            small(folder, tmp_path / "other", base=wrong)


def test_a_model_is_a_start(folder: Path, tmp_path: Path) -> None:
    """Fine-tuning begins where the exported model is: the same pictures, the same prior."""
    said: list[str] = []
    run = make(folder, tmp_path / "a", transformer=True, steps=2, muon_lr=1e-3)
    run.train()
    exported(run, tmp_path / "model")
    recipe = replace(run.recipe, out=tmp_path / "b", start_from=tmp_path / "model", model=None)
    tuned = Run(recipe, say=said.append)
    assert tuned.network.model.config == tiny.TINY
    assert any("started from" in line and "sha256" in line for line in said)
    torch.manual_seed(1)
    x, rate = run.sampler.extra(2), torch.tensor([0.2, 0.8])
    with torch.no_grad():
        torch.manual_seed(1)
        a = run.ema(x, rate)
        torch.manual_seed(1)
        b = tuned.network(x, rate)
    assert float((a.picture - b.picture).pow(2).mean()) < 1e-3
    assert float(b.bpp_z.mean()) == pytest.approx(float(a.bpp_z.mean()), rel=0.1)
    tuned.train()
    checkpoint.write(tmp_path / "empty.pt", {"ema": {"x": torch.zeros(1)}, "config": tiny.TINY.to_dict()})
    with pytest.raises(RecipeError, match="nothing fits this network; got: 1 tensors"):
        make(folder, tmp_path / "c", start_from=tmp_path / "empty.pt")


def test_the_default_model_is_a_start() -> None:
    start = read_start(Path("default"))
    network = TrainingNetwork(DiTIC(start.config))
    network.load_state_dict(start.weights)
    x = torch.from_numpy(data.astronaut()[:256, :256].copy()).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        result = network(x, torch.tensor([0.5]))
    assert 10 * math.log10(4 / float((result.picture - x).pow(2).mean())) > 22
    assert float(result.bpp_z) < 0.1
    assert find_model("default").sha256[:12] in start.source


def test_a_model_config_from_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(tiny.TINY.to_dict()))
    recipe = training.recipe_of(tmp_path / "a", data=training.data_of(folder, least_crops=1))
    run = Run(replace(recipe, model=str(tmp_path / "m.json")), say=training.quiet)
    assert run.network.model.config == tiny.TINY
    (tmp_path / "m.yaml").write_text("vae: {kind: light, widhts: [1]}")
    with pytest.raises(RecipeError, match=r"vae\.widhts; expected: did you mean 'widths'.*m\.yaml, line 1"):
        Run(replace(recipe, model=str(tmp_path / "m.yaml")), say=training.quiet)
    for name, text in (("n.json", "{"), ("n.yaml", "a: [")):
        (tmp_path / name).write_text(text)
        with pytest.raises(RecipeError, match="not YAML"):
            Run(replace(recipe, model=str(tmp_path / name)), say=training.quiet)
    with pytest.raises(RecipeError, match="default, dit-ic, or a file"):
        Run(replace(recipe, model="defualt"), say=training.quiet)


@pytest.mark.gpu
def test_a_gpu_trains_as_a_cpu_does(folder: Path, tmp_path: Path) -> None:
    runs = []
    for device in ("cpu", "cuda"):
        options = {
            "device": device,
            "lr": 1e-3,
            "log_every": 1,
            "lora": LORA,
            "adversarial": AdversarialRecipe(channels=4),
        }
        run = small(folder, tmp_path / device, steps=4, **options)
        run.train()
        runs.append(checkpoint.read(tmp_path / device / "ema.pt")["ema"])
    for a, b in zip(*(r.values() for r in runs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)
    with pytest.raises(RecipeError, match="replicas share a CPU"):
        small(folder, tmp_path / "c", device="cuda", replicas=2)
