"""How many bytes the authors' release would write for the same symbols: its tables, its coder, and no container.

Nothing here takes part in coding. It gives golden traces their sizes, something to hold the integer mode against.

Source: CompressAI 1.2.8, which the release codes with: a table of each Gaussian scale out to a tail of 1e-9, 16-bit
frequencies, and a 64-bit rANS (Duda, arXiv 1311.2540) that moves 32 bits at a time. What lies beyond a table is an
escape and the excess in units of 4 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from tilecodec.entropy.tables import PRECISION, CDFTable
from tilecodec.models.bottleneck import rounded_cdf

TAIL: Final = 1e-9
_UNIT: Final = 4
"""Bits of a piece of what exceeds a table."""
_LEAST: Final = 1 << 31
"""The coder's state is never below this; a word is moved out of it before it would reach 2^63."""
_WORD: Final = 32
_END_BYTES: Final = 8


def release_gaussian_table(scales: NDArray[np.float32]) -> CDFTable:
    """The release's table of zero-mean Gaussians.

    Args:
        scales: of each row, ascending, (rows,).
    """
    scale = torch.from_numpy(scales)[:, None]
    reach = (scale[:, 0] * -NormalDist().inv_cdf(TAIL / 2)).ceil().int()
    far = (torch.arange(2 * int(reach.max()) + 1) - reach[:, None]).abs()
    high, low = (0.5 * torch.erfc(-math.sqrt(0.5) * ((side - far) / scale)) for side in (0.5, -0.5))
    mass, outside = (high - low).numpy(), (2 * low[:, :1]).numpy()
    cdf = np.zeros((len(scales), mass.shape[1] + 2), np.int32)
    for row, n in enumerate((2 * reach + 1).tolist()):
        cdf[row, : n + 2] = rounded_cdf(np.append(mass[row, :n], outside[row]))
    return CDFTable(cdf, (2 * reach + 3).int().numpy(), -reach.numpy())


def release_bytes(table: CDFTable, rows: NDArray[Any], symbols: NDArray[Any]) -> int:
    """Length of the release's string for some symbols, bytes.

    Args:
        table: of the integers that it codes with.
        rows: the table's row of each symbol, in the order of coding, (n,) integers.
        symbols: likewise.
    """
    state, words = _LEAST, 0
    for begin, frequency, bits in reversed(list(_pieces(table, rows, symbols))):
        if state >= (_LEAST >> bits << _WORD) * frequency:
            state >>= _WORD
            words += 1
        state = (state // frequency << bits) + state % frequency + begin
    return _END_BYTES + words * (_WORD // 8)


def _pieces(table: CDFTable, rows: NDArray[Any], symbols: NDArray[Any]) -> Iterator[tuple[int, int, int]]:
    """What is coded: first of its states, number of them, and bits of their sum."""
    highest = (1 << _UNIT) - 1
    for row, symbol in zip(rows.tolist(), symbols.tolist(), strict=True):
        bins, at = int(table.length[row]) - 2, symbol - int(table.offset[row])
        inside = 0 <= at < bins
        excess = -2 * at - 1 if at < 0 else 2 * (at - bins)
        begin, end = table.cdf[row, (at if inside else bins) :][:2].tolist()
        yield begin, end - begin, PRECISION
        if inside:
            continue
        units = -(-excess.bit_length() // _UNIT)
        for count in (*[highest] * (units // highest), units % highest):
            yield count, 1, _UNIT
        for unit in range(units):
            yield excess >> unit * _UNIT & highest, 1, _UNIT
