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
    about a third of the time of a CPU run. The peak does not change. Done once per process.

    Returns:
        Whether the allocator took it (it is glibc's).
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_threshold, 256 << 20)) and bool(mallopt(trim_threshold, KEEP_BYTES))
