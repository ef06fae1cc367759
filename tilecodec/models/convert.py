"""Turns a checkpoint of the authors into a tilecodec model: a folder with weights, integer tables, record and card.

    checkpoint [+ base] [+ ELIC] ─► fit ─► calibration ─► integer program ─► model.safetensors, README.md

Nothing is written before everything fits, and the folder appears whole or not at all. No tensor is in memory longer
than its turn takes, except for the parts that calibration runs: the analysis and the entropy model.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

import tilecodec
from tilecodec.entropy.program import Program
from tilecodec.entropy.quantise import quantise
from tilecodec.entropy.tables import CDFTable, gaussian_table
from tilecodec.errors import ModelError, StorageError, TargetExistsError, UsageError
from tilecodec.files import replace_folder
from tilecodec.memory import available_memory_bytes, peak_memory_bytes
from tilecodec.model.config import DiTICConfig, official_config
from tilecodec.model.ditic import DiTIC
from tilecodec.model.record import hash_file, record_path, write_record
from tilecodec.model.tensor_file import LazyTensor
from tilecodec.model.weights import (
    EMBEDDED,
    FILE,
    INTEGER_PARTS,
    SCALE_TABLE,
    Z_MEDIAN,
    embedded_folders,
    models_folder,
    save_model,
)
from tilecodec.models.base import read_config, read_weights
from tilecodec.models.calibration import RECIPE, calibration_tiles
from tilecodec.models.card import card
from tilecodec.models.checkpoint import Weights, open_checkpoint
from tilecodec.models.fit import Fitted, fit
from tilecodec.models.room import GIB, check_disk, check_memory

StoredType = Literal["fp32", "bf16"]
CARD: Final = "README.md"
LEAST_REACH: Final = 12
"""Bins on either side of the narrowest rows: what the network did not expect stays affordable."""
_ANALYSED: Final = ("vae.encoder.", "aux_codec.", "codec.")
"""What calibration runs."""
_WORKING_BYTES: Final = 3 * GIB // 2
"""Memory besides weights: libraries, and the values of one calibration window."""
_SPARE_BYTES: Final = 64 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertReport:
    """What a conversion made."""

    name: str
    """The model's alias."""
    sha256: str
    path: str
    """Its folder."""
    bytes: int
    """Of the model file."""
    kind: Literal["merged", "lora"]
    """Of the checkpoint."""
    dtype: StoredType
    remarks: tuple[str, ...]
    """What a user should know, in sentences."""
    seconds: float
    peak_memory_bytes: int
    """Peak resident memory of the process so far, mapped files included."""

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def convert_model(
    checkpoint: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    alias: str | None = None,
    base: str | os.PathLike[str] | None = None,
    elic: str | os.PathLike[str] | None = None,
    weights: Weights = "ema",
    dtype: StoredType = "fp32",
    calibration: str | os.PathLike[str] | None = None,
    config: DiTICConfig | None = None,
    source: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
) -> ConvertReport:
    """Converts a checkpoint of DiT-IC.

    Args:
        checkpoint: merged (all weights in one flat dict) or raw (LoRA tensors for autoencoder and transformer).
        target: the model folder to make. Unless given, it is made among this machine's models, by its alias.
        alias: the model's friendly name, which is part of what its hash covers; the target's own name unless given.
        base: folder in diffusers' layout: configs of the autoencoder and the transformer, and for a raw checkpoint
            their weights. The official configs are taken without it.
        elic: file with the auxiliary encoder's weights, for checkpoints without them.
        weights: which set of a raw checkpoint: ``ema`` or ``model``.
        dtype: ``fp32`` keeps every bit. ``bf16`` halves the file, by the rounding that computing in bf16 does anyway.
        calibration: folder of pictures for the integer entropy model; drawn ones unless given.
        config: the network's config, where neither the official one nor the base's describes it.
        source: where the checkpoint came from, for record and card.
        overwrite: replaces a model that is there.
        say: called with a word on what is going on.

    Raises:
        CheckpointError: the file is no checkpoint, half of one, or does not fit; all misfits are listed.
        MissingFileError, ModelConfigError: about checkpoint, base, ELIC weights or pictures.
        TargetExistsError: there is something at the target already.
        NotEnoughMemoryError, StorageError: too little memory or room on the disk, found before anything is done.
        UsageError: options that contradict each other.
    """
    begun = time.monotonic()
    tell = say or (lambda _: None)
    if dtype not in ("fp32", "bf16"):
        raise UsageError("no such type of weights", got=dtype, expected="fp32 or bf16", where="dtype")
    if weights not in ("ema", "model"):
        raise UsageError("no such set of weights", got=weights, expected="ema or model", where="weights")
    folder, name = _place(None if target is None else Path(target), alias)
    _check_target(folder, overwrite)
    _check_writable(folder)
    path = Path(checkpoint)
    if config is None:
        config = official_config() if base is None else read_config(Path(base))
    opened = open_checkpoint(path, weights=weights)
    beneath = read_weights(Path(base)) if opened.kind == "lora" and base is not None else None
    fitted = fit(config, opened, base=beneath, elic=None if elic is None else Path(elic))
    check_conversion_memory(config)
    written = sum(size for _, size in _sizes(fitted, dtype).values())
    check_disk(folder, written + _SPARE_BYTES, "write the model")

    tell(f"calibrating the entropy model ({RECIPE if calibration is None else calibration})")
    program = _program(config, fitted, None if calibration is None else Path(calibration))
    tell(f"writing {folder}")
    facts = {
        "checkpoint": path.name,
        "checkpoint_sha256": (source or {}).get("checkpoint_sha256") or hash_file(path),
        "checkpoint_bytes": path.stat().st_size,
        "kind": {"merged": "merged", "lora": f"raw LoRA ({weights}), merged onto its base"}[opened.kind],
        "base": Path(base).resolve().name if opened.kind == "lora" and base is not None else None,
        "elic": None if elic is None else Path(elic).name,
        "dtype": dtype,
        "calibration": RECIPE if calibration is None else "the user's pictures",
        "converter": f"tilecodec {tilecodec.__version__}",
        "remarks": " ".join(fitted.remarks) or None,
        **(source or {}),
    }
    staged = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    try:
        sha256 = _write(staged, name, config, fitted, program, dtype)
        size = (staged / FILE).stat().st_size
        write_record(staged / FILE, sha256, {"alias": name, **facts})
        text = card(name, {"model": f"sha256:{sha256}", **facts}, _sizes(fitted, dtype))
        (staged / CARD).write_text(text, encoding="utf-8")
        _settle(staged, folder, overwrite)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return ConvertReport(
        name=name,
        sha256=sha256,
        path=str(folder),
        bytes=size,
        kind=opened.kind,
        dtype=dtype,
        remarks=fitted.remarks,
        seconds=time.monotonic() - begun,
        peak_memory_bytes=peak_memory_bytes(),
    )


# --- where it goes


def _place(target: Path | None, alias: str | None) -> tuple[Path, str]:
    """The model's folder and its alias."""
    if target is None and alias is None:
        raise UsageError("the model needs a place", expected="a folder, or an alias", where="target")
    folder = models_folder() / str(alias) if target is None else Path(target).absolute()
    name = alias or folder.name
    check_name(name)
    return (folder.resolve() if folder.is_symlink() else folder), name  # a link stays, and leads to the model


def check_name(name: str) -> None:
    """Refuses names that no model can have.

    Raises:
        UsageError: characters that a folder's name should not have, or a name of the package's own models.
    """
    if not _NAME.fullmatch(name):
        raise UsageError("the name cannot be a model's", got=name, expected="letters, digits, . _ -", where="alias")
    if name in EMBEDDED or name in {folder.name for folder in embedded_folders()}:
        raise UsageError("a model of this name is part of the package", got=name, expected="another", where="alias")


def _check_target(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / FILE).is_file():
        raise TargetExistsError(
            "the target exists and is no model; it is never replaced", got=folder, expected="a new path"
        )
    if not overwrite:
        raise TargetExistsError(got=folder, expected="a new path", hint="Give --overwrite to replace the model")
    others = foreign_files(folder)
    if others:
        raise TargetExistsError(
            "the model's folder holds other files; it is never replaced",
            got=others,
            expected=FILE,
            where=folder,
        )


def foreign_files(folder: Path) -> list[str]:
    """What lies in a model's folder that no conversion put there."""
    known = {FILE, CARD, record_path(folder / FILE).name}
    return sorted(p.name for p in folder.iterdir() if p.name not in known)


def _settle(staged: Path, folder: Path, overwrite: bool) -> None:
    """Puts a finished model in its place; what was there goes, unless someone has put it there meanwhile."""
    _check_target(folder, overwrite)
    if folder.exists():
        replace_folder(staged, folder)
    else:
        staged.rename(folder)


def _check_writable(folder: Path) -> None:
    """Refuses a place where no folder can be made, before minutes of work.

    Raises:
        StorageError: a part of the path is a file, or may not be written to.
    """
    there = next(p for p in folder.parents if p.exists() or p.is_symlink())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "may not be written to" if there.is_dir() else "is no folder"
        raise StorageError("the model cannot be put there", got=f"{there} {what}", where=folder)


def check_conversion_memory(config: DiTICConfig) -> None:
    """Refuses to convert where it would not fit: what calibration runs, in float32, twice, and the largest tensors.

    Raises:
        NotEnoughMemoryError: this machine has less memory.
    """
    with torch.device("meta"):
        sizes = {name: 4 * tensor.numel() for name, tensor in DiTIC(config).state_dict().items()}
    analysed = sum(size for name, size in sizes.items() if name.startswith(_ANALYSED))
    needed = 2 * analysed + 3 * max(sizes.values()) + min(_WORKING_BYTES, 24 * analysed + (256 << 20))
    check_memory(needed, available_memory_bytes(), "convert this checkpoint")


# --- what it holds


def _program(config: DiTICConfig, fitted: Fitted, pictures: Path | None) -> Program:
    with torch.device("meta"):
        network = DiTIC(config)
    parts: dict[str, torch.nn.Module] = {"codec.": network.codec}
    if network.aux_codec is not None:
        parts["aux_codec."] = network.aux_codec
    encoder = network.vae.encoder
    assert isinstance(encoder, torch.nn.Module)
    parts["vae.encoder."] = encoder
    for prefix, module in parts.items():
        state = {k.removeprefix(prefix): t.make() for k, t in fitted.tensors.items() if k.startswith(prefix)}
        module.load_state_dict(state, strict=True, assign=True)
    network.eval().requires_grad_(False)
    program = quantise(network.codec, fitted.z_median, fitted.scales, calibration_tiles(network, pictures))
    large = [name for name, layer in program.layers.items() if (layer.input_bits or 0) < 0]
    if large:
        raise ModelError("values of the entropy model are too large for integers", got=large[:4], where="calibration")
    return program


def _write(folder: Path, alias: str, config: DiTICConfig, fitted: Fitted, program: Program, dtype: StoredType) -> str:
    stored = {name: _stored(name, tensor, dtype) for name, tensor in fitted.tensors.items()}
    source: dict[str, Tensor | LazyTensor] = {
        name.removeprefix("codec."): tensor for name, tensor in stored.items() if name.startswith(INTEGER_PARTS)
    }
    source |= {SCALE_TABLE: torch.from_numpy(fitted.scales), Z_MEDIAN: torch.from_numpy(fitted.z_median)}
    return save_model(
        folder,
        alias=alias,
        config=config,
        tensors=stored,
        tables=_tables(gaussian_table(fitted.scales, least_reach=LEAST_REACH), "y") | _tables(fitted.z_table, "z"),
        program=program.header(),
        program_tensors={k: torch.from_numpy(v) for k, v in program.tensors().items()},
        source=source,
    )


def _tables(table: CDFTable, name: str) -> dict[str, Tensor]:
    return {f"{name}.{field}": torch.from_numpy(getattr(table, field)) for field in ("cdf", "length", "offset")}


def _stored_type(tensor: LazyTensor, dtype: StoredType) -> torch.dtype:
    """Biases and norms, which are small, stay float32."""
    return torch.bfloat16 if dtype == "bf16" and len(tensor.shape) > 1 else torch.float32


def _stored(name: str, tensor: LazyTensor, dtype: StoredType) -> LazyTensor:
    kind = _stored_type(tensor, dtype)

    def make() -> Tensor:
        made = tensor.make()
        if not bool(torch.isfinite(made).all()):
            raise ModelError("a weight of the checkpoint is not finite", expected="numbers", where=name)
        return made.to(kind)

    return LazyTensor(kind, tensor.shape, make)


def _sizes(fitted: Fitted, dtype: StoredType) -> dict[str, tuple[int, int]]:
    """Parameters and bytes of each part of the network."""
    sizes: dict[str, tuple[int, int]] = {}
    for name, tensor in fitted.tensors.items():
        part, count = name.split(".")[0], math.prod(tensor.shape)
        seen = sizes.get(part, (0, 0))
        sizes[part] = seen[0] + count, seen[1] + count * _stored_type(tensor, dtype).itemsize
    return sizes
