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
    with lock:
        held.set()
        over.wait()

threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    with lock, lock:
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
            with lock:
                seen = count
                count = seen + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 8000
