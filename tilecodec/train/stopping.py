"""What surrounds the steps of a run: signals, memory that does not suffice, kernels with one possible result."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import torch

from tilecodec.errors import TrainingError, TrainingMemoryError
from tilecodec.train.recipe import TrainRecipe

_WORDS: Final = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch says when an allocation fails, on CUDA and on the CPU."""
_TERMINATED: Final = 143


class Stop:
    """Whether the run was asked to end after the step in work."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler: the first signal waits for the step's end, a second one ends the program at once."""
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def leave(self) -> None:
        """What the signal would have done.

        Raises:
            KeyboardInterrupt: after SIGINT.
            SystemExit: after SIGTERM.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(_TERMINATED)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Within, SIGINT and SIGTERM are noted instead of followed; only the main thread sees them."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def told_what_to_turn(recipe: TrainRecipe) -> Iterator[None]:
    """Within, a failed allocation is an error that names the knobs.

    Raises:
        TrainingMemoryError: instead of torch's or Python's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(w in str(error) for w in _WORDS)
        if not memory or isinstance(error, TrainingMemoryError):
            raise
        got = f"batch {recipe.batch} in {recipe.accumulate} pieces, crop {recipe.crop}, {recipe.precision}"
        more = min(recipe.batch // recipe.replicas, 2 * recipe.accumulate)
        hint = f"Set accumulate to {more}" if more > recipe.accumulate else "Lower batch or crop"
        if recipe.precision == "fp32":
            hint += ", or precision to bf16"
        raise TrainingMemoryError(
            "a step does not fit into memory",
            got=got,
            where=str(error).splitlines()[0] if str(error) else None,
            hint=hint,
        ) from error


@contextmanager
def determined(recipe: TrainRecipe) -> Iterator[None]:
    """Within, torch refuses kernels whose result depends on the order of their threads, if the recipe says so.

    Raises:
        TrainingError: a layer has no other kernel.
    """
    if not recipe.deterministic:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise TrainingError(
            "a layer has no deterministic kernel on this device",
            got=str(error).splitlines()[0],
            where="deterministic",
            hint="Set deterministic to false, or device to cpu",
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
