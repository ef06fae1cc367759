"""Every error tilecodec raises on purpose.

    TileCodecError
    ├── UsageError (ValueError)                options that contradict or leave their range; CLI exit 2
    │   ├── RegionError (IndexError)           a region outside the picture
    │   └── RecipeError                        a training recipe with a wrong key or value
    ├── SourceError (ValueError)               the input is not a picture that can be encoded
    │   └── UnsupportedPixelsError             dtype, band count or compression without support
    ├── StorageError (OSError)                 reading or writing failed; CLI exit 3
    │   ├── MissingFileError (FileNotFoundError)
    │   ├── TargetExistsError (FileExistsError)
    │   └── HubError                           a model hub cannot be reached, or has no such file
    ├── ModelError (ValueError)
    │   ├── UnknownModelError                  no such model name, path or hash
    │   ├── ModelHashError                     weights differ from what the container names
    │   ├── ModelConfigError                   a model config with wrong fields
    │   ├── CheckpointError                    a checkpoint that cannot be converted
    │   └── NotEnoughMemoryError (MemoryError) this machine has less memory than the work needs
    ├── DeviceError (RuntimeError)             a GPU failed, or is gone
    ├── TrainingError (RuntimeError)           a training run cannot begin or go on
    │   ├── DatasetError (ValueError)          too few pictures, too small or too flat ones
    │   ├── DivergedError (FloatingPointError) the loss is no number any more
    │   └── TrainingMemoryError (MemoryError)  a step does not fit into memory
    └── ContainerError (ValueError)
        ├── NotAContainerError                 no tilecodec container there, or metadata that break its rules
        ├── IncompleteContainerError           the container was never finished
        ├── LimitError                         it asks for more than the reader accepts, see tilecodec.Limits
        └── TileError                          one tile, named by level, row and column
            ├── CorruptTileError               its bytes or its symbols fail their check
            ├── LostTileError                  its chunk or entry is absent
            └── TileLimitError                 it asks for more than the reader accepts; a LimitError too

Each carries ``got``, ``expected`` and ``where`` and, where there is one, a ``hint`` that names the remedy. ``reason``
is a stable code; those of payload and container faults are listed in ``formats/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

_LONGEST: Final = 500
"""Characters of a value in a message: values may come from a container, and be as large as someone likes."""


class TileCodecError(Exception):
    """The root of the tree.

    Args:
        problem: what went wrong, in words.
        got: the offending value.
        expected: what was wanted instead.
        where: file, option, or tile.
        hint: what the user can do.
        reason: stable code; the class's own unless given.
    """

    reason: str = "error"
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        problem: str = "",
        *,
        got: Any = None,
        expected: Any = None,
        where: Any = None,
        hint: str | None = None,
        reason: str | None = None,
    ) -> None:
        self.problem, self.got, self.expected, self.where, self.hint = problem, got, expected, where, hint
        if reason is not None:
            self.reason = reason
        details = [
            f"{k}: {_short(v)}" for k, v in (("got", got), ("expected", expected), ("where", where)) if v is not None
        ]
        text = "; ".join([problem or type(self).__doc__ or self.reason, *details])
        super().__init__(f"{text}. {hint}" if hint else text)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({len(text)} characters)"


class UsageError(TileCodecError, ValueError):
    """An option is out of range or contradicts another"""

    reason = "usage"
    exit_code = 2


class RegionError(UsageError, IndexError):
    """The region lies outside the picture"""

    reason = "region"
    exit_code = 1


class RecipeError(UsageError):
    """The training recipe has a wrong key or value"""

    reason = "recipe"


class SourceError(TileCodecError, ValueError):
    """The input cannot be read as a picture"""

    reason = "source"


class UnsupportedPixelsError(SourceError):
    """The picture's pixels are of a kind without support"""

    reason = "unsupported-pixels"


class StorageError(TileCodecError, OSError):
    """Reading or writing failed"""

    reason = "storage"
    exit_code = 3

    def __str__(self) -> str:
        return str(self.args[0])


class MissingFileError(StorageError, FileNotFoundError):
    """There is no such file"""

    reason = "missing-file"


class TargetExistsError(StorageError, FileExistsError):
    """The target exists"""

    reason = "target-exists"


class HubError(StorageError):
    """The model hub cannot be reached, or has no such file"""

    reason = "hub"


class ModelError(TileCodecError, ValueError):
    """A model cannot be used"""

    reason = "model"


class UnknownModelError(ModelError):
    """No model goes by this name"""

    reason = "unknown-model"


class ModelHashError(ModelError):
    """The weights are not those that were named"""

    reason = "model-hash"


class ModelConfigError(ModelError):
    """The model's config breaks its rules"""

    reason = "model-config"


class CheckpointError(ModelError):
    """A checkpoint cannot be converted"""

    reason = "checkpoint"


class NotEnoughMemoryError(ModelError, MemoryError):
    """This machine has less memory than the work needs"""

    reason = "memory"


class DeviceError(TileCodecError, RuntimeError):
    """The device that networks run on failed"""

    reason = "device"


class TrainingError(TileCodecError, RuntimeError):
    """The training run cannot begin or go on"""

    reason = "training"


class DatasetError(TrainingError, ValueError):
    """There is nothing to learn from these pictures"""

    reason = "dataset"


class DivergedError(TrainingError, FloatingPointError):
    """The loss is no number any more"""

    reason = "diverged"


class TrainingMemoryError(TrainingError, MemoryError):
    """A training step does not fit into memory"""

    reason = "training-memory"


class ContainerError(TileCodecError, ValueError):
    """The container breaks its rules"""

    reason = "container"


class NotAContainerError(ContainerError):
    """There is no tilecodec container"""

    reason = "not-a-container"


class IncompleteContainerError(ContainerError):
    """The container was never finished"""

    reason = "incomplete"


class LimitError(ContainerError):
    """The container asks for more than the reader accepts"""

    reason = "limit"


class TileError(ContainerError):
    """A tile cannot be decoded"""

    reason = "tile"


class CorruptTileError(TileError):
    """A tile's bytes or symbols fail their check"""

    reason = "corrupt-tile"


class LostTileError(TileError):
    """A tile is absent"""

    reason = "lost-tile"


class TileLimitError(TileError, LimitError):
    """A tile asks for more than the reader accepts"""

    reason = "tile-limit"


class CompileWarning(UserWarning):
    """torch.compile was asked for and does not work on this machine; results are the same without it"""


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as plain data, for reports."""

    where: str
    """File, level, chunk or tile."""
    reason: str
    """Stable code, see ``formats/``."""
    message: str
    """For people: what was got, what was expected, where."""

    @classmethod
    def of(cls, error: TileCodecError) -> Problem:
        """What an error says."""
        return cls("" if error.where is None else str(error.where), error.reason, str(error))
