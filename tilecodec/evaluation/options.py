"""Options of an evaluation: frozen, keyword-only, validated when made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from tilecodec.config import Device
from tilecodec.errors import UsageError
from tilecodec.evaluation.anchors import NAMES, pick
from tilecodec.metrics import MIN_SIDE

QUALITIES: Final = (1.0, 10.0, 20.0, 35.0, 50.0, 65.0, 80.0, 100.0)
COMMON: Final = (0.1, 0.15, 0.2, 0.3, 0.5)
"""Bits per pixel at which codecs are compared."""
MAX_PIXELS: Final = 2 << 20


def _check(ok: bool, name: str, got: object, expected: str) -> None:
    if not ok:
        raise UsageError(f"option {name} is out of range", got=got, expected=expected, where=name)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationOptions:
    """What is measured, and beside what."""

    model: str = "default"
    """Model name, sha256 or path of a model folder."""
    qualities: tuple[float, ...] = QUALITIES
    """Of our codec, 1 to 100 each; a BD-rate needs two or more."""
    codecs: tuple[str, ...] = NAMES
    """Encoded beside ours; may be empty."""
    rates: tuple[float, ...] = COMMON
    """Bits per pixel at which codecs are compared."""
    lpips: str | os.PathLike[str] | None = None
    """File of LPIPS's weights (SqueezeNet); None: LPIPS is left out."""
    dists: str | os.PathLike[str] | None = None
    """File of DISTS's weights; None: DISTS is left out."""
    ssimulacra2: bool = False
    """Measure SSIMULACRA2 too: about a second of one core per megapixel and setting."""
    max_pixels: int = MAX_PIXELS
    """Of a larger picture the middle is measured."""
    device: Device = "auto"
    """For our codec, LPIPS and DISTS."""

    def __post_init__(self) -> None:
        _check(bool(self.qualities), "qualities", "none", "one or more numbers of 1 to 100")
        for quality in self.qualities:
            _check(1 <= quality <= 100, "qualities", quality, "1 to 100")
        _check(len(set(self.qualities)) == len(self.qualities), "qualities", self.qualities, "each of them once")
        pick(self.codecs)
        _check(bool(self.rates), "rates", "none", "one or more bits per pixel")
        for rate in self.rates:
            _check(0 < rate <= 24, "rates", rate, "bits per pixel, above 0 and at most 24")
        _check(self.max_pixels >= MIN_SIDE**2, "max_pixels", self.max_pixels, f"at least {MIN_SIDE**2}")
