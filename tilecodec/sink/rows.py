"""A picture that arrives in blocks, to be read in pieces of any size as soon as their rows are whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecodec.errors import UsageError
from tilecodec.tiles.rolling import Block, RollingRows

Pixels = npt.NDArray[np.uint8]

PIECE = 256
"""Rows of an array that are taken at a time."""


class Arriving:
    """The pixels of a picture, of which the last rows are kept.

    Args:
        blocks: from left to right, rows of them from the top; those of a row have the same rows. They cover the
            picture once.
        height: rows of the picture.
        width: its columns.
        tallest: the most rows of a block.
        band: the most rows that are read at a time; what was read, and what lies above it, is not read again.
        folder: where what waits is kept, if it is much.
    """

    def __init__(
        self,
        blocks: Iterable[Block],
        *,
        height: int,
        width: int,
        tallest: int,
        band: int,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.height, self.width = height, width
        self._blocks = iter(blocks)
        self._rows = RollingRows(height, width, tallest + band, folder=folder)
        self._ready = 0

    def bands(self, rows: int) -> Iterator[tuple[int, int]]:
        """The picture from the top in bands of so many rows, the last one lower: first row and end, once they can be
        read.

        Raises:
            UsageError: the blocks do not make up the picture.
        """
        for y in range(0, self.height, rows):
            end = min(y + rows, self.height)
            while self._ready < end:
                self._take()
            yield y, end

    def finish(self) -> None:
        """To be called when all is read.

        Raises:
            UsageError: there are more blocks.
        """
        if next(self._blocks, None) is not None:
            raise UsageError("bands have more rows than the picture", got="more", expected=self.height)

    def _take(self) -> None:
        block = next(self._blocks, None)
        if block is None:
            raise UsageError("bands have fewer rows than the picture", got=self._ready, expected=self.height)
        self._rows.write(block.y, block.x, block.pixels)
        if block.x + block.pixels.shape[1] == self.width:
            self._ready = block.y + block.pixels.shape[0]

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        """(y1 - y0, x1 - x0, 3) uint8 of the band at hand."""
        return self._rows.read(y0, y1, x0, x1)

    def close(self) -> None:
        """Frees what is kept."""
        self._rows.close()


def as_blocks(rows: Iterable[npt.NDArray[Any]], *, height: int, width: int) -> Iterator[Block]:
    """Consecutive arrays of full rows, of any heights, as blocks of at most :data:`PIECE` rows.

    Args:
        rows: arrays (h_i, width, 3) uint8, h_i >= 0, in order from the top; the h_i sum to ``height``.
        height: rows in all.
        width: columns.

    Raises:
        UsageError: an array has another shape or dtype, or there are more rows than ``height``.
    """
    done = 0
    for piece in rows:
        if piece.ndim != 3 or piece.shape[1:] != (width, 3) or piece.dtype != np.uint8:
            got = f"{piece.shape} {piece.dtype}"
            raise UsageError("band has the wrong shape or dtype", got=got, expected=f"(rows, {width}, 3) uint8")
        if done + piece.shape[0] > height:
            raise UsageError("bands have more rows than the picture", got=done + piece.shape[0], expected=height)
        for y in range(0, piece.shape[0], PIECE):
            part = piece[y : y + PIECE]
            yield Block(done, 0, part)
            done += part.shape[0]
