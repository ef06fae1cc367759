"""Zarr arrays, and level 0 of OME-Zarr 0.4 and 0.5 groups."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray

from tilecodec.errors import SourceError, TileCodecError
from tilecodec.source.arrays import chunked_source
from tilecodec.source.axes import Axes, axes_by_name, axes_by_shape
from tilecodec.source.base import SourceMetadata, dropped_band
from tilecodec.source.cache import MEMORY_BYTES
from tilecodec.source.grid import GridSource

MARKS: Final = ("zarr.json", ".zarray", ".zgroup")
"""A folder with one of these is a Zarr array or group."""
FAULTS: Final = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OSError,
    EOFError,
    struct.error,
    zlib.error,
)
"""What zarr and its codecs raise on damaged stores."""

_UNIT_UM: Final = {"nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}
_LOSSY: Final = re.compile(r'"(?:name|id)": "(?:[\w.]*[._])?(jpeg|jpeg2k|jpegxl|jpegxr|webp|avif|dit_ic)"')
_LOSS_NAMES: Final = {"jpeg2k": "jpeg2000"}


def open_zarr_path(path: Path, *, memory_bytes: int = MEMORY_BYTES) -> GridSource:
    """Open a folder with a Zarr array or an OME-Zarr group, of which level 0 is read.

    Args:
        path: the folder.
        memory_bytes: bound of decoded chunks kept in memory.

    Raises:
        SourceError: metadata that cannot be read; a group without ``multiscales``.
        UnsupportedPixelsError: dtype, bands or axes without support.
    """
    name = str(path)
    try:
        node = zarr.open(path, mode="r")
        if isinstance(node, zarr.Array):
            return open_zarr(node, name=name, memory_bytes=memory_bytes)
        attributes: dict[str, Any] = dict(node.attrs)
        if "bioformats2raw.layout" in attributes:
            node = node["0"]
            attributes = dict(node.attrs)
        return _open_ome(node, attributes, name, memory_bytes)
    except TileCodecError:
        raise
    except FAULTS as error:
        got = str(error) or type(error).__name__
        raise SourceError("damaged Zarr metadata", got=got, where=name) from error


def open_zarr(
    array: zarr.Array[Any],
    *,
    name: str | None = None,
    axes: Axes | None = None,
    metadata: SourceMetadata | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> GridSource:
    """Open a Zarr array; each chunk is decoded once or little more.

    Args:
        array: uint8; axes from its dimension names, else by its shape, as for numpy.
        name: for messages; default: its place in the store.
        axes: its axes where they are known otherwise.
        metadata: what is known beyond the pixels.
        memory_bytes: bound of decoded chunks kept in memory.

    Raises:
        SourceError: no pixels.
        UnsupportedPixelsError: dtype, bands or axes without support.
    """
    name = name or f"zarr array {array.store_path}"
    axes = axes or _axes(array, name)
    metadata = metadata or SourceMetadata()
    properties = {**metadata.properties, **dropped_band(axes.bands)}
    if array.attrs:
        properties.setdefault("zarr.attributes", json.dumps(dict(array.attrs)))
    losses = metadata.earlier_losses or _losses(array)

    def fetch(index: tuple[slice, ...]) -> NDArray[Any]:
        try:
            return np.asarray(array[index])
        except TileCodecError:
            raise
        except FAULTS as error:
            where = f"{name}, rows {index[axes.y].start}..{index[axes.y].stop}"
            where += f", columns {index[axes.x].start}..{index[axes.x].stop}"
            got = str(error) or type(error).__name__
            raise SourceError("a Zarr chunk cannot be decoded", got=got, where=where) from error

    y_chunk, x_chunk = array.chunks[axes.y], array.chunks[axes.x]
    return chunked_source(
        name=name,
        axes=axes,
        dtype=array.dtype,
        chunks=(_sizes(axes.height, y_chunk), _sizes(axes.width, x_chunk)),
        fetch=fetch,
        metadata=SourceMetadata(pixel_size_um=metadata.pixel_size_um, properties=properties, earlier_losses=losses),
        memory_bytes=memory_bytes,
    )


def _open_ome(group: Any, attributes: Mapping[str, Any], name: str, memory_bytes: int) -> GridSource:
    """Open level 0 of an OME-Zarr group.

    Source: OME-Zarr 0.4 and 0.5, section ``multiscales``.
    """
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        raise SourceError(
            "Zarr group that is no picture",
            got=f"members {sorted(group.keys())}",
            expected="an array, or OME-Zarr multiscales",
            where=name,
            hint="give the path of one array in it",
        )
    dataset = multiscales[0]["datasets"][0]
    array = group[dataset["path"]]
    listed = multiscales[0].get("axes") or ["t", "c", "z", "y", "x"]
    described = [axis if isinstance(axis, dict) else {"name": axis} for axis in listed]
    axes = axes_by_name([axis["name"] for axis in described], array.shape, name)
    units = [str(described[axis].get("unit")) for axis in (axes.y, axes.x)]
    scales = [1.0, 1.0]
    for transformation in (dataset.get("coordinateTransformations") or []) + (
        multiscales[0].get("coordinateTransformations") or []
    ):
        if transformation.get("type") == "scale":
            scales = [scales[i] * float(transformation["scale"][axis]) for i, axis in enumerate((axes.y, axes.x))]
    size = None
    if all(unit in _UNIT_UM for unit in units):
        size = (scales[0] * _UNIT_UM[units[0]], scales[1] * _UNIT_UM[units[1]])
    metadata = SourceMetadata(pixel_size_um=size, properties={"zarr.attributes": json.dumps(dict(attributes))})
    return open_zarr(array, name=name, axes=axes, metadata=metadata, memory_bytes=memory_bytes)


def _axes(array: zarr.Array[Any], name: str) -> Axes:
    names: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    if isinstance(names, list | tuple) and "y" in names and "x" in names:
        return axes_by_name([str(axis) for axis in names], array.shape, name)
    return axes_by_shape(array.shape, name)


def _sizes(length: int, chunk: int) -> tuple[int, ...]:
    """Return the chunk sizes along one axis, the last clipped to the array."""
    return tuple(min(chunk, length - start) for start in range(0, length, chunk))


def _losses(array: zarr.Array[Any]) -> tuple[str, ...]:
    """Return the lossy codecs that the array's metadata name."""
    described = json.dumps(array.metadata.to_dict(), default=str)
    return tuple(sorted({_LOSS_NAMES.get(found, found) for found in _LOSSY.findall(described)}))
