"""Stage a target: written beside its final name, moved there when whole, removed when not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tilecodec.errors import MissingFileError, StorageError, TargetExistsError, TileCodecError, UsageError
from tilecodec.files import replace_folder


@contextmanager
def staged(target: Path, *, overwrite: bool, folder: bool = False) -> Iterator[Path]:
    """Yield the path to write to, ``<target>.part-<pid>``; move it to ``target`` when the body ends well.

    Whatever ends the body early (an error, Ctrl-C), nothing is left of the part and an older target stays as it was.

    Args:
        target: the final path.
        overwrite: replace an existing target.
        folder: the target is a folder (a Zarr hierarchy) rather than a file.

    Raises:
        TargetExistsError: the target exists and is not to be overwritten.
        MissingFileError: the folder the target belongs in does not exist.
        UsageError: the target to overwrite is not of the kind that is written.
        StorageError: the operating system refused to write (disk full, no permission, ...).
    """
    check_target(target, overwrite=overwrite, folder=folder)
    part = target.with_name(f"{target.name}.part-{os.getpid()}")
    try:
        try:
            _remove(part)
            yield part
            if folder and target.is_dir():
                replace_folder(part, target)
            else:
                os.replace(part, target)
        finally:
            _remove(part)
    except TileCodecError:
        raise
    except OSError as error:
        raise StorageError("cannot write", got=error.strerror or str(error), where=str(target)) from error


def check_target(target: Path, *, overwrite: bool, folder: bool) -> None:
    """Raise what :func:`staged` raises before writing; touches nothing."""
    parent = target.parent
    try:
        parent_exists, parent_is_folder = parent.exists(), parent.is_dir()
        exists = os.path.lexists(target)
        other_kind = exists and target.is_dir() != folder
        foreign = exists and folder and not other_kind and not _is_zarr_or_empty(target)
    except OSError as error:
        raise StorageError("cannot look at the target", got=error.strerror, where=str(target)) from error
    if not parent_exists:
        raise MissingFileError("the target's folder does not exist", got=str(parent), where=str(target))
    if not parent_is_folder:
        raise StorageError("the target's parent is not a folder", got=str(parent), where=str(target))
    if exists and not overwrite:
        raise TargetExistsError(
            "the target exists", where=str(target), hint="To replace it: overwrite=True, or --overwrite."
        )
    if other_kind:
        got, expected = ("a file", "a folder") if folder else ("a folder", "a file")
        raise UsageError("the target to overwrite is of another kind", got=got, expected=expected, where=str(target))
    if foreign:
        raise UsageError(
            "the folder to overwrite holds something else than Zarr", expected="zarr.json in it", where=str(target)
        )


def _is_zarr_or_empty(path: Path) -> bool:
    names = {entry.name for entry in path.iterdir()}
    return not names or not names.isdisjoint({"zarr.json", ".zarray", ".zgroup"})


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
