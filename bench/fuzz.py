"""Damaged bytes: mutated payloads, chunks and metadata give a typed error or what was coded, soon, in little memory.

Payloads, chunks and documents are those of ``formats/vectors``. A case is a sound file with a few bytes changed, cut,
repeated or replaced by another file's. In half of the cases the CRCs are then made right again, so that what lies
behind them is reached. Payloads go through the fast path, one in twenty through the oracle, which must say the same.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
import torch
from safetensors import safe_open
from zarr.storage import LocalStore

from bench.common import BENCH, Bench, Check, add_arguments, start, table
from tilecodec.container.chunk import index_bytes, parse_index
from tilecodec.container.metadata import CodecConfiguration, LevelLayout, read_metadata
from tilecodec.container.store import ByteStore
from tilecodec.decoder.reader import TileReader
from tilecodec.entropy.codec import TileCodec
from tilecodec.entropy.oracle import decode_payload
from tilecodec.entropy.parameters import EntropyModel, EntropyTables
from tilecodec.entropy.payload import parse_payload
from tilecodec.entropy.program import Program, parse_program
from tilecodec.entropy.tables import CDFTable
from tilecodec.errors import ContainerError, CorruptTileError, TileCodecError
from tilecodec.tiles import TileGrid, TilePosition

VECTORS: Final = BENCH.parent / "formats" / "vectors"
LONGEST: Final = 10.0
"""Seconds that a case may take."""
MEMORY: Final = 1024
"""MiB that the process may grow by."""
ORACLE_EVERY: Final = 20
SAME, OTHER = "identical", "accepted"


class WrongError(Exception):
    """A verdict that must not be: other symbols or another tile than were coded, without an error."""


@dataclass(slots=True)
class Tally:
    """Verdicts of one target."""

    cases: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def add(self, name: str, call: Callable[[], str]) -> None:
        """Runs a case; what it returns, or the reason of its typed error, is the verdict."""
        begin = time.perf_counter()
        try:
            verdict = call()
        except TileCodecError as error:
            verdict = error.reason
        except Exception as error:  # noqa: BLE001  # any other exception is the crash looked for: it is recorded and fails the run
            verdict = "WRONG" if isinstance(error, WrongError) else "CRASH"
            self.failed.append(f"{name}: {error!r}")
        self.cases += 1
        self.verdicts[verdict] = self.verdicts.get(verdict, 0) + 1
        self.slowest = max(self.slowest, time.perf_counter() - begin)


# --- targets


@dataclass(frozen=True, eq=False)
class Model:
    """A vector model with both decoders."""

    program: Program
    tables: EntropyTables
    stride: int
    codec: TileCodec

    def symbols(self, data: bytes, size: tuple[int, int]) -> str:
        """Hash of a payload's symbols by the oracle."""
        z, y = decode_payload(data, self.program, self.tables.z, self.tables.y, self.stride, size=size)
        return hashlib.sha256(z.astype("<i4").tobytes() + y.astype("<i4").tobytes()).hexdigest()


@cache
def manifest() -> Any:
    """The vectors' manifest."""
    return json.loads((VECTORS / "manifest.json").read_text())


def load_models(folder: Path) -> dict[str, Model]:
    """The vectors' models, through the files that their generator writes."""
    command = [sys.executable, str(VECTORS / "generate.py"), "--models", str(folder)]
    subprocess.run(command, check=True)
    found = {}
    for entry in manifest()["models"]:
        with safe_open(folder / f"{entry['name']}.safetensors", "np") as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            header = json.loads(file.metadata()["tilecodec"])["integer"]
        own = {k.removeprefix("integer."): v for k, v in tensors.items() if k.startswith("integer.")}
        program = parse_program(header, own, y_channels=entry["y_channels"], z_channels=entry["z_channels"])
        y, z = (CDFTable(*(tensors[f"tables.{t}.{k}"] for k in ("cdf", "length", "offset"))) for t in ("y", "z"))
        tables, stride = EntropyTables(y, z), entry["stride"]
        fast = EntropyModel(program, device=torch.device("cpu"))
        codec = TileCodec(fast, tables, program.z_median, stride // 4, torch.nn.Identity())
        found[entry["name"]] = Model(program, tables, stride, codec)
    return found


class OneValue:
    """A store that has one key."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def get_range(self, key: str, offset: int, length: int) -> bytes | None:
        """Bytes, whatever the key."""
        return self.data[offset : offset + length]


class Targets:
    """What is fed with damaged bytes."""

    def __init__(self, work: Path) -> None:
        self.models = load_models(work / "models")
        self.payloads = self._sound("payload")
        self.chunks = self._sound("chunk")
        self.documents = self._sound("metadata")
        self._folder = work / "container"
        shutil.copytree(VECTORS / "valid" / "metadata", self._folder)
        self._metadata = read_metadata(ByteStore(LocalStore(self._folder)), where="container")

    @staticmethod
    def _sound(kind: str) -> list[tuple[Any, bytes]]:
        entries = [c for c in manifest()["cases"] if c["kind"] == kind and c["name"].startswith("valid/")]
        return [(c, (VECTORS / c["name"]).read_bytes()) for c in entries]

    def payload(self, case: Any, data: bytes, *, oracle: bool) -> str:
        """Decodes a payload in its place."""
        model, size = self.models[case["model"]], (case["height"], case["width"])
        verdict = self._verdict(lambda: self._fast(model, data, size))
        if oracle:
            other = self._verdict(lambda: self._slow(model, data, size, case["symbols_sha256"]))
            if other != verdict:
                raise WrongError(f"{verdict}, the oracle {other}")
        elif verdict == SAME and data[16:] != (VECTORS / case["name"]).read_bytes()[16:]:
            self._slow(model, data, size, case["symbols_sha256"])
        return verdict

    @staticmethod
    def _verdict(call: Callable[[], str]) -> str:
        try:
            return call()
        except CorruptTileError as error:
            return error.reason

    @staticmethod
    def _fast(model: Model, data: bytes, size: tuple[int, int]) -> str:
        payload = parse_payload(data, "tile")
        if (payload.height, payload.width) != size:
            raise CorruptTileError(reason="payload-size")
        if not 1 <= payload.quality <= 100:
            raise CorruptTileError(reason="payload-quality")
        model.codec.decode(payload, "tile")
        return SAME

    @staticmethod
    def _slow(model: Model, data: bytes, size: tuple[int, int], wanted: str) -> str:
        if model.symbols(data, size) != wanted:
            raise WrongError("other symbols passed every check")
        return SAME

    def chunk(self, case: Any, data: bytes, *, repaired: bool) -> str:
        """Reads every tile of a chunk. Without repair each must be an error or the tile that was coded."""
        grid = TileGrid(*(case[k] for k in ("height", "width", "tile", "stride")))
        codec = CodecConfiguration(
            model="sha256:" + "0" * 64, quality=50, tile=case["tile"], stride=case["stride"], overlap=0, blend=0, halo=0
        )
        layout = LevelLayout(path="0", grid=grid, chunk_tiles=case["chunk_tiles"], codec=codec, number=0)
        reader = TileReader(OneValue(data), layout)
        original = (VECTORS / case["name"]).read_bytes()
        reasons = []
        for fact in case["tiles"]:
            try:
                tile = reader.read(TilePosition(fact["row"], fact["col"]))
                if tile.payload is not None:
                    self.models[case["model"]].codec.decode(tile.payload, "tile")
            except ContainerError as error:
                reasons.append(error.reason)
                continue
            if repaired:
                continue
            if tile.state.name != fact["state"]:
                raise WrongError(f"a tile is {tile.state.name}, not {fact['state']}")
            part = original[fact["offset"] : fact["offset"] + fact["bytes"]]
            if fact["state"] == "EMPTY" and bytes(tile.colour) != part[:3]:
                raise WrongError("a colour differs")
            if tile.payload is not None and tile.payload.words.astype("<u4").tobytes() != part[16:]:
                raise WrongError("a payload's words differ")
        return reasons[0] if reasons else (OTHER if repaired else SAME)

    def metadata(self, case: Any, data: bytes) -> str:
        """Opens a container in which one document is another."""
        place = self._folder / case["place"]
        before = place.read_bytes()
        place.write_bytes(data)
        try:
            found = read_metadata(ByteStore(LocalStore(self._folder)), where="container")
        finally:
            place.write_bytes(before)
        return SAME if found == self._metadata else OTHER


# --- mutations


def mutate(rng: np.random.Generator, data: bytes, others: list[bytes]) -> bytes:
    """A few changes of a file's bytes."""
    out = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4, 16]))):
        kind = int(rng.integers(9))
        at = int(rng.integers(len(out) + 1)) if rng.random() < 0.6 else int(rng.integers(min(len(out), 40) + 1))
        length = int(rng.choice([1, 2, 4, 8, 64, 1024]))
        if kind == 0:
            del out[at:]
        elif kind == 1:
            del out[at : at + length]
        elif kind == 2:
            out[at:at] = rng.bytes(length)
        elif kind == 3:
            out[at:at] = out[at : at + length]
        elif kind == 4:
            other = others[rng.integers(len(others))]
            begin = int(rng.integers(len(other) + 1))
            out[at : at + length] = other[begin : begin + length]
        elif kind == 5:
            out[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 255, 65535, 2**31, 2**32 - 1])))
        elif at < len(out):
            out[at] = [out[at] ^ (1 << int(rng.integers(8))), int(rng.integers(256)), 0][kind - 6]
    return bytes(out)


ODD: Final[tuple[Any, ...]] = (
    *(None, True, False, -1, 0, 1, 2, 1.5, 300.0, 2**31, 2**63, 10**400, 1e308, "", "0", "1", "\x00", "../0", "é" * 99),
    *([], {}, [3, 1, 1], [[[[]]]], {"": {}}, [0] * 5000, {"must_understand": False}),
)
"""Values to put into a document."""


def mutate_text(rng: np.random.Generator, data: bytes, others: list[bytes]) -> bytes:
    """A document with members or items replaced, dropped, doubled or renamed; or with changed bytes."""
    if rng.random() < 0.3:
        return mutate(rng, data, others)
    document = json.loads(data)
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        holders: list[Any] = [document]
        for holder in holders:
            below = holder.values() if isinstance(holder, dict) else holder
            holders += [v for v in below if isinstance(v, dict | list) and v]
        holder = holders[rng.integers(len(holders))]
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key, kind = keys[rng.integers(len(keys))], int(rng.integers(6))
        if kind == 0 and len(keys) > 1:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[str(rng.integers(10))] = holder[key]
        elif kind == 1:
            holder.append(holder[key])
        elif kind == 2:
            holder[key] = [holder[key]]
        elif kind == 3 and type(holder[key]) in (int, float) and abs(holder[key]) < 1e9:
            holder[key] += [1, -1, 0.5, 64][rng.integers(4)]
        else:
            holder[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
    return json.dumps(document).encode()


def repaired_payload(data: bytes) -> bytes:
    """With the CRC that its bytes have."""
    if len(data) < 16:
        return data
    return data[:12] + struct.pack("<I", google_crc32c.value(data[:12] + data[16:])) + data[16:]


def repaired_chunk(data: bytes, tiles: int) -> bytes:
    """With the CRC that its index has."""
    size = index_bytes(1, tiles)
    if len(data) < size:
        return data
    return data[: size - 4] + struct.pack("<I", google_crc32c.value(data[: size - 4])) + data[size:]


def run(bench: Bench, count: int, seed: int, flips: int) -> dict[str, Tally]:
    """All cases: ``count`` random ones, and every flipped bit of ``flips`` payloads and of every chunk's index."""
    targets = Targets(bench.work)
    payloads, chunks, documents = ([d for _, d in x] for x in (targets.payloads, targets.chunks, targets.documents))
    small = [(c, d) for c, d in targets.payloads if len(d) < 6000]
    tallies = {
        n: Tally()
        for n in ("payload", "chunk", "metadata", "payload, every bit", "index, every bit", "chunk, every bit")
    }
    for n in range(count):
        if n % 5000 == 0:
            bench.note(f"case {n} of {count}")
        rng = np.random.default_rng([seed, n])
        target, repair = ("payload", "chunk", "metadata")[n % 3], rng.random() < 0.5
        name = f"{target} {n}"
        if target == "payload":
            case, data = small[rng.integers(len(small))]
            data = mutate(rng, data, payloads)
            data = repaired_payload(data) if repair else data
            deep = n % ORACLE_EVERY == 0
            tallies[target].add(name, partial(targets.payload, case, data, oracle=deep))
        elif target == "chunk":
            case, data = targets.chunks[rng.integers(len(chunks))]
            data = mutate(rng, data, chunks)
            data = repaired_chunk(data, len(case["tiles"])) if repair else data
            tallies[target].add(name, partial(targets.chunk, case, data, repaired=repair))
        else:
            case, data = targets.documents[rng.integers(len(documents))]
            data = mutate_text(rng, data, documents)
            tallies[target].add(name, partial(targets.metadata, case, data))
    bench.note("every bit")
    for case, data in sorted(small, key=lambda x: len(x[1]))[:flips]:
        for bit in range(8 * len(data)):
            call = partial(targets.payload, case, flipped(data, bit), oracle=False)
            tallies["payload, every bit"].add(f"{case['name']} {bit}", call)
    for case, data in targets.chunks:
        for bit in range(8 * index_bytes(data[5], data[6])):
            call = partial(index, flipped(data, bit), data[5], data[6])
            tallies["index, every bit"].add(f"{case['name']} {bit}", call)
    for case, data in sorted(targets.chunks, key=lambda x: len(x[1]))[: max(1, flips // 4)]:
        for bit in range(8 * len(data)):
            call = partial(targets.chunk, case, flipped(data, bit), repaired=False)
            tallies["chunk, every bit"].add(f"{case['name']} {bit}", call)
    return tallies


def index(data: bytes, rows: int, cols: int) -> str:
    """Parses a chunk's index."""
    parse_index(data, rows, cols, "chunk")
    return SAME


def flipped(data: bytes, bit: int) -> bytes:
    """With one bit changed."""
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def resident() -> float:
    """Largest resident size of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    add_arguments(parser, data=False)
    parser.add_argument("--cases", type=int, default=100_000, help="random cases (default 100000)")
    parser.add_argument("--seed", type=int, default=0, help="of the random cases (default 0)")
    parser.add_argument("--flips", type=int, default=20, help="payloads of which every bit is flipped (default 20)")
    args = parser.parse_args(argv)
    bench = start(parser, args, "fuzz", argv)
    if bench.smoke:
        args.cases, args.flips = 300, 1
    before = resident()
    tallies = run(bench, args.cases, args.seed, args.flips)
    grown = resident() - before
    failed = [f for t in tallies.values() for f in t.failed]
    slowest = max(t.slowest for t in tallies.values())
    every = [t.verdicts for name, t in tallies.items() if name.endswith("every bit")]
    bits = sum(n for v in every for verdict, n in v.items() if verdict in (SAME, OTHER, "WRONG", "CRASH"))
    checks = [
        Check(
            what=f"cases that were neither a typed error nor right, of {sum(t.cases for t in tallies.values())}",
            wanted="0",
            measured=str(len(failed)),
            ok=not failed,
            exact=True,
        ),
        Check(what="flipped bits without an error", wanted="0", measured=str(bits), ok=bits == 0, exact=True),
        Check(what="longest case", wanted=f"at most {LONGEST:g} s", measured=f"{slowest:.2f} s", ok=slowest <= LONGEST),
        Check(what="growth of memory", wanted=f"at most {MEMORY} MiB", measured=f"{grown:.0f} MiB", ok=grown <= MEMORY),
    ]
    rows = [
        {"target": name, "verdict": verdict, "cases": n, "slowest_s": round(t.slowest, 3)}
        for name, t in tallies.items()
        for verdict, n in sorted(t.verdicts.items(), key=lambda v: -v[1])
    ]
    bench.write_csv(rows)
    body = (
        f"`{SAME}`: what was coded, in spite of the change. `{OTHER}`: a change that makes another sound file, as CRCs "
        "made right again, and documents, which have none, allow. All other verdicts are reason codes.\n\n"
        + table(list(rows[0]), [list(r.values()) for r in rows])
        + ("\n\nFailed:\n\n" + "\n".join(f"- {f}" for f in failed[:50]) if failed else "")
    )
    return bench.finish(body, checks)


if __name__ == "__main__":
    sys.exit(main())
