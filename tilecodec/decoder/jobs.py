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

    def request(self, key: K, work: Callable[[], V], enough: Callable[[V], bool] = lambda _: True) -> Callable[[], V]:
        """Starts the work unless its result is remembered or under way; the returned call waits for the result.

        The call raises what the work raised, which is not remembered.

        Args:
            key: of the result.
            work: gives it.
            enough: whether a result, which others may have asked for, will do. If not, the work is done all the same,
                and what it gives has to do.
        """
        return self.join(key, lambda: POOL.submit(self._do, key, work), enough)

    def join(
        self, key: K, start: Callable[[], Future[V]], enough: Callable[[V], bool] = lambda _: True
    ) -> Callable[[], V]:
        """:meth:`request` of work that is started some other way, and calls :meth:`remember`."""
        found = self._results.get(key)
        if found is not None and enough(found):
            result = found
            return lambda: result
        first, mine = self._started(key, start)
        if mine:
            return first.result  # which holds on to nothing that the work was made from

        def wait() -> V:
            future, mine = first, False
            while True:
                result = future.result()
                if mine or enough(result):
                    return result
                known = self._results.get(key)
                if known is not None and enough(known):
                    return known
                future, mine = self._started(key, start)

        return wait

    def _started(self, key: K, start: Callable[[], Future[V]]) -> tuple[Future[V], bool]:
        """The work under way, and whether it was started here."""
        with self._lock:
            future = self._under_way.get(key)
            if future is not None and not future.done():
                return future, False
            future = self._under_way[key] = start()
            future.add_done_callback(lambda done: self._done(key, done))
            return future, True

    def remember(self, key: K, result: V) -> None:
        """Keeps a result, within the bound."""
        self._results.put(key, result, self._size(result))

    def _do(self, key: K, work: Callable[[], V]) -> V:
        result = work()
        self.remember(key, result)
        return result

    def _done(self, key: K, future: Future[V]) -> None:
        with self._lock:
            if self._under_way.get(key) is future:
                del self._under_way[key]
