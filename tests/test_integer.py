"""The integer entropy model: every way of evaluating it gives the same integers, and what cannot be run is refused."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_models import CHANNELS, VectorModel
from vectors import ARITHMETICS, vector_model

from tilecodec.entropy import oracle
from tilecodec.entropy.codec import POOL
from tilecodec.entropy.integer import IntegerNetwork, StepNetwork, pick_arithmetic
from tilecodec.entropy.model import load_model
from tilecodec.entropy.parameters import EntropyTables, places
from tilecodec.entropy.payload import parse_payload
from tilecodec.entropy.program import MAX_CHANNELS, MAX_INSTRUCTIONS, Instruction, Layer, Program, parse_program
from tilecodec.entropy.quantise import CalibrationTile, _Value, _Writer, quantise
from tilecodec.entropy.tables import CDFTable, gaussian_table, scale_table
from tilecodec.errors import ModelError
from tilecodec.model.config import official_config
from tilecodec.model.latent_codec import LatentCodec

CPU = torch.device("cpu")


def test_the_oracle_needs_neither_torch_nor_constriction() -> None:
    code = "import sys, tilecodec.entropy.oracle; print({'torch', 'constriction'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- instructions


class RandomProgram:
    """A program of random instructions, weights and tables, often at their bounds."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.channels = int(self.rng.integers(1, 70))
        """Of the register it begins with."""
        self.layers: dict[str, Layer] = {}
        self.tables: dict[str, np.ndarray] = {}
        self.shapes = {"given": (self.channels, 0)}
        self.code: list[Instruction] = []
        while len(self.code) < 12:
            self._grow(len(self.code))
        steps = ((),) * 4
        nothing = np.zeros(1, np.int16), np.zeros(65536, np.uint8)
        self.program = Program(0, 0, 0, tuple(self.code), steps, (), self.layers, self.tables, *nothing)

    def _pick(self, *values: Any) -> Any:
        return values[self.rng.integers(len(values))]

    def _layer(self, out: int, inputs: int, kernel: int) -> Layer:
        rng = self.rng
        weight = rng.integers(-128, 128, (out, inputs, kernel, kernel))
        if rng.random() < 0.3:
            weight = np.where(rng.random(weight.shape) < 0.5, -128, 127)
        while 32896 * np.abs(weight).sum((1, 2, 3)).max() >= 2**30:  # a program's sums fit 32 bits
            weight = weight // 2
        sums = np.abs(weight).sum((1, 2, 3))
        shift = rng.integers(0, 31, out) if rng.random() < 0.3 else rng.integers(6, 16, out)
        room = 2**31 - 1 - 32896 * sums - ((1 << shift) >> 1)
        bias = self._pick(room, -room, rng.integers(-(2**20), 2**20, out))
        assert (np.abs(bias) <= room).all()
        return Layer(weight.astype(np.int8), bias.astype(np.int32), shift.astype(np.uint8))

    def _grow(self, n: int) -> None:
        op = self._pick(*oracle_ops())
        name = self._pick(*self.shapes)
        other = self._pick(*self.shapes)
        channels, doubled = self.shapes[name]
        out, argument, inputs = (channels, doubled), None, (name,)
        match op:
            case "conv":
                kernel = self._pick(1, 3)
                if channels * kernel**2 > 500:
                    return
                out, argument = (int(self.rng.integers(1, 40)), doubled), f"layer{n}"
                self.layers[argument] = self._layer(out[0], channels, kernel)
            case "depthwise":
                argument = f"layer{n}"
                self.layers[argument] = self._layer(channels, 1, 3)
            case "lut":
                argument = f"table{n}"
                self.tables[argument] = self.rng.integers(-32768, 32768, 65536).astype(np.int16)
            case "scale":
                argument = int(self.rng.integers(-15, 16))
            case "add":
                if self.shapes[other] != self.shapes[name]:
                    return
                inputs = (name, other)
            case "concat":
                if self.shapes[other][1] != doubled:
                    return
                inputs, out = (name, other), (channels + self.shapes[other][0], doubled)
            case "gate":
                if channels % 2:
                    return
                out = (channels // 2, doubled)
            case "shuffle":
                if channels % 4 or doubled > 1:
                    return
                out = (channels // 4, doubled + 1)
        output = self._pick(f"r{n}", name, "base")
        self.code.append(Instruction(op, inputs, output, argument))
        self.shapes[output] = out


def oracle_ops() -> tuple[str, ...]:
    return ("conv", "conv", "depthwise", "lut", "lut", "add", "gate", "scale", "shuffle", "concat")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_random_programs_come_out_the_same_everywhere(seed: int) -> None:
    made = RandomProgram(seed)
    rng = np.random.default_rng(seed)
    shape = 2, int(rng.integers(1, 4)), int(rng.integers(1, 4)), made.channels
    x = rng.integers(-32768, 32768, shape)
    if rng.random() < 0.3:
        x = np.where(rng.random(shape) < 0.5, -32768, 32767)
    wanted = [oracle.interpret(made.program, made.program.hyper, {"given": np.moveaxis(t, 2, 0)}) for t in x]
    for arithmetic in ARITHMETICS:
        network = IntegerNetwork(made.program, device=CPU, arithmetic=arithmetic)
        for _ in range(2):
            found = network.run(made.program.hyper, {"given": torch.from_numpy(x.astype(np.int16))})
            last = made.program.hyper[-1].output
            for name in {"base", last} & set(found):
                for n in range(2):
                    np.testing.assert_array_equal(
                        np.moveaxis(found[name][n].numpy(), 2, 0), wanted[n][name], err_msg=f"{arithmetic} {name}"
                    )


def test_a_layer_at_one_position_keeps_nothing() -> None:
    weight = np.ones((8, 1, 3, 3), np.int8)
    program = dataclasses.replace(
        vector_model("plain").program,
        hyper=(Instruction("depthwise", ("z",), "base", "d"),),
        steps=(),
        layers={"d": Layer(weight, np.arange(8, dtype=np.int32), np.zeros(8, np.uint8))},
    )
    network = IntegerNetwork(program, device=CPU)
    x = {"z": torch.full((1, 1, 1, 8), 5, dtype=torch.int16)}
    for _ in range(3):
        assert network.run(program.hyper, x)["base"].flatten().tolist() == list(range(5, 13))


def test_the_widest_sums_are_exact() -> None:
    """512 inputs at the extremes, where 8-bit instructions that saturate would show."""
    program = vector_model("extreme").program
    for value in (-32768, -32513, -129, -128, -1, 0, 127, 128, 255, 32639, 32767):
        for signs in (1, -1):
            x = np.full((512, 1, 1), value)
            x[::2] = np.clip(signs * value, -32768, 32767)
            code = (Instruction("conv", ("wide",), "base", "peak"),)
            wanted = oracle.interpret(program, code, {"wide": x})["base"].ravel().tolist()
            for arithmetic in ARITHMETICS:
                network = IntegerNetwork(program, device=CPU, arithmetic=arithmetic)
                given_ = {"wide": torch.from_numpy(x.reshape(1, 1, 1, -1).astype(np.int16))}
                assert network.run(code, given_)["base"].flatten().tolist() == wanted, (arithmetic, value)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("name", ["plain", "full", "default"])
def test_a_step_is_computed_at_its_own_elements(name: str, arithmetic: Any) -> None:
    """The same values as those picked out of the whole registers; the shortcut is taken where the program allows."""
    program = load_model("default").program if name == "default" else vector_model(name).program
    network = IntegerNetwork(program, device=CPU, arithmetic=arithmetic)
    channels = 256 if name == "default" else CHANNELS[name]
    rng = np.random.default_rng(0)
    for step, (height, width) in itertools.product(range(4), ((4, 4), (5, 3), (2, 2))):
        quick = StepNetwork(network, program, step, CPU)
        whole = StepNetwork(network, program, step, CPU)
        whole._groups, whole._code = [], program.steps[step]
        base = torch.from_numpy(rng.integers(-3000, 3000, (2, height, width, channels)).astype(np.int16))
        at = places(channels, height, width, step)[0]
        for found, wanted in zip(quick(base, at), whole(base, at), strict=True):
            assert found.dtype == wanted.dtype == torch.int16
            assert torch.equal(found, wanted)
    assert quick._groups or name != "default"


def test_the_arithmetic_is_picked_for_the_device() -> None:
    assert pick_arithmetic(CPU) in ("int8", "float32")
    assert pick_arithmetic(torch.device("cuda")) == "float32"


# --- tiles, in every way


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A model and tiles of one size, with the symbols that were coded."""

    name: str
    model: VectorModel
    tables: EntropyTables
    payloads: list[bytes]
    symbols: list[vectors.Symbols]


def drawn(name: str, model: Any, tables: EntropyTables, channels: int, shape: tuple[int, int], count: int) -> Known:
    """Tiles of random latents, coded by the fast path and decoded by the oracle.

    Args:
        name: of the model.
        model: has program, stride, z_table and y_table.
        tables: of the fast path.
        channels: of the code.
        shape: hyper-latent positions.
        count: tiles.
    """
    codec, _ = vectors.codec_of(model.program, tables, model.stride, "auto")
    rng = np.random.default_rng(7)
    payloads, symbols = [], []
    for _ in range(count):
        y = torch.from_numpy(rng.normal(0, 5, (channels, 4 * shape[0], 4 * shape[1])).astype(np.float32))
        z = torch.from_numpy(rng.normal(0, 3, (len(model.program.z_median), *shape)).astype(np.float32))
        height, width = model.stride * shape[0], model.stride * shape[1] - 1
        data = codec.encode(y, z, quality=50, height=height, width=width).to_bytes()
        payloads.append(data)
        symbols.append(oracle.decode_payload(data, model.program, model.z_table, model.y_table, model.stride))
    return Known(name, model, tables, payloads, symbols)


@dataclasses.dataclass(frozen=True)
class AsVectorModel:
    """A loaded model with a vector model's names."""

    program: Program
    stride: int
    z_table: Any
    y_table: Any


@cache
def known(name: str) -> Known:
    if name != "tiny":
        return drawn(name, vector_model(name), vectors.tables(name), CHANNELS[name], (2, 3), 8)
    file = load_model(tiny.tiny_model(), device="cpu", precision="fp32")
    model = AsVectorModel(file.program, file.config.z_stride, file.tables.z, file.tables.y)
    return drawn(name, model, file.tables, file.config.codec.y_channels, (2, 3), 8)


def check(tiles: Known, arithmetic: Any, batch: int, device: torch.device = CPU) -> None:
    """Whether all tiles, decoded ``batch`` at a time, have the symbols that the oracle found."""
    codec, model = vectors.codec_of(tiles.model.program, tiles.tables, tiles.model.stride, arithmetic, device)
    payloads = [parse_payload(p, "tile") for p in tiles.payloads]
    for begin in range(0, len(payloads), batch):
        found = vectors.decoded(codec, model, payloads[begin : begin + batch])
        for got, want in zip(found, tiles.symbols[begin : begin + batch], strict=True):
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def mkldnn(enabled: bool) -> Iterator[None]:
    """Whether torch may use oneDNN."""
    (before, *_) = torch.backends.mkldnn.set_flags(_enabled=enabled)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before)


@pytest.mark.parametrize("name", ["tiny", "plain", "full", "extreme"])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_symbols_do_not_depend_on_threads_batch_or_library(name: str, arithmetic: Any) -> None:
    tiles = known(name)
    for count in (1, 2, 4):
        for batch in (1, 3, 8):
            for enabled in (True, False):
                with threads(count), mkldnn(enabled):
                    check(tiles, arithmetic, batch)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_symbols_do_not_depend_on_the_precision_of_float_products(precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        check(known("extreme"), "float32", 8)
        check(known("plain"), "float32", 1)
    finally:
        torch.set_float32_matmul_precision(before)


def test_latents_do_not_depend_on_the_caller_s_settings() -> None:
    """Neither autocast nor another default type, which a program around ours may have set."""
    tiles = known("full")
    payloads = [parse_payload(p, "tile") for p in tiles.payloads]
    for arithmetic in ARITHMETICS:
        codec, _ = vectors.codec_of(tiles.model.program, tiles.tables, tiles.model.stride, arithmetic)
        alone = [codec.decode(p, "tile") for p in payloads]
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                again = [codec.decode(p, "tile") for p in payloads]
        finally:
            torch.set_default_dtype(before)
        for a, b in zip(alone, again, strict=True):
            assert a.y_hat.dtype == b.y_hat.dtype == b.scale.dtype == torch.float32
            assert torch.equal(a.y_hat, b.y_hat)
            assert torch.equal(a.scale, b.scale)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tiny", "plain", "full", "extreme"])
@pytest.mark.parametrize("arithmetic", ["float32", "float64"])
@pytest.mark.parametrize("tf32", [False, True])
def test_symbols_are_the_same_on_a_gpu(name: str, arithmetic: Any, tf32: bool) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        for batch in (1, 3, 8):
            check(known(name), arithmetic, batch, torch.device("cuda"))
    finally:
        torch.set_float32_matmul_precision(before)


def test_workers_decode_side_by_side() -> None:
    tiles = known("full")
    codec, _ = vectors.codec_of(tiles.model.program, tiles.tables, tiles.model.stride, "auto")
    payloads = [parse_payload(p, "tile") for p in tiles.payloads]
    alone = [codec.decode(p, "tile").y_hat for p in payloads]
    jobs = [POOL.submit(codec.decode, p, "tile") for _ in range(4) for p in payloads]
    for n, job in enumerate(jobs):
        assert torch.equal(job.result().y_hat, alone[n % len(alone)])


@pytest.mark.slow
def test_the_official_network_s_program() -> None:
    """320 channels, 3x3 adapters with GELU, residual prediction; random weights."""
    config = official_config()
    assert config.aux_encoder is not None
    torch.manual_seed(3)
    codec = LatentCodec(config.codec, config.vae.latent_channels, config.aux_encoder.channels).eval()
    cy, cz = config.codec.y_channels, config.codec.z_channels
    tile = CalibrationTile(torch.randn(cy, 4, 8) * 3, torch.randn(cz, 1, 2) * 2)
    medians = np.linspace(-1, 1, cz).astype(np.float32)
    program = quantise(codec, medians, scale_table().astype(np.float32), [tile])
    assert {i.op for s in (program.hyper, *program.steps, *program.corrections) for i in s} == set(oracle_ops())
    tensors = {k: np.array(v) for k, v in program.tensors().items()}
    again = parse_program(program.header(), tensors, y_channels=cy, z_channels=cz)
    gaussian = gaussian_table()
    z_table = CDFTable(*(np.repeat(getattr(gaussian, k)[24:25], cz, axis=0) for k in ("cdf", "length", "offset")))
    model = AsVectorModel(again, config.z_stride, z_table, gaussian)
    tiles = drawn("official", model, EntropyTables(gaussian, z_table), cy, (1, 1), 1)
    assert len(np.unique(tiles.symbols[0][1])) > 10
    for arithmetic in ARITHMETICS:
        check(tiles, arithmetic, 1)


# --- what is refused


Change = Callable[[dict[str, Any], dict[str, Any]], object]
STEP = "both"
"""A layer of the full vector model that is used both as a convolution and as a depthwise one."""


def widened(header: dict[str, Any], _: dict[str, Any]) -> None:
    """Doubles a register until it has more channels than it may."""
    header["steps"][0][:0] = [["concat", ["base", "base"], "w", None], *([["concat", ["w", "w"], "w", None]] * 20)]


def gated(header: dict[str, Any], _: dict[str, Any]) -> None:
    """Halves a register until it has an odd number of channels, once more."""
    header["steps"][0][:0] = [["gate", ["base"], "g", None], ["gate", ["g"], "g", None], ["gate", ["g"], "g", None]]


def first(**changed: Any) -> Change:
    """Changes the first instruction: ``op``, ``inputs``, ``output`` or ``argument``."""
    places = {"op": 0, "inputs": 1, "output": 2, "argument": 3}

    def change(header: dict[str, Any], _: dict[str, Any]) -> None:
        for name, value in changed.items():
            header["hyper"][0][places[name]] = value

    return change


def added(op: str, *inputs: str, argument: Any = None) -> Change:
    """Puts an instruction in front of the first step."""
    return lambda h, _: h["steps"][0].insert(0, [op, list(inputs), "new", argument])


REFUSED: dict[str, Change] = {
    "no z_bits": lambda h, _: h.pop("z_bits"),
    "bits true": lambda h, _: h.update(z_bits=True),
    "bits -1": lambda h, _: h.update(base_bits=-1),
    "bits 15": lambda h, _: h.update(scale_bits=15),
    "bits 1.0": lambda h, _: h.update(z_bits=1.0),
    "no hyper": lambda h, _: h.pop("hyper"),
    "hyper an object": lambda h, _: h.update(hyper={}),
    "three steps": lambda h, _: h["steps"].pop(),
    "five steps": lambda h, _: h["steps"].append(h["steps"][0]),
    "steps a number": lambda h, _: h.update(steps=4),
    "one correction": lambda h, _: h.update(corrections=h["corrections"][:1]),
    "too long": lambda h, _: h["hyper"].extend([["add", ["base", "base"], "base", None]] * MAX_INSTRUCTIONS),
    "instruction a text": lambda h, _: h["hyper"].insert(0, "conv"),
    "three parts": lambda h, _: h["hyper"][0].pop(),
    "unknown operation": first(op="convolve"),
    "operation a list": first(op=["conv"]),
    "two inputs": first(inputs=["z", "z"]),
    "inputs a text": first(inputs="z"),
    "input a number": first(inputs=[0]),
    "output null": first(output=None),
    "layer a number": first(argument=5),
    "layer null": first(argument=None),
    "layer unknown": first(argument="nowhere"),
    "table unknown": added("lut", "base", argument="nowhere"),
    "scale 16": added("scale", "base", argument=16),
    "scale -16": added("scale", "base", argument=-16),
    "scale true": added("scale", "base", argument=True),
    "scale text": added("scale", "base", argument="1"),
    "gate with an argument": added("gate", "base", argument=1),
    "register unknown": added("gate", "nowhere"),
    "register of another section": added("add", "base", "decoded"),
    "add of other shapes": lambda h, _: h["corrections"][0].insert(1, ["add", ["both", "base"], "x", None]),
    "concat of other sizes": lambda h, _: h["hyper"].insert(2, ["concat", ["a", "z"], "x", None]),
    "shuffled three times": lambda h, _: h["hyper"].append(["shuffle", ["base"], "x", None]),
    "gate of odd channels": gated,
    "shuffle of 5 channels": lambda h, _: h["hyper"].insert(0, ["shuffle", ["z"], "x", None]),
    "more channels than may be": widened,
    "conv of other channels": added("conv", "base", argument="h.in"),
    "depthwise of a dense layer": added("depthwise", "base", argument="t.3"),
    "base of another shape": lambda h, _: h["hyper"].append(["concat", ["base", "base"], "base", None]),
    "base not doubled": lambda h, _: h["hyper"].append(["scale", ["z"], "base", 0]),
    "no mean": lambda h, _: h["steps"][2].pop(),
    "no correction": lambda h, _: h["corrections"][0].pop(),
    "no weight": lambda _, t: t.pop(f"{STEP}.weight"),
    "no bias": lambda _, t: t.pop(f"{STEP}.bias"),
    "no shift": lambda _, t: t.pop(f"{STEP}.shift"),
    "weight of another type": lambda _, t: t.update({f"{STEP}.weight": t[f"{STEP}.weight"].astype(np.int16)}),
    "weight of 5 x 5": lambda _, t: t.update({f"{STEP}.weight": np.zeros((12, 1, 5, 5), np.int8)}),
    "weight of 1 x 3": lambda _, t: t.update({f"{STEP}.weight": np.zeros((12, 1, 1, 3), np.int8)}),
    "weight of no input": lambda _, t: t.update({f"{STEP}.weight": np.zeros((12, 0, 3, 3), np.int8)}),
    "weight flat": lambda _, t: t.update({f"{STEP}.weight": t[f"{STEP}.weight"].ravel()}),
    "bias of another length": lambda _, t: t.update({f"{STEP}.bias": t[f"{STEP}.bias"][:-1]}),
    "shift of another type": lambda _, t: t.update({f"{STEP}.shift": t[f"{STEP}.shift"].astype(np.int8)}),
    "shift 31": lambda _, t: t[f"{STEP}.shift"].fill(31),
    "bias too large": lambda _, t: t[f"{STEP}.bias"].fill(2**31 - 1),
    "bias too small": lambda _, t: t[f"{STEP}.bias"].fill(-(2**31)),
    "table too short": lambda _, t: t.update({"lut.fold": t["lut.fold"][:-1]}),
    "table of another type": lambda _, t: t.update({"lut.fold": t["lut.fold"].astype(np.int32)}),
    "median of another length": lambda _, t: t.update(z_median=t["z_median"][:-1]),
    "no rows": lambda _, t: t.pop("rows"),
    "rows of another type": lambda _, t: t.update(rows=t["rows"].astype(np.int16)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_programs_that_break_a_rule_are_refused(name: str) -> None:
    model = vector_model("full")
    header, tensors = copy.deepcopy(model.header), {k: v.copy() for k, v in model.tensors.items()}
    parse_program(header, tensors, y_channels=12, z_channels=5)
    REFUSED[name](header, tensors)
    with pytest.raises(ModelError) as caught:
        parse_program(header, tensors, y_channels=12, z_channels=5)
    assert caught.value.reason == "model"


@pytest.mark.parametrize("header", [None, [], "integer", 1, {}])
def test_headers_that_are_none_are_refused(header: Any) -> None:
    with pytest.raises(ModelError):
        parse_program(header, vector_model("full").tensors, y_channels=12, z_channels=5)


def test_sums_at_the_bound_are_accepted() -> None:
    weight = np.full((1, 1, 1, 1), -128, np.int8)
    room = 2**31 - 1 - 128 * 32896 - 2**29
    model = vector_model("plain")
    for sign in (1, -1):
        for more, good in ((0, True), (1, False)):
            tensors = {"l.weight": weight, "l.bias": np.array([sign * (room + more)], np.int32)}
            tensors = model.tensors | tensors | {"l.shift": np.array([30], np.uint8)}
            header = copy.deepcopy(model.header)
            header["hyper"][:0] = [["conv", ["one"], "x", "l"]]
            header["hyper"][:0] = [["conv", ["z"], "one", "sum"]]
            tensors |= {"sum.weight": np.zeros((1, 6, 1, 1), np.int8), "sum.bias": np.zeros(1, np.int32)}
            tensors["sum.shift"] = np.zeros(1, np.uint8)
            if good:
                parse_program(header, tensors, y_channels=16, z_channels=6)
            else:
                with pytest.raises(ModelError, match="32 bits"):
                    parse_program(header, tensors, y_channels=16, z_channels=6)


def test_the_largest_register_is_accepted() -> None:
    model = vector_model("plain")
    header = copy.deepcopy(model.header)
    doubles = (MAX_CHANNELS // 16).bit_length() - 1
    header["steps"][0][:0] = [["concat", ["base", "base"], "w", None]] + [["concat", ["w", "w"], "w", None]] * (
        doubles - 1
    )
    parse_program(header, model.tensors, y_channels=16, z_channels=6)
    header["steps"][0].insert(doubles, ["concat", ["w", "w"], "w", None])
    with pytest.raises(ModelError):
        parse_program(header, model.tensors, y_channels=16, z_channels=6)


def test_a_program_survives_its_file_form() -> None:
    for name in ("plain", "full", "extreme"):
        model = vector_model(name)
        program = model.program
        assert program.header() == model.header
        assert set(program.tensors()) == set(model.tensors)


def test_a_converted_layer_s_bias_leaves_room_for_its_rounding() -> None:
    """The largest shifts add up to 2^29 to a sum: a bias at the bound must stay within 32 bits all the same."""
    conv = torch.nn.Conv2d(1, 1, 1)
    for sign in (1, -1):
        with torch.no_grad():
            conv.weight.fill_(1e-4)
            torch.nn.init.constant_(conv.bias, sign * 1e4)
        writer = _Writer({"fine": 12, "coarse": 0})
        writer.begin("hyper")
        with torch.no_grad():
            x, out = (_Value(name, name, torch.zeros(1)) for name in ("fine", "coarse"))
            writer.convolution(x, out, conv, "layer")
        layer = writer.layers["layer"]
        assert layer.shift.item() == 30
        half = 1 << 29
        reach = 32896 * abs(int(layer.weight.item())) + abs(int(layer.bias.item())) + half
        assert 2**31 - 2 <= reach <= 2**31 - 1
