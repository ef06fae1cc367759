"""Where networks run: calls side by side on a device, as many as its memory takes.

On the CPU a call runs on the thread that makes it. On a CUDA device it runs on a :class:`StreamLane`, a stream with a
thread of its own: while one call waits for its copies or its kernels, the others' go on, and so does all that runs on
the CPU. Nothing is shared between streams but the weights, which nobody writes to. Other devices take one call at a
time.

A call that runs out of a device's memory gives back what it has and runs again with half as many beside it; only one
that is alone and still runs out is an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

import torch
from torch import Tensor

from tilecodec.errors import DeviceError, NotEnoughMemoryError
from tilecodec.model.gate import MemoryGate
from tilecodec.pools import forget_in_forks

OUT_OF_MEMORY: Final = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)
"""What errors say that are no ``torch.OutOfMemoryError`` and mean the same."""
FAILED: Final = ("CUDA error", "cuDNN error")
"""How errors begin that tell of a device's failure."""

Work = Callable[..., Tensor]
"""Networks over tensors on the device: takes one or more, gives one."""


class Lane(Protocol):
    """What one call at a time runs on."""

    def run(self, work: Work, inputs: tuple[Tensor, ...]) -> Tensor:
        """The work's result in the process's memory.

        Args:
            work: see :data:`Work`.
            inputs: in the process's memory.
        """
        ...


class PlainLane:
    """The calling thread; on the CPU nothing is copied."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def run(self, work: Work, inputs: tuple[Tensor, ...]) -> Tensor:
        """See :class:`Lane`."""
        with torch.inference_mode():
            return work(*(t.to(self._device) for t in inputs)).cpu()


class StreamLane:
    """A stream of a CUDA device, and the one thread that fills it.

    The thread belongs to the stream because CUDA's libraries keep scratch space for every pair of the two, and promise
    the same bits only where a thread's products go to one stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tilecodec-device")

    def run(self, work: Work, inputs: tuple[Tensor, ...]) -> Tensor:
        """See :class:`Lane`. Copies go through pinned memory, the result stays in it."""
        return self._thread.submit(self._run, work, inputs).result()

    def _run(self, work: Work, inputs: tuple[Tensor, ...]) -> Tensor:
        done = torch.cuda.Event(blocking=True)  # waiting for it takes no processor time, and lets other threads run
        with torch.cuda.stream(self._stream), torch.inference_mode():
            result = work(*(t.contiguous().pin_memory().to(self._device, non_blocking=True) for t in inputs))
            fetched = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
            fetched.copy_(result, non_blocking=True)
            done.record(self._stream)
        done.synchronize()
        return fetched


class Lanes:
    """The lanes of one device. Safe to use from several threads.

    Args:
        device: where the work runs.
        free: bytes that work can still take there, None where nobody knows.
        lane: makes a lane; by default the device's kind.
    """

    def __init__(
        self,
        device: torch.device,
        free: Callable[[], int | None],
        lane: Callable[[torch.device], Lane] | None = None,
    ) -> None:
        self.device = device
        self._gate = MemoryGate(free, most=None if device.type in ("cpu", "cuda") else 1)
        self._lane = lane or (StreamLane if device.type == "cuda" else PlainLane)
        self._idle: list[Lane] = []
        """Used last in, first out: there are never more lanes, each with memory that torch keeps for it, than calls
        that ran at a time."""
        forget_in_forks(self)

    def _forget(self) -> None:
        """Threads do not survive a fork."""
        self._idle.clear()

    def run(self, needed: int, what: str, work: Work, *inputs: Tensor) -> Tensor:
        """Runs work on the device once there is room for it.

        Args:
            needed: bytes that it takes there.
            what: the work, for errors.
            work: see :data:`Work`. It may run more than once, on another thread.
            inputs: in the process's memory.

        Returns:
            The result, in the process's memory.

        Raises:
            NotEnoughMemoryError: it runs out of memory with nothing beside it.
            DeviceError: the device failed.
        """
        while True:
            with device_errors(self.device, what), self._gate.room(needed) as most:
                try:
                    with self._taken() as lane:
                        return lane.run(work, inputs)
                except RuntimeError as error:
                    if not _is_out_of_memory(error):
                        raise
                    told = _first_line(error)
                # only now that the error is gone are the tensors of its frames
                self._gate.lower(most)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            if most == 1:
                what = f"{what} with nothing beside it"
                raise _too_little(what, told, f"about {needed / 2**30:.2f} GiB", self.device)

    @contextlib.contextmanager
    def _taken(self) -> Iterator[Lane]:
        try:
            lane = self._idle.pop()
        except IndexError:
            lane = self._lane(self.device)
        try:
            yield lane
        finally:
            self._idle.append(lane)


@contextlib.contextmanager
def device_errors(device: torch.device, what: str) -> Iterator[None]:
    """Turns torch's errors about a device's memory, and about a device that fails or is gone, into ours.

    Args:
        device: where the block works.
        what: it does.

    Raises:
        NotEnoughMemoryError: its memory is full.
        DeviceError: it failed.
    """
    try:
        yield
    except RuntimeError as error:
        if _is_out_of_memory(error):
            raise _too_little(what, _first_line(error), None, device) from error
        if isinstance(error, torch.AcceleratorError) or str(error).startswith(FAILED):
            raise DeviceError(
                f"{what}: the device failed or is gone",
                got=_first_line(error),
                where=device,
                hint="Start anew, where need be with --device cpu; --resume continues an encode",
            ) from error
        raise


def _too_little(what: str, told: str, expected: str | None, device: torch.device) -> NotEnoughMemoryError:
    return NotEnoughMemoryError(
        f"{what} takes more memory than there is",
        got=told,
        expected=expected,
        where=device,
        hint="Free some of the device's memory, use --precision int8 (Python: precision=...), or take a smaller model",
    )


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().split("\n")[0]
