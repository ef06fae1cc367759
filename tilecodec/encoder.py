"""The encoder: source windows to chunks, level by level, in bounded memory.

Level 0 is read in rows of chunks. Each chunk's pixels, once read, also feed level 1: their 2x2 means go into a rolling
band of rows on disk, from which level 1 is encoded as soon as a row of its chunks (and the halo below) is there; and
so on up the pyramid. So the source is read once and no level is ever held whole, in memory or on disk.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tilecodec.budget import MemoryPlan, plan_memory
from tilecodec.container.chunk import ChunkPlace, TileState, pack_chunk
from tilecodec.container.metadata import LevelLayout
from tilecodec.container.store import ByteStore
from tilecodec.entropy.codec import POOL
from tilecodec.entropy.model import CodecModel
from tilecodec.memory import give_back_freed_memory
from tilecodec.model.config import DiTICConfig
from tilecodec.model.footprint import analyse_bytes
from tilecodec.model.gate import MemoryGate
from tilecodec.tiles import TilePosition, Window
from tilecodec.tiles.cut import Readable, halve, read_padded
from tilecodec.tiles.rolling import RollingRows

if TYPE_CHECKING:
    from torch import Tensor

Report = Callable[["ChunkDone"], None]

ANALYSIS_SIDE = 1024
"""Tiles are analysed together in windows of about this side: the halo is paid once for all of them. Larger windows are
no faster, their values leave the cache, and take several times the memory."""
ANALYSIS_BYTES = 1 << 30
"""Of a large model, fewer tiles: as many as take about this much in bf16. It is the same on every machine and in every
precision, because a code depends on its window."""

SOURCE_BYTES = 80 << 20
"""What a source keeps of decoded segments, and of files it has open."""

MOST_CHUNKS = 8
"""So many chunks at most are coded at a time, however many cores there are: each takes some hundred megabytes."""

CODED_TOGETHER = 2
"""Tiles of one window whose symbols are coded together: fewer calls, on arrays that still fit into the cache."""
CHUNKS_TIDY = 4
"""Chunks after which freed memory is given back."""


@dataclass(frozen=True, slots=True)
class ChunkDone:
    """What one encoded chunk adds to the totals."""

    pixels: int
    bytes: int
    payload_bytes: int
    tiles: int
    empty_tiles: int


Payloads = Future[dict[TilePosition, bytes]]
"""Of tiles that are coded together."""


@dataclass(frozen=True, eq=False, slots=True)
class Chunk:
    """A chunk that is being coded."""

    key: str
    place: ChunkPlace
    rows: int
    cols: int
    pixels: int
    positions: list[TilePosition]
    empty: dict[TilePosition, bytes]
    """Tiles of one colour, and it."""
    groups: list[Future[list[Payloads]]]
    """The other tiles' payloads to come."""


class LevelEncoder:
    """Encodes one level's chunks, in rows from the top, and hands its pixels to the level above."""

    def __init__(
        self,
        pixels: Readable,
        layout: LevelLayout,
        store: ByteStore,
        model: CodecModel,
        above: LevelEncoder | None,
        line: AssemblyLine,
        *,
        skip_present: bool,
        done: Report,
    ) -> None:
        self._pixels, self.layout, self._store, self._model, self._line = pixels, layout, store, model, line
        self._above, self._skip_present, self._done = above, skip_present, done
        self._next_row = 0
        self._together = tiles_together(model.config, layout.codec.tile, layout.codec.halo)

    def advance(self, rows_ready: int) -> None:
        """Encodes every row of chunks whose pixels, halo included, are among the first ``rows_ready`` rows."""
        layout, height = self.layout, self.layout.grid.height
        while self._next_row < layout.chunk_rows:
            bottom = min((self._next_row + 1) * layout.chunk_side, height)
            if min(bottom + layout.codec.halo, height) > rows_ready:
                return
            self._encode_row(self._next_row)
            self._next_row += 1
            if self._above is not None:
                self._above.advance(-(-bottom // 2))

    def _encode_row(self, row: int) -> None:
        ahead = self._line.read(self._read, row, 0)
        for col in range(self.layout.chunk_cols):
            block = ahead.result()
            if col + 1 < self.layout.chunk_cols:
                ahead = self._line.read(self._read, row, col + 1)
            chunk = self._encode_chunk(row, col, block)
            if self._above is not None:
                self._feed(row, col, block)
            if chunk is not None:
                self._line.put(self, chunk)

    def _window(self, row: int, col: int) -> tuple[Window, Window]:
        """A chunk's own pixels, and those with the halo, both in the padded picture."""
        grid, side = self.layout.grid, self.layout.chunk_side
        core = Window(row * side, (row + 1) * side, col * side, (col + 1) * side)
        size = (grid.padded_height, grid.padded_width)
        return core.clip(*size), core.grow(self.layout.codec.halo).clip(*size)

    def _read(self, row: int, col: int) -> NDArray[np.uint8]:
        return read_padded(self._pixels, self._window(row, col)[1])

    def _feed(self, row: int, col: int, block: NDArray[np.uint8]) -> None:
        core, window = self._window(row, col)
        true = core.clip(self.layout.grid.height, self.layout.grid.width)
        own = block[true.y0 - window.y0 : true.y1 - window.y0, true.x0 - window.x0 : true.x1 - window.x0]
        assert self._above is not None
        assert isinstance(self._above._pixels, RollingRows)
        self._above._pixels.write(core.y0 // 2, core.x0 // 2, halve(own))

    def _encode_chunk(self, row: int, col: int, block: NDArray[np.uint8]) -> Chunk | None:
        """Starts coding a chunk; None where that is done already."""
        layout, grid = self.layout, self.layout.grid
        key = layout.key(row, col)
        rows, cols = layout.tiles_of(row, col)
        true = self._window(row, col)[0].clip(grid.height, grid.width)
        pixels = true.height * true.width
        if self._skip_present and self._store.exists(key):
            self._done(ChunkDone(pixels, self._store.size(key), 0, rows * cols, 0))
            return None
        first = TilePosition(row * layout.chunk_tiles, col * layout.chunk_tiles)
        positions = [TilePosition(first.row + r, first.col + c) for r in range(rows) for c in range(cols)]
        origin = self._window(row, col)[1]
        empty: dict[TilePosition, bytes] = {}
        for at in positions:
            mine = _part(block, origin, grid.true_core(at))
            if (mine[0] == mine[0, 0]).all() and (mine == mine[0, 0]).all():
                empty[at] = mine[0, 0].tobytes()
        groups = []
        for near in _groups(positions, first, self._together):
            group = [at for at in near if at not in empty]
            if group:
                groups.append(POOL.submit(self._encode_group, block, origin, group))
        return Chunk(key, ChunkPlace(layout.number, row, col), rows, cols, pixels, positions, empty, groups)

    def _encode_group(self, block: NDArray[np.uint8], origin: Window, group: list[TilePosition]) -> list[Payloads]:
        """Analyses neighbouring tiles in one window, then starts their entropy coding."""
        grid, stride = self.layout.grid, self._model.config.y_stride
        cores = [grid.core(at) for at in group]
        whole = Window(
            min(c.y0 for c in cores), max(c.y1 for c in cores), min(c.x0 for c in cores), max(c.x1 for c in cores)
        )
        window = whole.grow(self.layout.codec.halo).clip(grid.padded_height, grid.padded_width)
        inside = (
            slice(whole.y0 - window.y0, whole.y1 - window.y0),
            slice(whole.x0 - window.x0, whole.x1 - window.x0),
        )
        pixels = np.ascontiguousarray(_part(block, origin, window))
        with self._line.gate():
            code = self._model.analyse(pixels, inside, self.layout.codec.quality)
        parts: dict[TilePosition, Tensor] = {}
        alike: dict[tuple[int, int], list[TilePosition]] = {}
        for at, core in zip(group, cores, strict=True):
            rows = slice((core.y0 - whole.y0) // stride, (core.y1 - whole.y0) // stride)
            cols = slice((core.x0 - whole.x0) // stride, (core.x1 - whole.x0) // stride)
            parts[at] = code[:, rows, cols]
            alike.setdefault((core.height, core.width), []).append(at)
        coded: list[Payloads] = []
        for tiles in alike.values():
            hyper = dict(zip(tiles, self._model.hyper_analyse([parts[at] for at in tiles]), strict=True))
            for some in (tiles[n : n + CODED_TOGETHER] for n in range(0, len(tiles), CODED_TOGETHER)):
                if not self._line.closed:
                    coded.append(POOL.submit(self._payloads, {at: (parts[at], hyper[at]) for at in some}))
        return coded

    def _payloads(self, tiles: dict[TilePosition, tuple[Tensor, Tensor]]) -> dict[TilePosition, bytes]:
        """Codes tiles of one shape, of each its code and hyper-latent."""
        true = [self.layout.grid.true_core(at) for at in tiles]
        payloads = self._model.tile_codec.encode_many(
            list(tiles.values()), quality=self.layout.codec.quality, sizes=[(w.height, w.width) for w in true]
        )
        return {at: payload.to_bytes() for at, payload in zip(tiles, payloads, strict=True)}

    def write(self, chunk: Chunk) -> None:
        """Puts a chunk into the store, waiting for what is not coded yet."""
        coded = {at: data for group in chunk.groups for some in group.result() for at, data in some.result().items()}
        tiles = [
            (TileState.EMPTY, chunk.empty[at]) if at in chunk.empty else (TileState.CODED, coded[at])
            for at in chunk.positions
        ]
        data = pack_chunk(chunk.rows, chunk.cols, tiles, chunk.place)
        self._store.set(chunk.key, data)
        payload = sum(len(t) for _, t in tiles)
        self._done(ChunkDone(chunk.pixels, len(data), payload, len(tiles), len(chunk.empty)))


@dataclass(frozen=True, eq=False, slots=True)
class EncodeRoom:
    """How much of an encode runs side by side."""

    waiting: int
    """Chunks that wait to be written."""
    gate: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    """Makes what is entered around the networks' work on a window."""
    plan: MemoryPlan | None = None


def _most_waiting() -> int:
    return min(POOL.workers, MOST_CHUNKS) + 2


def plan_encode(layout: LevelLayout, model: CodecModel, memory: int) -> EncodeRoom:
    """Divides a memory budget, see :mod:`tilecodec.budget`.

    Args:
        layout: of the largest level.
        model: loaded.
        memory: bytes that the process may take in all.

    Raises:
        NotEnoughMemoryError: it is too small; the error names the least that works.
    """
    grid, codec = layout.grid, layout.codec
    sides = [min(layout.chunk_side + 2 * codec.halo, n) for n in (grid.padded_height, grid.padded_width)]
    chunk = sides[0] * sides[1] * 3
    side = tiles_together(model.config, codec.tile, codec.halo) * codec.tile + 2 * codec.halo
    window = model.analyse_bytes(min(side, grid.padded_height), min(side, grid.padded_width), host=True)
    # the chunk that is read ahead, the one at hand, the one that is written; what the source keeps decoded
    least = 3 * chunk + SOURCE_BYTES
    plan = plan_memory(memory, tiles=least, window=window, workers=POOL.workers, what="encoding")
    waiting = min(_most_waiting(), plan.left // chunk)
    plan = replace(plan, tiles=least + waiting * chunk)
    gate = MemoryGate(lambda: plan.windows * plan.window)
    return EncodeRoom(waiting, lambda: gate.room(plan.window), plan)


class AssemblyLine:
    """The chunks of all levels between reading and writing, a bounded number at a time."""

    def __init__(self, room: EncodeRoom) -> None:
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="tilecodec-source")
        self._waiting: deque[tuple[LevelEncoder, Chunk]] = deque()
        self._limit = room.waiting
        self._written = 0
        self.gate = room.gate
        self.closed = False
        """Whether nobody waits for payloads any more."""

    def read(self, call: Callable[[int, int], NDArray[np.uint8]], row: int, col: int) -> Future[NDArray[np.uint8]]:
        """Reads a chunk's pixels in the background."""
        return self._reader.submit(call, row, col)

    def put(self, level: LevelEncoder, chunk: Chunk) -> None:
        """Takes a chunk that is being coded; writes the oldest where there are too many."""
        self._waiting.append((level, chunk))
        while len(self._waiting) > self._limit:
            self._write_oldest()

    def finish(self) -> None:
        """Writes all."""
        while self._waiting:
            self._write_oldest()

    def close(self) -> None:
        """Ends the reader. What has not begun is never coded."""
        self.closed = True
        self._reader.shutdown(cancel_futures=True)
        for group in (group for _, chunk in self._waiting for group in chunk.groups):
            if not group.cancel() and group.done() and group.exception() is None:
                for payloads in group.result():
                    payloads.cancel()

    def _write_oldest(self) -> None:
        level, chunk = self._waiting[0]
        level.write(chunk)
        self._waiting.popleft()  # only now: what fails on the way is given up with the rest
        self._written += 1
        if self._written % CHUNKS_TIDY == 0:
            give_back_freed_memory()


def _part(block: NDArray[np.uint8], origin: Window, window: Window) -> NDArray[np.uint8]:
    """The pixels of ``window`` out of a block that begins where ``origin`` does."""
    return block[window.y0 - origin.y0 : window.y1 - origin.y0, window.x0 - origin.x0 : window.x1 - origin.x0]


def check_memory(layout: LevelLayout, model: CodecModel) -> None:
    """Refuses a level whose windows do not fit into memory, one at a time.

    Raises:
        NotEnoughMemoryError: with what is needed and what is there.
    """
    grid, codec = layout.grid, layout.codec
    side = tiles_together(model.config, codec.tile, codec.halo) * codec.tile + 2 * codec.halo
    model.check_analyse(min(side, grid.padded_height), min(side, grid.padded_width))


def tiles_together(config: DiTICConfig, tile: int, halo: int) -> int:
    """Side of the squares of tiles that are analysed together, tiles.

    Args:
        config: the model's.
        tile: side of a tile, pixels.
        halo: margin of a window, pixels.
    """
    side = max(1, ANALYSIS_SIDE // tile)
    while side > 1 and _window_bytes(config, side * tile + 2 * halo) > ANALYSIS_BYTES:
        side //= 2
    return side


def _window_bytes(config: DiTICConfig, side: int) -> int:
    return analyse_bytes(config, side, side, 2)


def _groups(positions: list[TilePosition], first: TilePosition, side: int) -> list[list[TilePosition]]:
    """Tiles in squares of ``side`` tiles."""
    groups: dict[tuple[int, int], list[TilePosition]] = {}
    for at in positions:
        groups.setdefault(((at.row - first.row) // side, (at.col - first.col) // side), []).append(at)
    return list(groups.values())


def encode_levels(
    source: Readable,
    layouts: tuple[LevelLayout, ...],
    store: ByteStore,
    model: CodecModel,
    *,
    skip_present: bool,
    done: Report,
    room: EncodeRoom | None = None,
) -> None:
    """Encodes a picture into all its levels.

    Args:
        source: level 0's pixels.
        layouts: the levels, largest first.
        store: the container.
        model: loaded model.
        skip_present: leave chunks that are there already (a resumed encode).
        done: called after every chunk.
        room: how much runs side by side; None: as much as there are workers.
    """
    rolling: list[RollingRows] = []
    above: LevelEncoder | None = None
    line = AssemblyLine(room or EncodeRoom(_most_waiting()))
    try:
        for layout in reversed(layouts[1:]):
            # a row of chunks, its halo on both sides, and what level below adds at a time
            kept = 2 * layout.chunk_side + 2 * layout.codec.halo
            rows = RollingRows(layout.grid.height, layout.grid.width, kept)
            rolling.append(rows)
            above = LevelEncoder(
                rows, layout, store.under(layout.path), model, above, line, skip_present=skip_present, done=done
            )
        first = LevelEncoder(
            source, layouts[0], store.under(layouts[0].path), model, above, line, skip_present=skip_present, done=done
        )
        first.advance(layouts[0].grid.height)
        line.finish()
    finally:
        line.close()
        for rows in rolling:
            rows.close()


def level_sizes(height: int, width: int, levels: int | str) -> Iterator[tuple[int, int]]:
    """Heights and widths of the pyramid's levels, largest first.

    Args:
        height: of level 0.
        width: of level 0.
        levels: how many; ``auto`` halves until the longer side is at most 1024.
    """
    count = 0
    while True:
        yield height, width
        count += 1
        if count == levels or (levels == "auto" and max(height, width) <= 1024) or max(height, width) == 1:
            return
        height, width = -(-height // 2), -(-width // 2)
