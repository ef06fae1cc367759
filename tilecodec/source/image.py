"""PNG, JPEG, WebP, JPEG XL, AVIF, JPEG 2000 and BMP files, which can only be decoded whole."""

from __future__ import annotations

import struct
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from tilecodec.errors import SourceError, StorageError, UnsupportedPixelsError
from tilecodec.source.base import SUPPORTED, WHOLE_LIMIT, Pixels, SourceMetadata, check_pixels, dropped_band
from tilecodec.source.bmp import bmp_decode
from tilecodec.source.cache import MEMORY_BYTES
from tilecodec.source.grid import DecodedSegments, GridSource, even_edges
from tilecodec.source.headers import Header, Kind, jpeg_damage, parse_header


def open_picture(path: Path, kind: Kind, *, memory_bytes: int = MEMORY_BYTES) -> GridSource:
    """Open a picture file and decode it, once.

    Above ``memory_bytes`` the decoded pixels are kept in an unlinked temporary file.

    Args:
        path: the file.
        kind: from ``picture_kind``.
        memory_bytes: bound of what is kept in memory.

    Raises:
        SourceError: damaged, or too large to be decoded whole.
        UnsupportedPixelsError: other than uint8 grey, RGB or RGBA; animated; CMYK.
        StorageError: the file cannot be read.
    """
    header, pixels = _decode(path, kind)
    height, width, bands = pixels.shape
    properties = dropped_band(bands)
    if header.orientation != 1:
        properties["tiff.Orientation"] = str(header.orientation)
    segments = DecodedSegments(
        lambda *_: _decode(path, kind)[1], segment_bytes=pixels.nbytes, memory_bytes=memory_bytes
    )
    segments.cache.block((0, 0, 0), lambda: pixels, 0, 1, 0, 1)
    return GridSource(
        name=str(path),
        y_edges=even_edges(height, height),
        x_edges=even_edges(width, width),
        segments=segments,
        segment_bytes=pixels.nbytes,
        metadata=SourceMetadata(
            icc_profile=header.icc_profile,
            properties=properties,
            earlier_losses=({"jpeg2k": "jpeg2000"}.get(kind, kind),) if header.lossy else (),
        ),
    )


def _decode(path: Path, kind: Kind) -> tuple[Header, Pixels]:
    """Return the header and the pixels, (height, width, bands) uint8."""
    name = str(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError("the picture cannot be read", got=error.strerror, where=name) from error
    header = parse_header(kind, data, name)
    _check_header(header, kind, name)
    damage = jpeg_damage(data) if kind == "jpeg" else None
    if damage:
        raise SourceError("damaged picture", got=damage, where=name)
    try:
        pixels = _decode_whole(kind, data)
    except (RuntimeError, ValueError, struct.error) as error:  # imagecodecs' own errors are RuntimeErrors
        raise SourceError("damaged picture", got=str(error), expected=f"a whole {kind} file", where=name) from error
    if pixels.ndim == 2:
        pixels = pixels[..., np.newaxis]
    if pixels.ndim != 3:
        raise UnsupportedPixelsError("animated picture", got=pixels.shape, expected="one picture", where=name)
    check_pixels(name, height=pixels.shape[0], width=pixels.shape[1], bands=pixels.shape[2], dtype=pixels.dtype)
    return header, pixels


def _check_header(header: Header, kind: Kind, name: str) -> None:
    """Refuse by the header what would fail, or take too much memory, in the decoder."""
    if header.bits not in (None, 8):
        raise UnsupportedPixelsError(
            "unsupported pixel type", got=f"{header.bits} bits", expected=SUPPORTED, where=name
        )
    if kind == "jpeg" and header.bands == 4:
        raise UnsupportedPixelsError("unsupported colours", got="JPEG in CMYK", expected="grey or RGB", where=name)
    check_pixels(name, height=header.height, width=header.width, bands=header.bands or 3, dtype="uint8")
    if header.height * header.width > WHOLE_LIMIT:
        raise SourceError(
            f"picture too large for {kind}, which can only be decoded whole",
            got=f"{header.width} x {header.height} px",
            expected=f"at most {WHOLE_LIMIT} px",
            where=name,
            hint="convert it to a tiled TIFF, e.g. vips copy IN OUT.tif[tile,bigtiff]",
        )


def _decode_whole(kind: Kind, data: bytes) -> NDArray[np.uint8]:
    match kind:
        case "png":
            return imagecodecs.png_decode(data)
        case "jpeg":
            return imagecodecs.jpeg8_decode(data)
        case "webp":
            return imagecodecs.webp_decode(data)
        case "jpegxl":
            return imagecodecs.jpegxl_decode(data, keeporientation=True)
        case "avif":
            return imagecodecs.avif_decode(data)
        case "jpeg2k":
            return imagecodecs.jpeg2k_decode(data)
        case "bmp":
            return bmp_decode(data)
