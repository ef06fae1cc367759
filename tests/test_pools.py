"""Threads and locks across forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from tilecodec.pools import ForkLock

HELD = """
import os, signal, threading
from tilecodec.pools import ForkLock

lock, held, over = ForkLock(), threading.Event(), threading.Event()

def hold():
    with lock.now:
        held.set()
        over.wait()

threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    with lock.now, lock.now:
        os._exit(7)
_, status = os.waitpid(child, 0)
over.set()
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_lock_that_a_thread_holds_is_free_in_a_fork() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "7"


def test_a_lock_keeps_other_threads_out() -> None:
    lock, count = ForkLock(), 0

    def work() -> None:
        nonlocal count
        for _ in range(2000):
            with lock.now:
                seen = count
                count = seen + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 8000


SEGMENTS = """
import os, signal, threading
import numpy as np
from tilecodec.source.cache import SegmentCache

first, second = (np.full((64, 64, 3), value, np.uint8) for value in (1, 2))

def part(cache, key, pixels):
    return int(cache.block(key, lambda: pixels, 0, 64, 0, 64).max())

def in_a_fork(call):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(call())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

on_disk = SegmentCache(slot_bytes=first.nbytes, memory_bytes=1)
print(part(on_disk, "a", first), in_a_fork(lambda: part(on_disk, "b", second)), part(on_disk, "a", second))

waiting, begun, over = SegmentCache(slot_bytes=first.nbytes), threading.Event(), threading.Event()

def slow():
    begun.set()
    over.wait()
    return first

thread = threading.Thread(target=lambda: waiting.block("a", slow, 0, 64, 0, 64))
thread.start()
begun.wait()
print(in_a_fork(lambda: part(waiting, "a", second)))
over.set()
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_segments_of_a_source_are_not_shared_with_a_fork() -> None:
    done = subprocess.run([sys.executable, "-c", SEGMENTS], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["1", "2", "1", "2"]
