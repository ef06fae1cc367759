"""Tile latents to payloads and back."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilecodec.entropy.coder import GroupDecoder, SymbolGroup, encode_groups
from tilecodec.entropy.parameters import EntropyParameters, EntropyTables
from tilecodec.entropy.payload import TilePayload, symbol_check
from tilecodec.errors import CorruptTileError

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, eq=False, slots=True)
class TileLatent:
    """A decoded tile, in symbol units (before the inverse gain)."""

    y_hat: Tensor
    """(Cy, h, w) float32."""
    scale: Tensor
    """Gaussian scales, (Cy, h, w) float32."""
    quality: float


class TileCodec:
    """Codes the latents of one tile at a time. Safe to call from several threads."""

    def __init__(self, parameters: EntropyParameters, tables: EntropyTables, y_stride: int) -> None:
        self._parameters = parameters
        self._tables = tables
        self._y_stride = y_stride

    def encode(self, y: Tensor, z: Tensor, *, quality: float, height: int, width: int) -> TilePayload:
        """Args:
        y: code with its gain, (Cy, h, w) float32.
        z: hyper-latent, (Cz, h/4, w/4) float32.
        quality: 1 to 100.
        height: true pixel rows of the tile.
        width: true pixel columns of the tile.
        """
        tables, parameters = self._tables, self._parameters
        z_symbols = np.rint(z.numpy() - tables.z_median[:, None, None]).astype(np.int32)
        groups = [SymbolGroup(z_symbols.ravel(), _channel_rows(z_symbols.shape), tables.z)]
        y_symbols = torch.zeros(y.shape, dtype=torch.int32)

        def code_step(_step: int, mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
            symbols = torch.round(y - mean[0]) * mask
            y_symbols.copy_(torch.where(mask, symbols.int(), y_symbols))
            groups.append(
                SymbolGroup(symbols[mask].int().numpy(), parameters.rows(scale[0][mask]).int().numpy(), tables.y)
            )
            return ((symbols + mean[0]) * mask)[None]

        with torch.inference_mode():
            parameters.run(parameters.base(z_symbols), code_step)
        check = symbol_check(z_symbols, y_symbols.numpy())
        return TilePayload(height, width, quality, check, encode_groups(groups))

    def decode(self, payload: TilePayload, where: str) -> TileLatent:
        """The inverse of :meth:`encode`.

        Raises:
            CorruptTileError: the stream does not decode to the symbols that were coded.
        """
        tables, parameters = self._tables, self._parameters
        stream = GroupDecoder(payload.words, where)
        z_shape = (
            len(tables.z_median),
            -(-payload.height // (4 * self._y_stride)),
            -(-payload.width // (4 * self._y_stride)),
        )
        z_symbols = stream.decode(_channel_rows(z_shape), tables.z).reshape(z_shape)

        with torch.inference_mode():
            base = parameters.base(z_symbols)
            y_symbols = torch.zeros(base.shape[1:], dtype=torch.int32)

            def code_step(_step: int, mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
                rows = parameters.rows(scale[0][mask]).int().numpy()
                y_symbols[mask] = torch.from_numpy(stream.decode(rows, tables.y))
                return ((y_symbols + mean[0]) * mask)[None]

            result = parameters.run(base, code_step)
        actual = symbol_check(z_symbols, y_symbols.numpy())
        if actual != payload.symbol_check:
            raise CorruptTileError(
                "the decoded symbols differ from those that were coded",
                got=f"{actual:08x}",
                expected=f"{payload.symbol_check:08x}",
                where=where,
                hint="The tile was written on a machine or torch version whose float arithmetic differs",
                reason="symbol-check",
            )
        stream.finish()
        return TileLatent(result.y_hat[0], result.scale[0], payload.quality)


def _channel_rows(shape: tuple[int, ...]) -> NDArray[np.int32]:
    """The table row of every hyper-latent symbol: its channel."""
    return np.repeat(np.arange(shape[0], dtype=np.int32), shape[1] * shape[2])


class SingleThreadPool:
    """Runs calls on worker threads whose torch operations use one thread each.

    One thread per evaluation makes float32 results independent of the machine's or the caller's thread count.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Like :meth:`concurrent.futures.Executor.submit`."""
        with self._lock:
            if self._pool is None or self._owner != os.getpid():  # threads do not survive a fork
                self._owner = os.getpid()
                self._pool = self._start()
            return self._pool.submit(call, *args, **kwargs)

    @staticmethod
    def _start() -> ThreadPoolExecutor:
        workers = max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        threads = torch.get_num_threads()
        barrier = threading.Barrier(workers + 1)

        def begin() -> None:
            torch.set_num_threads(1)
            barrier.wait()

        pool = ThreadPoolExecutor(workers, thread_name_prefix="tilecodec-entropy", initializer=begin)
        for _ in range(workers):
            pool.submit(int)
        barrier.wait()
        torch.set_num_threads(threads)  # the setting also seeds threads made later
        return pool


POOL = SingleThreadPool()
"""The process's pool for entropy coding."""
