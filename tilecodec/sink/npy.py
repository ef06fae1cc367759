"""Write a .npy file, band by band."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from tilecodec.sink.rows import Arriving

BAND: Final = 16


def write_npy(path: Path, picture: Arriving) -> None:
    """Write a picture as one array (height, width, 3) uint8, format version 1.0."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (picture.height, picture.width, 3)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.writelines(picture.read(y, end, 0, picture.width).data for y, end in picture.bands(BAND))
