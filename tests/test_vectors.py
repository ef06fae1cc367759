"""The test vectors: every decoder makes of them what the manifest says."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vectors
from vectors import ARITHMETICS, FOLDER, by_oracle, cases, content, digest, fast, manifest

from tilecodec.entropy.payload import parse_payload
from tilecodec.errors import CorruptTileError


def ids(case: Any) -> str:
    return case["name"]


def test_the_generator_makes_these_vectors() -> None:
    command = [sys.executable, str(FOLDER / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('    ("plain", 64, 64, "usual"),\n', "", "no longer made"),
        ('"quality": 12800', '"quality": 12801', "would change"),
    ],
)
def test_the_generator_never_changes_a_case(tmp_path: Path, before: str, after: str, message: str) -> None:
    copy = tmp_path / "vectors"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    code = (copy / "generate.py").read_text()
    assert before in code
    (copy / "generate.py").write_text(code.replace(before, after))
    text = (copy / "manifest.json").read_text()
    for flags in ([], ["--check"]):
        command = [sys.executable, str(copy / "generate.py"), *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert message in done.stderr
        assert (copy / "manifest.json").read_text() == text


def test_files_are_those_of_the_manifest() -> None:
    for case in manifest()["cases"]:
        assert hashlib.sha256(content(case)).hexdigest() == case["sha256"], case["name"]
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.suffix != ".pyc") < 400_000


# Payloads


@pytest.mark.parametrize("case", cases("payload", "valid"), ids=ids)
def test_valid_payloads_decode_to_their_symbols(case: Any) -> None:
    data = content(case)
    size = case["height"], case["width"]
    symbols = by_oracle(case["model"], data, size)
    assert digest(symbols) == case["symbols_sha256"]
    assert [list(s.shape) for s in symbols] == [case["z_shape"], case["y_shape"]]
    payload = parse_payload(data, case["name"])
    assert (payload.height, payload.width) == size
    for arithmetic in ARITHMETICS:
        codec, model = fast(case["model"], arithmetic)
        for _ in range(2):  # the second time as the first
            (again,) = vectors.decoded(codec, model, [payload])
            assert digest(again) == case["symbols_sha256"], arithmetic


def by_fast_path(name: str, data: bytes, size: tuple[int, int]) -> None:
    """Decodes as ``decoder/reader.py`` and the tile codec do."""
    payload = parse_payload(data, "here")
    if (payload.height, payload.width) != size:
        raise CorruptTileError(reason="payload-size")
    if not 1 <= payload.quality <= 100:
        raise CorruptTileError(reason="payload-quality")
    fast(name)[0].decode(payload, "here")


@pytest.mark.parametrize("case", cases("payload", "faulty"), ids=ids)
def test_faulty_payloads_give_their_reason(case: Any) -> None:
    data, size = content(case), (case["height"], case["width"])
    with pytest.raises(CorruptTileError) as caught:
        by_oracle(case["model"], data, size)
    assert caught.value.reason == case["reason"]
    with pytest.raises(CorruptTileError) as caught:
        by_fast_path(case["model"], data, size)
    assert caught.value.reason == case["reason"]


def test_a_tile_s_faults_leave_its_batch_alone() -> None:
    (good,) = (c for c in cases("payload", "valid") if c["name"] == "valid/plain-64x64-usual.payload")
    codec, _ = fast("plain")
    whole = parse_payload(content(good), "good")
    wrong = parse_payload(content(good), "wrong")
    object.__setattr__(wrong, "symbol_check", whole.symbol_check ^ 1)
    first, second, third = codec.decode_many([whole, wrong, whole], ["a", "b", "c"])
    assert isinstance(second, CorruptTileError)
    assert second.where == "b"
    np.testing.assert_array_equal(first.y_hat, third.y_hat)
    np.testing.assert_array_equal(first.y_hat, codec.decode(whole, "alone").y_hat)


@pytest.mark.parametrize("name", ["example", "example-1x1-zero", "plain-64x64-usual", "extreme-64x64-usual"])
def test_every_flipped_bit_of_a_payload_is_an_error(name: str) -> None:
    (case,) = (c for c in cases("payload", "valid") if c["name"] == f"valid/{name}.payload")
    data = bytearray(content(case))
    codec, _ = fast(case["model"])
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptTileError):
            by_oracle(case["model"], bytes(data))
        with pytest.raises(CorruptTileError):
            codec.decode(parse_payload(bytes(data), "here"), "here")
        data[bit // 8] ^= 1 << bit % 8
