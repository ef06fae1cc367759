"""Bands: full-width groups of rows, cut to the height a format wants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecodec.errors import UsageError

Pixels = npt.NDArray[np.uint8]


def reband(rows: Iterable[npt.NDArray[Any]], *, height: int, width: int, band: int) -> Iterator[Pixels]:
    """Cut consecutive bands of any heights into bands of ``band`` rows; the last one may be lower.

    Args:
        rows: arrays (h_i, width, 3) uint8, h_i >= 0, in order from the top; the h_i sum to ``height``.
        height: rows in all.
        width: columns.
        band: rows per yielded band, 1 or more.

    Yields:
        (band, width, 3) uint8, C-contiguous if the input was. A band is a view of an input array or of a buffer that
        is used again: use it before asking for the next one. One band is held besides the input array at hand.

    Raises:
        UsageError: an array has another shape or dtype, or the heights do not sum to ``height``.
    """
    # made before the first array: among what its making leaves behind it would keep the allocator from using that again
    buffer: Pixels = np.empty((min(band, height), width, 3), np.uint8)
    held = done = 0
    for piece in rows:
        if piece.ndim != 3 or piece.shape[1:] != (width, 3) or piece.dtype != np.uint8:
            got = f"{piece.shape} {piece.dtype}"
            raise UsageError("band has the wrong shape or dtype", got=got, expected=f"(rows, {width}, 3) uint8")
        done += piece.shape[0]
        if done > height:
            raise UsageError("bands have more rows than the picture", got=done, expected=height)
        start = 0
        if held:
            start = min(band - held, piece.shape[0])
            buffer[held : held + start] = piece[:start]
            held += start
            if held == band:
                yield buffer
                held = 0
        while piece.shape[0] - start >= band:
            yield piece[start : start + band]
            start += band
        if start < piece.shape[0]:
            held = piece.shape[0] - start
            buffer[:held] = piece[start:]
    if done != height:
        raise UsageError("bands have fewer rows than the picture", got=done, expected=height)
    if held:
        yield buffer[:held]
