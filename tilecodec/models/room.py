"""Whether there is enough memory, and room on the disk, before hours of download or minutes of work begin."""

from __future__ import annotations

import shutil
from pathlib import Path

from tilecodec.errors import NotEnoughMemoryError, StorageError

GIB = 1 << 30


def check_memory(needed: int, available: int | None, purpose: str) -> None:
    """Refuses what would not fit.

    Args:
        needed: bytes.
        available: bytes; None where the platform does not tell, which is taken as enough.
        purpose: what for, in words that follow "to".

    Raises:
        NotEnoughMemoryError: there is less than needed.
    """
    if available is not None and available < needed:
        raise NotEnoughMemoryError(
            f"not enough memory to {purpose}",
            got=f"{available / GIB:.1f} GiB available",
            expected=f"{needed / GIB:.1f} GiB",
            where="this machine's memory",
            hint="Close other programs, or do it on a larger machine and copy the result",
        )


def check_disk(folder: Path, needed: int, purpose: str) -> None:
    """Refuses to begin what would fill the disk.

    Args:
        folder: where it is to be written; need not exist yet.
        needed: bytes.
        purpose: what for, in words that follow "to".

    Raises:
        StorageError: there is less than needed.
    """
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise StorageError(
            f"not enough room on the disk to {purpose}",
            got=f"{free / GIB:.1f} GiB free",
            expected=f"{needed / GIB:.1f} GiB",
            where=there,
        )
