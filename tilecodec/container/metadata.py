"""The container's metadata: an OME-Zarr 0.5 group whose level arrays use our codec. See ``formats/container.md``."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tilecodec.container.conventions import geo_attributes
from tilecodec.container.store import ByteStore
from tilecodec.errors import ContainerError, IncompleteContainerError, NotAContainerError
from tilecodec.source import Georeference
from tilecodec.tiles import TileGrid, TilePosition

FORMAT_VERSION: Final = 1
CODEC_NAME: Final = "tilecodec.dit_ic"
AXES: Final = ("c", "y", "x")
_MODEL: Final = re.compile("sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecConfiguration:
    """The codec's configuration in every level array: all that decoding needs beside the model."""

    bitstream: int = 1
    """Version of chunk and payload layout."""
    model: str
    """``sha256:`` and the hash of the model file."""
    quality: float
    """1 to 100."""
    tile: int
    """Tile side, pixels."""
    stride: int
    """The model's hyper-latent stride, pixels."""
    overlap: int
    """Margin of neighbouring latents a tile is decoded with, pixels."""
    halo: int
    """Margin of pixels a tile was analysed with. Not needed for decoding."""

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, data: Any, where: str) -> CodecConfiguration:
        """Checked inverse of :meth:`to_dict`."""
        if isinstance(data, dict) and data.get("bitstream", 1) != 1:
            raise NotAContainerError(
                "the container was written by a newer version",
                got=data["bitstream"],
                expected=1,
                where=where,
                hint="Update tilecodec",
                reason="codec-version",
            )
        if not isinstance(data, dict) or set(data) != set(cls.__slots__):
            raise NotAContainerError(
                "the codec's configuration has other fields",
                got=sorted(data) if isinstance(data, dict) else type(data).__name__,
                expected=sorted(cls.__slots__),
                where=where,
                reason="codec-fields",
            )
        model, quality = data["model"], data["quality"]
        integers = [data[k] for k in ("tile", "stride", "overlap", "halo")]
        tile, stride, overlap, _ = integers
        ok = (
            isinstance(model, str)
            and _MODEL.fullmatch(model) is not None
            and isinstance(quality, int | float)
            and not isinstance(quality, bool)
            and 1 <= quality <= 100
            and all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 65536 for v in integers)
            and stride > 0
            and 0 < tile <= 4096
            and tile % stride == 0
            and 2 * overlap <= stride
            and overlap % max(1, stride // 4) == 0
        )
        if not ok:
            raise NotAContainerError(
                "the codec's configuration has a value out of range", got=data, where=where, reason="codec-values"
            )
        return cls(**data)


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelLayout:
    """Where the tiles of one level are stored."""

    path: str
    grid: TileGrid
    chunk_tiles: int
    """Tiles along a chunk's side."""
    codec: CodecConfiguration

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

    def tiles_of(self, chunk_row: int, chunk_col: int) -> tuple[int, int]:
        """Tile rows and columns that a chunk holds."""
        n = self.chunk_tiles
        return min(n, self.grid.rows - chunk_row * n), min(n, self.grid.cols - chunk_col * n)

    def key(self, chunk_row: int, chunk_col: int) -> str:
        """The chunk's key within its array."""
        return f"c/0/{chunk_row}/{chunk_col}"

    def chunk_of(self, at: TilePosition) -> tuple[int, int]:
        """The chunk that holds a tile."""
        return at.row // self.chunk_tiles, at.col // self.chunk_tiles

    def where(self, at: TilePosition) -> str:
        """How errors name a tile."""
        return f"level {self.path}, tile row {at.row}, column {at.col}"


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


def read_metadata(store: ByteStore, *, where: str, allow_incomplete: bool = False) -> ContainerMetadata:
    """Reads and checks a container's metadata.

    Raises:
        NotAContainerError: nothing there, or metadata that break the format's rules.
        IncompleteContainerError: the container was never finished (unless ``allow_incomplete``).
    """
    group = _load(store, "zarr.json", where)
    attributes = group.get("attributes")
    own = attributes.get("tilecodec") if isinstance(attributes, dict) else None
    if group.get("node_type") != "group" or not isinstance(own, dict) or not isinstance(attributes, dict):
        raise NotAContainerError(
            "this Zarr is not a tilecodec container",
            got=group.get("node_type"),
            expected="a group with a 'tilecodec' attribute",
            where=where,
            reason="group-attributes",
        )
    if own.get("version") != FORMAT_VERSION:
        raise NotAContainerError(
            "the container's format version is unknown",
            got=own.get("version"),
            expected=FORMAT_VERSION,
            where=where,
            hint="Update tilecodec",
            reason="group-version",
        )
    complete = own.get("complete") is True
    if not complete and not allow_incomplete:
        raise IncompleteContainerError(
            where=where, hint="Its encoder is still running or was stopped; finish it with --resume"
        )
    try:
        multiscale = attributes["ome"]["multiscales"][0]
        paths = [str(d["path"]) for d in multiscale["datasets"]]
        name = str(multiscale.get("name", ""))
        scale = multiscale["datasets"][0]["coordinateTransformations"][0]["scale"]
        unit = multiscale["axes"][1].get("unit")
        size = (float(scale[1]), float(scale[2])) if unit == "micrometer" else None
        history = tuple(str(v) for v in own.get("lossy_history", []))
        properties = {str(k): str(v) for k, v in own.get("properties", {}).items()}
        icc = base64.b64decode(own["icc_profile"], validate=True) if "icc_profile" in own else None
        georeference = _georeference(attributes)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise NotAContainerError(
            "the group's OME-Zarr metadata are malformed", got=repr(error), where=where, reason="group-ome"
        ) from error
    if not paths:
        raise NotAContainerError("the pyramid has no level", where=where, reason="group-ome")
    return ContainerMetadata(
        name=name,
        levels=tuple(read_layout(store.under(path), path, where) for path in paths),
        complete=complete,
        model_alias=str(own.get("model", "")),
        pixel_size_um=size,
        lossy_history=history,
        properties=properties,
        icc_profile=icc,
        georeference=georeference,
        fingerprint=str(own.get("fingerprint", "")),
    )


def _georeference(attributes: dict[str, Any]) -> Georeference | None:
    """What the ``spatial:`` and ``proj:`` attributes say; values of the wrong form raise TypeError or ValueError."""
    if "spatial:transform" not in attributes:
        return None
    a, b, c, d, e, f = (float(v) for v in attributes["spatial:transform"])
    code, wkt = attributes.get("proj:code"), attributes.get("proj:wkt2")
    epsg = int(code.removeprefix("EPSG:")) if isinstance(code, str) and code.startswith("EPSG:") else None
    return Georeference(epsg=epsg, crs_wkt=wkt if isinstance(wkt, str) else None, transform=(a, b, c, d, e, f))


def read_layout(store: ByteStore, path: str, where: str) -> LevelLayout:
    """The layout of the level array that ``store`` points at."""
    where = f"{where}, level {path}"
    array = _load(store, "zarr.json", where)
    try:
        bands, height, width = array["shape"]
        depth, side, side_x = array["chunk_grid"]["configuration"]["chunk_shape"]
        (codec,) = array["codecs"]
        name, configuration = codec["name"], codec["configuration"]
        encoding = array["chunk_key_encoding"]
        separator = encoding.get("configuration", {}).get("separator", "/")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotAContainerError(
            "the level array's metadata are malformed", got=repr(error), where=where, reason="array-fields"
        ) from error
    if name != CODEC_NAME:
        raise NotAContainerError(
            "the level array uses another codec", got=name, expected=CODEC_NAME, where=where, reason="array-codec"
        )
    config = CodecConfiguration.from_dict(configuration, where)
    sizes = (height, width, side, side_x)
    if (
        not all(isinstance(v, int) and 0 < v < 1 << 31 for v in sizes)
        or (bands, depth) != (3, 3)
        or side != side_x
        or side % config.tile
        or not 1 <= side // config.tile <= 16
        or array.get("data_type") != "uint8"
        or (encoding.get("name"), separator) != ("default", "/")
    ):
        raise NotAContainerError(
            "the level array's shape, chunks or type break the format's rules",
            got={k: array.get(k) for k in ("shape", "chunk_grid", "data_type", "chunk_key_encoding")},
            expected="uint8 (3, H, W) in square chunks of 1 to 16 tiles a side",
            where=where,
            reason="array-geometry",
        )
    grid = TileGrid(height, width, config.tile, config.stride)
    return LevelLayout(path=path, grid=grid, chunk_tiles=side // config.tile, codec=config)


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _load(store: ByteStore, key: str, where: str) -> dict[str, Any]:
    data = store.get(key)
    if data is None:
        raise NotAContainerError("no zarr.json there", where=where, reason="no-metadata")
    try:
        value = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise NotAContainerError("zarr.json is not JSON", got=str(error), where=where, reason="not-json") from error
    if not isinstance(value, dict) or value.get("zarr_format") != 3:
        raise NotAContainerError(
            "zarr.json is not Zarr v3 metadata", expected="zarr_format 3", where=where, reason="not-zarr"
        )
    return value


__all__ = [
    "AXES",
    "CODEC_NAME",
    "CodecConfiguration",
    "ContainerError",
    "ContainerMetadata",
    "LevelLayout",
    "array_json",
    "group_json",
    "read_layout",
    "read_metadata",
]
