"""Write a plain Zarr v3 array (c, y, x), chunk by chunk, readable without tilecodec."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import zarr
from zarr.codecs import BytesCodec, ZstdCodec

from tilecodec.sink.rows import Arriving

BAND: Final = 1024
"""Chunk side; a band is one row of chunks, so every chunk is written once."""


def write_zarr(path: Path, picture: Arriving, *, attributes: dict[str, Any] | None = None) -> None:
    """Write a picture as one array (3, height, width) of codecs bytes and zstd.

    Args:
        path: the folder.
        picture: its pixels.
        attributes: JSON values stored with the array.
    """
    height, width = picture.height, picture.width
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
    for y, end in picture.bands(BAND):
        for x in range(0, width, BAND):
            right = min(x + BAND, width)
            array[:, y:end, x:right] = picture.read(y, end, x, right).transpose(2, 0, 1)
