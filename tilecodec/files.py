"""Folders that are put in place whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def replace_folder(new: Path, old: Path) -> None:
    """Puts a finished folder in the place of an older one, which comes back if that fails.

    Args:
        new: the finished folder, on the same disk.
        old: the older one.
    """
    trash = old.with_name(f".{old.name}.old-{os.getpid()}")
    old.rename(trash)
    try:
        new.rename(old)
    except BaseException:
        trash.rename(old)
        raise
    shutil.rmtree(trash, ignore_errors=True)
