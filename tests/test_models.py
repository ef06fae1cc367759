"""From the authors' checkpoints to models: conversion, LoRA, the hub, the library; and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fake_hub
import numpy as np
import pytest
import small_official as small
import tifffile
import tiny
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

import tilecodec
from tilecodec.entropy.floats import float_entropy
from tilecodec.entropy.model import CodecModel, LatentWindow
from tilecodec.entropy.tables import gaussian_table
from tilecodec.errors import (
    CheckpointError,
    HubError,
    MissingFileError,
    ModelConfigError,
    ModelError,
    ModelHashError,
    NotEnoughMemoryError,
    SourceError,
    StorageError,
    TargetExistsError,
    TileCodecError,
    UnknownModelError,
    UsageError,
)
from tilecodec.metrics import psnr
from tilecodec.model import record, weights
from tilecodec.model.config import official_config
from tilecodec.model.record import file_sha256, hash_file, read_record, record_path
from tilecodec.model.tensor_file import LazyTensor, read_header, write_tensors
from tilecodec.model.weights import FILE, find_model, models_folder, read_model
from tilecodec.models import convert as convert_module
from tilecodec.models import hub, library
from tilecodec.models.base import read_config, read_weights
from tilecodec.models.bottleneck import computed_table, rounded_cdf, stored_table
from tilecodec.models.calibration import drawn_windows
from tilecodec.models.checkpoint import open_checkpoint
from tilecodec.models.convert import convert_model
from tilecodec.models.hub import HubFile, Listing, pick_file, pull_model
from tilecodec.models.release import release_bytes, release_gaussian_table
from tilecodec.testing import first_name, golden_state_dict, official_scale_table, reduced_config, trace

DATA = Path(__file__).parent / "data"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of our own for each test."""
    monkeypatch.setenv("TILECODEC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one picture to calibrate with: the bundled recipe takes some seconds."""
    folder = tmp_path_factory.mktemp("pictures")
    tifffile.imwrite(folder / "a.tif", next(drawn_windows(300)))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged checkpoint of the small network; not to be changed."""
    path = tmp_path_factory.mktemp("checkpoint") / "merged_q3.pth"
    torch.save(small.merged(), path)
    return path


@pytest.fixture(scope="module")
def converted(checkpoint: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, fp32; not to be changed."""
    folder = tmp_path_factory.mktemp("converted") / "dit-ic-q3"
    convert_model(checkpoint, folder, config=small.SMALL, calibration=pictures)
    return folder


@pytest.fixture
def kept(converted: Path) -> Path:
    """The small model among this machine's models, as dit-ic-q3."""
    folder = models_folder() / "dit-ic-q3"
    folder.mkdir(parents=True)
    for file in converted.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def small_image(seed: int = 0, size: tuple[int, int] = (256, 256)) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (3, *size), np.uint8)


# --- conversion


@pytest.mark.slow
def test_golden_checkpoint_gives_the_golden_tensors(tmp_path: Path, pictures: Path, run: Run) -> None:
    """The whole road at the official codec's size: pickle, aliases, buffers, configs of a base, and the trace."""
    stored = {k: tuple(s) for k, (s, _) in json.loads((DATA / "dit_ic_small_keys.json").read_text()).items()}
    with np.load(DATA / "dit_ic_small.npz") as file:
        golden = {name: file[name] for name in file.files}
    firsts = {k: s for k, s in stored.items() if first_name(k, stored) == k}
    state = golden_state_dict(firsts, entries=golden)
    state |= {k: state[first_name(k, stored)] for k in stored if k not in firsts and first_name(k, stored) in state}
    path, base, out = tmp_path / "merged.pth", small.write_configs(tmp_path / "base", reduced_config()), tmp_path / "m"
    torch.save(state, path)
    code, text, _ = run("models", "convert", path, out, "--base", base, "--calibration", pictures, "--json")
    assert code == 0
    assert json.loads(text)["sha256"] == hash_file(out / FILE)
    model = tilecodec.load_model(str(out), device="cpu", precision="fp32")
    assert model.config == reduced_config()
    seen = trace(model, golden["image_u8"])
    compared = [name for name in golden if not name.startswith("eb.")]
    assert set(compared) == set(seen)
    for name in compared:
        assert (seen[name].shape, seen[name].dtype) == (golden[name].shape, golden[name].dtype)
        if golden[name].dtype.kind == "f":
            reach = 1e-4 * max(1.0, float(np.abs(golden[name]).max()))
            np.testing.assert_allclose(seen[name], golden[name], rtol=0, atol=reach, err_msg=name)
        else:
            np.testing.assert_array_equal(seen[name], golden[name], err_msg=name)
    for field, name in (("cdf", "z_cdf"), ("length", "z_cdf_length"), ("offset", "z_offset")):
        np.testing.assert_array_equal(getattr(model.tables.z, field), golden[name])
    held = load_file(out / FILE)
    for name, tensor in state.items():
        key = name.replace("codec.", "integer.source.", 1) if name.startswith(weights.INTEGER_PARTS) else name
        if "entropy_bottleneck" not in name and "gaussian" not in name and name in firsts and name != "timesteps":
            assert torch.equal(held[key], tensor), name


def test_fp32_keeps_every_bit(converted: Path) -> None:
    held, whole = load_file(converted / FILE), small.weights()
    for name, tensor in whole.items():
        key = name.replace("codec.", "integer.source.", 1) if name.startswith(weights.INTEGER_PARTS) else name
        assert torch.equal(held[key], tensor), name
    own = set(held) - {n for n in held if n.startswith(("tables.", "integer."))}
    assert own == {n for n in whole if not n.startswith(weights.INTEGER_PARTS)}


def test_trace_of_a_converted_model_is_the_network_s(converted: Path) -> None:
    """Another size, not square, and the model's own tables; against the network that the checkpoint describes."""
    network = small.network()
    network.load_state_dict(small.weights(), strict=True, assign=True)
    median = small.bottleneck()["codec.entropy_bottleneck.quantiles"][:, 0, 1].numpy()
    image = small_image(3, (256, 520))
    expected = trace(network.eval(), image, z_median=median)
    seen = trace(tilecodec.load_model(str(converted), device="cpu", precision="fp32"), image)
    assert set(seen) == set(expected) | {"z_cdf", "z_cdf_length", "z_offset", "n_bytes"}
    for name, value in expected.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(seen[name], value, rtol=0, atol=1e-4 * max(1.0, float(np.abs(value).max())))
        else:
            np.testing.assert_array_equal(seen[name], value, err_msg=name)


def test_trace_wants_float32(converted: Path) -> None:
    model = tilecodec.load_model(str(converted), device="cpu", precision="bf16")
    with pytest.raises(ModelError, match="precision"):
        trace(model, small_image())


def test_integers_code_as_well_as_floats(converted: Path) -> None:
    """The payload against the ideal length of the float mode's symbols under the same tables."""
    model = tilecodec.load_model(str(converted), device="cpu", precision="fp32")
    image = next(drawn_windows(512)).transpose(2, 0, 1)
    seen = trace(model, image)
    y, z = (torch.from_numpy(seen[name][0]) for name in ("y", "z"))
    payload = model.tile_codec.encode(y, z, quality=50, height=512, width=512)
    ideal = 0.0
    whole = np.rint(seen["z"][0] - seen["z_median"][:, None, None]).astype(int)
    groups = [(model.tables.z, np.broadcast_to(np.arange(len(whole))[:, None, None], whole.shape), whole)]
    groups += [(model.tables.y, seen[f"indexes_{k}"], seen[f"symbols_{k}"]) for k in range(4)]
    for table, rows, symbols in groups:
        for row, symbol in zip(rows.ravel(), symbols.ravel(), strict=True):
            at, bins = symbol - table.offset[row], table.length[row] - 2
            inside = 0 <= at < bins
            at = at if inside else bins
            ideal += 16 - np.log2(table.cdf[row, at + 1] - table.cdf[row, at]) + (0 if inside else 32)
    assert len(payload.words) * 32 < 1.01 * ideal + 64
    decoded = model.tile_codec.decode(payload, "tile").y_hat.numpy()
    assert np.abs(decoded - seen["y"][0]).mean() < 1.05 * np.abs(seen["y_hat"] - seen["y"]).mean()


def test_bf16_rounds_matrices_alone(checkpoint: Path, pictures: Path, converted: Path, tmp_path: Path) -> None:
    report = convert_model(checkpoint, tmp_path / "half", config=small.SMALL, calibration=pictures, dtype="bf16")
    held, whole = load_file(tmp_path / "half" / FILE), load_file(converted / FILE)
    assert set(held) == set(whole)
    for name, tensor in whole.items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            assert torch.equal(held[name], tensor.bfloat16()), name
        else:
            assert torch.equal(held[name], tensor), name
    assert report.bytes < 0.75 * (converted / FILE).stat().st_size
    assert report.sha256 != file_sha256(converted / FILE)
    # computed in bf16, they differ as roundings do: weights may be summed before they are rounded
    image = next(drawn_windows(256))
    results = []
    for folder in (tmp_path / "half", converted):
        model = tilecodec.load_model(str(folder), device="cpu", precision="bf16")
        y = model.analyse(image, (slice(0, 256), slice(0, 256)), 50)
        results.append((y, model.reconstruct(LatentWindow(y.round(), y.abs()), 50)))
    assert torch.equal(results[0][0], results[1][0])
    assert psnr(results[0][1], results[1][1]) > 45


def test_the_same_checkpoint_gives_the_same_model(
    checkpoint: Path, pictures: Path, converted: Path, tmp_path: Path
) -> None:
    """From a pickle or safetensors file, wrapped or not, by any file name: what names the model is its content."""
    state = small.merged()
    save_file({k: v.clone() for k, v in state.items() if first_name(k, state) == k}, tmp_path / "a.bin")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "b.pt")
    torch.save({"model": {}, "ema": state, "step": 3}, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    parameters = {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in state.items()}
    torch.save(parameters, tmp_path / "d.ckpt")
    wanted = file_sha256(converted / FILE)
    for n, name in enumerate(("a.bin", "b.pt", "c.pth", "d.ckpt")):
        report = convert_model(
            tmp_path / name, tmp_path / str(n), alias="dit-ic-q3", config=small.SMALL, calibration=pictures
        )
        assert report.sha256 == wanted
    other = convert_model(checkpoint, tmp_path / "other", config=small.SMALL, calibration=pictures)
    assert other.sha256 != wanted  # the alias is part of it


def test_an_alias_may_be_all_that_is_there(checkpoint: Path, tmp_path: Path) -> None:
    """A file that stores shared tensors once may keep either of their names."""
    state = small.merged()
    aliases = [k for k in state if ".branch1." in k and first_name(k, state) != k]
    assert aliases
    for name in aliases:
        del state[first_name(name, state)]
    torch.save(state, tmp_path / "a.pth")
    assert convert_module.fit(small.SMALL, open_checkpoint(tmp_path / "a.pth")).tensors.keys() == small.shapes().keys()


def test_stored_tables_are_taken(tmp_path: Path, pictures: Path) -> None:
    state = small.merged()
    prefix = "codec.entropy_bottleneck."
    table = gaussian_table(np.full(small.Z, 3.0))
    fields = (("_quantized_cdf", "cdf"), ("_cdf_length", "length"), ("_offset", "offset"))
    state |= {prefix + name: torch.from_numpy(getattr(table, field)) for name, field in fields}
    scales = torch.linspace(0.2, 9.0, 30)
    state["codec.gaussian_conditional.scale_table"] = scales
    torch.save(state, tmp_path / "a.pth")
    report = convert_model(tmp_path / "a.pth", tmp_path / "m", config=small.SMALL, calibration=pictures)
    assert report.remarks == ()
    model = tilecodec.load_model(str(tmp_path / "m"), device="cpu", precision="fp32")
    np.testing.assert_array_equal(model.tables.z.cdf, table.cdf)
    assert len(model.tables.y.length) == 30
    seen = trace(model, small_image())
    np.testing.assert_array_equal(seen["scale_table"], scales.numpy())
    assert seen["indexes_0"].max() < 30


def test_the_bundled_recipe_is_the_default(checkpoint: Path, tmp_path: Path) -> None:
    report = convert_model(checkpoint, tmp_path / "m", config=small.SMALL)
    assert report.remarks == (
        "The checkpoint held no tables of the hyper-latent; they were computed from its densities.",
    )
    kept = read_record(tmp_path / "m" / FILE)
    assert kept is not None
    assert kept.source["calibration"] == "scene-1"
    windows = list(drawn_windows(64))
    assert len(windows) == 6
    assert all(w.shape == (64, 64, 3) and w.dtype == np.uint8 for w in windows)


def test_record_and_card_say_where_it_came_from(converted: Path, checkpoint: Path) -> None:
    noted = read_record(converted / FILE)
    assert noted is not None
    assert noted.sha256 == hash_file(converted / FILE)
    assert noted.source["checkpoint"] == checkpoint.name
    assert noted.source["checkpoint_sha256"] == hash_file(checkpoint)
    text = (converted / "README.md").read_text(encoding="utf-8")
    for word in (noted.sha256, noted.source["checkpoint_sha256"], "no licence", "fp32", "DiT", "aux_codec", "the user"):
        assert word in text


def test_targets_that_exist(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    made = tmp_path / "m"
    made.mkdir()

    def again(**options: Any) -> None:
        convert_model(checkpoint, made, config=small.SMALL, calibration=pictures, **options)

    again()  # an empty folder is taken
    before = hash_file(made / FILE)
    with pytest.raises(TargetExistsError, match="--overwrite"):
        again()
    again(overwrite=True)
    assert hash_file(made / FILE) == before
    (made / "notes.txt").write_text("mine")
    with pytest.raises(TargetExistsError, match=r"notes\.txt"):
        again(overwrite=True)
    (made / FILE).unlink()
    with pytest.raises(TargetExistsError, match="never replaced"):
        again(overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_targets_that_come_to_be_meanwhile(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What someone puts there while a conversion runs stays."""
    made = tmp_path / "m"
    write = convert_module._write

    def convert(**options: Any) -> None:
        convert_model(checkpoint, made, config=small.SMALL, calibration=pictures, **options)

    def disturbed(*arguments: Any) -> str:
        made.mkdir(exist_ok=True)
        (made / "notes.txt").write_text("mine")
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "_write", disturbed)
        with pytest.raises(TargetExistsError, match="never replaced"):
            convert()
        (made / "notes.txt").unlink()
    convert()
    before = hash_file(made / FILE)
    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "_write", disturbed)
        with pytest.raises(TargetExistsError, match=r"notes\.txt"):
            convert(overwrite=True)
    assert (made / "notes.txt").read_text() == "mine"
    (made / "notes.txt").unlink()

    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if ".new-" in path.name:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(KeyboardInterrupt):
            convert(overwrite=True)
    assert hash_file(made / FILE) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_a_link_as_the_target_stays_a_link(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "m").symlink_to(tmp_path / "large" / "m")
    for overwrite in (False, True):
        report = convert_model(
            checkpoint, tmp_path / "m", config=small.SMALL, calibration=pictures, overwrite=overwrite
        )
        assert report.name == "m"
        assert (tmp_path / "m").is_symlink()
        assert hash_file(tmp_path / "large" / "m" / FILE) == report.sha256
        assert sorted(p.name for p in tmp_path.rglob(".*")) == []


def test_places_that_cannot_be_written_to(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused before the work, not after it."""
    monkeypatch.setattr(convert_module, "open_checkpoint", lambda *_, **__: pytest.fail("begun"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is no folder"):
        convert_model(checkpoint, tmp_path / "file" / "m", config=small.SMALL)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StorageError, match="may not be written to"):
        convert_model(checkpoint, tmp_path / "new" / "m", config=small.SMALL)


# --- the entropy bottleneck


def test_tables_are_those_of_compressai() -> None:
    from compressai.entropy_models import EntropyBottleneck

    for seed, spread in ((0, 0.0), (1, 0.2), (2, 0.5), (3, 0.8)):
        torch.manual_seed(seed)
        theirs = EntropyBottleneck(24)
        with torch.no_grad():
            for parameter in (*theirs.matrices, *theirs.biases, *theirs.factors):
                parameter.add_(spread * torch.randn_like(parameter))
            middle = 3 * torch.randn(24)
            theirs.quantiles[:, 0] = torch.stack([middle - 60 * torch.rand(24), middle, middle + 9 * torch.rand(24)], 1)
        theirs.update(force=True)
        tensors = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}
        expected, actual = stored_table(tensors), computed_table(tensors)
        assert expected is not None
        for field in ("cdf", "length", "offset"):
            np.testing.assert_array_equal(getattr(actual, field), getattr(expected, field), strict=True)


def test_the_release_s_tables_and_coder() -> None:
    """Against CompressAI: tables, and lengths of strings with and without symbols beyond the tables."""
    from compressai.ans import RansEncoder
    from compressai.entropy_models import GaussianConditional

    theirs = GaussianConditional(None)
    theirs.update_scale_table(torch.from_numpy(official_scale_table()))
    table = release_gaussian_table(official_scale_table())
    parts = (theirs.quantized_cdf, theirs.cdf_length, theirs.offset)
    for ours, expected in zip((table.cdf, table.length, table.offset), parts, strict=True):
        np.testing.assert_array_equal(ours, expected.numpy(), strict=True)
    draw = np.random.default_rng(2)
    for count, spread in ((9, 1.0), (700, 1.0), (700, 40.0), (99, 1e6)):
        rows = draw.integers(0, 64, count)
        symbols = np.clip(spread * draw.standard_normal(count) * official_scale_table()[rows], -(2**20), 2**20)
        symbols = symbols.astype(np.int64)
        coded = RansEncoder().encode_with_indexes(
            symbols.tolist(), rows.tolist(), table.cdf.tolist(), table.length.tolist(), table.offset.tolist()
        )
        assert release_bytes(table, rows, symbols) == len(coded)


def test_golden_tables_are_computed_again() -> None:
    with np.load(DATA / "dit_ic_small.npz") as file:
        table = computed_table({n[3:]: torch.from_numpy(file[n]) for n in file.files if n.startswith("eb.")})
        for field, name in (("cdf", "z_cdf"), ("length", "z_cdf_length"), ("offset", "z_offset")):
            np.testing.assert_array_equal(getattr(table, field), file[name], strict=True)


def test_no_bin_is_left_empty() -> None:
    for pmf in ([1, 0, 0, 0], [0.5, 1e-9, 0.5, 1e-12], np.full(3000, 1 / 3000)):
        cdf = rounded_cdf(np.asarray(pmf, np.float32))
        assert (cdf[0], cdf[-1]) == (0, 65536)
        assert (np.diff(cdf) >= 1).all()


# --- LoRA

VAE_TARGETS = r"decoder\.(.*\.)?(conv1|conv2|conv_in|conv_shortcut|conv_inverted|conv_point|to_k|to_q|to_v|to_out\.0)"
DIT_TARGETS = [
    *("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out", "proj_in"),
    *("proj_out", "ff.net.2", "ff.net.0.proj", "conv_inverted", "conv_point"),
]


@pytest.fixture(scope="module")
def lora() -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """A raw checkpoint, the base it belongs to, and peft's own merge of the averaged weights, by the merged names."""
    from peft import LoraConfig, get_peft_model

    sets: dict[str, Any] = {}
    merged: dict[str, Tensor] = {}
    for which in ("model", "ema"):
        network = small.network()
        network.load_state_dict(small.weights(), strict=True, assign=True)
        parts = {"vae": (network.vae, 4, VAE_TARGETS), "DiT": (network.DiT, 8, DIT_TARGETS)}
        state = {
            f"state_dict_{part}": {k.split(".", 1)[1]: v for k, v in small.weights(which).items() if k.startswith(part)}
            for part in ("codec", "prompter")
        }
        state["state_dict_codec"] |= {k.removeprefix("codec."): v for k, v in small.bottleneck().items()}
        for part, (module, rank, targets) in parts.items():
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, bias="none")
            tuned = cast(Any, get_peft_model)(module, config)  # peft says it wants a model of transformers
            torch.manual_seed(len(which) + rank)
            for name, parameter in tuned.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.05)
            names = {k: v.detach().clone() for k, v in tuned.state_dict().items() if "lora_" in k}
            assert len(names) > 20
            state[f"state_dict_{part}"] = names
            if which == "ema":
                merged |= {f"{part}.{k}": v.detach() for k, v in tuned.merge_and_unload().state_dict().items()}
        sets[which] = state
    base = {k: v for k, v in small.weights().items() if k.startswith(("vae.", "DiT."))}
    merged |= {k: v for k, v in small.weights("ema").items() if k.startswith(("codec.", "prompter."))}
    return sets, base, merged


def write_elic(path: Path, prefix: str) -> Path:
    own = {k.removeprefix("aux_codec."): v for k, v in small.weights().items() if k.startswith("aux_codec.")}
    torch.save({f"{prefix}{k}": v for k, v in own.items()} | {"h_s.0.weight": torch.zeros(2)}, path)
    return path


@pytest.mark.parametrize(("prefix", "shards"), [("g_a.", 1), ("module.aux_codec.", 3)])
def test_lora_is_merged_as_peft_does(
    lora: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, shards: int
) -> None:
    sets, base, expected = lora
    torch.save(sets, tmp_path / "raw.pth")
    small.write_base(tmp_path / "base", base, shards=shards)
    elic = write_elic(tmp_path / "elic.pth", prefix)
    monkeypatch.setitem(sys.modules, "peft", None)  # it is not needed
    assert read_config(tmp_path / "base").vae == small.SMALL.vae
    report = convert_model(
        tmp_path / "raw.pth",
        tmp_path / "m",
        base=tmp_path / "base",
        elic=elic,
        config=small.SMALL,
        calibration=pictures,
    )
    assert report.kind == "lora"
    held = load_file(tmp_path / "m" / FILE)
    changed = 0
    for name, tensor in expected.items():
        if not name.startswith(weights.INTEGER_PARTS):
            torch.testing.assert_close(held[name], tensor, rtol=0, atol=1e-5)
            changed += name in base and not torch.equal(tensor, base[name])
    assert changed > 20
    model = tilecodec.load_model(str(tmp_path / "m"), device="cpu", precision="fp32")
    assert np.isfinite(trace(model, small_image())["recon"]).all()


def test_either_set_of_a_raw_checkpoint(lora: Any, tmp_path: Path) -> None:
    sets, base, _ = lora
    torch.save(sets, tmp_path / "raw.pth")
    write_elic(tmp_path / "elic.pth", "")
    found = {}
    for which in ("ema", "model"):
        opened = open_checkpoint(tmp_path / "raw.pth", weights=which)
        fitted = convert_module.fit(small.SMALL, opened, base=base, elic=tmp_path / "elic.pth")
        found[which] = fitted.tensors["DiT.transformer_blocks.0.attn1.to_q.weight"].make()
        prompter = fitted.tensors["prompter.pattern"].make()
        assert torch.equal(prompter, small.weights(which)["prompter.pattern"])
    assert not torch.equal(found["ema"], found["model"])
    torch.save({"model": sets["model"]}, tmp_path / "one.pth")
    with pytest.raises(CheckpointError, match="--weights model"):
        open_checkpoint(tmp_path / "one.pth")
    torch.save(sets["model"] | {"state_dict_disc": {"a": torch.zeros(1)}}, tmp_path / "bare.pth")
    bare = open_checkpoint(tmp_path / "bare.pth")
    assert bare.kind == "lora"
    assert bare.left_out == ("state_dict_disc",)


def test_peft_s_other_names_are_known(lora: Any, tmp_path: Path) -> None:
    """Without the adapter's name, with or without wrappers, and complete with the base layers in the checkpoint."""
    sets, base, expected = lora
    state = {k: dict(v) for k, v in sets["ema"].items()}
    for part, prefix in (("vae", "vae.base_model.model."), ("DiT", "_orig_mod.")):
        inner = {k.removeprefix("base_model.model."): v for k, v in state[f"state_dict_{part}"].items()}
        own = {k.removeprefix(f"{part}."): v for k, v in base.items() if k.startswith(f"{part}.")}
        layers = {k.split(".lora_")[0] for k in inner}
        for name, tensor in own.items():
            layer, _, kind = name.rpartition(".")
            inner[f"{layer}.base_layer.{kind}" if layer in layers else name] = tensor
        state[f"state_dict_{part}"] = {prefix + k.replace(".default.", "."): v for k, v in inner.items()}
    torch.save({"ema": state}, tmp_path / "raw.pth")
    write_elic(tmp_path / "elic.pth", "")
    fitted = convert_module.fit(small.SMALL, open_checkpoint(tmp_path / "raw.pth"), elic=tmp_path / "elic.pth")
    for name in ("vae.decoder.conv_in.weight", "DiT.transformer_blocks.1.ff.conv_point.weight"):
        torch.testing.assert_close(fitted.tensors[name].make(), expected[name], rtol=0, atol=1e-5)


def test_what_a_raw_checkpoint_needs_is_said(lora: Any, tmp_path: Path) -> None:
    sets, base, _ = lora
    torch.save(sets, tmp_path / "raw.pth")
    with pytest.raises(CheckpointError, match=r"--base DIR.*Sana_600M"):
        convert_model(tmp_path / "raw.pth", tmp_path / "m", config=small.SMALL)
    small.write_base(tmp_path / "base", base)
    with pytest.raises(CheckpointError, match="--elic FILE"):
        convert_model(tmp_path / "raw.pth", tmp_path / "m", base=tmp_path / "base", config=small.SMALL)
    torch.save({"h_a.0.weight": torch.zeros(1)}, tmp_path / "elic.pth")
    with pytest.raises(CheckpointError, match="no ELIC"):
        convert_model(
            tmp_path / "raw.pth",
            tmp_path / "m",
            base=tmp_path / "base",
            elic=tmp_path / "elic.pth",
            config=small.SMALL,
        )
    next((tmp_path / "base" / "vae").glob("*.safetensors")).unlink()
    with pytest.raises(MissingFileError, match="lacks weights"):
        convert_model(tmp_path / "raw.pth", tmp_path / "m", base=tmp_path / "base", config=small.SMALL)
    assert not (tmp_path / "m").exists()


def test_adapters_that_do_not_fit_are_listed(lora: Any, tmp_path: Path) -> None:
    sets, base, _ = lora
    state = {k: dict(v) for k, v in sets["ema"].items()}
    names = sorted(k for k in state["state_dict_DiT"] if "lora_A" in k)
    state["state_dict_DiT"][names[0]] = torch.zeros(4, 3)
    del state["state_dict_DiT"][names[1]]
    state["state_dict_DiT"]["somewhere.else.lora_A.default.weight"] = torch.zeros(4, 3)
    torch.save({"ema": state}, tmp_path / "raw.pth")
    write_elic(tmp_path / "elic.pth", "")
    with pytest.raises(CheckpointError) as caught:
        convert_module.fit(small.SMALL, open_checkpoint(tmp_path / "raw.pth"), base=base, elic=tmp_path / "elic.pth")
    text = str(caught.value)
    for name in names[:2]:
        assert name.removeprefix("base_model.model.").split(".lora_")[0] in text
    assert "lora_A is missing" in text
    assert "unexpected: DiT.somewhere.else.lora_*" in text


# --- what is refused


class _Runs:
    """A pickle that would write a file if it were loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "a")


def _old_format(path: Path, cut: int = 100) -> None:
    """Without its last bytes; or, unless any are cut, with the key of its last list changed."""
    torch.save({"codec.a": torch.zeros(99)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    at = len(whole) - 99 * 4 - 8 - 10  # before the count and the values: the end of a pickled list of keys
    other = b"1" if whole[at : at + 1] == b"0" else b"0"
    path.write_bytes(whole[:-cut] if cut else whole[:at] + other + whole[at + 1 :])


UNREADABLE: dict[str, tuple[Callable[[Path, bytes], object], str]] = {
    "empty": (lambda p, _: p.write_bytes(b""), "empty"),
    "web page": (lambda p, _: p.write_bytes(b"<!DOCTYPE html>\n<html><body>Not found"), "web page.*resolve"),
    "web page after blanks": (lambda p, _: p.write_bytes(b"\n\n  <HTML>"), "web page"),
    "lfs pointer": (lambda p, _: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid a"), "git lfs pull"),
    "text": (lambda p, _: p.write_bytes(b'{"error":"Entry not found"}'), "no checkpoint"),
    "half of it": (lambda p, whole: p.write_bytes(whole[: len(whole) // 2]), "cut short.*Download it anew"),
    "plain zip": (lambda p, _: _zip(p), "damaged"),
    "old format, cut": (
        lambda p, _: _old_format(p),
        "damaged",
    ),
    "half of safetensors": (
        lambda p, _: p.write_bytes(save({"codec.a": torch.zeros(99)})[:-40]),
        "cut short.*Download it anew",
    ),
    "beginning of safetensors": (lambda p, _: p.write_bytes(save({"codec.a": torch.zeros(99)})[:30]), "cut short"),
    "runs code": (lambda p, _: torch.save({"a": _Runs(p.with_name("ran"))}, p), "could run code"),
    "no dict": (lambda p, _: torch.save([torch.zeros(2)], p), "dict of tensors"),
    "no tensors": (lambda p, _: torch.save({"step": 3, "name": "x"}, p), "no tensors"),
    "another network": (
        lambda p, _: torch.save({f"layer{n}.0.conv1.weight": torch.zeros(2) for n in range(9)}, p),
        "another network.*layer0",
    ),
    "a directory that contradicts itself": (
        lambda p, whole: p.write_bytes(whole[:-26] + b"\x02" + whole[-25:]),  # disks
        "cut short|damaged",
    ),
    "old format, cut in its last part": (lambda p, _: _old_format(p, 130), "damaged"),
    "old format, another key": (lambda p, _: _old_format(p, 0), "damaged"),
    "names that are no text": (lambda p, _: torch.save({"ema": {0: torch.zeros(2)}}, p), "no text"),
    "numbers for names in a part": (
        lambda p, _: torch.save({"ema": {"state_dict_vae": {1: torch.zeros(2)}}}, p),
        "raw checkpoint.*--base",
    ),
    "without values": (lambda p, _: torch.save({"codec.a": torch.zeros(3, device="meta")}, p), "no plain one"),
    "only an optimizer": (lambda p, _: torch.save({"state_dict": {"step": 3}}, p), "no tensors"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_files_that_are_no_checkpoint(name: str, checkpoint: Path, tmp_path: Path) -> None:
    make, words = UNREADABLE[name]
    path = tmp_path / "ckpt.pth"
    make(path, checkpoint.read_bytes())
    with pytest.raises(CheckpointError, match=f"(?s){words}") as caught:
        convert_model(path, tmp_path / "m", config=small.SMALL)
    assert caught.value.where == path
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt.pth"]


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(MissingFileError):
            convert_model(path, tmp_path / "m", config=small.SMALL)


def test_every_misfit_is_listed_at_once(tmp_path: Path) -> None:
    state = small.merged()
    missing = ["DiT.proj_out.bias", "codec.h_s.increase.0.conv.dc.0.weight", "vae.decoder.conv_in.bias"]
    for name in missing:
        del state[name]
    del state["codec.entropy_bottleneck.factors.2"]
    state["DiT.extra.weight"] = state["codec.surplus"] = torch.zeros(3)
    state["prompter.pattern"] = torch.zeros(1, 9, 16)
    state["aux_codec.analysis_transform.0.bias"] = torch.zeros(16, dtype=torch.int32)
    alias = next(k for k in state if ".branch1." in k and first_name(k, state) != k)
    state[alias] = state[alias] + 1
    state["timesteps"] = torch.tensor([500])
    state["codec.gaussian_conditional.scale_table"] = torch.tensor([1.0, 0.5])
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        convert_model(tmp_path / "a.pth", tmp_path / "m", config=small.SMALL)
    text = str(caught.value)
    for name in (*missing, "codec.entropy_bottleneck.factors.2"):
        assert f"missing: {name}" in text
    for name in ("DiT.extra.weight", "codec.surplus"):
        assert f"unexpected: {name}" in text
    for words in (
        "misshapen: prompter.pattern: got torch.float32 (1, 9, 16), expected a float (1, 3, 16)",
        "misshapen: aux_codec.analysis_transform.0.bias: got torch.int32",
        f"misshapen: {alias}: differs from {first_name(alias, state)}",
        "misshapen: timesteps: got [500]",
        "scale_table: got (2,)",
    ):
        assert words in text
    assert caught.value.got == "4 missing, 2 unexpected, 5 misshapen"
    assert caught.value.where == tmp_path / "a.pth"
    assert not (tmp_path / "m").exists()


def test_another_size_is_told_shortly(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="another network, or of another size") as caught:
        convert_model(checkpoint, tmp_path / "m")
    assert len(str(caught.value).splitlines()) < 100
    assert "more" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codec.entropy_bottleneck._quantized_cdf": torch.zeros(8, 4, dtype=torch.int32)}, "malformed"),
        ({"codec.entropy_bottleneck.quantiles": torch.zeros(3, 1, 3)}, "quantiles: got"),
        ({"codec.entropy_bottleneck.quantiles": torch.full((8, 1, 3), float("nan"))}, "quantiles"),
        ({"codec.entropy_bottleneck.matrices.1": torch.full((8, 3, 3), float("nan"))}, "probabilities"),
        ({"codec.entropy_bottleneck.quantiles": torch.tensor([-1e6, 0, 1e6]).repeat(8, 1, 1)}, "too far apart"),
    ],
)
def test_bottlenecks_that_cannot_be_used(change: dict[str, Tensor], words: str, tmp_path: Path) -> None:
    state = small.merged() | change
    if "malformed" in words:
        state |= {f"codec.entropy_bottleneck.{k}": torch.full((8,), 3) for k in ("_cdf_length", "_offset")}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=words):
        convert_module.fit(small.SMALL, open_checkpoint(tmp_path / "a.pth"))


def test_weights_that_are_no_numbers(tmp_path: Path, pictures: Path) -> None:
    state = small.merged()
    state["DiT.proj_out.weight"] = torch.full_like(state["DiT.proj_out.weight"], float("inf"))
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"not finite.*DiT\.proj_out\.weight"):
        convert_model(tmp_path / "a.pth", tmp_path / "m", config=small.SMALL, calibration=pictures)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth"]


def test_weights_that_are_too_large_for_integers(tmp_path: Path, pictures: Path) -> None:
    state = small.merged()
    name = next(k for k in state if k.startswith("codec.g_c."))
    state[name] = torch.full_like(state[name], 1e30)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="too large for integers"):
        convert_model(tmp_path / "a.pth", tmp_path / "m", config=small.SMALL, calibration=pictures)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth"]


def test_sets_beside_a_step_counter(tmp_path: Path) -> None:
    torch.save({"ema": small.merged(), "model": {}, "step": torch.tensor(7)}, tmp_path / "a.pth")
    assert open_checkpoint(tmp_path / "a.pth").tensors.keys() == {
        k for k in small.merged() if not k.startswith("loss.")
    }


def test_too_little_memory_or_disk(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_module, "available_memory_bytes", lambda: 2 << 30)
    convert_module.check_conversion_memory(small.SMALL)
    with pytest.raises(NotEnoughMemoryError, match=r"2\.0 GiB available; expected: 3\.\d GiB"):
        convert_module.check_conversion_memory(official_config())
    monkeypatch.setattr(convert_module, "available_memory_bytes", lambda: 1 << 20)
    with pytest.raises(NotEnoughMemoryError):
        convert_model(checkpoint, tmp_path / "m", config=small.SMALL)
    monkeypatch.setattr(convert_module, "available_memory_bytes", lambda: None)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match="room on the disk"):
        convert_model(checkpoint, tmp_path / "m", config=small.SMALL)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vae": {"downsample_block_type": "pixel_unshuffle"}}, "downsample_block_type"),
        ({"vae": {"decoder_block_out_channels": [64] * 6, "attention_head_dim": 8}}, "(?s)attention_head_dim.*"),
        ({"vae": {"latent_channels": "8"}}, "positive numbers"),
        ({"vae": {"latent_channels": 7}}, "do not fit each other"),
        ({"vae": dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), [30] * 6)}, "do not fit"),
        ({"vae": {"decoder_act_fns": [["silu"]]}}, "decoder_act_fns"),
        ({"vae": {"encoder_layers_per_block": 3}}, "positive numbers"),
        ({"transformer": {"qk_norm": "rms_norm_across_heads", "guidance_embeds": True}}, "qk_norm"),
        ({"transformer": {"in_channels": 16}}, "in_channels"),
        ({"transformer": {"num_layers": 0}}, "num_layers"),
    ],
)
def test_bases_of_another_kind(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    small.write_configs(tmp_path, **change)
    with pytest.raises(ModelConfigError, match=words):
        read_config(tmp_path)


def test_a_plain_downsampling_is_written_either_way(tmp_path: Path) -> None:
    for word in ("Conv", "conv"):
        small.write_configs(tmp_path, vae={"downsample_block_type": word})
        assert read_config(tmp_path).vae == small.SMALL.vae


def test_bases_that_are_incomplete(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="lacks a config"):
        read_config(tmp_path)
    small.write_base(tmp_path, small.weights(), shards=2)
    assert set(read_weights(tmp_path)) == {k for k in small.weights() if k.startswith(("vae.", "DiT."))}
    next((tmp_path / "vae").glob("*-00002-*")).unlink()
    with pytest.raises(MissingFileError):
        read_weights(tmp_path)
    (tmp_path / "vae" / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelConfigError, match="no JSON"):
        read_config(tmp_path)


def test_diffusers_own_configs_are_understood(tmp_path: Path) -> None:
    """A base as the library writes it."""
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel

    written = [
        json.loads((small.write_configs(tmp_path) / f / "config.json").read_text()) for f in ("vae", "transformer")
    ]
    with torch.device("meta"):
        for folder, kind, fields in zip(
            ("vae", "transformer"), (AutoencoderDC, SanaTransformer2DModel), written, strict=True
        ):
            fields.pop("_class_name")
            kind(**fields).save_config(tmp_path / folder)
    found = read_config(tmp_path)
    assert (found.vae, found.transformer) == (small.SMALL.vae, small.SMALL.transformer)
    assert found.guidance.caption_channels == small.SMALL.guidance.caption_channels
    assert found.codec == official_config().codec


def test_options_that_make_no_sense(checkpoint: Path, tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [
        *({"dtype": "int4"}, {"weights": "last"}),
        *({"alias": "default"}, {"alias": "../up"}, {"alias": "a b"}),
    ]
    for options in wrong:
        with pytest.raises(UsageError):
            convert_model(checkpoint, tmp_path / "m", config=small.SMALL, **options)
    with pytest.raises(UsageError, match="place"):
        convert_model(checkpoint, config=small.SMALL)
    with pytest.raises(MissingFileError):
        convert_model(checkpoint, tmp_path / "m", config=small.SMALL, calibration=tmp_path / "none")
    (tmp_path / "few").mkdir()
    with pytest.raises(SourceError, match="no pictures"):
        convert_model(checkpoint, tmp_path / "m", config=small.SMALL, calibration=tmp_path / "few")
    tifffile.imwrite(tmp_path / "few" / "a.tif", np.zeros((64, 900, 3), np.uint8))
    with pytest.raises(SourceError, match="too small"):
        convert_model(checkpoint, tmp_path / "m", config=small.SMALL, calibration=tmp_path / "few")


@pytest.mark.parametrize(
    "order",
    [
        ["CKPT", "--base", "DIR", "--elic", "FILE", "OUT", "--json"],
        ["CKPT", "OUT", "--base", "DIR", "--json", "--elic", "FILE"],
        ["--base", "DIR", "--json", "CKPT", "--elic", "FILE", "OUT"],
    ],
)
def test_options_stand_anywhere(order: list[str], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, dict[str, Any]]] = []

    def convert(*places: str, **options: Any) -> None:
        seen.append((places, options))
        raise UsageError("enough")

    monkeypatch.setattr(convert_module, "convert_model", convert)
    assert run("models", "convert", *order)[0] == 2
    ((places, options),) = seen
    assert places == ("CKPT", "OUT")
    assert (options["base"], options["elic"]) == ("DIR", "FILE")


def test_arguments_that_are_none(run: Run) -> None:
    for words in (["convert"], ["convert", "a", "b", "c"], ["convert", "a", "--alias"], ["pull"], ["show", "a", "b"]):
        code, _, err = run("models", *words)
        assert code == 2
        assert f"tilecodec models {words[0]}: error: " in err or "unrecognized arguments" in err


# --- files, hashes, names


def test_written_bytes_are_the_library_s(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        "b.half": torch.randn(3, 5).bfloat16(),
        "a": torch.randn(4, 2).T,
        "ä": torch.randint(-9, 9, (7,), dtype=torch.int8),
        "scalar": torch.tensor(3.0),
        "none": torch.zeros(0, 4),
        "c": torch.randint(0, 9, (2, 2), dtype=torch.int32),
        "d": torch.randint(0, 9, (3,), dtype=torch.uint8),
        "e": torch.randn(3).half(),
        "f": torch.tensor([True, False, True]),
        "g": torch.randint(0, 9, (3,)),
        "h": torch.randint(0, 9, (3,), dtype=torch.int16),
        "i": torch.randn(3).double(),
    }
    metadata = {"tilecodec": '{"alias":"q\\"ä"}'}
    lazy = {k: LazyTensor(v.dtype, tuple(v.shape), lambda v=v: v) if k < "c" else v for k, v in tensors.items()}
    sha256 = write_tensors(tmp_path / "a", lazy, metadata)
    assert (tmp_path / "a").read_bytes() == save({k: v.contiguous() for k, v in tensors.items()}, metadata)
    assert sha256 == hash_file(tmp_path / "a")
    assert read_header(tmp_path / "a")["none"]["shape"] == [0, 4]


def test_a_tensor_that_is_not_what_it_said(tmp_path: Path) -> None:
    wrong = LazyTensor(torch.float32, (2,), lambda: torch.zeros(3))
    with pytest.raises(ModelError, match="announced"):
        write_tensors(tmp_path / "a", {"x": wrong}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_hash_is_taken_once(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m" / FILE
    file.parent.mkdir()
    for name in (FILE, record_path(converted / FILE).name):
        (tmp_path / "m" / name).write_bytes((converted / name).read_bytes())
    hashed: list[Path] = []
    monkeypatch.setattr(record, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    monkeypatch.setattr(record, "_HASHED", {})
    wanted = hash_file(file)
    assert file_sha256(file) == wanted  # a copy: its time is another
    assert hashed == [file]
    for _ in range(3):
        monkeypatch.setattr(record, "_HASHED", {})  # as another process
        assert read_model(file.parent).sha256 == wanted
    assert hashed == [file]
    kept = read_record(file)
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x55")
    assert file_sha256(file) == hash_file(file) != wanted
    assert read_record(file) == kept  # for verify to tell
    with pytest.raises(ModelHashError):
        read_model(file, expected_sha256=wanted)


def test_large_files_get_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x" * 100)
    file_sha256(tmp_path / "a.safetensors")
    assert read_record(tmp_path / "a.safetensors") is None
    monkeypatch.setattr(record, "REMEMBER_BYTES", 100)
    monkeypatch.setattr(record, "_HASHED", {})
    file_sha256(tmp_path / "a.safetensors")
    kept = read_record(tmp_path / "a.safetensors")
    assert kept is not None
    assert kept.sha256 == hash_file(tmp_path / "a.safetensors")
    for text in ("[]", "{}", '{"tilecodec": 1, "sha256": 3, "size": 1, "mtime_ns": 2}', '{"tilecodec": 2}', "\x00"):
        record_path(tmp_path / "a.safetensors").write_text(text)
        assert read_record(tmp_path / "a.safetensors") is None


def test_models_are_found_by_name_hash_and_path(kept: Path) -> None:
    by_name = find_model("dit-ic-q3")
    assert by_name.path == kept / FILE
    assert find_model(f"sha256:{by_name.sha256}").path == kept / FILE
    assert find_model(str(kept)).sha256 == by_name.sha256
    assert set(by_name.source) > {"scale_table", "z_median"}
    assert not any(k.startswith("source") for k in by_name.program_tensors)
    assert float_entropy(by_name).exact


def test_a_model_that_cannot_be_read_is_not_in_the_way(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = kept.with_name("a") / FILE
    other.parent.mkdir()
    other.write_bytes(b"")
    sha256 = hash_file(kept / FILE)

    def refusing(file: Path) -> str:
        if file == other:
            raise PermissionError(13, "Permission denied", str(file))
        return file_sha256(file)

    monkeypatch.setattr(weights, "_SEEN", {})
    monkeypatch.setattr(weights, "file_sha256", refusing)
    assert find_model(f"sha256:{sha256}").path == kept / FILE
    assert {entry.name for entry in library.list_models()} >= {"a", "dit-ic-q3"}


@pytest.mark.parametrize("name", ["dit-ic-q3", "dit-ic-q9", "nobody", "../models", "sha256:00"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        find_model(name)
    assert "default" in str(caught.value)
    assert ("tilecodec models pull dit-ic-q" in str(caught.value)) == name.startswith("dit-ic-q")


def test_source_weights_that_do_not_fit_are_refused(converted: Path) -> None:
    model = read_model(converted)
    name = next(k for k in model.source if k.startswith("g_c."))
    for source in (
        {k: v for k, v in model.source.items() if k != name},
        dict(model.source) | {"more": torch.zeros(1)},
        dict(model.source) | {name: torch.zeros(3)},
    ):
        with pytest.raises(ModelError, match="do not fit"):
            float_entropy(replace(model, source=source))
    bare = {k: v for k, v in model.program_tensors.items() if not k.endswith((".exponent", ".input_bits"))}
    with pytest.raises(ModelError, match=r"integer\.source"):
        float_entropy(replace(model, source={}, program_tensors=bare))
    assert not float_entropy(replace(model, source={})).exact


# --- the library


def test_library_on_the_command_line(kept: Path, run: Run) -> None:
    code, out, err = run("models", "list")
    assert (code, err) == (0, "")
    assert re.search(r"default-\d+ .*part of the package, also default", out)
    assert re.search(r"dit-ic-q3 .*fp32, on this machine", out)
    code, out, _ = run("models", "list", "--json")
    entries = {e["name"]: e for e in json.loads(out)["models"]}
    assert entries["dit-ic-q3"]["sha256"] == hash_file(kept / FILE)
    assert (entries["dit-ic-q3"]["stride"], entries["dit-ic-q3"]["qualities"]) == (256, False)
    counted = sum(t.numel() for k, t in small.weights().items() if not k.startswith(weights.INTEGER_PARTS))
    assert sum(entries["dit-ic-q3"]["parameters"].values()) > counted

    for name in ("dit-ic-q3", str(kept), f"sha256:{hash_file(kept / FILE)}"):
        code, out, _ = run("models", "show", name)
        assert code == 0
        assert "merged_q3.pth" in out
        assert "multiple of 256" in out

    code, out, _ = run("models", "verify")
    assert code == 0
    assert "as recorded" in out
    with (kept / FILE).open("r+b") as stream:
        stream.seek(-3, os.SEEK_END)
        stream.write(b"\x07")
    code, out, _ = run("models", "verify", "dit-ic-q3", "--json")
    assert code == 1
    assert "changed since" in json.loads(out)["models"][0]["problem"]

    assert run("models", "rm", "dit-ic-q3") == (0, f"removed  {kept}\n", "")
    assert not kept.exists()
    code, _, err = run("models", "rm", "dit-ic-q3")
    assert code == 1
    assert "No model" in err
    for name in ("default", tilecodec.load_model("default", device="cpu").alias):
        code, _, err = run("models", "rm", name)
        assert code == 2
        assert "part of the package" in err
    assert run("models", "show", "dit-ic-q3")[0] == 1
    assert run("models")[0] == 2


def test_broken_models_are_listed_all_the_same(kept: Path, run: Run) -> None:
    (kept / FILE).write_bytes(b"nothing of the kind")
    code, out, _ = run("models", "list")
    assert code == 0
    assert "dit-ic-q3" in out
    assert "cannot be used" in out
    assert run("models", "show", "dit-ic-q3")[0] == 1
    assert run("models", "verify")[0] == 1


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("config.vae.stride", {}),
        ("config.vae.stride", 0),
        ("config.vae.widths", [64, "x"]),
        ("config.vae.kind", "other"),
        ("config.codec.rate_points", "x"),
        ("config.codec.z_channels", -1),
        ("config.codec.residual_prediction", 1),
        ("config.transformer.sigma", [1]),
        ("config.transformer.num_attention_heads", None),
        ("config.codec.synthesis.mid", 1.5),
        ("vae.decoder.conv_in.weight shape", [{}, 8]),
        ("vae.decoder.conv_in.weight shape", "x"),
    ],
)
def test_headers_with_other_values(place: str, value: Any, kept: Path) -> None:
    """They are listed as what cannot be used, and refused by all else."""
    file = kept / FILE
    whole = file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    if place.endswith(" shape"):
        header[place.removesuffix(" shape")]["shape"] = value
    else:
        inner = json.loads(header["__metadata__"]["tilecodec"])
        *parts, last = place.split(".")
        at = inner
        for part in parts:
            at = at[part]
        assert last in at
        at[last] = value
        header["__metadata__"]["tilecodec"] = json.dumps(inner)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[start:])
    record_path(file).unlink()
    listed = {entry.name: entry for entry in library.list_models()}
    assert listed["dit-ic-q3"].problem is not None
    (found,) = library.verify_models("dit-ic-q3")
    assert found.problem is not None
    with pytest.raises(ModelError):
        tilecodec.load_model("dit-ic-q3", device="cpu")


def test_configs_of_no_network(converted: Path) -> None:
    content = read_model(converted)
    assert content.config.transformer is not None
    odd = replace(content.config, vae=replace(content.config.vae, widths=(31,) * 6))
    with pytest.raises(ModelConfigError, match="no network"):
        CodecModel(replace(content, config=odd), device="cpu")


def test_removing_spares_what_is_not_ours(kept: Path, converted: Path) -> None:
    find_model(str(converted))  # a copy that this process has seen elsewhere
    (kept / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        library.remove_model("dit-ic-q3")
    with pytest.raises(UnknownModelError):
        library.remove_model(str(kept))
    link = models_folder() / "linked"
    link.symlink_to(kept, target_is_directory=True)
    library.remove_model("linked")
    assert (kept / "notes.txt").exists()
    (kept / "notes.txt").unlink()
    assert library.remove_model(f"sha256:{hash_file(kept / FILE)}") == kept
    assert list(models_folder().iterdir()) == []


def test_a_removal_that_was_interrupted_is_finished(kept: Path) -> None:
    rest = kept.with_name(f".{kept.name}.removed")
    rest.mkdir()
    (rest / FILE).write_text("half")
    library.remove_model("dit-ic-q3")
    assert list(models_folder().iterdir()) == []


def test_a_converted_model_encodes_and_decodes(kept: Path, tmp_path: Path, run: Run) -> None:
    picture = next(drawn_windows(512))[:400, :500]
    tifffile.imwrite(tmp_path / "p.tif", picture)
    made, back = tmp_path / "p.zarr", tmp_path / "p.npy"
    code, out, err = run(
        *("encode", tmp_path / "p.tif", made, "--model", "dit-ic-q3", "--tile", 256, "--levels", 2, "--device", "cpu")
    )
    assert (code, err) == (0, "")
    assert "dit-ic-q3" in out
    assert run("validate", made, "--deep")[0] == 0
    assert run("decode", made, back, "--device", "cpu")[0] == 0
    assert np.load(back).shape == (400, 500, 3)
    code, _, err = run("encode", tmp_path / "p.tif", tmp_path / "q.zarr", "--model", "dit-ic-q3", "--tile", 128)
    assert code == 2
    assert "256" in err


# --- the hub


def listing(*names: str) -> Listing:
    return Listing("a/b", fake_hub.COMMIT, {name: HubFile(10, None) for name in names}, cached=False)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["DiT-IC_q3.pth", "DiT-IC_q2.pth", "README.md", "q3.txt"], "DiT-IC_q3.pth"),
        (["q3/merged.pth", "q2/merged.pth", "q13/merged.pth"], "q3/merged.pth"),
        (["weights/Q-3.safetensors", "weights/q4.pt"], "weights/Q-3.safetensors"),
        (["rate_point_3.ckpt", "rate_point_30.ckpt"], "rate_point_3.ckpt"),
        (["lora/q3.pth", "merged/q3.pth"], "merged/q3.pth"),
        (["q3.pth", "q3.safetensors"], "q3.safetensors"),
        (["q3_a.pth", "q3_b.pth"], None),
        (["model.pth", "seq3.pth"], None),
        ([], None),
    ],
)
def test_the_checkpoint_is_found_by_its_name(files: list[str], expected: str | None) -> None:
    if expected is not None:
        assert pick_file(listing(*files), "dit-ic-q3") == expected
        return
    with pytest.raises(HubError, match="--file") as caught:
        pick_file(listing(*files), "dit-ic-q3")
    assert all(name in str(caught.value) for name in files)


@pytest.fixture
def fake(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.FakeHub]:
    """A hub that has the small checkpoint as q3, and the client's own cache, empty."""
    from huggingface_hub import constants

    files = {"README.md": b"# DiT-IC", "ckpt/DiT-IC_q3.pth": checkpoint.read_bytes(), "ckpt/DiT-IC_q4.pth": b"<html>"}
    with fake_hub.serve({hub.REPO: files}) as served:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, served.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield served


def test_pull_and_pull_again(fake: fake_hub.FakeHub, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notices: list[str] = []

    def pulled(**options: Any) -> hub.PullReport:
        given = {"config": small.SMALL, "calibration": pictures, "progress": False}
        return pull_model("dit-ic-q3", confirm=lambda text: not notices.append(text), **(given | options))

    report = pulled()
    assert (report.file, report.revision, report.converted) == ("ckpt/DiT-IC_q3.pth", fake_hub.COMMIT, True)
    assert report.path == str(models_folder() / "dit-ic-q3")
    assert len(notices) == 1
    assert "no licence" in notices[0]
    assert "ckpt/DiT-IC_q3.pth" in notices[0]
    assert fake.downloads() == ["ckpt/DiT-IC_q3.pth"]
    noted = read_record(models_folder() / "dit-ic-q3" / FILE)
    assert noted is not None
    assert noted.source["repository"] == hub.REPO
    assert noted.source["revision"] == fake_hub.COMMIT
    assert find_model("dit-ic-q3").sha256 == report.sha256

    before = len(fake.asked)
    again = pulled()
    assert (again.sha256, again.converted, len(fake.asked)) == (report.sha256, False, before)
    with pytest.raises(TargetExistsError, match="elsewhere"):
        pulled(file="ckpt/other.pth")
    with pytest.raises(TargetExistsError, match="elsewhere"):
        pulled(dtype="bf16")

    with (models_folder() / "dit-ic-q3" / FILE).open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(TargetExistsError, match=r"damaged.*--overwrite"):
        pulled()

    library.remove_model("dit-ic-q3")
    assert pulled().sha256 == report.sha256  # from the cache, converted to the same bytes
    assert len(notices) == 1
    assert len(fake.downloads()) == 1

    from huggingface_hub import constants

    said: list[str] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(fake.asked)
    assert pulled(overwrite=True, say=said.append).sha256 == report.sha256
    assert pulled(overwrite=True, revision="main").sha256 == report.sha256
    assert len(fake.asked) == before
    assert any("not reached" in text for text in said)
    with pytest.raises(HubError, match=r"(?s)--file.*ckpt/DiT-IC_q3\.pth"):
        pull_model("dit-ic-q1", config=small.SMALL, progress=False)


def test_pull_of_a_raw_checkpoint_fetches_its_base(
    fake: fake_hub.FakeHub, lora: Any, pictures: Path, tmp_path: Path
) -> None:
    sets, base, expected = lora
    torch.save(sets, tmp_path / "raw.pth")
    small.write_base(tmp_path / "base", base)
    fake.repositories[hub.REPO]["lora/q2.pth"] = (tmp_path / "raw.pth").read_bytes()
    files = {p.relative_to(tmp_path / "base").as_posix(): p.read_bytes() for p in (tmp_path / "base").rglob("*.*")}
    files |= {"text_encoder/model.safetensors": b"large", "vae/diffusion_pytorch_model.fp16.safetensors": b"half"}
    fake.repositories[hub.BASE_REPO] = files
    notices: list[str] = []
    with pytest.raises(CheckpointError, match="--elic FILE"):
        pull_model("dit-ic-q2", config=small.SMALL, progress=False)
    assert fake.downloads() == ["lora/q2.pth"]
    pull_model(
        "dit-ic-q2",
        config=small.SMALL,
        calibration=pictures,
        elic=write_elic(tmp_path / "elic.pth", ""),
        confirm=lambda text: not notices.append(text),
        progress=False,
    )
    assert len(notices) == 1  # the checkpoint is in the cache by now
    assert hub.BASE_REPO in notices[0]
    assert sorted(fake.downloads()) == [
        "lora/q2.pth",
        *(f"{f}/{n}" for f in ("transformer", "vae") for n in ("config.json", "diffusion_pytorch_model.safetensors")),
    ]
    held = load_file(models_folder() / "dit-ic-q2" / FILE)
    name = "vae.decoder.conv_in.weight"
    torch.testing.assert_close(held[name], expected[name], rtol=0, atol=1e-5)


def test_pulls_that_cannot_be(fake: fake_hub.FakeHub, pictures: Path) -> None:
    def pulled(name: str = "dit-ic-q3", **options: Any) -> None:
        pull_model(name, **({"config": small.SMALL, "calibration": pictures, "progress": False} | options))

    cases: list[tuple[type[TileCodecError], str, dict[str, Any]]] = [
        (UsageError, "no such model", {"name": "dit-ic-q7"}),
        (UsageError, "part of the package", {"name": "default", "file": "x.pth"}),
        (UsageError, "terms were not accepted", {"confirm": lambda _: False}),
        (UsageError, "OWNER/NAME", {"repository": "a/b/c"}),
        (HubError, "no such repository", {"repository": "no/body"}),
        (HubError, "no such revision", {"revision": "v9"}),
        (HubError, r"(?s)--file.*DiT-IC_q3\.pth", {"name": "dit-ic-q1"}),
        (HubError, "no file 'x.pth'", {"file": "x.pth"}),
        (CheckpointError, "web page", {"name": "dit-ic-q4"}),
    ]
    for error, words, options in cases:
        with pytest.raises(error, match=words):
            pulled(**options)
    fake.damaged.add("ckpt/DiT-IC_q3.pth")
    with pytest.raises(HubError, match="damaged"):
        pulled()
    assert not models_folder().exists()
    fake.damaged.clear()
    pulled()  # the damaged file is not in the cache any more
    assert (models_folder() / "dit-ic-q3" / FILE).is_file()


def test_a_cache_without_room(fake: fake_hub.FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's troubles are not the hub's."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(StorageError, match=r"cache cannot be written to.*HF_HOME") as caught:
        pull_model("dit-ic-q3", config=small.SMALL, progress=False)
    assert not isinstance(caught.value, HubError)
    (tmp_path / "cache").unlink()
    size = len(fake.repositories[hub.REPO]["ckpt/DiT-IC_q3.pth"])
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=size - 1))
    with pytest.raises(StorageError, match="room on the disk to download"):
        pull_model("dit-ic-q3", config=small.SMALL, progress=False)
    assert fake.downloads() == []
    listed = Listing(hub.REPO, fake_hub.COMMIT, {"a": HubFile(100, "abc")}, cached=False)
    blobs = tmp_path / "cache" / f"models--{hub.REPO.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.incomplete").write_bytes(b"x" * 60)
    assert hub._remaining(listed, "a", tmp_path / "cache") == 40


@pytest.mark.parametrize(
    "body", [b"<html>Please log in</html>", b"[]", b'{"a": 1}', b'{"id": "a/b", "siblings": [{}]}']
)
def test_answers_that_are_no_hub_s(fake: fake_hub.FakeHub, body: bytes) -> None:
    fake.instead = body
    with pytest.raises(HubError, match="convert FILE --alias dit-ic-q3"):
        pull_model("dit-ic-q3", config=small.SMALL, progress=False)


@pytest.mark.parametrize(
    "variables",
    [
        {"HTTPS_PROXY": "foo://bar"},
        {"HTTPS_PROXY": "socks5://127.0.0.1:9"},
        {"HF_ENDPOINT": "http://127.0.0.1:99999999"},
        {"HF_ENDPOINT": "nowhere"},
    ],
)
def test_addresses_that_are_none(variables: dict[str, str], tmp_path: Path) -> None:
    common = {"HF_ENDPOINT": "https://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf"), "TILECODEC_HOME": str(tmp_path)}
    proxies = {k for k in os.environ if k.lower().endswith("_proxy")}
    env = {k: v for k, v in os.environ.items() if k not in proxies} | common | variables
    command = [sys.executable, "-m", "tilecodec", "models", "pull", "dit-ic-q3", "--yes"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "the model hub cannot be reached" in done.stderr


def test_an_interrupted_download_goes_on(
    fake: fake_hub.FakeHub, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    fake.cut.add("ckpt/DiT-IC_q3.pth")
    report = pull_model("dit-ic-q3", config=small.SMALL, calibration=pictures, progress=False)
    assert report.converted
    assert fake.ranges[0] is None
    assert re.fullmatch(r"bytes=[1-9]\d*-\d*", fake.ranges[-1] or "")


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError) as caught:
        pull_model("dit-ic-q3", config=small.SMALL, progress=False)
    for words in ("127.0.0.1:9/JunqiShi/DiT-IC", "the checkpoint of q3", "HF_ENDPOINT", "HTTPS_PROXY"):
        assert words in str(caught.value)
    assert "tilecodec models convert FILE --alias dit-ic-q3" in str(caught.value)
    assert caught.value.exit_code == 3


def test_the_client_s_variables_are_honoured(checkpoint: Path, tmp_path: Path) -> None:
    """The real thing in a process of its own: a mirror, a cache folder, then the same without a network."""
    files = {"DiT-IC_q3.pth": checkpoint.read_bytes()}
    common = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "TILECODEC_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "tilecodec", "models", "pull", "dit-ic-q3", "--yes", "--json"]
    with fake_hub.serve({hub.REPO: files}) as served:
        env = common | {"HF_ENDPOINT": served.endpoint}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1  # of the small network, not of the authors'
    assert "no licence" in done.stderr
    assert "another network, or of another size" in done.stderr
    assert served.downloads() == ["DiT-IC_q3.pth"]
    assert list((tmp_path / "hf").rglob("DiT-IC_q3.pth"))
    env = common | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "another size" in done.stderr
    assert "no licence" not in done.stderr  # nothing is downloaded


def test_questions_are_asked_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tilecodec.models.commands import _confirmed

    assert _confirmed("terms", asks=True)
    assert capsys.readouterr().err == "terms\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for answer, expected in (("y\n", True), ("\n", True), ("n\n", False)):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True, readline=lambda answer=answer: answer))
        assert _confirmed("terms", asks=True) == expected
        assert _confirmed("terms", asks=False)


def test_tiny_models_can_be_listed_too(tmp_path: Path) -> None:
    """A model that was trained, not converted: no record, integers only."""
    assert tiny.write_tiny_model(models_folder() / "mine") == models_folder() / "mine"
    entry = library.show_model("mine")
    assert (entry.qualities, entry.embedded, entry.source) == (True, False, {})
    (found,) = library.verify_models("mine")
    assert (found.recorded, found.problem) == (None, None)
