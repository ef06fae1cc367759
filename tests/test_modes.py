"""The catalogue through every way of reading: all return the pixels of the slow decoder."""

from __future__ import annotations

import asyncio
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import catalogue
import dask.array
import numpy as np
import pytest
import tiny
import torch
import zarr

import tilecodec
from tilecodec.decoder import engine, jobs
from tilecodec.decoder.reference import decode_reference
from tilecodec.encoder import level_sizes
from tilecodec.entropy.codec import SingleThreadPool
from tilecodec.tiles.cut import halve


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A container for every case, with small tiles, two tiles a chunk and three levels."""
    folder = tmp_path_factory.mktemp("containers")
    made = {}
    for case in catalogue.cases():
        made[case.name] = folder / f"{case.name}.zarr"
        tilecodec.encode(
            case.pixels, made[case.name], model=tiny.tiny_model(), tile=128, chunk_tiles=2, levels=3, quality=60
        )
    return made


@pytest.mark.parametrize("name", catalogue.names())
def test_every_way_of_reading_gives_the_same_pixels(name: str, containers: dict[str, Path], tmp_path: Path) -> None:
    path = containers[name]
    image = tilecodec.open(path)
    group = zarr.open_group(path, mode="r")
    case = catalogue.case(name)
    assert image.shape == (3, case.height, case.width)
    for number in range(image.levels):
        level = image.level(number)
        whole = decode_reference(path, number).transpose(2, 0, 1)
        assert level.shape == whole.shape
        np.testing.assert_array_equal(level[...], whole)
        np.testing.assert_array_equal(group[str(number)][...], whole)
        np.testing.assert_array_equal(dask.array.from_zarr(group[str(number)]).compute(), whole)
        np.testing.assert_array_equal(level.to_dask().compute(), whole)
    tilecodec.decode(path, tmp_path / "all.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "all.npy").transpose(2, 0, 1), image[...])


@pytest.mark.parametrize("cache_bytes", [0, 64 << 20])
@pytest.mark.parametrize("name", ["photo", "part-empty", "stain"])
def test_any_region_equals_the_part_of_the_whole(name: str, cache_bytes: int, containers: dict[str, Path]) -> None:
    path = containers[name]
    rng = np.random.default_rng(7)
    plain = zarr.open_group(path, mode="r")
    for number in range(2):
        whole = decode_reference(path, number).transpose(2, 0, 1)
        level = tilecodec.open(path, cache_bytes=cache_bytes).level(number)
        for _ in range(12):
            y0, y1 = sorted(rng.choice(level.shape[1] + 1, 2, replace=False))
            x0, x1 = sorted(rng.choice(level.shape[2] + 1, 2, replace=False))
            np.testing.assert_array_equal(level[:, y0:y1, x0:x1], whole[:, y0:y1, x0:x1])
            np.testing.assert_array_equal(plain[str(number)][:, y0:y1, x0:x1], whole[:, y0:y1, x0:x1])


INDEXES = [
    np.s_[1],
    np.s_[:, 5],
    np.s_[..., 7],
    np.s_[::-1, 10:200:3, -1],
    np.s_[0, ..., 3:4],
    np.s_[:, 290:4:-7, ::50],
    np.s_[:, 5:5, :],
    np.s_[1:3, -40:, -60:-20],
]


@pytest.mark.parametrize("index", INDEXES, ids=str)
def test_indexing_is_numpys(index: object, containers: dict[str, Path]) -> None:
    image = tilecodec.open(containers["photo"])
    whole = image[...]
    result = image[index]
    assert result.shape == whole[index].shape
    np.testing.assert_array_equal(result, whole[index])


def test_plain_zarr_takes_steps_and_fancy_indexes(containers: dict[str, Path]) -> None:
    array = zarr.open_group(containers["photo"], mode="r")["0"]
    whole = array[...]
    np.testing.assert_array_equal(array[1, 5:250:7, 3:400:5], whole[1, 5:250:7, 3:400:5])
    rows, cols = [3, 200, 250], [1, 300, 410]
    np.testing.assert_array_equal(array.oindex[[0, 2], rows, cols], whole[np.ix_([0, 2], rows, cols)])
    np.testing.assert_array_equal(array.vindex[[0, 1, 2], rows, cols], whole[[0, 1, 2], rows, cols])


def test_empty_tiles_keep_their_exact_colour(containers: dict[str, Path]) -> None:
    for name in catalogue.names("constant"):
        np.testing.assert_array_equal(
            tilecodec.open(containers[name])[...], catalogue.case(name).pixels.transpose(2, 0, 1)
        )
    case = catalogue.case("part-empty")
    pixels = tilecodec.open(containers["part-empty"])[...].transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels[:128], case.pixels[:128])
    np.testing.assert_array_equal(pixels[:, :128], case.pixels[:, :128])


def test_images_travel_between_processes(containers: dict[str, Path]) -> None:
    image = tilecodec.open(containers["odd"])
    again = pickle.loads(pickle.dumps(image))  # noqa: S301  # our own bytes
    np.testing.assert_array_equal(again[...], image[...])
    level = pickle.loads(pickle.dumps(image.level(1)))  # noqa: S301  # our own bytes
    np.testing.assert_array_equal(level[...], image.level(1)[...])


def test_batches_of_pixels_do_not_depend_on_the_threads(containers: dict[str, Path]) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        seen = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            seen.append(tilecodec.open(containers["photo"], precision="bf16", cache_bytes=0)[...])
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(seen[0], seen[1])


def test_workers_compute_on_one_thread() -> None:
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        pool = SingleThreadPool()

        def threads() -> int:
            torch.ones(8, 8) @ torch.ones(8, 8)
            return torch.get_num_threads()

        assert 1 <= pool.workers <= 2
        assert {pool.submit(threads).result() for _ in range(8)} == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


class DoneAtOnce:
    """A pool whose jobs are done before whoever submits them is told: what a quick worker may do."""

    workers = 1

    def submit(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(call(*args))
        return future


def test_jobs_may_be_done_at_once(containers: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = containers["part-empty"]
    wanted = tilecodec.open(path)[...]
    for module in (jobs, engine):
        monkeypatch.setattr(module, "POOL", DoneAtOnce())
    found: list[np.ndarray] = []
    reader = threading.Thread(target=lambda: found.append(tilecodec.open(path)[...]), daemon=True)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        reader.start()
        reader.join(120)
    finally:
        torch.set_num_threads(before)
    assert not reader.is_alive(), "the read waits for itself"
    np.testing.assert_array_equal(found[0], wanted)


def test_the_pyramid_is_made_of_two_by_two_means(tmp_path: Path) -> None:
    """With rows of chunks that roll through disk, every level still sees exactly the halved level below."""
    pixels = np.random.default_rng(3).integers(0, 256, (700, 300, 3), np.uint8)
    seen: dict[str, np.ndarray] = {}
    from tilecodec.entropy.model import CodecModel

    original = CodecModel.analyse

    def spy(self: CodecModel, window: np.ndarray, core: tuple[slice, slice], quality: float) -> object:
        seen.setdefault("windows", []).append((window.copy(), core))
        return original(self, window, core, quality)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CodecModel, "analyse", spy)
        tilecodec.encode(
            pixels, tmp_path / "p.zarr", model=tiny.tiny_model(), tile=128, chunk_tiles=1, levels=3, halo=32
        )
    level = pixels
    expected = []
    for _ in range(3):
        expected.append(level)
        level = halve(level)
    cores = [w[c] for w, c in seen["windows"]]
    for n, (height, width) in enumerate(level_sizes(700, 300, 3)):
        assert expected[n].shape[:2] == (height, width)
        for y in range(0, height, 128):
            for x in range(0, width, 128):
                part = expected[n][y : y + 128, x : x + 128]
                assert any(np.array_equal(c[: part.shape[0], : part.shape[1]], part) for c in cores), (n, y, x)


@pytest.mark.parametrize("on_error", ["raise", "fill"])
def test_tiles_without_an_overlap(on_error: str, tmp_path: Path) -> None:
    pixels = np.tile(catalogue.case("photo").pixels, (4, 4, 1))[:400, :300].copy()
    pixels[128:256, 128:256] = (10, 200, 30)
    path = tmp_path / "a.zarr"
    tilecodec.encode(pixels, path, model=tiny.tiny_model(), tile=128, chunk_tiles=2, overlap=0)
    if on_error == "fill":
        (path / "0/c/0/1/0").unlink()
    image = tilecodec.open(path, on_error=on_error, fill=(1, 2, 3))
    whole = decode_reference(path, fill=(1, 2, 3)).transpose(2, 0, 1)
    np.testing.assert_array_equal(image[...], whole)
    np.testing.assert_array_equal(image[:, 100:390, 120:260], whole[:, 100:390, 120:260])
    assert image.failed_tiles == (4 if on_error == "fill" else 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("delay", [0.0, 0.013, 0.037])
def test_a_forked_process_reads_too(delay: float, finished: Path) -> None:
    """Workers, and what they were doing, do not survive a fork: the child starts its own, even with an image that
    another thread was reading."""
    whole = np.asarray(tilecodec.open(finished)[:])
    code = (
        "import os, sys, threading, time, numpy as np, torch, tilecodec\n"
        "torch.set_num_threads(1)\n"
        "path, model = sys.argv[1:3]\n"
        "image = tilecodec.open(path, model=model, cache_bytes=0)\n"
        "first = image[...]\n"
        "stop = threading.Event()\n"
        "def busy():\n"
        "    while not stop.is_set():\n"
        "        image[...]\n"
        "thread = threading.Thread(target=busy)\n"
        "thread.start()\n"
        "time.sleep(float(sys.argv[3]))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if np.array_equal(image[...], first) else 1)\n"
        "stop.set(); thread.join()\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "print(int(first.sum(dtype=np.int64)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(finished), str(tiny.tiny_model()), str(delay)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == int(whole.sum(dtype=np.int64))


def test_what_waits_on_disk_is_what_waits_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = catalogue.case("photo")
    path = tmp_path / "a.zarr"
    tilecodec.encode(case.pixels, path, model=tiny.tiny_model(), tile=128, chunk_tiles=2)
    before = tilecodec.open(path)[...]
    monkeypatch.setattr("tilecodec.tiles.rolling.IN_MEMORY", -1)
    np.testing.assert_array_equal(tilecodec.open(path)[...], before)
    tilecodec.decode(path, tmp_path / "a.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy").transpose(2, 0, 1), before)
    tilecodec.encode(case.pixels, tmp_path / "b.zarr", model=tiny.tiny_model(), tile=128, chunk_tiles=2)
    chunks = [p.relative_to(path) for p in path.rglob("*") if p.is_file() and p.name != "zarr.json"]
    assert len(chunks) >= 4
    assert all((tmp_path / "b.zarr" / p).read_bytes() == (path / p).read_bytes() for p in chunks)


def test_reading_without_blocking(containers: dict[str, Path]) -> None:
    image = tilecodec.open(containers["photo"])
    whole = image[...]

    async def several() -> list[np.ndarray]:
        keys = [..., np.s_[:, 10:200, 30:90], np.s_[1, ::-3, 5], np.s_[:, 4:4]]
        return list(await asyncio.gather(*(image.read_async(key) for key in keys), image.level(1).read_async()))

    found = asyncio.run(several())
    for pixels, wanted in zip(
        found, [whole, whole[:, 10:200, 30:90], whole[1, ::-3, 5], whole[:, 4:4], image.level(1)[...]], strict=True
    ):
        np.testing.assert_array_equal(pixels, wanted)

    async def cancelled() -> None:
        task = asyncio.ensure_future(tilecodec.open(containers["photo"]).read_async())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    np.testing.assert_array_equal(image[...], whole)


MANY_CHUNKS = """
import sys
import numpy as np
import zarr
zarr.config.set({"threading.max_workers": 2})
import tilecodec
got = zarr.open_group(sys.argv[1], mode="r")["0"][...]
assert np.array_equal(got, tilecodec.open(sys.argv[1], model=sys.argv[2])[...])
"""


def test_zarr_reads_more_chunks_at_once_than_its_loop_has_threads(tmp_path: Path) -> None:
    """In those threads stores read, too: were chunks decoded there, all would wait for a read that never begins."""
    model, path = tiny.tiny_model(), tmp_path / "a.zarr"
    tilecodec.encode(catalogue.case("photo").pixels, path, model=model, tile=128, chunk_tiles=1, levels=1)
    env = os.environ | {"TILECODEC_HOME": str(tmp_path / "home")}
    shutil.copytree(model, tmp_path / "home" / "models" / "tiny")
    command = [sys.executable, "-c", MANY_CHUNKS, str(path), str(model)]
    subprocess.run(command, check=True, timeout=120, env=env)
