"""Stores that fail, stall, or send less than was asked for: another attempt, and then an error that names the chunk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catalogue
import numpy as np
import pytest
import tiny
import zarr.storage
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype

import tilecodec
from tilecodec.container import store as stores
from tilecodec.container.store import ByteStore
from tilecodec.errors import StorageError


class Unsteady(zarr.storage.WrapperStore[zarr.storage.LocalStore]):
    """A store that is not a local folder to the package; what it does to a request is given."""

    def __init__(self, inner: zarr.storage.LocalStore, moods: list[Callable[[Any], Any] | None]) -> None:
        super().__init__(inner)
        self.moods, self.requests = moods, []

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        self.requests.append((key, byte_range))
        found = await self._store.get(key, prototype or default_buffer_prototype(), byte_range=byte_range)
        mood = self.moods.pop(0) if self.moods else None
        # a value that is asked for whole and cut short cannot be told from a short value
        result = found if mood is None or (mood is short and key.endswith("zarr.json")) else mood(found)
        return await result if asyncio.iscoroutine(result) else result


def fails(_: Any) -> Any:
    raise ConnectionResetError(104, "connection reset by peer")


def refuses(_: Any) -> Any:
    raise PermissionError(13, "forbidden")


def short(found: Any) -> Any:
    return found[:3]


async def stalls(_: Any) -> Any:
    await asyncio.sleep(60)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stores, "RETRY_SECONDS", (0.001, 0.001, 0.001))
    (tmp_path / "key").write_bytes(b"0123456789")
    return tmp_path


def unsteady(folder: Path, *moods: Callable[[Any], Any] | None) -> tuple[Unsteady, ByteStore]:
    store = Unsteady(zarr.storage.LocalStore(folder), list(moods))
    return store, ByteStore(store)


def test_a_failure_that_passes_is_not_noticed(folder: Path) -> None:
    store, byte_store = unsteady(folder, fails, fails)
    assert byte_store.get("key") == b"0123456789"
    assert len(store.requests) == 3


def test_a_failure_that_lasts_is_told_with_its_place(folder: Path) -> None:
    store, byte_store = unsteady(folder, *[fails] * 9)
    with pytest.raises(StorageError, match=r"connection reset by peer \(4 attempts\).*key"):
        byte_store.get("key")
    assert len(store.requests) == 4


def test_what_is_refused_is_not_asked_for_again(folder: Path) -> None:
    store, byte_store = unsteady(folder, refuses)
    with pytest.raises(StorageError, match="forbidden"):
        byte_store.get("key")
    assert len(store.requests) == 1


def test_short_answers_are_asked_for_again(folder: Path) -> None:
    store, byte_store = unsteady(folder, short)
    assert byte_store.get_range("key", 2, 5) == b"23456"
    assert store.requests == [("key", RangeByteRequest(2, 7))] * 2
    store, byte_store = unsteady(folder, short, short)
    assert byte_store.get_range("key", 2, 5) == b"234"
    assert byte_store.get_range("key", 8, 5) == b"89"


def test_a_store_that_stalls_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "TIMEOUT_SECONDS", 0.05)
    _, byte_store = unsteady(folder, *[stalls] * 9)
    with pytest.raises(StorageError, match=r"no answer within 0.05 s \(4 attempts\)"):
        byte_store.get("key")


def test_local_files_get_one_attempt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def get(*_: Any, **__: Any) -> None:
        asked.append(1)
        raise OSError(5, "input/output error")

    monkeypatch.setattr(zarr.storage.LocalStore, "get", get)
    with pytest.raises(StorageError, match="input/output error"):
        ByteStore(zarr.storage.LocalStore(folder)).get("key")
    assert asked == [1]


def test_pixels_come_through_a_bad_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "RETRY_SECONDS", (0.001, 0.001, 0.001))
    case, path = catalogue.case("photo"), tmp_path / "a.zarr"
    tilecodec.encode(case.pixels, path, model=tiny.tiny_model(), tile=128, chunk_tiles=2, levels=1)
    whole = tilecodec.open(path)[...]
    moods = [None, fails, None, short, None, None] * 200  # never three in a row, whoever asks
    line = Unsteady(zarr.storage.LocalStore(path), list(moods))
    monkeypatch.setattr("tilecodec.api.open_store", lambda *_, **__: ByteStore(line))
    np.testing.assert_array_equal(tilecodec.open(path)[...], whole)
    assert len(line.moods) < len(moods) - 10
