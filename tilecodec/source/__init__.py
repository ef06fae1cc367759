"""Pixels in: any supported picture, read as RGB windows in bounded memory."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tilecodec.errors import MissingFileError, SourceError, StorageError
from tilecodec.source.base import Georeference, Source, SourceMetadata

if TYPE_CHECKING:
    import dask.array
    import zarr

__all__ = ["Georeference", "Source", "SourceMetadata", "open_source"]

FORMATS: Final = (
    "TIFF (BigTIFF, OME-TIFF, GeoTIFF, SVS, NDPI), PNG, JPEG, WebP, JPEG XL, AVIF, JPEG 2000, BMP, Zarr, OME-Zarr"
)
_TIFF: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_source(
    source: str | os.PathLike[str] | NDArray[Any] | dask.array.Array | zarr.Array[Any],
    *,
    memory_bytes: int = 64 << 20,
) -> Source:
    """Open a picture for reading by windows.

    Args:
        source: path of a picture file or a Zarr folder; or an array: numpy, dask or zarr, uint8, (height, width),
            (height, width, 1 | 3 | 4) or (1 | 3 | 4, height, width).
        memory_bytes: bound of decoded pixels kept in memory; what a band of windows needs beyond that is kept in an
            unlinked temporary file (in ``TMPDIR``).

    Returns:
        The source; close it, or use it in a ``with`` statement.

    Raises:
        MissingFileError: nothing at that path.
        SourceError: not a picture, or a damaged one.
        UnsupportedPixelsError: dtype, band count, colours or compression without support.
        StorageError: the file cannot be read.
    """
    if isinstance(source, np.ndarray):
        from tilecodec.source.arrays import ArraySource

        return ArraySource(source)
    if _is_instance(source, "dask.array", "Array"):
        from tilecodec.source.arrays import open_dask

        return open_dask(source, memory_bytes=memory_bytes)  # type: ignore[arg-type]
    if _is_instance(source, "zarr", "Array"):
        from tilecodec.source.zarr import open_zarr

        return open_zarr(source, memory_bytes=memory_bytes)  # type: ignore[arg-type]
    if isinstance(source, str | os.PathLike):
        return _open_path(Path(source), memory_bytes)
    raise SourceError("not a source", got=type(source).__name__, expected="a path, or a numpy, dask or zarr array")


def _is_instance(value: object, module: str, name: str) -> bool:
    """Whether a value is of a class whose module is imported only if the caller did so."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))


def _open_path(path: Path, memory_bytes: int) -> Source:
    name = str(path)
    try:
        kind_of_file = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise MissingFileError("there is no such file", got=name, expected=FORMATS) from error
    except OSError as error:
        raise StorageError("the picture cannot be read", got=error.strerror, where=name) from error
    if stat.S_ISDIR(kind_of_file):
        from tilecodec.source.zarr import MARKS, open_zarr_path

        if not any((path / mark).is_file() for mark in MARKS):
            raise SourceError("a folder that is not Zarr", expected=f"one of {', '.join(MARKS)} in it", where=name)
        return open_zarr_path(path, memory_bytes=memory_bytes)
    if not stat.S_ISREG(kind_of_file):
        raise SourceError("not a regular file", expected=FORMATS, where=name)
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise StorageError("the picture cannot be read", got=error.strerror, where=name) from error
    if start.startswith(_TIFF):
        from tilecodec.source.tiff import open_tiff

        return open_tiff(path, memory_bytes=memory_bytes)

    from tilecodec.source.headers import picture_kind

    kind = picture_kind(start)
    if kind is None:
        got = f"a file that begins {start[:8]!r}" if start else "an empty file"
        raise SourceError("not a picture that is read here", got=got, expected=FORMATS, where=name)
    from tilecodec.source.image import open_picture

    return open_picture(path, kind, memory_bytes=memory_bytes)
