"""Options of the public calls: frozen, keyword-only, validated when made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from tilecodec.errors import UsageError
from tilecodec.limits import DEFAULT_LIMITS, Limits

Device = str
"""``auto``, ``cpu``, ``cuda`` or ``cuda:N``; for several GPUs ``cuda:N,cuda:M``."""
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
"""What networks compute in. ``int8`` keeps large weights in eight bits and computes as ``auto`` does; ``auto`` is bf16
where the device computes it natively, else fp32. No symbol depends on it."""
PRECISIONS: Final = ("auto", "fp32", "bf16", "fp16", "int8")
OnError = Literal["raise", "fill"]
"""What becomes of a tile that cannot be decoded: an error, or a fill colour in its place."""
Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

TILE: Final = 512
"""Default tile side, pixels."""
TILES_PER_CHUNK: Final = 4
"""Default chunk side, tiles."""


_UNITS: Final = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def parse_bytes(text: str | int, option: str = "memory") -> int:
    """``"2GiB"``, ``"800 MB"``, ``"1.5g"`` or a whole number of bytes.

    Args:
        text: the amount.
        option: whose value it is, for the error.

    Raises:
        UsageError: it is none of these, or not above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", str(text), re.IGNORECASE)
    value = int(float(found[1]) * _UNITS[(found[2] or "").lower()]) if found and not isinstance(text, bool) else 0
    if value <= 0:
        raise UsageError(
            f"option {option} is no amount of memory", got=text, expected="such as 2GiB or 800MB", where=option
        )
    return value


def parse_budget(memory: int | str | None) -> int | None:
    """An option ``memory`` in bytes; None where there is no budget."""
    return None if memory is None else parse_bytes(memory)


def parse_device_budget(device_memory: int | str | None, device: Device) -> int | None:
    """An option ``device_memory`` in bytes; None where there is no budget.

    Args:
        device_memory: the option.
        device: the device that it is for; ``auto`` may turn out to be the CPU.

    Raises:
        UsageError: it is no amount of memory, or for the CPU.
    """
    if device_memory is None:
        return None
    if device == "cpu":
        raise UsageError(
            "option device_memory is for a GPU's memory",
            got=device_memory,
            expected="a CUDA device",
            where="device_memory",
            hint="On the CPU, --memory (Python: memory=...) bounds what the process takes",
        )
    return parse_bytes(device_memory, "device_memory")


def _check(ok: bool, name: str, got: object, expected: str) -> None:
    if not ok:
        raise UsageError(f"option {name} is out of range", got=got, expected=expected, where=name)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeOptions:
    """How a picture is encoded."""

    model: str = "default"
    """Model name, sha256 or path of a model folder."""
    quality: float = 50.0
    """1 (smallest) to 100 (best); continuous where the model has more than one rate point."""
    tile: int = TILE
    """Tile side in pixels, a multiple of the model's hyper-latent stride (128 for the default model)."""
    overlap: int | None = None
    """Half of the pixels that the windows of neighbouring tiles share; None: the model's choice."""
    halo: int | None = None
    """Margin of pixels a tile is analysed with; None: the model's choice."""
    chunk_tiles: int = TILES_PER_CHUNK
    """Tiles along a chunk's side."""
    levels: int | Literal["auto"] = "auto"
    """Pyramid levels; auto: halve until the longer side is at most 1024 px."""
    device: Device = "auto"
    precision: Precision = "auto"
    compile: bool = False
    """Let torch.compile make faster code for the networks: worth its minutes for large models and many windows."""
    memory: int | str | None = None
    """Bytes, or such as ``"2GiB"``, that the process may take in all, see :mod:`tilecodec.budget`; None: what the
    machine has."""
    device_memory: int | str | None = None
    """Bytes, or such as ``"6GiB"``, that weights and windows may take on a GPU (each, where there are
    several), see :mod:`tilecodec.model.device_budget`; None: what is free there."""
    overwrite: bool = False
    """Replace an existing target."""
    resume: bool = False
    """Continue an unfinished target written with the same options."""

    def __post_init__(self) -> None:
        _check(1 <= self.quality <= 100, "quality", self.quality, "1 to 100")
        _check(self.precision in PRECISIONS, "precision", self.precision, ", ".join(PRECISIONS))
        _check(128 <= self.tile <= 4096 and self.tile % 128 == 0, "tile", self.tile, "a multiple of 128 up to 4096")
        _check(1 <= self.chunk_tiles <= 16, "chunk_tiles", self.chunk_tiles, "1 to 16")
        if self.levels != "auto":
            _check(isinstance(self.levels, int) and 1 <= self.levels <= 24, "levels", self.levels, "auto or 1 to 24")
        for name, value in (("overlap", self.overlap), ("halo", self.halo)):
            _check(value is None or 0 <= value <= self.tile, name, value, f"0 to the tile side, {self.tile}")
        _check(not (self.overwrite and self.resume), "resume", "with overwrite", "one of the two")
        parse_budget(self.memory)
        parse_device_budget(self.device_memory, self.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeOptions:
    """How a container is decoded."""

    model: str | None = None
    """Path or name of the model, where the one that the container names by hash is not found by itself."""
    device: Device = "auto"
    precision: Precision = "auto"
    compile: bool = False
    """See :attr:`EncodeOptions.compile`."""
    cache_bytes: int = 64 << 20
    """Bytes of decoded windows kept for the next read."""
    memory: int | str | None = None
    """See :attr:`EncodeOptions.memory`."""
    device_memory: int | str | None = None
    """See :attr:`EncodeOptions.device_memory`."""
    limits: Limits = DEFAULT_LIMITS
    """What the container may ask for at most."""
    on_error: OnError = "raise"
    fill: Colour = (0, 0, 0)
    """Colour of the tiles that cannot be decoded, with ``on_error="fill"``."""

    def __post_init__(self) -> None:
        _check(self.precision in PRECISIONS, "precision", self.precision, ", ".join(PRECISIONS))
        _check(self.on_error in ("raise", "fill"), "on_error", self.on_error, "raise or fill")
        _check(
            isinstance(self.fill, tuple)
            and len(self.fill) == 3
            and all(type(v) is int and 0 <= v <= 255 for v in self.fill),
            "fill",
            self.fill,
            "three integers of 0 to 255",
        )
        _check(self.cache_bytes >= 0, "cache_bytes", self.cache_bytes, "0 or more")
        parse_budget(self.memory)
        parse_device_budget(self.device_memory, self.device)
