"""PSNR and MS-SSIM against closed forms and against pytorch_msssim."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.data

from tilecodec.errors import UsageError
from tilecodec.metrics import MIN_SIDE, WEIGHTS, ms_ssim, psnr

PHOTO = np.ascontiguousarray(skimage.data.astronaut())


def noisy(pixels: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(7).normal(0, sigma, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def flat(value: int, height: int = 200, width: int = 170) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_psnr_of_a_constant_difference() -> None:
    assert psnr(flat(100), flat(110)) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(flat(0), flat(255)) == pytest.approx(0)
    assert psnr(PHOTO, PHOTO) == math.inf


def test_psnr_counts_every_row() -> None:
    other = PHOTO.copy()
    other[-1, -1, 2] ^= 64
    assert psnr(PHOTO, other) == pytest.approx(10 * math.log10(255**2 * PHOTO.size / 64**2))


def test_ms_ssim_of_equal_pictures_is_one() -> None:
    assert ms_ssim(PHOTO, PHOTO) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("a", "b"), [(100, 140), (0, 255), (30, 20)])
def test_ms_ssim_of_constants_is_the_luminance_term_of_the_coarsest_scale(a: int, b: int) -> None:
    """Without contrast every other factor is 1. Sides are multiples of 16, so that no scale is padded."""
    c1 = (0.01 * 255) ** 2
    luminance = (2 * a * b + c1) / (a * a + b * b + c1)
    assert ms_ssim(flat(a, 192, 176), flat(b, 192, 176)) == pytest.approx(luminance ** WEIGHTS[-1], rel=1e-4)


def test_ms_ssim_of_the_negative_picture_is_zero() -> None:
    """Structures that run against each other make a factor negative, which counts as 0."""
    assert ms_ssim(PHOTO, 255 - PHOTO) == 0


def test_ms_ssim_falls_with_noise() -> None:
    values = [ms_ssim(PHOTO, noisy(PHOTO, sigma)) for sigma in (2, 8, 32)]
    assert 1 > values[0] > values[1] > values[2] > 0.3


@pytest.mark.parametrize("shape", [(161, 161), (200, 301), (255, 176)])
def test_ms_ssim_equals_pytorch_msssim(shape: tuple[int, int]) -> None:
    reference = pytest.importorskip("pytorch_msssim", reason="comes with the train extra")
    import torch

    a = np.ascontiguousarray(PHOTO[: shape[0], : shape[1]])
    b = noisy(a, 12)
    tensors = (torch.from_numpy(p).permute(2, 0, 1)[None].double() for p in (a, b))
    assert ms_ssim(a, b) == pytest.approx(reference.ms_ssim(*tensors, data_range=255).item(), abs=1e-5)


@pytest.mark.parametrize("metric", [psnr, ms_ssim])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (flat(0), flat(0, 200, 171)),
        (flat(0).astype(np.float32), flat(0)),
        (flat(0)[..., 0], flat(0)[..., 0]),
        (flat(0, 0), flat(0, 0)),
    ],
)
def test_pictures_that_do_not_compare(metric: object, a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(UsageError):
        metric(a, b)


def test_ms_ssim_needs_room_for_five_scales() -> None:
    assert MIN_SIDE == 161
    ms_ssim(flat(0, 161, 161), flat(0, 161, 161))
    with pytest.raises(UsageError, match="161 px"):
        ms_ssim(flat(0, 160, 161), flat(0, 160, 161))
