"""TIFF pictures: TIFF, BigTIFF, OME-TIFF, GeoTIFF, SVS, NDPI; tiles or strips, stored or compressed."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from tifffile import TiffFile

from tilecodec.errors import SourceError, StorageError, TileCodecError
from tilecodec.source.base import WHOLE_LIMIT, Pixels
from tilecodec.source.cache import MEMORY_BYTES
from tilecodec.source.files import RandomAccessFile, read_block
from tilecodec.source.grid import DecodedSegments, GridSource, Segments, even_edges
from tilecodec.source.headers import jpeg_damage
from tilecodec.source.tiff_layout import Layout, find_layout
from tilecodec.source.tiff_metadata import read_metadata

FAULTS: Final = (
    RuntimeError,  # every imagecodecs error; NotImplementedError
    ValueError,  # tifffile.TiffFileError; impossible shapes
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    MemoryError,  # a damaged count
    struct.error,
)
"""What tifffile and imagecodecs raise on files with faults."""

_JPEG: Final = (7, 33007, 34892)
_APERIO_YCBCR: Final = 33003


def open_tiff(path: Path, *, memory_bytes: int = MEMORY_BYTES) -> GridSource:
    """Open the largest picture of a TIFF file.

    Pixels that are stored plainly are read at their offsets; compressed segments are decoded once and kept within
    ``memory_bytes``, or in an unlinked temporary file of about two bands of 2176 rows where those are larger.

    Args:
        path: the file.
        memory_bytes: bound of decoded segments kept in memory.

    Raises:
        SourceError: damaged or truncated; a compressed segment above ``WHOLE_LIMIT`` pixels.
        UnsupportedPixelsError: dtype, bands, colours or compression without support.
        StorageError: the file cannot be read.
    """
    name = str(path)
    with ExitStack() as on_failure:
        try:
            file = RandomAccessFile(path.open("rb", buffering=0))
            on_failure.callback(file.close)
            source = _open(path, file, name, memory_bytes)
        except TileCodecError:
            raise
        except OSError as error:
            raise StorageError("the picture cannot be read", got=str(error), where=name) from error
        except FAULTS as error:
            raise SourceError("damaged TIFF", got=str(error) or type(error).__name__, where=name) from error
        source.on_close(file.close)
        on_failure.pop_all()
    return source


def _open(path: Path, file: RandomAccessFile, name: str, memory_bytes: int) -> GridSource:
    segments: Segments
    with TiffFile(path) as tif:
        layout = find_layout(tif, file.size, name)
        if _is_plain(layout):
            layout = _joined(layout)
            segments = PlainSegments(file, layout, name)
        else:
            segments = DecodedSegments(
                _decoder(file, layout, name), segment_bytes=math.prod(layout.segment), memory_bytes=memory_bytes
            )
        metadata = read_metadata(tif, layout, _first_segment(file, layout), name)
    return GridSource(
        name=name,
        y_edges=even_edges(layout.height, layout.segment[0]),
        x_edges=even_edges(layout.width, layout.segment[1]),
        segments=segments,
        segment_bytes=math.prod(layout.segment),
        metadata=metadata,
        planes=layout.planes,
        lut=layout.lut,
    )


class PlainSegments:
    """Segments stored as they are, read at their offsets, never more of them than is asked for.

    Args:
        file: the TIFF file.
        layout: where they lie.
        name: the file's name, for messages.
    """

    def __init__(self, file: RandomAccessFile, layout: Layout, name: str) -> None:
        self._file, self._layout, self._name = file, layout, name

    def reserve(self, band_bytes: int) -> None:
        """Nothing is kept, so no room is needed."""

    def block(self, plane: int, row: int, col: int, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        """Return a part of one segment, (y1 - y0, x1 - x0, s) uint8."""
        layout = self._layout
        offset = int(layout.offsets[plane, row, col])
        if offset == 0:
            return np.full((y1 - y0, x1 - x0, layout.segment[2]), _fill(layout), np.uint8)
        try:
            return read_block(self._file, offset, layout.segment, y0, y1, x0, x1)
        except EOFError as error:
            where = f"{self._name}, {layout.describe(plane, row, col)}"
            raise SourceError("truncated TIFF", got=str(error), where=where) from error
        except OSError as error:
            raise StorageError("the picture cannot be read", got=str(error), where=self._name) from error

    def close(self) -> None:
        """Nothing is held."""


def _is_plain(layout: Layout) -> bool:
    page = layout.page
    height, width, samples = layout.segment
    need = np.full(layout.grid, height * width * samples)
    if not layout.tiled:
        need[-1] = (layout.height - (layout.grid[0] - 1) * height) * width * samples
    stored_whole = ((layout.counts >= need) | (layout.counts == 0)).all()
    return page.compression == 1 and page.predictor == 1 and page.fillorder == 1 and bool(stored_whole)


def _joined(layout: Layout) -> Layout:
    """Return plain strips that follow each other without a gap as one strip a plane."""
    height, width, samples = layout.segment
    steps = np.diff(layout.offsets[:, :, 0], axis=1)
    if layout.tiled or layout.grid[0] == 1 or not layout.counts.all() or (steps != height * width * samples).any():
        return layout
    return replace(
        layout,
        segment=(layout.height, width, samples),
        offsets=layout.offsets[:, :1],
        counts=layout.counts.sum(axis=1, keepdims=True),
    )


def _first_segment(file: RandomAccessFile, layout: Layout) -> bytes:
    """Return the first bytes of the first segment that was written."""
    plane, row, col = (int(i) for i in np.argwhere(layout.counts > 0)[0])
    count = min(int(layout.counts[plane, row, col]), 1 << 16)
    return bytes(file.read(int(layout.offsets[plane, row, col]), count))


def _fill(layout: Layout) -> int:
    """Return the value of segments that were never written: the file's nodata value, else 0, as GDAL does."""
    nodata = layout.page.nodata
    return int(nodata) if 0 <= nodata <= 255 else 0


def _decoder(file: RandomAccessFile, layout: Layout, name: str) -> Callable[[int, int, int], Pixels]:
    """Return the function that decodes one segment.

    Raises:
        SourceError: a segment is too large to be decoded whole.
    """
    page = layout.page
    height, width, _ = layout.segment
    if height * width > WHOLE_LIMIT:
        raise SourceError(
            "a compressed strip or tile is too large to be decoded",
            got=f"{width} x {height} px",
            expected=f"at most {WHOLE_LIMIT} px",
            where=name,
            hint="re-tile the picture, e.g. gdal_translate -co TILED=YES -co COMPRESS=DEFLATE -co BIGTIFF=YES IN OUT",
        )
    decode_segment = page.decode
    tables: dict[str, Any] = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
    checked_jpeg = page.compression in _JPEG and page.jpegheader is None

    def decode(plane: int, row: int, col: int) -> Pixels:
        rows = min(height, layout.height - row * height)
        columns = min(width, layout.width - col * width)
        count = int(layout.counts[plane, row, col])
        if count == 0:
            return np.full((rows, columns, layout.segment[2]), _fill(layout), np.uint8)
        where = f"{name}, {layout.describe(plane, row, col)}"
        try:
            data = bytes(file.read(int(layout.offsets[plane, row, col]), count))
            damage = jpeg_damage(data) if checked_jpeg else None
            if damage:
                raise SourceError("damaged TIFF: a strip or tile cannot be decoded", got=damage, where=where)
            decoded = decode_segment(data, layout.index(plane, row, col), **tables)[0]
        except TileCodecError:
            raise
        except OSError as error:
            raise StorageError("the picture cannot be read", got=str(error), where=name) from error
        except FAULTS as error:
            got = str(error) or type(error).__name__
            raise SourceError("damaged TIFF: a strip or tile cannot be decoded", got=got, where=where) from error
        if decoded is None:
            raise SourceError("damaged TIFF: a strip or tile is empty", where=where)
        pixels: Pixels = decoded[0]
        if pixels.dtype != np.uint8 or pixels.shape[0] < rows or pixels.shape[1] < columns:
            raise SourceError(
                "damaged TIFF: a strip or tile decodes to something else",
                got=f"{pixels.shape} {pixels.dtype}",
                expected=f"{layout.segment} uint8",
                where=where,
            )
        return _rgb_of_ycbcr(pixels) if page.compression == _APERIO_YCBCR else pixels

    return decode


def _rgb_of_ycbcr(pixels: Pixels) -> Pixels:
    """Convert (h, w, 3) uint8 from full-range YCbCr.

    Source: ITU-T T.871, section 7.
    """
    y, cb, cr = (pixels[..., i].astype(np.float32) for i in range(3))
    cb, cr = cb - 128, cr - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    converted: Pixels = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    return converted
