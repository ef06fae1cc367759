"""The process's memory: its peak, and how the C allocator gives it back."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

KEEP_BYTES = 512 << 20
"""Freed memory that the allocator may hold on to."""


def peak_memory_bytes() -> int:
    """Peak resident memory of this process so far, bytes (0 where the platform does not tell)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@cache
def keep_freed_memory() -> bool:
    """Lets glibc keep up to 512 MiB of freed memory instead of returning each block to the system at once.

    Network activations are blocks of some ten megabytes, made and freed thousands of times; mapping each anew costs
    up to a third of the time of a CPU run. Threads share one arena, because those that glibc makes for threads return
    large blocks whatever the thresholds are. The peak does not change. Done once per process, before threads start.

    Returns:
        Whether the allocator took it (it is glibc's).
    """
    mmap_threshold, trim_threshold, arena_max = -3, -1, -8  # M_MMAP_THRESHOLD ... of malloc.h
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((mmap_threshold, 256 << 20), (trim_threshold, KEEP_BYTES), (arena_max, 1))
    return all(mallopt(*option) for option in wanted)
