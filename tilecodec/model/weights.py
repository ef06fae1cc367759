"""Model files: one safetensors file holds the weights, the integer CDF tables and, in its header, the config.

The file's sha256 names the model; everything that decides a decoded pixel is covered by it.
"""

from __future__ import annotations

import contextlib
import json
import operator
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tilecodec.errors import MissingFileError, ModelError, ModelHashError, StorageError, UnknownModelError
from tilecodec.model.config import DiTICConfig
from tilecodec.model.record import file_sha256
from tilecodec.model.tensor_file import LazyTensor, read_header, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

FILE: Final = "model.safetensors"
METADATA_KEY: Final = "tilecodec"
TABLE_PREFIX: Final = "tables."
DEFAULT: Final = "default"
INTEGER_PREFIX: Final = "integer."
SOURCE_PREFIX: Final = "integer.source."
"""What the integer program was made from; informative, and absent from most files."""
_SOURCE: Final = SOURCE_PREFIX.removeprefix(INTEGER_PREFIX)
Z_MEDIAN: Final = "z_median"
SCALE_TABLE: Final = "scale_table"
"""Names of the float tables among it."""
INTEGER_PARTS: Final = ("codec.h_s.", "codec.adapter_in.", "codec.g_c.", "codec.adapter_out.", "codec.LRP.")
"""Parts of the network that a model file holds as an integer program, not as weights."""
VERSION: Final = 1
EMBEDDED: Final = {"default": "default-4"}
"""Friendly names of the models inside the package, and the folder each stands for."""
OFFICIAL: Final = ("dit-ic-q1", "dit-ic-q2", "dit-ic-q3", "dit-ic-q4")
"""Friendly names of the authors' rate points, once ``tilecodec models pull`` has fetched them."""


@dataclass(frozen=True, eq=False, slots=True)
class ModelFile:
    """A model file as read."""

    alias: str
    sha256: str
    """Of the whole file, hexadecimal."""
    config: DiTICConfig
    tensors: Mapping[str, Tensor]
    """Network weights by name. They lie in the mapped file: read when touched, copied when written to."""
    tables: Mapping[str, Tensor]
    """Integer tables by name, prefix removed."""
    program: dict[str, Any]
    """Header of the integer entropy model, as JSON."""
    program_tensors: Mapping[str, Tensor]
    """Its tensors by name, prefix removed."""
    path: Path
    source: Mapping[str, Tensor] = field(default_factory=dict)
    """What the program was made from: float weights by name, ``scale_table`` and ``z_median``. Empty in most models."""


def save_model(
    path: Path,
    *,
    alias: str,
    config: DiTICConfig,
    tensors: Mapping[str, Tensor | LazyTensor],
    tables: Mapping[str, Tensor],
    program: dict[str, Any],
    program_tensors: Mapping[str, Tensor],
    source: Mapping[str, Tensor | LazyTensor] | None = None,
) -> str:
    """Writes a model file, tensor by tensor, and returns its sha256.

    Args:
        path: a folder; the file in it is ``model.safetensors``.
        alias: friendly name.
        config: the network's config.
        tensors: network weights by name.
        tables: integer tables by name.
        program: header of the integer entropy model.
        program_tensors: its tensors by name. What they stand for is left out of ``tensors``.
        source: see :attr:`ModelFile.source`; kept beside the program where it is given.
    """
    content = {"version": VERSION, "alias": alias, "config": config.to_dict(), "integer": program}
    header = json.dumps(content, separators=(",", ":"))
    everything = {k: v for k, v in tensors.items() if not k.startswith(INTEGER_PARTS)}
    everything |= {TABLE_PREFIX + k: v for k, v in tables.items()}
    everything |= {INTEGER_PREFIX + k: v for k, v in program_tensors.items()}
    everything |= {SOURCE_PREFIX + k: v for k, v in (source or {}).items()}
    path.mkdir(parents=True, exist_ok=True)
    return write_tensors(path / FILE, everything, {METADATA_KEY: header})


def read_model(path: Path, *, expected_sha256: str | None = None) -> ModelFile:
    """Reads a model file, checking its hash where one is expected. Its tensors stay in the file, which is mapped.

    Args:
        path: the file, or the folder that holds ``model.safetensors``.
        expected_sha256: hexadecimal.

    Raises:
        MissingFileError: no such file.
        ModelHashError: another file than the one named.
        ModelError: not a model file of ours.
        StorageError: the file changed while it was read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise MissingFileError("there is no model file", got=str(file), expected=f"a folder with {FILE}", where="model")
    before = file.stat()
    sha256 = file_sha256(file)
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise ModelHashError(
            got=f"sha256:{sha256}", expected=f"sha256:{expected_sha256}", where=file, hint="Fetch the model anew"
        )
    content = read_content(file)
    try:
        everything = load_file(file)
    except SafetensorError as error:
        raise ModelError("the file is no tilecodec model", got=repr(error), where=file) from error
    after = file.stat()
    if (before.st_ino, before.st_size, before.st_mtime_ns) != (after.st_ino, after.st_size, after.st_mtime_ns):
        raise StorageError("the model file changed while it was read", where=file, hint="Try again")
    _SEEN[sha256] = file
    return ModelFile(
        alias=content.alias,
        sha256=sha256,
        config=content.config,
        tensors={k: v for k, v in everything.items() if not k.startswith((TABLE_PREFIX, INTEGER_PREFIX))},
        tables=_under(TABLE_PREFIX, everything),
        program=content.program,
        program_tensors={k: v for k, v in _under(INTEGER_PREFIX, everything).items() if not k.startswith(_SOURCE)},
        path=file,
        source=_under(SOURCE_PREFIX, everything),
    )


@dataclass(frozen=True, eq=False, slots=True)
class ModelContent:
    """What a model file's header says."""

    alias: str
    config: DiTICConfig
    program: dict[str, Any]
    """Header of the integer entropy model, as JSON."""
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    """Type, as safetensors names it (``F32``), and shape of every tensor, by its name in the file."""


def read_content(file: Path) -> ModelContent:
    """A model file's header. No tensor is read, and torch is not needed.

    Raises:
        ModelError: not a model file of ours.
    """
    try:
        whole = read_header(file)
        header = json.loads(whole.pop("__metadata__")[METADATA_KEY])
        if header["version"] != VERSION:
            raise ModelError(
                "the model file is of another version", got=header["version"], expected=VERSION, where=file
            )
        return ModelContent(
            alias=str(header["alias"]),
            config=DiTICConfig.from_dict(header["config"]),
            program=dict(header["integer"]),
            tensors={k: (str(v["dtype"]), tuple(operator.index(n) for n in v["shape"])) for k, v in whole.items()},
        )
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError("the file is no tilecodec model", got=repr(error), where=file) from error


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


_SEEN: dict[str, Path] = {}
"""Files this process has read, by sha256: what was encoded with a model given by path can be decoded at once."""


def models_folder() -> Path:
    """Where models are kept on this machine: ``$TILECODEC_HOME/models``, by default ``~/.cache/tilecodec/models``."""
    home = os.environ.get("TILECODEC_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "tilecodec") / "models"


def embedded_folder() -> Path:
    """Where the package keeps its own models."""
    return Path(str(resources.files("tilecodec") / "weights"))


def embedded_folders() -> list[Path]:
    """The folders of the models inside the package."""
    return sorted(p.parent for p in embedded_folder().glob(f"*/{FILE}"))


def kept_folders() -> list[Path]:
    """The folders of the models kept on this machine, see :func:`models_folder`; a folder's name is its model's."""
    return sorted(p.parent for p in models_folder().glob(f"*/{FILE}") if not p.parent.name.startswith("."))


def find_model(name: str) -> ModelFile:
    """A model by friendly name, by ``sha256:...`` or by path.

    Raises:
        UnknownModelError: no model goes by that name; the message lists those that do.
    """
    wanted = name.removeprefix("sha256:") if name.startswith("sha256:") else None
    return read_model(locate_model(name), expected_sha256=wanted)


def locate_model(name: str) -> Path:
    """The file of a model by friendly name, by ``sha256:...`` or by path; it may turn out to be no model.

    Raises:
        UnknownModelError: no model goes by that name; the message lists those that do.
    """
    if name.startswith("sha256:"):
        return _locate_hash(name.removeprefix("sha256:"))
    folder = named_folder(name)
    if folder is not None:
        return folder / FILE
    path = Path(name)
    if path.exists():
        return path / FILE if path.is_dir() else path
    raise unknown_model(name, [*model_names(), "a path", "sha256:..."])


def unknown_model(name: str, expected: list[str]) -> UnknownModelError:
    """The error about a name that no model goes by."""
    hint = None
    if re.fullmatch(r"dit-ic-q\d+", name):
        hint = f"Fetch the authors' weights first: tilecodec models pull {name if name in OFFICIAL else OFFICIAL[-1]}"
    return UnknownModelError(got=name, expected=expected, where="model", hint=hint)


def model_names() -> list[str]:
    """The friendly names that :func:`find_model` knows on this machine."""
    return [*EMBEDDED, *(p.name for p in (*embedded_folders(), *kept_folders()))]


def named_folder(name: str) -> Path | None:
    """The folder of the model of a friendly name, embedded or kept on this machine."""
    if not name or name.startswith(".") or any(c in name for c in ("/", os.sep, "\0")):
        return None
    places = (embedded_folder() / EMBEDDED.get(name, name), models_folder() / name)
    return next((folder for folder in places if (folder / FILE).is_file()), None)


def file_of_hash(wanted: str, files: Iterable[Path]) -> Path | None:
    """The first of some model files that has a hash; one that cannot be read is not in the way of another."""
    for file in files:
        with contextlib.suppress(OSError):
            if file.is_file() and file_sha256(file) == wanted:
                return file
    return None


def _locate_hash(wanted: str) -> Path:
    embedded = embedded_folders()
    seen = [_SEEN[wanted]] if wanted in _SEEN else []
    found = file_of_hash(wanted, [*seen, *(folder / FILE for folder in (*embedded, *kept_folders()))])
    if found is not None:
        return found
    raise UnknownModelError(
        got=f"sha256:{wanted}",
        expected=[f"{p.name} (sha256:{file_sha256(p / FILE)})" for p in embedded],
        where=f"the package and {models_folder()}",
        hint="Give the path of the model that wrote the container with --model (Python: model=...)",
    )
