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
        (band, width, 3) uint8, C-contiguous if the input was. A band may be a view of an input array: use it before
        asking for the next one. At most one band is held besides the input array at hand.

    Raises:
        UsageError: an array has another shape or dtype, or the heights do not sum to ``height``.
    """
    pending: list[Pixels] = []
    held = done = 0
    for piece in rows:
        if piece.ndim != 3 or piece.shape[1:] != (width, 3) or piece.dtype != np.uint8:
            got = f"{piece.shape} {piece.dtype}"
            raise UsageError("band has the wrong shape or dtype", got=got, expected=f"(rows, {width}, 3) uint8")
        done += piece.shape[0]
        if done > height:
            raise UsageError("bands have more rows than the picture", got=done, expected=height)
        start = 0
        while piece.shape[0] - start >= band - held:
            stop = start + band - held
            pending.append(piece[start:stop])
            yield _joined(pending)
            pending, held, start = [], 0, stop
        if start < piece.shape[0]:
            # A copy, as the producer may use its array again for the next band.
            pending.append(piece[start:].copy())
            held += piece.shape[0] - start
    if done != height:
        raise UsageError("bands have fewer rows than the picture", got=done, expected=height)
    if pending:
        yield _joined(pending)


def _joined(pieces: list[Pixels]) -> Pixels:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
