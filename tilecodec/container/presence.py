"""Which chunks of a level are stored, without asking for each of those that are not."""

from __future__ import annotations

from collections.abc import Collection

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

    def columns(self, row: int) -> Collection[int]:
        """Columns of a row of chunks that may be stored: those that are, or all where the store cannot list."""
        if row not in self._rows:
            return ()
        names = self._store.names(f"c/0/{row}")
        return range(self._layout.chunk_cols) if names is None else _numbers(names)


def _numbers(names: frozenset[str]) -> frozenset[int]:
    """The names that are whole numbers as keys write them."""
    return frozenset(int(name) for name in names if name.isdecimal() and len(name) < 12 and str(int(name)) == name)
