"""Write a .npy file, band by band."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tilecodec.sink.rows import Pixels

BAND = 256


def write_npy(path: Path, bands: Iterator[Pixels], *, height: int, width: int) -> None:
    """Write bands (h_i, width, 3) uint8 as one array (height, width, 3), format version 1.0."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (height, width, 3)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.writelines(np.ascontiguousarray(band).data for band in bands)
