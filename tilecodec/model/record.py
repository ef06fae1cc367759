"""What is remembered about a model file, in a small JSON file beside it: its hash, and where it came from.

A model is named by its sha256. Hashing gigabytes takes longer than loading them, so the hash is taken from the record
for as long as the file's size and time of change are the recorded ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tilecodec.errors import StorageError

SUFFIX: Final = ".json"
"""The record of ``model.safetensors`` is ``model.safetensors.json``."""
REMEMBER_BYTES: Final = 64 << 20
"""A file of this size or more gets a record when it is first read; a smaller one is hashed each time."""
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Record:
    """A model file as it was when it was hashed."""

    sha256: str
    """Hexadecimal."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change, nanoseconds since 1970."""
    source: dict[str, Any] = field(default_factory=dict)
    """Where the model came from, as JSON: what :mod:`tilecodec.models.convert` notes. Empty where nobody said."""


def record_path(file: Path) -> Path:
    """Where a model file's record lies."""
    return file.with_name(file.name + SUFFIX)


def read_record(file: Path) -> Record | None:
    """The record of a model file; None where there is none, or something else goes by its name."""
    try:
        data = json.loads(record_path(file).read_text(encoding="utf-8"))
        if data.pop("tilecodec") != _VERSION:
            return None
        record = Record(**data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    typed = isinstance(record.sha256, str) and isinstance(record.size, int) and isinstance(record.mtime_ns, int)
    return record if typed and isinstance(record.source, dict) else None


def write_record(file: Path, sha256: str, source: dict[str, Any]) -> Record:
    """Writes the record of a model file, atomically.

    Args:
        file: the model file, complete.
        sha256: its hash, hexadecimal.
        source: see :attr:`Record.source`.
    """
    stat = file.stat()
    record = Record(sha256, stat.st_size, stat.st_mtime_ns, source)
    path = record_path(file)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(json.dumps({"tilecodec": _VERSION, **asdict(record)}, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return record


def hash_file(file: Path) -> str:
    """The sha256 of a file's bytes, hexadecimal, read piece by piece.

    Raises:
        StorageError: the file changed meanwhile.
    """
    with file.open("rb") as stream:
        before = os.fstat(stream.fileno())
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        after = os.fstat(stream.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise StorageError("the file changed while it was read", where=file, hint="Try again once it is complete")
    return digest


def file_sha256(file: Path) -> str:
    """The sha256 of a model file, from its record or this process's memory where the file is as it was then.

    A record is brought up to date where only the file's time has changed (a copy). Where the content differs from the
    record, the record stays, for ``tilecodec models verify`` to tell, and the file is hashed.
    """
    stat = file.stat()
    key = (str(file.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key in _HASHED:
        return _HASHED[key]
    record = read_record(file)
    if record is not None and (record.size, record.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        return record.sha256
    sha256 = hash_file(file)
    _HASHED[key] = sha256
    worth_it = stat.st_size >= REMEMBER_BYTES if record is None else record.sha256 == sha256
    if worth_it:
        with contextlib.suppress(OSError):  # a folder that cannot be written to: the next process hashes again
            write_record(file, sha256, {} if record is None else record.source)
    return sha256


_HASHED: dict[tuple[str, int, int, int], str] = {}
"""What this process has hashed, by path, inode, size and time of change."""
