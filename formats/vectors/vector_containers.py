"""Test vectors of chunks and of a container's metadata, written out by hand."""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

import google_crc32c
from vector_payloads import Case, Tile, model, symbols_fact, tile

LOST, CODED, EMPTY, NODATA = range(4)
NAMES: Final = ("LOST", "CODED", "EMPTY", "NODATA")
PLACE: Final = {"model": "plain", "height": 150, "width": 100, "tile": 64, "stride": 64, "chunk_tiles": 2}
"""The level: 3 x 2 tiles in 2 x 1 chunks."""


def chunk(
    tiles: list[tuple[int, bytes]],
    rows: int = 2,
    cols: int = 2,
    *,
    magic: bytes = b"TCK1",
    version: int = 2,
    flags: int = 0,
    place: tuple[int, int, int] = (0, 0, 0),
    crc: int = 0,
    lengths: dict[int, int] | None = None,
    crcs: dict[int, int] | None = None,
) -> bytes:
    """A chunk's bytes.

    Args:
        tiles: state and payload of each.
        rows: of tiles.
        cols: of tiles.
        magic: first four bytes.
        version: fifth byte.
        flags: eighth byte.
        place: level, chunk row, chunk column.
        crc: what the index's CRC is XORed with.
        lengths: other lengths than the payloads', by the tile's number.
        crcs: what the payloads' CRCs are XORed with, likewise.
    """
    index = magic + struct.pack("<BBBBIII", version, rows, cols, flags, *place)
    body = b"".join(payload for _, payload in tiles)
    begin = 0
    for n, (state, payload) in enumerate(tiles):
        length = (lengths or {}).get(n, len(payload))
        known = google_crc32c.value(body[begin : begin + length]) ^ (crcs or {}).get(n, 0)
        index += struct.pack("<BII", state, length, known)
        begin += length
    return index + struct.pack("<I", google_crc32c.value(index) ^ crc) + body


def coded(height: int, width: int, style: str = "usual") -> Tile:
    """A tile of the level's model."""
    return tile(model(str(PLACE["model"])), height, width, style)


def valid_chunks() -> Iterator[Case]:
    """Chunks of one level, with tiles in every state that can be read."""

    def case(name: str, row: int, shape: tuple[int, int], tiles: list[tuple[int, bytes, Tile | None]]) -> Case:
        data = chunk([(state, payload) for state, payload, _ in tiles], *shape, place=(0, row, 0))
        facts, offset = [], 24 + 9 * len(tiles)
        for n, (state, payload, t) in enumerate(tiles):
            fact = {"row": row * 2 + n // shape[1], "col": n % shape[1], "state": NAMES[state], "offset": offset}
            fact |= {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
            facts.append(fact | ({} if t is None else symbols_fact(t)))
            offset += len(payload)
        place = PLACE | {"chunk_row": row, "chunk_col": 0}
        return Case(name=f"valid/{name}.chunk", kind="chunk", data=data, facts=place | {"tiles": facts})

    def whole(height: int, width: int, style: str = "usual") -> tuple[int, bytes, Tile]:
        t = coded(height, width, style)
        return CODED, t.payload(), t

    empty, nodata = (EMPTY, b"\x00\x80\xff", None), (NODATA, b"", None)
    yield case("all-states", 0, (2, 2), [whole(64, 64), empty, nodata, whole(64, 36)])
    yield case("all-coded", 0, (2, 2), [whole(64, 64, "wild"), whole(64, 36), whole(64, 64), whole(64, 36)])
    yield case("last-row", 1, (1, 2), [whole(22, 64), whole(22, 36)])
    yield case("nothing", 1, (1, 2), [nodata, nodata])
    yield case("one-colour", 0, (2, 2), [empty] * 4)


def faulty_chunks() -> Iterator[Case]:
    """Chunks that break one rule each; ``row`` and ``col`` name a tile whose reading gives the reason."""
    first, second = coded(64, 64), coded(64, 36)
    good = [(CODED, first.payload()), (EMPTY, b"\x00\x80\xff"), (NODATA, b""), (CODED, second.payload())]

    def case(reason: str, what: str, data: bytes, row: int = 0, col: int = 0) -> Case:
        facts = PLACE | {"chunk_row": 0, "chunk_col": 0, "row": row, "col": col, "reason": reason}
        return Case(name=f"faulty/{reason}-{what}.chunk", kind="chunk", data=data, facts=facts)

    def with_tile(n: int, state: int, payload: bytes) -> list[tuple[int, bytes]]:
        return [*good[:n], (state, payload), *good[n + 1 :]]

    whole = chunk(good)
    for length in (0, 4, 8, 20, 59):
        yield case("index-length", f"{length}", whole[:length])
    yield case("index-magic", "zip", chunk(good, magic=b"PK\3\4"))
    yield case("index-magic", "zeros", bytes(len(whole)))
    yield case("index-version", "1", chunk(good, version=1))
    yield case("index-version", "3", chunk(good, version=3))
    yield case("index-version", "0", chunk(good, version=0))
    yield case("index-version", "flags", chunk(good, flags=1))
    yield case("index-shape", "one-row", chunk(good, rows=1))
    yield case("index-shape", "transposed", chunk(good, rows=4, cols=1))
    yield case("index-shape", "none", chunk(good, rows=0, cols=0))
    yield case("index-crc", "bit", chunk(good, crc=1 << 31))
    yield case("index-crc", "length", whole[:21] + b"\xff" + whole[22:])
    yield case("index-place", "level", chunk(good, place=(1, 0, 0)))
    yield case("index-place", "row", chunk(good, place=(0, 1, 0)))
    yield case("index-place", "column", chunk(good, place=(0, 0, 1 << 31)))
    for n in range(4):
        yield case("index-state", f"4-at-{n}", chunk(with_tile(n, 4, b"")), n // 2, n % 2)
    yield case("index-state", "255", chunk(with_tile(0, 255, b"")))
    yield case("index-state", "lost-with-bytes", chunk(with_tile(0, LOST, b"x")))
    yield case("index-state", "nodata-with-bytes", chunk(with_tile(2, NODATA, b"xyz")), 1, 0)
    yield case("index-state", "elsewhere", chunk(with_tile(3, 9, b"")))
    yield case("tile-lost", "first", chunk(with_tile(0, LOST, b"")))
    yield case("tile-lost", "last", chunk(with_tile(3, LOST, b"")), 1, 1)
    for size in (0, 2, 4, 7, 100):
        yield case("empty-colour", f"{size}", chunk(with_tile(1, EMPTY, bytes(size))), 0, 1)
    yield case("limit-payload-bytes", "length", chunk(good, lengths={0: (16 << 20) + 1}))
    yield case("limit-payload-bytes", "largest", chunk(good, lengths={3: 0xFFFFFFFF}), 1, 1)
    yield case("chunk-length", "cut", whole[:-1], 1, 1)
    yield case("chunk-length", "index-only", whole[:60])
    yield case("chunk-length", "stated", chunk(good, lengths={3: len(good[3][1]) + 4}), 1, 1)
    yield case("chunk-length", "colour", chunk([(EMPTY, b"abc")] * 4)[:-2], 1, 1)
    yield case("payload-length", "none", chunk(with_tile(0, CODED, b"")))
    yield case("payload-crc", "in-chunk", chunk(with_tile(0, CODED, bytes([2]) + good[0][1][1:])))
    yield case("payload-crc", "shifted", chunk(good, lengths={0: len(good[0][1]) - 4}))
    yield case("tile-crc", "bit", chunk(good, crcs={0: 1}))
    yield case("tile-crc", "colour", chunk(good, crcs={1: 1 << 31}), 0, 1)
    same = [(CODED, first.payload()), (CODED, coded(64, 36, "wild").payload())] * 2
    swapped = chunk(same)
    begin, size = len(swapped) - sum(len(p) for _, p in same), len(same[0][1])
    other = coded(64, 64, "wild").payload()[:size].ljust(size, b"\0")
    yield case("tile-crc", "other-tile", swapped[:begin] + other + swapped[begin + size :])
    yield case("payload-version", "in-chunk", chunk(with_tile(3, CODED, second.payload(version=2))), 1, 1)
    yield case("payload-size", "other-tile-s", chunk(with_tile(0, CODED, good[3][1])))
    yield case("payload-quality", "in-chunk", chunk(with_tile(0, CODED, first.payload(quality=255))))
    yield case("stream-form", "in-chunk", chunk(with_tile(0, CODED, first.payload(words=[1, 0]))))
    yield case("symbol-check", "in-chunk", chunk(with_tile(0, CODED, first.payload(check=first.check ^ 2))))
    other = coded(64, 64, "wild")
    yield case("symbol-check", "other-words", chunk(with_tile(0, CODED, other.payload(check=first.check))))


# --- metadata

Documents = dict[str, Any]
CONFIGURATION: Final = {
    "bitstream": 1,
    "model": "sha256:" + "0f" * 32,
    "quality": 50,
    "tile": 128,
    "stride": 64,
    "overlap": 32,
    "halo": 64,
}


def array(height: int, width: int) -> dict[str, Any]:
    """A level array's document."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [3, height, width],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [3, 256, 256]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "tilecodec.dit_ic", "configuration": dict(CONFIGURATION)}],
        "dimension_names": ["c", "y", "x"],
        "attributes": {},
    }


def documents() -> Documents:
    """A sound container's documents."""
    scales = [{"type": "scale", "scale": [1, 1.0, 1.0]}], [{"type": "scale", "scale": [1, 2.0, 2.0]}]
    scales[1].append({"type": "translation", "translation": [0, 0.5, 0.5]})
    multiscale = {
        "name": "vectors",
        "type": "mean",
        "axes": [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}],
        "datasets": [{"path": str(n), "coordinateTransformations": s} for n, s in enumerate(scales)],
    }
    own = {
        "version": 1,
        "complete": True,
        "model": "vectors",
        "lossy_history": ["tilecodec"],
        "fingerprint": "none",
    }
    attributes = {"ome": {"version": "0.5", "multiscales": [multiscale]}, "tilecodec": own}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return {"zarr.json": group, "0/zarr.json": array(300, 200), "1/zarr.json": array(150, 100)}


def metadata() -> Iterator[Case]:
    """Documents; a faulty one stands at ``place`` among the sound ones of ``valid/metadata``. Those of
    ``valid/metadata-2`` are a container of bitstream 2."""
    for place, document in documents().items():
        name = f"valid/metadata/{place}"
        yield Case(name=name, kind="metadata", data=_bytes(document), facts={"place": place})
    for number, (reason, place, change) in enumerate(CHANGES):
        document = copy.deepcopy(documents()[place])
        facts = {"place": place, "reason": reason}
        if isinstance(change, bytes):
            data = change
        else:
            change(document)
            data = _bytes(document)
        yield Case(name=f"faulty/{reason}-{number:03}.zarr.json", kind="metadata", data=data, facts=facts)
    second = documents()
    for place in (ZERO, ONE):
        second[place]["codecs"][0]["configuration"].update(bitstream=2, blend=8)
    for place, document in second.items():
        name = f"valid/metadata-2/{place}"
        yield Case(name=name, kind="metadata", data=_bytes(document), facts={"place": place, "bitstream": 2})


def _bytes(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


Change = Callable[[Any], object]
GROUP, ZERO, ONE = "zarr.json", "0/zarr.json", "1/zarr.json"
HUGE: Final = 10**400


def _group(reason: str, change: Change) -> tuple[str, str, Change]:
    return reason, GROUP, change


def _own(reason: str, **values: Any) -> tuple[str, str, Change]:
    return _group(reason, lambda v: v["attributes"]["tilecodec"].update(values))


def _ome(change: Change, reason: str = "group-ome") -> tuple[str, str, Change]:
    return _group(reason, lambda v: change(v["attributes"]["ome"]["multiscales"][0]))


def _scale(value: Any) -> tuple[str, str, Change]:
    return _ome(lambda m: m["datasets"][0]["coordinateTransformations"][0].update(scale=value))


def _path(value: Any) -> tuple[str, str, Change]:
    return _ome(lambda m: m["datasets"][1].update(path=value), "group-path")


def _array(reason: str, **values: Any) -> tuple[str, str, Change]:
    return reason, ZERO, lambda v: v.update(values)


def _codec(reason: str, **values: Any) -> tuple[str, str, Change]:
    return reason, ZERO, lambda v: v["codecs"][0]["configuration"].update(values)


CHANGES: Final[list[tuple[str, str, Change | bytes]]] = [
    ("not-json", GROUP, b""),
    ("not-json", GROUP, b"{"),
    ("not-json", ZERO, b"\x00\x01\x02"),
    ("not-json", GROUP, b'{"zarr_format":3,"x":"\xff"}'),
    ("not-json", ONE, b'{"zarr_format":NaN}'),
    ("not-json", GROUP, b'{"zarr_format":1e999}'),
    ("not-json", GROUP, b'{"zarr_format":3,"zarr_format":3}'),
    ("not-json", GROUP, b'{"zarr_format":3,"x":"\\ud800"}'),
    ("not-zarr", GROUP, b"[]"),
    ("not-zarr", GROUP, b"3"),
    ("not-zarr", GROUP, b'{"zarr_format":2}'),
    ("not-zarr", ZERO, b'{"zarr_format":true}'),
    ("limit-metadata-depth", GROUP, b"[" * 40 + b"]" * 40),
    ("limit-metadata-depth", ZERO, b'{"a":' * 5000 + b"1" + b"}" * 5000),
    _group("group-attributes", lambda v: v["attributes"].pop("tilecodec")),
    _group("group-attributes", lambda v: v.update(attributes=[])),
    _group("group-attributes", lambda v: v.update(node_type="array")),
    _own("group-version", version=2),
    _own("group-version", version=True),
    _own("incomplete", complete=False),
    _own("group-fields", complete=1),
    _own("group-fields", model=None),
    _own("group-fields", lossy_history=[1]),
    _own("group-fields", fingerprint=5),
    _own("group-fields", properties={"a": 1}),
    _own("group-fields", icc_profile="no base64!"),
    _group("group-fields", lambda v: v["attributes"]["tilecodec"].pop("lossy_history")),
    _group("group-ome", lambda v: v["attributes"].pop("ome")),
    _group("group-ome", lambda v: v["attributes"]["ome"].update(version="0.4")),
    _group("group-ome", lambda v: v["attributes"]["ome"]["multiscales"].append({})),
    _ome(lambda m: m["axes"].reverse()),
    _ome(lambda m: m.update(datasets=[])),
    _ome(lambda m: m["datasets"].append(None)),
    _scale([1, 0, 1]),
    _scale([1, HUGE, 1]),
    _scale([1, 1]),
    _group("group-georeference", lambda v: v["attributes"].update({"spatial:transform": [1, 2, 3]})),
    _group("group-georeference", lambda v: v["attributes"].update({"proj:code": 4326})),
    _path("0"),
    _path("2"),
    _path("01"),
    _path("../vectors/1"),
    _path(1),
    _ome(lambda m: m.update(datasets=m["datasets"][:1] * 25), "limit-levels"),
    ("array-fields", ZERO, lambda v: v.pop("chunk_grid")),
    ("array-fields", ZERO, lambda v: v["codecs"].append({"name": "zstd"})),
    _array("array-fields", codecs={"a": 1}),
    _array("array-fields", node_type="group"),
    _array("array-fields", new={"must_understand": True}),
    _array("array-fields", storage_transformers=[{}]),
    _array("array-axes", dimension_names=["c", "x", "y"]),
    ("array-axes", ONE, lambda v: v.pop("dimension_names")),
    _array("array-fill", fill_value=1),
    _array("array-fill", fill_value=None),
    _array("array-geometry", shape=[1, 300, 200]),
    _array("array-geometry", shape=[3, 0, 200]),
    _array("array-geometry", shape=[3, 300.0, 200]),
    _array("array-geometry", shape=[3, HUGE, 200]),
    _array("array-geometry", data_type="uint16"),
    _array("array-geometry", chunk_key_encoding={"name": "v2"}),
    _array("array-geometry", chunk_grid={"name": "regular", "configuration": {"chunk_shape": [3, 200, 200]}}),
    _array("array-geometry", chunk_grid={"name": "regular", "configuration": {"chunk_shape": [3, 2176, 2176]}}),
    ("array-codec", ZERO, lambda v: v["codecs"][0].update(name="zstd")),
    _codec("codec-version", bitstream=3),
    _codec("codec-fields", more=1),
    ("codec-fields", ZERO, lambda v: v["codecs"][0]["configuration"].pop("model")),
    _codec("codec-values", model="sha256:0"),
    _codec("codec-values", quality=0.5),
    _codec("codec-values", quality="high"),
    _codec("codec-values", tile=100),
    _codec("codec-values", stride=-1),
    _codec("codec-values", overlap=1000),
    _codec("codec-values", halo=True),
    ("level-size", ONE, lambda v: v.update(shape=[3, 150, 101])),
    ("level-codec", ONE, lambda v: v["codecs"][0]["configuration"].update(quality=51)),
    _array("limit-tiles", shape=[3, 2**31 - 1, 2**31 - 1]),
    _codec("codec-fields", blend=8),
    _codec("codec-fields", bitstream=2),
    _codec("codec-values", bitstream=2, blend=7),
    _codec("codec-values", bitstream=2, blend=66),
    _codec("codec-values", bitstream=2, blend=-2),
    ("level-codec", ONE, lambda v: v["codecs"][0]["configuration"].update(bitstream=2, blend=64)),
]
"""Reason, the document's place, and what it is instead or how it is changed. Add at the end only."""
