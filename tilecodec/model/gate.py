"""Who may use the memory: networks over many windows side by side, as many as fit."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import cache


class MemoryGate:
    """Lets work run side by side for as long as its memory fits: the rest waits. Safe to use from several threads.

    What is there is asked for when nothing runs; work that is alone always runs.

    Args:
        available: bytes that may be taken, None where nobody knows.
    """

    def __init__(self, available: Callable[[], int | None]) -> None:
        self._available = available
        self._forget()
        _watch_forks()
        _GATES.add(self)

    def _forget(self) -> None:
        """The work of a process does not go on in its forks, and its locks may be held there for good."""
        self._changed = threading.Condition()
        self._taken, self._running = 0, 0
        self._limit: int | None = None

    @contextlib.contextmanager
    def room(self, size_bytes: int) -> Iterator[None]:
        """Runs the block once there is room for it.

        Args:
            size_bytes: what it will take.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._fits(size_bytes))
            if not self._running:
                self._limit = self._available()
            self._running += 1
            self._taken += size_bytes
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._taken -= size_bytes
                self._changed.notify_all()

    def _fits(self, size_bytes: int) -> bool:
        return not self._running or self._limit is None or self._taken + size_bytes <= self._limit


_GATES: weakref.WeakSet[MemoryGate] = weakref.WeakSet()


@cache
def _watch_forks() -> None:
    """Once per process, from when there is a gate."""

    def forget() -> None:
        for gate in _GATES:
            gate._forget()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)
