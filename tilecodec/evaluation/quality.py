"""What is measured of a decoded picture: PSNR, MS-SSIM, and LPIPS, DISTS and SSIMULACRA2 where they can be had."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tilecodec.errors import UsageError
from tilecodec.evaluation.anchors import Pixels

if TYPE_CHECKING:
    from tilecodec.evaluation.distances import Distance

AT_ONCE: Final = 4
"""Most pictures that a network compares at once."""
PIXELS_AT_ONCE: Final = 4 << 20
"""Most pixels of these, unless one alone has more."""
THREADS: Final = 2
"""SSIMULACRA2 of so many pictures is computed at once; each takes about 1 GiB per megapixel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A metric, as a column and as a heading."""

    name: str
    title: str
    rising: bool
    """Whether more is better."""


METRICS: Final = {
    metric.name: metric
    for metric in (
        Metric(name="psnr", title="PSNR (dB)", rising=True),
        Metric(name="ms_ssim", title="MS-SSIM", rising=True),
        Metric(name="lpips", title="LPIPS (lower is better)", rising=False),
        Metric(name="dists", title="DISTS (lower is better)", rising=False),
        Metric(name="ssimulacra2", title="SSIMULACRA2", rising=True),
    )
}
"""By name, in the order of every table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """How near a picture is to its original."""

    psnr: float
    """dB, over all three channels; infinite for equal pictures."""
    ms_ssim: float
    """0 to 1."""
    lpips: float = float("nan")
    """LPIPS v0.1 on SqueezeNet features, 0 = equal; NaN without weights."""
    dists: float = float("nan")
    """DISTS on VGG-16 features, 0 = equal; NaN without weights."""
    ssimulacra2: float = float("nan")
    """100 = equal, below 0 = hardly alike; NaN where it was not asked for."""


class Meter:
    """Measures pictures; holds the networks of LPIPS and DISTS.

    Args:
        lpips: file of LPIPS's weights, see :mod:`tilecodec.train.perceptual`; None: not measured.
        dists: file of DISTS's weights; None: not measured.
        ssimulacra2: measure SSIMULACRA2, which takes about a second of one core per megapixel.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, for LPIPS and DISTS.

    Raises:
        MissingFileError: no such file of weights.
        ModelError: a file of another kind.
        UsageError: SSIMULACRA2 is wanted and its library is not installed.
    """

    def __init__(
        self,
        lpips: Path | None = None,
        dists: Path | None = None,
        *,
        ssimulacra2: bool = False,
        device: str = "cpu",
    ) -> None:
        self._distances: dict[str, Distance] = {}
        if lpips is not None or dists is not None:
            from tilecodec.evaluation.distances import load_dists, load_lpips

            if lpips is not None:
                self._distances["lpips"] = load_lpips(lpips, device)
            if dists is not None:
                self._distances["dists"] = load_dists(dists, device)
        if ssimulacra2:
            _check_ssimulacra2()
        self._ssimulacra2 = ssimulacra2
        extra = [*self._distances, *(["ssimulacra2"] if ssimulacra2 else [])]
        self.metrics: tuple[str, ...] = ("psnr", "ms_ssim", *extra)
        """Names of what is measured."""

    def __call__(self, pictures: Sequence[Pixels], original: Pixels) -> list[Quality]:
        """The quality of each picture; all (H, W, 3) uint8 of one shape, sides over 160 px."""
        from tilecodec.metrics import ms_ssim, psnr

        batch = max(1, min(AT_ONCE, PIXELS_AT_ONCE // original[..., 0].size))
        columns: dict[str, list[float]] = {}
        for name, distance in self._distances.items():
            parts = [pictures[first : first + batch] for first in range(0, len(pictures), batch)]
            columns[name] = [value for part in parts for value in distance(part, original)]
        if self._ssimulacra2:
            with ThreadPoolExecutor(THREADS) as pool:
                columns["ssimulacra2"] = list(pool.map(lambda p: ssimulacra2(p, original), pictures))
        return [
            Quality(psnr=psnr(p, original), ms_ssim=ms_ssim(p, original), **{k: v[n] for k, v in columns.items()})
            for n, p in enumerate(pictures)
        ]


def ssimulacra2(picture: Pixels, original: Pixels) -> float:
    """SSIMULACRA2 2.1 of a picture, at most 100; both (H, W, 3) uint8 of one shape.

    Source: J. Sneyers, https://github.com/cloudinary/ssimulacra2; computed by the package ``ssimulacra2``.
    """
    from ssimulacra2 import compute_ssimulacra2

    return float(compute_ssimulacra2(_ppm(original), _ppm(picture)))


def _ppm(pixels: Pixels) -> io.BytesIO:
    height, width = pixels.shape[:2]
    return io.BytesIO(f"P6 {width} {height} 255\n".encode() + np.ascontiguousarray(pixels).tobytes())


def _check_ssimulacra2() -> None:
    from importlib.util import find_spec

    if find_spec("ssimulacra2") is None:
        raise UsageError(
            "SSIMULACRA2 cannot be measured",
            got="no package ssimulacra2",
            expected="the extra `eval`",
            where="ssimulacra2",
            hint="Install the extra: tilecodec[eval]",
        )
