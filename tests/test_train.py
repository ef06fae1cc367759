"""Training: losses mean what they say, a run resumes where it stopped, an export codes pictures."""

from __future__ import annotations

import csv
import os
import signal
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np
import pytest
import tiny
import torch
import training
from skimage import data

import tilecodec
from tilecodec import metrics
from tilecodec.entropy.quantise import entropy_layers, rounded_weight, weight_exponents
from tilecodec.errors import DivergedError, RecipeError, StorageError, TrainingError, TrainingMemoryError
from tilecodec.model.config import BranchConfig

pytest.importorskip("compressai")

from tilecodec.train import checkpoint, log, optim
from tilecodec.train.data import CropSampler, build_store
from tilecodec.train.export import export
from tilecodec.train.loop import Run, TrainRecipe, learning_rate_factor
from tilecodec.train.losses import LPIPSSqueeze, grid_loss, ms_ssim
from tilecodec.train.network import TrainingNetwork
from tilecodec.train.objective import Outcome, Share


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two photographs."""
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
    measure = LPIPSSqueeze(training.lpips_file(tmp_path / "lpips.safetensors"))
    torch.manual_seed(0)
    picture = as_floats(data.astronaut()[:128, :128])
    assert float(measure(picture, picture)) == 0
    other = (picture + 0.1 * torch.randn_like(picture)).requires_grad_()
    distance = measure(other, picture)
    distance.sum().backward()
    assert float(distance.detach()) > 0
    assert other.grad is not None
    assert float(other.grad.abs().max()) > 0


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
    stepped = replace(recipe, schedule="steps", warmup_steps=1, decay_at=(0.5, 0.8), decay_factor=0.2)
    assert [learning_rate_factor(step, stepped) for step in (49, 50, 79, 80, 99)] == pytest.approx(
        [1, 0.2, 0.2, 0.04, 0.04]
    )


def recipe_of(store: Path, out: Path, /, **options: Any) -> TrainRecipe:
    plain = {"store": store, "domains": {"photo": 1.0}, "crop": 256, "mse_weight": 0.3}
    return training.recipe_of(out, **{**plain, **options})


def run_of(recipe: TrainRecipe) -> Run:
    return Run(recipe, tiny.TINY, say=training.quiet)


def rows_of(folder: Path) -> list[list[str]]:
    """The log, without its heading."""
    return list(csv.reader((folder / "log.csv").read_text().splitlines()))[1:]


def first_share(run: Run) -> Share:
    return run.share(run.sampler.draw(0, run.recipe.batch))


def weights_of(run: Run) -> list[torch.Tensor]:
    return [p.detach() for p in (*run.network.parameters(), *run.ema.parameters())]


def largest_difference(a: Run, b: Run) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(weights_of(a), weights_of(b), strict=True))


def test_the_cpu_recipe_of_the_default_model_runs(store: Path, tmp_path: Path) -> None:
    options = {"precision": "bf16", "ms_ssim_weight": 1200, "lpips_weight": 350, "grid_weight": 0.1, "replicas": 2}
    weights = training.lpips_file(tmp_path / "lpips.safetensors")
    run = run_of(recipe_of(store, tmp_path / "a", lpips_weights=weights, transformer=True, **options))
    before = [p.detach().clone() for p in run.network.parameters()]
    run.train()
    moved = [not torch.equal(a, b) for a, b in zip(before, run.network.parameters(), strict=True)]
    assert sum(moved) > len(moved) // 2
    assert (tmp_path / "a" / "ema.pt").exists()


def test_replicas_share_weights_and_agree_with_one(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plain(_run: Run, network: TrainingNetwork, share: Share) -> Outcome:
        picture = network.model.vae.decode(network.model.vae.encode(share.pixels))
        return Outcome(picture.pow(2).mean(), torch.zeros(6), picture.detach())

    one = run_of(recipe_of(store, tmp_path / "a"))
    two = run_of(recipe_of(store, tmp_path / "b", replicas=2))
    for a, b in zip(two.network.parameters(), two.replicas[1].parameters(), strict=True):
        assert a.data_ptr() == b.data_ptr()
    share = first_share(one)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "loss", plain)
        for run in (one, two):
            run.gradients(share)
    pairs = [(a.grad, b.grad) for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True)]
    compared = [(a, b) for a, b in pairs if a is not None]
    assert compared
    for a, b in compared:
        torch.testing.assert_close(a, b)
    assert all(p.grad is None for p in two.replicas[1].parameters())


@pytest.mark.parametrize("options", [{"replicas": 2}, {"accumulate": 5}, {"accumulate": 2, "replicas": 2}], ids=str)
def test_pieces_of_any_size_train_as_one_batch(store: Path, tmp_path: Path, options: dict[str, int]) -> None:
    whole = run_of(recipe_of(store, tmp_path / "whole", batch=5, steps=2, crop=128, log_every=1))
    parts = run_of(recipe_of(store, tmp_path / "parts", batch=5, steps=2, crop=128, log_every=1, **options))
    share = first_share(whole)
    values = [run.gradients(share)[0] for run in (whole, parts)]
    torch.testing.assert_close(values[0], values[1])
    for a, b in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        if a.grad is not None:
            assert float((a.grad - b.grad).norm()) < 1e-4 * float(a.grad.norm()) + 1e-7
    parts.sampler.draw(0, 5)  # the store's batches come one after the other
    for run in (whole, parts):
        run.optimizer.zero_grad()
        torch.manual_seed(3)
        run.train()
    for mine, other in zip(rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts"), strict=True):
        assert [float(v) for v in mine[:-1]] == pytest.approx([float(v) for v in other[:-1]], rel=0.02)


def test_rounding_in_the_loop_leaves_the_weights(store: Path, tmp_path: Path) -> None:
    run = run_of(recipe_of(store, tmp_path, integer_weights=True, transformer=True, crop=128))
    layers = entropy_layers(run.network.model.codec)
    before = {n: m.weight.detach().clone() for n, m in layers.items()}
    with run._rounded():
        assert any(not torch.equal(before[n], m.weight) for n, m in layers.items())
        assert all(torch.equal(rounded_weight(before[n]), m.weight) for n, m in layers.items())
    assert all(torch.equal(before[n], m.weight) for n, m in layers.items())
    parts, _ = run.gradients(first_share(run))
    assert torch.isfinite(parts).all()


# --- resuming


@pytest.mark.parametrize("source", ["store", "pictures"])
def test_a_run_resumes_where_it_stopped(source: str, store: Path, tmp_path: Path) -> None:
    """Stopped in its third step and taken up again, a run ends with the bits of one that never stopped."""
    data = {"store": store}
    if source == "pictures":
        pictures = training.data_of(training.write_pictures(tmp_path / "pictures"), least_crops=1)
        data = {"store": None, "data": replace(pictures, workers=2)}
    options = {"steps": 4, "crop": 128, "log_every": 3, "minutes_between_checkpoints": 0.0, "lr": 1e-3, **data}
    whole = run_of(recipe_of(store, tmp_path / "whole", **options))
    whole.train()
    stopped = run_of(recipe_of(store, tmp_path / "parts", **options))
    training.stop_before(stopped, 2)
    again = run_of(recipe_of(store, tmp_path / "parts", **options))
    assert again.step == 2
    again.train()
    assert again.step == 4
    assert largest_difference(whole, again) == 0
    rows = [rows_of(tmp_path / name) for name in ("whole", "parts")]
    assert [row[:-1] for row in rows[0]] == [row[:-1] for row in rows[1]]  # all but the seconds
    for run in (whole, stopped, again):
        run.close()


def test_other_replicas_resume_a_run(store: Path, tmp_path: Path) -> None:
    """Muon's state is kept by name: two workers take up what one, or three, left."""
    branch = BranchConfig(blocks=1, mid=32)
    codec = replace(tiny.TINY.codec, y_channels=32, analysis_pre=32, context_width=32, synthesis=branch)
    config = replace(tiny.TINY, codec=codec, vae=replace(tiny.TINY.vae, latent_channels=32, widths=(32, 32)))
    options = {"steps": 3, "crop": 128, "minutes_between_checkpoints": 0.0, "muon_lr": 1e-3}

    def make(name: str, replicas: int) -> Run:
        recipe = recipe_of(store, tmp_path / name, replicas=replicas, **options)
        return Run(recipe, config, say=training.quiet)

    whole = make("whole", 1)
    assert len(whole.optimizer.state_dict()["muon"]) == 0
    whole.train()
    assert len(whole.optimizer.state_dict()["muon"]) > 3
    training.stop_before(make("parts", 3), 2)
    kept = checkpoint.read(tmp_path / "parts" / "last.pt")["optimizer"]["muon"]
    again = make("parts", 2)
    assert again.step == 2
    taken = again.optimizer.state_dict()["muon"]
    assert set(taken) == set(kept)
    assert all(torch.equal(taken[name]["momentum_buffer"], kept[name]["momentum_buffer"]) for name in kept)
    again.train()
    assert largest_difference(whole, again) < 5e-4

    before_names = {"adamw": whole.optimizer.state_dict()["adamw"]}
    before_names["muon"] = [muon.state_dict() for muon in again.optimizer.muons]
    old = make("old", 1)
    old.optimizer.load_state_dict(before_names)
    for name, kept in old.optimizer.state_dict()["muon"].items():
        assert torch.equal(kept["momentum_buffer"], again.optimizer.state_dict()["muon"][name]["momentum_buffer"])


def test_a_checkpoint_of_another_recipe_is_refused(store: Path, tmp_path: Path) -> None:
    run_of(recipe_of(store, tmp_path, crop=128)).save()
    with pytest.raises(TrainingError, match="other parameters"):
        run_of(recipe_of(store, tmp_path, crop=128, optimizer="adamw", freeze_encoder=True))
    other = replace(tiny.TINY, codec=replace(tiny.TINY.codec, z_channels=16))
    with pytest.raises(RecipeError, match="another model"):
        Run(recipe_of(store, tmp_path, crop=128), other, say=training.quiet)
    (tmp_path / "last.pt").write_bytes(b"PK no checkpoint")
    with pytest.raises(TrainingError, match="cannot be read"):
        run_of(recipe_of(store, tmp_path, crop=128))


def test_adamw_alone_trains_every_parameter(store: Path, tmp_path: Path) -> None:
    run = run_of(recipe_of(store, tmp_path, optimizer="adamw", transformer=True, crop=128, weight_decay=0.1))
    assert run.optimizer.muons == []
    before = [p.detach().clone() for p in run.network.parameters()]
    run.train()
    moved = [not torch.equal(a, b) for a, b in zip(before, run.network.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)


def test_a_kernel_that_is_no_matrix_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="channels_last"):
        optim.MuonAdamW([("a", torch.nn.Parameter(torch.zeros(64, 64, 3, 3)))], lr=1, muon_lr=1)


# --- ends


def test_ctrl_c_leaves_a_checkpoint_after_the_step(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    run = Run(recipe_of(store, tmp_path, steps=9, crop=128), tiny.TINY, say=said.append)
    gradients = run.gradients

    def pressed(share: Share) -> tuple[torch.Tensor, torch.Tensor]:
        if run.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return gradients(share)

    monkeypatch.setattr(run, "gradients", pressed)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert signal.getsignal(signal.SIGINT) is before
    assert any("stopped after step 2" in line for line in said)
    assert checkpoint.read(tmp_path / "last.pt")["step"] == 2
    again = run_of(recipe_of(store, tmp_path, steps=9, crop=128))
    assert largest_difference(run, again) == 0


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_stops_and_keeps_the_last_checkpoint(
    what: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(recipe_of(store, tmp_path, steps=9, crop=128, minutes_between_checkpoints=0.0))
    plain = Run.loss

    def broken(run: Run, network: TrainingNetwork, share: Share) -> Outcome:
        outcome = plain(run, network, share)
        if run.step < 2:
            return outcome
        if what == "loss":
            return Outcome(outcome.loss, outcome.parts * torch.nan, outcome.picture)
        return Outcome(outcome.loss * torch.inf, outcome.parts, outcome.picture)

    monkeypatch.setattr(Run, "loss", broken)
    with pytest.raises(DivergedError, match=r"at step 2; the checkpoint of step 2 is kept in .*last\.pt") as told:
        run.train()
    assert "muon_lr" in str(told.value)
    assert isinstance(told.value, FloatingPointError)
    assert all(torch.isfinite(w).all() for w in weights_of(run))
    monkeypatch.undo()
    again = run_of(recipe_of(store, tmp_path, steps=3, crop=128))
    again.train()
    assert again.step == 3


def test_a_failed_allocation_names_the_knob(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(recipe_of(store, tmp_path, crop=128))

    def full(_run: Run, network: TrainingNetwork, share: Share) -> Outcome:
        torch.empty(1 << 60)
        raise AssertionError

    monkeypatch.setattr(Run, "loss", full)
    with pytest.raises(TrainingMemoryError, match="Set accumulate to 2, or precision to bf16") as told:
        run.train()
    assert isinstance(told.value, MemoryError)

    def other(_run: Run, network: TrainingNetwork, share: Share) -> Outcome:
        raise RuntimeError("something else")

    monkeypatch.setattr(Run, "loss", other)
    with pytest.raises(RuntimeError, match="something else"):
        run.train()


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    checkpoint.write(path, {"step": 1})

    def full(content: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match="still there"):
        checkpoint.write(path, {"step": 2})
    assert checkpoint.read(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


# --- what is left to read


def events_of(folder: Path) -> list[bytes]:
    """The records of all event files, their checksums checked."""
    records = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            for part, crc in ((data[:8], data[8:12]), (data[12 : 12 + length], data[12 + length : 16 + length])):
                value = int(google_crc32c.value(part))
                masked = ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF
                assert struct.unpack("<I", crc) == (masked,)
            records.append(data[12 : 12 + length])
            data = data[16 + length :]
    return records


def test_logs_samples_and_lines(store: Path, tmp_path: Path) -> None:
    said: list[str] = []
    recipe = recipe_of(store, tmp_path, crop=128, steps=4, log_every=2, sample_every=2, tensorboard=True)
    run = Run(recipe, tiny.TINY, say=said.append)
    run.train()
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert set(rows[0]) == {"step", *run.columns, "seconds_per_step"}
    assert float(rows[0]["bpp"]) > 0
    assert any(line.startswith("step 2/4") and "left" in line and "s/step" in line for line in said)

    pictures = sorted((tmp_path / "samples").iterdir())
    assert [p.name for p in pictures] == ["step-0000002.png", "step-0000004.png"]
    grid = imagecodecs.png_decode(pictures[0].read_bytes())
    assert grid.shape == (4 * 132 - 4, 2 * 132 - 4, 3)
    crops = ((run.sampler.extra(2) + 1) * 127.5).round().byte().numpy()
    np.testing.assert_array_equal(grid[:128, :128], crops[0].transpose(1, 2, 0))
    assert metrics.psnr(grid[132:260, :128], grid[:128, :128]) > 12

    records = events_of(tmp_path / "events")
    assert b"brain.Event:2" in records[0]
    assert sum(b"seconds_per_step" in r for r in records) == 2
    assert sum(b"\x89PNG" in r for r in records) == 2


def test_rows_after_the_checkpoint_are_dropped_and_other_tables_kept(tmp_path: Path) -> None:
    def table(columns: list[str], step: int) -> log.Log:
        return log.Log(tmp_path, columns, step=step, say=training.quiet, events=True)

    first = table(["loss"], 0)
    for step in (2, 4):
        first.row(step, [1.0], 0.5, "")
    first.close()
    table(["loss"], 2).close()
    assert [row[0] for row in rows_of(tmp_path)] == ["2"]
    table(["loss", "bpp"], 2).close()
    assert rows_of(tmp_path) == []
    assert (tmp_path / "before-2-log.csv").exists()
    assert len(list((tmp_path / "events").iterdir())) == 3
    assert [log.clock(s) for s in (5, 750, 11100, 187200)] == ["5 s", "12:30 min", "3:05 h", "2 d 4 h"]


def test_an_untrained_model_is_a_transform_codec_and_its_export_codes_pictures(store: Path, tmp_path: Path) -> None:
    run = run_of(recipe_of(store, tmp_path))
    run.save()
    pictures = CropSampler(store, crop=256, weights={"photo": 1.0}, seed=2).batch(7)
    sha256 = export(tmp_path / "ema.pt", tmp_path / "model", alias="trained", pictures=pictures)
    picture = data.astronaut()[:300, :260]
    report = tilecodec.encode(picture, tmp_path / "a.zarr", model=str(tmp_path / "model"), quality=100)
    assert sha256[:12] in str(report.model)
    decoded = np.asarray(tilecodec.open(tmp_path / "a.zarr")[:, :, :]).transpose(1, 2, 0)
    assert metrics.psnr(decoded, picture) > 15
