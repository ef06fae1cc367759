"""rANS over integer CDF tables, with an escape for values outside a table.

The stream is one ANS stack of 32-bit words (64-bit state). Symbols are coded in groups; within a group they are
ordered by table row, then by position. After a row's symbols come the values of its escapes, in the same order. The
encoder pushes everything in reverse, so that the decoder pops in this order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import constriction
import numpy as np
from numpy.typing import NDArray

from tilecodec.entropy.tables import CDFTable
from tilecodec.errors import CorruptTileError

ESCAPE_BITS: Final = 16
"""An escaped value is two uniform 16-bit symbols, low half first."""
SYMBOL_LIMIT: Final = (1 << 24) - 1
"""Largest magnitude a symbol may have."""

_UNIFORM: Any = constriction.stream.model.Uniform(1 << ESCAPE_BITS)


@dataclass(frozen=True, slots=True)
class SymbolGroup:
    """Symbols that are coded together."""

    symbols: NDArray[np.int32]
    """(n,)."""
    rows: NDArray[np.integer[Any]]
    """(n,): the table row of each symbol; 8 or 16 bits sort fastest."""
    table: CDFTable


def _grouped(rows: NDArray[np.integer[Any]], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stable order by row, and where each row begins in it."""
    order = np.argsort(rows, kind="stable")
    begins = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])
    return order, begins


def _present(begins: NDArray[np.int64]) -> list[int]:
    """The rows that have symbols, ascending."""
    rows: list[int] = np.flatnonzero(np.diff(begins)).tolist()
    return rows


def _fold(excess: NDArray[np.int64], bins: NDArray[np.int32]) -> NDArray[np.int64]:
    """Bin indexes outside ``0 <= i < bins`` to codes 0, 1, 2, ...: even above the range, odd below."""
    return np.where(excess >= bins, 2 * (excess - bins), -2 * excess - 1)


def _unfold(code: NDArray[np.int64], bins: int) -> NDArray[np.int64]:
    return np.where(code % 2 == 0, code // 2 + bins, -(code + 1) // 2)


def encode_groups(groups: list[SymbolGroup]) -> NDArray[np.uint32]:
    """The compressed words of groups that a decoder reads first to last."""
    coder = constriction.stream.stack.AnsCoder()
    for group in reversed(groups):
        table = group.table
        order, begins = _grouped(group.rows, len(table.length))
        rows = group.rows[order]
        bins, index = table.bins[rows], group.symbols[order].astype(np.int64) - table.offset[rows]
        outside = (index < 0) | (index >= bins)
        code = _fold(index[outside], bins[outside])
        halves = np.stack([code & 0xFFFF, code >> ESCAPE_BITS], axis=1).astype(np.int32).ravel()
        escapes = 2 * np.concatenate([[0], np.cumsum(outside)])[begins]
        index = np.where(outside, bins, index).astype(np.int32)
        for row in reversed(_present(begins)):
            if escapes[row] < escapes[row + 1]:
                coder.encode_reverse(halves[escapes[row] : escapes[row + 1]], _UNIFORM)
            coder.encode_reverse(index[begins[row] : begins[row + 1]], table.models[row])
    words: NDArray[np.uint32] = coder.get_compressed()
    return words


class GroupDecoder:
    """Pops groups of symbols off a compressed stream, first to last."""

    def __init__(self, words: NDArray[np.uint32], where: str) -> None:
        self._where = where
        if len(words) and words[-1] == 0:
            raise CorruptTileError("the entropy-coded stream ends in a zero word", where=where, reason="stream-form")
        self._coder = constriction.stream.stack.AnsCoder(words)

    def decode(self, rows: NDArray[np.integer[Any]], table: CDFTable) -> NDArray[np.int32]:
        """The next group's symbols, (n,) int32, given each one's table row."""
        order, begins = _grouped(rows, len(table.length))
        ordered = np.zeros(len(rows), dtype=np.int64)
        for row in _present(begins):
            begin, end = begins[row], begins[row + 1]
            index = self._coder.decode(table.models[row], int(end - begin))
            ordered[begin:end] = index
            bins = int(table.bins[row])
            escaped = index == bins
            if escaped.any():
                halves = self._coder.decode(_UNIFORM, 2 * int(escaped.sum())).astype(np.int64).reshape(-1, 2)
                ordered[begin:end][escaped] = _unfold(halves[:, 0] + (halves[:, 1] << ESCAPE_BITS), bins)
        ordered += table.offset[rows[order]]
        symbols = np.empty(len(rows), dtype=np.int32)
        symbols[order] = np.clip(ordered, -SYMBOL_LIMIT, SYMBOL_LIMIT)
        return symbols

    def finish(self) -> None:
        """Checks that the stream held nothing more."""
        if not self._coder.is_empty():
            raise CorruptTileError(
                "the entropy-coded stream holds more than its symbols", where=self._where, reason="stream-rest"
            )
