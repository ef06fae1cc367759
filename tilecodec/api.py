"""The public calls. They compose the stages and hold no algorithm."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilecodec.config import Colour, DecodeOptions, Device, EncodeOptions, OnError, Precision, parse_budget
from tilecodec.container.document import DOCUMENT
from tilecodec.container.metadata import (
    CodecConfiguration,
    ContainerMetadata,
    LevelLayout,
    array_json,
    group_json,
    is_complete,
    read_group,
    read_metadata,
)
from tilecodec.container.store import ByteStore, open_store
from tilecodec.errors import Problem, RegionError, TargetExistsError, TileError, UsageError
from tilecodec.files import replace_folder
from tilecodec.limits import DEFAULT_LIMITS, Limits
from tilecodec.memory import peak_memory_bytes
from tilecodec.pools import ForkLock
from tilecodec.source import SourceMetadata, open_source
from tilecodec.tiles import TileGrid
from tilecodec.tiles.cut import sample_checks

if TYPE_CHECKING:
    import dask.array
    import zarr

    from tilecodec.decoder.engine import LevelDecoder, SharedWork
    from tilecodec.decoder.failures import FailedTiles
    from tilecodec.entropy.model import CodecModel

logger = logging.getLogger("tilecodec")

MEGAPIXEL = 1 << 20
"""Pixels of a megapixel, here and in every figure: 1024 x 1024."""

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call has come."""

    pixels_done: int
    """Over all pyramid levels."""
    pixels_total: int
    bytes_written: int
    seconds: float


ProgressCall = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeReport:
    """What an encode did."""

    target: str
    width: int
    height: int
    levels: int
    tiles: int
    empty_tiles: int
    bytes: int
    """All bytes of the container, metadata included."""
    payload_bytes: int
    """Bytes of the tile payloads alone (of the chunks written by this call)."""
    bpp: float
    """Bits of the container per pixel of level 0."""
    ratio: float
    """Raw RGB bytes of level 0 over container bytes."""
    seconds: float
    megapixels_per_second: float
    """Of level 0, 1 MP = 1024 x 1024 px; the pyramid's work is included in the time."""
    peak_memory_bytes: int
    """Peak resident memory of the process so far."""
    model: str
    quality: float

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeReport:
    """What a decode to a file did."""

    target: str
    width: int
    height: int
    seconds: float
    megapixels_per_second: float
    peak_memory_bytes: int
    failed_tiles: int
    """Tiles that could not be decoded and that the region's pixels depend on; 0 unless asked to go on without them."""
    errors: tuple[Problem, ...]
    """What is wrong with them, the first 10 000."""

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelInfo:
    """One pyramid level."""

    path: str
    width: int
    height: int
    tiles: int
    chunks: int
    chunks_present: int
    bytes: int
    """Bytes of the chunks that are there."""
    payload_bytes: int
    """Of these, the tile payloads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerInfo:
    """What a container holds."""

    path: str
    name: str
    complete: bool
    width: int
    height: int
    model: str
    model_sha256: str
    quality: float
    tile: int
    overlap: int
    """Half of what neighbouring windows share, pixels."""
    blend: int
    """Pixels in the middle of it over which they are blended."""
    halo: int
    bytes: int
    bpp: float
    pixel_size_um: tuple[float, float] | None
    lossy_history: tuple[str, ...]
    properties: dict[str, str]
    levels: tuple[LevelInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def encode(
    source: PathLike | NDArray[np.uint8] | dask.array.Array | zarr.Array[Any],
    target: PathLike,
    *,
    progress: ProgressCall | None = None,
    **options: Any,
) -> EncodeReport:
    """Encodes a picture into a container.

    Args:
        source: a TIFF, BigTIFF, OME-TIFF, GeoTIFF, SVS, NDPI, PNG, JPEG ... file, a Zarr, or an array: RGB (or grey)
            uint8, (H, W, 3) or (3, H, W).
        target: the container's folder (usually ``*.zarr``) or an fsspec URL.
        progress: called after every chunk.
        **options: fields of :class:`~tilecodec.config.EncodeOptions`.

    Raises:
        TileCodecError: see :mod:`tilecodec.errors`.
    """
    settings = EncodeOptions(**options)
    begun = time.monotonic()
    if isinstance(source, str | os.PathLike):
        _check_apart(source, target)
    with open_source(source) as pixels:
        return _encode(pixels, os.fspath(target), settings, progress, begun)


def _encode(
    pixels: Any, target: str, settings: EncodeOptions, progress: ProgressCall | None, begun: float
) -> EncodeReport:
    from tilecodec.encoder import ChunkDone, check_memory, encode_levels, level_sizes, plan_encode
    from tilecodec.entropy.model import shared_model

    local = None if "://" in target else Path(target)
    existing = _existing(target, local)
    if existing and not (settings.overwrite or settings.resume):
        raise TargetExistsError(got=target, expected="a new path", hint="Give --overwrite, or --resume to finish it")
    model = shared_model(
        settings.model,
        settings.device,
        settings.precision,
        compile=settings.compile,
        device_memory=settings.device_memory,
    )
    stride = model.config.z_stride
    if settings.tile % stride:
        raise UsageError(
            "the tile side does not fit the model", got=settings.tile, expected=f"a multiple of {stride}", where="tile"
        )
    overlap = model.config.tiling.overlap if settings.overlap is None else settings.overlap
    halo = model.config.tiling.halo if settings.halo is None else settings.halo
    for name, value, limit in (("overlap", overlap, stride // 2), ("halo", halo, settings.tile)):
        if value % model.config.y_stride or value > limit:
            raise UsageError(
                f"the {name} does not fit the model",
                got=value,
                expected=f"a multiple of {model.config.y_stride} up to {limit}",
                where=name,
            )
    codec = CodecConfiguration(
        model=f"sha256:{model.sha256}",
        quality=settings.quality,
        tile=settings.tile,
        stride=stride,
        overlap=overlap,
        blend=min(model.config.tiling.blend, 2 * overlap),
        halo=halo,
    )
    layouts = tuple(
        LevelLayout(
            path=str(n),
            grid=TileGrid(*size, settings.tile, stride),
            chunk_tiles=settings.chunk_tiles,
            codec=codec,
            number=n,
        )
        for n, size in enumerate(level_sizes(pixels.height, pixels.width, settings.levels))
    )
    meta = _describe(pixels, target, layouts, model.alias, settings)
    check_memory(layouts[0], model)
    memory = parse_budget(settings.memory)
    room = None if memory is None else plan_encode(layouts[0], model, memory)
    if room is not None:
        logger.info("%s", room.plan)

    staged = local is not None and existing and settings.overwrite
    place = local.with_name(f".{local.name}.new-{os.getpid()}") if staged and local is not None else target
    store = open_store(place, read_only=False)
    if existing and settings.resume:
        _check_resumable(store, target, meta)
    totals = [0, 0, 0, 0, 0]
    whole = sum(layout.grid.height * layout.grid.width for layout in layouts)

    def done(chunk: ChunkDone) -> None:
        for n, value in enumerate((chunk.pixels, chunk.bytes, chunk.payload_bytes, chunk.tiles, chunk.empty_tiles)):
            totals[n] += value
        if progress is not None:
            progress(Progress(totals[0], whole, totals[1], time.monotonic() - begun))

    documents = {DOCUMENT: group_json(meta)} | {f"{x.path}/{DOCUMENT}": array_json(x) for x in layouts}
    _check_readable(documents, target)
    try:
        for key, document in documents.items():
            store.set(key, document)
        encode_levels(pixels, layouts, store, model, skip_present=settings.resume, done=done, room=room)
        documents[DOCUMENT] = group_json(_completed(meta))
        store.set(DOCUMENT, documents[DOCUMENT])
        if staged and local is not None:
            replace_folder(Path(place), local)
    except BaseException:
        if staged:
            shutil.rmtree(place, ignore_errors=True)
        raise
    seconds = time.monotonic() - begun
    size = totals[1] + sum(len(v) for v in documents.values())
    area = pixels.height * pixels.width
    return EncodeReport(
        target=target,
        width=pixels.width,
        height=pixels.height,
        levels=len(layouts),
        tiles=totals[3],
        empty_tiles=totals[4],
        bytes=size,
        payload_bytes=totals[2],
        bpp=8 * size / area,
        ratio=3 * area / size,
        seconds=seconds,
        megapixels_per_second=area / MEGAPIXEL / seconds,
        peak_memory_bytes=peak_memory_bytes(),
        model=f"{model.alias} (sha256:{model.sha256[:12]})",
        quality=settings.quality,
    )


def _check_apart(source: PathLike, target: PathLike) -> None:
    """Refuses a target that is the source or lies in it: writing it would destroy what is being read."""
    paths = [os.fspath(path) for path in (target, source)]
    inner, outer = (path.rstrip("/") if "://" in path else os.path.realpath(path) for path in paths)
    if inner == outer or inner.startswith(outer + ("/" if "://" in outer else os.sep)):
        raise UsageError("the target is the source, or lies in it", got=target, expected="another place", where=source)


def _existing(target: str, local: Path | None) -> bool:
    """Whether something is at the target; refuses to take a place that no container holds."""
    if local is None:
        return open_store(target, read_only=True).exists("zarr.json")
    if local.is_dir() and not any(local.iterdir()):
        local.rmdir()
    if not local.exists():
        return False
    if not (local / "zarr.json").is_file():
        raise TargetExistsError(
            "the target exists and is no Zarr; it is never replaced",
            got=str(local),
            expected="a new path or a container",
        )
    return True


def _describe(
    pixels: Any, target: str, layouts: tuple[LevelLayout, ...], alias: str, settings: EncodeOptions
) -> ContainerMetadata:
    known: SourceMetadata = pixels.metadata
    quality = layouts[0].codec.quality
    asked = [pixels.height, pixels.width, layouts[0].codec.to_dict(), len(layouts), settings.chunk_tiles]
    asked.append(sample_checks(pixels))
    return ContainerMetadata(
        name=Path(target).name.removesuffix(".zarr"),
        levels=layouts,
        complete=False,
        model_alias=alias,
        pixel_size_um=known.pixel_size_um,
        lossy_history=(*known.earlier_losses, f"tilecodec.dit_ic {alias} quality {quality:g}, generative"),
        properties=known.properties,
        icc_profile=known.icc_profile,
        georeference=known.georeference,
        fingerprint=hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16],
    )


def _check_readable(documents: dict[str, bytes], target: str) -> None:
    """Raises now what a reader with the default limits would raise once everything is written."""
    from zarr.storage import MemoryStore

    store = ByteStore(MemoryStore())
    for key, document in documents.items():
        store.set(key, document)
    read_metadata(store, where=target, allow_incomplete=True)


def _completed(meta: ContainerMetadata) -> ContainerMetadata:
    from dataclasses import replace

    return replace(meta, complete=True)


def _check_resumable(store: ByteStore, target: str, meta: ContainerMetadata) -> None:
    group = read_group(store, where=target, allow_incomplete=True)
    if is_complete(group):
        raise TargetExistsError("the target is complete: nothing to resume", got=target, hint="Give --overwrite")
    found = group["attributes"]["tilecodec"]["fingerprint"]
    if found != meta.fingerprint:
        raise UsageError(
            "the target was begun with another picture, or other settings",
            got=meta.fingerprint,
            expected=found,
            where=target,
            hint="Resume with the same picture, model and options, or give --overwrite",
        )


class Level:
    """One pyramid level, indexed like a numpy array (c, y, x) without being read.

    Attributes:
        shape: (3, H, W).
        dtype: uint8.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, image: Image, number: int) -> None:
        self._image, self._number = image, number
        self.layout = image.metadata.levels[number]
        self.shape = (3, self.layout.grid.height, self.layout.grid.width)
        self._decoder: LevelDecoder | None = None

    @property
    def decoder(self) -> LevelDecoder:
        """The decoder behind it, with the model loaded on first use."""
        with self._image._lock.now:
            if self._decoder is None:
                self._decoder = self._image._make_decoder(self.layout)
            return self._decoder

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        """Pixels as uint8, like numpy's basic indexing: integers, slices (any step) and an ellipsis."""
        picked = _Picked.of(key, self.shape)
        return picked.empty() if picked.region is None else picked.of_region(self.decoder.read(*picked.region))

    async def read_async(self, key: Any = ...) -> NDArray[np.uint8]:
        """Pixels as :meth:`__getitem__` gives them, without blocking the event loop.

        A task that is cancelled stops at the next block of pixels.

        Args:
            key: as in ``level[key]``; all of the level by default.
        """
        picked = _Picked.of(key, self.shape)
        if picked.region is None:
            return picked.empty()
        y0, y1, x0, x1 = picked.region
        decoder = await asyncio.to_thread(lambda: self.decoder)
        out, blocks = np.empty((y1 - y0, x1 - x0, 3), np.uint8), decoder.blocks(y0, y1, x0, x1)
        while (block := await asyncio.to_thread(next, blocks, None)) is not None:
            block.paint(out, y0, x0)
        return picked.of_region(out)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The whole level."""
        return self[...].astype(dtype) if dtype is not None else self[...]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen_level, (*self._image._arguments, self._number)

    def to_dask(self) -> dask.array.Array:
        """A dask array (3, H, W) whose blocks are the container's chunks."""
        import dask.array

        side = self.layout.chunk_side
        blocks: dask.array.Array = dask.array.from_array(  # type: ignore[no-untyped-call]  # dask is partly typed
            self, chunks=(3, side, side), asarray=False, fancy=False, meta=np.empty((0, 0, 0), np.uint8)
        )
        return blocks


@dataclass(frozen=True, slots=True)
class _Picked:
    """What an index picks of a level."""

    ranges: tuple[range, ...]
    """Along c, y, x."""
    kept: tuple[slice | int, ...]
    """Takes away the axes that were indexed by an integer."""

    @classmethod
    def of(cls, key: Any, shape: tuple[int, ...]) -> _Picked:
        picks = _basic_index(key, shape)
        ranges = tuple(
            range(*p.indices(n)) if isinstance(p, slice) else range(p, p + 1) for p, n in zip(picks, shape, strict=True)
        )
        return cls(ranges, tuple(slice(None) if isinstance(p, slice) else 0 for p in picks))

    @property
    def region(self) -> tuple[int, int, int, int] | None:
        """y0, y1, x0, x1 of the pixels that hold all picked ones; None where nothing is picked."""
        if not all(self.ranges):
            return None
        (y0, y1), (x0, x1) = ((min(r[0], r[-1]), max(r[0], r[-1]) + 1) for r in self.ranges[1:])
        return y0, y1, x0, x1

    def empty(self) -> NDArray[np.uint8]:
        return np.empty([len(r) for r in self.ranges], np.uint8)[self.kept]

    def of_region(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picked pixels out of the region's (h, w, 3)."""
        steps = tuple(slice(None, None, r.step) for r in self.ranges[1:])
        channels = np.array(self.ranges[0])
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[channels][(slice(None), *steps)][self.kept])


def _basic_index(key: Any, shape: tuple[int, ...]) -> list[slice | int]:
    keys = list(key) if isinstance(key, tuple) else [key]
    if keys.count(Ellipsis) > 1 or len(keys) - keys.count(Ellipsis) > len(shape):
        raise RegionError("too many indexes", got=key, expected="up to three: c, y, x")
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (len(shape) - len(keys) + 1)
    keys += [slice(None)] * (len(shape) - len(keys))
    picks: list[slice | int] = []
    for axis, item, n in zip("cyx", keys, shape, strict=True):
        if isinstance(item, slice):
            picks.append(item)
            continue
        try:
            index = item.__index__()
        except AttributeError:
            raise RegionError("an index is no integer or slice", got=item, where=f"axis {axis}") from None
        if not -n <= index < n:
            raise RegionError(got=index, expected=f"{-n} to {n - 1}", where=f"axis {axis}")
        picks.append(index % n)
    return picks


class Image:
    """An open container. Level 0 is indexed directly: ``image[:, y0:y1, x0:x1]``.

    Attributes:
        shape: (3, H, W) of level 0.
        dtype: uint8.
        levels: number of pyramid levels.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, path: str, options: DecodeOptions) -> None:
        self._arguments = (path, options)
        self._options = options
        self._store = open_store(path, read_only=True)
        self.path = path
        self.metadata = read_metadata(self._store, where=path, limits=options.limits)
        self._levels = [Level(self, n) for n in range(len(self.metadata.levels))]
        self.levels = len(self._levels)
        self.shape = self._levels[0].shape
        self._lock = ForkLock()
        self._shared: SharedWork | None = None

    def level(self, number: int) -> Level:
        """A pyramid level, 0 the largest. Raises RegionError where there is none."""
        if not 0 <= number < self.levels:
            raise RegionError("no such level", got=number, expected=f"0 to {self.levels - 1}", where=self.path)
        return self._levels[number]

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        """Pixels of level 0, uint8."""
        return self._levels[0][key]

    async def read_async(self, key: Any = ...) -> NDArray[np.uint8]:
        """Pixels of level 0, see :meth:`Level.read_async`."""
        return await self._levels[0].read_async(key)

    def to_dask(self) -> dask.array.Array:
        """Level 0 as a dask array (3, H, W)."""
        return self._levels[0].to_dask()

    def __reduce__(self) -> tuple[Any, ...]:
        return Image, self._arguments

    def _make_decoder(self, layout: LevelLayout) -> LevelDecoder:
        from tilecodec.decoder.engine import LevelDecoder
        from tilecodec.entropy.model import shared_model

        options, named = self._options, layout.codec.model
        wanted = named.removeprefix("sha256:")
        model = shared_model(
            options.model or named,
            options.device,
            options.precision,
            sha256=wanted,
            compile=options.compile,
            device_memory=options.device_memory,
        )
        store = self._store.under(layout.path)
        fill = options.fill if options.on_error == "fill" else None
        return LevelDecoder(store, layout, model, shared=self._work(model), limits=options.limits, fill=fill)

    def _work(self, model: CodecModel) -> SharedWork:
        """What the levels share, made once."""
        from tilecodec.decoder.engine import SharedWork

        with self._lock.now:
            if self._shared is None:
                options, largest = self._options, self.metadata.levels[0]
                self._shared = SharedWork(
                    largest, model, cache_bytes=options.cache_bytes, memory=parse_budget(options.memory)
                )
                if self._shared.plan is not None:
                    logger.info("%s", self._shared.plan)
            return self._shared

    def _failures(self) -> list[FailedTiles]:
        decoders = [level._decoder for level in self._levels if level._decoder is not None]
        return [decoder.fetcher.failed for decoder in decoders if decoder.fetcher.failed is not None]

    @property
    def errors(self) -> list[TileError]:
        """What is wrong with the tiles that reads have filled so far, by level and place; 10 000 a level at most.

        They are those of this object: copies in other processes have their own.
        """
        return [error for failed in self._failures() for error in failed.errors]

    @property
    def failed_tiles(self) -> int:
        """How many tiles reads have filled so far, or done without beside the pixels asked for."""
        return sum(failed.count for failed in self._failures())

    def __repr__(self) -> str:
        return f"<tilecodec.Image {self.path!r} {self.shape[2]} x {self.shape[1]} px, {self.levels} levels>"


def _reopen_level(path: str, options: DecodeOptions, number: int) -> Level:
    return Image(path, options).level(number)


def open(  # noqa: A001  # the verb users expect, as in zarr.open
    path: PathLike,
    *,
    model: str | None = None,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: bool = False,  # noqa: A002  # torch's own name for it
    cache_bytes: int = 64 << 20,
    memory: int | str | None = None,
    device_memory: int | str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    on_error: OnError = "raise",
    fill: Colour = (0, 0, 0),
) -> Image:
    """Opens a container for reading; pixels and model are loaded when they are asked for.

    Args:
        path: the container's folder, or an fsspec URL.
        model: path or name of the model, where the one the container names by hash is not found by itself.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``cuda:N,cuda:M`` spreads windows over several GPUs.
        precision: ``auto``, ``fp32``, ``bf16``, ``fp16`` or ``int8``, see :func:`tilecodec.load_model`.
        compile: let torch.compile make faster code, see :func:`tilecodec.load_model`.
        cache_bytes: decoded windows kept for the next read, of all levels together.
        memory: bytes, or such as ``"2GiB"``, that the process may take in all while it decodes, arrays that are
            returned not counted: see :mod:`tilecodec.budget`. By default, what the machine has.
        device_memory: likewise, what weights and windows may take on a GPU: see :mod:`tilecodec.model.device_budget`.
            By default, what is free there.
        limits: what the container may ask for at most.
        on_error: ``raise``: a read that meets a tile that cannot be decoded is a TileError, naming it. ``fill``: the
            tile's pixels are ``fill``, those of its neighbours as if it were the picture's edge, and
            :attr:`Image.errors` tells. A store that fails is an error always.
        fill: red, green, blue.

    Raises:
        NotAContainerError, IncompleteContainerError, LimitError: see :mod:`tilecodec.errors`.
    """
    options = DecodeOptions(
        model=model,
        device=device,
        precision=precision,
        compile=compile,
        cache_bytes=cache_bytes,
        memory=memory,
        device_memory=device_memory,
        limits=limits,
        on_error=on_error,
        fill=fill,
    )
    return Image(os.fspath(path), options)


def decode(
    source: PathLike,
    target: PathLike,
    *,
    region: tuple[int, int, int, int] | None = None,
    level: int = 0,
    model: str | None = None,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: bool = False,  # noqa: A002  # torch's own name for it
    overwrite: bool = False,
    memory: int | str | None = None,
    device_memory: int | str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    on_error: OnError = "raise",
    fill: Colour = (0, 0, 0),
    progress: ProgressCall | None = None,
) -> DecodeReport:
    """Decodes a level, or a region of it, to a file.

    Args:
        source: the container.
        target: ``.tif``, ``.png``, ``.npy`` (H, W, 3) or ``.zarr`` (3, H, W).
        region: (x, y, width, height) in pixels of the level; all of it by default.
        level: pyramid level, 0 the largest.
        model: see :func:`open`.
        device: see :func:`open`.
        precision: see :func:`open`.
        compile: see :func:`open`.
        overwrite: replace an existing target.
        memory: see :func:`open`.
        device_memory: see :func:`open`.
        limits: see :func:`open`.
        on_error: see :func:`open`; with ``fill`` the report names the tiles.
        fill: see :func:`open`.
        progress: called after every block of pixels.

    Raises:
        TileCodecError: see :mod:`tilecodec.errors`. Nothing is left at the target then.
    """
    from collections.abc import Iterator

    from tilecodec.sink import check_write, write_blocks
    from tilecodec.tiles.rolling import Block

    begun = time.monotonic()
    _check_apart(source, target)
    image = open(
        source,
        model=model,
        device=device,
        precision=precision,
        compile=compile,
        memory=memory,
        device_memory=device_memory,
        limits=limits,
        on_error=on_error,
        fill=fill,
        cache_bytes=0,  # each window is used once; kept ones would lie scattered in the memory that others need
    )
    picked = image.level(level)
    _, height, width = picked.shape
    x, y, w, h = region if region is not None else (0, 0, width, height)
    if w < 1 or h < 1 or x < 0 or y < 0 or x + w > width or y + h > height:
        raise RegionError(
            got=f"x {x}, y {y}, width {w}, height {h}",
            expected=f"within {width} x {height} pixels",
            where=f"{image.path}, level {level}",
        )
    check_write(target, height=h, width=w, overwrite=overwrite)

    def blocks() -> Iterator[Block]:
        pixels = 0
        for block in picked.decoder.blocks(y, y + h, x, x + w):
            yield Block(block.y - y, block.x - x, block.pixels)
            pixels += block.pixels[..., 0].size
            if progress is not None:
                progress(Progress(pixels, h * w, 0, time.monotonic() - begun))

    write_blocks(
        target,
        blocks(),
        height=h,
        width=w,
        tallest=picked.decoder.block_rows,
        metadata=_sink_metadata(image, level, x, y),
        overwrite=overwrite,
    )
    seconds = time.monotonic() - begun
    return DecodeReport(
        target=os.fspath(target),
        width=w,
        height=h,
        seconds=seconds,
        megapixels_per_second=h * w / MEGAPIXEL / seconds,
        peak_memory_bytes=peak_memory_bytes(),
        failed_tiles=image.failed_tiles,
        errors=tuple(map(Problem.of, image.errors)),
    )


def _sink_metadata(image: Image, level: int, x: int, y: int) -> SourceMetadata:
    """The container's metadata for a decoded region: pixel size and place moved to the level and the corner."""
    from tilecodec.container.conventions import scaled
    from tilecodec.source import Georeference

    meta, factor = image.metadata, 2**level
    size = meta.pixel_size_um
    geo = meta.georeference
    if geo is not None:
        a, b, c, d, e, f = scaled(geo.transform, factor)
        moved = (a, b, c + a * x + b * y, d, e, f + d * x + e * y)
        geo = Georeference(epsg=geo.epsg, crs_wkt=geo.crs_wkt, transform=moved)
    return SourceMetadata(
        pixel_size_um=None if size is None else (size[0] * factor, size[1] * factor),
        icc_profile=meta.icc_profile,
        properties=meta.properties,
        georeference=geo,
        earlier_losses=meta.lossy_history,
    )


def info(path: PathLike, *, limits: Limits = DEFAULT_LIMITS) -> ContainerInfo:
    """What a container holds, from its metadata and chunk indexes; no model is loaded.

    Args:
        path: the container's folder, or an fsspec URL.
        limits: see :func:`open`.

    Raises:
        NotAContainerError: no container there. An unfinished one is described, with ``complete`` false.
        LimitError: it asks for more than the limits.
        CorruptTileError: a chunk's index fails a check.
    """
    from tilecodec.container.chunk import index_bytes, parse_index
    from tilecodec.container.presence import Presence

    where = os.fspath(path)
    store = open_store(where, read_only=True)
    meta = read_metadata(store, where=where, allow_incomplete=True, limits=limits)
    levels, total = [], store.size(DOCUMENT)
    for layout in meta.levels:
        array = store.under(layout.path)
        total += array.size(DOCUMENT)
        present, size, payload = 0, 0, 0
        presence = Presence(array, layout)
        for row in range(layout.chunk_rows):
            columns = presence.columns(row)
            for col in range(layout.chunk_cols) if columns else ():
                if col not in columns:
                    continue
                key = layout.key(row, col)
                rows, cols = layout.tiles_of(row, col)
                data = array.get_range(key, 0, index_bytes(rows, cols))
                if data is None:
                    continue
                index = parse_index(data, rows, cols, f"level {layout.path}, chunk {key}", layout.place((row, col)))
                present += 1
                size += array.size(key)
                payload += sum(entry.length for entry in index.entries)
        total += size
        levels.append(
            LevelInfo(
                path=layout.path,
                width=layout.grid.width,
                height=layout.grid.height,
                tiles=layout.grid.rows * layout.grid.cols,
                chunks=layout.chunk_rows * layout.chunk_cols,
                chunks_present=present,
                bytes=size,
                payload_bytes=payload,
            )
        )
    first = meta.levels[0]
    return ContainerInfo(
        path=where,
        name=meta.name,
        complete=meta.complete,
        width=first.grid.width,
        height=first.grid.height,
        model=meta.model_alias,
        model_sha256=first.codec.model.removeprefix("sha256:"),
        quality=first.codec.quality,
        tile=first.codec.tile,
        overlap=first.codec.overlap,
        blend=first.codec.blend,
        halo=first.codec.halo,
        bytes=total,
        bpp=8 * total / (first.grid.height * first.grid.width),
        pixel_size_um=meta.pixel_size_um,
        lossy_history=meta.lossy_history,
        properties=dict(meta.properties),
        levels=tuple(levels),
    )
