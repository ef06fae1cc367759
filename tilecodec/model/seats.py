"""The devices that a model runs on: each has a copy of the networks, and a call goes where the fewest are under way."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from tilecodec.model.device import Lanes
from tilecodec.model.ditic import DiTIC
from tilecodec.model.gate import MemoryGate
from tilecodec.pools import forget_in_forks

NetworkWork = Callable[..., Tensor]
"""``(network, *inputs) -> result``: tensors on the network's device."""


@dataclass(frozen=True, eq=False, slots=True)
class Seat:
    """One device."""

    network: DiTIC
    """With its weights there."""
    lanes: Lanes
    budget: MemoryGate
    """What calls may take of the device's memory together."""


class Seats:
    """The devices of a model. Safe to use from several threads.

    Which of them a call runs on changes no bit where they are of one kind.

    Args:
        seats: one or more.
    """

    def __init__(self, seats: Sequence[Seat]) -> None:
        self.all = tuple(seats)
        self._forget()
        forget_in_forks(self)

    def _forget(self) -> None:
        """Calls under way do not go on in a fork."""
        self._lock = threading.Lock()
        self._running = [0] * len(self.all)

    def within(self, left: int) -> Seats:
        """The same devices, for calls that may take so many bytes of each one's memory together."""
        return Seats([replace(seat, budget=MemoryGate(lambda: left)) for seat in self.all])

    def run(self, needed: int, what: str, work: NetworkWork, *inputs: Tensor) -> Tensor:
        """:meth:`tilecodec.model.device.Lanes.run` on the device with the fewest calls; work is given its network."""
        with self._taken() as seat, seat.budget.room(needed):
            return seat.lanes.run(needed, what, partial(work, seat.network), *inputs)

    @contextlib.contextmanager
    def _taken(self) -> Iterator[Seat]:
        with self._lock:
            running = self._running
            at = running.index(min(running))
            running[at] += 1
        try:
            yield self.all[at]
        finally:
            with self._lock:
                running[at] -= 1
