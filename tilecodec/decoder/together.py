"""Work that takes less time for several things at once than for one after another."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from tilecodec.entropy.codec import POOL
from tilecodec.pools import forget_in_forks

T = TypeVar("T")
R = TypeVar("R")


class Together(Generic[T, R]):
    """Does things in the pool, those that wait together. Safe to use from several threads."""

    def __init__(self) -> None:
        self._forget()
        forget_in_forks(self)

    def _forget(self) -> None:
        """Nobody in a fork waits for what was to be done."""
        self._lock = threading.Lock()
        self._waiting: deque[tuple[T, Future[R]]] = deque()

    def submit(self, thing: T, work: Callable[[Sequence[T]], Sequence[R | Exception]], most: int) -> Future[R]:
        """The thing's result, to come.

        Args:
            thing: to be done.
            work: gives each thing's result, or what is to be raised in its place; the same for all things.
            most: things at once. Fewer are taken where others of the pool's threads could do their share.
        """
        future: Future[R] = Future()
        workers = POOL.workers
        with self._lock:
            POOL.submit(self._next, work, workers, most)  # first: for each thing that waits there is a call to come
            self._waiting.append((thing, future))
        return future

    def _next(self, work: Callable[[Sequence[T]], Sequence[R | Exception]], workers: int, most: int) -> None:
        """Does those that have waited longest."""
        with self._lock:
            share = -(-len(self._waiting) // workers)
            taken = [self._waiting.popleft() for _ in range(min(share, most))]
        if not taken:
            return
        try:
            results = work([thing for thing, _ in taken])
        except BaseException as error:
            for _, future in taken:
                future.set_exception(error)
            raise
        for (_, future), result in zip(taken, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
