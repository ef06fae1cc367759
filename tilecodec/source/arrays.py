"""Arrays as sources: numpy as it is, dask and other chunked arrays chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from tilecodec.errors import SourceError
from tilecodec.source.axes import Axes, axes_by_shape
from tilecodec.source.base import (
    WHOLE_LIMIT,
    Pixels,
    SourceMetadata,
    check_pixels,
    check_window,
    dropped_band,
    paint,
)
from tilecodec.source.cache import MEMORY_BYTES
from tilecodec.source.grid import DecodedSegments, Edges, GridSource

if TYPE_CHECKING:
    import dask.array

LEAST_SIDE: Final = 512
"""Smaller chunks are fetched several at a time, in blocks of at least this side."""

Fetch = Callable[[tuple[slice, ...]], NDArray[Any]]
"""An index of the array → its elements."""


class ArraySource:
    """A numpy array; see ``Source``.

    Args:
        array: (h, w), (h, w, 1 | 3 | 4) or (1 | 3 | 4, h, w) uint8; not copied.

    Raises:
        SourceError: no pixels.
        UnsupportedPixelsError: another dtype or shape.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self.name = "numpy array"
        self._array, self._axes = array, axes_by_shape(array.shape, self.name)
        self.height, self.width = self._axes.height, self._axes.width
        check_pixels(self.name, height=self.height, width=self.width, bands=self._axes.bands, dtype=array.dtype)
        self.metadata = SourceMetadata(properties=dropped_band(self._axes.bands))

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        """Return one window, (y1 - y0, x1 - x0, 3) uint8; see ``Source.read``."""
        check_window(self, y0, y1, x0, x1)
        out = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        paint(self._axes.arrange(self._array[self._axes.index(y0, y1, x0, x1)]), out)
        return out

    def close(self) -> None:
        """Nothing is held but the array."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_dask(array: dask.array.Array, *, memory_bytes: int = MEMORY_BYTES) -> GridSource:
    """Open a dask array; each chunk is computed once or little more, with threads, never the whole array.

    Args:
        array: (h, w), (h, w, 1 | 3 | 4) or (1 | 3 | 4, h, w) uint8.
        memory_bytes: bound of computed chunks kept in memory.

    Raises:
        SourceError: no pixels, unknown or too large chunks.
        UnsupportedPixelsError: another dtype or shape.
    """
    name = "dask array"
    if any(np.isnan(n) for n in array.shape):
        raise SourceError("dask array of unknown shape", got=array.shape, where=name, hint="call compute_chunk_sizes()")
    axes = axes_by_shape(array.shape, name)

    def fetch(index: tuple[slice, ...]) -> NDArray[Any]:
        return np.asarray(array[index].compute(scheduler="threads"))

    return chunked_source(
        name=name,
        axes=axes,
        dtype=array.dtype,
        chunks=(array.chunks[axes.y], array.chunks[axes.x]),
        fetch=fetch,
        metadata=SourceMetadata(properties=dropped_band(axes.bands)),
        memory_bytes=memory_bytes,
    )


def chunked_source(
    *,
    name: str,
    axes: Axes,
    dtype: object,
    chunks: tuple[tuple[int, ...], tuple[int, ...]],
    fetch: Fetch,
    metadata: SourceMetadata,
    memory_bytes: int = MEMORY_BYTES,
) -> GridSource:
    """Make a source of an array that is read in blocks of whole chunks.

    Args:
        name: for messages.
        axes: of the array.
        dtype: of the array.
        chunks: sizes of the chunks along y and along x.
        fetch: reads a part of the array.
        metadata: what is known beyond the pixels.
        memory_bytes: bound of blocks kept in memory.

    Raises:
        SourceError: no pixels, or chunks above ``WHOLE_LIMIT`` pixels.
        UnsupportedPixelsError: another dtype or band count.
    """
    check_pixels(name, height=axes.height, width=axes.width, bands=axes.bands, dtype=dtype)
    y_edges, x_edges = _block_edges(chunks[0]), _block_edges(chunks[1])
    area = int(np.diff(y_edges).max()) * int(np.diff(x_edges).max())
    if area > WHOLE_LIMIT:
        got, expected = f"{area} px", f"at most {WHOLE_LIMIT} px"
        raise SourceError("chunk too large", got=got, expected=expected, where=name, hint="rechunk the array")

    def decode(_plane: int, row: int, col: int) -> Pixels:
        y0, y1, x0, x1 = (int(edge) for edge in (*y_edges[row : row + 2], *x_edges[col : col + 2]))
        block = fetch(axes.index(y0, y1, x0, x1))
        expected = tuple(s.stop - s.start for s in axes.index(y0, y1, x0, x1))
        if block.shape != expected or block.dtype != np.uint8:
            raise SourceError(
                "a chunk is not what the array says",
                got=f"{block.shape} {block.dtype}",
                expected=f"{expected} uint8",
                where=f"{name}, rows {y0}..{y1}, columns {x0}..{x1}",
            )
        return axes.arrange(block)

    segment_bytes = area * axes.read_bands
    return GridSource(
        name=name,
        y_edges=y_edges,
        x_edges=x_edges,
        segments=DecodedSegments(decode, segment_bytes=segment_bytes, memory_bytes=memory_bytes),
        segment_bytes=segment_bytes,
        metadata=metadata,
    )


def _block_edges(sizes: tuple[int, ...]) -> Edges:
    """Return edges of blocks of whole chunks, each block at least ``LEAST_SIDE`` long where chunks are smaller."""
    ends = np.concatenate([[0], np.cumsum(np.array(sizes, np.int64))])
    kept = [0]
    for end, following in pairwise([*ends[1:].tolist(), None]):
        if end - kept[-1] >= LEAST_SIDE or following is None:
            kept.append(end)
    return np.array(kept, np.int64)
