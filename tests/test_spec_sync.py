"""The texts of ``formats/`` say what the schemas and the code do."""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import re
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import jsonschema
import numpy as np
import pytest
from referencing import Registry, Resource

import tilecodec
from tilecodec.blend import axis_weights
from tilecodec.container import chunk
from tilecodec.container.metadata import (
    CODEC_NAME,
    CodecConfiguration,
    ContainerMetadata,
    LevelLayout,
    array_json,
    group_json,
)
from tilecodec.entropy import payload
from tilecodec.entropy.coder import GroupDecoder, SymbolGroup, encode_groups
from tilecodec.entropy.tables import CDFTable, scale_table
from tilecodec.errors import ContainerError, IncompleteContainerError, NotAContainerError
from tilecodec.limits import Limits, limit_reason
from tilecodec.model.blocks import quadtree_masks
from tilecodec.source import Georeference
from tilecodec.tiles import TileGrid

FORMATS = Path(__file__).parents[1] / "formats"
SIZES = {"u8": "B", "u16": "H", "u32": "I"}


@functools.cache
def text(name: str) -> str:
    return (FORMATS / name).read_text(encoding="utf-8")


def tables(name: str) -> list[list[dict[str, str]]]:
    """The Markdown tables of a text: a list of rows each, keyed by the headings, backquotes removed."""
    found = []
    for block in re.findall(r"(?:^ *\|.*\n)+", text(name), flags=re.MULTILINE):
        heads, _, *rows = [
            [c.strip().replace("`", "") for c in line.strip().strip("|").split("|")] for line in block.splitlines()
        ]
        found.append([dict(zip(heads, row, strict=True)) for row in rows])
    return found


def table(name: str, *heads: str) -> list[dict[str, str]]:
    """The one table with these headings."""
    (found,) = (t for t in tables(name) if tuple(t[0]) == heads)
    return found


def fields(name: str) -> list[list[dict[str, str]]]:
    """The byte tables."""
    return [t for t in tables(name) if {"offset", "size", "field"} <= set(t[0])]


def schema(name: str) -> Any:
    return json.loads(text(name))


def validator(name: str) -> jsonschema.Draft202012Validator:
    both = {n: Resource.from_contents(schema(n)) for n in ("container.schema.json", "codec/schema.json")}
    return jsonschema.Draft202012Validator({"$ref": name}, registry=Registry().with_resources(list(both.items())))


def layouts() -> list[LevelLayout]:
    codec = CodecConfiguration(model="sha256:" + "0f" * 32, quality=42.5, tile=256, stride=128, overlap=64, halo=128)
    sizes = [(1000, 3001), (500, 1501)]
    return [
        LevelLayout(path=str(n), grid=TileGrid(*size, 256, 128), chunk_tiles=4, codec=codec)
        for n, size in enumerate(sizes)
    ]


GEO = Georeference(epsg=32633, transform=(0.5, 0.0, 4.0e5, 0.0, -0.5, 5.0e6))


def metadata(**more: Any) -> ContainerMetadata:
    fixed = {"name": "picture", "levels": tuple(layouts()), "model_alias": "default", "fingerprint": "x"}
    return ContainerMetadata(**fixed | {"complete": True, "lossy_history": ("jpeg", "tilecodec")} | more)


# Byte tables


def test_payload_header_is_as_tabled() -> None:
    (rows,) = fields("payload.md")
    assert "<" + "".join(SIZES[row["type"]] for row in rows[:-1]) == payload.HEADER.format
    offset = 0
    for row in rows[:-1]:
        assert (int(row["offset"]), int(row["size"])) == (offset, struct.calcsize(SIZES[row["type"]]))
        offset += int(row["size"])
    assert int(rows[-1]["offset"]) == offset == payload.HEADER.size
    assert (rows[-1]["field"], rows[-1]["type"]) == ("stream", "u32[n]")


def test_payload_fields_lie_where_the_table_says() -> None:
    words = np.array([7, 9], np.uint32)
    made = payload.TilePayload(300, 511, 42.5, 0xDEADBEEF, words).to_bytes()
    want = {"version": 1, "flags": 0, "height": 300, "width": 511, "quality": 42.5 * 256, "symbol_check": 0xDEADBEEF}
    want["crc"] = google_crc32c.value(made[:12] + made[16:])
    (rows,) = fields("payload.md")
    got = {r["field"]: struct.unpack_from("<" + SIZES[r["type"]], made, int(r["offset"]))[0] for r in rows[:-1]}
    assert got == want
    assert made[16:] == words.astype("<u4").tobytes()


def test_chunk_is_as_tabled() -> None:
    head, entry = fields("container.md")
    assert chunk.HEAD.format == "<4sBBBB"
    assert [r["size"] for r in head[:5]] == ["4", "1", "1", "1", "1"]
    assert [int(r["offset"]) for r in head[:6]] == [0, 4, 5, 6, 7, chunk.HEAD.size]
    assert "<" + "".join(SIZES[r["type"]] for r in entry) == chunk.ENTRY.format
    assert f"{chunk.ENTRY.size}·R·C" in head[5]["size"]
    assert f"`{chunk.MAGIC.decode()}`" in text("container.md")
    assert chunk.index_bytes(3, 2) == 12 + 5 * 3 * 2
    tiles = [(chunk.TileState.EMPTY, b"rgb"), (chunk.TileState.NODATA, b""), (chunk.TileState.CODED, b"coded")]
    made = chunk.pack_chunk(1, 3, tiles)
    assert made[:8] == b"TCK1\x01\x01\x03\x00"
    assert made[8:23] == bytes([2, 3, 0, 0, 0, 3, 0, 0, 0, 0, 1, 5, 0, 0, 0])
    assert made[23:27] == struct.pack("<I", google_crc32c.value(made[:23]))
    assert made[27:] == b"rgbcoded"


def test_tile_states_are_as_tabled() -> None:
    rows = table("container.md", "state", "name", "payload", "the tile")
    assert {int(r["state"]): r["name"] for r in rows} == {s.value: s.name for s in chunk.TileState}


def test_crc32c_is_the_one_described() -> None:
    assert f"0x{google_crc32c.value(b'123456789'):08X}" in text("README.md")


# Metadata


def test_codec_fields_are_as_tabled() -> None:
    rows = table("codec/README.md", "name", "type", "meaning")
    configuration = schema("codec/schema.json")["properties"]["configuration"]
    names = [r["name"] for r in rows]
    assert names == list(CodecConfiguration.__slots__)
    assert names == list(configuration["properties"]) == configuration["required"]
    types = {n: p.get("type", "integer") for n, p in configuration["properties"].items()}
    assert {r["name"]: r["type"] for r in rows} == types
    assert CODEC_NAME in text("codec/README.md")
    assert schema("codec/schema.json")["properties"]["name"]["const"] == CODEC_NAME


def test_codec_example_is_valid() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", text("codec/README.md"), flags=re.DOTALL)
    validator("codec/schema.json").validate(json.loads(example))
    CodecConfiguration.from_dict(json.loads(example)["configuration"], "example")


def test_group_attributes_are_as_tabled() -> None:
    rows = table("container.md", "key", "type", "needed", "meaning")
    own = schema("container.schema.json")["$defs"]["tilecodec"]
    full = json.loads(group_json(metadata(properties={"a": "b"}, icc_profile=b"icc")))["attributes"]["tilecodec"]
    bare = json.loads(group_json(metadata()))["attributes"]["tilecodec"]
    assert [r["key"] for r in rows] == list(own["properties"]) == list(full)
    assert [r["key"] for r in rows if r["needed"] == "yes"] == own["required"] == list(bare)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"complete": False},
        {"pixel_size_um": (0.25, 0.26)},
        {"properties": {"openslide.mpp-x": "0.25"}, "icc_profile": b"icc"},
        {"georeference": GEO},
    ],
    ids=str,
)
def test_written_metadata_fit_the_schema(more: dict[str, Any]) -> None:
    validator("container.schema.json").validate(json.loads(group_json(metadata(**more))))


def test_written_arrays_fit_the_schema() -> None:
    for layout in layouts():
        validator("container.schema.json").validate(json.loads(array_json(layout)))


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("shape", [4, 10, 10]),
        ("shape", [3, 0, 10]),
        ("data_type", "uint16"),
        ("fill_value", 255),
        ("codecs", []),
        ("codecs", [{"name": "bytes"}]),
        ("dimension_names", ["x", "y", "c"]),
    ],
)
def test_schema_refuses_other_arrays(member: str, value: object) -> None:
    array = json.loads(array_json(layouts()[0]))
    array[member] = value
    with pytest.raises(jsonschema.ValidationError):
        validator("container.schema.json").validate(array)


def test_schemas_are_schemas() -> None:
    for name in ("container.schema.json", "codec/schema.json"):
        jsonschema.Draft202012Validator.check_schema(schema(name))


# Reasons


def reasons_in_code(*folders: str) -> set[str]:
    """Every ``reason="..."`` that a call in these folders gives."""
    root = Path(tilecodec.__file__).parent
    found = set()
    files = [list((root / folder).rglob("*.py")) for folder in folders]
    assert all(files)
    for file in (f for several in files for f in several):
        for call in (n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)):
            given = [k.value for k in call.keywords if k.arg == "reason"]
            found |= {value.value for value in given if isinstance(value, ast.Constant)}
    return found


def test_reasons_are_as_tabled() -> None:
    tabled: list[str] = []
    for name in ("container.md", "payload.md"):
        for rows in (t for t in tables(name) if tuple(t[0]) == ("check", "reason")):
            tabled += [r["reason"] for r in rows if r["reason"]]
    assert len(tabled) == len(set(tabled))
    own = {NotAContainerError.reason, IncompleteContainerError.reason, ContainerError.reason}
    assert set(tabled) - own == reasons_in_code("container", "entropy", "decoder")


def test_limits_are_as_tabled() -> None:
    rows = table("SECURITY.md", "limit", "default", "governs", "reason")
    assert {r["limit"]: int(r["default"]) for r in rows} == dataclasses.asdict(Limits())
    assert [r["reason"] for r in rows] == [limit_reason(r["limit"]) for r in rows]


# Entropy coding


def test_scales_are_as_listed() -> None:
    listed = text("entropy.md").split("<!-- scales -->")[1].split("<!-- end of scales -->")[0].split()
    assert [int(v, 16) for v in listed] == scale_table().astype(np.float32).view(np.uint32).tolist()


def test_steps_are_as_tabled() -> None:
    rows = table("entropy.md", "step", "group 0", "group 1", "group 2", "group 3")
    cell = {(0, 0): "A", (0, 1): "B", (1, 0): "C", (1, 1): "D"}
    masks = quadtree_masks(2, 2)
    for row in rows:
        for group in range(4):
            ((y, x),) = masks[int(row["step"]), group].nonzero().tolist()
            assert row[f"group {group}"] == cell[y, x]


def example() -> tuple[CDFTable, list[SymbolGroup], np.ndarray]:
    def numbers(cell: str) -> list[int]:
        return [int(v) for v in cell.replace("−", "-").split(", ")]

    rows = table("entropy.md", "row", "cdf", "length", "offset")
    cdfs = [numbers(r["cdf"]) for r in rows]
    longest = max(len(c) for c in cdfs)
    padded = np.array([c + [0] * (longest - len(c)) for c in cdfs], np.int32)
    lengths, offsets = (np.array([numbers(r[k])[0] for r in rows], np.int32) for k in ("length", "offset"))
    both = CDFTable(padded, lengths, offsets)
    groups = [
        SymbolGroup(np.array(numbers(r["symbols"]), np.int32), np.array(numbers(r["rows"]), np.int32), both)
        for r in table("entropy.md", "group", "rows", "symbols")
    ]
    (stream,) = re.findall(r"bytes `([0-9a-f ]+)`", text("entropy.md"))
    return both, groups, np.frombuffer(bytes.fromhex(stream), "<u4")


def test_example_encodes_and_decodes_as_written() -> None:
    both, groups, words = example()
    assert encode_groups(groups).tolist() == words.tolist()
    decoder = GroupDecoder(words, "here")
    for group in groups:
        assert decoder.decode(group.rows, both).tolist() == group.symbols.tolist()
    decoder.finish()


def test_example_s_states_follow_the_pseudo_code() -> None:
    """The text's own ``start`` and ``pop_bin``, in plain integers, step by step through its table."""
    both, _, stream = example()
    words = stream.tolist()
    state = 0
    while state < 1 << 32 and words:
        state = state << 32 | words.pop()
    steps = table("entropy.md", "state before", "q", "bin", "stands for")
    order = [0, 0, 1, 1, None, None, 0, 0, None, None, 1]  # table row of each step; None: a uniform half
    for row, step in zip(order, steps, strict=True):
        cdf = list(range(65537)) if row is None else both.cdf[row, : both.length[row]].tolist()
        q = state % (1 << 24)
        i = max(n for n, c in enumerate(cdf) if 256 * c <= q)
        assert (f"{state:016x}", f"{q:06x}", i) == (step["state before"], step["q"], int(step["bin"]))
        state = (state >> 24) * 256 * (cdf[i + 1] - cdf[i]) + q - 256 * cdf[i]
        if state < 1 << 32 and words:
            state = state << 32 | words.pop()
    assert (state, words) == (0, [])


# Geometry


@pytest.mark.parametrize("overlap", [16, 32, 64])
def test_blending_weights_are_the_formula_s(overlap: int) -> None:
    i = np.arange(2 * overlap)
    ramp = np.rint(128 * (1 - np.cos(np.pi * (i + 0.5) / (2 * overlap)))).astype(int)
    weights = axis_weights(6 * overlap, overlap, True, True).astype(int)
    assert weights.tolist() == [*ramp, *[256] * (2 * overlap), *(256 - ramp)]


def test_versions_are_as_tabled() -> None:
    rows = {r["what"]: int(r["version"]) for r in table("README.md", "what", "where it stands", "version")}
    group = json.loads(group_json(metadata()))["attributes"]["tilecodec"]
    assert rows == {
        "container": group["version"],
        "codec and bitstream": layouts()[0].codec.bitstream,
        "chunk": chunk.VERSION,
        "tile payload": payload.VERSION,
        "model file": 1,
    }
