"""The memory budget: how it is divided, what is refused, and that no pixel depends on it."""

from __future__ import annotations

import logging
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import catalogue
import numpy as np
import pytest
import tiny

import tilecodec
from tilecodec.budget import RESERVE, plan_memory
from tilecodec.config import DecodeOptions, EncodeOptions, parse_bytes, parse_device_budget
from tilecodec.decoder.tiles import cached_bytes, decoding_bytes
from tilecodec.entropy.codec import POOL
from tilecodec.errors import NotEnoughMemoryError, UsageError
from tilecodec.memory import peak_memory_bytes, used_memory_bytes

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 << 30),
        ("800MB", 800_000_000),
        (" 1.5 gib ", 3 << 29),
        ("64k", 64_000),
        ("123", 123),
        (4096, 4096),
    ],
)
def test_amounts(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GB", "0", "1TBB", "two", 0, -5, True])
def test_what_is_no_amount(text: Any) -> None:
    with pytest.raises(UsageError, match="no amount of memory"):
        parse_bytes(text)
    with pytest.raises(UsageError):
        DecodeOptions(memory=text)
    with pytest.raises(UsageError):
        EncodeOptions(memory=text)
    with pytest.raises(UsageError, match="option device_memory is no amount"):
        parse_device_budget(text, "cuda")
    assert parse_device_budget(None, "cpu") is None


def test_used_memory_is_that_of_the_process() -> None:
    assert 0 < used_memory_bytes() <= peak_memory_bytes() + MIB


HOLES = """
import os
from pathlib import Path
from tilecodec.memory import give_back_freed_memory, keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

assert keep_freed_memory()
blocks = [b"x" * 65536 + bytes([n % 256]) for n in range(2048)]
kept = blocks[::4]
del blocks
before = resident()
give_back_freed_memory()
print((before - resident()) >> 20, sum(block[-1] for block in kept))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's allocator has no such holes")
def test_holes_in_the_heap_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    freed, total = map(int, done.stdout.split())
    assert freed > 70  # of 96 MiB in holes of 192 KiB
    assert total == sum(range(0, 256, 4)) * 8


def test_long_work_gives_back_what_it_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[str] = []
    monkeypatch.setattr("tilecodec.encoder.give_back_freed_memory", lambda: times.append("encode"))
    monkeypatch.setattr("tilecodec.decoder.engine.give_back_freed_memory", lambda: times.append("decode"))
    monkeypatch.setattr("tilecodec.encoder.CHUNKS_TIDY", 2)
    monkeypatch.setattr("tilecodec.decoder.engine.WINDOWS_TIDY", 4)
    path = tmp_path / "a.zarr"
    pixels = np.zeros((384, 512, 3), np.uint8)
    pixels[::2] = 200
    tilecodec.encode(pixels, path, model=tiny.tiny_model(), tile=128, chunk_tiles=2, levels=1)
    assert times == ["encode"] * 2
    tilecodec.decode(path, tmp_path / "a.npy", model=tiny.tiny_model())
    assert times[2:] == ["decode"] * 3


def test_the_budget_is_divided_and_kept() -> None:
    args: dict[str, Any] = {"tiles": 10 * MIB, "window": 70 * MIB, "workers": 4, "what": "it", "used": 500 * MIB}
    least = 500 * MIB + RESERVE + 80 * MIB
    assert plan_memory(least, **args).windows == 1
    with pytest.raises(NotEnoughMemoryError, match=f"at least {least // MIB} MiB"):
        plan_memory(least - 1, **args)
    for budget in range(least, 2000 * MIB, 37 * MIB):
        plan = plan_memory(budget, cache=64 * MIB, **args)
        assert 1 <= plan.windows <= 4
        assert 0 <= plan.cache <= 64 * MIB
        assert plan.used + RESERVE + plan.tiles + plan.windows * plan.window + plan.cache <= budget
    assert (plan.windows, plan.cache) == (4, 64 * MIB)
    assert "4 x 70 windows, 64 cache" in str(plan)


def test_pixels_and_bytes_do_not_depend_on_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = catalogue.case("photo")
    options: dict[str, Any] = {"model": tiny.tiny_model(), "tile": 128, "chunk_tiles": 2}
    tilecodec.encode(case.pixels, tmp_path / "a.zarr", **options)
    used = used_memory_bytes()
    narrow = used + RESERVE + 400 * MIB
    with caplog.at_level(logging.INFO, "tilecodec"):
        tilecodec.encode(case.pixels, tmp_path / "b.zarr", memory=narrow, **options)
        image = tilecodec.open(tmp_path / "b.zarr", memory=narrow)
        pixels = [image.level(n)[...] for n in range(image.levels)]
    assert len([r for r in caplog.records if r.message.startswith("memory ")]) == 2
    for n, level in enumerate(pixels):
        np.testing.assert_array_equal(level, tilecodec.open(tmp_path / "a.zarr").level(n)[...])
    for call in (
        lambda: tilecodec.encode(case.pixels, tmp_path / "c.zarr", memory="1MB", **options),
        lambda: tilecodec.open(tmp_path / "b.zarr", memory="1MB")[:, :8, :8],
        lambda: tilecodec.decode(tmp_path / "b.zarr", tmp_path / "c.tif", memory="1MB"),
    ):
        with pytest.raises(NotEnoughMemoryError, match="at least"):
            call()
    assert not (tmp_path / "c.zarr").exists()
    assert not (tmp_path / "c.tif").exists()


def test_bytes_do_not_depend_on_how_many_tiles_are_coded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = catalogue.case("photo").pixels
    found = []
    for together in (1, 2, 3):
        monkeypatch.setattr("tilecodec.encoder.CODED_TOGETHER", together)
        path = tmp_path / f"{together}" / "a.zarr"
        tilecodec.encode(pixels, path, model=tiny.tiny_model(), tile=128, chunk_tiles=2)
        found.append({p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()})
    assert found[0] == found[1] == found[2]


def test_levels_share_one_cache(tmp_path: Path) -> None:
    case = catalogue.case("photo")
    path = tmp_path / "a.zarr"
    tilecodec.encode(case.pixels, path, model=tiny.tiny_model(), tile=128, chunk_tiles=2)
    image = tilecodec.open(path, cache_bytes=200_000)
    for n in range(image.levels):
        image.level(n)[...]
    decoders = [image.level(n).decoder for n in range(image.levels)]
    (shared,) = {id(d._shared): d._shared for d in decoders}.values()
    assert 0 < shared.windows._results.bytes <= 200_000
    assert all(d.fetcher._tiles is shared.tiles.tiles and d.fetcher._feet is shared.tiles.feet for d in decoders)


def test_tiles_and_their_feet_stay_within_the_plan(tmp_path: Path) -> None:
    case = catalogue.case("photo")
    path = tmp_path / "a.zarr"
    tilecodec.encode(case.pixels, path, model=tiny.tiny_model(), tile=128, chunk_tiles=2)
    image = tilecodec.open(path, memory=used_memory_bytes() + RESERVE + 400 * MIB)
    decoder = image.level(0).decoder
    plan, fetcher = decoder._shared.plan, decoder.fetcher
    assert plan is not None
    feet, tiles = fetcher._feet._limit, fetcher._tiles._results._limit
    assert feet > 0
    assert feet + tiles == plan.tiles - POOL.workers * decoding_bytes(decoder.layout, decoder.model)
    wanted = cached_bytes(decoder.layout, decoder.model)
    assert feet / tiles == pytest.approx(wanted[1] / wanted[0], rel=1e-3)
