"""Pixels out: blocks or rows into a TIFF, PNG, NPY or Zarr target, chosen by its suffix."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tilecodec.errors import UsageError
from tilecodec.sink.rows import PIECE, Arriving, as_blocks
from tilecodec.sink.target import check_target, staged

if TYPE_CHECKING:
    import numpy.typing as npt

    from tilecodec.source import SourceMetadata
    from tilecodec.tiles.rolling import Block

__all__ = ["SUFFIXES", "check_write", "write_blocks", "write_rows"]

SUFFIXES: Final = (".tif", ".tiff", ".png", ".npy", ".zarr")
"""Suffixes that can be written, in lower case."""
_LEAST_UM: Final = 1e-5
_MOST_UM: Final = 1e12
"""Pixel sizes that TIFF's and PNG's resolutions can express; others are left out."""


def check_write(path: str | os.PathLike[str], *, height: int, width: int, overwrite: bool = False) -> Path:
    """Return the target as a path if :func:`write_rows` would start to write it; touches nothing.

    Raises: as :func:`write_rows`, before its first band.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            "the target's suffix names no format",
            got=suffix or "no suffix",
            expected=".tif, .png, .npy or .zarr",
            where=str(target),
        )
    if height < 1 or width < 1:
        raise UsageError("the picture has no pixels", got=f"{width} x {height}", where=str(target))
    if suffix == ".png":
        from tilecodec.sink.png import check_png

        check_png(height, width)
    check_target(target, overwrite=overwrite, folder=suffix == ".zarr")
    return target


def write_blocks(
    path: str | os.PathLike[str],
    blocks: Iterator[Block],
    *,
    height: int,
    width: int,
    tallest: int,
    metadata: SourceMetadata | None = None,
    overwrite: bool = False,
) -> None:
    """Write a picture given as blocks. Rows that are not whole yet wait on disk, in the target's folder, so that memory
    does not grow with the width; but for PNG.

    The target appears when it is whole: on any error, Ctrl-C included, nothing is left and an older target stays.

    Args:
        path: .tif/.tiff (256 px tiles, deflate, BigTIFF above 3.9 GB), .png (at most 2^28 px, held in memory),
            .npy (height, width, 3) or .zarr (plain Zarr v3 array (c, y, x), chunks of 1024 px, zstd).
        blocks: from left to right, rows of them from the top; those of a row have the same rows. A generator is closed.
        height: rows of the picture.
        width: columns of the picture.
        tallest: the most rows of a block.
        metadata: pixel size, ICC profile and georeference **of the picture written** (not of what it was cut from);
            each is stored where the format has a place for it and can express it.
        overwrite: replace an existing target.

    Raises:
        UsageError: unknown suffix, too large for PNG, or blocks that do not make up the picture.
        TargetExistsError: the target exists and ``overwrite`` is false.
        MissingFileError: the target's folder does not exist.
        StorageError: the operating system refused to write.
    """
    try:
        target = check_write(path, height=height, width=width, overwrite=overwrite)
        with staged(target, overwrite=overwrite, folder=target.suffix.lower() == ".zarr") as part:
            _write(target.suffix.lower(), part, blocks, height, width, tallest, metadata)
    finally:
        if isinstance(blocks, Generator):
            blocks.close()


def write_rows(
    path: str | os.PathLike[str],
    rows: Iterable[npt.NDArray[Any]],
    *,
    height: int,
    width: int,
    metadata: SourceMetadata | None = None,
    overwrite: bool = False,
) -> None:
    """Write a picture given as consecutive arrays of full rows; all else is as with :func:`write_blocks`.

    Args:
        path: see :func:`write_blocks`.
        rows: arrays (h_i, width, 3) uint8 from the top, whose heights sum to ``height``. A generator is closed.
        height: rows of the picture.
        width: columns of the picture.
        metadata: see :func:`write_blocks`.
        overwrite: replace an existing target.

    Raises: as :func:`write_blocks`.
    """
    try:
        blocks = as_blocks(rows, height=height, width=width)
        write_blocks(path, blocks, height=height, width=width, tallest=PIECE, metadata=metadata, overwrite=overwrite)
    finally:
        if isinstance(rows, Generator):
            rows.close()


def _write(
    suffix: str,
    part: Path,
    blocks: Iterator[Block],
    height: int,
    width: int,
    tallest: int,
    metadata: SourceMetadata | None,
) -> None:
    icc_profile = None if metadata is None else metadata.icc_profile
    pixel_size_um = None if metadata is None else metadata.pixel_size_um
    if pixel_size_um is not None and not all(_LEAST_UM <= size <= _MOST_UM for size in pixel_size_um):
        pixel_size_um = None

    @contextmanager
    def arriving(band: int) -> Iterator[Arriving]:
        picture = Arriving(blocks, height=height, width=width, tallest=tallest, band=band, folder=part.parent)
        with closing(picture):
            yield picture
            picture.finish()

    if suffix in (".tif", ".tiff"):
        from tilecodec.sink import tiff
        from tilecodec.sink.geotiff import geotiff_tags

        place = None if metadata is None else metadata.georeference
        tags = () if place is None else geotiff_tags(place, height=height, width=width)
        with arriving(tiff.BAND) as picture:
            tiff.write_tiff(part, picture, icc_profile=icc_profile, pixel_size_um=pixel_size_um, tags=tags)
    elif suffix == ".png":
        from tilecodec.sink import png

        with arriving(png.BAND) as picture:
            png.write_png(part, picture, icc_profile=icc_profile, pixel_size_um=pixel_size_um)
    elif suffix == ".npy":
        from tilecodec.sink import npy

        with arriving(npy.BAND) as picture:
            npy.write_npy(part, picture)
    else:
        from tilecodec.sink import zarr_array

        with arriving(zarr_array.BAND) as picture:
            zarr_array.write_zarr(part, picture)
