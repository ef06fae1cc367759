"""Reading one ``zarr.json``: bounded before it is read, strict JSON, bounded in depth."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from tilecodec.container.store import ByteStore
from tilecodec.errors import NotAContainerError
from tilecodec.limits import Limits

DOCUMENT = "zarr.json"


def load_document(store: ByteStore, where: str, limits: Limits) -> dict[str, Any]:
    """The ``zarr.json`` that ``store`` points at.

    It must be I-JSON (RFC 7493): UTF-8 without lone surrogates, no NaN, no number beyond binary64, no name twice.

    Args:
        store: a group or an array.
        where: named in errors.
        limits: bounds of its bytes and depth.

    Raises:
        NotAContainerError: absent (``no-metadata``), not JSON (``not-json``), not Zarr v3 (``not-zarr``).
        LimitError: larger or deeper than the limits.
    """
    data = store.get_first(DOCUMENT, limits.metadata_bytes + 1)
    if data is None:
        raise NotAContainerError("no zarr.json there", where=where, reason="no-metadata")
    limits.check("metadata_bytes", len(data), where)
    try:
        value = json.loads(
            data.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_distinct
        )
        depth = _depth(value)
    except RecursionError:  # deeper than the parser goes
        value, depth = None, limits.metadata_depth + 1
    except ValueError as error:
        raise NotAContainerError("zarr.json is not JSON", got=str(error), where=where, reason="not-json") from error
    limits.check("metadata_depth", depth, where)
    if not isinstance(value, dict) or type(value.get("zarr_format")) is not int or value["zarr_format"] != 3:
        raise NotAContainerError(
            "zarr.json is not Zarr v3 metadata", expected="zarr_format 3", where=where, reason="not-zarr"
        )
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is beyond a binary64 number")
    return number


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has a name twice")
    return members


def _depth(value: Any) -> int:
    """How many objects and arrays lie within one another; without recursion. ValueError for lone surrogates."""
    layer, depth = [value], 0
    while layer:
        below: list[Any] = []
        holders = 0
        for item in layer:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str):
                item.encode()
            holders += isinstance(item, dict | list)
        depth += holders > 0
        layer = below
    return depth
