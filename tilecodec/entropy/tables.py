"""Integer CDF tables: built once when a model is released, stored with its weights, never recomputed by a reader."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import constriction
import numpy as np
from numpy.typing import NDArray

from tilecodec.errors import ModelError

PRECISION: Final = 16
"""Bits: the frequencies of a row sum to 2^16."""
SCALES: Final = 64
SCALE_MIN: Final = 0.11
SCALE_MAX: Final = 256.0


def scale_table() -> NDArray[np.float64]:
    """The 64 Gaussian scales, log-spaced from 0.11 to 256 (float64, ascending). Source: CompressAI's default."""
    return np.exp(np.linspace(math.log(SCALE_MIN), math.log(SCALE_MAX), SCALES))


@dataclass(frozen=True, eq=False)
class CDFTable:
    """Rows of integer cumulative distributions; the last bin of each row is the escape."""

    cdf: NDArray[np.int32]
    """(rows, longest + 1): cumulative frequencies, 0 first, 65536 at ``length - 1``, zero beyond."""
    length: NDArray[np.int32]
    """(rows,): entries in use of each row: bins + 2, at least 3."""
    offset: NDArray[np.int32]
    """(rows,): the symbol of each row's first bin."""

    def __post_init__(self) -> None:
        parts = (self.cdf, self.length, self.offset)
        shaped = [a.dtype for a in parts] == [np.dtype(np.int32)] * 3 and self.cdf.ndim == 2 and self.cdf.size > 0
        if not shaped or not self.length.shape == self.offset.shape == (len(self.cdf),):
            got = [f"{a.dtype} {a.shape}" for a in parts]
            raise ModelError("a CDF table has another shape", got=got, expected="int32 (rows, n)", where="tables")
        rows = np.arange(len(self.length))
        fits = (self.length >= 3) & (self.length <= self.cdf.shape[1])
        if not fits.all() or (self.cdf[:, 0] != 0).any() or (self.cdf[rows, self.length - 1] != 1 << PRECISION).any():
            raise ModelError("a CDF table is malformed", expected=f"rows from 0 to {1 << PRECISION}", where="tables")
        for row, n in enumerate(self.length):
            if (np.diff(self.cdf[row, :n].astype(np.int64)) < 1).any():
                raise ModelError("a CDF table has an empty bin", expected="every bin at least 1", where=f"row {row}")

    @cached_property
    def bins(self) -> NDArray[np.int32]:
        """(rows,): regular bins of each row, without the escape."""
        return self.length - 2

    @cached_property
    def models(self) -> list[Any]:
        """One constriction model per row.

        constriction turns weights w into 24-bit frequencies ``1 + floor(w (2^24 - n) / sum(w))``. Given
        ``w = 256 f - 1`` for integer frequencies f that sum to 2^16, the sum is ``2^24 - n`` itself, all arithmetic is
        exact in float64, and the coder uses exactly ``256 f``.
        """
        family = constriction.stream.model.Categorical
        models = []
        for row, n in enumerate(self.length):
            frequency = np.diff(self.cdf[row, :n]).astype(np.float64)
            models.append(family(256.0 * frequency - 1.0, perfect=False))
        return models


def quantise_pmf(pmf: NDArray[np.float64]) -> NDArray[np.int64]:
    """Probabilities to integer frequencies that are at least 1 and sum to 65536 (float64 (n,) to int64 (n,))."""
    total = 1 << PRECISION
    room = total - len(pmf)
    frequency: NDArray[np.int64] = 1 + np.floor(pmf / pmf.sum() * room).astype(np.int64)
    frequency[int(np.argmax(frequency))] += total - int(frequency.sum())
    return frequency


def table_from_pmfs(pmfs: list[NDArray[np.float64]], offsets: list[int]) -> CDFTable:
    """Rows of probabilities (the escape's last) to a table."""
    longest = max(len(p) for p in pmfs)
    cdf = np.zeros((len(pmfs), longest + 1), dtype=np.int32)
    for row, pmf in enumerate(pmfs):
        cdf[row, 1 : len(pmf) + 1] = np.cumsum(quantise_pmf(pmf))
    return CDFTable(cdf, np.array([len(p) + 1 for p in pmfs], np.int32), np.array(offsets, np.int32))


def gaussian_table(scales: NDArray[np.floating[Any]] | None = None, *, least_reach: int = 2) -> CDFTable:
    """Zero-mean Gaussians, out to about five scales, the rest in the escape.

    Args:
        scales: the scale of each row, (rows,), positive; :func:`scale_table` unless given.
        least_reach: every row has bins for symbols up to this magnitude. A bin costs a 65536th of the probability; a
            symbol in the escape, 32 bits more than in a bin.
    """
    pmfs, offsets = [], []
    for scale in (scale_table() if scales is None else scales).tolist():
        reach = min(max(least_reach, math.ceil(5 * scale)), 1023)
        edges = (np.arange(-reach, reach + 2) - 0.5) / (scale * math.sqrt(2))
        cumulative = np.array([0.5 * math.erfc(-e) for e in edges])
        inside = np.diff(cumulative)
        pmfs.append(np.append(inside, max(1.0 - inside.sum(), 0.0)))
        offsets.append(-reach)
    return table_from_pmfs(pmfs, offsets)
