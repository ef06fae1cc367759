"""Tiles that could not be decoded where the caller asked to go on without them."""

from __future__ import annotations

from typing import Final

from tilecodec.errors import TileError
from tilecodec.pools import ForkLock

KEPT: Final = 10_000
"""Errors of a level that are kept; all are counted."""


class FailedTiles:
    """The failed tiles of a level: a bit for each tile, and the first errors. Thread-safe."""

    def __init__(self, tiles: int) -> None:
        self._bits = bytearray(-(-tiles // 8))
        self._errors: dict[int, TileError] = {}
        self._lock = ForkLock()
        self.count = 0

    def add(self, number: int, error: TileError) -> None:
        """Notes that a tile failed, once.

        Args:
            number: the tile's place in its level, row by row.
            error: what is wrong with it. Its traceback, whose frames hold the tile's bytes, is let go.
        """
        error = error.with_traceback(None)
        with self._lock.now:
            if number in self:
                return
            self._bits[number // 8] |= 1 << number % 8
            self.count += 1
            if len(self._errors) < KEPT:
                self._errors[number] = error

    def __contains__(self, number: int) -> bool:
        return bool(self._bits[number // 8] >> number % 8 & 1)

    @property
    def errors(self) -> list[TileError]:
        """The errors that are kept, in the order of the tiles."""
        with self._lock.now:
            return [self._errors[number] for number in sorted(self._errors)]
