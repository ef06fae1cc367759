"""The models on this machine: those inside the package, and those kept under ``$TILECODEC_HOME/models``."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tilecodec.errors import ModelError, TileCodecError, UsageError
from tilecodec.model.record import file_sha256, hash_file, read_record
from tilecodec.model.weights import (
    EMBEDDED,
    FILE,
    INTEGER_PREFIX,
    TABLE_PREFIX,
    ModelFile,
    embedded_folders,
    file_of_hash,
    kept_folders,
    locate_model,
    named_folder,
    read_content,
    read_model,
    unknown_model,
)

_FLOATS: Final = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """A model on this machine."""

    name: str
    """The name it is found by; a path where it has none."""
    aliases: tuple[str, ...]
    """Other names it is found by."""
    sha256: str
    path: str
    """Its file."""
    bytes: int
    embedded: bool
    """Whether it is part of the package."""
    dtype: str
    """Of most weights: ``fp32``, ``bf16`` or ``fp16``."""
    parameters: dict[str, int]
    """Of each part of the network; entropy parameters that are integers are counted under ``codec``."""
    stride: int
    """A tile's side is a multiple of it, pixels."""
    qualities: bool
    """Whether quality 1 to 100 has an effect; otherwise the model has one rate point."""
    source: dict[str, Any] = field(default_factory=dict)
    """Where it came from, as its record says."""
    problem: str | None = None
    """What keeps the model from being used, where something does."""

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCheck:
    """What checking a model's bytes found."""

    name: str
    path: str
    sha256: str
    """Of the bytes as they are."""
    recorded: str | None
    """What the record says; None where there is none."""
    problem: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def list_models() -> tuple[ModelEntry, ...]:
    """Every model that has a name on this machine: the package's own first, then the kept ones by name."""
    return tuple(_entry(folder / FILE) for folder in (*embedded_folders(), *kept_folders()))


def show_model(name: str) -> ModelEntry:
    """One model, by friendly name, ``sha256:...`` or path.

    Raises:
        UnknownModelError: no model goes by that name.
        MissingFileError, ModelError: what is there is no model.
    """
    file = locate_model(name)
    entry = _entry(file)
    if entry.problem is not None:
        raise ModelError("the model cannot be used", got=entry.problem, where=file)
    return entry


def verify_models(name: str | None = None) -> tuple[ModelCheck, ...]:
    """Hashes models anew, byte for byte, and reads their tables and integer programs.

    Args:
        name: friendly name, ``sha256:...`` or path; every model that has a name unless given.

    Raises:
        UnknownModelError: no model goes by that name.
    """
    if name is not None:
        return (_verified(locate_model(name)),)
    return tuple(_verified(folder / FILE) for folder in (*embedded_folders(), *kept_folders()))


def remove_model(name: str) -> Path:
    """Removes a model that was pulled or converted, and returns the folder it was in.

    Args:
        name: friendly name, or ``sha256:...``; never a path.

    Raises:
        UsageError: the model is part of the package, or its folder holds other files.
        UnknownModelError: no model goes by that name.
    """
    from tilecodec.models.convert import foreign_files

    kept = kept_folders()
    folder = _folder_of_hash(name.removeprefix("sha256:")) if name.startswith("sha256:") else named_folder(name)
    if folder in embedded_folders():
        raise UsageError("the model is part of the package", got=name, expected=[p.name for p in kept], where="rm")
    if folder is None or folder not in kept:
        raise unknown_model(name, [p.name for p in kept])
    if folder.is_symlink():
        folder.unlink()
        return folder
    others = foreign_files(folder)
    if others:
        raise UsageError(
            "the model's folder holds other files", got=others, expected=FILE, where=folder, hint="Move them away first"
        )
    trash = folder.with_name(f".{folder.name}.removed")
    if trash.exists():  # of a removal that was interrupted
        shutil.rmtree(trash)
    folder.rename(trash)
    shutil.rmtree(trash)
    return folder


def _folder_of_hash(sha256: str) -> Path | None:
    """The folder of this machine's models, or of the package's, that holds it; a copy elsewhere does not count."""
    found = file_of_hash(sha256, (folder / FILE for folder in (*kept_folders(), *embedded_folders())))
    return None if found is None else found.parent


def _name(file: Path) -> tuple[str, tuple[str, ...], bool]:
    """The name a file is found by, its other names, and whether it is part of the package."""
    folder = file.parent
    embedded = folder in embedded_folders()
    if file.name == FILE and (embedded or folder in kept_folders()):
        return folder.name, tuple(k for k, v in EMBEDDED.items() if v == folder.name and embedded), embedded
    return str(file), (), False


def _entry(file: Path) -> ModelEntry:
    name, aliases, embedded = _name(file)
    record = read_record(file)
    common: dict[str, Any] = {"name": name, "aliases": aliases, "path": str(file), "embedded": embedded}
    try:
        content = read_content(file)
        sha256 = file_sha256(file)
    except (TileCodecError, OSError) as error:
        nothing: dict[str, Any] = {
            "sha256": "",
            "bytes": 0,
            "dtype": "",
            "parameters": {},
            "stride": 0,
            "qualities": False,
        }
        return ModelEntry(**common, **nothing, problem=str(error))
    return ModelEntry(
        **common,
        sha256=sha256,
        bytes=file.stat().st_size,
        dtype=_dtype(content.tensors),
        parameters=_parameters(content.tensors),
        stride=content.config.z_stride,
        qualities=content.config.codec.rate_points > 0,
        source={} if record is None else record.source,
    )


def _dtype(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    counts: dict[str, int] = {}
    for name, (dtype, shape) in tensors.items():
        if dtype in _FLOATS and not name.startswith(INTEGER_PREFIX):
            counts[dtype] = counts.get(dtype, 0) + math.prod(shape)
    return _FLOATS[max(counts, key=counts.__getitem__)] if counts else ""


def _parameters(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, (_, shape) in tensors.items():
        part = name.split(".")[0]
        if name.startswith(INTEGER_PREFIX):
            if not name.endswith((".weight", ".bias")) or name.startswith(f"{INTEGER_PREFIX}source."):
                continue
            part = "codec"
        if not name.startswith(TABLE_PREFIX):
            counts[part] = counts.get(part, 0) + math.prod(shape)
    return dict(sorted(counts.items()))


def _verified(file: Path) -> ModelCheck:
    name, _, _ = _name(file)
    record = read_record(file)
    recorded = None if record is None else record.sha256
    sha256, problem = "", None
    try:
        sha256 = hash_file(file)
        if recorded is not None and sha256 != recorded:
            problem = f"the file has changed since it was made: it was sha256:{recorded}"
        else:
            _check_entropy(read_model(file))
    except (TileCodecError, OSError) as error:
        problem = str(error)
    return ModelCheck(name=name, path=str(file), sha256=sha256, recorded=recorded, problem=problem)


def _check_entropy(model: ModelFile) -> None:
    """Raises :class:`~tilecodec.errors.ModelError` where the integers that decide symbols break their rules."""
    from tilecodec.entropy.program import parse_program
    from tilecodec.entropy.tables import CDFTable

    codec = model.config.codec
    whole = {k: v.numpy() for k, v in model.program_tensors.items() if not v.is_floating_point()}
    parse_program(model.program, whole, y_channels=codec.y_channels, z_channels=codec.z_channels)
    for name in ("y", "z"):
        parts = [model.tables.get(f"{name}.{field}") for field in ("cdf", "length", "offset")]
        if any(part is None or part.is_floating_point() for part in parts):
            raise ModelError("the model lacks CDF tables", got=sorted(model.tables), where=model.path)
        CDFTable(*(part.numpy() for part in parts if part is not None))
