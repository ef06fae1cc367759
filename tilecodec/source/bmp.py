"""Decode BMP, here since the decoder of imagecodecs crashes on damaged files."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from tilecodec.source.base import Pixels

_PLAIN, _BITFIELDS = 0, 3
_MASKS: Final = (0xFF0000, 0xFF00, 0xFF)
"""Where red, green and blue lie in a pixel of 32 bits, the only order that is read."""


def bmp_decode(data: bytes) -> Pixels:
    """Decode an uncompressed BMP of 8, 24 or 32 bits a pixel.

    Args:
        data: the file's bytes, its header checked by ``parse_header``.

    Returns:
        (h, w, 3 or 4) uint8, RGB or RGBA.

    Raises:
        ValueError: damaged, or of another kind.
        struct.error: cut off in its header.

    Source: Microsoft, "Bitmap Storage", structures BITMAPFILEHEADER, BITMAPINFOHEADER and BITMAPV4HEADER.
    """
    begin, head = struct.unpack_from("<II", data, 10)
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    if head < 40 or width < 1 or bits not in (8, 24, 32) or compression not in (_PLAIN, _BITFIELDS):
        raise ValueError(f"BMP header of {head} bytes, {bits} bits a pixel, compression {compression}")
    if compression == _BITFIELDS and (bits != 32 or struct.unpack_from("<III", data, 54) != _MASKS):
        raise ValueError("BMP with bit fields in another order than BGRA")
    stride = -(-width * bits // 32) * 4
    end = begin + stride * abs(height)
    if not 14 + head <= begin or end > len(data):
        raise ValueError(f"BMP pixels at bytes {begin}..{end} of {len(data)}")
    rows = np.frombuffer(data, np.uint8, stride * abs(height), begin).reshape(abs(height), stride)
    rows = rows[:, : width * bits // 8]
    if height > 0:  # the lowest row comes first
        rows = rows[::-1]
    if bits == 8:
        used = struct.unpack_from("<I", data, 46)[0] or 256
        colours = np.frombuffer(data, np.uint8, begin - 14 - head, 14 + head)
        colours = colours[: len(colours) // 4 * 4].reshape(-1, 4)[: min(used, 256), 2::-1]
        if len(colours) <= int(rows.max()):
            raise ValueError(f"BMP colour {rows.max()} of {len(colours)}")
        palette: Pixels = np.ascontiguousarray(colours)
        return palette[rows]
    pixels = rows.reshape(abs(height), width, bits // 8)
    return pixels[..., [2, 1, 0, 3][: bits // 8]]
