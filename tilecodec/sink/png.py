"""Write a .png file; the whole picture is held in memory."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final

import imagecodecs
import numpy as np

from tilecodec.errors import UsageError
from tilecodec.sink.rows import Arriving

BAND: Final = 256
MAX_PIXELS: Final = 1 << 28
_HEADER_BYTES: Final = 8 + 25
"""Signature and IHDR chunk; further chunks may follow."""


def check_png(height: int, width: int) -> None:
    """Raise UsageError where the picture is too large to be written as PNG."""
    if height * width > MAX_PIXELS:
        raise UsageError(
            "the picture is too large for PNG",
            got=f"{width} x {height} px",
            expected=f"at most {MAX_PIXELS} px",
            hint="Write a .tif file, or a region.",
        )


def write_png(
    path: Path,
    picture: Arriving,
    *,
    icc_profile: bytes | None = None,
    pixel_size_um: tuple[float, float] | None = None,
) -> None:
    """Write an RGB picture of at most :data:`MAX_PIXELS` pixels.

    Args:
        path: the file.
        picture: its pixels.
        icc_profile: stored in an iCCP chunk.
        pixel_size_um: (y, x) in micrometres, stored in a pHYs chunk.

    Source: PNG specification, third edition, chunks iCCP and pHYs.
    """
    check_png(picture.height, picture.width)
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    for y, end in picture.bands(BAND):
        pixels[y:end] = picture.read(y, end, 0, picture.width)
    data = memoryview(imagecodecs.png_encode(pixels, level=6))
    with open(path, "wb") as file:
        file.write(data[:_HEADER_BYTES])
        if icc_profile is not None:
            file.write(_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile)))
        if pixel_size_um is not None:
            per_metre = [round(1e6 / size) for size in reversed(pixel_size_um)]
            if all(0 < n < 1 << 31 for n in per_metre):
                file.write(_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
        file.write(data[_HEADER_BYTES:])


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
