"""The container's metadata: an OME-Zarr 0.5 group whose level arrays use our codec. See ``formats/container.md``."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tilecodec.container.chunk import ChunkPlace
from tilecodec.container.conventions import geo_attributes
from tilecodec.container.document import DOCUMENT, load_document
from tilecodec.container.rules import (
    AXES,
    BITSTREAM,
    CODEC_FIELDS,
    CODEC_NAME,
    FORMAT_VERSION,
    array_faults,
    codec_faults,
    group_faults,
    level_paths,
    pyramid_faults,
)
from tilecodec.container.store import ByteStore
from tilecodec.errors import ContainerError, IncompleteContainerError
from tilecodec.limits import DEFAULT_LIMITS, Limits
from tilecodec.source import Georeference
from tilecodec.tiles import Margin, TileGrid, TilePosition, Window

_EPSG: Final = re.compile(r"EPSG:([0-9]{1,9})")


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecConfiguration:
    """The codec's configuration in every level array: all that decoding needs beside the model."""

    bitstream: int = BITSTREAM
    """Version of the codec: 1, windows reach over all four sides of their tiles; 2, above and on the left alone, and
    are blended over less than they share."""
    model: str
    """``sha256:`` and the hash of the model file."""
    quality: float
    """1 to 100."""
    tile: int
    """Tile side, pixels."""
    stride: int
    """The model's hyper-latent stride, pixels."""
    overlap: int
    """Half of what neighbouring windows share, pixels."""
    blend: int
    """Pixels in the middle of it over which they are blended; in bitstream 1, all."""
    halo: int
    """Margin of pixels a tile was analysed with. Not needed for decoding."""

    @property
    def margin(self) -> Margin:
        """Neighbouring latents that a tile is decoded with.

        Windows that begin above and on the left of their tile and end with it are made of four tiles, not of nine.
        """
        return Margin(self.overlap, self.overlap) if self.bitstream == 1 else Margin(2 * self.overlap, 0)

    @property
    def share(self) -> Margin:
        """What of the decoded windows is a part of the picture: the rest has no weight."""
        margin, spare = self.margin, (2 * self.overlap - self.blend) // 2
        return Margin(margin.before - spare, margin.after - spare)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {name: getattr(self, name) for name in CODEC_FIELDS[self.bitstream]}

    @classmethod
    def from_dict(cls, data: Any, where: str) -> CodecConfiguration:
        """Checked inverse of :meth:`to_dict`.

        Raises:
            NotAContainerError: fields or values that break the format's rules.
        """
        _raise_first(codec_faults(data, where))
        return cls.from_sound(data)

    @classmethod
    def from_sound(cls, data: Mapping[str, Any]) -> CodecConfiguration:
        """:meth:`from_dict` of what has no faults."""
        return cls(**{"blend": 2 * data["overlap"], **data})


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelLayout:
    """Where the tiles of one level are stored."""

    path: str
    grid: TileGrid
    chunk_tiles: int
    """Tiles along a chunk's side."""
    codec: CodecConfiguration
    stamp: tuple[int, ...] | None = field(default=None, compare=False)
    """Of the level's document when it was read, see :meth:`ByteStore.stamp`."""
    number: int | None = None
    """Of the level in its container, 0 the largest; None outside of one."""
    loose: bool = False
    """Whether chunks are read that may come from anywhere."""

    @property
    def chunk_side(self) -> int:
        """Pixels along a chunk's side."""
        return self.grid.tile * self.chunk_tiles

    @property
    def chunk_rows(self) -> int:
        """Rows of chunks."""
        return -(-self.grid.height // self.chunk_side)

    @property
    def chunk_cols(self) -> int:
        """Columns of chunks."""
        return -(-self.grid.width // self.chunk_side)

    def window(self, at: TilePosition) -> Window:
        """What a tile is decoded as a part of, in the padded picture."""
        return self.grid.window(at, self.codec.margin)

    def share(self, at: TilePosition) -> Window:
        """What of a tile's window is a part of the picture, which is padded."""
        return self.grid.window(at, self.codec.share)

    def tiles_of(self, chunk_row: int, chunk_col: int) -> tuple[int, int]:
        """Tile rows and columns that a chunk holds."""
        n = self.chunk_tiles
        return min(n, self.grid.rows - chunk_row * n), min(n, self.grid.cols - chunk_col * n)

    def key(self, chunk_row: int, chunk_col: int) -> str:
        """The chunk's key within its array."""
        return f"c/0/{chunk_row}/{chunk_col}"

    def place(self, chunk: tuple[int, int]) -> ChunkPlace | None:
        """What a chunk's index says of its place; None where that does not matter."""
        return None if self.loose else ChunkPlace(self.number, *chunk)

    def chunk_of(self, at: TilePosition) -> tuple[int, int]:
        """The chunk that holds a tile."""
        return at.row // self.chunk_tiles, at.col // self.chunk_tiles

    def where(self, at: TilePosition) -> str:
        """How errors name a tile."""
        return f"level {self.path}, tile row {at.row}, column {at.col}"

    def where_chunk(self, chunk: tuple[int, int]) -> str:
        """How errors name a chunk, by its row and column."""
        return f"level {self.path}, chunk {self.key(*chunk)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerMetadata:
    """What the group says of the whole container."""

    name: str
    levels: tuple[LevelLayout, ...]
    complete: bool
    model_alias: str
    pixel_size_um: tuple[float, float] | None = None
    """Micrometres per pixel of level 0, (y, x)."""
    lossy_history: tuple[str, ...] = ()
    """Every loss the pixels have met, oldest first; this codec's own is the last."""
    properties: Mapping[str, str] = field(default_factory=dict)
    """Properties of the source, verbatim."""
    icc_profile: bytes | None = None
    """The source's ICC profile, verbatim."""
    georeference: Georeference | None = None
    fingerprint: str = ""
    """What the encoder was asked for; a resumed encode must match it."""


def array_json(layout: LevelLayout) -> bytes:
    """The ``zarr.json`` of a level array."""
    side = layout.chunk_side
    return _dump(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [3, layout.grid.height, layout.grid.width],
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [3, side, side]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": CODEC_NAME, "configuration": layout.codec.to_dict()}],
            "dimension_names": list(AXES),
            "attributes": {},
        }
    )


def group_json(meta: ContainerMetadata) -> bytes:
    """The ``zarr.json`` of the group."""
    space: dict[str, Any] = {"type": "space"} | ({"unit": "micrometer"} if meta.pixel_size_um else {})
    size_y, size_x = meta.pixel_size_um or (1.0, 1.0)
    datasets = []
    for n, level in enumerate(meta.levels):
        factor = 2**n
        transforms = [{"type": "scale", "scale": [1, size_y * factor, size_x * factor]}]
        if n:
            shift = (factor - 1) / 2
            transforms.append({"type": "translation", "translation": [0, size_y * shift, size_x * shift]})
        datasets.append({"path": level.path, "coordinateTransformations": transforms})
    multiscale = {
        "name": meta.name,
        "type": "mean",
        "axes": [{"name": "c", "type": "channel"}, {"name": "y"} | space, {"name": "x"} | space],
        "datasets": datasets,
    }
    own = {
        "version": FORMAT_VERSION,
        "complete": meta.complete,
        "model": meta.model_alias,
        "lossy_history": list(meta.lossy_history),
        "fingerprint": meta.fingerprint,
    }
    if meta.properties:
        own["properties"] = dict(meta.properties)
    if meta.icc_profile is not None:
        own["icc_profile"] = base64.b64encode(meta.icc_profile).decode()
    geo = {}
    if meta.georeference is not None:
        sizes = [(level.path, level.grid.height, level.grid.width) for level in meta.levels]
        geo = geo_attributes(meta.georeference, sizes)
    attributes = {"ome": {"version": "0.5", "multiscales": [multiscale]}, "tilecodec": own} | geo
    return _dump({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def read_metadata(
    store: ByteStore, *, where: str, allow_incomplete: bool = False, limits: Limits = DEFAULT_LIMITS
) -> ContainerMetadata:
    """Reads and checks a container's metadata.

    Args:
        store: the container.
        where: named in errors.
        allow_incomplete: describe a container that was never finished.
        limits: what it may ask for at most.

    Raises:
        NotAContainerError: nothing there, or metadata that break the format's rules.
        IncompleteContainerError: the container was never finished (unless ``allow_incomplete``).
        LimitError: it asks for more than the limits.
    """
    group = read_group(store, where=where, allow_incomplete=allow_incomplete, limits=limits)
    paths = level_paths(group, limits)
    stamps = [store.under(path).stamp(DOCUMENT) for path in paths]
    arrays = [_read_array(store.under(path), path, where, limits, whole=is_complete(group)) for path in paths]
    _raise_first(pyramid_faults(list(enumerate(arrays)), where))
    levels = tuple(
        make_layout(array, path, stamp, number)
        for number, (array, path, stamp) in enumerate(zip(arrays, paths, stamps, strict=True))
    )
    attributes = group["attributes"]
    own, (multiscale,) = attributes["tilecodec"], attributes["ome"]["multiscales"]
    _, size_y, size_x = multiscale["datasets"][0]["coordinateTransformations"][0]["scale"]
    return ContainerMetadata(
        name=multiscale.get("name", ""),
        levels=levels,
        complete=own["complete"],
        model_alias=own["model"],
        pixel_size_um=(float(size_y), float(size_x)) if multiscale["axes"][1].get("unit") else None,
        lossy_history=tuple(own["lossy_history"]),
        properties=own.get("properties", {}),
        icc_profile=base64.b64decode(own["icc_profile"]) if "icc_profile" in own else None,
        georeference=_georeference(attributes),
        fingerprint=own["fingerprint"],
    )


def read_group(
    store: ByteStore, *, where: str, allow_incomplete: bool = False, limits: Limits = DEFAULT_LIMITS
) -> dict[str, Any]:
    """The group's document alone, checked; see :func:`read_metadata`, whose errors it raises."""
    group = load_document(store, where, limits)
    faults = group_faults(group, where, limits)
    _raise_first(f for f in faults if not (allow_incomplete and isinstance(f, IncompleteContainerError)))
    return group


def number_in_group(store: ByteStore, path: str, where: str) -> int | None:
    """The number of a level in the container that ``store`` points at.

    Args:
        store: a group, which may be no container.
        path: the level's name in it.
        where: named in errors.

    Returns:
        None where the group is someone else's, or has faults.

    Raises:
        IncompleteContainerError: the container is unfinished.
    """
    group = load_document(store, where, DEFAULT_LIMITS)
    faults = list(group_faults(group, where, DEFAULT_LIMITS))
    _raise_first(f for f in faults if isinstance(f, IncompleteContainerError))
    paths = [] if faults else level_paths(group, DEFAULT_LIMITS)
    return paths.index(path) if path in paths else None


def is_complete(group: dict[str, Any]) -> bool:
    """Whether a group's document, which may have faults, says that everything of the container has been written."""
    attributes = group.get("attributes")
    own = attributes.get("tilecodec") if isinstance(attributes, dict) else None
    return isinstance(own, dict) and own.get("complete") is True


def _georeference(attributes: dict[str, Any]) -> Georeference | None:
    """What the ``spatial:`` and ``proj:`` attributes say."""
    if "spatial:transform" not in attributes:
        return None
    a, b, c, d, e, f = (float(v) for v in attributes["spatial:transform"])
    code = _EPSG.fullmatch(attributes.get("proj:code", ""))
    return Georeference(
        epsg=None if code is None else int(code[1]),
        crs_wkt=attributes.get("proj:wkt2"),
        transform=(a, b, c, d, e, f),
    )


def read_layout(
    store: ByteStore, path: str, where: str, limits: Limits = DEFAULT_LIMITS, *, number: int | None = None
) -> LevelLayout:
    """The layout of the level array that ``store`` points at.

    Args:
        store: the array.
        path: its name in its group.
        where: named in errors.
        limits: what it may ask for at most.
        number: see :attr:`LevelLayout.number`.

    Raises:
        NotAContainerError: nothing there, or metadata that break the format's rules.
        LimitError: it asks for more than the limits.
    """
    stamp = store.stamp(DOCUMENT)
    return make_layout(_read_array(store, path, where, limits, whole=True), path, stamp, number)


def _read_array(store: ByteStore, path: str, where: str, limits: Limits, *, whole: bool) -> dict[str, Any]:
    """A level array's document, checked. ``whole``: its container is complete."""
    where = f"{where}, level {path}"
    try:
        array = load_document(store, where, limits)
    except ContainerError as error:
        if whole or error.reason != "no-metadata":
            raise
        raise IncompleteContainerError("the container's encoder has not come to this level", where=where) from error
    _raise_first(array_faults(array, where, limits))
    return array


def make_layout(
    array: dict[str, Any], path: str, stamp: tuple[int, ...] | None, number: int | None = None
) -> LevelLayout:
    """The layout that a level array's document describes.

    Args:
        array: the document, which has no faults.
        path: the level's.
        stamp: the document's, from before it was read.
        number: see :attr:`LevelLayout.number`.
    """
    codec = CodecConfiguration.from_sound(array["codecs"][0]["configuration"])
    _, height, width = array["shape"]
    side = array["chunk_grid"]["configuration"]["chunk_shape"][1]
    grid = TileGrid(height, width, codec.tile, codec.stride)
    return LevelLayout(path=path, grid=grid, chunk_tiles=side // codec.tile, codec=codec, stamp=stamp, number=number)


def _raise_first(faults: Iterable[ContainerError]) -> None:
    for fault in faults:
        raise fault


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


__all__ = [
    "AXES",
    "CODEC_NAME",
    "CodecConfiguration",
    "ContainerError",
    "ContainerMetadata",
    "LevelLayout",
    "array_json",
    "group_json",
    "is_complete",
    "make_layout",
    "number_in_group",
    "read_group",
    "read_layout",
    "read_metadata",
]
