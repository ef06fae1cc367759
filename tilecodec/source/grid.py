"""Read windows of a picture that is stored as a grid of segments: tiles, strips, chunks, or one whole."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tilecodec.source.base import Pixels, SourceMetadata, check_window, paint
from tilecodec.source.cache import MEMORY_BYTES, SegmentCache

BAND_ROWS: Final = 2176
"""Rows of the band of windows that is provided for: 2048 and a halo of 64 on both sides."""

Edges = NDArray[np.int64]
"""(n + 1,) rising: segment i spans edges[i] to edges[i + 1] of the picture."""
Decode = Callable[[int, int, int], Pixels]
"""(plane, row, col) → (h, w, s) uint8; the segment may be larger than its place in the picture, never smaller."""


def even_edges(length: int, step: int) -> Edges:
    """Return the edges of segments of one size, the last clipped to the picture."""
    return np.append(np.arange(0, length, step, dtype=np.int64), length)


class Segments(Protocol):
    """Where segments come from."""

    def reserve(self, band_bytes: int) -> None:
        """Make room for a band of segments of so many decoded bytes."""

    def block(self, plane: int, row: int, col: int, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        """Return a part of one segment, (y1 - y0, x1 - x0, s) uint8."""

    def close(self) -> None:
        """Give back what is held."""


class DecodedSegments:
    """Segments that can only be decoded whole, kept in a bounded cache.

    Args:
        decode: decodes one.
        segment_bytes: bytes of the largest, decoded.
        memory_bytes: bound of what is kept in memory.
    """

    def __init__(self, decode: Decode, *, segment_bytes: int, memory_bytes: int = MEMORY_BYTES) -> None:
        self._decode = decode
        self.cache = SegmentCache(slot_bytes=segment_bytes, memory_bytes=memory_bytes)

    def reserve(self, band_bytes: int) -> None:
        """Make room for a band of segments of so many decoded bytes."""
        self.cache.reserve(band_bytes)

    def block(self, plane: int, row: int, col: int, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        """Return a part of one segment, (y1 - y0, x1 - x0, s) uint8; not to be written to."""
        return self.cache.block((plane, row, col), lambda: self._decode(plane, row, col), y0, y1, x0, x1)

    def close(self) -> None:
        """Drop what is kept."""
        self.cache.close()


class GridSource:
    """A picture stored as a grid of segments; see ``Source``.

    Args:
        name: path or kind, for messages.
        y_edges: rows where segments begin, and the height.
        x_edges: columns where segments begin, and the width.
        segments: gives their pixels.
        segment_bytes: bytes of the largest segment, decoded.
        metadata: what is known beyond the pixels.
        planes: 1: a segment holds all bands; 3: it holds one, and plane p is band p of RGB.
        lut: (256, 3) uint8 colours of one-band samples; None: grey.
    """

    def __init__(
        self,
        *,
        name: str,
        y_edges: Edges,
        x_edges: Edges,
        segments: Segments,
        segment_bytes: int,
        metadata: SourceMetadata,
        planes: int = 1,
        lut: Pixels | None = None,
    ) -> None:
        self.name = name
        self.height, self.width = int(y_edges[-1]), int(x_edges[-1])
        self.metadata = metadata
        self.segments = segments
        self._y_edges, self._x_edges = y_edges, x_edges
        self._planes, self._lut = planes, lut
        self._row_bytes = (len(x_edges) - 1) * planes * segment_bytes
        self._typical_rows = float(np.median(np.diff(y_edges)))
        self._band_rows = 0
        self._closing = ExitStack()
        self._closing.callback(segments.close)

    @property
    def segment_count(self) -> int:
        """Segments that are stored for the picture."""
        return (len(self._y_edges) - 1) * (len(self._x_edges) - 1) * self._planes

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call something more when the source is closed."""
        self._closing.callback(callback)

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        """Return one window, (y1 - y0, x1 - x0, 3) uint8; see ``Source.read``."""
        check_window(self, y0, y1, x0, x1)
        self._provide(y1 - y0)
        out = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        for row in _touched(self._y_edges, y0, y1):
            top, low, high = _part(self._y_edges, row, y0, y1)
            for col in _touched(self._x_edges, x0, x1):
                left, first, last = _part(self._x_edges, col, x0, x1)
                target = out[low - y0 : high - y0, first - x0 : last - x0]
                place = (low - top, high - top, first - left, last - left)
                if self._planes == 1:
                    paint(self.segments.block(0, row, col, *place), target, self._lut)
                else:
                    for plane in range(self._planes):
                        target[..., plane] = self.segments.block(plane, row, col, *place)[..., 0]
        return out

    def close(self) -> None:
        """Give back files and memory."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _provide(self, rows: int) -> None:
        """Let the segments know how much the tallest band so far touches."""
        rows = max(rows, BAND_ROWS)
        if rows > self._band_rows:
            self._band_rows = rows
            grid_rows = min(len(self._y_edges) - 1, int(-(-rows // self._typical_rows)) + 1)
            self.segments.reserve(grid_rows * self._row_bytes)


def _touched(edges: Edges, start: int, stop: int) -> range:
    first = int(np.searchsorted(edges, start, side="right")) - 1
    last = int(np.searchsorted(edges, stop, side="left"))
    return range(first, last)


def _part(edges: Edges, index: int, start: int, stop: int) -> tuple[int, int, int]:
    """Return where a segment begins, and the part of start..stop inside it."""
    begin, end = int(edges[index]), int(edges[index + 1])
    return begin, max(start, begin), min(stop, end)
