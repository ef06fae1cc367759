"""Faulty containers: for every reason that a reader gives, a way to damage a sound container so that it is given.

The container is that of :func:`make`: levels "0" (300 x 290 px) and "1", tiles of 128 px, chunks of 2 x 2 tiles.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tiny
from skimage import data

import tilecodec
from tilecodec.container.chunk import ChunkPlace, TileState, index_bytes, pack_chunk, parse_index
from tilecodec.entropy.payload import parse_payload

PICTURE = data.coffee()[:300, :290]
CHUNK = "0/c/0/0/0"
"""The chunk that the faults below damage; its tiles are rows and columns 0 and 1 of level 0."""


def make(target: Path, **options: Any) -> tilecodec.EncodeReport:
    """The container."""
    return tilecodec.encode(
        PICTURE, target, **{"model": tiny.tiny_model(), "tile": 128, "chunk_tiles": 2, "levels": 2, **options}
    )


@dataclass(frozen=True)
class Fault:
    """A way to damage a container."""

    reason: str
    damage: Callable[[Path], None]
    tile: bool = False
    """A fault of the tile at row 0, column 0 of level 0 (or of its chunk), found when that is read; else one of the
    metadata, found when the container is opened."""
    deep: bool = False
    """Found only by decoding symbols."""
    unread: bool = False
    """Found only by a check of the whole container."""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.reason}-{self.name}" if self.name else self.reason


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Applies a change to a JSON file."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def group(reason: str, change: Callable[[Any], object], name: str = "") -> Fault:
    """A fault of the group's document."""
    return Fault(reason, lambda path: edit(path / "zarr.json", change), name=name)


def own(reason: str, **values: Any) -> Fault:
    """A fault of the group's attribute ``tilecodec``."""
    return group(reason, lambda v: v["attributes"]["tilecodec"].update(values), str(values))


def ome(change: Callable[[Any], object], name: str, reason: str = "group-ome") -> Fault:
    """A fault of the multiscale."""
    return group(reason, lambda v: change(v["attributes"]["ome"]["multiscales"][0]), name)


def array(reason: str, change: Callable[[Any], object], name: str = "", level: str = "0") -> Fault:
    """A fault of a level array's document."""
    return Fault(reason, lambda path: edit(path / level / "zarr.json", change), name=name)


def codec(reason: str, **values: Any) -> Fault:
    """A fault of the codec's configuration."""
    return array(reason, lambda v: v["codecs"][0]["configuration"].update(values), str(values))


def text(reason: str, content: str | bytes, name: str) -> Fault:
    """A fault of the group's document as text."""
    raw = content if isinstance(content, bytes) else content.encode()
    return Fault(reason, lambda path: void((path / "zarr.json").write_bytes(raw)), name=name)


def void(_: object) -> None:
    """Nothing, for lambdas."""


def chunk(reason: str, change: Callable[[bytes], bytes], name: str = "") -> Fault:
    """A fault of a chunk's bytes."""
    return Fault(
        reason, lambda p: void((p / CHUNK).write_bytes(change((p / CHUNK).read_bytes()))), tile=True, name=name
    )


def tile(reason: str, change: Callable[[bytes], tuple[TileState, bytes]], *, deep: bool = False) -> Fault:
    """A fault of the first tile, in a chunk that is well otherwise."""
    return Fault(reason, lambda path: repack(path / CHUNK, {0: change}), tile=True, deep=deep)


def repack(
    key: Path, changes: dict[int, Callable[[bytes], tuple[TileState, bytes]]], place: ChunkPlace | None = None
) -> None:
    """Writes a chunk anew with some of its tiles changed.

    Args:
        key: the chunk's file.
        changes: number of a tile in its chunk to what makes a state and payload of its payload.
        place: that it is said to have; None: its own.
    """
    raw = key.read_bytes()
    rows, cols = raw[5], raw[6]
    tiles = [(e.state, raw[e.offset : e.offset + e.length]) for e in parse_index(raw, rows, cols, "").entries]
    for n, change in changes.items():
        tiles[n] = change(tiles[n][1])
    own = ChunkPlace(*(int(key.parts[n]) for n in (-5, -2, -1)))
    key.write_bytes(pack_chunk(rows, cols, tiles, place or own))


def coded(**values: Any) -> Callable[[bytes], tuple[TileState, bytes]]:
    """The payload with other fields, its CRC right."""
    return lambda raw: (TileState.CODED, replace(parse_payload(raw, ""), **values).to_bytes())


def flip(at: int) -> Callable[[bytes], bytes]:
    """Flips a bit of a byte."""
    return lambda raw: raw[: at % len(raw)] + bytes([raw[at % len(raw)] ^ 16]) + raw[at % len(raw) + 1 :]


def wrong_symbols(raw: bytes) -> tuple[TileState, bytes]:
    """A payload whose check of symbols is another's."""
    return coded(symbol_check=parse_payload(raw, "").symbol_check ^ 1)(raw)


def scale(multiscale: Any, value: Any) -> None:
    """Sets level 0's scale."""
    multiscale["datasets"][0]["coordinateTransformations"][0]["scale"] = value


HUGE = 10**400
FAULTS = [
    Fault("no-metadata", lambda path: (path / "zarr.json").unlink()),
    Fault("no-metadata", lambda path: (path / "1" / "zarr.json").unlink(), name="level"),
    text("not-json", "{", "cut"),
    text("not-json", b'{"zarr_format": 3, "x": "\xff"}', "utf-8"),
    text("not-json", '{"zarr_format": NaN}', "nan"),
    text("not-json", '{"zarr_format": 1e999}', "inf"),
    text("not-json", '{"zarr_format": 3, "zarr_format": 3}', "twice"),
    text("not-json", '{"zarr_format": ' + "9" * 5000 + "}", "digits"),
    text("not-json", '{"zarr_format": 3, "x": "\\ud800"}', "surrogate"),
    text("not-zarr", "[]", "list"),
    text("not-zarr", '"zarr_format"', "text"),
    text("not-zarr", '{"zarr_format": true}', "bool"),
    text("not-zarr", '{"zarr_format": 3.0}', "float"),
    text("limit-metadata-depth", "[" * 40 + "]" * 40, "40"),
    text("limit-metadata-depth", '{"a":' * 100_000, "100000"),
    text("limit-metadata-bytes", " " * (8 << 20) + "{}", "spaces"),
    group("group-attributes", lambda v: v["attributes"].pop("tilecodec")),
    group("group-attributes", lambda v: v.update(attributes=[]), "list"),
    group("group-attributes", lambda v: v.update(node_type="array"), "node"),
    own("group-version", version=2),
    own("group-version", version=True),
    own("group-version", version=1.0),
    own("incomplete", complete=False),
    own("group-fields", complete=1),
    own("group-fields", model=None),
    own("group-fields", fingerprint=5),
    own("group-fields", lossy_history="jpeg"),
    own("group-fields", lossy_history=[1]),
    own("group-fields", properties={"a": 1}),
    own("group-fields", properties=[]),
    own("group-fields", icc_profile="no base64!"),
    own("group-fields", icc_profile=7),
    group("group-fields", lambda v: v["attributes"]["tilecodec"].pop("lossy_history"), "absent"),
    group("group-ome", lambda v: v["attributes"].pop("ome")),
    group("group-ome", lambda v: v["attributes"]["ome"].update(version="0.4"), "version"),
    group("group-ome", lambda v: v["attributes"]["ome"].update(multiscales={}), "object"),
    group("group-ome", lambda v: v["attributes"]["ome"]["multiscales"].append({}), "two"),
    ome(lambda m: m.update(name=3), "name"),
    ome(lambda m: m.update(type="gaussian"), "type"),
    ome(lambda m: m["axes"].reverse(), "axes"),
    ome(lambda m: m["axes"].append("t"), "axis"),
    ome(lambda m: m.update(axes=None), "no-axes"),
    ome(lambda m: m["axes"][1].update(unit="meter"), "unit"),
    ome(lambda m: m.update(datasets=[]), "no-level"),
    ome(lambda m: m.update(datasets={"0": 1}), "levels"),
    ome(lambda m: m["datasets"].append(None), "level"),
    ome(lambda m: scale(m, [1, 0, 1]), "zero"),
    ome(lambda m: scale(m, [1, HUGE, 1]), "huge"),
    ome(lambda m: scale(m, [1, True, 1]), "bool"),
    ome(lambda m: scale(m, [1, 1]), "two-scales"),
    group(
        "group-georeference",
        lambda v: v["attributes"].update({"spatial:transform": [1, 2, 3, HUGE, 5, 6]}),
        "transform",
    ),
    group("group-georeference", lambda v: v["attributes"].update({"proj:code": 4326}), "code"),
    *(
        ome(lambda m, path=path: m["datasets"][1].update(path=path), repr(path), "group-path")
        for path in ("0", "2", "01", "/1", "../p.zarr/1", "1/../1", "..", "", 1, None, ["1"])
    ),
    ome(lambda m: m.update(datasets=m["datasets"][:1] * 25), "25", "limit-levels"),
    array("array-fields", lambda v: v.pop("chunk_grid")),
    array("array-fields", lambda v: v.update(codecs={"a": 1}), "codecs"),
    array("array-fields", lambda v: v["codecs"].append({"name": "zstd"}), "two"),
    array("array-fields", lambda v: v["codecs"][0].update(more=1), "more"),
    array("array-fields", lambda v: v.update(chunk_key_encoding=[]), "encoding"),
    array("array-fields", lambda v: v.update(node_type="group"), "node"),
    array("array-fields", lambda v: v.update(new={"must_understand": True}), "member"),
    array("array-fields", lambda v: v.update(storage_transformers=[{}]), "transformers"),
    array("array-axes", lambda v: v.update(dimension_names=["c", "x", "y"])),
    array("array-axes", lambda v: v.pop("dimension_names"), "absent"),
    *(array("array-fill", lambda v, f=f: v.update(fill_value=f), repr(f)) for f in (1, False, 0.0, None)),
    *(
        array("array-geometry", lambda v, s=s: v.update(shape=s), str(s)[:40])
        for s in (
            [3, 10**12, 5],
            [3, HUGE, 5],
            [1, 300, 290],
            [3, 300.0, 290],
            [3, True, 290],
            [3, 0, 290],
            [3, 300],
            "300",
        )
    ),
    array("array-geometry", lambda v: v.update(data_type="uint16"), "type"),
    array("array-geometry", lambda v: v["chunk_grid"].update(name="rectangular"), "grid"),
    array("array-geometry", lambda v: v["chunk_key_encoding"].update(name="v2"), "keys"),
    *(
        array("array-geometry", lambda v, s=s: v["chunk_grid"]["configuration"].update(chunk_shape=s), f"chunk-{s}")
        for s in ([3, 256, 100], [3, 200, 200], [3, 128 * 17, 128 * 17], [1, 256, 256], [3, 256.0, 256.0])
    ),
    array("array-codec", lambda v: v["codecs"][0].update(name="zstd")),
    array("array-codec", lambda v: v["codecs"][0].update(name=["tilecodec.dit_ic"]), "list"),
    codec("codec-version", bitstream=999),
    codec("codec-fields", more=1),
    array("codec-fields", lambda v: v["codecs"][0]["configuration"].pop("model"), "absent"),
    array("codec-fields", lambda v: v["codecs"][0].update(configuration=[]), "list"),
    codec("codec-values", bitstream=True),
    codec("codec-values", bitstream="1"),
    codec("codec-values", model="sha256:0"),
    codec("codec-values", model=None),
    codec("codec-values", quality="high"),
    codec("codec-values", quality=0.5),
    codec("codec-values", quality=True),
    codec("codec-values", quality=HUGE),
    codec("codec-values", tile=0),
    codec("codec-values", tile=128.0),
    codec("codec-values", tile=8192),
    codec("codec-values", stride=-1),
    codec("codec-values", stride=6),
    codec("codec-values", overlap=1000),
    codec("codec-values", overlap=-8),
    codec("codec-values", blend=7),
    codec("codec-values", blend=130),
    codec("codec-values", blend=None),
    codec("codec-fields", bitstream=1),
    codec("codec-values", halo=True),
    codec("codec-values", halo=[0]),
    array("level-size", lambda v: v.update(shape=[3, 150, 146]), level="1"),
    array("level-size", lambda v: v.update(shape=[3, 301, 290]), "below"),
    array("level-codec", lambda v: v["codecs"][0]["configuration"].update(quality=51), level="1"),
    array("limit-tiles", lambda v: v.update(shape=[3, 2**31 - 1, 2**31 - 1])),
    Fault("chunk-absent", lambda path: (path / CHUNK).unlink(), tile=True),
    chunk("index-length", lambda raw: raw[: index_bytes(2, 2) - 1]),
    chunk("index-length", lambda _: b"", "empty"),
    chunk("index-magic", flip(0)),
    chunk("index-version", flip(4)),
    chunk("index-version", flip(7), "flags"),
    chunk("index-shape", flip(5)),
    chunk("index-crc", flip(9)),
    Fault("index-place", lambda path: void(shutil.copy(path / "1" / CHUNK[2:], path / CHUNK)), tile=True, name="level"),
    Fault("index-place", lambda path: repack(path / CHUNK, {}, ChunkPlace(0, 1, 0)), tile=True, name="row"),
    chunk("chunk-length", lambda raw: raw[: index_bytes(2, 2) + 5]),
    chunk("tile-crc", flip(index_bytes(2, 2) + 30)),
    replace(chunk("chunk-rest", lambda raw: raw + b"more"), unread=True),
    tile("index-state", lambda _: (4, b"")),
    tile("tile-lost", lambda _: (TileState.LOST, b"")),
    tile("empty-colour", lambda _: (TileState.EMPTY, b"rgba")),
    tile("limit-payload-bytes", lambda _: (TileState.CODED, bytes((16 << 20) + 1))),
    tile("payload-length", lambda raw: (TileState.CODED, raw[:7])),
    tile("payload-crc", lambda raw: (TileState.CODED, flip(-1)(raw))),
    tile("payload-size", coded(height=127)),
    tile("payload-quality", coded(quality=0.5)),
    tile("payload-quality", coded(quality=200)),
    tile("symbol-check", wrong_symbols, deep=True),
]
"""One for every reason of ``formats/container.md`` and more; those of payloads' streams are in ``test_entropy``."""
