"""Makes the test vectors, and never changes one: ``python formats/vectors/generate.py [--check] [--models DIR]``.

Without arguments it writes the cases that are not there yet and adds them to ``manifest.json``. A case that would come
out otherwise than it stands in the manifest is an error, and so is one that is no longer made. ``--check`` writes
nothing and fails where something is missing. ``--models DIR`` writes the models as safetensors files, for readers in
other languages. Needs numpy, google_crc32c and this package; neither torch nor constriction.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from vector_models import CHANNELS, MODELS, Rows, VectorModel, integers

from tilecodec.entropy import oracle

FOLDER: Final = Path(__file__).resolve().parent
MANIFEST: Final = FOLDER / "manifest.json"
MASK: Final = 0xFFFFFFFF
LARGEST: Final = (1 << 24) - 1
RARE: Final = (LARGEST, -LARGEST, 1 << 23, -40000, 32768, -32769, 700, -300)
"""Symbols far outside of every table."""

Symbols = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One vector: a file, what it is, and what a reader makes of it."""

    name: str
    """Path below this folder."""
    kind: str
    """payload, chunk, group or array."""
    data: bytes
    facts: dict[str, Any] = field(default_factory=dict)
    """What a reader knows beside the bytes, and what comes out: symbols, tiles or a reason."""

    def entry(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        sha256 = hashlib.sha256(self.data).hexdigest()
        return {"name": self.name, "kind": self.kind, "bytes": len(self.data), "sha256": sha256} | self.facts


@cache
def model(name: str) -> VectorModel:
    """A model by name, made once."""
    return MODELS[name]()


# --- payloads


def encode_group(symbols: Symbols, rows: NDArray[np.int64], table: Rows) -> list[tuple[int, int]]:
    """Frequency and cumulative frequency, of 2^24, of every bin of a group in the order a decoder meets them."""
    out = []
    for row in np.unique(rows).tolist():
        cdf = table.cdf[row, : table.length[row]].tolist()
        bins = len(cdf) - 2
        index = [s - int(table.offset[row]) for s in symbols[rows == row].tolist()]
        for i in (i if 0 <= i < bins else bins for i in index):
            out.append((256 * (cdf[i + 1] - cdf[i]), 256 * cdf[i]))
        for i in (i for i in index if not 0 <= i < bins):
            code = 2 * (i - bins) if i >= bins else -2 * i - 1
            out += [(256, 256 * (code & 0xFFFF)), (256, 256 * (code >> 16))]
    return out


def pack(bins: list[tuple[int, int]], state: int = 0) -> list[int]:
    """The words of a stream.

    Args:
        bins: what :func:`encode_group` gives, of all groups.
        state: what the decoder is left with; 0 in a stream that is right.
    """
    words = []
    for frequency, cumulative in reversed(bins):
        if state >= frequency << 40:
            words.append(state & MASK)
            state >>= 32
        state = (state // frequency << 24) + state % frequency + cumulative
    while state:
        words.append(state & MASK)
        state >>= 32
    return words


def draw(seed: str, shape: tuple[int, ...], style: str) -> Symbols:
    """Symbols: ``usual``, ``small``, ``wild`` with many escapes, ``zero``, or ``largest``."""
    if style == "small":
        return integers(seed, shape, -1, 1).astype(np.int32)
    if style == "zero":
        return np.zeros(shape, np.int32)
    if style == "largest":
        return np.where(integers(seed, shape, 0, 1) == 0, LARGEST, -LARGEST).astype(np.int32)
    kind = integers(f"{seed}/kind", shape, 0, 99)
    small, middle = integers(f"{seed}/small", shape, -2, 2), integers(f"{seed}/middle", shape, -30, 30)
    rare = np.array(RARE)[integers(f"{seed}/rare", shape, 0, len(RARE) - 1)]
    often, seldom = (70, 97) if style == "usual" else (20, 60)
    return np.where(kind < often, small, np.where(kind < seldom, middle, rare)).astype(np.int32)


@dataclass(frozen=True, eq=False, slots=True)
class Tile:
    """A tile's symbols and what they are coded as."""

    height: int
    width: int
    z: Symbols
    y: Symbols
    bins: list[tuple[int, int]]

    @property
    def check(self) -> int:
        """CRC32C of the symbols."""
        return int(google_crc32c.value(self.z.astype("<i4").tobytes() + self.y.astype("<i4").tobytes()))

    def payload(self, **changed: Any) -> bytes:
        """The tile's payload; ``changed`` puts other values into its fields, with a CRC that fits all the same."""
        fields = {"version": 1, "flags": 0, "height": self.height, "width": self.width, "quality": 12800}
        fields |= {"check": self.check, "words": None} | changed
        words = fields.pop("words")
        words = pack(self.bins) if words is None else words
        head = struct.pack("<BBHHHI", *fields.values())
        stream = struct.pack(f"<{len(words)}I", *words)
        return head + struct.pack("<I", google_crc32c.value(head + stream)) + stream


def tile(m: VectorModel, height: int, width: int, style: str, z: Symbols | None = None) -> Tile:
    """A tile of drawn symbols."""
    seed = f"{m.name}/{height}x{width}/{style}"
    shape = (len(m.program.z_median), -(-height // m.stride), -(-width // m.stride))
    z = draw(f"{seed}/z", shape, style) if z is None else z
    bins = encode_group(z.ravel(), np.repeat(np.arange(shape[0]), shape[1] * shape[2]), m.z_table)

    def code_step(step: int, means: NDArray[np.int64], rows: NDArray[np.int64]) -> Symbols:
        symbols = draw(f"{seed}/{step}", means.shape, style)
        bins.extend(encode_group(symbols, rows, m.y_table))
        return symbols

    y = oracle.evaluate(m.program, z, code_step)
    return Tile(height, width, z, y, bins)


def symbols_fact(t: Tile) -> dict[str, Any]:
    """The symbols in the manifest."""
    data = t.z.astype("<i4").tobytes() + t.y.astype("<i4").tobytes()
    return {"z_shape": list(t.z.shape), "y_shape": list(t.y.shape), "symbols_sha256": hashlib.sha256(data).hexdigest()}


VALID: Final = (
    ("example", 32, 32, "usual"),
    ("example", 1, 1, "zero"),
    ("example", 65535, 1, "zero"),
    ("plain", 64, 64, "usual"),
    ("plain", 1, 1, "zero"),
    ("plain", 65, 127, "wild"),
    ("plain", 256, 192, "usual"),
    ("plain", 64, 64, "largest"),
    ("full", 32, 32, "usual"),
    ("full", 33, 96, "wild"),
    ("full", 128, 96, "usual"),
    ("full", 31, 5, "largest"),
    ("extreme", 64, 64, "usual"),
    ("extreme", 64, 128, "largest"),
    ("extreme", 129, 63, "wild"),
    ("extreme", 10, 200, "zero"),
)


def example_tile() -> Tile:
    """The tile of the worked example in ``formats/entropy.md``."""
    return tile(model("example"), 32, 32, "small", np.array([[[2]]], np.int32))


def valid_payloads() -> Iterator[Case]:
    """Tiles of every model."""

    def case(m: VectorModel, name: str, t: Tile) -> Case:
        facts = {"model": m.name, "height": t.height, "width": t.width} | symbols_fact(t)
        return Case(name=f"valid/{name}.payload", kind="payload", data=t.payload(), facts=facts)

    yield case(model("example"), "example", example_tile())
    for name, height, width, style in VALID:
        m = model(name)
        yield case(m, f"{name}-{height}x{width}-{style}", tile(m, height, width, style))


def faulty_payloads() -> Iterator[Case]:
    """Payloads that break one rule each; the CRC fits unless it is the fault."""
    m = model("plain")
    t = tile(m, 64, 128, "usual")
    good = t.payload()
    words = pack(t.bins)

    def case(reason: str, what: str, data: bytes) -> Case:
        facts = {"model": m.name, "height": t.height, "width": t.width, "reason": reason}
        return Case(name=f"faulty/{reason}-{what}.payload", kind="payload", data=data, facts=facts)

    for length in (0, 1, 15, 17, len(good) - 1, len(good) - 2):
        yield case("payload-length", f"{length}", good[:length])
    yield case("payload-length", "one-more", good + b"\0")
    for byte in (0, 1, 2, 4, 6, 8, 12, 16, len(good) - 1):
        flipped = bytearray(good)
        flipped[byte] ^= 1
        yield case("payload-crc", f"byte-{byte}", bytes(flipped))
    yield case("payload-crc", "word-less", good[:-4])
    yield case("payload-crc", "word-more", good + b"\1\0\0\0")
    yield case("payload-crc", "zeros", bytes(64))
    for version in (0, 2, 255):
        yield case("payload-version", f"{version}", t.payload(version=version))
    yield case("payload-version", "flags-1", t.payload(flags=1))
    yield case("payload-version", "flags-128", t.payload(flags=128))
    for height, width in ((0, 0), (64, 127), (65, 128), (128, 64), (65535, 65535)):
        yield case("payload-size", f"{height}x{width}", t.payload(height=height, width=width))
    for quality in (0, 255, 25601, 65535):
        yield case("payload-quality", f"{quality}", t.payload(quality=quality))
    yield case("stream-form", "zero-word", t.payload(words=[*words, 0]))
    yield case("stream-form", "only-zero", t.payload(words=[0]))
    yield case("symbol-check", "other-check", t.payload(check=t.check ^ 1))
    yield case("symbol-check", "no-stream", t.payload(words=[]))
    yield case("symbol-check", "cut-at-the-top", t.payload(words=words[:-2]))
    yield case("symbol-check", "cut-at-the-bottom", t.payload(words=words[2:]))
    yield case("symbol-check", "other-word", t.payload(words=[*words[:-3], words[-3] ^ 4, *words[-2:]]))
    yield case("symbol-check", "words-swapped", t.payload(words=[*words[:-2], words[-1], words[-2]]))
    yield case("symbol-check", "other-tile", tile(m, 64, 128, "wild").payload(check=t.check))
    yield case("symbol-check", "check-and-rest", t.payload(check=t.check ^ 1, words=pack(t.bins, state=1)))
    yield case("stream-rest", "state-1", t.payload(words=pack(t.bins, state=1)))
    yield case("stream-rest", "words-left", t.payload(words=pack(t.bins, state=(1 << 90) + 12345)))


def cases() -> Iterator[Case]:
    """All of them. Add to the end of a generator; never change what one makes."""
    yield from valid_payloads()
    yield from faulty_payloads()


# --- the manifest


def model_entry(m: VectorModel) -> dict[str, Any]:
    """A model's header and the hashes of its tensors, little-endian, in C order."""
    arrays = {f"integer.{k}": v for k, v in m.tensors.items()}
    for name, t in (("y", m.y_table), ("z", m.z_table)):
        arrays |= {f"tables.{name}.{k}": getattr(t, k) for k in ("cdf", "length", "offset")}
    tensors = {
        k: {
            "dtype": str(v.dtype),
            "shape": list(v.shape),
            "sha256": hashlib.sha256(v.astype(v.dtype.newbyteorder("<")).tobytes()).hexdigest(),
        }
        for k, v in sorted(arrays.items())
    }
    channels = {"y_channels": CHANNELS[m.name], "z_channels": len(m.program.z_median)}
    return {"name": m.name, "stride": m.stride} | channels | {"integer": m.header, "tensors": tensors}


def save_models(folder: Path) -> None:
    """Every model as ``NAME.safetensors``: the tensors of a model file that decide symbols, and the header."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        m = model(name)
        arrays = {f"integer.{k}": np.ascontiguousarray(v) for k, v in m.tensors.items()}
        for prefix, t in (("y", m.y_table), ("z", m.z_table)):
            arrays |= {f"tables.{prefix}.{k}": np.ascontiguousarray(getattr(t, k)) for k in ("cdf", "length", "offset")}
        header = json.dumps({"version": 1, "alias": f"vectors-{name}", "integer": m.header})
        save_file(arrays, folder / f"{name}.safetensors", metadata={"tilecodec": header})


def main(argv: Sequence[str] | None = None) -> int:
    """Writes, or checks, the vectors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where something differs or lacks")
    parser.add_argument("--models", type=Path, metavar="DIR", help="write the models here, and nothing else")
    args = parser.parse_args(argv)
    if args.models is not None:
        save_models(args.models)
        return 0
    old = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {"models": [], "cases": []}
    new = {"models": [model_entry(model(name)) for name in MODELS], "cases": [c.entry() for c in cases()]}
    faults, fresh = [], []
    for part in ("models", "cases"):
        made = {entry["name"]: entry for entry in new[part]}
        kept = {entry["name"]: entry for entry in old[part]}
        if len(made) != len(new[part]):
            faults.append(f"two of the {part} have one name")
        faults += [f"{name} is no longer made" for name in kept if name not in made]
        faults += [f"{name} would change" for name in kept if name in made and made[name] != kept[name]]
        fresh += [name for name in made if name not in kept]
        old[part] += [entry for name, entry in made.items() if name not in kept]
    for case in cases():
        path = FOLDER / case.name
        if path.exists() and path.read_bytes() != case.data:
            faults.append(f"{case.name} is not the file that was made")
        if case.name not in fresh and not path.exists():
            faults.append(f"{case.name} is gone")
    if args.check:
        faults += [f"{name} is not written yet" for name in fresh]
        known = {entry["name"] for entry in old["cases"]}
        on_disk = {p.relative_to(FOLDER).as_posix() for part in ("valid", "faulty") for p in FOLDER.glob(f"{part}/*")}
        faults += [f"{name} is in no manifest" for name in sorted(on_disk - known)]
    if faults:
        sys.stderr.write("\n".join(faults) + "\n")
        return 1
    if not args.check:
        for case in cases():
            if case.name in fresh:
                (FOLDER / case.name).parent.mkdir(parents=True, exist_ok=True)
                (FOLDER / case.name).write_bytes(case.data)
        MANIFEST.write_text(_as_text(old))
    sys.stdout.write(f"{len(old['cases'])} vectors, {len(fresh)} of models and vectors new\n")
    return 0


def _as_text(manifest: dict[str, Any]) -> str:
    """JSON with a case, and a tensor, to a line."""
    lines = ["{", '"models": [']
    for n, m in enumerate(manifest["models"]):
        tensors = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in m["tensors"].items())
        rest = ", ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in m.items() if k != "tensors")
        lines.append(f'{{{rest}, "tensors": {{\n{tensors}\n}}}}' + ("," if n + 1 < len(manifest["models"]) else ""))
    lines += ["],", '"cases": [']
    lines += [",\n".join(json.dumps(c) for c in manifest["cases"]), "]", "}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
