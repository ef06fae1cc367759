"""The rules that a container's metadata keep, as generators of faults: a reader raises the first, a check lists all.

Each takes a document that :func:`~tilecodec.container.document.load_document` has read and yields every fault it can
tell; where a part is so wrong that nothing more can be said of what hangs on it, it stops there.
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

from tilecodec.container.chunk import index_bytes
from tilecodec.errors import ContainerError, IncompleteContainerError, NotAContainerError
from tilecodec.limits import Limits

FORMAT_VERSION: Final = 1
BITSTREAM: Final = 2
"""What is written; older ones are read."""
CODEC_NAME: Final = "tilecodec.dit_ic"
CODEC_FIELDS: Final = {
    1: ("bitstream", "model", "quality", "tile", "stride", "overlap", "halo"),
    2: ("bitstream", "model", "quality", "tile", "stride", "overlap", "blend", "halo"),
}
"""Of the codec's configuration, by bitstream."""
AXES: Final = ("c", "y", "x")
MAX_SIDE: Final = (1 << 31) - 1
MAX_CHUNK_TILES: Final = 16
MAX_TILE: Final = 4096

_LARGEST: Final = int(sys.float_info.max)

_MODEL: Final = re.compile("sha256:[0-9a-f]{64}")
_ARRAY_MEMBERS: Final = {
    "zarr_format",
    "node_type",
    "shape",
    "data_type",
    "chunk_grid",
    "chunk_key_encoding",
    "fill_value",
    "codecs",
}
_OPTIONAL_MEMBERS: Final = {"dimension_names", "attributes", "storage_transformers"}


def is_integer(value: Any) -> bool:
    """A whole number as JSON has it: no boolean, no fraction."""
    return type(value) is int


def is_number(value: Any) -> bool:
    """A number within binary64 that is no boolean."""
    return type(value) is float or (type(value) is int and abs(value) <= _LARGEST)


def _numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(map(is_number, value))


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _plain(value: Any) -> Any:
    """A value as a message can show it."""
    return value if value is None or isinstance(value, str | int | float) else type(value).__name__


# --- the group


def group_faults(group: dict[str, Any], where: str, limits: Limits) -> Iterator[ContainerError]:
    """Faults of the group's document."""
    attributes = group.get("attributes")
    own = attributes.get("tilecodec") if isinstance(attributes, dict) else None
    if group.get("node_type") != "group" or not isinstance(attributes, dict) or not isinstance(own, dict):
        yield NotAContainerError(
            "this Zarr is not a tilecodec container",
            got=_plain(group.get("node_type")),
            expected="a group with a 'tilecodec' attribute",
            where=where,
            reason="group-attributes",
        )
        return
    if not is_integer(own.get("version")) or own["version"] != FORMAT_VERSION:
        yield NotAContainerError(
            "the container's format version is unknown",
            got=_plain(own.get("version")),
            expected=FORMAT_VERSION,
            where=where,
            hint="Update tilecodec",
            reason="group-version",
        )
        return
    if own.get("complete") is False:
        yield IncompleteContainerError(
            where=where, hint="Its encoder is still running or was stopped; finish it with --resume"
        )
    yield from _own_faults(own, where)
    for problem, got in _ome_faults(attributes.get("ome")):
        yield NotAContainerError(
            f"the group's OME-Zarr metadata are malformed: {problem}", got=got, where=where, reason="group-ome"
        )
    for problem in _place_faults(attributes):
        yield NotAContainerError(
            "the group's georeference is malformed", got=problem, where=where, reason="group-georeference"
        )
    datasets = _datasets(group)
    fault = limits.fault("levels", len(datasets), where)
    if fault is not None:
        yield fault
        return
    for n, dataset in enumerate(datasets):
        path = dataset.get("path") if isinstance(dataset, dict) else None
        if path != str(n):
            yield NotAContainerError(
                "a level's path is not its number", got=_plain(path), expected=str(n), where=where, reason="group-path"
            )


def _own_faults(own: dict[str, Any], where: str) -> Iterator[ContainerError]:
    wrong = [name for name in ("model", "fingerprint") if not isinstance(own.get(name), str)]
    if not isinstance(own.get("complete"), bool):
        wrong.append("complete")
    if not _strings(own.get("lossy_history")):
        wrong.append("lossy_history")
    properties = own.get("properties", {})
    if not isinstance(properties, dict) or not all(isinstance(v, str) for v in properties.values()):
        wrong.append("properties")
    try:
        base64.b64decode(own.get("icc_profile", ""), validate=True)
    except (ValueError, TypeError):
        wrong.append("icc_profile")
    for name in wrong:
        yield NotAContainerError(
            f"the group's attribute tilecodec.{name} is missing or of another type",
            got=_plain(own.get(name)),
            where=where,
            reason="group-fields",
        )


def _ome_faults(ome: Any) -> Iterator[tuple[str, Any]]:
    multiscales = ome.get("multiscales") if isinstance(ome, dict) else None
    if not isinstance(multiscales, list) or len(multiscales) != 1 or not isinstance(multiscales[0], dict):
        yield "not exactly one multiscale", _plain(multiscales)
        return
    if ome.get("version") != "0.5":
        yield "another version than 0.5", _plain(ome.get("version"))
    multiscale = multiscales[0]
    if not isinstance(multiscale.get("name", ""), str):
        yield "a name that is no text", _plain(multiscale["name"])
    if multiscale.get("type", "mean") != "mean":
        yield "another type than mean", _plain(multiscale["type"])
    axes = multiscale.get("axes")
    dicts = [a for a in axes if isinstance(a, dict)] if isinstance(axes, list) else []
    kinds = [(a.get("name"), a.get("type")) for a in dicts]
    if kinds != [("c", "channel"), ("y", "space"), ("x", "space")] or dicts != axes:
        yield "axes other than c (channel), y and x (space)", axes
    elif [a.get("unit") for a in dicts] not in ([None, None, None], [None, "micrometer", "micrometer"]):
        yield "units of the axes other than none, or micrometer of y and x", axes
    datasets = multiscale.get("datasets")
    if not isinstance(datasets, list) or not datasets:
        yield "no level", _plain(datasets)
        return
    for n, dataset in enumerate(datasets):
        if not isinstance(dataset, dict) or not _transforms_well(dataset.get("coordinateTransformations")):
            yield f"no coordinate transformations of level {n}, or of another form", _plain(dataset)
            return


def _transforms_well(transforms: Any) -> bool:
    """Whether it is a positive scale, and after it perhaps a translation."""
    if not isinstance(transforms, list) or not 1 <= len(transforms) <= 2:
        return False
    for item, kind in zip(transforms, ("scale", "translation")[: len(transforms)], strict=True):
        if not isinstance(item, dict) or item.get("type") != kind or not _numbers(item.get(kind), 3):
            return False
    return all(v > 0 for v in transforms[0]["scale"])


def _place_faults(attributes: dict[str, Any]) -> Iterator[str]:
    if "spatial:transform" in attributes and not _numbers(attributes["spatial:transform"], 6):
        yield "spatial:transform is not six numbers"
    for name in ("proj:code", "proj:wkt2"):
        if not isinstance(attributes.get(name, ""), str):
            yield f"{name} is no text"


def _datasets(group: dict[str, Any]) -> list[Any]:
    """The entries of a group's only multiscale, whatever they are; none where there is no such list."""
    found: Any = group
    for key in ("attributes", "ome", "multiscales", 0, "datasets"):
        if isinstance(key, int):
            found = found[key] if isinstance(found, list) and len(found) > key else None
        else:
            found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, list) else []


def level_paths(group: dict[str, Any], limits: Limits) -> list[str]:
    """Paths of the levels that a group names rightly, largest first, as many as the limits allow."""
    paths = [d.get("path") if isinstance(d, dict) else None for d in _datasets(group)[: limits.levels]]
    return [path for n, path in enumerate(paths) if path == str(n)]


# --- a level array


def array_faults(array: dict[str, Any], where: str, limits: Limits) -> Iterator[ContainerError]:
    """Faults of a level array's document."""
    try:
        shape, chunk = array["shape"], array["chunk_grid"]["configuration"]["chunk_shape"]
        grid, encoding = array["chunk_grid"]["name"], array["chunk_key_encoding"]
        separator = encoding.get("configuration", {}).get("separator", "/")
        (codec,) = array["codecs"]
        name, configuration = codec["name"], codec["configuration"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield NotAContainerError(
            "the level array's metadata are malformed", got=repr(error), where=where, reason="array-fields"
        )
        return
    unknown = {
        key
        for key in set(array) - _ARRAY_MEMBERS - _OPTIONAL_MEMBERS
        if not isinstance(array[key], dict) or array[key].get("must_understand") is not False
    }
    unknown |= set(codec) - {"name", "configuration"}
    if array.get("node_type") != "array" or unknown or array.get("storage_transformers", []) != []:
        yield NotAContainerError(
            "the level array has another type, or members that a reader must understand",
            got=f"{_plain(array.get('node_type'))}, {sorted(unknown)}",
            expected="array",
            where=where,
            reason="array-fields",
        )
    if array.get("dimension_names") != list(AXES):
        yield NotAContainerError(
            "the level array's axes have other names",
            got=array.get("dimension_names"),
            expected=list(AXES),
            where=where,
            reason="array-axes",
        )
    if not is_integer(array.get("fill_value")) or array["fill_value"] != 0:
        yield NotAContainerError(
            "the level array has another fill value",
            got=_plain(array.get("fill_value")),
            expected=0,
            where=where,
            reason="array-fill",
        )
    well = _is_shape(shape) and _is_shape(chunk) and chunk[1] == chunk[2]
    named = (grid, array.get("data_type"), encoding.get("name"), separator) == ("regular", "uint8", "default", "/")
    if not well or not named:
        yield NotAContainerError(
            "the level array's shape, chunks or type break the format's rules",
            got={key: array.get(key) for key in ("shape", "chunk_grid", "data_type", "chunk_key_encoding")},
            expected="uint8 (3, H, W) in square chunks",
            where=where,
            reason="array-geometry",
        )
    if name != CODEC_NAME:
        yield NotAContainerError(
            "the level array uses another codec",
            got=_plain(name),
            expected=CODEC_NAME,
            where=where,
            reason="array-codec",
        )
        return
    faults = list(codec_faults(configuration, where))
    yield from faults
    if not well or faults:
        return
    tile, side = configuration["tile"], chunk[1]
    if side % tile or not 1 <= side // tile <= MAX_CHUNK_TILES:
        yield NotAContainerError(
            "the level array's chunks do not fit its tiles",
            got=side,
            expected=f"1 to {MAX_CHUNK_TILES} times {tile}",
            where=where,
            reason="array-geometry",
        )
        return
    yield from _demand_faults(shape[1], shape[2], tile, side // tile, where, limits)


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == len(AXES)
        and all(map(is_integer, value))
        and value[0] == 3
        and all(1 <= v <= MAX_SIDE for v in value[1:])
    )


def _demand_faults(
    height: int, width: int, tile: int, chunk_tiles: int, where: str, limits: Limits
) -> Iterator[ContainerError]:
    """What a level of this geometry asks of its reader, against the limits."""
    tiles = -(-height // tile) * -(-width // tile)
    asked = {
        "side": max(height, width),
        "tiles": tiles,
        "tile": tile,
        "chunk_tiles": chunk_tiles,
        "index_bytes": index_bytes(chunk_tiles, chunk_tiles),
    }
    for name, got in asked.items():
        fault = limits.fault(name, got, where)
        if fault is not None:
            yield fault


def codec_faults(configuration: Any, where: str) -> Iterator[ContainerError]:
    """Faults of the codec's configuration, which may be anything."""
    if not isinstance(configuration, dict):
        configuration = {}
    bitstream = configuration.get("bitstream")
    if is_integer(bitstream) and bitstream not in CODEC_FIELDS:
        yield NotAContainerError(
            "the container was written by a newer version",
            got=bitstream,
            expected=f"1 to {BITSTREAM}",
            where=where,
            hint="Update tilecodec",
            reason="codec-version",
        )
        return
    fields = CODEC_FIELDS[bitstream if is_integer(bitstream) else BITSTREAM]
    if set(configuration) != set(fields):
        yield NotAContainerError(
            "the codec's configuration has other fields",
            got=sorted(map(str, configuration)),
            expected=sorted(fields),
            where=where,
            reason="codec-fields",
        )
        return
    for name, expected in _wrong_values(configuration).items():
        yield NotAContainerError(
            f"the codec's {name} is out of range",
            got=_plain(configuration[name]),
            expected=expected,
            where=where,
            reason="codec-values",
        )


def _wrong_values(given: dict[str, Any]) -> dict[str, str]:
    """Names of configuration fields whose values are out of range, and what is expected of them."""
    model, quality, tile, stride, overlap, halo = (
        given[name] for name in ("model", "quality", "tile", "stride", "overlap", "halo")
    )

    def within(value: Any, least: int, most: int) -> bool:
        return is_integer(value) and least <= value <= most

    checks = {
        "bitstream": (is_integer(given["bitstream"]), "an integer"),
        "model": (isinstance(model, str) and _MODEL.fullmatch(model) is not None, "sha256: and 64 hexadecimal digits"),
        "quality": (is_number(quality) and 1 <= quality <= 100, "1 to 100"),
        "stride": (within(stride, 4, MAX_TILE) and stride % 4 == 0, f"a multiple of 4 up to {MAX_TILE}"),
        "halo": (within(halo, 0, 65536), "0 to 65536"),
    }
    if checks["stride"][0]:
        fits = within(tile, stride, MAX_TILE) and tile % stride == 0
        checks["tile"] = (fits, f"a multiple of the stride, {stride}, up to {MAX_TILE}")
        fits = within(overlap, 0, stride // 2) and overlap % (stride // 4) == 0
        checks["overlap"] = (fits, f"a multiple of {stride // 4} up to {stride // 2}")
        if fits and "blend" in given:
            blend = given["blend"]
            checks["blend"] = (within(blend, 0, 2 * overlap) and blend % 2 == 0, f"an even number up to {2 * overlap}")
    return {name: expected for name, (ok, expected) in checks.items() if not ok}


# --- the levels together


def pyramid_faults(levels: list[tuple[int, dict[str, Any]]], where: str) -> Iterator[ContainerError]:
    """Faults of levels beside one another.

    Args:
        levels: number and document of each level that has no fault of its own, ascending.
        where: named in errors.
    """
    for (n, below), (m, array) in pairwise(levels):
        at = f"{where}, level {m}"
        size = [3, *(-(-side // 2) for side in below["shape"][1:])]
        if m == n + 1 and array["shape"] != size:
            yield NotAContainerError(
                "the level is not half the size of the one below it",
                got=array["shape"],
                expected=size,
                where=at,
                reason="level-size",
            )
        if array["codecs"] != below["codecs"]:
            yield NotAContainerError(
                "the level's codec is configured otherwise than the one's below it",
                got=array["codecs"][0]["configuration"],
                expected=below["codecs"][0]["configuration"],
                where=at,
                reason="level-codec",
            )
