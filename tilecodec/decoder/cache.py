"""A cache bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

from tilecodec.pools import forget_in_forks

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Least recently used values, up to a number of bytes. Thread-safe."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._forget()
        forget_in_forks(self)

    def _forget(self) -> None:
        """Another thread may have been in the middle of a change."""
        self._lock = threading.Lock()
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.bytes = 0

    def __contains__(self, key: K) -> bool:
        with self._lock:
            return key in self._items

    def get(self, key: K) -> V | None:
        """The value, made the most recent; None where it is not held."""
        with self._lock:
            found = self._items.get(key)
            if found is None:
                return None
            self._items.move_to_end(key)
            return found[0]

    def peek(self, key: K) -> V | None:
        """The value; it stays as old as it is."""
        with self._lock:
            found = self._items.get(key)
            return None if found is None else found[0]

    def put(self, key: K, value: V, size_bytes: int) -> None:
        """Holds a value, dropping the oldest beyond the limit."""
        with self._lock:
            if key in self._items:
                self.bytes -= self._items.pop(key)[1]
            self._items[key] = (value, size_bytes)
            self.bytes += size_bytes
            while self.bytes > self._limit and self._items:
                self.bytes -= self._items.popitem(last=False)[1][1]

    def demote(self, key: K) -> None:
        """Makes a value the next to be dropped."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key, last=False)

    def clear(self) -> None:
        """Drops everything."""
        with self._lock:
            self._items.clear()
            self.bytes = 0
