"""``tilecodec train`` from end to end: a tiny model learns, is exported, and codes a picture."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import training
from skimage import data

import tilecodec
from tilecodec.metrics import psnr

pytest.importorskip("compressai")

RECIPE = """
device: cpu
precision: fp32
crop: 128
batch: 4
warmup_steps: 3
log_every: 12
rate_ramp_steps: 1
lambda_low: 2e-4
lambda_high: 0.02
data:
  workers: 1
  domains:
    photo: {{paths: [{pictures}/photo]}}
    medical: {{paths: [{pictures}/medical], weight: 0.5}}
model: {model}
lr: 1e-3
muon_lr: 1e-2
stages:
  - {{name: first, steps: 48, decay_steps: 16}}
  - {{name: second, steps: 12, decay_steps: 5, transformer: true, integer_weights: true, alignment_weight: 0.02}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    pictures = training.write_pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "photo" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "model.json").write_text(json.dumps(tiny.TINY.to_dict()))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(pictures=pictures, model=tmp_path / "model.json"))
    return path


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "log.csv").read_text().splitlines()))


def test_a_tiny_training_from_end_to_end(
    recipe: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "run"
    code, text, said = run("train", recipe, "--out", out, "--json")
    assert code == 0, said
    report = json.loads(text)
    assert report["out"] == str(out / "second")
    assert report["steps"] == 12
    assert [Path(p).name for p in report["skipped"]] == ["bad.png"]
    assert "1 pictures could not be read" in said
    assert "step 48/48" in said
    assert "started from" in said
    assert (out / "second" / "skipped.csv").read_text().startswith("path,reason")

    losses = [float(row["loss"]) for row in rows_of(out / "first")]
    assert losses[-1] < 0.8 * losses[0]
    assert report["last"]["loss"] == pytest.approx(float(rows_of(out / "second")[-1]["loss"]))

    picture = data.chelsea()[:256, :256]
    made = tilecodec.encode(picture, tmp_path / "a.zarr", model=report["model"], quality=90, tile=128)
    assert report["sha256"][:12] in str(made.model)
    decoded = np.asarray(tilecodec.open(tmp_path / "a.zarr")[:, :, :]).transpose(1, 2, 0)
    assert psnr(decoded, picture) > 18

    code, text, said = run("train", recipe, "--out", out)
    assert (code, text) == (3, "")
    assert "--resume" in said

    code, text, said = run("train", recipe, "--out", out, "--resume", "--set", "export=false", "--quiet", "--json")
    assert (code, said) == (0, "")
    assert json.loads(text)["model"] is None

    again = tmp_path / "again" / "second" / "model"
    code, text, _ = run("train", "--export", out / "second", again)
    assert code == 0
    assert report["sha256"] in text
    assert (again / "model.safetensors").read_bytes() == Path(report["model"], "model.safetensors").read_bytes()


def test_mistakes_are_told_before_anything_is_made(
    recipe: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    for argv, code, words in (
        (["train"], 2, "CONFIG, or --export"),
        (["train", recipe, "--export", "a", "b"], 2, "CONFIG, or --export"),
        (["train", tmp_path / "none.yaml"], 3, "no such recipe"),
        (["train", recipe, "--out", out, "--set", "lambda_lo=1"], 2, "lambda_low"),
        (["train", recipe, "--out", out, "--set", "data.domains.photo.paths=/nowhere"], 3, "domain photo"),
        (["train", recipe, "--out", out, "--set", "data.least_crops=999"], 1, "too few pictures"),
        (["train", recipe], 2, "out"),
        (["train", "--export", tmp_path / "none", tmp_path / "m"], 3, "no such checkpoint"),
    ):
        got, text, said = run(*argv)
        assert (got, text) == (code, ""), said
        assert words in said
    assert not (out / "first" / "last.pt").exists()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else found(name))
    code, _, said = run("train", recipe, "--out", out)
    assert code == 2
    assert "no peft" in said
    assert "tilecodec[train]" in said


def test_a_run_that_is_terminated_goes_on(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-W", "ignore", "-m", "tilecodec", "train", str(recipe), "--out", str(out)]
    settings = ["--set", "export=false", "--set", "log_every=1"]
    child = subprocess.Popen([*command, *settings], stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("step 2/"):
            break
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate()
    assert child.returncode == 143
    assert "stopped after step" in said
    from tilecodec.train import checkpoint

    state: dict[str, Any] = checkpoint.read(out / "first" / "last.pt")
    assert 2 <= state["step"] < 48
    assert time.time() - (out / "first" / "last.pt").stat().st_mtime < 600


def test_help_tells_the_options(run: Callable[..., tuple[int, str, str]]) -> None:
    code, text, _ = run("train", "--help")
    assert code == 0
    assert all(option in text for option in ("--resume", "--out", "--set", "--export", "CONFIG"))
