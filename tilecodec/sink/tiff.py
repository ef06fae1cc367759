"""Write a .tif file: tiled, deflate with predictor, BigTIFF when large, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import tifffile

from tilecodec.sink.rows import Arriving, Pixels

TILE: Final = 256
"""Tile side; a band is one row of tiles."""
BAND: Final = TILE
BIG_BYTES: Final = 3_900_000_000
"""Raw bytes above which BigTIFF is written: classic TIFF ends at 2^32."""
LEVEL: Final = 1
"""Of deflate: the usual 6 takes twice the time for 2 % fewer bytes."""
_BUFFER_BYTES: Final = 4 << 20
"""Raw bytes of tiles compressed together by threads."""

Tag = tuple[int, int, int, object, bool]
"""Code, data type, count, value, once: an extra tag as tifffile takes it."""


def write_tiff(
    path: Path,
    picture: Arriving,
    *,
    icc_profile: bytes | None = None,
    pixel_size_um: tuple[float, float] | None = None,
    tags: tuple[Tag, ...] = (),
) -> None:
    """Write an RGB picture.

    Args:
        path: the file.
        picture: its pixels, in bands of :data:`BAND` rows.
        icc_profile: stored as it is.
        pixel_size_um: (y, x) in micrometres, stored as resolution per centimetre.
        tags: further tags, such as those of GeoTIFF.
    """
    height, width = picture.height, picture.width
    resolution = None
    if pixel_size_um is not None:
        resolution = (1e4 / pixel_size_um[1], 1e4 / pixel_size_um[0])
    with tifffile.TiffWriter(path, bigtiff=height * width * 3 > BIG_BYTES) as writer:
        writer.write(
            _tiles(picture),
            shape=(height, width, 3),
            dtype=np.uint8,
            photometric="rgb",
            planarconfig="contig",
            tile=(TILE, TILE),
            compression="zlib",
            compressionargs={"level": LEVEL},
            predictor=True,
            resolution=resolution,
            resolutionunit=None if resolution is None else "CENTIMETER",
            iccprofile=icc_profile,
            metadata=None,
            software="tilecodec",
            extratags=tags,
            buffersize=_BUFFER_BYTES,
        )


def _tiles(picture: Arriving) -> Iterator[Pixels]:
    """Yield (TILE, TILE, 3) row by row; tiles at the right and lower border repeat the picture's edge."""
    for y, end in picture.bands(BAND):
        for x in range(0, picture.width, TILE):
            tile = picture.read(y, end, x, min(x + TILE, picture.width))
            rows, columns = TILE - tile.shape[0], TILE - tile.shape[1]
            yield np.pad(tile, ((0, rows), (0, columns), (0, 0)), mode="edge") if rows or columns else tile
