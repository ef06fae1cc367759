"""A loaded model: pixels to tile payloads' latents and back, on one device in one precision."""

from __future__ import annotations

import copy
import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, cast
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilecodec.config import PRECISIONS, Device, Precision, parse_device_budget
from tilecodec.entropy.codec import POOL, TileCodec
from tilecodec.entropy.floats import float_entropy
from tilecodec.entropy.parameters import EntropyModel, EntropyTables
from tilecodec.entropy.program import Program, parse_program
from tilecodec.entropy.tables import CDFTable
from tilecodec.errors import ModelError, ModelHashError, NotEnoughMemoryError, UsageError
from tilecodec.memory import available_memory_bytes, keep_freed_memory
from tilecodec.model.compiled import compile_network
from tilecodec.model.device import Lanes, device_errors
from tilecodec.model.device_budget import plan_device
from tilecodec.model.ditic import DiTIC
from tilecodec.model.footprint import analyse_bytes, decode_bytes, hyper_bytes, staged_bytes
from tilecodec.model.gate import MemoryGate
from tilecodec.model.loading import load_network, weights_bytes
from tilecodec.model.parts import needs
from tilecodec.model.seats import Seat, Seats
from tilecodec.model.weights import INTEGER_PARTS, ModelFile, find_model
from tilecodec.pools import ForkLock
from tilecodec.tiles import Window

logger = logging.getLogger("tilecodec")


@dataclass(frozen=True, eq=False, slots=True)
class LatentWindow:
    """What the decoder networks take: a window of decoded latents in latent units."""

    y_hat: Tensor
    """(Cy, h, w) float, in the process's memory."""
    scale: Tensor
    """(Cy, h, w), likewise."""


class CodecModel:
    """A model ready to encode and decode tiles.

    Attributes:
        devices: the devices it runs on; ``device`` is the first.
        network: the :class:`DiTIC` of the first device, in the compute precision. In fp32 it has the float entropy
            weights too, where the model file keeps them.
        program: the integer entropy model.
        tables: the integer CDF tables.
        dtype: of the activations.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``int8``.
        alias, sha256: the model's names.
        weights_bytes: what the network's weights take on the device.

    Raises:
        ModelError: the file's tensors do not fit its config.
        NotEnoughMemoryError: the weights do not fit into the memory that is there.
        DeviceError: the device failed.
    """

    def __init__(
        self,
        file: ModelFile,
        *,
        device: Device = "auto",
        precision: Precision = "auto",
        compile: bool = False,  # noqa: A002  # torch's own name for it
    ) -> None:
        self.alias, self.sha256, self.config = file.alias, file.sha256, file.config
        self.devices = pick_devices(device)
        self.device = self.devices[0]
        self.dtype = pick_dtype(self.device, precision)
        int8 = precision == "int8"
        self.precision = "int8" if int8 else _NAMES[self.dtype]
        self._device_memory: int | None = None
        self._bounded: WeakValueDictionary[int, CodecModel] = WeakValueDictionary()
        self._bounded_lock = ForkLock()
        if self.device.type == "cpu":
            keep_freed_memory()
        needed = weights_bytes(file.config, self.dtype, int8=int8, absent=INTEGER_PARTS)
        self._check_room(needed, f"the weights of {file.alias}")
        self.program = _program(file)
        self.tables = _tables(file, self.program)
        networks = [self._load(file, place, precision) for place in self.devices]
        self.network = networks[0]
        self.seats = Seats(
            [
                Seat(network, Lanes(place, partial(free_memory_bytes, place)), MemoryGate(lambda: None))
                for network, place in zip(networks, self.devices, strict=True)
            ]
        )
        self.weights_bytes = sum(t.nbytes for t in (*self.network.parameters(), *self.network.buffers()))
        codec = self.network.codec
        self.tile_codec = TileCodec(
            EntropyModel(self.program, device=torch.device("cpu")),
            self.tables,
            self.program.z_median,
            self.config.y_stride,
            codec.scale_activation,
        )
        self._gains = None if codec.gains is None else copy.deepcopy(codec.gains).cpu()
        if compile:
            for seat in self.seats.all:
                compile_network(seat.network, self._on(seat)._rehearse)

    def _load(self, file: ModelFile, device: torch.device, precision: Precision) -> DiTIC:
        with device_errors(device, f"loading the weights of {file.alias}"):
            network = load_network(
                file.config,
                {k: v for k, v in file.tensors.items() if not k.startswith(INTEGER_PARTS)},
                device=device,
                dtype=self.dtype,
                int8=precision == "int8",
                absent=INTEGER_PARTS,
                where=file.path,
            )
            if precision == "fp32" and file.source:
                _take_float_entropy(network, file, device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # other streams than this one will read the weights
        return network

    def _on(self, seat: Seat) -> CodecModel:
        """The same model on one of its devices alone."""
        found = copy.copy(self)
        found.seats = Seats([seat])
        return found

    def _rehearse(self) -> None:
        """Runs the network once over a small window, as it will run; not a square, which might be taken for a rule."""
        side, stride = self.config.z_stride, self.config.y_stride
        latent = torch.zeros(self.config.codec.y_channels, side // stride, 2 * side // stride)

        def run() -> None:
            self.analyse(np.zeros((side, 2 * side, 3), np.uint8), (slice(0, side), slice(0, 2 * side)), 50.0)
            self.reconstruct(LatentWindow(latent, latent), 50.0)

        if self.device.type == "cpu":
            POOL.submit(run).result()
        else:
            run()

    def decode_bytes(self, height: int, width: int, *, host: bool = False) -> int:
        """An estimate of the memory that decoding a window takes, see :mod:`tilecodec.model.footprint`.

        Args:
            height: of the window, pixels.
            width: likewise.
            host: in the process's own memory; otherwise, on the device.
        """
        if host and self.device.type != "cpu":
            return staged_bytes(self.config, height, width)
        return decode_bytes(self.config, height, width, self.dtype.itemsize, device=self.device.type)

    def analyse_bytes(self, height: int, width: int, *, host: bool = False) -> int:
        """An estimate of the memory that analysing a window takes, see :meth:`decode_bytes`."""
        if host and self.device.type != "cpu":
            return staged_bytes(self.config, height, width)
        return analyse_bytes(self.config, height, width, self.dtype.itemsize, device=self.device.type)

    def within(self, device_memory: int | None) -> CodecModel:
        """The same model, its calls bounded by a budget for the device's memory.

        The networks are shared. Calls under equal budgets count together, those under other budgets by themselves.

        Args:
            device_memory: bytes that the weights and these calls may take on each device, see
                :mod:`tilecodec.model.device_budget`; None: what is free.
        """
        if device_memory is None:
            return self
        with self._bounded_lock.now:
            found = self._bounded.get(device_memory)
            if found is None:
                found = copy.copy(self)
                found._device_memory = device_memory
                found.seats = self.seats.within(max(device_memory - self.weights_bytes, 0))
                self._bounded[device_memory] = found
            return found

    def check_decode(self, height: int, width: int) -> None:
        """Refuses windows that do not fit into the memory that is there, or the device's budget, one at a time.

        How the budget is divided goes to the log.

        Args:
            height: of the largest window, pixels.
            width: likewise.

        Raises:
            NotEnoughMemoryError: with what is needed and what is there.
        """
        needed = self.decode_bytes(height, width)
        self._check_room(needed, f"decoding a window of {width} x {height} px")
        self._check_budget(needed, "decoding")

    def check_analyse(self, height: int, width: int) -> None:
        """Likewise, of windows to be encoded."""
        needed = self.analyse_bytes(height, width)
        self._check_room(needed, f"encoding a window of {width} x {height} px")
        self._check_budget(needed, "encoding")

    def _check_budget(self, window: int, what: str) -> None:
        if self._device_memory is not None:
            plan = plan_device(
                self._device_memory,
                device=str(self.device),
                weights=self.weights_bytes,
                window=window,
                workers=POOL.workers,
                what=what,
            )
            logger.info("%s", plan)

    def _check_room(self, needed: int, what: str) -> None:
        found = [(free, place) for place in self.devices if (free := free_memory_bytes(place)) is not None]
        free, place = min(found, key=lambda pair: pair[0], default=(needed, self.device))
        if needed <= free:
            return
        smaller = "" if self.precision == "int8" else "use --precision int8 (Python: precision=...), "
        raise NotEnoughMemoryError(
            f"{what} takes more memory than there is",
            got=f"{free / 2**30:.2f} GiB free on {place}",
            expected=f"{needed / 2**30:.2f} GiB ({self.precision})",
            where=f"model {self.alias}",
            hint=f"Free some memory, {smaller}or take a smaller model",
        )

    def rate(self, quality: float) -> float:
        """Quality 1..100 to the rate position 0..1."""
        return (quality - 1) / 99

    def gain(self, quality: float) -> tuple[Tensor, Tensor]:
        """Per-channel gain and inverse gain, each (Cy or 1, 1, 1) float32 on the CPU."""
        if self._gains is None:
            return torch.ones(1, 1, 1), torch.ones(1, 1, 1)
        with torch.inference_mode():
            gain, inverse = self._gains(torch.tensor([self.rate(quality)]))
        return gain[0], inverse[0]

    def analyse(self, window: NDArray[np.uint8], core: tuple[slice, slice], quality: float) -> Tensor:
        """The code of a window's core.

        Args:
            window: uint8 (H, W, 3), sides multiples of the code's stride.
            core: rows and columns of the core in the window, pixels, multiples of the code's stride.
            quality: 1 to 100.

        Returns:
            The code with its gain, (Cy, h, w) float32 in the process's memory.

        Raises:
            NotEnoughMemoryError: the device's memory is full, even with nothing beside it.
            DeviceError: the device failed.
        """
        stride = self.config.y_stride
        rows, cols = (slice(s.start // stride, s.stop // stride) for s in core)
        height, width = window.shape[:2]

        def work(network: DiTIC, levels: Tensor, gain: Tensor) -> Tensor:
            return network.analyse_levels(levels)[0, :, rows, cols].float() * gain

        what = f"encoding a window of {width} x {height} px"
        needed = self.analyse_bytes(height, width)
        return self.seats.run(needed, what, work, torch.from_numpy(window), self.gain(quality)[0])

    def hyper_analyse(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """The hyper-latents of tiles, all of one size.

        Args:
            codes: parts of :meth:`analyse`'s result, (Cy, h, w) each, h and w multiples of 4.

        Returns:
            (Cz, h/4, w/4) float32 each, in the process's memory.

        Raises: as :meth:`analyse`.
        """

        def work(network: DiTIC, y: Tensor) -> Tensor:
            z: Tensor = network.codec.h_a(y.to(self.dtype, memory_format=torch.channels_last))
            return z.float()

        y = torch.stack(list(codes))
        small = self.device.type == "cpu"  # beside the windows, which nobody need wait for then
        needed = 0 if small else hyper_bytes(self.config, len(y) * y[0, 0].numel(), self.dtype.itemsize)
        return list(self.seats.run(needed, "encoding tiles", work, y))

    def reconstruct(self, window: LatentWindow, quality: float) -> NDArray[np.uint8]:
        """Decoded latents to pixels.

        Args:
            window: latents, (Cy, h, w).
            quality: 1 to 100.

        Returns:
            uint8 (h * y_stride, w * y_stride, 3).

        Raises: as :meth:`analyse`.
        """
        height, width = self._size(window)

        def work(network: DiTIC, y_hat: Tensor, scale: Tensor) -> Tensor:
            y_hat, scale = self._laid_out(y_hat), self._laid_out(scale)
            x0 = network.denoise(y_hat, scale, self._rate_on(y_hat.device, quality)).x0
            return network.render_levels(self._checked(x0))

        what = f"decoding a window of {width} x {height} px"
        return self.seats.run(self.decode_bytes(height, width), what, work, window.y_hat, window.scale).numpy()

    @property
    def renders_parts(self) -> bool:
        """Whether a part of a window can be decoded by itself, to the same bits: where the network after the
        transformer is local, and what computes it adds up in one order whatever the size. So do oneDNN's bf16
        convolutions on x86 with AVX-512 BF16 (with AMX nobody has looked), and the one product in fp32, of four rows
        or more. In fp32 torch takes other ways for small tensors, and GPUs' libraries choose by size."""
        exact = self.device.type == "cpu" and self.dtype == torch.bfloat16 and _has_avx512_bf16_alone()
        return self.config.vae.kind == "light" and exact

    def predict(self, window: LatentWindow, quality: float) -> Tensor:
        """:meth:`reconstruct` as far as it takes the whole window.

        Returns:
            (1 or 2, latent_channels, h', w') for :meth:`render`, in the process's memory.

        Raises: as :meth:`analyse`.
        """
        height, width = self._size(window)

        def work(network: DiTIC, y_hat: Tensor) -> Tensor:
            y_hat = self._laid_out(y_hat)
            found = network.predict(y_hat, self._rate_on(y_hat.device, quality))
            return found.mean if found.velocity is None else torch.cat([found.mean, found.velocity])

        what = f"decoding a window of {width} x {height} px"
        return self.seats.run(self.decode_bytes(height, width), what, work, window.y_hat)

    def part_cost(self, part: Window, height: int, width: int) -> float:
        """What :meth:`render` takes for a part of a window, as a share of what it takes for the whole.

        Args:
            part: pixels of the window, not empty.
            height: of the window, pixels.
            width: likewise.
        """
        return needs(self.config, part, height, width).positions * self.config.vae.stride**2 / (height * width)

    def render(self, window: LatentWindow, prediction: Tensor, part: Window) -> NDArray[np.uint8]:
        """A part of what :meth:`reconstruct` gives, bit for bit, where the model :attr:`renders_parts`.

        Args:
            window: latents, (Cy, h, w).
            prediction: what :meth:`predict` gave for them.
            part: pixels of the window, not empty.

        Returns:
            uint8 (height, width, 3) of the part.

        Raises: as :meth:`analyse`.
        """
        part_needs = needs(self.config, part, *self._size(window))

        def work(network: DiTIC, prediction: Tensor, y_hat: Tensor, scale: Tensor) -> Tensor:
            mean, velocity = prediction[:1], prediction[1:] if len(prediction) > 1 else None
            x0 = network.settle_part(mean, velocity, self._laid_out(y_hat), self._laid_out(scale), part_needs)
            return network.render_part(self._checked(x0), part_needs).clone(memory_format=torch.contiguous_format)

        rows, cols = part_needs.latent
        stride = self.config.vae.stride
        needed = self.decode_bytes((rows.stop - rows.start) * stride, (cols.stop - cols.start) * stride)
        what = f"decoding a part of a window, {part.width} x {part.height} px"
        return self.seats.run(needed, what, work, prediction, window.y_hat, window.scale).numpy()

    def _size(self, window: LatentWindow) -> tuple[int, int]:
        """Pixels."""
        height, width = window.y_hat.shape[1:]
        return height * self.config.y_stride, width * self.config.y_stride

    def _laid_out(self, latent: Tensor) -> Tensor:
        """(Cy, h, w) as the networks take it."""
        return latent[None].to(self.dtype, memory_format=torch.channels_last)

    def _rate_on(self, device: torch.device, quality: float) -> Tensor:
        return torch.full((1,), self.rate(quality), device=device)

    def _checked(self, x0: Tensor) -> Tensor:
        if self.dtype == torch.float16 and not bool(x0.isfinite().all()):
            raise ModelError("values leave the range of fp16", where=f"model {self.alias}", hint="Use bf16 or fp32")
        return x0.to(self.dtype)

    @lru_cache(maxsize=64)  # noqa: B019  # models live as long as the process
    def constant_latent(self, colour: tuple[int, int, int], quality: float) -> tuple[Tensor, Tensor]:
        """The latent of a picture of one colour, for the margins around empty tiles.

        Returns:
            ``y_hat`` and ``scale`` in latent units, each (Cy, 1, 1) float32.
        """
        side = self.config.z_stride * 3
        window = np.empty((side, side, 3), np.uint8)
        window[:] = colour
        core = slice(self.config.z_stride, 2 * self.config.z_stride)
        y = self.analyse(window, (core, core), quality)
        _, inverse = self.gain(quality)
        middle = y[:, y.shape[1] // 2, y.shape[2] // 2, None, None]
        return torch.round(middle) * inverse, 0.11 * inverse.expand_as(middle)


def load_model(
    name: str = "default",
    *,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: bool = False,  # noqa: A002  # torch's own name for it
) -> CodecModel:
    """A model by friendly name, ``sha256:...`` or path, ready to encode and decode.

    Args:
        name: ``default``, a path to a model folder or file, or a hash.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:N``, or several GPUs, ``cuda:N,cuda:M``:
            each gets a copy of the weights, and windows are spread over them. They should be of one kind, or pixels
            depend by rounding on which of them a window met.
        precision: ``auto`` (bf16 where the device computes it natively, else fp32), ``fp32``, ``bf16``, ``fp16``, or
            ``int8``: large weights in eight bits, activations as with ``auto``.
        compile: let torch.compile make faster code for the networks, which takes minutes; where it does not work, a
            :class:`~tilecodec.errors.CompileWarning` tells, and the model works without.

    Raises:
        UnknownModelError, ModelHashError, ModelError, NotEnoughMemoryError, DeviceError: see :mod:`tilecodec.errors`.
    """
    return CodecModel(find_model(name), device=device, precision=precision, compile=compile)


def shared_model(
    name: str,
    device: Device = "auto",
    precision: Precision = "auto",
    *,
    sha256: str | None = None,
    compile: bool = False,  # noqa: A002  # torch's own name for it
    device_memory: int | str | None = None,
) -> CodecModel:
    """:func:`load_model`, one copy per process of the same weights on the same device.

    Args:
        name: see :func:`load_model`.
        device: see :func:`load_model`.
        precision: see :func:`load_model`.
        sha256: hash the weights must have, hexadecimal.
        compile: see :func:`load_model`.
        device_memory: bytes, or such as ``"6GiB"``, of each device, see :meth:`CodecModel.within`.

    Raises:
        ModelHashError: the model has another hash.
        UsageError: ``device_memory`` is given and the device is the CPU.
    """
    picked = pick_devices(device)
    budget = parse_device_budget(device_memory, picked[0].type)
    dtype = pick_dtype(picked[0], precision)
    place = (",".join(map(str, picked)), "int8" if precision == "int8" else _NAMES[dtype], compile)
    with _SHARED_LOCK.now:
        found = _SHARED.get((name.removeprefix("sha256:"), *place))
        if found is None:
            file = find_model(name)
            found = _SHARED.get((file.sha256, *place))
            if found is None:
                found = CodecModel(file, device=device, precision=precision, compile=compile)
                _SHARED[(file.sha256, *place)] = found
                while len(_SHARED) > SHARED_MODELS:
                    _SHARED.pop(next(iter(_SHARED)))
    if sha256 is not None and found.sha256 != sha256:
        raise ModelHashError(
            got=f"{name} with sha256:{found.sha256}",
            expected=f"sha256:{sha256}",
            where="model",
            hint="Give the model that wrote the container",
        )
    return found.within(budget)


SHARED_MODELS = 4
_SHARED: dict[tuple[str, str, str, bool], CodecModel] = {}
_SHARED_LOCK = ForkLock()


def pick_devices(device: Device) -> tuple[torch.device, ...]:
    """The torch devices a device option stands for: one, or those of a list such as ``cuda:0,cuda:1``.

    Raises:
        UsageError: unknown, absent, or a list of others than different GPUs.
    """
    names = device.split(",")
    picked = tuple(pick_device(name) for name in names)
    if len(names) > 1 and (len(set(picked)) < len(names) or any(place.type != "cuda" for place in picked)):
        raise UsageError("only different GPUs go together", got=device, expected="cuda:N,cuda:M", where="device")
    return picked


def pick_device(device: Device) -> torch.device:
    """The torch device a device option stands for."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        with device_errors(torch.device("cuda"), "picking a device"):
            return torch.device("cuda", torch.cuda.current_device())  # without a number, each thread has its own
    if device == "auto":
        return torch.device("cpu")
    try:
        picked = torch.device(device)
    except RuntimeError as error:
        raise UsageError(
            "unknown device", got=device, expected="auto, cpu, cuda or cuda:N,...", where="device"
        ) from error
    if picked.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device", got=device, expected="auto or cpu", where="device")
    return picked


def pick_dtype(device: torch.device, precision: Precision) -> torch.dtype:
    """The dtype of the activations that a precision option stands for on a device."""
    if precision not in PRECISIONS:
        raise UsageError("unknown precision", got=precision, expected=list(PRECISIONS), where="precision")
    for dtype, name in _NAMES.items():
        if name == precision:
            return dtype
    if device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if cpu_computes_bf16() else torch.float32


_NAMES: Final = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def free_memory_bytes(device: torch.device) -> int | None:
    """Bytes that networks can still take on a device; None where nobody knows."""
    if device.type == "cpu":
        return available_memory_bytes()
    if device.type != "cuda":
        return None
    with device_errors(device, "asking for free memory"):
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@lru_cache(maxsize=1)
def cpu_computes_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (AVX-512 BF16, AMX, or Arm BF16)."""
    return any(_cpu_has(probe) for probe in (_AVX512_BF16, _AMX))


@lru_cache(maxsize=1)
def _has_avx512_bf16_alone() -> bool:
    return _cpu_has(_AVX512_BF16) and not _cpu_has(_AMX)


_AVX512_BF16, _AMX = "_is_avx512_bf16_supported", "_is_amx_tile_supported"
"""Torch's questions."""


def _cpu_has(probe: str) -> bool:
    x86 = platform.machine().lower() in {"x86_64", "amd64"}
    return x86 and bool(getattr(torch.cpu, probe, bool)())


def _take_float_entropy(network: DiTIC, file: ModelFile, device: torch.device) -> None:
    floats = float_entropy(file)
    for prefix in INTEGER_PARTS:
        name = prefix.split(".")[1]
        part = getattr(floats.codec, name)
        if part is not None:
            setattr(network.codec, name, part.requires_grad_(False).to(device))


def _array(tensor: Tensor) -> NDArray[Any]:
    """A tensor of any type; numpy has no bfloat16, and whoever wants integers refuses fractions."""
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _program(file: ModelFile) -> Program:
    arrays = {k: _array(v) for k, v in file.program_tensors.items()}
    codec = file.config.codec
    return parse_program(file.program, arrays, y_channels=codec.y_channels, z_channels=codec.z_channels)


def _tables(file: ModelFile, program: Program) -> EntropyTables:
    def table(prefix: str) -> CDFTable:
        return CDFTable(*(cast(NDArray[np.int32], _array(file.tables[f"{prefix}.{k}"])) for k in names))

    names = ("cdf", "length", "offset")
    needed = {f"{p}.{k}" for p in ("y", "z") for k in names}
    if needed - set(file.tables):
        raise ModelError(
            "the model lacks CDF tables", got=sorted(file.tables), expected=sorted(needed), where=file.path
        )
    tables = EntropyTables(table("y"), table("z"))
    rows, channels = len(tables.y.length), len(tables.z.length)
    if int(program.rows.max()) >= rows or channels != file.config.codec.z_channels:
        raise ModelError(
            "the CDF tables do not fit the entropy model",
            got=f"{rows} and {channels} rows",
            expected=f"more than {int(program.rows.max())}, and {file.config.codec.z_channels}",
            where=file.path,
        )
    return tables
