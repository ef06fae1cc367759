"""Which chunks of a level are stored, without asking for each of those that are not."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tilecodec.container.metadata import LevelLayout
from tilecodec.container.store import ByteStore


class Presence:
    """What a level's folders list.

    Args:
        store: the level's.
        layout: the level's.
    """

    def __init__(self, store: ByteStore, layout: LevelLayout) -> None:
        self._store, self._layout = store, layout
        names = store.names("c/0")
        self._rows: Collection[int] = range(layout.chunk_rows) if names is None else _numbers(names)

    def rows(self) -> Sequence[int]:
        """Rows of chunks that may be stored, ascending; see :meth:`columns`."""
        return _within(self._rows, self._layout.chunk_rows)

    def columns_in_order(self, row: int) -> Sequence[int]:
        """What :meth:`columns` returns, ascending, without what lies outside of the level."""
        return _within(self.columns(row), self._layout.chunk_cols)

    def columns(self, row: int) -> Collection[int]:
        """Columns of a row of chunks that may be stored: those that are, or all where the store cannot list."""
        if row not in self._rows:
            return ()
        names = self._store.names(f"c/0/{row}")
        return range(self._layout.chunk_cols) if names is None else _numbers(names)


def _numbers(names: frozenset[str]) -> frozenset[int]:
    """The names that are whole numbers as keys write them."""
    return frozenset(int(name) for name in names if name.isdecimal() and len(name) < 12 and str(int(name)) == name)


def _within(numbers: Collection[int], count: int) -> Sequence[int]:
    return numbers if isinstance(numbers, range) else sorted(n for n in numbers if n < count)
