"""Checkpoints: written whole or not at all, read without running what they hold.

A run's folder has ``last.pt``, everything needed to go on, and ``ema.pt``, the averaged weights. Where parts of the
network are frozen, their tensors lie in ``frozen.pt``, written once, and the other two hold the rest.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from tilecodec.errors import MissingFileError, StorageError, TrainingError

LAST: Final = "last.pt"
EMA: Final = "ema.pt"
FROZEN: Final = "frozen.pt"


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint; until it is whole and on the disk, the old one stays.

    Args:
        path: the file.
        content: tensors, numbers, text, and dicts and lists of them.

    Raises:
        StorageError: it cannot be written, for example since the disk is full; the old one is still there.
    """
    partial = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        partial.unlink(missing_ok=True)
        raise StorageError(
            "the checkpoint cannot be written", got=str(error), where=str(path), hint="The one before is still there"
        ) from error


def read(path: Path) -> dict[str, Any]:
    """Reads a checkpoint, tensors to the CPU, frozen ones put back among ``network`` and ``ema``.

    Raises:
        MissingFileError: no such file.
        TrainingError: no checkpoint, or a damaged one.
    """
    content = _read(path)
    if content.get("frozen"):
        frozen: dict[str, Tensor] = _read(path.with_name(FROZEN))["tensors"]
        for part in ("network", "ema"):
            if part in content:
                content[part] = {**frozen, **content[part]}
    return content


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFileError("there is no such checkpoint", got=str(path), expected=f"{LAST} or {EMA} of a run")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise TrainingError("the checkpoint cannot be read", got=str(error), where=str(path)) from error
    if not isinstance(content, dict):
        got = type(content).__name__
        raise TrainingError("this is no checkpoint", got=got, expected="what a run wrote", where=str(path))
    return content


def frozen_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters of a network that do not learn, by name, on the CPU."""
    return {n: p.detach().cpu() for n, p in network.named_parameters() if not p.requires_grad}


def state_of(network: nn.Module, without: Mapping[str, Any]) -> dict[str, Tensor]:
    """A network's tensors by name, on the CPU, without some."""
    return {k: v.detach().cpu() for k, v in network.state_dict().items() if k not in without}
