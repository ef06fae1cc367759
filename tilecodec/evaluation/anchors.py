"""The codecs that ours is held against: each at the settings that come nearest to a list of rates."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import imagecodecs
import numpy as np
import numpy.typing as npt

from tilecodec.errors import UsageError

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3) uint8, RGB."""

RATES: Final = (0.05, 0.1, 0.15, 0.2, 0.27, 0.36, 0.5, 0.8)
"""Bits per pixel aimed at: denser where codecs are compared."""
TOLERANCE: Final = 1.25
"""A setting further from a rate than this factor is left out (the codec does not reach that rate)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Codec:
    """A codec and its settings in order of growing size."""

    name: str
    title: str
    """Its name as people write it."""
    setting: str
    """What the setting is called."""
    fixed: str
    """The options that stay the same."""
    settings: tuple[float, ...]
    encode: Callable[[Pixels, float], bytes]
    decode: Callable[[bytes], Pixels]


def _steps(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(float(f"{v:.3g}") for v in np.geomspace(first, last, count))


CODECS: Final = (
    Codec(
        name="jpeg",
        title="JPEG",
        setting="quality",
        fixed="libjpeg-turbo, 4:2:0, optimised Huffman tables",
        settings=tuple(float(q) for q in range(1, 96)),
        encode=lambda a, q: bytes(imagecodecs.jpeg8_encode(a, int(q), subsampling="420", optimize=True)),
        decode=imagecodecs.jpeg8_decode,
    ),
    Codec(
        name="jpeg2000",
        title="JPEG 2000",
        setting="psnr",
        fixed="OpenJPEG, jp2, 9/7 wavelet, one quality layer",
        settings=tuple(float(q) for q in np.arange(12, 56.1, 0.5)),
        encode=lambda a, q: bytes(imagecodecs.jpeg2k_encode(a, q, codecformat="jp2", reversible=False)),  # type: ignore[arg-type]
        decode=imagecodecs.jpeg2k_decode,
    ),
    Codec(
        name="webp",
        title="WebP",
        setting="quality",
        fixed="libwebp, lossy, method 6",
        settings=tuple(float(q) for q in range(100)),
        encode=lambda a, q: bytes(imagecodecs.webp_encode(a, int(q), lossless=False, method=6)),
        decode=imagecodecs.webp_decode,
    ),
    Codec(
        name="avif",
        title="AVIF",
        setting="quality",
        fixed="libavif with aom, 4:4:4, speed 6",
        settings=tuple(float(q) for q in range(0, 100, 2)),
        encode=lambda a, q: bytes(imagecodecs.avif_encode(a, int(q), speed=6, pixelformat="444", codec="aom")),
        decode=imagecodecs.avif_decode,
    ),
    Codec(
        name="jpegxl",
        title="JPEG XL",
        setting="distance",
        fixed="libjxl, VarDCT, effort 7",
        settings=_steps(25, 0.3, 60),
        encode=lambda a, q: bytes(imagecodecs.jpegxl_encode(a, effort=7, distance=q)),
        decode=imagecodecs.jpegxl_decode,
    ),
)
NAMES: Final = tuple(codec.name for codec in CODECS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Coded:
    """One picture coded at one setting."""

    setting: str
    size: int
    """Bytes."""
    pixels: Pixels
    """(H, W, 3) uint8, decoded."""


def pick(names: Iterable[str]) -> tuple[Codec, ...]:
    """The codecs of these names, in the order of :data:`CODECS`.

    Raises:
        UsageError: no codec goes by one of the names; the nearest one is told.
    """
    wanted = list(names)
    for name in wanted:
        if name not in NAMES:
            near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.5)
            raise UsageError(
                "no such codec",
                got=name,
                expected=", ".join(NAMES),
                where="codecs",
                hint=f"Did you mean {near[0]}?" if near else None,
            )
    return tuple(codec for codec in CODECS if codec.name in wanted)


def at_rates(codec: Codec, pixels: Pixels, rates: Sequence[float], *, tolerance: float = TOLERANCE) -> list[Coded]:
    """Codes a picture at the settings nearest (in log rate) to each rate; rates out of reach are left out.

    Args:
        codec: one of :data:`CODECS`.
        pixels: (H, W, 3) uint8.
        rates: bits per pixel.
        tolerance: furthest factor between a rate and what is found for it.
    """
    coded: dict[int, bytes] = {}
    area: int = pixels.shape[0] * pixels.shape[1]

    def bpp(index: int) -> float:
        if index not in coded:
            coded[index] = codec.encode(pixels, codec.settings[index])
        return 8 * len(coded[index]) / area

    chosen: set[int] = set()
    for rate in rates:
        low, high = 0, len(codec.settings) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if bpp(middle) < rate else (low, middle)
        best = min((low, high), key=lambda index: abs(math.log(bpp(index) / rate)))
        if 1 / tolerance <= bpp(best) / rate <= tolerance:
            chosen.add(best)
    return [
        Coded(
            setting=f"{codec.setting}={codec.settings[index]:g}",
            size=len(coded[index]),
            pixels=np.ascontiguousarray(codec.decode(coded[index])),
        )
        for index in sorted(chosen)
    ]
