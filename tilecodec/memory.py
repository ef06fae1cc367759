"""The process's memory: its peak, what is left, and how the C allocator gives it back."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from functools import cache
from pathlib import Path

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


def used_memory_bytes() -> int:
    """Resident memory of this process, bytes, after what the C allocator holds ready for use again was given back.

    Where the platform does not tell, the peak so far.
    """
    give_back_freed_memory()
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return peak_memory_bytes()


def available_memory_bytes() -> int | None:
    """Memory that can be had without swapping, bytes; None where the platform does not tell.

    Linux's estimate for the machine, or what is left of the control group's limit (a container's) where that is less.
    """
    machine = _field(Path("/proc/meminfo"), "MemAvailable:")
    group = Path("/sys/fs/cgroup")
    limit, used = (_number(group / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return machine
    left = max(limit - used + (_field(group / "memory.stat", "inactive_file") or 0), 0)
    return left if machine is None else min(left, machine)


def _number(path: Path) -> int | None:
    """The whole number a file of the kernel holds; None where there is none (``max``: no limit)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _field(path: Path, name: str) -> int | None:
    """A named number of a kernel's table, in bytes; None where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == name and words[1].isdigit():
            return int(words[1]) * (1024 if words[-1] == "kB" else 1)
    return None


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


def give_back_freed_memory() -> None:
    """Returns the whole free pages of glibc's heap to the system; does nothing with another C library.

    To be called now and then in work that goes on for long: blocks of many sizes that come and go leave ever more
    holes, and with them the heap would grow with the size of the work. What is needed again is taken anew, which costs
    some ten milliseconds.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def own_pages(size_bytes: int) -> mmap.mmap:
    """Zeroed memory outside of the allocator's, which goes back to the system when it is let go.

    For what stays long among much that comes and goes: in the heap it would leave holes too small for other use.

    Args:
        size_bytes: at least 1.
    """
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size_bytes)
