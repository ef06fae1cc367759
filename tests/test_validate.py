"""Checking a whole container: every problem is listed, with its place and reason."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faulty
import numpy as np
import pytest
import tiny

import tilecodec
from tilecodec import Limits, cli, validation
from tilecodec.container.chunk import TileState
from tilecodec.container.store import ByteStore
from tilecodec.entropy.payload import parse_payload
from tilecodec.errors import Problem, StorageError, TileError


def reasons(path: Path, **options: object) -> list[str]:
    return [problem.reason for problem in tilecodec.validate(path, **options).problems]


@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_container_has_no_problem(finished: Path, deep: bool) -> None:
    seen = []
    report = tilecodec.validate(finished, deep, progress=seen.append)
    assert (report.ok, report.problem_count, report.problems) == (True, 0, ())
    assert (report.levels, report.chunks, report.tiles) == (2, 5, 13)
    assert report.decoded_tiles == (13 if deep else 0)
    assert report.bytes == sum(f.stat().st_size for f in finished.rglob("*") if f.is_file() and f.name != "zarr.json")
    assert [p.pixels_done for p in seen] == sorted(p.pixels_done for p in seen)
    assert seen[-1].pixels_done == seen[-1].pixels_total == 300 * 290 + 150 * 145
    assert json.loads(report.to_json())["complete"]


@pytest.mark.parametrize("fault", faulty.FAULTS, ids=str)
def test_a_fault_is_a_problem_with_its_reason(fault: faulty.Fault, copy: Path) -> None:
    fault.damage(copy)
    report = tilecodec.validate(copy, fault.deep)
    found = [problem.reason for problem in report.problems]
    assert fault.reason in found
    assert not report.ok
    assert report.problem_count == len(found)
    if fault.tile:
        assert set(found) == {fault.reason}
        assert all("level 0" in problem.where for problem in report.problems)
    json.loads(report.to_json())


def test_all_problems_are_listed(copy: Path) -> None:
    faulty.edit(
        copy / "zarr.json",
        lambda v: (
            v["attributes"]["tilecodec"].update(model=3, fingerprint=None),
            v["attributes"]["ome"].update(version="0.4"),
        ),
    )
    faulty.edit(copy / "1" / "zarr.json", lambda v: (v.update(fill_value=7, dimension_names=[]), v["codecs"].clear()))
    (copy / "0/c/0/1/0").unlink()
    faulty.repack(
        copy / faulty.CHUNK,
        {0: lambda _: (TileState.LOST, b""), 1: faulty.wrong_symbols, 3: lambda raw: (TileState.CODED, raw[:-4])},
    )
    report = tilecodec.validate(copy, deep=True)
    assert sorted((p.reason, p.where.removeprefix(str(copy))) for p in report.problems) == [
        ("array-fields", ", level 1"),
        ("chunk-absent", "level 0, chunk c/0/1/0"),
        ("group-fields", ""),
        ("group-fields", ""),
        ("group-ome", ""),
        ("payload-crc", "level 0, tile row 1, column 1"),
        ("symbol-check", "level 0, tile row 0, column 1"),
        ("tile-lost", "level 0, tile row 0, column 0"),
    ]
    assert (report.levels, report.chunks, report.tiles, report.decoded_tiles) == (1, 3, 5, 4)


def test_symbols_are_looked_at_on_demand_only(copy: Path) -> None:
    faulty.repack(copy / faulty.CHUNK, {0: faulty.wrong_symbols})
    assert reasons(copy) == []
    assert reasons(copy, deep=True) == ["symbol-check"]


def test_every_level_s_stride_is_held_against_the_model(copy: Path) -> None:
    faulty.edit(copy / "1" / "zarr.json", lambda v: v["codecs"][0]["configuration"].update(stride=64, overlap=32))
    report = tilecodec.validate(copy, deep=True)
    assert [(p.reason, p.where.rpartition("level ")[2]) for p in report.problems] == [
        ("level-codec", "1"),
        ("codec-values", "1"),
    ]
    assert (report.tiles, report.decoded_tiles) == (13, 9)


def test_an_unfinished_container_is_one_problem(copy: Path) -> None:
    faulty.edit(copy / "zarr.json", lambda v: v["attributes"]["tilecodec"].update(complete=False))
    (copy / faulty.CHUNK).unlink()
    shutil.rmtree(copy / "1")
    report = tilecodec.validate(copy)
    assert [p.reason for p in report.problems] == ["incomplete"]
    assert not report.complete
    assert report.chunks == 3


def test_absent_chunks_are_not_asked_for_one_by_one(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of 200,000 chunks that has two: what the folders list tells."""
    asked = []
    real = ByteStore.get_range
    monkeypatch.setattr(ByteStore, "get_range", lambda self, key, *range: asked.append(key) or real(self, key, *range))
    monkeypatch.setattr(validation, "LISTED", 50)
    shutil.rmtree(copy / "1")
    shutil.rmtree(copy / "0/c/0/1")
    rows = 100_000
    faulty.edit(copy / "zarr.json", lambda v: v["attributes"]["ome"]["multiscales"][0]["datasets"].pop())
    faulty.edit(copy / "0/zarr.json", lambda v: v.update(shape=[3, rows * 256, 290]))
    report = tilecodec.validate(copy)
    assert (report.chunks, report.problem_count) == (2, 2 * rows - 2)
    assert [p.reason for p in report.problems] == ["chunk-absent"] * 50
    found = tilecodec.info(copy)
    assert (found.levels[0].chunks, found.levels[0].chunks_present) == (2 * rows, 2)
    assert len(asked) < 100


@pytest.mark.parametrize("complete", [True, False])
def test_the_absent_chunks_of_a_long_row_are_passed_over(complete: bool, copy: Path) -> None:
    """A picture that is a row of 4 million chunks, of which it has two."""
    shutil.rmtree(copy / "1")
    faulty.edit(copy / "0/zarr.json", lambda v: v.update(shape=[3, 256, 2**30 - 1]))

    def change(document: dict[str, Any]) -> None:
        document["attributes"]["ome"]["multiscales"][0]["datasets"].pop()
        document["attributes"]["tilecodec"]["complete"] = complete

    faulty.edit(copy / "zarr.json", change)
    seen = []
    report = tilecodec.validate(copy, progress=seen.append)
    absent = 2**22 - 2
    # the second chunk was made as the last of its row; that a container is incomplete is a problem too
    assert (report.chunks, report.problem_count) == (1, absent + 1 if complete else 2)
    assert len(report.problems) == (validation.LISTED if complete else 2)
    assert len(seen) < 2 * validation.LISTED
    assert seen[-1].pixels_done == seen[-1].pixels_total == 256 * (2**30 - 1)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_a_folder_that_cannot_be_listed_is_a_problem_among_others(copy: Path) -> None:
    for folder in (copy / "0/c/0/0", copy / "1/c/0"):
        shutil.rmtree(folder)
        folder.symlink_to(folder.name)  # to itself
    (copy / "0/c/0/1/0").unlink()
    report = tilecodec.validate(copy)
    assert [(p.reason, p.where.partition(copy.name)[2]) for p in report.problems] == [
        ("storage", "/0/c/0/0"),
        ("chunk-absent", ""),
        ("storage", "/1/c/0"),
    ]
    assert (report.levels, report.chunks, report.tiles) == (2, 1, 1)


def test_a_report_calls_complete_what_says_so(copy: Path) -> None:
    assert tilecodec.validate(copy).complete
    for value in (1, None, "true"):
        faulty.edit(copy / "zarr.json", lambda v, value=value: v["attributes"]["tilecodec"].update(complete=value))
        report = tilecodec.validate(copy)
        assert (report.complete, [p.reason for p in report.problems]) == (False, ["group-fields"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_among_the_files_is_refused(copy: Path) -> None:
    (copy / faulty.CHUNK).unlink()
    os.mkfifo(copy / faulty.CHUNK)
    assert set(reasons(copy)) == {"storage"}
    with pytest.raises(StorageError, match="not a plain file"):
        tilecodec.open(copy)[:, :10, :10]


def test_limits_are_kept(finished: Path) -> None:
    assert reasons(finished, limits=Limits(tiles=4)) == ["limit-tiles"]
    assert reasons(finished, limits=Limits(levels=1)) == ["limit-levels"]
    assert reasons(finished, limits=Limits(payload_bytes=1)) == ["limit-payload-bytes"] * 13
    assert reasons(finished, deep=True, limits=Limits(symbols=1)) == ["limit-symbols"] * 2


def test_a_model_that_is_not_there_is_a_problem(copy: Path, tmp_path: Path) -> None:
    for level in ("0", "1"):
        faulty.edit(
            copy / level / "zarr.json", lambda v: v["codecs"][0]["configuration"].update(model="sha256:" + "0" * 64)
        )
    assert reasons(copy) == []
    assert reasons(copy, deep=True) == ["unknown-model"]
    assert reasons(copy, deep=True, model=tiny.tiny_model()) == ["model-hash"]


def test_more_problems_than_are_listed_are_counted(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "LISTED", 2)
    for key in copy.glob("*/c/0/*/*"):
        key.unlink()
    report = tilecodec.validate(copy)
    assert (report.problem_count, len(report.problems)) == (5, 2)


def test_a_store_that_fails(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        tilecodec.validate(tmp_path / "missing")
    (copy / faulty.CHUNK).unlink()
    (copy / faulty.CHUNK).mkdir()
    report = tilecodec.validate(copy)
    assert [p.reason for p in report.problems] in (["storage"], ["chunk-absent"])


@pytest.mark.slow
def test_damaged_chunks_are_found_by_readers_and_checks_alike(copy: Path) -> None:
    """Bytes of a chunk changed at random, its checksums set right again half of the time."""
    rng, key = random.Random(11), copy / faulty.CHUNK
    sound, whole = key.read_bytes(), tilecodec.open(copy)[...]
    refused = 0
    for _ in range(40):
        key.write_bytes(sound)
        if rng.random() < 0.5:
            faulty.repack(key, {rng.randrange(4): partial(scramble, rng)})
        else:
            at, length = rng.randrange(len(sound)), rng.randrange(1, 9)
            noise = rng.randbytes(length)
            before, after = sound[:at], sound[at + length :]
            key.write_bytes(rng.choice([before + noise + after, before, before + after]))
        try:
            np.testing.assert_array_equal(tilecodec.open(copy)[...], whole)
            ok = True
        except TileError:
            ok = False
        filled = tilecodec.open(copy, on_error="fill")
        filled[...]
        assert bool(filled.errors) != ok
        report = tilecodec.validate(copy, deep=True)
        assert report.ok == ok, report.problems
        refused += not ok
    assert refused > 30


def scramble(rng: random.Random, raw: bytes) -> tuple[TileState, bytes]:
    """A payload with a stream of noise, its CRC right; or noise in place of all of it."""
    if rng.random() < 0.3:
        return rng.choice(list(TileState)), rng.randbytes(rng.choice([1, 2, 16, 64]))
    payload = parse_payload(raw, "")
    words = payload.words.copy()
    for _ in range(rng.randint(1, 3)):
        words[rng.randrange(len(words))] = rng.getrandbits(32)
    cut = words[: rng.randrange(len(words) + 1)] if rng.random() < 0.5 else np.concatenate([words, words])
    return TileState.CODED, dataclasses.replace(payload, words=cut).to_bytes()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["validate", *map(str, argv)])
        return code, *capsys.readouterr()

    return run


def test_the_command(copy: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run(copy, "--deep")
    assert (code, err) == (0, "")
    assert "symbols of 13 tiles" in out
    assert run(copy, "--quiet") == (0, "", "")
    faulty.repack(copy / faulty.CHUNK, {0: lambda _: (TileState.LOST, b""), 1: faulty.wrong_symbols})
    code, out, err = run(copy)
    assert (code, err) == (1, "")
    assert "tile-lost" in out
    assert "tile row 0, column 0" in out
    code, out, err = run(copy, "--json", "--deep")
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert set(report) == {*tilecodec.ValidationReport.__dataclass_fields__, "ok"}
    assert sorted(p["reason"] for p in report["problems"]) == ["symbol-check", "tile-lost"]
    assert set(report["problems"][0]) == set(Problem.__dataclass_fields__)
    code, out, err = run(tmp_path / "missing")
    assert (code, out) == (3, "")
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty")[0] == 1


def test_a_store_that_fails_in_part_is_exit_3(
    copy: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tilecodec.container.store import ByteStore

    size = ByteStore.size

    def fail(self: ByteStore, key: str) -> int:
        if key.endswith("1/1"):
            raise StorageError("no such sector", where=key)
        return size(self, key)

    monkeypatch.setattr(ByteStore, "size", fail)
    code, out, _ = run(copy)
    assert code == 3
    assert "no such sector" in out
