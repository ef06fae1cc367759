"""The test vectors of ``formats/vectors`` as objects, and the fast path for their models."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vector_models import MODELS, VectorModel

from tilecodec.entropy.codec import TileCodec
from tilecodec.entropy.integer import Arithmetic
from tilecodec.entropy.oracle import decode_payload
from tilecodec.entropy.parameters import EntropyModel, EntropyTables
from tilecodec.entropy.payload import TilePayload
from tilecodec.entropy.program import Program
from tilecodec.entropy.tables import CDFTable

FOLDER = Path(__file__).parents[1] / "formats" / "vectors"
CPU = torch.device("cpu")
ARITHMETICS: tuple[Arithmetic, ...] = ("int8", "float32", "float64")
Symbols = tuple[np.ndarray, np.ndarray]


@functools.cache
def manifest() -> Any:
    return json.loads((FOLDER / "manifest.json").read_text())


def cases(kind: str, folder: str) -> list[Any]:
    """Entries of the manifest of one kind, valid or faulty."""
    return [c for c in manifest()["cases"] if c["kind"] == kind and c["name"].startswith(f"{folder}/")]


def content(case: Any) -> bytes:
    return (FOLDER / case["name"]).read_bytes()


@functools.cache
def vector_model(name: str) -> VectorModel:
    return MODELS[name]()


@functools.cache
def tables(name: str) -> EntropyTables:
    m = vector_model(name)
    return EntropyTables(*(CDFTable(t.cdf, t.length, t.offset) for t in (m.y_table, m.z_table)))


class Recorder(EntropyModel):
    """An entropy model that keeps the symbols it has seen, which a tile codec does not give away."""

    def run(self, z_symbols: Any, code_step: Any) -> Any:
        parts = []

        def kept(step: int, seen: Any) -> Any:
            parts.append(code_step(step, seen))
            return parts[-1]

        code = super().run(z_symbols, kept)
        self.seen = z_symbols, parts
        return code


def codec_of(
    program: Program, both: EntropyTables, stride: int, arithmetic: Arithmetic, device: torch.device = CPU
) -> tuple[TileCodec, Recorder]:
    """The fast path of a program; ``stride`` in pixels per hyper-latent position."""
    model = Recorder(program, device=device, arithmetic=arithmetic)
    return TileCodec(model, both, program.z_median, stride // 4, torch.nn.Identity()), model


def fast(name: str, arithmetic: Arithmetic = "auto") -> tuple[TileCodec, Recorder]:
    """The fast path of a vector model."""
    m = vector_model(name)
    return codec_of(m.program, tables(name), m.stride, arithmetic)


def decoded(codec: TileCodec, model: Recorder, payloads: list[TilePayload]) -> list[Symbols]:
    """Symbols of tiles of one size, decoded together; every one of them must be good."""
    from tilecodec.entropy.parameters import places

    latents = codec.decode_many(payloads, [f"tile {n}" for n in range(len(payloads))])
    for latent in latents:
        if isinstance(latent, Exception):
            raise latent
    z, parts = model.seen
    shape = tuple(latents[0].y_hat.shape)
    out = []
    for n in range(len(payloads)):
        y = np.empty(int(np.prod(shape)), np.int32)
        for step, symbols in enumerate(parts):
            y[places(*shape, step)[1].numpy()] = symbols[n].numpy()
        out.append((z[n], y.reshape(shape)))
    return out


def by_oracle(name: str, data: bytes, size: tuple[int, int] | None = None) -> Symbols:
    """Symbols of a payload as the oracle decodes them."""
    m = vector_model(name)
    return decode_payload(data, m.program, m.z_table, m.y_table, m.stride, size=size)


def digest(symbols: Symbols) -> str:
    z, y = symbols
    return hashlib.sha256(z.astype("<i4").tobytes() + y.astype("<i4").tobytes()).hexdigest()
