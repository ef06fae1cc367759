"""Cutting padded windows out of pixels that can be read in part."""

from __future__ import annotations

import itertools
from typing import Final, Protocol

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tilecodec.errors import SourceError
from tilecodec.tiles.grid import Window

SAMPLES: Final = 4
"""Down and across a picture."""
SAMPLE_SIDE: Final = 64
"""Pixels."""


class Readable(Protocol):
    """Anything with a size whose windows can be read."""

    @property
    def height(self) -> int:
        """Pixel rows."""
        ...

    @property
    def width(self) -> int:
        """Pixel columns."""
        ...

    def read(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
        """(y1 - y0, x1 - x0, 3) uint8."""
        ...


def read_padded(pixels: Readable, window: Window) -> NDArray[np.uint8]:
    """A window of the padded picture: what lies below or right of the true picture repeats its last row or column.

    Args:
        pixels: the true picture.
        window: inside the padded picture; it meets the true picture.

    Returns:
        uint8 (window.height, window.width, 3), C-contiguous.
    """
    inside = window.clip(pixels.height, pixels.width)
    block = pixels.read(inside.y0, inside.y1, inside.x0, inside.x1)
    below, right = window.y1 - inside.y1, window.x1 - inside.x1
    if below or right:
        block = np.pad(block, ((0, below), (0, right), (0, 0)), mode="edge")
    return np.ascontiguousarray(block)


def halve(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """2x2 means, rounded half up; an odd last row or column is repeated.

    Args:
        block: uint8 (h, w, 3).

    Returns:
        uint8 (ceil(h / 2), ceil(w / 2), 3).
    """
    if block.shape[0] % 2 or block.shape[1] % 2:
        block = np.pad(block, ((0, block.shape[0] % 2), (0, block.shape[1] % 2), (0, 0)), mode="edge")
    rows = block[0::2].astype(np.uint16) + block[1::2]
    return ((rows[:, 0::2] + rows[:, 1::2] + 2) >> 2).astype(np.uint8)


def sample_checks(pixels: Readable) -> list[int]:
    """CRC32Cs of small parts all over a picture, which tell it from another one; 0 for a part that is damaged."""
    height, width = min(pixels.height, SAMPLE_SIDE), min(pixels.width, SAMPLE_SIDE)
    found = []
    for row, col in itertools.product(range(SAMPLES), repeat=2):
        y = (pixels.height - height) * row // (SAMPLES - 1)
        x = (pixels.width - width) * col // (SAMPLES - 1)
        try:
            found.append(google_crc32c.value(pixels.read(y, y + height, x, x + width).tobytes()))
        except SourceError:  # which is told when the encoder comes there
            found.append(0)
    return found
