"""Where the strips or tiles of a TIFF picture lie, checked against the file, and how their samples become RGB."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tifffile
from numpy.typing import NDArray
from tifffile import PHOTOMETRIC, TiffFile, TiffFrame, TiffPage, TiffPageSeries

from tilecodec.errors import SourceError, UnsupportedPixelsError
from tilecodec.source.base import SUPPORTED, Pixels, check_pixels

_ASIDE = ("label", "macro", "thumbnail", "map")
"""Names of series that are not the picture itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """One picture of a TIFF file as a grid of segments."""

    page: TiffPage
    """The page whose tags describe the picture."""
    height: int
    """Rows of pixels."""
    width: int
    """Columns of pixels."""
    bands: int
    """Samples per pixel, as stored; one of ``BANDS``."""
    planes: int
    """1: a segment holds all bands; 3: one band each."""
    segment: tuple[int, int, int]
    """(h, w, s) of a segment, decoded; strips at the lower border are shorter."""
    tiled: bool
    """Tiles, else strips."""
    offsets: NDArray[np.int64]
    """(planes, rows, cols): where a segment begins in the file; 0 where it was never written."""
    counts: NDArray[np.int64]
    """(planes, rows, cols): its bytes in the file; 0 where it was never written."""
    separate: bool
    """The planes share one page, whose segment numbers count on from plane to plane."""
    lut: Pixels | None
    """(256, 3) uint8 colours of one-band samples; None: as they are."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of segments."""
        return self.offsets.shape[1], self.offsets.shape[2]

    def index(self, plane: int, row: int, col: int) -> int:
        """Return a segment's number in its page."""
        rows, cols = self.grid
        return ((plane if self.separate else 0) * rows + row) * cols + col

    def describe(self, plane: int, row: int, col: int) -> str:
        """Return a segment's place in words."""
        height, width, _ = self.segment
        rows = f"rows {row * height}..{min((row + 1) * height, self.height)}"
        band = f" of band {plane}" if self.planes > 1 else ""
        if not self.tiled:
            return f"strip {row}{band}, {rows}"
        return f"tile (row {row}, col {col}){band}, {rows}, columns {col * width}..{min((col + 1) * width, self.width)}"


def find_layout(tif: TiffFile, size: int, name: str) -> Layout:
    """Choose the largest picture of a TIFF file and check that it can be read.

    Args:
        tif: the open file.
        size: the file's bytes.
        name: the file's name, for messages.

    Raises:
        SourceError: no picture, no pixels, a stack of pictures, or segments outside the file.
        UnsupportedPixelsError: dtype, bands, colours or compression without support.
    """
    if tif.is_bif:
        raise UnsupportedPixelsError(
            "Ventana BIF, whose tiles overlap",
            got="unstitched tiles",
            expected="one picture",
            where=name,
            hint="stitch it first, e.g. vips openslideload IN OUT.tif[tile,bigtiff]",
        )
    series = _main_series(tif, name)
    page = series.keyframe
    assert isinstance(page, TiffPage)
    height, width = page.imagelength, page.imagewidth
    if height < 1 or width < 1:
        raise SourceError("picture without pixels", got=f"{width} x {height} px", expected="at least 1 x 1", where=name)
    pages = _pages(tif, series, page, name)
    bands = page.samplesperpixel if len(pages) == 1 else len(pages)
    _check_kind(page, bands, name)

    separate = len(pages) == 1 and page.planarconfig == 2 and bands > 1
    planes = 3 if separate or len(pages) > 1 else 1
    strip = (min(page.rowsperstrip, height), width)
    shape = (page.tilelength, page.tilewidth) if page.is_tiled else strip
    if min(shape) < 1 or page.imagedepth != 1 or page.tiledepth != 1:
        raise SourceError("damaged TIFF: segment size", got=shape, expected="at least 1 x 1, flat", where=name)
    grid = (-(-height // shape[0]), -(-width // shape[1]))
    tables = _tables(pages[:planes], planes if separate else 1, grid, name)
    layout = Layout(
        page=page,
        height=height,
        width=width,
        bands=bands,
        planes=planes,
        segment=(*shape, 1 if planes > 1 else bands),
        tiled=page.is_tiled,
        offsets=tables[0].reshape(planes, *grid),
        counts=tables[1].reshape(planes, *grid),
        separate=separate,
        lut=_lut(page, bands, name),
    )
    _check_extents(layout, size, name)
    return layout


def _main_series(tif: TiffFile, name: str) -> TiffPageSeries:
    found = [series.levels[0] for series in tif.series if series.levels and isinstance(series.keyframe, TiffPage)]
    if not found:
        raise SourceError("TIFF file without a picture", got="no image directory", where=name)
    main = [
        series
        for series in found
        if series.name.lower() not in _ASIDE and not int(series.keyframe.subfiletype) & 0b101  # reduced, mask
    ]
    return max(main or found, key=lambda series: series.keyframe.imagelength * series.keyframe.imagewidth)


def _pages(tif: TiffFile, series: TiffPageSeries, page: TiffPage, name: str) -> list[TiffPage | TiffFrame]:
    """Return the page of the picture, or the pages of its bands."""
    axes = [(axis, n) for axis, n in zip(series.axes, series.shape, strict=True) if n != 1 or axis in "YX"]
    kind = "".join(axis for axis, _ in axes)
    if kind in ("YX", "YXS", "SYX"):
        count = 1
    elif kind == "CYX" and page.samplesperpixel == 1:
        count = axes[0][1]
        check_pixels(name, height=page.imagelength, width=page.imagewidth, bands=count, dtype=page.dtype)
    else:
        raise UnsupportedPixelsError(
            "a stack of pictures",
            got=", ".join(f"{axis}: {n}" for axis, n in axes),
            expected="one picture with axes Y, X and at most one of S or C",
            where=name,
            hint="write the picture that is wanted to a file of its own",
        )
    pages = [found for found in list(series.pages)[:count] if found is not None and found.parent is tif]
    if len(pages) != count:
        raise SourceError("the bands lie in several files", got=len(pages), expected=count, where=name)
    return pages


def _check_kind(page: TiffPage, bands: int, name: str) -> None:
    dtype = str(page.dtype) if page.dtype is not None and page.bitspersample in (8, 16, 32, 64) else None
    check_pixels(
        name,
        height=page.imagelength,
        width=page.imagewidth,
        bands=bands,
        dtype=dtype or f"{page.bitspersample} bits per sample",
    )
    if page.compression != 1 and page.compression not in tifffile.TIFF.DECOMPRESSORS:
        raise UnsupportedPixelsError(
            "unsupported TIFF compression",
            got=str(page.compression),
            expected="one that imagecodecs decodes",
            where=name,
            hint="re-write it, e.g. gdal_translate -co TILED=YES -co COMPRESS=DEFLATE IN OUT",
        )
    photometric = page.photometric
    converted = photometric == PHOTOMETRIC.YCBCR and page.compression in tifffile.TIFF.IMAGE_COMPRESSIONS
    one_band = photometric in (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.PALETTE) and bands == 1
    if photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB) or converted or one_band:
        return
    raise UnsupportedPixelsError(
        "unsupported colours",
        got=f"photometric {getattr(photometric, 'name', photometric)}, {bands} bands",
        expected=f"grey, palette, RGB or JPEG's YCbCr: {SUPPORTED}",
        where=name,
    )


def _tables(
    pages: list[TiffPage | TiffFrame], planes_per_page: int, grid: tuple[int, int], name: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return offsets and byte counts of all segments in plane, row, column order; 0, 0 where never written."""
    need = planes_per_page * grid[0] * grid[1]
    offsets, counts = [], []
    for page in pages:
        have = min(len(page.dataoffsets), len(page.databytecounts))
        if have < need:
            raise SourceError("damaged TIFF: segments are missing", got=have, expected=need, where=name)
        offsets.append(np.array(page.dataoffsets[:need], np.int64))
        counts.append(np.array(page.databytecounts[:need], np.int64))
    all_offsets, all_counts = np.concatenate(offsets), np.concatenate(counts)
    absent = (all_offsets == 0) | (all_counts == 0)
    all_offsets[absent] = all_counts[absent] = 0
    return all_offsets, all_counts


def _check_extents(layout: Layout, size: int, name: str) -> None:
    if not layout.counts.any():
        raise SourceError("the TIFF's pixels were never written", got="no strip or tile in the file", where=name)
    outside = (layout.offsets < 0) | (layout.counts < 0) | (layout.offsets + layout.counts > size)
    if outside.any():
        plane, row, col = (int(i) for i in np.argwhere(outside)[0])
        begin, count = int(layout.offsets[plane, row, col]), int(layout.counts[plane, row, col])
        raise SourceError(
            f"truncated TIFF: {int(outside.sum())} of {outside.size} strips or tiles lie beyond the file's end",
            got=f"bytes {begin}..{begin + count}",
            expected=f"within the file's {size} bytes",
            where=f"{name}, {layout.describe(plane, row, col)}",
        )


def _lut(page: TiffPage, bands: int, name: str) -> Pixels | None:
    if bands != 1:
        return None
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        return np.repeat(np.arange(255, -1, -1, dtype=np.uint8)[:, np.newaxis], 3, axis=1)
    if page.photometric != PHOTOMETRIC.PALETTE:
        return None
    colours = page.colormap
    if colours is None or colours.shape != (3, 256):
        got = None if colours is None else colours.shape
        raise SourceError("damaged TIFF: palette", got=got, expected="(3, 256)", where=name)
    eight_bit = int(colours.max()) < 256  # some writers store bytes where the standard wants 16 bits
    return np.ascontiguousarray((colours if eight_bit else colours >> 8).T.astype(np.uint8))
