"""Keeps pictures open within a bound of memory, shared by the threads that read crops."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tilecodec.errors import TileCodecError
from tilecodec.source import Source, open_source
from tilecodec.source.base import Pixels
from tilecodec.source.grid import GridSource, Segments
from tilecodec.train.catalogue import Found

TILED_BYTES: Final = 16 << 20
"""Decoded segments that are kept of a picture which is read in parts."""


class _Entry:
    __slots__ = ("cost", "error", "lock", "pins", "source")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pins = 0
        self.source: Source | None = None
        self.error: TileCodecError | None = None
        self.cost = 0


class OpenPictures:
    """Opened pictures by path; the one used longest ago is closed when they take too much.

    Args:
        memory_bytes: bound of decoded pixels. What is in use at the same time is kept beyond it.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self.opened = 0
        """Pictures opened so far, the same one counted again when it is opened again."""

    @contextmanager
    def use(self, picture: Found) -> Iterator[Source]:
        """The picture, opened, for as long as the body runs.

        Raises:
            TileCodecError: it cannot be opened; the same error every time.
        """
        key = str(picture.path)
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            entry.pins += 1
        try:
            with entry.lock:
                if entry.source is None and entry.error is None:
                    self._open(entry, picture)
            if entry.error is not None:
                raise entry.error.with_traceback(None)
            assert entry.source is not None
            yield entry.source
        finally:
            with self._lock:
                entry.pins -= 1
                self._shrink()

    def close(self) -> None:
        """Closes everything."""
        with self._lock:
            for entry in self._entries.values():
                if entry.source is not None:
                    entry.source.close()
            self._entries.clear()

    def _open(self, entry: _Entry, picture: Found) -> None:
        wanted = 4 * picture.height * picture.width if picture.whole else TILED_BYTES
        entry.cost = min(wanted, max(TILED_BYTES, self._memory_bytes // 2))  # more lies in a temporary file
        self.opened += 1
        try:
            entry.source = open_source(picture.path, memory_bytes=entry.cost)
        except TileCodecError as error:
            entry.error, entry.cost = error, 0
            return
        if isinstance(entry.source, GridSource) and not picture.whole:
            entry.source.segments = _Scattered(entry.source.segments)

    def _shrink(self) -> None:
        total = sum(e.cost for e in self._entries.values())
        for key, entry in list(self._entries.items()):
            if total <= self._memory_bytes:
                return
            if entry.pins == 0 and entry.source is not None:
                entry.source.close()
                del self._entries[key]
                total -= entry.cost


class _Scattered:
    """Segments of a picture that is read here and there: no room is made for a band over its whole width."""

    def __init__(self, inner: Segments) -> None:
        self._inner = inner

    def reserve(self, band_bytes: int) -> None:
        """Nothing: the next crop lies elsewhere."""

    def block(self, plane: int, row: int, col: int, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        """Return a part of one segment, (y1 - y0, x1 - x0, s) uint8."""
        return self._inner.block(plane, row, col, y0, y1, x0, x1)

    def close(self) -> None:
        """Drop what is kept."""
        self._inner.close()
