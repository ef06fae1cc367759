"""The network against every intermediate tensor of the authors' one, and its names against their checkpoints'."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tilecodec.entropy.model import load_model
from tilecodec.errors import ModelConfigError, ModelError, SourceError
from tilecodec.model.config import DiTICConfig, VAEConfig, default_config, official_config
from tilecodec.model.dc_ae import DCAE
from tilecodec.model.ditic import DiTIC
from tilecodec.testing import (
    first_name,
    golden_model,
    golden_state_dict,
    official_scale_table,
    reduced_config,
    scale_rows,
    trace,
)

DATA = Path(__file__).parent / "data"
CONTEXT = [f"{name}_{step}" for step in range(4) for name in ("means", "scales")]
CODED = [f"{name}_{step}" for step in range(4) for name in ("symbols", "indexes")]
FLOATS = [
    *("aux_features", "vae_latent", "y", "z", "z_median", "z_hat", "hyper_params"),
    *CONTEXT,
    *("y_hat", "mean", "log_scale", "res", "prompt", "caption", "timestep", "sigma0", "velocity", "x0", "recon"),
]
WEIGHTS_AND_TABLES = {"z_cdf", "z_cdf_length", "z_offset"}
ENTROPY_MODEL = ("codec.entropy_bottleneck.", "codec.gaussian_conditional.")

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Golden:
    network: DiTIC
    expected: Arrays
    actual: Arrays


@pytest.fixture(scope="module")
def golden() -> Golden:
    with np.load(DATA / "dit_ic_small.npz") as file:
        expected = {name: file[name] for name in file.files}
    network = golden_model()
    actual = trace(network, expected["image_u8"], z_median=expected["z_median"], scale_table=expected["scale_table"])
    return Golden(network, expected, actual)


def checkpoint(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, (shape, _) in json.loads((DATA / name).read_text()).items()}


@pytest.mark.parametrize("name", FLOATS)
def test_floats_agree(golden: Golden, name: str) -> None:
    expected, actual = golden.expected[name], golden.actual[name]
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("name", [*CODED, "image_u8", "z_shape"])
def test_integers_are_identical(golden: Golden, name: str) -> None:
    np.testing.assert_array_equal(golden.actual[name], golden.expected[name], strict=True)


def test_every_golden_entry_is_compared(golden: Golden) -> None:
    compared = {*FLOATS, *CODED, "image_u8", "z_shape", "scale_table"}
    others = {name for name in golden.expected if not name.startswith("eb.")} - compared
    assert others == WEIGHTS_AND_TABLES | {"n_bytes"}  # n_bytes: of the authors' own entropy coder
    assert compared == set(golden.actual)


def test_official_scales(golden: Golden) -> None:
    np.testing.assert_array_max_ulp(official_scale_table(), golden.expected["scale_table"], maxulp=4)


def test_scale_rows_are_the_first_not_below() -> None:
    table = torch.tensor([0.5, 1.0, 2.0])
    scales = torch.tensor([-3.0, 0.5, 0.50001, 1.0, 1.5, 2.0, 99.0])
    assert scale_rows(scales, table).tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_analyse_is_the_same_road(golden: Golden) -> None:
    x = torch.from_numpy(golden.expected["image_u8"])[None] / 127.5 - 1
    with torch.inference_mode():
        y = golden.network.analyse(x)
    np.testing.assert_allclose(y.numpy(), golden.actual["y"], rtol=0, atol=1e-4)


def test_a_loaded_model_brings_its_median() -> None:
    """The default model keeps no float entropy weights: those that its integers stand for are taken."""
    model = load_model("default", device="cpu", precision="fp32")
    median = model.program.z_median * np.float32(2.0**-model.program.z_bits)
    image = np.random.default_rng(3).integers(0, 256, (3, 128, 128), np.uint8)
    seen = trace(model, image, rate=0.5)
    assert np.abs(median).max() > 0.1
    np.testing.assert_array_equal(seen["z_median"], median)
    np.testing.assert_array_equal(seen["scale_table"], official_scale_table())
    rounded = seen["z_hat"] - median.reshape(1, -1, 1, 1)
    np.testing.assert_allclose(rounded, np.rint(rounded), atol=1e-5)
    assert np.abs(seen["z_hat"] - seen["z"]).max() <= 0.5 + 1e-5


def test_other_sizes_are_padded_by_reflection(golden: Golden) -> None:
    image = np.random.default_rng(1).integers(0, 256, (3, 200, 300), np.uint8)
    small = trace(golden.network, image)
    padded = np.pad(image, ((0, 0), (0, 56), (0, 212)), mode="reflect")
    whole = trace(golden.network, padded)
    assert small["y"].shape == (1, 320, 4, 8)
    assert small["z"].shape == (1, 160, 1, 2)
    assert small["x0"].shape == (1, 32, 8, 16)
    assert small["recon"].shape == (1, 3, 200, 300)
    np.testing.assert_allclose(small["recon"], whole["recon"][:, :, :200, :300], atol=1e-4)
    assert np.isfinite(whole["recon"]).all()
    assert np.abs(whole["recon"]).max() <= 1


@pytest.mark.parametrize(
    "image", [np.zeros((3, 8, 8), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((3, 0, 8), np.uint8)]
)
def test_trace_refuses_other_arrays(golden: Golden, image: NDArray[Any]) -> None:
    with pytest.raises(SourceError, match="uint8"):
        trace(golden.network, image)


def test_trace_refuses_half_precision() -> None:
    with torch.device("meta"):
        network = DiTIC(reduced_config())
    network.codec.to(torch.bfloat16)
    with pytest.raises(ModelError, match="float32"):
        trace(network, np.zeros((3, 8, 8), np.uint8))


@pytest.mark.parametrize(
    ("config", "file"),
    [(official_config(), "official_merged_keys.json"), (reduced_config(), "dit_ic_small_keys.json")],
    ids=["official", "reduced"],
)
def test_names_and_shapes_are_the_checkpoints(config: DiTICConfig, file: str) -> None:
    with torch.device("meta"):
        network = DiTIC(config)
    stored = checkpoint(file)
    expected = {
        key: shape
        for key, shape in stored.items()
        if key == first_name(key, stored) and key != "timesteps" and not key.startswith((*ENTROPY_MODEL, "loss."))
    }
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == expected


def test_golden_state_dict_of_a_merged_checkpoint(golden: Golden) -> None:
    """What a converter is tried with: aliases, buffers and the entropy bottleneck are there, and equal."""
    stored = checkpoint("dit_ic_small_keys.json")
    shapes = {key: shape for key, shape in stored.items() if key.startswith(("codec.g_a.", *ENTROPY_MODEL, "timest"))}
    state = golden_state_dict(shapes, entries=golden.expected)
    absent = set(shapes) - set(state)
    assert absent == {
        key
        for key in shapes
        if key.endswith((".bound", ".target", ".scale_bound"))
        or key.removeprefix("codec.gaussian_conditional.") in ("_offset", "_quantized_cdf", "_cdf_length")
    }
    assert torch.equal(state["codec.g_a.pre2.0.branch1.weight"], state["codec.g_a.pre2.0.down.weight"])
    bottleneck = "codec.entropy_bottleneck."
    np.testing.assert_array_equal(state[bottleneck + "quantiles"], golden.expected["eb.quantiles"])
    np.testing.assert_array_equal(state[bottleneck + "matrices.1"], golden.expected["eb.matrices.1"])
    np.testing.assert_array_equal(state[bottleneck + "_quantized_cdf"], golden.expected["z_cdf"])
    assert state["timesteps"].tolist() == [999]


def test_default_config_can_be_traced() -> None:
    """Another seed, another size, no auxiliary encoder, gains: the same road."""
    config = default_config()
    network = golden_model(config, seed="g1")
    image = np.random.default_rng(2).integers(0, 256, (3, 100, 256), np.uint8)
    low, high = (trace(network, image, rate=rate) for rate in (0.0, 1.0))
    assert "aux_features" not in low
    assert low["y"].shape == (1, config.codec.y_channels, 128 // config.y_stride, 256 // config.y_stride)
    assert low["recon"].shape == (1, 3, 100, 256)
    np.testing.assert_array_equal(low["y"], high["y"])
    assert not np.array_equal(low["symbols_0"], high["symbols_0"])
    assert config.transformer is not None
    assert low["timestep"].item() - high["timestep"].item() == config.transformer.timestep_span


@pytest.mark.parametrize("change", [{"stride": 16}, {"widths": (32, 32)}, {"decoder_layers": (1,) * 5}])
def test_contradicting_stages_are_refused(change: dict[str, object]) -> None:
    fields = {
        "kind": "dc-ae",
        "stride": 32,
        "widths": (32,) * 6,
        "encoder_layers": (1,) * 6,
        "decoder_layers": (1,) * 6,
    }
    with torch.device("meta"), pytest.raises(ModelConfigError, match="vae"):
        DCAE(VAEConfig(**{**fields, **change}))  # type: ignore[arg-type]
