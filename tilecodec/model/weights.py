"""Model files: one safetensors file holds the weights, the integer CDF tables and, in its header, the config.

The file's sha256 names the model; everything that decides a decoded pixel is covered by it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from tilecodec.errors import MissingFileError, ModelError, ModelHashError, UnknownModelError
from tilecodec.model.config import DiTICConfig

FILE: Final = "model.safetensors"
METADATA_KEY: Final = "tilecodec"
TABLE_PREFIX: Final = "tables."
DEFAULT: Final = "default"
INTEGER_PREFIX: Final = "integer."
INTEGER_PARTS: Final = ("codec.h_s.", "codec.adapter_in.", "codec.g_c.", "codec.adapter_out.", "codec.LRP.")
"""Parts of the network that a model file holds as an integer program, not as weights."""
VERSION: Final = 1
EMBEDDED: Final = {"default": "default-2"}
"""Friendly names of the models inside the package, and the folder each stands for."""


@dataclass(frozen=True, eq=False, slots=True)
class ModelFile:
    """A model file as read."""

    alias: str
    sha256: str
    """Of the whole file, hexadecimal."""
    config: DiTICConfig
    tensors: dict[str, Tensor]
    """Network weights by name."""
    tables: dict[str, Tensor]
    """Integer tables by name, prefix removed."""
    program: dict[str, Any]
    """Header of the integer entropy model, as JSON."""
    program_tensors: dict[str, Tensor]
    """Its tensors by name, prefix removed."""
    path: Path


def save_model(
    path: Path,
    *,
    alias: str,
    config: DiTICConfig,
    tensors: dict[str, Tensor],
    tables: dict[str, Tensor],
    program: dict[str, Any],
    program_tensors: dict[str, Tensor],
) -> str:
    """Writes a model file and returns its sha256.

    Args:
        path: a folder; the file in it is ``model.safetensors``.
        alias: friendly name.
        config: the network's config.
        tensors: network weights by name.
        tables: integer tables by name.
        program: header of the integer entropy model.
        program_tensors: its tensors by name. What they stand for is left out of ``tensors``.
    """
    from safetensors.torch import save

    content = {"version": VERSION, "alias": alias, "config": config.to_dict(), "integer": program}
    header = json.dumps(content, separators=(",", ":"))
    everything = {k: v.contiguous() for k, v in tensors.items() if not k.startswith(INTEGER_PARTS)}
    everything |= {TABLE_PREFIX + k: v.contiguous() for k, v in tables.items()}
    everything |= {INTEGER_PREFIX + k: v.contiguous() for k, v in program_tensors.items()}
    data = save(everything, metadata={METADATA_KEY: header})
    path.mkdir(parents=True, exist_ok=True)
    partial = path / (FILE + ".part")
    partial.write_bytes(data)
    os.replace(partial, path / FILE)
    return hashlib.sha256(data).hexdigest()


def read_model(path: Path, *, expected_sha256: str | None = None) -> ModelFile:
    """Reads a model file, checking its hash where one is expected.

    Args:
        path: the file, or the folder that holds ``model.safetensors``.
        expected_sha256: hexadecimal.

    Raises:
        MissingFileError: no such file.
        ModelHashError: another file than the one named.
        ModelError: not a model file of ours.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise MissingFileError("there is no model file", got=str(file), expected=f"a folder with {FILE}", where="model")
    data = file.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise ModelHashError(
            got=f"sha256:{sha256}", expected=f"sha256:{expected_sha256}", where=file, hint="Fetch the model anew"
        )
    try:
        size = int.from_bytes(data[:8], "little")
        meta: Any = json.loads(data[8 : 8 + size])["__metadata__"][METADATA_KEY]
        header = json.loads(meta)
        if header["version"] != VERSION:
            raise ModelError(
                "the model file is of another version", got=header["version"], expected=VERSION, where=file
            )
        program = dict(header["integer"])
        config = DiTICConfig.from_dict(header["config"])
        alias = str(header["alias"])
        everything = load(data)
    except ModelError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError("the file is no tilecodec model", got=repr(error), where=file) from error
    _SEEN[sha256] = file
    return ModelFile(
        alias=alias,
        sha256=sha256,
        config=config,
        tensors={k: v for k, v in everything.items() if not k.startswith((TABLE_PREFIX, INTEGER_PREFIX))},
        tables=_under(TABLE_PREFIX, everything),
        program=program,
        program_tensors=_under(INTEGER_PREFIX, everything),
        path=file,
    )


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


def find_model(name: str) -> ModelFile:
    """A model by friendly name, by ``sha256:...`` or by path.

    Raises:
        UnknownModelError: no model goes by that name; the message lists those that do.
    """
    folders = sorted(p.parent for p in embedded_folder().glob(f"*/{FILE}"))
    if name.startswith("sha256:"):
        wanted = name.removeprefix("sha256:")
        kept = sorted(models_folder().glob(f"*/{FILE}"))
        for file in [*(f / FILE for f in folders), *_SEEN.values(), *kept]:
            if file.is_file() and _sha256_of(file) == wanted:
                return read_model(file, expected_sha256=wanted)
        raise UnknownModelError(
            got=name,
            expected=[f"{p.name} (sha256:{_sha256_of(p / FILE)})" for p in folders],
            where=f"the package and {models_folder()}",
            hint="Give the path of the model that wrote the container with --model (Python: model=...)",
        )
    folder = embedded_folder() / EMBEDDED.get(name, name)
    if os.sep not in name and (folder / FILE).is_file():
        return read_model(folder)
    path = Path(name)
    if path.exists():
        return read_model(path)
    raise UnknownModelError(
        got=name, expected=[*EMBEDDED, *(p.name for p in folders), "a path", "sha256:..."], where="model"
    )


def _sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
