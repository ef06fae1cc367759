"""Test vectors of tile payloads: symbols drawn by formula, coded by a writer that is nothing but this file."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from vector_models import MODELS, Rows, VectorModel, integers

from tilecodec.entropy import oracle

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
    """payload, chunk or metadata."""
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
