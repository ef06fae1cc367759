"""The drawn landscape: the same however it is cut, different everywhere, detailed."""

from __future__ import annotations

import numpy as np
import pytest

from tilecodec.scene import BAND, Scene

SIZE = 600


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return np.concatenate(list(Scene(SIZE).bands()))


def test_bands_make_up_the_same_picture_again(scene: np.ndarray) -> None:
    bands = list(Scene(SIZE).bands())
    assert [band.shape for band in bands] == [(BAND, SIZE, 3), (BAND, SIZE, 3), (SIZE - 2 * BAND, SIZE, 3)]
    np.testing.assert_array_equal(np.concatenate(bands), scene)
    assert scene.dtype == np.uint8


def test_bands_join_without_a_seam(scene: np.ndarray) -> None:
    steps = np.abs(np.diff(scene.astype(int), axis=0)).mean((1, 2))
    assert steps[BAND - 1] < 1.3 * np.median(steps)


def test_picture_is_detailed_and_colourful(scene: np.ndarray) -> None:
    grey = scene.mean(2)
    tiles = grey[:512, :512].reshape(8, 64, 8, 64).std((1, 3))
    assert tiles.min() > 2
    assert np.median(tiles) > 8
    assert grey.std() > 25
    greenest = scene[..., 1].astype(int) - scene.max(2).astype(int)
    assert 0.2 < (greenest == 0).mean() < 0.9
    assert (scene == 255).all(2).mean() < 0.01
