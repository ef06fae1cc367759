"""A loaded model: pixels to tile payloads' latents and back, on one device in one precision."""

from __future__ import annotations

import copy
import platform
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilecodec.config import Device, Precision
from tilecodec.entropy.codec import TileCodec
from tilecodec.entropy.parameters import EntropyModel, EntropyTables
from tilecodec.entropy.program import Program, parse_program
from tilecodec.entropy.tables import CDFTable
from tilecodec.errors import ModelError, ModelHashError, UsageError
from tilecodec.memory import keep_freed_memory
from tilecodec.model.blocks import DepthConvBlock
from tilecodec.model.ditic import DiTIC
from tilecodec.model.light_vae import LightVAE
from tilecodec.model.weights import INTEGER_PARTS, ModelFile, find_model


@dataclass(frozen=True, eq=False, slots=True)
class LatentWindow:
    """What the decoder networks take: a window of decoded latents in latent units."""

    y_hat: Tensor
    """(Cy, h, w), the network's dtype and device."""
    scale: Tensor
    """(Cy, h, w), likewise."""


class CodecModel:
    """A model ready to encode and decode tiles.

    Attributes:
        network: the :class:`DiTIC`, in the compute precision.
        program: the integer entropy model.
        tables: the integer CDF tables.
        alias, sha256: the model's names.
    """

    def __init__(self, file: ModelFile, *, device: Device = "auto", precision: Precision = "auto") -> None:
        self.alias, self.sha256, self.config = file.alias, file.sha256, file.config
        self.device = pick_device(device)
        self.dtype = pick_dtype(self.device, precision)
        # On the CPU calls run side by side on a thread each; another device takes one at a time.
        self._turn: AbstractContextManager[object] = threading.Lock()
        if self.device.type == "cpu":
            self._turn = nullcontext()
            keep_freed_memory()
        self.program = _program(file)
        self.tables = _tables(file, self.program)
        network = _network(file)
        self.tile_codec = TileCodec(
            EntropyModel(self.program, device=torch.device("cpu")),
            self.tables,
            self.program.z_median,
            self.config.y_stride,
            network.codec.scale_activation,
        )
        gains = network.codec.gains
        self._gains = None if gains is None else copy.deepcopy(gains).float()
        self.network = network.to(self.device, self.dtype).to(memory_format=torch.channels_last)
        if isinstance(self.network.vae, LightVAE):
            self.network.vae.keep_ends_exact()

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
            The code with its gain, (Cy, h, w) float32 on the device.
        """
        stride = self.config.y_stride
        rows, cols = (slice(s.start // stride, s.stop // stride) for s in core)
        with self._turn, torch.inference_mode():
            levels = torch.from_numpy(window).to(self.device)
            y = self.network.analyse_levels(levels)[0, :, rows, cols]
            return y.float() * self.gain(quality)[0].to(self.device)

    def hyper_analyse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """What a tile is coded from.

        Args:
            y: one tile's part of :meth:`analyse`'s result, (Cy, h, w), h and w multiples of 4.

        Returns:
            The code (Cy, h, w) and the hyper-latent (Cz, h/4, w/4), float32 on the CPU.
        """
        with self._turn, torch.inference_mode():
            z = self.network.codec.h_a(y[None].to(self.dtype, memory_format=torch.channels_last))
            return y.cpu(), z[0].float().cpu()

    def reconstruct(self, window: LatentWindow, quality: float) -> NDArray[np.uint8]:
        """Decoded latents to pixels.

        Args:
            window: latents, (Cy, h, w).
            quality: 1 to 100.

        Returns:
            uint8 (h * y_stride, w * y_stride, 3).
        """
        with self._turn, torch.inference_mode():
            y_hat, scale = (
                t[None].to(self.device, self.dtype, memory_format=torch.channels_last)
                for t in (window.y_hat, window.scale)
            )
            rate = torch.full((1,), self.rate(quality), device=self.device)
            x0 = self.network.denoise(y_hat, scale, rate).x0
            return self.network.render_levels(x0.to(self.dtype)).cpu().numpy()

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
        y = self.analyse(window, (core, core), quality).cpu()
        _, inverse = self.gain(quality)
        middle = y[:, y.shape[1] // 2, y.shape[2] // 2, None, None]
        return torch.round(middle) * inverse, 0.11 * inverse.expand_as(middle)


def load_model(name: str = "default", *, device: Device = "auto", precision: Precision = "auto") -> CodecModel:
    """A model by friendly name, ``sha256:...`` or path, ready to encode and decode.

    Args:
        name: ``default``, a path to a model folder or file, or a hash.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``auto`` (bf16 where the device computes it natively, else fp32), ``fp32``, ``bf16``, ``fp16``.

    Raises:
        UnknownModelError, ModelHashError, ModelError: see :mod:`tilecodec.errors`.
    """
    return CodecModel(find_model(name), device=device, precision=precision)


def shared_model(
    name: str, device: Device = "auto", precision: Precision = "auto", *, sha256: str | None = None
) -> CodecModel:
    """:func:`load_model`, one copy per process of the same weights on the same device.

    Args:
        name: see :func:`load_model`.
        device: see :func:`load_model`.
        precision: see :func:`load_model`.
        sha256: hash the weights must have, hexadecimal.

    Raises:
        ModelHashError: the model has another hash.
    """
    place = (str(pick_device(device)), pick_dtype(pick_device(device), precision))
    with _SHARED_LOCK:
        found = _SHARED.get((name.removeprefix("sha256:"), *place))
        if found is None:
            file = find_model(name)
            found = _SHARED.get((file.sha256, *place))
            if found is None:
                found = _SHARED[(file.sha256, *place)] = CodecModel(file, device=device, precision=precision)
                while len(_SHARED) > SHARED_MODELS:
                    _SHARED.pop(next(iter(_SHARED)))
    if sha256 is not None and found.sha256 != sha256:
        raise ModelHashError(
            got=f"{name} with sha256:{found.sha256}",
            expected=f"sha256:{sha256}",
            where="model",
            hint="Give the model that wrote the container",
        )
    return found


SHARED_MODELS = 4
_SHARED: dict[tuple[str, str, torch.dtype], CodecModel] = {}
_SHARED_LOCK = threading.Lock()


def pick_device(device: Device) -> torch.device:
    """The torch device a device option stands for."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError as error:
        raise UsageError("unknown device", got=device, expected="auto, cpu, cuda or cuda:N", where="device") from error
    if picked.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device", got=device, expected="auto or cpu", where="device")
    return picked


def pick_dtype(device: torch.device, precision: Precision) -> torch.dtype:
    """The compute dtype a precision option stands for on a device."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision != "auto":
        if precision not in named:
            raise UsageError("unknown precision", got=precision, expected=["auto", *named], where="precision")
        return named[precision]
    if device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if cpu_computes_bf16() else torch.float32


@lru_cache(maxsize=1)
def cpu_computes_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (AVX-512 BF16, AMX, or Arm BF16)."""
    if platform.machine().lower() in {"x86_64", "amd64"}:
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)
    return False


def _network(file: ModelFile) -> DiTIC:
    with torch.device("meta"):
        network = DiTIC(file.config)
    state = {k: v.float() if v.is_floating_point() else v for k, v in file.tensors.items()}
    own = network.state_dict()
    for name, tensor in state.items():
        fits = name not in own or (own[name].shape, own[name].is_floating_point()) == (
            tensor.shape,
            tensor.is_floating_point(),
        )
        if not fits:
            raise ModelError(
                "a tensor of the model does not fit its config",
                got=f"{tensor.dtype} {tuple(tensor.shape)}",
                expected=f"{own[name].dtype} {tuple(own[name].shape)}",
                where=f"{file.path}, {name}",
            )
    missing, unexpected = network.load_state_dict(state, strict=False, assign=True)
    missing = [name for name in missing if not name.startswith(INTEGER_PARTS)]
    for part in INTEGER_PARTS:
        network.codec._modules[part.split(".")[1]] = None
    shapes = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    if missing or unexpected:
        raise ModelError(
            "the model's tensors do not fit its config",
            got=f"unexpected {unexpected[:8]}",
            expected=f"missing {missing[:8]} (of {len(shapes)})",
            where=file.path,
        )
    network = network.eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, DepthConvBlock):
            module.fold()
    if isinstance(network.vae, LightVAE):
        network.vae.merge_ends()
    return network


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
