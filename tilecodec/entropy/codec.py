"""Tile latents to payloads and back."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilecodec.entropy.coder import SYMBOL_LIMIT, GroupDecoder, SymbolGroup, encode_groups
from tilecodec.entropy.parameters import EntropyModel, EntropyTables, StepParameters, places
from tilecodec.entropy.payload import TilePayload, symbol_check
from tilecodec.errors import CorruptTileError, UsageError
from tilecodec.pools import Pool


@dataclass(frozen=True, eq=False, slots=True)
class TileLatent:
    """A decoded tile, in symbol units (before the inverse gain)."""

    y_hat: Tensor
    """(Cy, h, w) float32."""
    scale: Tensor
    """Gaussian scales, (Cy, h, w) float32."""
    quality: float


class TileCodec:
    """Codes the latents of one tile, or of several of one shape at once. Safe to call from several threads.

    Args:
        model: the integer entropy model.
        tables: the integer CDF tables.
        z_median: (Cz,) int16, see :class:`~tilecodec.entropy.program.Program`.
        y_stride: pixels per code position.
        activation: turns the scale register's real values into Gaussian scales, for the networks that make pixels.
    """

    def __init__(
        self,
        model: EntropyModel,
        tables: EntropyTables,
        z_median: NDArray[np.int16],
        y_stride: int,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        self._model = model
        self._tables = tables
        self._activation = activation
        self._median = z_median.astype(np.float32)[:, None, None] * np.float32(model.z_step)
        self._y_stride = y_stride

    def encode(self, y: Tensor, z: Tensor, *, quality: float, height: int, width: int) -> TilePayload:
        """Args:
        y: code with its gain, (Cy, h, w) float32.
        z: hyper-latent, (Cz, h/4, w/4) float32.
        quality: 1 to 100.
        height: true pixel rows of the tile.
        width: true pixel columns of the tile.
        """
        (payload,) = self.encode_many([(y, z)], quality=quality, sizes=[(height, width)])
        return payload

    def encode_many(
        self, tiles: Sequence[tuple[Tensor, Tensor]], *, quality: float, sizes: Sequence[tuple[int, int]]
    ) -> list[TilePayload]:
        """Encodes tiles of one shape together; payloads are those of one at a time.

        Args:
            tiles: each one's code and hyper-latent, see :meth:`encode`.
            quality: 1 to 100.
            sizes: each one's true pixel rows and columns.
        """
        tables, shape = self._tables, tiles[0][0].shape
        z_symbols = np.stack([_whole(z.numpy() - self._median) for _, z in tiles])
        z_rows = _channel_rows(z_symbols.shape[1:])
        groups = [[SymbolGroup(symbols.ravel(), z_rows, tables.z)] for symbols in z_symbols]
        flat = torch.stack([y for y, _ in tiles]).flatten(1).numpy()
        y_symbols = np.empty(flat.shape, np.int32)

        def code_step(step: int, seen: StepParameters) -> Tensor:
            at = places(*shape, step)[1].numpy()
            symbols = _whole(flat[:, at] - seen.mean.numpy() * np.float32(self._model.mean_step))
            y_symbols[:, at] = symbols
            for group, own, rows in zip(groups, symbols, seen.rows, strict=True):
                group.append(SymbolGroup(own, rows, tables.y))
            return torch.from_numpy(symbols)

        with torch.inference_mode():
            self._model.run(z_symbols, code_step)
        return [
            TilePayload(*size, quality, symbol_check(z, y), encode_groups(group))
            for size, z, y, group in zip(sizes, z_symbols, y_symbols, groups, strict=True)
        ]

    def decode(self, payload: TilePayload, where: str) -> TileLatent:
        """The inverse of :meth:`encode`.

        Raises:
            CorruptTileError: the stream does not decode to the symbols that were coded.
        """
        (found,) = self.decode_many([payload], [where])
        if isinstance(found, CorruptTileError):
            raise found
        return found

    def decode_many(self, payloads: Sequence[TilePayload], where: Sequence[str]) -> list[TileLatent | CorruptTileError]:
        """Decodes tiles of one size together; results are those of one at a time.

        Args:
            payloads: tiles with equal numbers of code positions.
            where: names of the tiles, for errors.

        Returns:
            For each tile its latent, or what is wrong with it.
        """
        tables, stride = self._tables, 4 * self._y_stride
        shapes = {(len(self._median), -(-p.height // stride), -(-p.width // stride)) for p in payloads}
        if len(shapes) != 1:
            raise UsageError("tiles decoded together differ in size", got=sorted(shapes), expected="one size")
        (z_shape,) = shapes
        results: list[TileLatent | CorruptTileError | None] = [None] * len(payloads)
        streams: list[GroupDecoder] = []
        live: list[int] = []
        for n, payload in enumerate(payloads):
            try:
                streams.append(GroupDecoder(payload.words, where[n]))
                live.append(n)
            except CorruptTileError as error:
                results[n] = error
        if live:
            z_rows = _channel_rows(z_shape)
            z_symbols = np.stack([s.decode(z_rows, tables.z).reshape(z_shape) for s in streams])

            def code_step(_step: int, seen: StepParameters) -> Tensor:
                symbols = [s.decode(rows, tables.y) for s, rows in zip(streams, seen.rows, strict=True)]
                return torch.from_numpy(np.stack(symbols))

            with torch.inference_mode():
                code = self._model.run(z_symbols, code_step)
                symbols, raw = code.symbols(), code.scale()
                y_hat, y_symbols = code.y_hat(symbols), symbols.numpy()
            for k, n in enumerate(live):
                latent = TileLatent(y_hat[k], self._activation(raw[k]), payloads[n].quality)
                fault = _fault(payloads[n], streams[k], symbol_check(z_symbols[k], y_symbols[k]), where[n])
                results[n] = fault or latent
        return [r for r in results if r is not None]


def _fault(payload: TilePayload, stream: GroupDecoder, check: int, where: str) -> CorruptTileError | None:
    """What the checks after the last symbol find."""
    if check != payload.symbol_check:
        return CorruptTileError(
            "the decoded symbols differ from those that were coded",
            got=f"{check:08x}",
            expected=f"{payload.symbol_check:08x}",
            where=where,
            hint="The tile's bytes are damaged in a way its CRC does not show",
            reason="symbol-check",
        )
    try:
        stream.finish()
    except CorruptTileError as error:
        return error
    return None


def _whole(x: NDArray[np.float32]) -> NDArray[np.int32]:
    """Nearest whole numbers within the symbols' range; what is no number becomes 0."""
    return np.clip(np.rint(np.nan_to_num(x)), -SYMBOL_LIMIT, SYMBOL_LIMIT).astype(np.int32)


def _channel_rows(shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """The table row of every hyper-latent symbol: its channel."""
    return np.repeat(np.arange(shape[0], dtype=np.uint16), shape[1] * shape[2])


class SingleThreadPool(Pool):
    """Runs calls on worker threads whose torch operations use one thread each.

    Tiles are many, so threads are better spent on tiles than within one; and a network's result on one thread does not
    depend on how many threads the machine or the caller has. There are as many workers as torch would use threads.
    """

    def __init__(self) -> None:
        super().__init__(0, "tilecodec-worker")

    def _start(self) -> ThreadPoolExecutor:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = torch.get_num_threads()
        self._workers = workers = max(1, min(cores, threads))
        barrier = threading.Barrier(workers + 1)

        def begin() -> None:
            torch.get_num_threads()  # a thread's first use of torch sets its number anew, so that must be over
            if barrier.broken:
                return
            torch.set_num_threads(1)
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait()

        pool = ThreadPoolExecutor(workers, thread_name_prefix=self._name, initializer=begin)
        try:
            for _ in range(workers):
                pool.submit(int)
            barrier.wait()
        except BaseException:  # Ctrl-C
            pool.shutdown(wait=False, cancel_futures=True)  # and with it a thread that was about to start
            raise
        finally:
            barrier.abort()  # after Ctrl-C they would wait for good, and the process's end for them
            torch.set_num_threads(threads)  # the setting also seeds threads made later
        return pool


POOL = SingleThreadPool()
"""The process's pool for networks and entropy coding. A call in it must not wait for another."""
