"""Picture metrics: PSNR, MS-SSIM, and LPIPS where its weights are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from bench.common import Pixels

BATCH: Final = 4
"""Pictures whose LPIPS is computed at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """How near a picture is to its original."""

    psnr: float
    """dB, over all three channels."""
    ms_ssim: float
    """0 to 1."""
    lpips: float
    """LPIPS v0.1 on SqueezeNet features, 0 = equal; NaN without weights."""


class Meter:
    """Measures pictures; holds LPIPS's network."""

    def __init__(self, lpips: Path | None) -> None:
        self._lpips = None
        if lpips is not None:
            from tilecodec.train.losses import LPIPSSqueeze

            self._lpips = LPIPSSqueeze(lpips).eval()

    def __call__(self, pictures: Sequence[Pixels], original: Pixels) -> list[Quality]:
        """The quality of each picture; all (H, W, 3) uint8 of one shape, sides over 160 px."""
        from tilecodec.metrics import ms_ssim, psnr

        distances: list[float] = []
        for first in range(0, len(pictures), BATCH):
            distances += self._distances(pictures[first : first + BATCH], original)
        return [
            Quality(psnr=psnr(p, original), ms_ssim=ms_ssim(p, original), lpips=distance)
            for p, distance in zip(pictures, distances, strict=True)
        ]

    def _distances(self, pictures: Sequence[Pixels], original: Pixels) -> list[float]:
        if self._lpips is None:
            return [float("nan")] * len(pictures)
        import torch

        with torch.inference_mode():
            a, b = (
                torch.from_numpy(np.ascontiguousarray(np.stack(p).transpose(0, 3, 1, 2))).float() / 127.5 - 1
                for p in (pictures, [original])
            )
            # The original is a batch of one: its features are computed once and broadcast.
            return [float(d) for d in self._lpips(a, b)]
