"""Windows side by side on a device: its budget, what happens when its memory is full, and when it is gone.

Faults are raised by networks on the CPU, which go through the same lanes as those on a GPU.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import catalogue
import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray

import tilecodec
from tilecodec import cli
from tilecodec.config import DecodeOptions, EncodeOptions
from tilecodec.entropy.codec import POOL
from tilecodec.entropy.model import CodecModel, LatentWindow, load_model, pick_devices, shared_model
from tilecodec.errors import DeviceError, NotEnoughMemoryError, UsageError
from tilecodec.model import device as devices
from tilecodec.model.device import Lanes, StreamLane, device_errors
from tilecodec.model.device_budget import plan_device
from tilecodec.model.footprint import hyper_bytes, staged_bytes
from tilecodec.model.gate import PATIENCE, MemoryGate
from tilecodec.model.seats import Seats

MIB = 1 << 20
CPU = torch.device("cpu")
GONE = "CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later"
TOGETHER = 5
HEIGHT, WIDTH = 256, 384


class Watched:
    """A network's method that counts how many calls run side by side, and fails where it is told to."""

    def __init__(self, call: Callable[..., torch.Tensor], fails: Callable[[int], Exception | None]) -> None:
        self._call, self._fails, self._lock = call, fails, threading.Lock()
        self.running = self.most = self.failures = 0

    def __call__(self, *args: Any) -> torch.Tensor:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            time.sleep(0.02)
            failure = self._fails(self.running)
            if failure is not None:
                with self._lock:
                    self.failures += 1
                raise failure
            return self._call(*args)
        finally:
            with self._lock:
                self.running -= 1


def full() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")


def never(_running: int) -> None:
    return None


@pytest.fixture
def model() -> CodecModel:
    return load_model(tiny.tiny_model(), device="cpu", precision="fp32")


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watched]:
    def watch(model: CodecModel, name: str, fails: Callable[[int], Exception | None] = never) -> Watched:
        watched = Watched(getattr(model.network, name), fails)
        monkeypatch.setattr(model.network, name, watched)
        return watched

    return watch


def latents(model: CodecModel, count: int = 2 * TOGETHER) -> list[LatentWindow]:
    torch.manual_seed(0)
    sides = (HEIGHT // model.config.y_stride, WIDTH // model.config.y_stride)
    windows = [torch.randn(model.config.codec.y_channels, *sides) for _ in range(count)]
    return [LatentWindow(y, y.abs()) for y in windows]


def together(model: CodecModel, windows: list[LatentWindow]) -> list[NDArray[np.uint8]]:
    with ThreadPoolExecutor(TOGETHER) as pool:
        return list(pool.map(lambda window: model.reconstruct(window, 50), windows))


# --- the gate


def test_a_gate_lets_fewer_through_once_lowered() -> None:
    gate = MemoryGate(lambda: None)
    with contextlib.ExitStack() as rooms:
        seen = [rooms.enter_context(gate.room(1)) for _ in range(4)]
        with gate.room(1), gate.room(1):
            assert seen == [None] * 4
            gate.lower(seen[0])
        gate.lower(seen[1])  # failed together with the first
    with gate.room(1) as most, gate.room(1), gate.room(1):
        assert most == 3
        assert not gate._fits(0)
        gate.lower(most)
    with gate.room(1) as most:
        assert most == 1
        assert not gate._fits(0)
        gate.lower(most)
    with gate.room(1) as most:
        assert most == 1


def test_a_lowered_gate_opens_again_after_a_while() -> None:
    gate = MemoryGate(lambda: None)
    for number in (1, 2):
        with gate.room(1) as most, gate.room(1):
            gate.lower(most)
        seen = []
        for _ in range(2**number * PATIENCE + 1):
            with gate.room(1) as most:
                seen.append(most)
        assert seen == [1] * (2**number * PATIENCE) + [2]
    with gate.room(1) as most, gate.room(1):  # one more is let through meanwhile
        gate._most = 3
        gate.lower(most)
        assert gate._most == 1
    fixed = MemoryGate(lambda: None, most=1)
    for _ in range(3 * PATIENCE):
        with fixed.room(1) as most:
            assert most == 1


# --- memory that is full


@pytest.mark.parametrize("least", [2, 3])
def test_a_full_memory_lets_fewer_windows_run(model: CodecModel, watch: Callable[..., Watched], least: int) -> None:
    windows = latents(model)
    wanted = [model.reconstruct(window, 50) for window in windows]
    seen = watch(model, "render_levels", lambda running: full() if running >= least else None)
    for found, expected in zip(together(model, windows), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert seen.failures
    with model.seats.all[0].lanes._gate.room(0) as most:
        assert most is not None
        assert 1 <= most < least
    before = seen.failures
    together(model, windows)
    assert seen.failures == before


def test_encode_and_decode_lose_no_tile(
    tmp_path: Path, watch: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = catalogue.case("photo")
    options: dict[str, Any] = {"model": tiny.tiny_model(), "tile": 128, "chunk_tiles": 1, "device": "cpu"}
    tilecodec.encode(case.pixels, tmp_path / "a.zarr", **options)
    wanted = tilecodec.open(tmp_path / "a.zarr", device="cpu")[...]
    model = shared_model(tiny.tiny_model(), "cpu")
    monkeypatch.setattr(model, "seats", Seats([replace(model.seats.all[0], lanes=Lanes(CPU, lambda: None))]))
    seen = [
        watch(model, name, lambda running: full() if running > 1 else None)
        for name in ("analyse_levels", "render_levels")
    ]
    tilecodec.encode(case.pixels, tmp_path / "b.zarr", **options)
    np.testing.assert_array_equal(tilecodec.open(tmp_path / "b.zarr", device="cpu")[...], wanted)
    for path in (tmp_path / "a.zarr").rglob("c/*/*/*"):
        assert (tmp_path / "b.zarr" / path.relative_to(tmp_path / "a.zarr")).read_bytes() == path.read_bytes()
    assert any(one.failures for one in seen) or POOL.workers == 1


@pytest.mark.parametrize(
    "failure",
    [
        full(),
        RuntimeError("CUDA error: out of memory\nand more"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
    ids=["torch", "driver", "library", "cpu"],
)
def test_a_window_that_never_fits_is_an_error(
    model: CodecModel, watch: Callable[..., Watched], failure: Exception
) -> None:
    seen = watch(model, "render_levels", lambda _: failure)
    with pytest.raises(NotEnoughMemoryError, match=r"decoding a window of 384 x 256 px with nothing beside") as caught:
        model.reconstruct(latents(model, 1)[0], 50)
    assert seen.failures == 2  # nobody knew at first that it was alone
    assert str(failure).split("\n")[0] in str(caught.value)
    assert f"{model.decode_bytes(HEIGHT, WIDTH) / 2**30:.2f} GiB" in str(caught.value)
    assert "more\n" not in str(caught.value)
    assert caught.value.__context__ is None  # whose frames would hold the tensors


def test_the_memory_of_a_failed_attempt_is_free_before_the_next() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def work(x: torch.Tensor) -> torch.Tensor:
        assert not any(ref() is not None for ref in held)
        large = x + 1
        held.append(weakref.ref(large))
        raise full()

    with pytest.raises(NotEnoughMemoryError):
        Lanes(CPU, lambda: None, lambda _: ThreadLane()).run(1, "it", work, torch.zeros(8))
    assert len(held) == 2


class ThreadLane:
    """A lane with a thread, as a stream's, without a stream."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)

    def run(self, work: devices.Work, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self._thread.submit(work, *inputs).result()


def test_lanes_are_as_many_as_calls_ran_at_a_time() -> None:
    made: list[ThreadLane] = []

    def lane(_: torch.device) -> ThreadLane:
        made.append(ThreadLane())
        return made[-1]

    lanes = Lanes(CPU, lambda: 30, lane)

    def work(x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.01)
        return x + 1

    with ThreadPoolExecutor(TOGETHER) as pool:
        found = list(pool.map(lambda n: int(lanes.run(10, "it", work, torch.tensor(n))), range(30)))
    assert found == list(range(1, 31))
    assert 1 <= len(made) <= 3
    before = len(made)
    lanes._forget()
    lanes.run(10, "it", work, torch.tensor(0))
    assert len(made) == before + 1


def test_other_devices_take_one_call_at_a_time() -> None:
    running = most = 0

    def work() -> torch.Tensor:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1
        return torch.zeros(1)

    lanes = Lanes(torch.device("meta"), lambda: None)
    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(lambda _: lanes.run(0, "it", work), range(TOGETHER)))
    assert most == 1


# --- several devices


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> CodecModel:
    """A model on two devices; both are the CPU, each with a network of its own."""
    monkeypatch.setattr("tilecodec.entropy.model.pick_devices", lambda _: (CPU, CPU))
    return load_model(tiny.tiny_model(), precision="fp32")


def test_windows_are_spread_over_devices(model: CodecModel, pair: CodecModel, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = latents(model)
    wanted = together(model, windows)
    first, second = (seat.network for seat in pair.seats.all)
    assert first is pair.network
    assert second is not first
    seen = [Watched(network.render_levels, never) for network in (first, second)]
    for network, watched in zip((first, second), seen, strict=True):
        monkeypatch.setattr(network, "render_levels", watched)
    for found, expected in zip(together(pair, windows), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert sum(one.most for one in seen) == TOGETHER
    assert min(one.most for one in seen) == TOGETHER // 2
    assert pair.seats._running == [0, 0]


def test_a_budget_holds_on_each_device(pair: CodecModel, monkeypatch: pytest.MonkeyPatch) -> None:
    windows, window = latents(pair), pair.decode_bytes(HEIGHT, WIDTH)
    wanted = together(pair, windows)
    bounded = pair.within(pair.weights_bytes + window)
    seen = []
    for seat in pair.seats.all:
        seen.append(Watched(seat.network.render_levels, never))
        monkeypatch.setattr(seat.network, "render_levels", seen[-1])
    for found, expected in zip(together(bounded, windows), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert [one.most for one in seen] == [1, 1]


def test_a_full_device_leaves_the_others_as_they_are(pair: CodecModel, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = latents(pair)
    wanted = together(pair, windows)
    full_one, other = pair.seats.all
    failing = Watched(full_one.network.render_levels, lambda running: full() if running > 1 else None)
    monkeypatch.setattr(full_one.network, "render_levels", failing)
    for found, expected in zip(together(pair, windows), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert failing.failures
    with full_one.lanes._gate.room(0) as most, other.lanes._gate.room(0) as rest:
        assert (most, rest) == (1, None)


def test_a_lost_device_is_an_error_and_its_call_is_over(pair: CodecModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pair.network, "render_levels", Watched(pair.network.render_levels, lambda _: RuntimeError(GONE))
    )
    with pytest.raises(DeviceError):
        pair.reconstruct(latents(pair, 1)[0], 50)
    assert pair.seats._running == [0, 0]


@pytest.mark.parametrize("names", ["cpu,cpu", "cpu,cuda:0", "cuda:0,cuda:0", "auto,cuda:1"])
def test_only_different_gpus_go_together(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tilecodec.entropy.model.pick_device", lambda name: torch.device("cuda:1" if name == "auto" else name)
    )
    with pytest.raises(UsageError, match="only different GPUs"):
        load_model(tiny.tiny_model(), device=names)


def test_a_list_of_gpus_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [str(place) for place in pick_devices("cuda:2,cuda:0")] == ["cuda:2", "cuda:0"]
    assert cli._device("cuda:2,cuda:0") == "cuda:2,cuda:0"
    for text in ("cuda,cuda:1", "cpu,cuda:1", "cuda:1,", "cuda:1;cuda:2"):
        with pytest.raises(UsageError):
            cli._device(text)


@pytest.mark.gpu
def test_gpus_together_give_the_pixels_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU stands for two: each has its own network, lanes and streams."""
    case = catalogue.case("photo")
    tilecodec.encode(case.pixels, tmp_path / "a.zarr", tile=128, device="cuda:0")
    wanted = tilecodec.open(tmp_path / "a.zarr", device="cuda:0")[...]
    monkeypatch.setattr("tilecodec.entropy.model.pick_devices", lambda _: (torch.device("cuda:0"),) * 2)
    tilecodec.encode(case.pixels, tmp_path / "b.zarr", tile=128, device="cuda:0,cuda:1")
    found = tilecodec.open(tmp_path / "b.zarr", device="cuda:0,cuda:1")[...]
    np.testing.assert_array_equal(found, wanted)


# --- a device that is gone


@pytest.mark.parametrize(
    "failure",
    [RuntimeError(GONE), torch.AcceleratorError(GONE), RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")],
    ids=["plain", "accelerator", "cudnn"],
)
def test_a_lost_device_is_named(model: CodecModel, watch: Callable[..., Watched], failure: Exception) -> None:
    watch(model, "render_levels", lambda _: failure)
    with pytest.raises(DeviceError, match=r"where: cpu.* --resume") as caught:
        model.reconstruct(latents(model, 1)[0], 50)
    assert str(failure).split("\n")[0] in str(caught.value)
    assert "might be" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_an_encode_goes_on_after_the_device_was_lost(
    tmp_path: Path, watch: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = catalogue.case("photo")
    options: dict[str, Any] = {"model": tiny.tiny_model(), "tile": 128, "chunk_tiles": 1, "device": "cpu"}
    tilecodec.encode(case.pixels, tmp_path / "a.zarr", **options)
    model = shared_model(tiny.tiny_model(), "cpu")
    with monkeypatch.context() as patch:
        left = iter(range(3))
        whole = model.network.analyse_levels

        def lost(levels: torch.Tensor) -> torch.Tensor:
            if next(left, None) is None:
                raise RuntimeError(GONE)
            return whole(levels)

        patch.setattr(model.network, "analyse_levels", lost)
        with pytest.raises(DeviceError):
            tilecodec.encode(case.pixels, tmp_path / "b.zarr", **options)
    tilecodec.encode(case.pixels, tmp_path / "b.zarr", resume=True, **options)
    for path in (tmp_path / "a.zarr").rglob("c/*/*/*"):
        assert (tmp_path / "b.zarr" / path.relative_to(tmp_path / "a.zarr")).read_bytes() == path.read_bytes()


def test_other_errors_stay_what_they_are(model: CodecModel, watch: Callable[..., Watched]) -> None:
    for failure in (RuntimeError("shapes differ"), ValueError("no"), DeviceError(got="before")):
        with pytest.raises(type(failure)) as caught, device_errors(CPU, "it"):
            raise failure
        assert caught.value is failure
    expected = pytest.raises(NotEnoughMemoryError, match=r"^loading takes more memory.* 2\.00 GiB")
    with expected, device_errors(CPU, "loading"):
        raise full()
    watch(model, "render_levels", lambda _: RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        model.reconstruct(latents(model, 1)[0], 50)


# --- a budget


def test_the_device_s_budget_is_divided() -> None:
    args: dict[str, Any] = {"device": "cuda:0", "weights": 300 * MIB, "window": 70 * MIB, "workers": 4, "what": "it"}
    assert plan_device(370 * MIB, **args).windows == 1
    assert plan_device(510 * MIB, **args).windows == 3
    assert str(plan_device(4096 * MIB, **args)) == ("device memory 4096 MiB of cuda:0: 300 of weights, 4 x 70 windows")
    with pytest.raises(NotEnoughMemoryError, match=r"too small for it.*at least 370 MiB.*300 MiB.*weights on cuda:0"):
        plan_device(370 * MIB - 1, **args)


def test_windows_stay_within_the_device_s_budget(
    model: CodecModel, watch: Callable[..., Watched], caplog: pytest.LogCaptureFixture
) -> None:
    windows, window = latents(model), model.decode_bytes(HEIGHT, WIDTH)
    wanted = together(model, windows)
    assert model.within(None) is model
    for count in (1, 3):
        budget = model.weights_bytes + count * window + window // 2
        bounded = model.within(budget)
        assert bounded is model.within(budget)
        assert bounded.network is model.network
        with caplog.at_level(logging.INFO, "tilecodec"):
            bounded.check_decode(HEIGHT, WIDTH)
        assert f"{min(count, POOL.workers)} x {window / MIB:.0f} windows" in caplog.records[-1].message
        seen = watch(model, "render_levels")
        for found, expected in zip(together(bounded, windows), wanted, strict=True):
            np.testing.assert_array_equal(found, expected)
        assert 1 <= seen.most <= count
    least = model.weights_bytes + window
    model.within(least).check_decode(HEIGHT, WIDTH)
    for check, size in (("check_decode", least - 1), ("check_analyse", 1)):
        with pytest.raises(NotEnoughMemoryError, match=r"device memory budget .* at least"):
            getattr(model.within(size), check)(HEIGHT, WIDTH)


def test_weights_are_counted(model: CodecModel) -> None:
    assert model.weights_bytes == sum(p.nbytes for p in [*model.network.parameters(), *model.network.buffers()])


def test_what_is_no_budget_of_a_device() -> None:
    for options in (EncodeOptions, DecodeOptions):
        assert options(device_memory="6GiB").device_memory == "6GiB"
        assert options(device_memory=1 << 30, device="cuda:1").device == "cuda:1"
        with pytest.raises(UsageError, match="option device_memory is no amount"):
            options(device_memory="lots")
        with pytest.raises(UsageError, match=r"device_memory is for a GPU.*--memory"):
            options(device_memory="6GiB", device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_budget_of_a_device_is_refused_on_the_cpu(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``auto`` turns out to be the CPU, before a model is loaded or anything is written."""
    case = catalogue.case("photo")
    for call in (
        lambda: tilecodec.encode(case.pixels, tmp_path / "a.zarr", device_memory="6GiB"),
        lambda: tilecodec.open(finished, device_memory="6GiB")[:, :8, :8],
        lambda: tilecodec.decode(finished, tmp_path / "a.npy", device_memory="6GiB"),
    ):
        with pytest.raises(UsageError, match="--memory"):
            call()
    for device in ("auto", "cpu"):
        command = ["decode", str(finished), str(tmp_path / "a.npy"), "--device", device]
        assert cli.main([*command, "--device-memory", "6GiB"]) == 2
        assert "--memory" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("side", [256, 512])
def test_the_estimates_beside_the_windows(model: CodecModel, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    places = (side // model.config.y_stride) ** 2
    assert hyper_bytes(model.config, places, 2) < hyper_bytes(model.config, places, 4) < model.analyse_bytes(side, side)
    staged = staged_bytes(model.config, side, side)
    assert 2 * 3 * side * side < staged < 32 * 3 * side * side
    for estimate in (model.decode_bytes, model.analyse_bytes):
        assert estimate(side, side, host=True) == estimate(side, side)
        with monkeypatch.context() as patch:
            patch.setattr(model, "device", torch.device("cuda:0"))
            assert estimate(side, side, host=True) == staged < estimate(side, side)


# --- streams


class FakeCuda:
    """torch.cuda's streams and pinned memory, on the CPU; keeps a record of what was done, and on which thread."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.threads: set[int] = set()
        empty, copy = torch.empty, torch.Tensor.copy_

        def pinned(tensor: torch.Tensor) -> torch.Tensor:
            self.note("pin")
            return tensor

        def fetched(shape: torch.Size, *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
            assert pin_memory
            return empty(shape, dtype=dtype)

        def copied(to: torch.Tensor, result: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
            assert non_blocking
            self.note("copy")
            return copy(to, result)

        patch.setattr(torch.cuda, "Stream", lambda device: f"stream of {device}")
        patch.setattr(torch.cuda, "Event", lambda blocking: self if blocking else None)
        patch.setattr(torch.cuda, "stream", self.stream)
        patch.setattr(torch.Tensor, "pin_memory", pinned)
        patch.setattr(torch.Tensor, "copy_", copied)
        patch.setattr(devices.torch, "empty", fetched)

    def note(self, word: str) -> None:
        self.done.append(word)
        self.threads.add(threading.get_ident())

    @contextlib.contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        self.note(f"enter {stream}")
        yield
        self.note("leave")

    def record(self, stream: str) -> None:
        self.note("record")

    def synchronize(self) -> None:
        self.note("wait")


def test_a_stream_s_thread_copies_works_and_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        cuda = FakeCuda(patch)
        lane = StreamLane(CPU)

        def work(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            assert torch.is_inference_mode_enabled()
            cuda.note("work")
            return a + b

        found = lane.run(work, (torch.ones(2, 3), torch.ones(4, 3)[::2]))
    assert found.tolist() == [[2.0] * 3] * 2
    assert cuda.done == ["enter stream of cpu", "pin", "pin", "work", "copy", "record", "leave", "wait"]
    assert len(cuda.threads) == 1
    assert threading.get_ident() not in cuda.threads


@pytest.mark.gpu
def test_streams_side_by_side_give_the_bits_of_one_at_a_time() -> None:
    model = load_model("default", device="cuda")
    torch.manual_seed(0)
    windows = [
        LatentWindow(y, y.abs()) for y in (torch.randn(model.config.codec.y_channels, 40, 40) for _ in range(16))
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (8, 640, 640, 3), np.uint8)
    core = (slice(64, 576), slice(64, 576))
    alone = [model.reconstruct(window, 50) for window in windows]
    codes = [model.analyse(window, core, 50) for window in pixels]
    hypers = [model.hyper_analyse([code])[0] for code in codes]
    for _ in range(3):
        for found, wanted in zip(together(model, windows), alone, strict=True):
            np.testing.assert_array_equal(found, wanted)
        with ThreadPoolExecutor(TOGETHER) as pool:
            found_codes = list(pool.map(lambda window: model.analyse(window, core, 50), pixels))
            found_hypers = list(pool.map(lambda code: model.hyper_analyse([code])[0], found_codes))
        for code, wanted_code, hyper, wanted_hyper in zip(found_codes, codes, found_hypers, hypers, strict=True):
            assert torch.equal(code, wanted_code)
            assert torch.equal(hyper, wanted_hyper)
            assert code.is_pinned()
    assert 1 < len(model.seats.all[0].lanes._idle) <= TOGETHER


@pytest.mark.gpu
def test_a_gpu_s_memory_stays_within_its_budget(tmp_path: Path) -> None:
    case = catalogue.case("photo")
    options: dict[str, Any] = {"tile": 256, "device": "cuda"}
    tilecodec.encode(case.pixels, tmp_path / "a.zarr", **options)
    wanted = tilecodec.open(tmp_path / "a.zarr", device="cuda")[...]
    model = shared_model("default", "cuda")
    side = 1024 + 2 * 128
    beside = torch.cuda.memory_allocated(model.device) - model.weights_bytes  # other tests' models
    budget = model.weights_bytes + 2 * max(model.decode_bytes(side, side), model.analyse_bytes(side, side))
    torch.cuda.reset_peak_memory_stats(model.device)
    tilecodec.encode(case.pixels, tmp_path / "b.zarr", device_memory=budget, **options)
    found = tilecodec.open(tmp_path / "b.zarr", device="cuda", device_memory=budget)[...]
    assert torch.cuda.max_memory_allocated(model.device) - beside <= budget
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(NotEnoughMemoryError, match=r"device memory budget .* at least"):
        tilecodec.open(tmp_path / "b.zarr", device="cuda", device_memory="1MB")[:, :8, :8]


@pytest.mark.gpu
def test_a_gpu_that_is_full_is_told_with_figures() -> None:
    model = load_model(tiny.tiny_model(), device="cuda")

    def work(x: torch.Tensor) -> torch.Tensor:
        return torch.empty(1 << 50, dtype=torch.uint8, device=x.device)

    with pytest.raises(NotEnoughMemoryError, match="Tried to allocate"):
        model.seats.all[0].lanes.run(1, "it", work, torch.zeros(1))
    assert model.reconstruct(latents(model, 1)[0], 50).shape == (HEIGHT, WIDTH, 3)
