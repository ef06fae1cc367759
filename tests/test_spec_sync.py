"""The texts of ``formats/`` say what the schemas and the code do."""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import math
import re
import struct
from pathlib import Path
from typing import Any, get_args

import google_crc32c
import jsonschema
import numpy as np
import pytest
import tiny
import vectors
from referencing import Registry, Resource

import tilecodec
from tilecodec.blend import axis_weights
from tilecodec.container import chunk
from tilecodec.container.metadata import (
    CODEC_FIELDS,
    CODEC_NAME,
    CodecConfiguration,
    ContainerMetadata,
    LevelLayout,
    array_json,
    group_json,
)
from tilecodec.entropy import oracle, payload, program
from tilecodec.entropy.coder import SYMBOL_LIMIT, GroupDecoder, SymbolGroup, encode_groups
from tilecodec.entropy.model import load_model
from tilecodec.entropy.tables import CDFTable
from tilecodec.errors import ContainerError, IncompleteContainerError, ModelError, NotAContainerError
from tilecodec.limits import Limits, limit_reason
from tilecodec.model import weights
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
    codec = CodecConfiguration(
        model="sha256:" + "0f" * 32, quality=42.5, tile=256, stride=128, overlap=64, blend=16, halo=128
    )
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
    assert chunk.HEAD.format == "<4sBBBBIII"
    assert [r["size"] for r in head[:8]] == ["4", "1", "1", "1", "1", "4", "4", "4"]
    assert [int(r["offset"]) for r in head[:9]] == [0, 4, 5, 6, 7, 8, 12, 16, chunk.HEAD.size]
    assert "<" + "".join(SIZES[r["type"]] for r in entry) == chunk.ENTRY.format
    assert f"{chunk.ENTRY.size}·R·C" in head[8]["size"]
    assert f"`{chunk.MAGIC.decode()}`" in text("container.md")
    assert chunk.index_bytes(3, 2) == 24 + 9 * 3 * 2
    tiles = [(chunk.TileState.EMPTY, b"rgb"), (chunk.TileState.NODATA, b""), (chunk.TileState.CODED, b"coded")]
    made = chunk.pack_chunk(1, 3, tiles, chunk.ChunkPlace(level=1, row=2, col=3))
    assert made[:20] == b"TCK1\x02\x01\x03\x00\x01\0\0\0\x02\0\0\0\x03\0\0\0"
    entries = [(2, b"rgb"), (3, b""), (1, b"coded")]
    assert made[20:47] == b"".join(struct.pack("<BII", s, len(p), google_crc32c.value(p)) for s, p in entries)
    assert made[47:51] == struct.pack("<I", google_crc32c.value(made[:47]))
    assert made[51:] == b"rgbcoded"


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
    assert names == list(configuration["properties"]) == list(CODEC_FIELDS[2])
    assert [n for n in names if n != "blend"] == configuration["required"] == list(CODEC_FIELDS[1])
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


def test_instructions_are_as_tabled() -> None:
    rows = table("entropy.md", "operation", "reads", "argument", "result", "shape of the result")
    assert [r["operation"] for r in rows] == list(get_args(program.Op)) == list(program.INPUTS)
    assert [int(r["reads"]) for r in rows] == list(program.INPUTS.values())
    arguments = {"null": None, "layer": "name", "table": "name", "n": 3}
    for row in rows:
        entry = [row["operation"], ["a"] * int(row["reads"]), "b", arguments[row["argument"]]]
        assert program._instruction(entry, "here").op == row["operation"]
        for other in set(arguments.values()) - {entry[3]}:
            with pytest.raises(ModelError):
                program._instruction([*entry[:3], other], "here")


def test_bounds_are_as_tabled() -> None:
    bounds = [int(r["value"]) for r in table("entropy.md", "bound", "value")]
    tabled = dict(
        zip(("bits_from", "bits", "shift", "scale", "sums", "least", "channels", "length"), bounds, strict=True)
    )
    assert (tabled["shift"], tabled["scale"]) == (program.MAX_SHIFT, program.MAX_SCALE)
    assert (tabled["least"], tabled["channels"]) == (1, program.MAX_CHANNELS)
    assert (tabled["length"], tabled["sums"]) == (program.MAX_INSTRUCTIONS, program.SUM_LIMIT)
    for bits in (tabled["bits_from"], tabled["bits"]):
        assert program._bits({"z_bits": bits}, "z_bits") == bits
    for bits in (tabled["bits_from"] - 1, tabled["bits"] + 1):
        with pytest.raises(ModelError):
            program._bits({"z_bits": bits}, "z_bits")
    assert (program.LOW, program.HIGH) == (-32768, 32767)
    assert "limited to −32768 ... 32767" in text("entropy.md")
    assert f"{program.REACH} · (sum" in text("entropy.md")
    assert SYMBOL_LIMIT == 2**24 - 1
    assert "magnitude at most 2²⁴ − 1" in text("entropy.md")


def test_a_program_s_refusals_have_the_tabled_reason() -> None:
    found = [t for t in tables("entropy.md") if tuple(t[0]) == ("check", "reason")]
    assert {r["reason"] for t in found for r in t} == {ModelError.reason}


def test_sections_are_as_tabled() -> None:
    rows = table("entropy.md", "section", "given", "results")
    assert [re.split(",", r["section"])[0] for r in rows] == ["hyper", "steps", "corrections"]
    results = {name for r in rows for name in re.findall(r"([a-z]+) \(", r["results"])}
    assert results == set(program.RESULTS)


def test_the_program_s_members_are_as_tabled() -> None:
    rows = table("model.md", "member", "type", "meaning")
    header = vectors.vector_model("full").program.header()
    assert [r["member"] for r in rows] == list(header)
    for row in rows:
        assert isinstance(header[row["member"]], int if row["type"] == "integer" else list)


def test_integer_tensors_are_as_tabled() -> None:
    model = load_model(tiny.tiny_model(), device="cpu", precision="fp32")
    arrays = {f"integer.{k}": v for k, v in model.program.tensors().items()}
    for name, part in (("y", model.tables.y), ("z", model.tables.z)):
        arrays |= {f"tables.{name}.{k}": getattr(part, k) for k in ("cdf", "length", "offset")}
    patterns = {}
    for row in table("model.md", "tensor", "type", "shape"):
        pattern = re.escape(row["tensor"]).replace("LAYER", "(?!lut)[^:]+").replace("TABLE", "[^:]+")
        patterns[pattern] = row["type"], row["shape"].strip("()").split(", ")
    used = set()
    for name, array in arrays.items():
        (pattern,) = (p for p in patterns if re.fullmatch(p, name))
        dtype, shape = patterns[pattern]
        assert (str(array.dtype), array.ndim) == (dtype, len(shape)), name
        assert all(not s.isdigit() or int(s) == n for s, n in zip(shape, array.shape, strict=True)), name
        used.add(pattern)
    assert used == set(patterns)


def test_absent_parts_are_as_tabled() -> None:
    rows = table("model.md", "absent", "stands for")
    assert tuple(r["absent"] for r in rows) == weights.INTEGER_PARTS


def test_a_model_file_s_header_is_as_tabled() -> None:
    rows = table("model.md", "key", "type", "meaning")
    data = (Path(tiny.tiny_model()) / weights.FILE).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert [r["key"] for r in rows] == list(json.loads(header[weights.METADATA_KEY]))


def test_example_program_is_the_vectors_model() -> None:
    (listed,) = re.findall(r"```json\n(.*?)```", text("entropy.md"), flags=re.DOTALL)
    model = vectors.vector_model("example")
    assert json.loads(listed) == model.header
    rows = {r["layer"]: r for r in table("entropy.md", "layer", "weight", "bias", "shift")}
    assert set(rows) == set(model.program.layers)
    for name, row in rows.items():
        layer = model.program.layers[name]
        assert layer.weight.shape == tuple(map(int, re.findall(r"\d+", row["weight"].split(")")[0])))
        assert {int(row["bias"].replace("−", "-"))} == set(layer.bias.tolist())
        assert {int(row["shift"])} == set(layer.shift.tolist())
    assert model.program.layers["spread"].weight.ravel().tolist() == list(range(16))
    assert {tuple(k) for k in model.program.layers["left"].weight.reshape(4, 9).tolist()} == {
        tuple(map(int, re.findall(r"\d", rows["left"]["weight"].split(":")[1])))
    }
    (only,) = (t for t in (model.z_table,))
    both = example()[0]
    np.testing.assert_array_equal(only.cdf[0, : only.length[0]], both.cdf[1, : both.length[1]])
    for key in ("cdf", "length", "offset"):
        np.testing.assert_array_equal(getattr(model.y_table, key), getattr(both, key))
    scales = np.arange(-32768, 32768)
    np.testing.assert_array_equal(model.program.rows, scales >= 16)
    np.testing.assert_array_equal(model.program.tables["fold"], np.minimum(np.abs(scales), 32767))


def test_example_program_runs_as_written() -> None:
    def numbers(cell: str) -> list[int]:
        return [int(v) for v in cell.replace("−", "-").split(", ")]

    (listing,) = re.findall(r"Its payload is\n\n((?:    [0-9a-f ]+\n)+)", text("entropy.md"))
    z, y = vectors.by_oracle("example", bytes.fromhex(listing), (32, 32))
    assert z.tolist() == [[[2]]]
    code = table("entropy.md", "channel", "row 0", "row 1", "row 2", "row 3")
    assert y.tolist() == [[numbers(r[f"row {n}"]) for n in range(4)] for r in code]
    known = vectors.vector_model("example").program
    base = oracle.interpret(known, known.hyper, {"z": np.array([[[5]]])})["base"]
    seen = oracle.interpret(known, known.steps[0], {"base": base})
    rows = table("entropy.md", "row", "base", "mean")
    for channel in range(4):
        assert base[channel].tolist() == [numbers(r["base"]) for r in rows]
        assert seen["mean"][channel].tolist() == [numbers(r["mean"]) for r in rows]
    prose = " ".join(text("entropy.md").split())
    at = [(0, 0), (0, 2), (2, 0), (2, 2)]
    facts = {
        "whose scales are": [int(seen["scale"][0][p]) for p in at],
        "so that their rows are": [0, 0, 0, 0],
        "these symbols there:": [int(y[0][p]) for p in at],
        "symbol · 2 + mean:": [2 * int(y[0][p]) + int(seen["mean"][0][p]) for p in at],
    }
    for words, values in facts.items():
        assert f"{words} {', '.join(map(str, values)).replace('-', '−')}" in prose


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


@pytest.mark.parametrize(("overlap", "blend"), [(16, 8), (32, 8), (64, 64), (32, 64), (32, 0), (5, 2)])
def test_blending_weights_are_the_formula_s(overlap: int, blend: int) -> None:
    s = overlap - blend // 2
    ramp = []
    for i in range(2 * overlap):
        rising = s <= i < s + blend
        ramp.append(round(128 * (1 - math.cos(math.pi * (i - s + 0.5) / blend))) if rising else 256 * (i >= s))
    weights = axis_weights(6 * overlap, 2 * overlap, blend, True, True).astype(int)
    assert weights.tolist() == [*ramp, *[256] * (2 * overlap), *(256 - w for w in ramp)]


def test_a_schema_for_each_bitstream() -> None:
    example = {"name": CODEC_NAME, "configuration": layouts()[0].codec.to_dict()}
    first = {k: v for k, v in example["configuration"].items() if k != "blend"} | {"bitstream": 1}
    validator("codec/schema.json").validate(example)
    validator("codec/schema.json").validate({"name": CODEC_NAME, "configuration": first})
    for wrong in (first | {"bitstream": 2}, first | {"blend": 16}, first | {"bitstream": 3}):
        assert not validator("codec/schema.json").is_valid({"name": CODEC_NAME, "configuration": wrong})


def test_versions_are_as_tabled() -> None:
    rows = {r["what"]: int(r["version"]) for r in table("README.md", "what", "where it stands", "version")}
    group = json.loads(group_json(metadata()))["attributes"]["tilecodec"]
    assert rows == {
        "container": group["version"],
        "codec and bitstream": layouts()[0].codec.bitstream,
        "chunk": chunk.VERSION,
        "tile payload": payload.VERSION,
        "model file": weights.VERSION,
    }


def test_vector_kinds_and_models_are_as_tabled() -> None:
    kinds = table("vectors/README.md", "kind", "bytes", "beside them", "what comes out")
    assert {r["kind"] for r in kinds} == {c["kind"] for c in vectors.manifest()["cases"]}
    models = table("vectors/README.md", "model", "what it is for")
    assert [r["model"] for r in models] == [m["name"] for m in vectors.manifest()["models"]]
