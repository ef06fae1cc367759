"""Keep decoded segments within a bound of bytes: in memory, or in a temporary file where memory is too small.

A window of a wide striped picture touches strips of the whole width, and the next window touches them again. When the
segments of one band of windows fit in memory they are kept there; otherwise they go to an unlinked temporary file, so
that each is decoded once a band while memory stays bounded. Both stores drop the segment used longest ago.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

import numpy as np

from tilecodec.errors import SourceError
from tilecodec.pools import forget_in_forks
from tilecodec.source.base import Pixels
from tilecodec.source.files import RandomAccessFile, read_block

MEMORY_BYTES: Final = 64 << 20
"""Default bound of decoded segments kept in memory."""

logger = logging.getLogger(__name__)


class _Entry:
    """One segment: being decoded, in memory, or in a slot of the file."""

    __slots__ = ("array", "failed", "pins", "ready", "shape", "slot")

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.failed = False
        self.pins = 1
        self.array: Pixels | None = None
        self.slot: int | None = None
        self.shape = (0, 0, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded segment."""
        return self.shape[0] * self.shape[1] * self.shape[2]


class SegmentCache:
    """Decoded segments by key, each decoded by one thread only, safe for any number of threads.

    Args:
        slot_bytes: bytes of the largest segment.
        memory_bytes: bound of the segments kept in memory.
    """

    def __init__(self, *, slot_bytes: int, memory_bytes: int = MEMORY_BYTES) -> None:
        self._slot_bytes = max(1, slot_bytes)
        self._memory_limit = memory_bytes
        self._file_failed = False
        self._slot_limit = 1
        self._use_file = slot_bytes > memory_bytes
        self.decoded = 0
        """Segments decoded so far."""
        self._forget()
        forget_in_forks(self)

    def _forget(self) -> None:
        """Nobody in a fork goes on with what was being decoded, and the file's slots are the other process's."""
        self._lock = threading.RLock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._file: RandomAccessFile | None = None
        self._free: list[int] = []
        self._slots = 0
        self.memory_bytes = 0
        """Bytes of segments kept in memory now."""

    @property
    def file_bytes(self) -> int:
        """Bytes of the temporary file now."""
        return self._slots * self._slot_bytes

    def reserve(self, band_bytes: int) -> None:
        """Make room for the segments of one band, so that the next band still finds those it shares.

        Args:
            band_bytes: bytes of all decoded segments that a band of windows touches.
        """
        with self._lock:
            self._slot_limit = max(self._slot_limit, -(-2 * band_bytes // self._slot_bytes))
            if band_bytes > self._memory_limit:
                self._use_file = True

    def block(self, key: Hashable, decode: Callable[[], Pixels], y0: int, y1: int, x0: int, x1: int) -> Pixels:
        """Return a part of a segment, decoding the segment if it is not kept.

        Args:
            key: the segment's name.
            decode: gives the whole segment, (h, w, s) uint8.
            y0: first row of the part, in the segment.
            y1: row after its last.
            x0: first column.
            x1: column after its last.

        Returns:
            (y1 - y0, x1 - x0, s) uint8; not to be written to.
        """
        while True:
            with self._lock:
                entry = self._entries.get(key)
                first = entry is None
                if entry is None:
                    entry = self._entries[key] = _Entry()
                else:
                    entry.pins += 1
                    self._entries.move_to_end(key)
            try:
                if first:
                    array = self._decode(key, entry, decode)
                    return array[y0:y1, x0:x1]
                entry.ready.wait()
                if not entry.failed:
                    return self._part(entry, y0, y1, x0, x1)
            finally:
                with self._lock:
                    entry.pins -= 1

    def close(self) -> None:
        """Drop all segments and the temporary file."""
        with self._lock:
            self._entries.clear()
            self.memory_bytes = 0
            if self._file is not None:
                self._file.close()
                self._file = None

    def _decode(self, key: Hashable, entry: _Entry, decode: Callable[[], Pixels]) -> Pixels:
        try:
            array = np.ascontiguousarray(decode())
            entry.shape = array.shape
            with self._lock:
                self.decoded += 1
            if not self._to_file(entry, array):
                with self._lock:
                    entry.array = array
                    self.memory_bytes += array.nbytes
        except BaseException:
            entry.failed = True
            with self._lock:
                self._entries.pop(key, None)
            raise
        finally:
            entry.ready.set()
        with self._lock:
            self._shrink_memory(keep=entry)
        return array

    def _part(self, entry: _Entry, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        if entry.array is not None:
            return entry.array[y0:y1, x0:x1]
        file = self._file
        if file is None or entry.slot is None:
            raise SourceError("the source is closed")
        return read_block(file, entry.slot * self._slot_bytes, entry.shape, y0, y1, x0, x1)

    def _to_file(self, entry: _Entry, array: Pixels) -> bool:
        """Write a segment to a slot; False: it belongs in memory, or the file cannot take it."""
        with self._lock:
            if not self._use_file or self._file_failed or array.nbytes > self._slot_bytes:
                return False
            try:
                if self._file is None:
                    self._file = RandomAccessFile(tempfile.TemporaryFile(prefix="tilecodec-", buffering=0))  # noqa: SIM115
            except OSError as error:
                return self._give_up(error)
            file, slot = self._file, self._take_slot()
        try:
            file.write(slot * self._slot_bytes, array.reshape(-1).data)
        except OSError as error:
            with self._lock:
                self._free.append(slot)
                return self._give_up(error)
        entry.slot = slot
        return True

    def _give_up(self, error: OSError) -> bool:
        self._file_failed = True
        logger.warning("temporary file unusable (%s): wide segments will be decoded more than once", error)
        return False

    def _take_slot(self) -> int:
        """Return a slot to write to: a free one, a new one, or that of the segment used longest ago."""
        if not self._free and self._slots >= self._slot_limit:
            for key, entry in self._entries.items():
                if entry.slot is not None and entry.pins == 0:
                    del self._entries[key]
                    return entry.slot
        if self._free:
            return self._free.pop()
        self._slots += 1
        return self._slots - 1

    def _shrink_memory(self, keep: _Entry) -> None:
        while self.memory_bytes > self._memory_limit:
            kept = (key for key, entry in self._entries.items() if entry.array is not None and entry is not keep)
            oldest = next(kept, None)
            if oldest is None:
                return
            self.memory_bytes -= self._entries.pop(oldest).nbytes
