"""Read and write a file at offsets, from any thread, without mapping it into memory."""

from __future__ import annotations

import os
import threading
from typing import IO, Final

import numpy as np

from tilecodec.source.base import Pixels

BATCH: Final = 4 << 20
"""Most bytes read beyond what is asked for in one go."""


class RandomAccessFile:
    """A binary file whose reads and writes name their offset.

    Args:
        file: opened in binary mode; owned, closed by ``close``.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._fd = file.fileno()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes in the file now."""
        return os.fstat(self._fd).st_size

    def read(self, offset: int, count: int) -> bytearray:
        """Return exactly ``count`` bytes from ``offset``.

        Raises:
            EOFError: the file ends before.
            OSError: the file cannot be read.
        """
        data = bytearray(count)
        self.read_into(offset, memoryview(data))
        return data

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` (bytes) from ``offset``.

        Raises:
            EOFError: the file ends before.
            OSError: the file cannot be read.
        """
        done = 0
        while done < len(target):
            got = self._read_some(offset + done, target[done:])
            if got == 0:
                raise EOFError(f"file ends at byte {offset + done}, {len(target) - done} bytes too early")
            done += got

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` (bytes) at ``offset``.

        Raises:
            OSError: the file cannot be written, for example since the disk is full.
        """
        done = 0
        while done < len(data):
            if hasattr(os, "pwrite"):
                done += os.pwrite(self._fd, data[done:], offset + done)
            else:
                with self._lock:
                    self._file.seek(offset + done)
                    done += self._file.write(data[done:])
                    self._file.flush()

    def _read_some(self, offset: int, target: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._fd, [target], offset)
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(len(target))
        target[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_block(
    file: RandomAccessFile, offset: int, shape: tuple[int, int, int], y0: int, y1: int, x0: int, x1: int
) -> Pixels:
    """Read a part of an array that lies row by row in a file, and little more than that part.

    Args:
        file: where it lies.
        offset: of the array's first byte.
        shape: (h, w, s) of the whole array, uint8.
        y0: first row of the part.
        y1: row after its last.
        x0: first column.
        x1: column after its last.

    Returns:
        (y1 - y0, x1 - x0, s) uint8, C-contiguous.

    Raises:
        EOFError: the file ends before.
        OSError: the file cannot be read.
    """
    _, width, samples = shape
    row_bytes, start, span = width * samples, x0 * samples, (x1 - x0) * samples
    out = np.empty((y1 - y0, span), np.uint8)
    if span == row_bytes:
        file.read_into(offset + y0 * row_bytes, out.reshape(-1).data)
    elif row_bytes <= 2 * span:
        rows = max(1, BATCH // row_bytes)
        for y in range(y0, y1, rows):
            n = min(rows, y1 - y)
            data = np.frombuffer(file.read(offset + y * row_bytes, n * row_bytes), np.uint8)
            out[y - y0 : y - y0 + n] = data.reshape(n, row_bytes)[:, start : start + span]
    else:
        for y in range(y0, y1):
            file.read_into(offset + y * row_bytes + start, out[y - y0].data)
    return out.reshape(y1 - y0, x1 - x0, samples)
