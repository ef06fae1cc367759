"""Tile geometry and blending weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecodec.blend import UNIT, axis_weights
from tilecodec.errors import UsageError
from tilecodec.tiles import Margin, TileGrid, TilePosition, Window
from tilecodec.tiles.cut import halve, read_padded

sizes = st.integers(1, 1500)
tiles = st.sampled_from([128, 256, 384])
margins = st.sampled_from([Margin(n, n) for n in (0, 32, 64)] + [Margin(2 * n, 0) for n in (32, 64)])
shares = st.sampled_from([Margin(36, -28), Margin(80, -48), Margin(32, -32), Margin(33, -31)])


def grids(height: int, width: int, tile: int) -> TileGrid:
    return TileGrid(height, width, tile, 128)


@given(sizes, sizes, tiles)
def test_cores_cover_the_padded_picture_once(height: int, width: int, tile: int) -> None:
    grid = grids(height, width, tile)
    count = np.zeros((grid.padded_height, grid.padded_width), np.uint8)
    for row in range(grid.rows):
        for col in range(grid.cols):
            core = grid.core(TilePosition(row, col))
            assert core.height % 128 == 0
            assert core.width % 128 == 0
            assert grid.true_core(TilePosition(row, col)).height > 0
            count[core.y0 : core.y1, core.x0 : core.x1] += 1
    assert (count == 1).all()
    assert 0 <= grid.padded_height - height < 128


@given(sizes, sizes, tiles, margins | shares, st.sampled_from([0, 2, 8, 128]))
def test_weights_sum_to_one_everywhere(height: int, width: int, tile: int, margin: Margin, blend: int) -> None:
    grid, blend = grids(height, width, tile), min(blend, margin.seam)
    for count, padded, window_of in (
        (grid.rows, grid.padded_height, lambda n: (grid.window(TilePosition(n, 0), margin), "y")),
        (grid.cols, grid.padded_width, lambda n: (grid.window(TilePosition(0, n), margin), "x")),
    ):
        total = np.zeros(padded, np.int64)
        for n in range(count):
            window, axis = window_of(n)
            begin, end = (window.y0, window.y1) if axis == "y" else (window.x0, window.x1)
            total[begin:end] += axis_weights(end - begin, margin.seam, blend, n > 0, n + 1 < count)
        assert (total == UNIT).all()


def test_weights_rise_along_a_cosine() -> None:
    weights = axis_weights(300, 64, 64, True, False)
    assert (np.diff(weights.astype(int))[:63] >= 0).all()
    assert (weights[0], weights[63], weights[64]) == (0, UNIT, UNIT)
    assert abs(int(weights[31]) + int(weights[32]) - UNIT) <= 1


@given(sizes, tiles, margins | shares, st.data())
def test_ranges_name_the_windows_that_meet_the_rows(
    height: int, tile: int, margin: Margin, data: st.DataObject
) -> None:
    grid = grids(height, 1, tile)
    y0 = data.draw(st.integers(0, height - 1))
    y1 = data.draw(st.integers(y0 + 1, height))
    meeting = [
        row for row in range(grid.rows) if (w := grid.window(TilePosition(row, 0), margin)).y0 < y1 and w.y1 > y0
    ]
    assert list(grid.row_range(y0, y1, margin)) == meeting
    assert [at.row for at in grid.windows_of(Window(y0, y1, 0, 1), margin)] == meeting


@given(sizes, sizes, tiles, margins)
def test_windows_hold_their_tiles_and_are_made_of_those_beside_them(
    height: int, width: int, tile: int, margin: Margin
) -> None:
    grid = grids(height, width, tile)
    for at in grid.tiles_of(Window(0, height, 0, width)):
        window = grid.window(at, margin)
        assert window.covers(grid.core(at))
        made_of = list(grid.tiles_of(window))
        assert len(made_of) <= (1 if margin.seam == 0 else 9 if margin.after else 4)
        assert all(abs(near.row - at.row) <= 1 and abs(near.col - at.col) <= 1 for near in made_of)
        assert sum(grid.core(near).meet(window).height * grid.core(near).meet(window).width for near in made_of) == (
            window.height * window.width
        )


@pytest.mark.parametrize(("tile", "stride"), [(100, 128), (192, 128), (0, 128)])
def test_a_tile_that_does_not_fit_the_model_is_refused(tile: int, stride: int) -> None:
    with pytest.raises(UsageError, match="multiple of 128"):
        TileGrid(10, 10, tile, stride)


class Picture:
    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return self.pixels[y0:y1, x0:x1]


def test_padding_repeats_the_last_row_and_column() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    window = read_padded(Picture(pixels), Window(2, 12, 3, 10))
    assert window.shape == (10, 7, 3)
    np.testing.assert_array_equal(window[:3, :4], pixels[2:, 3:])
    np.testing.assert_array_equal(window[3:, :4], np.broadcast_to(pixels[-1:, 3:], (7, 4, 3)))
    np.testing.assert_array_equal(window[:3, 4:], np.broadcast_to(pixels[2:, -1:], (3, 3, 3)))


def test_halving_is_the_mean_rounded_half_up() -> None:
    block = np.array([[0, 1, 9], [1, 0, 10], [255, 255, 4]], np.uint8)[:, :, None].repeat(3, 2)
    expected = np.array([[1, 10], [255, 4]], np.uint8)  # 2/4 = 0.5 -> 1; (9+9+10+10)/4 = 9.5 -> 10
    np.testing.assert_array_equal(halve(block)[:, :, 0], expected)
