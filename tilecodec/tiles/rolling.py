"""The last rows of a picture that grows downwards: in memory while they are few, else in an unlinked temporary file.

What waits for its row to be whole grows with the picture's width; on disk it does not count against memory.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tilecodec.errors import StorageError

IN_MEMORY: Final = 4 << 20
"""Bytes up to which rows are kept in memory."""
CHANNELS: Final = 3


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """Pixels at a place."""

    y: int
    x: int
    pixels: NDArray[np.uint8]
    """(h, w, 3)."""

    def paint(self, picture: NDArray[np.uint8], y0: int, x0: int) -> None:
        """Puts the pixels into a picture (H, W, 3) whose first pixel lies at ``y0``, ``x0``."""
        rows, cols = self.pixels.shape[:2]
        picture[self.y - y0 : self.y - y0 + rows, self.x - x0 : self.x - x0 + cols] = self.pixels


class RollingRows:
    """The last rows of three values a pixel. They are written from the top down, blocks beside each other in any order.

    Args:
        height: rows in all.
        width: columns.
        kept_rows: rows that are kept; a row overwrites the one that is so many above it.
        dtype: of the values.
        folder: of the temporary file; None: the system's.
    """

    def __init__(
        self,
        height: int,
        width: int,
        kept_rows: int,
        *,
        dtype: DTypeLike = np.uint8,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.height, self.width = height, width
        self._kept, self._dtype, self._folder = min(kept_rows, height), np.dtype(dtype), folder
        self._pixel_bytes = CHANNELS * self._dtype.itemsize
        self._open = ExitStack()
        self._file: IO[bytes] | None = None
        self._array: NDArray[Any] = np.empty((0, 0, CHANNELS), self._dtype)
        if self._kept * width * self._pixel_bytes <= IN_MEMORY:
            self._array = np.empty((self._kept, width, CHANNELS), self._dtype)
        else:
            try:
                with ExitStack() as stack:
                    self._file = stack.enter_context(tempfile.TemporaryFile(prefix="tilecodec-", dir=folder))
                    self._open = stack.pop_all()
            except OSError as error:
                raise self._failed(error) from error

    def write(self, y0: int, x0: int, block: NDArray[Any]) -> None:
        """Puts a block of values at rows ``y0...`` and columns ``x0...``.

        Raises:
            StorageError: the temporary file cannot take them.
        """
        if self._file is None:
            for first, count in self._runs(y0, len(block)):
                at = (y0 + first) % self._kept
                self._array[at : at + count, x0 : x0 + block.shape[1]] = block[first : first + count]
            return
        handle, row_bytes = self._file.fileno(), self.width * self._pixel_bytes
        try:
            for n, line in enumerate(block):
                data, offset = memoryview(line.tobytes()), (y0 + n) % self._kept * row_bytes + x0 * self._pixel_bytes
                while data:
                    written = os.pwrite(handle, data, offset)
                    data, offset = data[written:], offset + written
        except OSError as error:
            raise self._failed(error) from error

    def read(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[Any]:
        """(y1 - y0, x1 - x0, 3) values of rows that are still kept, a copy."""
        out = np.empty((y1 - y0, x1 - x0, CHANNELS), self._dtype)
        if self._file is None:
            for first, count in self._runs(y0, y1 - y0):
                at = (y0 + first) % self._kept
                out[first : first + count] = self._array[at : at + count, x0:x1]
            return out
        handle, row_bytes = self._file.fileno(), self.width * self._pixel_bytes
        for n in range(y1 - y0):
            offset = (y0 + n) % self._kept * row_bytes + x0 * self._pixel_bytes
            data = os.pread(handle, (x1 - x0) * self._pixel_bytes, offset)
            out[n] = np.frombuffer(data, self._dtype).reshape(-1, CHANNELS)
        return out

    def _runs(self, y0: int, count: int) -> list[tuple[int, int]]:
        """Rows from ``y0`` as runs that do not pass the end of what is kept: first row, counted from y0, and length."""
        until = self._kept - y0 % self._kept
        return [(0, min(count, until))] + ([(until, count - until)] if count > until else [])

    def close(self) -> None:
        """Frees the space."""
        self._array = self._array[:0]
        self._open.close()

    def _failed(self, error: OSError) -> StorageError:
        place = tempfile.gettempdir() if self._folder is None else str(Path(self._folder))
        hint = "Set TMPDIR to a folder with more space" if self._folder is None else None
        return StorageError(f"a temporary file failed: {error.strerror}", where=place, hint=hint)
