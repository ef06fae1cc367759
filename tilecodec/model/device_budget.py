"""A budget for a GPU's memory: how many windows run side by side on it.

    device_memory  >=  weights + windows x window

``weights`` are the network's as loaded; ``window`` is the estimate of :mod:`tilecodec.model.footprint` for one window,
with the libraries' scratch space; as many ``windows`` run side by side as fit, at least one. What the driver keeps for
any process that uses the device, some hundred MiB, is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilecodec.errors import NotEnoughMemoryError


@dataclass(frozen=True, kw_only=True, slots=True)
class DevicePlan:
    """What a budget allows on a device; bytes."""

    device: str
    budget: int
    weights: int
    window: int
    windows: int
    """Windows side by side, at most."""

    def __str__(self) -> str:
        mib = {name: getattr(self, name) / 2**20 for name in ("budget", "weights", "window")}
        return (
            f"device memory {mib['budget']:.0f} MiB of {self.device}: {mib['weights']:.0f} of weights, "
            f"{self.windows} x {mib['window']:.0f} windows"
        )


def plan_device(budget: int, *, device: str, weights: int, window: int, workers: int, what: str) -> DevicePlan:
    """Divides a device's budget.

    Args:
        budget: bytes that weights and windows may take on the device.
        device: its name.
        weights: bytes of the loaded network.
        window: bytes of one window.
        workers: the most windows that run side by side.
        what: the work, for the error.

    Raises:
        NotEnoughMemoryError: not even one window fits beside the weights; it names the least budget that works.
    """
    if budget < weights + window:
        raise NotEnoughMemoryError(
            f"the device memory budget is too small for {what}",
            got=f"{budget / 2**20:.0f} MiB",
            expected=f"at least {-(-(weights + window) // (1 << 20))} MiB",
            where="device_memory",
            hint=f"{weights / 2**20:.0f} MiB of it are the weights on {device}",
        )
    windows = min(workers, (budget - weights) // window)
    return DevicePlan(device=device, budget=budget, weights=weights, window=window, windows=windows)
