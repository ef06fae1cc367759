"""Giving back the memory of a mapped file's parts once they have been copied out of it."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

from torch import Tensor

_DONT_NEED = 4
"""``MADV_DONTNEED`` of Linux."""


class MappedFile:
    """A file that this process has mapped, as a source of tensors that are read once.

    Pages of a mapped file count as the process's own memory from when they are touched until the system takes them
    back, which it does late. :meth:`release` gives them back at once; whoever reads there again reads the file again.
    Only pages that the system lists under the file's name are given back, so other memory is never touched.
    """

    def __init__(self, path: Path) -> None:
        self._ranges = _mappings(path)
        self._advise = _madvise() if self._ranges else None

    def release(self, tensor: Tensor) -> None:
        """Gives back the pages that hold nothing but this tensor; does nothing for other memory."""
        if self._advise is None or tensor.device.type != "cpu":
            return
        begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        begin, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if begin < end and any(first <= begin and end <= last for first, last in self._ranges):
            self._advise(begin, end - begin, _DONT_NEED)


def _mappings(path: Path) -> list[tuple[int, int]]:
    """Address ranges that are mapped from a file, each the first byte and the one after the last."""
    if not sys.platform.startswith("linux"):
        return []
    name = os.fsencode(path.resolve())
    try:
        lines = Path("/proc/self/maps").read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        parts = line.split(None, 5)
        if len(parts) == 6 and parts[5] == name:
            first, last = parts[0].split(b"-")
            found.append((int(first, 16), int(last, 16)))
    return found


def _madvise() -> Callable[[int, int, int], int] | None:
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return cast(Callable[[int, int, int], int], advise)
