"""Values that take work: each worked out once for all who ask meanwhile, and remembered within a bound of bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from tilecodec.decoder.cache import BoundedCache
from tilecodec.entropy.codec import POOL
from tilecodec.pools import forget_in_forks

K = TypeVar("K")
V = TypeVar("V")


class JobCache(Generic[K, V]):
    """Results of work done in the pool. Safe to use from several threads.

    Args:
        limit_bytes: bound of the results that are remembered, the least recently used dropped first.
        size: bytes of a result.
    """

    def __init__(self, limit_bytes: int, size: Callable[[V], int]) -> None:
        self._size = size
        self._results: BoundedCache[K, V] = BoundedCache(limit_bytes)
        self._forget()
        forget_in_forks(self)

    def _forget(self) -> None:
        """Work under way does not go on in a fork."""
        self._under_way: dict[K, Future[V]] = {}
        self._lock = threading.RLock()  # a job that is done at once tells so within the lock

    def get(self, key: K) -> V | None:
        """A remembered result."""
        return self._results.get(key)

    def has(self, key: K) -> bool:
        """Whether the result is remembered, or under way."""
        with self._lock:
            return key in self._under_way or key in self._results

    def demote(self, key: K) -> None:
        """Makes a result the next to be dropped."""
        self._results.demote(key)

    def request(self, key: K, work: Callable[[], V]) -> Callable[[], V]:
        """Starts the work unless its result is remembered or under way; the returned call waits for the result.

        The call raises what the work raised, which is not remembered.
        """
        found = self._results.get(key)
        if found is not None:
            result = found
            return lambda: result
        with self._lock:
            future = self._under_way.get(key)
            if future is None:
                future = self._under_way[key] = POOL.submit(self._do, key, work)
                future.add_done_callback(lambda _: self._done(key))
        return future.result

    def _do(self, key: K, work: Callable[[], V]) -> V:
        result = work()
        self._results.put(key, result, self._size(result))
        return result

    def _done(self, key: K) -> None:
        with self._lock:
            self._under_way.pop(key, None)
