"""The decoder of one level: windows decoded once, blended into blocks of final pixels, in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tilecodec.blend import RowBlender
from tilecodec.budget import MemoryPlan, plan_memory
from tilecodec.container.chunk import TileState
from tilecodec.container.metadata import LevelLayout
from tilecodec.container.store import ByteStore
from tilecodec.decoder.jobs import JobCache
from tilecodec.decoder.tiles import (
    DecodedTile,
    TileCaches,
    TileFetcher,
    assemble,
    cached_bytes,
    decoding_bytes,
    tiles_together,
)
from tilecodec.decoder.windows import DecodedWindow, decode_window
from tilecodec.entropy.codec import POOL
from tilecodec.entropy.model import CodecModel
from tilecodec.errors import RegionError
from tilecodec.limits import DEFAULT_LIMITS, Limits
from tilecodec.memory import give_back_freed_memory
from tilecodec.model.gate import MemoryGate
from tilecodec.tiles import TilePosition, Window
from tilecodec.tiles.rolling import Block

WINDOWS_READ: Final = 32
"""Windows whose tiles' bytes are read together."""
FEW_WINDOWS: Final = 16
"""A region of so many is a small one: all its tiles are asked for first, and some decoded together. In longer reads,
where windows keep the threads busy, that gains nothing, and blocks of more sizes would leave holes in the memory."""
LEAST_CACHED: Final = 16 << 20
MOST_CACHED: Final = 256 << 20
"""Bytes of decoded tiles, and of their feet."""
WINDOWS_TIDY: Final = 32
"""Windows after which freed memory is given back."""

_Tiles = dict[TilePosition, Callable[[], DecodedTile]]
"""The tiles that a window is made of, each as a call that waits for it."""


class SharedWork:
    """What the levels of a container share: decoded tiles and windows, and the memory that decoding may take.

    Args:
        layout: of the largest level.
        model: the container's.
        cache_bytes: decoded windows kept for the next read.
        memory: bytes that the process may take in all; None: what the machine has.

    Raises:
        NotEnoughMemoryError: the budget is too small; it names the least that works.
    """

    def __init__(self, layout: LevelLayout, model: CodecModel, *, cache_bytes: int, memory: int | None = None) -> None:
        self.plan: MemoryPlan | None = None
        tiles = _rows_bytes(layout, model)
        if memory is not None:
            sides = _window_sides(layout)
            window = model.decode_bytes(*sides, host=True) + 2 * sides[0] * sides[1] * 3
            workers, coding = POOL.workers, decoding_bytes(layout, model)
            # a thread is busy with tiles or with a window
            needed, window = tiles + workers * coding, max(window - coding, 1)
            self.plan = plan = plan_memory(
                memory, tiles=needed, window=window, workers=workers, cache=cache_bytes, what="decoding"
            )
            self._gate, cache_bytes = MemoryGate(lambda: plan.windows * window), plan.cache
        self.tiles = TileCaches(tiles, layout, model)
        self.windows: JobCache[tuple[str, TilePosition], DecodedWindow] = JobCache(
            cache_bytes, DecodedWindow.size_bytes
        )

    def room(self) -> AbstractContextManager[object]:
        """To be entered around the networks' work on a window."""
        return contextlib.nullcontext() if self.plan is None else self._gate.room(self.plan.window)


def _window_sides(layout: LevelLayout) -> tuple[int, int]:
    """The most rows and columns of a window."""
    side = layout.grid.tile + layout.codec.margin.seam
    return min(side, layout.grid.padded_height), min(side, layout.grid.padded_width)


def _rows_bytes(layout: LevelLayout, model: CodecModel) -> int:
    """Bytes of the decoded tiles that windows in order need, and of their feet, within reason."""
    return min(max(sum(cached_bytes(layout, model)), LEAST_CACHED), MOST_CACHED)


class LevelDecoder:
    """Reads any region of a level. Safe to use from several threads.

    The windows are fixed by the file and each is decoded on its own, on one thread, so a region's pixels do not depend
    on what else is read, in which order, or through which cache.
    """

    def __init__(
        self,
        store: ByteStore,
        layout: LevelLayout,
        model: CodecModel,
        *,
        shared: SharedWork,
        limits: Limits = DEFAULT_LIMITS,
        fill: tuple[int, int, int] | None = None,
    ) -> None:
        self.layout, self.model, self._shared = layout, model, shared
        model.check_decode(*_window_sides(layout))
        self.fetcher = TileFetcher(store, layout, model, caches=shared.tiles, limits=limits, fill=fill)

    @property
    def height(self) -> int:
        """True pixel rows."""
        return self.layout.grid.height

    @property
    def width(self) -> int:
        """True pixel columns."""
        return self.layout.grid.width

    def read(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
        """The region's pixels, uint8 (y1 - y0, x1 - x0, 3).

        Raises:
            RegionError: empty, or outside the level.
            TileError: a tile that is lost or fails its checks, where there is no fill colour.
        """
        out = np.empty((max(y1 - y0, 0), max(x1 - x0, 0), 3), np.uint8)
        for block in self.blocks(y0, y1, x0, x1):
            block.paint(out, y0, x0)
        return out

    def blocks(self, y0: int, y1: int, x0: int, x1: int) -> Iterator[Block]:
        """The region as blocks of final pixels, as soon as they are ready: from left to right, rows of them from the
        top. They cover it once; those of a row have the same rows, ``block_rows`` at most.

        Raises: as :meth:`read`.
        """
        if not (0 <= y0 < y1 <= self.height and 0 <= x0 < x1 <= self.width):
            raise RegionError(
                got=f"rows {y0}:{y1}, columns {x0}:{x1}",
                expected=f"a part of {self.height} rows and {self.width} columns",
                where=f"level {self.layout.path}",
            )
        grid, share = self.layout.grid, self.layout.codec.share
        region = Window(y0, y1, x0, x1)
        cols = grid.col_range(x0, x1, share)
        few = len(grid.row_range(y0, y1, share)) * len(cols) <= FEW_WINDOWS
        windows = self._windows_of(
            ((at, self.layout.share(at).meet(region)) for at in grid.windows_of(region, share)),
            together=tiles_together(self.layout) if few else 1,
        )
        blender = RowBlender(grid, share, region)
        with contextlib.closing(blender), contextlib.closing(windows):
            for number, (position, pixels) in enumerate(windows, start=1):
                if number % WINDOWS_TIDY == 0:
                    give_back_freed_memory()
                # from the top down, all that is still needed of this tile lies under the windows of the next row
                self.fetcher.shrink(TilePosition(position.row, position.col - 1))
                if position.col == cols[-1]:
                    self.fetcher.shrink(position)
                block = blender.add(position, self._beside(position, region) if pixels is None else pixels)
                if block.pixels.size:
                    self._colour(block)
                    yield block

    @property
    def block_rows(self) -> int:
        """The most rows of a block."""
        return self.layout.grid.tile + self.layout.codec.share.before

    def _windows_of(
        self, parts: Iterable[tuple[TilePosition, Window]], *, together: int = 1
    ) -> Generator[tuple[TilePosition, NDArray[np.uint8] | None]]:
        """Parts of decoded windows, in order, None for lost tiles. The next ones' networks run ahead of the reader, and
        the entropy decoding of those after them ahead of the networks."""
        ahead = POOL.workers + 2
        coming = iter(parts)
        expected: deque[tuple[TilePosition, Window]] = deque()
        fetching: deque[tuple[TilePosition, Window, DecodedWindow | _Tiles]] = deque()
        running: deque[tuple[TilePosition, Callable[[], NDArray[np.uint8] | None]]] = deque()
        try:
            while True:
                while len(fetching) < (ahead if together == 1 else FEW_WINDOWS):
                    if not expected:
                        expected.extend(self._expected(itertools.islice(coming, WINDOWS_READ)))
                    if not expected:
                        break
                    position, part = expected.popleft()
                    fetching.append(
                        (position, part, self._known(position, part) or self._requested(position, together))
                    )
                while fetching and len(running) < ahead:
                    running.append(self._begun(*fetching.popleft()))
                if not running:
                    return
                position, window = running.popleft()
                yield position, window()
        finally:
            self.fetcher.forget(near for at, _ in expected for near in self._made_of(at))

    def _known(self, at: TilePosition, part: Window) -> DecodedWindow | None:
        """What is remembered of a window, where that will do."""
        found = self._shared.windows.get((self.layout.path, at))
        return found if found is not None and found.covers(part) else None

    def _expected(self, parts: Iterable[tuple[TilePosition, Window]]) -> list[tuple[TilePosition, Window]]:
        """Windows that come next, the bytes of what they are made of on their way."""
        windows = list(parts)
        missing = [at for at, part in windows if self._known(at, part) is None]
        made_of = [(near, near.row < at.row) for at in missing for near in self._made_of(at)]
        self.fetcher.expect(
            dict.fromkeys(near for near, above in made_of if not above),
            dict.fromkeys(near for near, above in made_of if above),
        )
        return windows

    def _made_of(self, at: TilePosition) -> list[TilePosition]:
        """The tiles that a window is made of."""
        return list(self.layout.grid.tiles_of(self.layout.window(at)))

    def _requested(self, at: TilePosition, together: int) -> _Tiles:
        """The tiles that a window is made of, on their way; of those above no more than is needed."""
        fetcher = self.fetcher
        return {
            near: (fetcher.request_foot if near.row < at.row else fetcher.request)(near, together)
            for near in self._made_of(at)
        }

    def _begun(
        self, at: TilePosition, part: Window, made_of: DecodedWindow | _Tiles
    ) -> tuple[TilePosition, Callable[[], NDArray[np.uint8] | None]]:
        """A part of a window being decoded, and the call that waits for it; a lost tile has none."""
        if isinstance(made_of, DecodedWindow):
            known = made_of
            return at, lambda: known.cut(part)
        tiles = {near: wait() for near, wait in made_of.items()}
        if tiles[at].state is TileState.LOST:
            return at, lambda: None
        wait = self._shared.windows.request(
            (self.layout.path, at), lambda: self._decode(at, part, tiles), lambda found: found.covers(part)
        )
        return at, lambda: wait().cut(part)

    def _decode(self, at: TilePosition, part: Window, tiles: dict[TilePosition, DecodedTile]) -> DecodedWindow:
        """A tile's window before blending, or a part of it."""
        own, window = tiles[at].colour, self.layout.window(at)
        if own is not None and all(tile.colour == own for tile in tiles.values()):
            pixels = np.empty((window.height, window.width, 3), np.uint8)
            pixels[:] = own
            return DecodedWindow(pixels, window)
        latent = assemble(self.fetcher, self.model, at, tiles)
        before = self._shared.windows.get((self.layout.path, at))
        with self._shared.room():
            return decode_window(self.model, latent, self.layout.codec.quality, window, part, before)

    def _beside(self, lost: TilePosition, region: Window) -> NDArray[np.uint8]:
        """What is blended in place of a lost tile's window: each pixel as in the window of the tile it belongs to.

        So the tiles around it are as if it had no weight; its own pixels get the fill colour later on. Only what lies
        in the region is filled in, which takes windows beside the lost one.
        """
        grid, place = self.layout.grid, self.layout.share(lost).meet(region)
        pixels = np.zeros((place.height, place.width, 3), np.uint8)
        for at in grid.tiles_of(place):
            if at == lost:
                continue
            part = grid.core(at).meet(place)
            ((_, own),) = self._windows_of([(at, part)])
            if own is not None:
                pixels[part.y0 - place.y0 : part.y1 - place.y0, part.x0 - place.x0 : part.x1 - place.x0] = own
        return pixels

    def _colour(self, block: Block) -> None:
        """Gives empty and lost tiles their exact colour over their own pixels."""
        grid, (rows, cols) = self.layout.grid, block.pixels.shape[:2]
        for position in grid.tiles_of(Window(block.y, block.y + rows, block.x, block.x + cols)):
            colour = self.fetcher.exact_colour(position)
            if colour is not None:
                core = grid.core(position)
                across = slice(max(core.x0 - block.x, 0), core.x1 - block.x)
                block.pixels[max(core.y0 - block.y, 0) : core.y1 - block.y, across] = np.array(colour, np.uint8)
