"""Who may use the memory: networks over many windows side by side, as many as fit."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Final

from tilecodec.pools import forget_in_forks

PATIENCE: Final = 64
"""Rooms after which one more may run side by side than after it was lowered; twice as many each time it was."""


class MemoryGate:
    """Lets work run side by side for as long as its memory fits: the rest waits. Safe to use from several threads.

    What is there is asked for when nothing runs; work that is alone always runs.

    Args:
        available: bytes that may be taken, None where nobody knows.
        most: how many may run side by side, None: any number.
    """

    def __init__(self, available: Callable[[], int | None], most: int | None = None) -> None:
        self._available, self._most, self._recovers = available, most, most is None
        self._patience, self._calm = PATIENCE, 0
        self._forget()
        forget_in_forks(self)

    def _forget(self) -> None:
        """The work of a process does not go on in its forks, and its locks may be held there for good."""
        self._changed = threading.Condition()
        self._taken, self._running = 0, 0
        self._limit: int | None = None

    @contextlib.contextmanager
    def room(self, size_bytes: int) -> Iterator[int | None]:
        """Runs the block once there is room for it.

        Args:
            size_bytes: what it will take.

        Yields:
            How many may run side by side, as it was when the block began. Where that is 1, the block is alone.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._fits(size_bytes))
            if not self._running:
                self._limit = self._available()
            self._running += 1
            self._taken += size_bytes
            self._calm += 1
            if self._most is not None and self._recovers and self._calm > self._patience:
                self._most, self._calm = self._most + 1, 0
                self._changed.notify_all()
            most = self._most
        try:
            yield most
        finally:
            with self._changed:
                self._running -= 1
                self._taken -= size_bytes
                self._changed.notify_all()

    def lower(self, seen: int | None) -> None:
        """Lets half as many run side by side as run now, at least one. To be called within a room.

        One more is let through again after a while: what took the memory may be gone. The while doubles each time.

        Args:
            seen: what the room gave. Nothing happens where the number has been lowered since: of several that fail
                together the first one counts.
        """
        with self._changed:
            if self._most is None or (seen is not None and self._most >= seen):
                self._most = max(1, self._running // 2)
                self._patience, self._calm = 2 * self._patience, 0

    def _fits(self, size_bytes: int) -> bool:
        if not self._running:
            return True
        few = self._most is None or self._running < self._most
        return few and (self._limit is None or self._taken + size_bytes <= self._limit)
