"""Entropy coding: tables, coder, payload, tile codec."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilecodec.entropy.codec import POOL
from tilecodec.entropy.coder import GroupDecoder, SymbolGroup, encode_groups
from tilecodec.entropy.model import load_model
from tilecodec.entropy.payload import HEADER, TilePayload, parse_payload, symbol_check
from tilecodec.entropy.tables import PRECISION, CDFTable, gaussian_table, quantise_pmf, scale_table
from tilecodec.errors import CorruptTileError, ModelError

GAUSSIAN = gaussian_table()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=300).filter(lambda p: sum(p) > 1e-3))
def test_frequencies_are_positive_and_sum_to_the_precision(pmf: list[float]) -> None:
    frequency = quantise_pmf(np.array(pmf))
    assert frequency.min() >= 1
    assert frequency.sum() == 1 << PRECISION


def test_gaussian_rows_follow_their_scales() -> None:
    for row, scale in enumerate(scale_table()):
        n = int(GAUSSIAN.length[row])
        p = np.diff(GAUSSIAN.cdf[row, :n])[:-1] / (1 << PRECISION)
        symbols = np.arange(len(p)) + int(GAUSSIAN.offset[row])
        spread = float(np.sqrt((p * symbols**2).sum() / p.sum()))
        if scale > 0.5:  # wide rows are a little wider: every bin has at least one count
            assert spread == pytest.approx(np.sqrt(scale**2 + 1 / 12), rel=0.03 if scale < 50 else 0.1)
        assert abs(float((p * symbols).sum())) < 0.05 * max(scale, 0.2)


def test_a_malformed_table_is_refused() -> None:
    good = np.array([[0, 40000, 65536]], np.int32)
    around = np.array([[0, 2**31 - 1, -2, 65536]], np.int32)  # every step is positive in 32 bits that wrap
    for cdf, length in ((good + 1, 3), (np.array([[0, 0, 65536]], np.int32), 3), (good, 4), (good, 2), (around, 4)):
        with pytest.raises(ModelError):
            CDFTable(cdf, np.array([length], np.int32), np.zeros(1, np.int32))


@pytest.mark.parametrize(
    ("cdf", "length", "offset"),
    [
        (np.array([[0, 65536]], np.int32), [2], [0]),
        (np.array([[0, 9, 65536]], np.int64), [3], [0]),
        (np.array([0, 9, 65536], np.int32), [3], [0]),
        (np.array([[0, 9, 65536]], np.int32), [3, 3], [0, 0]),
        (np.array([[0, 9, 65536]], np.int32), [3], []),
        (np.zeros((0, 3), np.int32), [], []),
    ],
)
def test_a_table_of_another_shape_is_refused(cdf: np.ndarray, length: list[int], offset: list[int]) -> None:
    with pytest.raises(ModelError):
        CDFTable(cdf, np.array(length, np.int32), np.array(offset, np.int32))


def rans_words(symbols: list[tuple[int, int]]) -> list[int]:
    """Plain rANS as the format describes it: (frequency, cumulative) of 16 bits each, last pushed first."""
    words: list[int] = []
    state = 0
    started = False
    for frequency, cumulative in reversed(symbols):
        f, c = frequency << 8, cumulative << 8
        if started and state >> 40 >= f:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = ((state // f) << 24) + state % f + c
        started = True
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    return words


def test_the_coder_uses_exactly_the_integer_tables() -> None:
    rng = np.random.default_rng(5)
    row = 30
    n, offset = int(GAUSSIAN.length[row]), int(GAUSSIAN.offset[row])
    symbols = np.rint(rng.normal(0, scale_table()[row], 500)).astype(np.int32)
    symbols = np.clip(symbols, offset, offset + n - 3)
    group = SymbolGroup(symbols, np.full(500, row, np.int32), GAUSSIAN)
    cdf = GAUSSIAN.cdf[row]
    plain = rans_words([(int(cdf[s - offset + 1] - cdf[s - offset]), int(cdf[s - offset])) for s in symbols])
    assert encode_groups([group]).tolist() == plain


symbols_and_rows = st.lists(
    st.tuples(st.integers(-(2**23), 2**23) | st.integers(-20, 20), st.integers(0, 63)), max_size=120
)


@settings(deadline=None)
@given(st.lists(symbols_and_rows, max_size=4))
def test_groups_come_back(groups: list[list[tuple[int, int]]]) -> None:
    coded = [
        SymbolGroup(np.array([s for s, _ in g], np.int32), np.array([r for _, r in g], np.int32), GAUSSIAN)
        for g in groups
    ]
    decoder = GroupDecoder(encode_groups(coded), "here")
    for group in coded:
        np.testing.assert_array_equal(decoder.decode(group.rows, GAUSSIAN), group.symbols)
    decoder.finish()


def test_a_stream_with_more_than_its_symbols_is_refused() -> None:
    rows = np.full(50, 20, np.int32)
    words = encode_groups([SymbolGroup(np.arange(50, dtype=np.int32) - 25, rows, GAUSSIAN)])
    decoder = GroupDecoder(words, "here")
    decoder.decode(rows[:40], GAUSSIAN)
    with pytest.raises(CorruptTileError, match="more than its symbols"):
        decoder.finish()


def payload() -> TilePayload:
    return TilePayload(100, 65535, 33.25, 0xDEADBEEF, np.array([1, 2**32 - 1, 7], np.uint32))


def test_payload_round_trip() -> None:
    again = parse_payload(payload().to_bytes(), "here")
    assert (again.height, again.width, again.quality, again.symbol_check) == (100, 65535, 33.25, 0xDEADBEEF)
    np.testing.assert_array_equal(again.words, payload().words)
    assert len(payload().to_bytes()) == HEADER.size + 12


def test_every_flipped_bit_of_a_payload_is_caught() -> None:
    data = payload().to_bytes()
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptTileError, match="tile 3"):
            parse_payload(bytes(broken), "tile 3")


def test_every_truncation_of_a_payload_is_caught() -> None:
    data = payload().to_bytes()
    for length in range(len(data)):
        with pytest.raises(CorruptTileError):
            parse_payload(data[:length], "tile 3")


@pytest.fixture(scope="module")
def model() -> object:
    return load_model(tiny.tiny_model(), device="cpu", precision="fp32")


@pytest.mark.parametrize("shape", [(4, 4), (8, 12), (4, 20)])
def test_tile_codec_round_trip(model: object, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    y = torch.from_numpy(rng.normal(0, 4, (16, *shape)).astype(np.float32))
    y[0, 0, 0] = 90000.0
    z = torch.from_numpy(rng.normal(0, 2, (8, shape[0] // 4, shape[1] // 4)).astype(np.float32))
    height, width = shape[0] * 32 - 3, shape[1] * 32
    coded = POOL.submit(model.tile_codec.encode, y, z, quality=50, height=height, width=width).result()
    latent = POOL.submit(model.tile_codec.decode, coded, "here").result()
    assert latent.y_hat.shape == y.shape
    assert float((latent.y_hat - y).abs().max()) <= 0.51
    assert float(latent.scale.min()) >= 0


def test_other_symbols_than_were_coded_are_caught(model: object) -> None:
    y, z = torch.full((16, 4, 4), 3.0), torch.zeros(8, 1, 1)
    coded = POOL.submit(model.tile_codec.encode, y, z, quality=50, height=128, width=128).result()
    wrong = TilePayload(128, 128, 50, coded.symbol_check ^ 1, coded.words)
    with pytest.raises(CorruptTileError, match=r"symbols differ.*level 0"):
        POOL.submit(model.tile_codec.decode, wrong, "level 0").result()


def test_entropy_coding_does_not_depend_on_the_callers_threads(model: object) -> None:
    rng = np.random.default_rng(2)
    y = torch.from_numpy(rng.normal(0, 4, (16, 16, 16)).astype(np.float32))
    z = torch.from_numpy(rng.normal(0, 2, (8, 4, 4)).astype(np.float32))
    before = torch.get_num_threads()
    coded = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            one = POOL.submit(model.tile_codec.encode, y, z, quality=50, height=512, width=512).result()
            coded.append(one.to_bytes())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert coded[0] == coded[1] == coded[2]


def test_symbol_check_tells_symbols_apart() -> None:
    z, y = np.zeros((1, 1, 1), np.int32), np.arange(8, dtype=np.int32).reshape(2, 2, 2)
    assert symbol_check(z, y) == symbol_check(z.copy(), y.copy())
    assert symbol_check(z, y) != symbol_check(z, y[::-1].copy())
    assert symbol_check(z + 1, y) != symbol_check(z, y)
