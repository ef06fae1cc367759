"""Fetching tiles: from a level's store to decoded latents, through a bounded cache."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import torch
from torch import Tensor

from tilecodec.container.chunk import TileState
from tilecodec.container.metadata import LevelLayout
from tilecodec.container.store import ByteStore
from tilecodec.decoder.ahead import ReadAhead
from tilecodec.decoder.cache import BoundedCache
from tilecodec.decoder.failures import FailedTiles
from tilecodec.decoder.jobs import JobCache
from tilecodec.decoder.reader import StoredTile, TileReader, check_model
from tilecodec.decoder.together import Together
from tilecodec.entropy.codec import POOL, TileLatent
from tilecodec.entropy.model import CodecModel, LatentWindow
from tilecodec.errors import TileCodecError, TileError
from tilecodec.limits import DEFAULT_LIMITS, Limits
from tilecodec.memory import own_pages
from tilecodec.tiles import TilePosition

TILES_TOGETHER: Final = 4
"""The most tiles that are decoded together for a small region: a fifth less time than one by one. Larger ones than
:data:`TOGETHER_SIDE` allows are decoded alone: they take no less time together, and much memory."""
TOGETHER_SIDE: Final = 1024
"""Side of a square as large as tiles that are decoded together, pixels."""
TILES_NEAR: Final = 6
"""Tiles about the windows in work, beside two for each thread."""
VALUE_BYTES: Final = 128
"""What entropy decoding takes for a value of the code: 112 measured, results included."""
TILE_BYTES: Final = 256
"""What a decoded tile takes in a cache beside its latents."""


T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False, slots=True)
class DecodedTile:
    """A tile's latents in latent units, or what stands for them."""

    state: TileState
    """LOST for a tile that could not be decoded, where the caller asked to go on."""
    colour: tuple[int, int, int] | None
    """The constant colour of an empty tile, black for nodata; None for a coded or lost tile."""
    y_hat: Tensor
    """(Cy, h, w) of the core, in the model's dtype on the CPU; (Cy, 1, 1) where the colour is constant; empty where
    the tile is lost."""
    scale: Tensor
    """Likewise."""
    first_row: int = 0
    """Rows of the core that ``y_hat`` and ``scale`` lack at the top, code positions."""

    def size_bytes(self) -> int:
        """What it takes in a cache."""
        return TILE_BYTES + self.y_hat.nbytes + self.scale.nbytes

    def foot(self, rows: int) -> DecodedTile:
        """The tile with its lowest rows of code positions alone."""
        if self.colour is not None or self.state is TileState.LOST:
            return self
        above = self.y_hat.shape[1] - rows
        y_hat, scale = _apart(self.y_hat[:, above:], self.scale[:, above:])
        return replace(self, y_hat=y_hat, scale=scale, first_row=self.first_row + above)


def foot_rows(layout: LevelLayout, model: CodecModel) -> int:
    """Rows of code positions that windows take of the tiles above."""
    return -(-layout.codec.margin.before // model.config.y_stride)


def cached_bytes(layout: LevelLayout, model: CodecModel) -> tuple[int, int]:
    """Bytes of the tiles, and of the feet, that windows in order need to be remembered.

    Tiles are needed until the windows that run ahead have come past them or, where windows reach below, until the next
    row of windows; feet until then.
    """
    side, feet_rows = layout.grid.tile // model.config.y_stride, foot_rows(layout, model)
    row = 2 * model.config.codec.y_channels * side * model.dtype.itemsize
    tiles = 2 * POOL.workers + TILES_NEAR + (layout.grid.cols if layout.codec.margin.after else 0)
    return tiles * (side * row + TILE_BYTES), (layout.grid.cols + 1) * (feet_rows * row + TILE_BYTES)


def tiles_together(layout: LevelLayout) -> int:
    """The most tiles that are decoded together for a small region."""
    return max(1, min(TILES_TOGETHER, (TOGETHER_SIDE // layout.grid.tile) ** 2))


def decoding_bytes(layout: LevelLayout, model: CodecModel) -> int:
    """Memory that the entropy decoding of tiles takes on one thread."""
    side = layout.grid.tile // model.config.y_stride
    return VALUE_BYTES * tiles_together(layout) * model.config.codec.y_channels * side**2


class TileCaches:
    """What is kept of tiles, for all levels of a container. Safe to use from several threads.

    Args:
        limit_bytes: decoded tiles, and feet of tiles, that are kept.
        layout: of any level.
        model: the container's.
    """

    def __init__(self, limit_bytes: int, layout: LevelLayout, model: CodecModel) -> None:
        tiles, feet = cached_bytes(layout, model)
        feet = limit_bytes * feet // (tiles + feet)
        self.tiles: JobCache[tuple[str, TilePosition], DecodedTile] = JobCache(
            limit_bytes - feet, DecodedTile.size_bytes
        )
        self.feet: BoundedCache[tuple[str, TilePosition], DecodedTile] = BoundedCache(feet)


class TileFetcher:
    """Tiles of one level. Safe to use from several threads.

    Args:
        store: the level's.
        layout: likewise.
        model: the container's.
        caches: what is kept.
        limits: what the container may ask for at most.
        fill: colour of tiles that cannot be decoded; None: such a tile is an error.

    Attributes:
        failed: tiles that could not be decoded; None where such a tile is an error.
    """

    def __init__(
        self,
        store: ByteStore,
        layout: LevelLayout,
        model: CodecModel,
        *,
        caches: TileCaches,
        limits: Limits = DEFAULT_LIMITS,
        fill: tuple[int, int, int] | None = None,
    ) -> None:
        check_model(layout, model, limits)
        self._fill = fill
        self.failed = None if fill is None else FailedTiles(layout.grid.rows * layout.grid.cols)
        self._reader, self.layout, self._model = (
            TileReader(store, layout, limits, keep_faults=fill is not None),
            layout,
            model,
        )
        self._ahead = ReadAhead(self._reader)
        self._foot_rows = foot_rows(layout, model)
        self._tiles, self._feet = caches.tiles, caches.feet
        self._together: Together[TilePosition, DecodedTile] = Together()

    def expect(self, tiles: Iterable[TilePosition], feet: Iterable[TilePosition]) -> None:
        """Starts reading the bytes of tiles that will soon be requested, and of those of which only the foot will."""
        wanted = itertools.chain(tiles, (at for at in feet if self._key(at) not in self._feet))
        self._ahead.expect(at for at in wanted if not self._tiles.has(self._key(at)))

    def forget(self, tiles: Iterable[TilePosition]) -> None:
        """Tells that tiles are not expected after all."""
        self._ahead.forget(tiles)

    def request(self, at: TilePosition, together: int = 1) -> Callable[[], DecodedTile]:
        """Starts fetching and decoding a tile; the returned call waits for it.

        The call raises a TileError, naming the tile; with a fill colour the tile is a lost one instead.

        Args:
            at: its place.
            together: with how many others that wait, itself included, it may be decoded.
        """
        return self._tiles.join(self._key(at), lambda: self._together.submit(at, self._fetch, together))

    def request_foot(self, at: TilePosition, together: int = 1) -> Callable[[], DecodedTile]:
        """:meth:`request` where no more than the lowest rows, as many as windows below take, are needed."""
        foot = self._feet.peek(self._key(at))  # those that wait longest are needed soonest
        return self.request(at, together) if foot is None else lambda: foot

    def shrink(self, at: TilePosition) -> None:
        """Tells that of a tile only its foot is needed any more, or nothing where no window below takes it."""
        key = self._key(at)
        tile = self._tiles.get(key)
        if tile is None or tile.colour is not None:
            return
        if self._foot_rows and at.row + 1 < self.layout.grid.rows and key not in self._feet:
            foot = tile.foot(self._foot_rows)
            self._feet.put(key, foot, foot.size_bytes())
        self._tiles.demote(key)

    def _key(self, at: TilePosition) -> tuple[str, TilePosition]:
        return self.layout.path, at

    def _fetch(self, tiles: Sequence[TilePosition]) -> list[DecodedTile | Exception]:
        """Reads and decodes tiles; where one fails, its error."""
        found: dict[TilePosition, DecodedTile | Exception] = {}
        coded: dict[tuple[int, int], list[StoredTile]] = {}
        for at in tiles:
            stored = _outcome(self._read, at)
            if isinstance(stored, Exception):
                found[at] = stored
            elif stored.payload is None:
                found[at] = _outcome(self._constant, stored)
            else:
                core = self.layout.grid.core(at)
                coded.setdefault((core.height, core.width), []).append(stored)
        for group in coded.values():
            together = _outcome(self._coded, group)
            for n, stored in enumerate(group):
                alone = _outcome(self._coded, [stored]) if isinstance(together, Exception) else together[n : n + 1]
                found[stored.at] = alone if isinstance(alone, Exception) else alone[0]
        return [self._settled(at, found[at]) for at in tiles]

    def _read(self, at: TilePosition) -> StoredTile:
        return self._reader.read(at, self._ahead.take(at))

    def _settled(self, at: TilePosition, tile: DecodedTile | Exception) -> DecodedTile | Exception:
        """A tile, remembered; a lost one in place of an error, where there is a fill colour."""
        if isinstance(tile, TileError) and self.failed is not None:
            self.failed.add(self._number(at), tile)
            tile = DecodedTile(TileState.LOST, None, torch.empty(0), torch.empty(0))
        if isinstance(tile, DecodedTile):
            self._tiles.remember(self._key(at), tile)
        return tile

    def _number(self, at: TilePosition) -> int:
        return at.row * self.layout.grid.cols + at.col

    def exact_colour(self, at: TilePosition) -> tuple[int, int, int] | None:
        """The one colour of a tile's own pixels; None for a coded tile. To be asked after the tile was requested."""
        if self.failed is not None and self._number(at) in self.failed:
            return self._fill
        if self._reader.entry(at).state is TileState.CODED:
            return None
        return self.request(at)().colour

    def _constant(self, tile: StoredTile) -> DecodedTile:
        y_hat, scale = self._model.constant_latent(tile.colour, self.layout.codec.quality)
        return DecodedTile(tile.state, tile.colour, y_hat.to(self._model.dtype), scale.to(self._model.dtype))

    def _coded(self, tiles: Sequence[StoredTile]) -> list[DecodedTile | Exception]:
        """Decodes tiles of one size."""
        payloads = [tile.payload for tile in tiles if tile.payload is not None]
        latents = self._model.tile_codec.decode_many(payloads, [self.layout.where(tile.at) for tile in tiles])
        return [latent if isinstance(latent, Exception) else self._scaled(latent) for latent in latents]

    def _scaled(self, latent: TileLatent) -> DecodedTile:
        with torch.inference_mode():
            _, inverse = self._model.gain(latent.quality)
            y_hat, scale = _apart(*((t * inverse).to(self._model.dtype) for t in (latent.y_hat, latent.scale)))
        return DecodedTile(TileState.CODED, None, y_hat, scale)


def _outcome(call: Callable[[T], R], argument: T) -> R | Exception:
    """What a call gives, or why it failed: those who wait for other tiles have nothing to do with it."""
    try:
        return call(argument)
    except (TileCodecError, OSError, MemoryError, RuntimeError) as error:  # torch's are of the last kind
        return error


def _apart(*tensors: Tensor) -> list[Tensor]:
    """Copies of tensors of one shape and dtype, in pages of their own."""
    pages = own_pages(sum(tensor.nbytes for tensor in tensors))
    copies = torch.frombuffer(pages, dtype=tensors[0].dtype).reshape(len(tensors), *tensors[0].shape)
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor)
    return list(copies)


def assemble(
    fetcher: TileFetcher, model: CodecModel, at: TilePosition, tiles: dict[TilePosition, DecodedTile]
) -> LatentWindow:
    """The latents of a tile's window, taken from the tile and its neighbours.

    At positions of lost neighbours the tile's own latents go on: each takes those of the nearest of the tile's own.
    """
    layout, stride = fetcher.layout, model.config.y_stride
    window = layout.window(at)
    shape = (window.height // stride, window.width // stride)
    channels = tiles[at].y_hat.shape[0]
    y_hat, scale = (torch.empty((channels, *shape), dtype=model.dtype) for _ in range(2))
    lost = []
    for position, tile in tiles.items():
        core = layout.grid.core(position)
        y0, y1 = max(core.y0, window.y0), min(core.y1, window.y1)
        x0, x1 = max(core.x0, window.x0), min(core.x1, window.x1)
        if y0 >= y1 or x0 >= x1:
            continue
        into = (
            slice(None),
            slice((y0 - window.y0) // stride, (y1 - window.y0) // stride),
            slice((x0 - window.x0) // stride, (x1 - window.x0) // stride),
        )
        if tile.state is TileState.LOST:
            lost.append(into[1:])
            continue
        take = (
            slice(None),
            slice((y0 - core.y0) // stride - tile.first_row, (y1 - core.y0) // stride - tile.first_row),
            slice((x0 - core.x0) // stride, (x1 - core.x0) // stride),
        )
        constant = tile.colour is not None
        y_hat[into] = tile.y_hat if constant else tile.y_hat[take]
        scale[into] = tile.scale if constant else tile.scale[take]
    if lost:
        own = layout.grid.core(at)
        ends = ((own.y0 - window.y0, own.y1 - window.y0), (own.x0 - window.x0, own.x1 - window.x0))
        nearest = [
            torch.arange(n).clamp(first // stride, last // stride - 1)
            for n, (first, last) in zip(shape, ends, strict=True)
        ]
        for rows, cols in lost:
            for latent in (y_hat, scale):
                latent[:, rows, cols] = latent[:, nearest[0][rows]][:, :, nearest[1][cols]]
    return LatentWindow(y_hat, scale)
