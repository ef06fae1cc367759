"""What a container may ask of its reader: limits, metadata that break the rules, containers that are being written."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import faulty
import numpy as np
import pytest
import tiny
import zarr
from test_spec_sync import tables, validator

import tilecodec
from tilecodec import Limits, api
from tilecodec.container.metadata import ContainerMetadata
from tilecodec.container.rules import array_faults, group_faults
from tilecodec.container.store import ByteStore
from tilecodec.errors import (
    IncompleteContainerError,
    LimitError,
    StorageError,
    TileCodecError,
    TileError,
    TileLimitError,
    UsageError,
)
from tilecodec.limits import limit_reason

# --- every reason


@pytest.mark.parametrize("fault", [fault for fault in faulty.FAULTS if not fault.unread], ids=str)
def test_a_fault_gives_its_reason(fault: faulty.Fault, copy: Path) -> None:
    fault.damage(copy)
    if fault.tile:
        image = tilecodec.open(copy)
        with pytest.raises(TileError, match=r"level 0, .*tile row 0, column 0") as caught:
            image[:, :10, :10]
    else:
        with pytest.raises(TileCodecError) as caught:
            tilecodec.open(copy)
    assert caught.value.reason == fault.reason
    assert len(str(caught.value)) < 4000
    assert isinstance(caught.value, LimitError) == fault.reason.startswith("limit-")


def test_every_reason_has_a_fault() -> None:
    tabled = {
        row["reason"]
        for t in tables("container.md")
        if tuple(t[0]) == ("check", "reason")
        for row in t
        if row["reason"]
    }
    assert tabled <= {fault.reason for fault in faulty.FAULTS}


# --- limits


def needed(path: Path, name: str) -> int:
    """What the container asks for: raises one limit until everything is read."""
    if name == "metadata_bytes":  # what lies beyond the limit is not read, so it is not known
        return max(f.stat().st_size for f in path.rglob("zarr.json"))
    limit = 1
    while True:
        try:
            tilecodec.open(path, limits=Limits(**{name: limit}))[...]
        except LimitError as error:
            limit = max(error.got, limit + 1)
        else:
            return limit


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
def test_a_limit_is_met_exactly(name: str, finished: Path) -> None:
    most = needed(finished, name)
    known = {"levels": 2, "side": 300, "tiles": 9, "tile": 128, "chunk_tiles": 2, "index_bytes": 60, "channels": 16}
    assert most == known.get(name, most)
    with pytest.raises(LimitError) as caught:
        tilecodec.open(finished, limits=Limits(**{name: most - 1}))[...]
    assert (caught.value.reason, caught.value.got) == (limit_reason(name), most)
    assert isinstance(caught.value, TileLimitError) == (name == "payload_bytes")
    assert f"Limits({name}={most})" in str(caught.value)


def test_limits_reach_every_call(finished: Path, tmp_path: Path) -> None:
    for call in (
        lambda limits: tilecodec.info(finished, limits=limits),
        lambda limits: tilecodec.decode(finished, tmp_path / "a.npy", limits=limits),
    ):
        with pytest.raises(LimitError):
            call(Limits(tiles=8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None])
def test_limits_are_whole_numbers(value: Any) -> None:
    with pytest.raises(UsageError):
        Limits(tiles=value)


def test_large_documents_are_not_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    read = ByteStore._read

    def watch(self: ByteStore, key: str, request: Any) -> Any:
        asked.append(request.end - request.start)
        return read(self, key, request)

    with (copy / "zarr.json").open("r+b") as file:
        file.truncate(1 << 40)
    monkeypatch.setattr(ByteStore, "_read", watch)
    with pytest.raises(LimitError):
        tilecodec.open(copy)
    assert asked == [Limits().metadata_bytes + 1]


def test_what_no_reader_would_take_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe = api._describe

    def with_much(*args: Any) -> ContainerMetadata:
        return dataclasses.replace(describe(*args), properties={"a": "b" * (8 << 20)})

    monkeypatch.setattr(api, "_describe", with_much)
    with pytest.raises(LimitError):
        tilecodec.encode(faulty.PICTURE, tmp_path / "a.zarr", model=tiny.tiny_model())
    assert not list(tmp_path.iterdir())


# --- a target in its source


def test_a_target_in_its_source_is_refused(copy: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    (tmp_path / "link").symlink_to(copy)
    for target in (copy, copy / "a.npy", copy / "0" / "a.zarr", tmp_path / "link" / "a.tif", f"{copy}/../p.zarr"):
        with pytest.raises(UsageError, match="lies in it"):
            tilecodec.decode(copy, target, overwrite=True)
    with pytest.raises(UsageError, match="lies in it"):
        tilecodec.encode(copy, copy / "b.zarr")
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before
    tilecodec.decode(copy, tmp_path / "p.zarr.npy", region=(0, 0, 5, 5))


# --- containers that are being written


def assert_incomplete(path: Path) -> None:
    with pytest.raises(IncompleteContainerError):
        tilecodec.open(path)
    try:
        array = zarr.open_group(path, mode="r")["0"]
    except KeyError:
        return
    with pytest.raises(IncompleteContainerError):
        array[:, :10, :10]


def test_a_container_is_incomplete_after_every_write_but_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, writes = tmp_path / "p.zarr", []
    write = ByteStore.set

    def watch(self: ByteStore, key: str, data: bytes) -> None:
        if writes and path.exists():
            assert_incomplete(path)
        write(self, key, data)
        if path.exists():
            writes.append(key)

    monkeypatch.setattr(ByteStore, "set", watch)
    faulty.make(path)
    assert writes[0] == writes[-1] == "zarr.json"
    assert len(writes) == 1 + 2 + 4 + 1 + 1
    assert tilecodec.open(path)[:, :5, :5].shape == (3, 5, 5)


@pytest.mark.parametrize("left", [1, 2, 3])
def test_an_encode_that_stopped_at_its_metadata_resumes(left: int, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.zarr"
    written = 0
    write = ByteStore.set

    def stop(self: ByteStore, key: str, data: bytes) -> None:
        nonlocal written
        if path.exists() or key == "zarr.json":
            written += path.exists()
            if written >= left:
                raise StorageError("stopped")
        write(self, key, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ByteStore, "set", stop)
        with pytest.raises(StorageError):
            faulty.make(path)
    with pytest.raises(IncompleteContainerError):
        tilecodec.open(path)
    if left < 3:
        with pytest.raises(IncompleteContainerError):
            tilecodec.info(path)
    faulty.make(path, resume=True)
    np.testing.assert_array_equal(tilecodec.open(path)[...], tilecodec.open(finished)[...])


@pytest.mark.slow
def test_a_killed_encode_is_incomplete(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.zarr"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import faulty, tiny, time; from pathlib import Path\n"
        "tiny.tiny_model = lambda: sys.argv[3]\n"
        "faulty.make(Path(sys.argv[2]), progress=lambda _: time.sleep(0.2))\n"
    )
    running = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent), str(path), tiny.tiny_model()])
    try:
        while not (path / "0" / "c").exists():
            if path.exists() and (path / "zarr.json").exists():
                assert_incomplete(path)
            assert running.poll() is None
            time.sleep(0.02)
        assert_incomplete(path)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert_incomplete(path)
    faulty.make(path, resume=True)
    np.testing.assert_array_equal(tilecodec.open(path)[...], tilecodec.open(finished)[...])


@pytest.mark.parametrize("on_error", ["raise", "fill"])
def test_a_container_that_is_replaced_is_not_mixed_with_the_new_one(on_error: str, copy: Path) -> None:
    image, again = tilecodec.open(copy, on_error=on_error, cache_bytes=0), tilecodec.open(copy)
    level = zarr.open_group(copy, mode="r")["0"]
    before = image[:, :20, :20]
    np.testing.assert_array_equal(level[:, :20, :20], before)
    tilecodec.encode(
        255 - faulty.PICTURE, copy, model=tiny.tiny_model(), tile=128, chunk_tiles=2, levels=2, overwrite=True
    )
    for read in (lambda: image[:, 280:, 280:], lambda: image.level(1)[...], lambda: again[...], lambda: level[...]):
        with pytest.raises(StorageError, match=r"replaced while .*Open it again"):
            read()
    assert (tilecodec.open(copy)[:, :20, :20] != before).any()


# --- metadata changed at random

VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    127,
    128,
    2**31,
    2**63,
    10**30,
    0.5,
    1e308,
    "",
    "0",
    "..",
    "\x00",
    "ä" * 300,
    [],
    {},
    [[]],
    [1, 2, 3],
    {"a": {"b": 1}},
]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document, as the keys that lead there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return ([at] if at else []) + [p for key, item in items for p in places(item, (*at, key))]


def copy_of(value: Any) -> Any:
    """A JSON value of its own."""
    return json.loads(json.dumps(value))


def mutate(document: Any, rng: random.Random) -> Any:
    """The document with one to three changes."""
    value = copy_of(document)
    for _ in range(rng.randint(1, 3)):
        *way, key = rng.choice(places(value))
        holder = value
        for step in way:
            holder = holder[step]
        match rng.randrange(5):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, holder[rng.randrange(len(holder))])
            case 2 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                holder[key] += rng.choice([-1, 1, 0.5, 2**32])
            case 3 if isinstance(holder, dict):
                holder[rng.choice(["x", "", "\ud7ff"])] = copy_of(rng.choice(VALUES))
            case _:
                holder[key] = copy_of(rng.choice(VALUES))
    return value


BEYOND_SCHEMAS = {
    "incomplete",
    "group-path",
    "array-geometry",  # square chunks, of whole tiles
    "codec-values",  # multiples of one another
    "limit-levels",
    "limit-tiles",
    "limit-side",
}
"""Reasons of faults that a schema cannot tell."""


@pytest.mark.parametrize(("kind", "name"), [("group", "zarr.json"), ("array", "0/zarr.json")])
def test_schema_and_code_refuse_the_same_documents(kind: str, name: str, finished: Path) -> None:
    document, rng = json.loads((finished / name).read_text()), random.Random(kind)
    faults_of, schema = {"group": group_faults, "array": array_faults}[kind], validator("container.schema.json")
    differing = 0
    for n in range(1500):
        changed = mutate(document, rng)
        if changed.get("zarr_format") != 3:  # told before the rules of either kind
            continue
        reasons = {fault.reason for fault in faults_of(changed, "here", Limits())}
        if schema.is_valid(changed):
            assert reasons <= BEYOND_SCHEMAS, (n, changed)
            differing += bool(reasons)
        else:
            assert reasons, (n, changed)
    assert differing < 150


@pytest.mark.parametrize("size", [10**30, 1e30, 5e-324, int(sys.float_info.max)])
def test_pixel_sizes_are_any_numbers_of_binary64(size: float, copy: Path) -> None:
    faulty.edit(
        copy / "zarr.json", lambda v: faulty.scale(v["attributes"]["ome"]["multiscales"][0], [1, size, float(size)])
    )
    assert tilecodec.open(copy).metadata.pixel_size_um is None  # the axes name no unit


@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json", "1/zarr.json"])
def test_changed_metadata_end_in_an_error_or_the_same_pixels(name: str, copy: Path) -> None:
    document = json.loads((copy / name).read_text())
    whole = [tilecodec.open(copy).level(n)[...] for n in range(2)]
    rng, refused = random.Random(name), 0
    for n in range(200):
        (copy / name).write_text(json.dumps(mutate(document, rng)))
        try:
            image = tilecodec.open(copy)
            pixels = [image.level(level)[...] for level in range(image.levels)]
        except TileCodecError:
            refused += 1
            continue
        assert 1 <= len(pixels) <= len(whole), n
        for got, want in zip(pixels, whole[: len(pixels)], strict=True):
            np.testing.assert_array_equal(got, want, err_msg=f"{name}, change {n}")
    assert 100 < refused < 200


def test_changed_text_ends_in_an_error_or_the_same_pixels(copy: Path) -> None:
    """Bytes flipped, cut out and doubled."""
    rng = random.Random(5)
    raw = (copy / "0" / "zarr.json").read_bytes()
    whole = tilecodec.open(copy)[:, :20, :20]
    for _ in range(200):
        at, length = rng.randrange(len(raw)), rng.randrange(8)
        changed = {
            0: raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :],
            1: raw[:at] + raw[at + length :],
            2: raw[: at + length] + raw[at:],
            3: raw[:at],
        }[rng.randrange(4)]
        (copy / "0" / "zarr.json").write_bytes(changed)
        with contextlib.suppress(TileCodecError):
            np.testing.assert_array_equal(tilecodec.open(copy)[:, :20, :20], whole)
