"""Precisions, memory and compiled code: the same symbols always, pixels within what is said, refusals in time."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from torch import nn
from torch.profiler import ProfilerActivity, profile

import tilecodec
from tilecodec import cli, encoder, testing
from tilecodec.config import DecodeOptions, EncodeOptions
from tilecodec.decoder.engine import LevelDecoder, SharedWork
from tilecodec.entropy import model as models
from tilecodec.entropy.model import CodecModel, LatentWindow, load_model
from tilecodec.errors import CompileWarning, NotEnoughMemoryError, UsageError
from tilecodec.metrics import psnr
from tilecodec.model import mapped
from tilecodec.model.config import DiTICConfig, default_config, official_config
from tilecodec.model.footprint import analyse_bytes, decode_bytes
from tilecodec.model.gate import MemoryGate
from tilecodec.model.int8 import Int8Conv2d, Int8Linear, quantise_weight
from tilecodec.model.loading import load_network, weights_bytes
from tilecodec.model.weights import INTEGER_PARTS, find_model, read_model
from tilecodec.tiles import TilePosition

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = {"fp32": 100.0, "bf16": 45.0, "fp16": 45.0, "int8": 30.0}
"""Least PSNR of a decode against fp32, dB."""


def bench_module(name: str) -> ModuleType:
    """A module of bench/, which is not installed."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the authors' architecture, narrow, in bfloat16."""
    golden = bench_module("golden_model")
    return Path(golden.write_golden_model(tmp_path_factory.mktemp("model") / "small", testing.small_config()))


@pytest.fixture(scope="module")
def small_config(small: Path) -> DiTICConfig:
    return read_model(small).config


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    from skimage.data import astronaut

    return np.ascontiguousarray(astronaut()[:300, 50:500, :3])


@pytest.fixture(scope="module", params=["tiny", "small"])
def container(
    request: pytest.FixtureRequest, small: Path, picture: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A model and a container written with it."""
    model = tiny.tiny_model() if request.param == "tiny" else str(small)
    path = tmp_path_factory.mktemp("container") / "p.zarr"
    tilecodec.encode(picture, path, model=model, tile=256, precision="fp32", levels=1)
    return model, path


def symbols(model: CodecModel, path: Path) -> list[NDArray[np.float32]]:
    """What the tiles' bytes decode to, in symbol units."""
    image = tilecodec.open(path, model=str(find_model(f"sha256:{model.sha256}").path), precision="fp32")
    layout = image.metadata.levels[0]
    decoder = LevelDecoder(
        image._store.under(layout.path), layout, model, shared=SharedWork(layout, model, cache_bytes=0)
    )
    reader = decoder.fetcher._reader
    found = []
    for row in range(layout.grid.rows):
        for col in range(layout.grid.cols):
            tile = reader.read(TilePosition(row, col))
            assert tile.payload is not None
            latent = model.tile_codec.decode(tile.payload, "test")
            found += [latent.y_hat.numpy(), latent.scale.numpy()]
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_precisions_decode_the_same_symbols(container: tuple[str, Path], precision: str) -> None:
    name, path = container
    exact = load_model(name, device="cpu", precision="fp32")
    model = load_model(name, device="cpu", precision=precision)  # type: ignore[arg-type]
    assert model.precision == precision
    for wanted, found in zip(symbols(exact, path), symbols(model, path), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_precisions_decode_nearly_the_same_pixels(container: tuple[str, Path], precision: str) -> None:
    name, path = container
    wanted = tilecodec.open(path, model=name, precision="fp32")[...]
    found = tilecodec.open(path, model=name, precision=precision)[...]  # type: ignore[arg-type]
    assert float(wanted.std()) > 5
    assert psnr(found, wanted) >= PRECISIONS[precision] or np.array_equal(found, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_gpu_decodes_the_same(container: tuple[str, Path], precision: str) -> None:
    name, path = container
    exact = load_model(name, device="cpu", precision="fp32")
    model = load_model(name, device="cuda", precision=precision)  # type: ignore[arg-type]
    for expected, got in zip(symbols(exact, path), symbols(model, path), strict=True):
        np.testing.assert_array_equal(got, expected)
    wanted = tilecodec.open(path, model=name, device="cuda", precision="fp32")[...]
    found = tilecodec.open(path, model=name, device="cuda", precision=precision)[...]  # type: ignore[arg-type]
    assert psnr(found, wanted) >= min(45.0, PRECISIONS[precision]) or np.array_equal(found, wanted)


def test_containers_of_all_precisions_can_be_read(small: Path, picture: NDArray[np.uint8], tmp_path: Path) -> None:
    """What one precision writes another reads: the entropy model is the same integers."""
    for precision in PRECISIONS:
        path = tmp_path / f"{precision}.zarr"
        tilecodec.encode(picture[:256, :256], path, model=str(small), tile=256, precision=precision, levels=1)
        found = tilecodec.open(path, model=str(small), precision="fp32")[...]
        assert found.shape == (3, 256, 256)


def test_other_precisions_are_refused() -> None:
    for wrong in (
        lambda: EncodeOptions(precision="int4"),  # type: ignore[arg-type]
        lambda: DecodeOptions(precision="half"),  # type: ignore[arg-type]
        lambda: load_model(tiny.tiny_model(), precision="float32"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError, match="precision"):
            wrong()


# --- loading


def test_weights_of_int8_are_the_nearest_levels() -> None:
    torch.manual_seed(0)
    for shape in ((8, 16), (8, 4, 3, 3)):
        weight = torch.randn(shape) * torch.arange(8).reshape(8, *[1] * (len(shape) - 1))
        levels, step = quantise_weight(weight)
        assert levels.dtype == torch.int8
        assert levels.flatten(1).abs().amax(1).tolist() == [0, *[127] * 7]
        assert ((levels * step - weight).abs() <= step / 2 * 1.001).all()


def test_int8_layers_are_the_plain_ones_with_rounded_weights() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 32, 9, 7)
    for conv in (nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.Conv2d(32, 32, 5, padding=2, groups=32, bias=False)):
        small = Int8Conv2d(conv, torch.float32)
        plain = nn.Conv2d(32, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, groups=conv.groups)
        plain.load_state_dict(
            {"weight": small.weight, "bias": torch.zeros(conv.out_channels) if conv.bias is None else conv.bias}
        )
        torch.testing.assert_close(small(x), plain(x), rtol=0, atol=1e-6)
        assert (small(x) - conv(x)).abs().max() < 0.05
    linear = nn.Linear(32, 16)
    assert (
        Int8Linear(linear.weight, linear.bias, torch.float32)(x[:, :, 0, 0]) - linear(x[:, :, 0, 0])
    ).abs().max() < 0.05


def test_int8_takes_a_byte_for_a_weight(small: Path, small_config: DiTICConfig) -> None:
    model = load_model(str(small), device="cpu", precision="int8")
    kinds = {type(module) for module in model.network.modules()}
    assert {Int8Conv2d, Int8Linear} <= kinds
    held = sum(p.nbytes for p in [*model.network.parameters(), *model.network.buffers()])
    told = weights_bytes(small_config, model.dtype, int8=True, absent=INTEGER_PARTS)
    plain = weights_bytes(small_config, torch.bfloat16, int8=False, absent=INTEGER_PARTS)
    assert held <= 1.1 * told
    assert told < 0.8 * plain


def test_a_tensor_in_its_dtype_stays_in_the_file(small: Path) -> None:
    """Nothing is copied that need not be; what is copied is given back to the file."""
    file = read_model(small)
    network = load_network(
        file.config,
        {k: v for k, v in file.tensors.items() if not k.startswith(INTEGER_PARTS)},
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        int8=False,
        absent=INTEGER_PARTS,
        where=file.path,
    )
    stays = "DiT.transformer_blocks.0.attn1.to_q.weight"
    assert network.get_parameter(stays).data_ptr() == file.tensors[stays].data_ptr()
    assert all(p.dtype == torch.bfloat16 for p in network.parameters())
    for parameter in network.parameters():
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_files_of_either_dtype_load_in_either(stored: torch.dtype, precision: str, tmp_path: Path) -> None:
    golden = bench_module("golden_model")
    path = golden.write_golden_model(tmp_path / "model", testing.small_config(), stored)
    model = load_model(str(path), device="cpu", precision=precision)  # type: ignore[arg-type]
    assert {p.dtype for p in model.network.parameters()} == {model.dtype}
    name = "DiT.proj_out.weight"
    wanted = read_model(path).tensors[name].to(model.dtype)
    assert torch.equal(model.network.get_parameter(name), wanted)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_pages_of_a_file_are_given_back_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    values = torch.arange(1 << 20, dtype=torch.int32)
    path.write_bytes(values.numpy().tobytes())
    inside = torch.from_file(str(path), shared=False, size=1 << 20, dtype=torch.int32)
    giver = mapped.MappedFile(path)
    touched = int(inside.sum())

    def resident() -> int:
        lines = Path("/proc/self/smaps").read_text().split(str(path))[1].splitlines()
        return int(next(line for line in lines if line.startswith("Rss:")).split()[1])

    before = resident()
    giver.release(inside)
    assert resident() < before
    assert int(inside.sum()) == touched  # read again from the file
    giver.release(values)
    assert torch.equal(values, torch.arange(1 << 20, dtype=torch.int32))


# --- memory


def peak_of(call: Callable[[], object]) -> int:
    """Bytes of the tensors that a call holds at its fullest moment, the result of an earlier call warm."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    changes = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda e: e.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("side", [256, 512])
def test_the_estimate_is_above_what_is_measured(small: Path, precision: str, side: int) -> None:
    for name in (str(small), tiny.tiny_model()):
        model = load_model(name, device="cpu", precision=precision)  # type: ignore[arg-type]
        places = side // model.config.y_stride
        latent = torch.randn(model.config.codec.y_channels, places, places)
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        whole = slice(0, side)
        for told, call in (
            (model.decode_bytes(side, side), partial(model.reconstruct, LatentWindow(latent, latent.abs()), 50)),
            (model.analyse_bytes(side, side), partial(model.analyse, pixels, (whole, whole), 50)),
        ):
            measured = peak_of(call)
            assert measured < told
            assert measured > 3 * side * side  # the measurement sees the tensors


@pytest.mark.parametrize(
    "config", [official_config(), default_config(), tiny.TINY], ids=["official", "default", "tiny"]
)
@pytest.mark.parametrize("estimate", [decode_bytes, analyse_bytes])
def test_the_estimate_grows_with_everything(config: DiTICConfig, estimate: Callable[..., int]) -> None:
    sides = [256, 512, 640, 1152, 2176, 4224]
    for value_bytes in (2, 4):
        squares = [estimate(config, side, side, value_bytes) for side in sides]
        assert squares == sorted(set(squares))
        wide = [estimate(config, 640, side, value_bytes) for side in sides]
        assert wide == sorted(set(wide))
    assert all(estimate(config, s, s, 2) < estimate(config, s, s, 4) for s in sides)


def test_the_full_network_s_windows_fit() -> None:
    """Two windows of the default tile, and the weights, within eight gibibytes."""
    config = official_config()
    weights = weights_bytes(config, torch.bfloat16, int8=False, absent=INTEGER_PARTS)
    assert 1.7 * 2**30 < weights < 2.1 * 2**30
    assert weights + 2 * decode_bytes(config, 640, 640, 2) < 4 * 2**30
    assert weights + 2 * decode_bytes(config, 1152, 1152, 2) < 6 * 2**30
    assert encoder.tiles_together(config, 512, 64) == 2
    assert encoder.tiles_together(default_config(), 512, 64) == 2
    assert encoder.tiles_together(default_config(), 128, 64) == 8


def free(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(models, "free_memory_bytes", lambda _device: size)


def test_too_little_memory_is_refused_before_anything_is_written(
    small: Path, picture: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.zarr"
    model = models.shared_model(str(small), precision="fp32")
    needed = model.analyse_bytes(512, 512)
    free(monkeypatch, needed - 1)
    with pytest.raises(NotEnoughMemoryError, match=r"encoding a window of 512 x 512 px") as caught:
        tilecodec.encode(picture, path, model=str(small), tile=512, precision="fp32")
    assert f"{needed / 2**30:.2f} GiB" in str(caught.value)
    assert "int8" in str(caught.value)
    assert isinstance(caught.value, MemoryError)
    assert not path.exists()
    free(monkeypatch, needed)
    tilecodec.encode(picture, path, model=str(small), tile=512, precision="fp32")
    image = tilecodec.open(path, precision="fp32")
    free(monkeypatch, model.decode_bytes(512, 512) - 1)
    with pytest.raises(NotEnoughMemoryError, match=r"decoding a window of 512 x 512 px"):
        image[:, :8, :8]
    free(monkeypatch, 1 << 20)
    with pytest.raises(NotEnoughMemoryError, match=r"the weights of small takes more memory"):
        load_model(str(small), device="cpu", precision="fp32")


def test_results_do_not_depend_on_how_many_windows_run(
    small: Path, picture: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    model = models.shared_model(str(small), precision="bf16")
    for n, size in enumerate((None, max(model.analyse_bytes(512, 512), model.decode_bytes(384, 384)))):
        free(monkeypatch, size)
        path = tmp_path / f"{n}.zarr"
        tilecodec.encode(picture, path, model=str(small), tile=256, precision="bf16", levels=1)
        data = [p.read_bytes() for p in sorted((path / "0").rglob("*")) if p.is_file()]
        results.append((data, tilecodec.open(path, precision="bf16")[...].tobytes()))
    assert results[0] == results[1]


def test_a_gate_lets_through_what_fits() -> None:
    gate = MemoryGate(lambda: 100)
    most = running = 0
    lock = threading.Lock()

    def work(size: int) -> None:
        nonlocal most, running
        with gate.room(size):
            with lock:
                running += size
                most = max(most, running)
            time.sleep(0.01)
            with lock:
                running -= size

    threads = [threading.Thread(target=work, args=(40,)) for _ in range(6)] + [threading.Thread(target=work, args=(0,))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert 40 <= most <= 80
    with gate.room(1000):  # alone it always runs
        pass
    with pytest.raises(KeyError), gate.room(90):
        raise KeyError
    with gate.room(90):
        pass


# --- compiled code


def test_compiled_code_gives_the_same(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no compiler: a warning, and the model as it was."""
    plain = load_model(str(small), device="cpu", precision="fp32")
    latent = torch.randn(plain.config.codec.y_channels, 4, 4)
    wanted = plain.reconstruct(LatentWindow(latent, latent.abs()), 50)

    def broken(self: nn.Module, *_: Any, **__: Any) -> None:
        self._compiled_call_impl = broken_call

    def broken_call(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler here\nand much more")

    monkeypatch.setattr(nn.Module, "compile", broken)
    with pytest.warns(CompileWarning, match=r"going on without: no compiler here$"):
        model = load_model(str(small), device="cpu", precision="fp32", compile=True)
    np.testing.assert_array_equal(model.reconstruct(LatentWindow(latent, latent.abs()), 50), wanted)


def test_the_command_line_has_the_options(
    small: Path, picture: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import imagecodecs

    imagecodecs.imwrite(tmp_path / "p.png", picture)
    options = ["--model", str(small), "--precision", "int8", "--quiet"]
    assert cli.main(["encode", str(tmp_path / "p.png"), str(tmp_path / "p.zarr"), "--tile", "256", *options]) == 0
    assert cli.main(["decode", str(tmp_path / "p.zarr"), str(tmp_path / "out.npy"), *options]) == 0
    assert np.load(tmp_path / "out.npy").shape == picture.shape
    with pytest.raises(SystemExit) as caught:
        cli.main(["decode", str(tmp_path / "p.zarr"), str(tmp_path / "out.npy"), "--precision", "int3"])
    assert caught.value.code == 2
    assert "int3" in capsys.readouterr().err
