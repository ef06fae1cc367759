"""A memory budget: how much of the work runs side by side, and how much is kept, so that the process stays within it.

    budget  >=  used + RESERVE + tiles + windows x window + cache

``used`` is what the process takes when the work begins, interpreter, libraries and weights included; ``tiles`` are the
decoded latents and what entropy decoding takes on every thread (decode), or the chunks under way (encode), that the
work cannot do without; ``window`` is the estimate of :mod:`tilecodec.model.footprint` for one window, less what its
thread has for tiles already; ``windows`` run side by side, at least one. What is then left goes to the cache of decoded
windows, up to what was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tilecodec.errors import NotEnoughMemoryError
from tilecodec.memory import used_memory_bytes

RESERVE: Final = 96 << 20
"""Bytes for what is small or cannot be counted: pages that the allocator cannot use again, compressors, indexes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """What a budget allows; bytes."""

    budget: int
    used: int
    tiles: int
    window: int
    windows: int
    """Windows side by side."""
    cache: int

    @property
    def left(self) -> int:
        """What the work may take besides."""
        return self.budget - self.used - RESERVE - self.tiles - self.windows * self.window - self.cache

    def __str__(self) -> str:
        mib = {name: getattr(self, name) / 2**20 for name in ("budget", "used", "tiles", "window", "cache")}
        return (
            f"memory {mib['budget']:.0f} MiB: {mib['used']:.0f} in use, {RESERVE / 2**20:.0f} in reserve, "
            f"{mib['tiles']:.0f} of tiles, {self.windows} x {mib['window']:.0f} windows, {mib['cache']:.0f} cache"
        )


def plan_memory(
    budget: int, *, tiles: int, window: int, workers: int, cache: int = 0, used: int | None = None, what: str
) -> MemoryPlan:
    """Divides a budget.

    Args:
        budget: bytes that the process may take in all.
        tiles: bytes that the work cannot do without.
        window: bytes of one window.
        workers: the most windows that run side by side.
        cache: bytes of decoded windows that were asked for.
        used: bytes in use; None: those of this process.
        what: the work, for the error.

    Raises:
        NotEnoughMemoryError: not even one window fits; it names the least budget that works.
    """
    taken = used_memory_bytes() if used is None else used
    left = budget - taken - RESERVE - tiles
    if left < window:
        least = taken + RESERVE + tiles + window
        raise NotEnoughMemoryError(
            f"the memory budget is too small for {what}",
            got=f"{budget / 2**20:.0f} MiB",
            expected=f"at least {-(-least // (1 << 20))} MiB",
            where="memory",
            hint=f"{taken / 2**20:.0f} MiB of it are taken by the process as it is, weights included",
        )
    windows = min(workers, left // window)
    return MemoryPlan(
        budget=budget,
        used=taken,
        tiles=tiles,
        window=window,
        windows=windows,
        cache=min(cache, left - windows * window),
    )
