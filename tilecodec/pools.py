"""Threads that start with the first call, and anew in a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Pool:
    """Runs calls on worker threads. Safe to use from several threads.

    Args:
        workers: how many calls run at a time.
        name: of the threads.
    """

    def __init__(self, workers: int, name: str) -> None:
        self._workers, self._name = workers, name
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """Threads do not survive a fork, and another thread may have held the lock at that moment."""
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Like :meth:`concurrent.futures.Executor.submit`. Calls begin in the order they came."""
        with self._lock:
            return self._started().submit(call, *args, **kwargs)

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
