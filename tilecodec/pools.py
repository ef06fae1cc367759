"""Threads that start with the first call; and what becomes of threads, and of what they were doing, in a fork."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Forgetful(Protocol):
    """What must begin anew in a fork."""

    def _forget(self) -> None: ...


_FORGETFUL: weakref.WeakSet[Forgetful] = weakref.WeakSet()


def forget_in_forks(thing: Forgetful) -> None:
    """Has something forget, in every fork of the process, what does not survive it: work under way, locks, threads."""
    _watch_forks()
    _FORGETFUL.add(thing)


@cache
def _watch_forks() -> None:
    """Once per process, from when there is something to forget."""

    def forget() -> None:
        for thing in _FORGETFUL:
            thing._forget()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)


class ForkLock:
    """A reentrant lock that is free in a fork of the process, whoever held it at that moment: ``with lock.now:``.

    It is not entered itself: Ctrl-C within ``__enter__`` or ``__exit__`` written in Python would leave it held.
    """

    def __init__(self) -> None:
        self._forget()
        forget_in_forks(self)

    def _forget(self) -> None:
        self.now = threading.RLock()


class Pool:
    """Runs calls on worker threads. Safe to use from several threads.

    Args:
        workers: how many calls run at a time.
        name: of the threads.
    """

    def __init__(self, workers: int, name: str) -> None:
        self._workers, self._name = workers, name
        self._forget()
        forget_in_forks(self)

    def _forget(self) -> None:
        """Threads do not survive a fork, and another thread may have held the lock at that moment."""
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Like :meth:`concurrent.futures.Executor.submit`. Calls begin in the order they came."""
        with self._lock:
            pool = self._started()
            try:
                return pool.submit(call, *args, **kwargs)
            except BaseException:
                # a thread that was about to start, when Ctrl-C came, is known to nobody who would end it
                pool.shutdown(wait=False)
                self._pool = None
                raise

    @property
    def workers(self) -> int:
        """How many calls run at a time."""
        with self._lock:
            self._started()
            return self._workers

    def _started(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = self._start()
        return self._pool

    def _start(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._workers, thread_name_prefix=self._name)
