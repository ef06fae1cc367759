"""Pixels out: bands of rows into a TIFF, PNG, NPY or Zarr target, chosen by its suffix."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tilecodec.errors import UsageError
from tilecodec.sink.rows import reband
from tilecodec.sink.target import check_target, staged

if TYPE_CHECKING:
    import numpy.typing as npt

    from tilecodec.source import SourceMetadata

__all__ = ["SUFFIXES", "check_write", "write_rows"]

SUFFIXES: Final = (".tif", ".tiff", ".png", ".npy", ".zarr")
"""Suffixes that can be written, in lower case."""


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


def write_rows(
    path: str | os.PathLike[str],
    rows: Iterable[npt.NDArray[Any]],
    *,
    height: int,
    width: int,
    metadata: SourceMetadata | None = None,
    overwrite: bool = False,
) -> None:
    """Write a picture given as consecutive bands; memory is bounded by a band of at most 1024 rows, but for PNG.

    The target appears when it is whole: on any error, Ctrl-C included, nothing is left and an older target stays.

    Args:
        path: .tif/.tiff (256 px tiles, deflate, BigTIFF above 3.9 GB), .png (at most 2^28 px, held in memory),
            .npy (height, width, 3) or .zarr (plain Zarr v3 array (c, y, x), chunks of 1024 px, zstd).
        rows: arrays (h_i, width, 3) uint8 from the top, whose heights sum to ``height``. A generator is closed.
        height: rows of the picture.
        width: columns of the picture.
        metadata: pixel size, ICC profile and georeference **of the picture written** (not of what it was cut from);
            each is stored where the format has a place for it.
        overwrite: replace an existing target.

    Raises:
        UsageError: unknown suffix, too large for PNG, or bands that do not make up the picture.
        TargetExistsError: the target exists and ``overwrite`` is false.
        MissingFileError: the target's folder does not exist.
        StorageError: the operating system refused to write.
    """
    try:
        target = check_write(path, height=height, width=width, overwrite=overwrite)
        with staged(target, overwrite=overwrite, folder=target.suffix.lower() == ".zarr") as part:
            _write(target.suffix.lower(), part, rows, height, width, metadata)
    finally:
        if isinstance(rows, Generator):
            rows.close()


def _write(
    suffix: str,
    part: Path,
    rows: Iterable[npt.NDArray[Any]],
    height: int,
    width: int,
    metadata: SourceMetadata | None,
) -> None:
    icc_profile = None if metadata is None else metadata.icc_profile
    pixel_size_um = None if metadata is None else metadata.pixel_size_um
    if suffix in (".tif", ".tiff"):
        from tilecodec.sink import tiff
        from tilecodec.sink.geotiff import geotiff_tags

        place = None if metadata is None else metadata.georeference
        tags = () if place is None else geotiff_tags(place, height=height, width=width)
        bands = reband(rows, height=height, width=width, band=tiff.BAND)
        tiff.write_tiff(
            part,
            bands,
            height=height,
            width=width,
            icc_profile=icc_profile,
            pixel_size_um=pixel_size_um,
            tags=tags,
        )
    elif suffix == ".png":
        from tilecodec.sink import png

        bands = reband(rows, height=height, width=width, band=png.BAND)
        png.write_png(part, bands, height=height, width=width, icc_profile=icc_profile, pixel_size_um=pixel_size_um)
    elif suffix == ".npy":
        from tilecodec.sink import npy

        npy.write_npy(part, reband(rows, height=height, width=width, band=npy.BAND), height=height, width=width)
    else:
        from tilecodec.sink import zarr_array

        bands = reband(rows, height=height, width=width, band=zarr_array.BAND)
        zarr_array.write_zarr(part, bands, height=height, width=width)
