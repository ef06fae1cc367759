"""Requests to the store: merged, several at a time, no more than needed; and what becomes of those that fail."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import catalogue
import numpy as np
import pytest
import tiny
import zarr.storage
from hypothesis import given
from hypothesis import strategies as st
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype

import tilecodec
from tilecodec.container import store as stores
from tilecodec.container.chunk import TileEntry, TileState, index_bytes, parse_index
from tilecodec.container.store import ByteStore
from tilecodec.decoder import ahead
from tilecodec.decoder.ahead import GAP_BYTES, REQUEST_BYTES, spans
from tilecodec.errors import LostTileError, StorageError
from tilecodec.tiles import TilePosition

TILE, CHUNK = 128, 4


class Watched(zarr.storage.WrapperStore[zarr.storage.LocalStore]):
    """A remote store that counts its requests, takes its time, and fails where it is told to."""

    def __init__(self, folder: Path, *, delay: float = 0.0) -> None:
        super().__init__(zarr.storage.LocalStore(folder))
        self.delay, self.broken = delay, ""
        self.requests: list[tuple[str, int, int]] = []
        self.running = self.most = 0

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        if isinstance(byte_range, RangeByteRequest) and not key.endswith("zarr.json"):
            self.requests.append((key, byte_range.start, byte_range.end))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.delay)
            if self.broken and key.startswith(self.broken):
                raise ConnectionResetError(104, "connection reset by peer")
            return await self._store.get(key, prototype or default_buffer_prototype(), byte_range=byte_range)
        finally:
            self.running -= 1


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1024 x 1024 px: 8 x 8 tiles in 2 x 2 chunks."""
    pixels = np.tile(catalogue.case("photo").pixels, (8, 8, 1))[:1024, :1024]
    path = tmp_path_factory.mktemp("container") / "a.zarr"
    tilecodec.encode(pixels, path, model=tiny.tiny_model(), tile=TILE, chunk_tiles=CHUNK, levels=1)
    return path


@pytest.fixture
def watched(container: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    store = Watched(container)
    monkeypatch.setattr(stores, "RETRY_SECONDS", ())
    monkeypatch.setattr("tilecodec.api.open_store", lambda *_, **__: ByteStore(store))
    return store


def requests_for(container: Path, chunk: tuple[int, int], first: int, last: int) -> list[tuple[str, int, int]]:
    """A request for a chunk's index, and one from the ``first`` tile of the chunk to the ``last``."""
    layout = tilecodec.open(container).metadata.levels[0]
    key = f"{layout.path}/{layout.key(*chunk)}"
    entries = parse_index((container / key).read_bytes(), CHUNK, CHUNK, "here").entries
    end = entries[last].offset + entries[last].length
    return [(key, 0, index_bytes(CHUNK, CHUNK)), (key, entries[first].offset, end)]


@st.composite
def entries(draw: st.DrawFn) -> dict[TilePosition, TileEntry]:
    offset, found = 80, {}
    for n in range(draw(st.integers(1, 30))):
        length = draw(st.sampled_from([1, 500, 9000, GAP_BYTES, GAP_BYTES + 1, REQUEST_BYTES // 3, REQUEST_BYTES * 2]))
        if draw(st.booleans()):
            found[TilePosition(n // 6, n % 6)] = TileEntry(TileState.CODED, offset, length, 0)
        offset += length
    return found


@given(entries())
def test_spans_hold_every_payload_once(wanted: dict[TilePosition, TileEntry]) -> None:
    found = spans(wanted)
    assert sorted(at for span in found for at in span.tiles) == sorted(wanted)
    for span in found:
        for at in span.tiles:
            assert span.offset <= wanted[at].offset
            assert wanted[at].offset + wanted[at].length <= span.offset + span.length
        assert len(span.tiles) == 1 or span.length <= REQUEST_BYTES
    for one, other in itertools.pairwise(found):
        gap = other.offset - (one.offset + one.length)
        assert gap > GAP_BYTES or other.offset + wanted[other.tiles[0]].length - one.offset > REQUEST_BYTES


def test_spans_of_nothing() -> None:
    assert spans({}) == []


def test_a_region_takes_two_requests_of_each_chunk(container: Path, watched: Watched) -> None:
    image = tilecodec.open(container)
    level = image.level(0)
    level[:, 10:150, 10:150]
    assert watched.requests == requests_for(container, (0, 0), 0, 5)
    watched.requests.clear()
    level[:, 10:150, 10:150]  # kept
    assert watched.requests == []
    other = tilecodec.open(container)
    other[:, 10:150, 480:560]  # windows 3 and 4 of the first two rows, made of tiles 2 to 4 of them
    wanted = requests_for(container, (0, 0), 2, 7) + requests_for(container, (0, 1), 0, 4)
    assert sorted(watched.requests) == sorted(wanted)


def test_only_what_is_new_is_asked_for(container: Path, watched: Watched) -> None:
    image = tilecodec.open(container)
    image[:, 10:150, 10:150]
    watched.requests.clear()
    image[:, 10:150, 138:278]  # the next window to the right: two tiles more, the index known
    ((key, begin, end),) = watched.requests
    layout = image.metadata.levels[0]
    entries = parse_index((container / key).read_bytes(), CHUNK, CHUNK, "here").entries
    assert key == f"{layout.path}/{layout.key(0, 0)}"
    assert (begin, end) == (entries[2].offset, entries[6].offset + entries[6].length)


def test_a_whole_level_asks_for_every_payload_once(container: Path, watched: Watched) -> None:
    plain = tilecodec.open(container)[...]
    sizes = {key: (container / key).stat().st_size for key, _, _ in watched.requests}
    assert len(sizes) == 4
    assert sum(end - begin for _, begin, end in watched.requests) <= 1.2 * sum(sizes.values())
    assert len(watched.requests) <= 4 * (1 + CHUNK)  # of a chunk its index, and each row of its tiles
    np.testing.assert_array_equal(plain, tilecodec.open(container)[...])


def test_large_payloads_are_read_when_they_are_needed(
    container: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tilecodec.open(container)[...]
    watched.requests.clear()
    monkeypatch.setattr(ahead, "PAYLOAD_BYTES", 0)
    image = tilecodec.open(container)
    np.testing.assert_array_equal(image[...], plain)
    for path in (container / image.metadata.levels[0].path).glob("c/0/*/*"):
        key = path.relative_to(container).as_posix()
        entries = parse_index(path.read_bytes(), CHUNK, CHUNK, "here").entries
        wanted = {(key, entry.offset, entry.offset + entry.length) for entry in entries}
        assert {r for r in watched.requests if r[0] == key} == wanted | {(key, 0, index_bytes(CHUNK, CHUNK))}


def test_a_chunk_that_is_lost_or_damaged_is_asked_for_once(
    container: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "a.zarr"
    shutil.copytree(container, copy)
    layout = tilecodec.open(copy).metadata.levels[0]
    lost, damaged, rest = (f"{layout.path}/{layout.key(*chunk)}" for chunk in ((0, 0), (1, 1), (0, 1)))
    (copy / lost).unlink()
    data = bytearray((copy / damaged).read_bytes())
    data[5] ^= 1  # of the index
    (copy / damaged).write_bytes(data)
    store = Watched(copy)
    monkeypatch.setattr("tilecodec.api.open_store", lambda *_, **__: ByteStore(store))
    image = tilecodec.open(copy, on_error="fill", fill=(9, 8, 7))
    pixels = image[...]
    assert (pixels[:, :512, :512].reshape(3, -1).T == (9, 8, 7)).all()
    assert (pixels[:, 512:, 512:].reshape(3, -1).T == (9, 8, 7)).all()
    for key in (lost, damaged):
        assert [r for r in store.requests if r[0] == key] == [(key, 0, index_bytes(CHUNK, CHUNK))]
    assert len([r for r in store.requests if r[0] == rest]) > 1
    assert image.failed_tiles == 2 * CHUNK * CHUNK


def test_a_chunk_that_comes_back_is_read(container: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a.zarr"
    shutil.copytree(container, copy)
    image = tilecodec.open(copy)
    layout = image.metadata.levels[0]
    path = copy / layout.path / layout.key(0, 0)
    away = path.rename(tmp_path / "away")
    with pytest.raises(LostTileError):
        image[:, :64, :64]
    away.rename(path)
    for _ in range(100):  # a read that begins at once may still be told what others found
        with contextlib.suppress(LostTileError):
            found = image[:, :64, :64]
            break
        time.sleep(0.05)
    np.testing.assert_array_equal(found, tilecodec.open(container)[:, :64, :64])


def test_requests_run_side_by_side(container: Path, watched: Watched) -> None:
    plain = tilecodec.open(container)[...]
    watched.delay, watched.most = 0.05, 0
    np.testing.assert_array_equal(tilecodec.open(container)[...], plain)
    assert watched.most >= 2


def test_a_store_that_fails_names_the_chunk_and_may_come_back(container: Path, watched: Watched) -> None:
    image = tilecodec.open(container)
    layout = image.metadata.levels[0]
    watched.broken = f"{layout.path}/{layout.key(0, 1)}"
    with pytest.raises(StorageError, match=watched.broken):
        image[...]
    image[:, :300, :300]  # the chunk beside it is there
    watched.broken = ""
    np.testing.assert_array_equal(image[...], tilecodec.open(container)[...])


def test_a_reader_that_stops_early_leaves_nothing_behind(container: Path, watched: Watched) -> None:
    image = tilecodec.open(container)
    blocks = image.level(0).decoder.blocks(0, 1024, 0, 1024)
    next(blocks)
    blocks.close()
    assert len(image.level(0).decoder.fetcher._ahead._coming) < 24


def test_a_reader_may_be_collected_while_another_one_expects(
    container: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The garbage collector ends an abandoned reader wherever its thread happens to be."""
    decoder = tilecodec.open(container).level(0).decoder
    abandoned = decoder.blocks(0, 1024, 0, 1024)
    next(abandoned)

    class Collecting:
        def submit(self, *args: Any) -> Any:
            abandoned.close()
            return reads.submit(*args)

    reads = ahead.READS
    monkeypatch.setattr(ahead, "READS", Collecting())
    monkeypatch.setattr(ahead, "EXPECTED_TILES", 3)
    ending = threading.Thread(target=decoder.read, args=(900, 1024, 900, 1024), daemon=True)
    ending.start()
    ending.join(20)
    assert not ending.is_alive()
