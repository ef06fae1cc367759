"""The Zarr v3 codec ``tilecodec.dit_ic``: plain zarr, dask and xarray read level arrays through it.

zarr-python hands a codec that decodes in part the chunk's place in its store; from there this codec reaches the
array's metadata and the neighbouring chunks, so that plain zarr returns the same blended pixels as
:func:`tilecodec.open`. Where only a chunk's bytes are at hand, the chunk is decoded alone, edges extended.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, cast

import numpy as np
from zarr.abc.codec import ArrayBytesCodec, ArrayBytesCodecPartialDecodeMixin
from zarr.core.common import JSON
from zarr.storage import MemoryStore, StorePath

from tilecodec.container.chunk import HEAD, MAGIC, TileState, parse_index
from tilecodec.container.document import DOCUMENT
from tilecodec.container.metadata import CODEC_NAME, CodecConfiguration, LevelLayout, number_in_group, read_layout
from tilecodec.container.rules import MAX_CHUNK_TILES
from tilecodec.container.store import ByteStore
from tilecodec.entropy.payload import HEADER
from tilecodec.errors import CorruptTileError, LostTileError, NotAContainerError, UsageError
from tilecodec.pools import ForkLock, Pool
from tilecodec.tiles import TileGrid

if TYPE_CHECKING:
    from zarr.abc.store import ByteGetter, Store
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

    from tilecodec.decoder.engine import LevelDecoder

CACHE_BYTES = 64 << 20
"""Decoded windows kept per array that plain zarr reads."""
OPEN_ARRAYS = 16
_READS: Final = Pool(4, "tilecodec-zarr")
"""Where chunks are decoded: not in the threads of zarr's event loop, which the reads of stores wait for."""


class _OpenArrays:
    """Decoders of the arrays being read, the most recent kept; a decoder goes when its store object goes."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._decoders: OrderedDict[tuple[int, str], tuple[weakref.ref[Store], LevelDecoder]] = OrderedDict()

    def get(self, store: Store, path: str) -> LevelDecoder:
        """The decoder of the array at ``path``."""
        key = (id(store), path)
        with self._lock.now:
            found = self._decoders.get(key)
            if found is not None and found[0]() is store:
                self._decoders.move_to_end(key)
                return found[1]
            array = ByteStore(store, path)
            number = _number(store, path)
            decoder = make_decoder(array, read_layout(array, path.rsplit("/", 1)[-1], str(store), number=number))
            self._decoders[key] = (weakref.ref(store), decoder)
            while len(self._decoders) > OPEN_ARRAYS:
                self._decoders.popitem(last=False)
            return decoder


def _number(store: Store, path: str) -> int | None:
    """The level's number in its container, where the store reaches the container's group, which must be finished."""
    if not path:
        return None
    parent, _, name = path.rpartition("/")
    group = ByteStore(store, parent)
    return number_in_group(group, name, f"{store}/{parent}") if group.exists(DOCUMENT) else None


_ARRAYS = _OpenArrays()


def make_decoder(store: ByteStore, layout: LevelLayout) -> LevelDecoder:
    """A level decoder with the process's shared copy of its model."""
    from tilecodec.decoder.engine import LevelDecoder, SharedWork
    from tilecodec.entropy.model import shared_model

    model = shared_model(layout.codec.model)
    return LevelDecoder(store, layout, model, shared=SharedWork(layout, model, cache_bytes=CACHE_BYTES))


@dataclass(frozen=True)
class DiTICCodec(ArrayBytesCodec, ArrayBytesCodecPartialDecodeMixin):
    """Array (3, H, W) uint8 to bytes, by DiT-IC tiles. Reading only: arrays are written by :func:`tilecodec.encode`."""

    is_fixed_size = False
    configuration: CodecConfiguration

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """From the codec's metadata."""
        return cls(CodecConfiguration.from_dict(data.get("configuration"), f"codec {CODEC_NAME}"))

    def to_dict(self) -> dict[str, JSON]:
        """The codec's metadata."""
        return {"name": CODEC_NAME, "configuration": self.configuration.to_dict()}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Refuses arrays that are not (3, H, W) uint8."""
        native = dtype.to_native_dtype() if hasattr(dtype, "to_native_dtype") else np.dtype(dtype)
        if len(shape) != 3 or shape[0] != 3 or native != np.uint8:
            raise UsageError(
                "the codec takes RGB arrays only", got=f"{native} {shape}", expected="uint8 (3, H, W)", where=CODEC_NAME
            )

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Unknown: payloads vary in size."""
        raise NotImplementedError("the encoded size varies")

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        raise UsageError(
            "chunks are not written one by one: neighbours would not be analysed",
            where=CODEC_NAME,
            hint="Write the whole picture with tilecodec.encode",
        )

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        decoding = _READS.submit(decode_alone, chunk_bytes.to_bytes(), self.configuration, chunk_spec.shape)
        pixels = await asyncio.wrap_future(decoding)
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(cast(Any, pixels))

    async def _decode_partial_single(
        self, byte_getter: ByteGetter, selection: Any, chunk_spec: ArraySpec
    ) -> NDBuffer | None:
        chunk = _place(byte_getter)
        if chunk is None and isinstance(byte_getter, StorePath):
            raise NotAContainerError(
                "the level array's chunks have other keys",
                got=byte_getter.path,
                expected="c/0/ROW/COLUMN",
                where=CODEC_NAME,
                reason="array-geometry",
            )
        if chunk is None:
            data = await byte_getter.get(chunk_spec.prototype)
            if data is None:
                raise LostTileError("a chunk is absent", where=byte_getter, reason="chunk-absent")
            whole = await self._decode_single(data, chunk_spec)
            return whole[selection]
        assert isinstance(byte_getter, StorePath)
        path, row, col = chunk
        reading = _READS.submit(self._read, byte_getter.store, path, row, col, selection, chunk_spec.shape)
        pixels = await asyncio.wrap_future(reading)
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(cast(Any, pixels))

    @staticmethod
    def _read(
        store: Store, path: str, row: int, col: int, selection: tuple[Any, ...], shape: tuple[int, ...]
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        decoder = _ARRAYS.get(store, path)
        (y0, y1), (x0, x1) = (_bounds(s, n) for s, n in zip(selection[1:], shape[1:], strict=True))
        top, left = row * shape[1], col * shape[2]
        y_end, x_end = min(top + y1, decoder.height), min(left + x1, decoder.width)
        block = np.zeros((3, y1 - y0, x1 - x0), np.uint8)
        if y_end > top + y0 and x_end > left + x0:
            pixels = decoder.read(top + y0, y_end, left + x0, x_end)
            block[:, : pixels.shape[0], : pixels.shape[1]] = pixels.transpose(2, 0, 1)
        inner = (selection[0], _shift(selection[1], y0), _shift(selection[2], x0))
        return np.ascontiguousarray(block[inner])


def _place(byte_getter: ByteGetter) -> tuple[str, int, int] | None:
    """Array path, chunk row and column, where the getter is a place in a store under the default key encoding."""
    if not isinstance(byte_getter, StorePath):
        return None
    parts = byte_getter.path.split("/")
    if len(parts) < 4 or parts[-4] != "c" or parts[-3] != "0" or not (parts[-2] + parts[-1]).isdigit():
        return None
    return "/".join(parts[:-4]), int(parts[-2]), int(parts[-1])


def _bounds(selection: Any, length: int) -> tuple[int, int]:
    """The smallest range that holds all of a selection along one axis."""
    if isinstance(selection, slice):
        indexes = range(*selection.indices(length))
        return (min(indexes), max(indexes) + 1) if indexes else (0, 1)
    values = np.asarray(selection)
    if values.dtype == bool:
        values = np.flatnonzero(values)
    return (int(values.min()), int(values.max()) + 1) if values.size else (0, 1)


def _shift(selection: Any, start: int) -> Any:
    if isinstance(selection, slice):
        step = selection.step or 1
        begin = (selection.start or 0) - start
        end = None if selection.stop is None else selection.stop - start
        return slice(begin, end, step)
    values = np.asarray(selection)
    if values.dtype == bool:
        values = np.flatnonzero(values)
    return values - start


def decode_alone(data: bytes, codec: CodecConfiguration, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A chunk from its own bytes only: blended inside, its outer edges as a picture's edges.

    Args:
        data: the chunk's bytes.
        codec: the array's codec configuration.
        shape: (3, side, side) of a chunk; beyond the picture it is filled with zeros.

    Returns:
        uint8, ``shape``.

    Raises:
        NotAContainerError: chunks of another shape than the format's.
        TileError: see :mod:`tilecodec.errors`.
    """
    side = shape[-1]
    if shape != (3, side, side) or side % codec.tile or not 1 <= side // codec.tile <= MAX_CHUNK_TILES:
        raise NotAContainerError(
            "the array's chunks break the format's rules",
            got=shape,
            expected=f"(3, S, S), S 1 to {MAX_CHUNK_TILES} times {codec.tile}",
            where=CODEC_NAME,
            reason="array-geometry",
        )
    if len(data) < HEAD.size or data[:4] != MAGIC or not data[5] or not data[6]:
        raise CorruptTileError("the bytes are no chunk", got=data[:8], where=CODEC_NAME, reason="index-magic")
    rows, cols, most = data[5], data[6], side // codec.tile
    if max(rows, cols) > most:
        raise CorruptTileError(
            "the chunk holds more tiles than it has room for",
            got=(rows, cols),
            expected=f"at most {most} along a side",
            where=CODEC_NAME,
            reason="index-shape",
        )
    index = parse_index(data, rows, cols, CODEC_NAME)

    def true_extent(entries: list[int], field: int) -> int:
        for n in entries:
            entry = index.entries[n]
            if entry.state is TileState.CODED and entry.offset + HEADER.size <= len(data):
                extent = int(HEADER.unpack_from(data, entry.offset)[field])
                if not 1 <= extent <= codec.tile:
                    raise CorruptTileError(
                        "a tile is larger than tiles are",
                        got=extent,
                        expected=f"1 to {codec.tile}",
                        where=CODEC_NAME,
                        reason="payload-size",
                    )
                return extent
        return codec.tile

    height = (rows - 1) * codec.tile + true_extent([(rows - 1) * cols + c for c in range(cols)], 2)
    width = (cols - 1) * codec.tile + true_extent([r * cols + cols - 1 for r in range(rows)], 3)
    store = ByteStore(MemoryStore())
    layout = LevelLayout(
        path="",
        grid=TileGrid(height, width, codec.tile, codec.stride),
        chunk_tiles=max(rows, cols),
        codec=codec,
        loose=True,
    )
    store.set(layout.key(0, 0), data)
    pixels = make_decoder(store, layout).read(0, height, 0, width)
    out = np.zeros(shape, np.uint8)
    out[:, :height, :width] = pixels.transpose(2, 0, 1)[:, :side, :side]
    return out
