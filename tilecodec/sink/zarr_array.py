"""Write a plain Zarr v3 array (c, y, x), band by band, readable without tilecodec."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import zarr
from zarr.codecs import BytesCodec, ZstdCodec

from tilecodec.sink.rows import Pixels

BAND: Final = 1024
"""Chunk side; a band is one row of chunks, so every chunk is written once."""


def write_zarr(
    path: Path, bands: Iterator[Pixels], *, height: int, width: int, attributes: dict[str, Any] | None = None
) -> None:
    """Write bands (BAND, width, 3) uint8, the last one lower, as one array (3, height, width) of codecs bytes and zstd.

    Args:
        path: the folder.
        bands: in order from the top.
        height: rows.
        width: columns.
        attributes: JSON values stored with the array.
    """
    array = zarr.create_array(
        store=str(path),
        shape=(3, height, width),
        dtype="uint8",
        chunks=(3, min(BAND, height), min(BAND, width)),
        serializer=BytesCodec(),
        compressors=[ZstdCodec(level=3)],
        fill_value=0,
        zarr_format=3,
        dimension_names=("c", "y", "x"),
        attributes=attributes,
    )
    y = 0
    for band in bands:
        array[:, y : y + len(band), :] = band.transpose(2, 0, 1)
        y += len(band)
