"""Write a .png file; the whole picture is held in memory."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import imagecodecs
import numpy as np

from tilecodec.errors import UsageError
from tilecodec.sink.rows import Pixels

BAND: Final = 1024
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
    bands: Iterator[Pixels],
    *,
    height: int,
    width: int,
    icc_profile: bytes | None = None,
    pixel_size_um: tuple[float, float] | None = None,
) -> None:
    """Write bands (h_i, width, 3) uint8 as one RGB picture, height * width up to :data:`MAX_PIXELS`.

    Args:
        path: the file.
        bands: in order from the top.
        height: rows.
        width: columns.
        icc_profile: stored in an iCCP chunk.
        pixel_size_um: (y, x) in micrometres, stored in a pHYs chunk.

    Source: PNG specification, third edition, chunks iCCP and pHYs.
    """
    check_png(height, width)
    pixels = np.empty((height, width, 3), np.uint8)
    y = 0
    for band in bands:
        pixels[y : y + len(band)] = band
        y += len(band)
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
