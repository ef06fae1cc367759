"""The pictures of a folder: which can be measured, which are cut, and which are left out and why."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilecodec.errors import (
    MissingFileError,
    Problem,
    SourceError,
    StorageError,
    TileCodecError,
    UnsupportedPixelsError,
)
from tilecodec.evaluation.anchors import Pixels
from tilecodec.metrics import MIN_SIDE
from tilecodec.source import open_source


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture that can be measured, or the middle of one that is larger than asked for."""

    domain: str
    """The subfolder it lies in; the folder's own name for pictures beside the subfolders."""
    name: str
    """Path within that subfolder, with forward slashes."""
    path: str
    height: int
    """Rows that are measured."""
    width: int
    """Columns that are measured."""
    whole_height: int
    """Rows of the file's picture."""
    whole_width: int

    @property
    def cut(self) -> bool:
        """Whether only the middle is measured."""
        return (self.height, self.width) != (self.whole_height, self.whole_width)

    @property
    def area(self) -> int:
        """Pixels that are measured."""
        return self.height * self.width

    def read(self) -> Pixels:
        """(height, width, 3) uint8, RGB, C-contiguous.

        Raises:
            SourceError: damaged, or no longer the picture it was.
            StorageError: the file cannot be read.
        """
        with open_source(self.path) as source:
            if (source.height, source.width) != (self.whole_height, self.whole_width):
                got = f"{source.width} x {source.height} px"
                expected = f"{self.whole_width} x {self.whole_height} px"
                raise SourceError("the picture has changed", got=got, expected=expected, where=self.path)
            y, x = (self.whole_height - self.height) // 2, (self.whole_width - self.width) // 2
            return source.read(y, y + self.height, x, x + self.width)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        names = ("domain", "name", "height", "width", "whole_height", "whole_width")
        return {name: getattr(self, name) for name in names} | {"cut": self.cut}


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a folder holds."""

    pictures: tuple[Picture, ...]
    skipped: tuple[Problem, ...]
    """Files that are no pictures, damaged ones, and pictures too small for MS-SSIM."""


def find_pictures(folder: str | os.PathLike[str], max_pixels: int, *, without: Path | None = None) -> Found:
    """Opens every file under a folder, and every Zarr, as a picture. Names that begin with a dot are passed over.

    Args:
        folder: its subfolders are domains.
        max_pixels: of a larger picture the middle is taken, in its proportions.
        without: a folder that is passed over, such as an earlier report's.

    Raises:
        MissingFileError: there is no such folder.
        SourceError: it is no folder, it is empty, or nothing in it can be measured.
        StorageError: it cannot be listed.
    """
    root = Path(folder)
    if not root.exists():
        raise MissingFileError("there is no such folder", got=str(root), expected="a folder of pictures")
    if not root.is_dir() or _is_zarr(root):
        raise SourceError("not a folder of pictures", expected="a folder with pictures in it", where=str(root))
    top = root.resolve().name or "pictures"
    try:
        files = list(_files(root, frozenset() if without is None else frozenset({os.path.realpath(without)})))
    except OSError as error:
        raise StorageError("the folder cannot be listed", got=error.strerror, where=error.filename) from error
    if not files:
        raise SourceError("the folder is empty", got="no files", expected="pictures", where=str(root))
    pictures, skipped = [], []
    for path in files:
        parts = path.relative_to(root).parts
        domain, name = (top, parts[0]) if len(parts) == 1 else (parts[0], "/".join(parts[1:]))
        try:
            pictures.append(_looked_at(path, domain, name, max_pixels))
        except TileCodecError as error:
            skipped.append(Problem.of(error))
    if not pictures:
        raise SourceError(
            "no picture in the folder can be measured",
            got=f"{len(files)} files, the first: {skipped[0].message}",
            expected=f"pictures of at least {MIN_SIDE} x {MIN_SIDE} px",
            where=str(root),
        )
    return Found(pictures=tuple(pictures), skipped=tuple(skipped))


def _is_zarr(path: Path) -> bool:
    return any((path / mark).is_file() for mark in ("zarr.json", ".zarray", ".zgroup"))


def _files(folder: Path, closed: frozenset[str]) -> Iterator[Path]:
    """Files and Zarr folders under a folder, sorted; links are followed, but not into one above or in ``closed``."""
    place = os.path.realpath(folder)
    if place in closed:
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not _is_zarr(path):
            yield from _files(path, closed | {place})
        else:
            yield path


def _looked_at(path: Path, domain: str, name: str, max_pixels: int) -> Picture:
    with open_source(path) as source:
        whole = source.height, source.width
    if min(whole) < MIN_SIDE:
        got = f"{whole[1]} x {whole[0]} px"
        expected = f"both sides at least {MIN_SIDE} px, for MS-SSIM"
        raise UnsupportedPixelsError("the picture is too small", got=got, expected=expected, where=str(path))
    height, width = _cut_to(*whole, max_pixels)
    return Picture(
        domain=domain,
        name=name,
        path=str(path),
        height=height,
        width=width,
        whole_height=whole[0],
        whole_width=whole[1],
    )


def _cut_to(height: int, width: int, max_pixels: int) -> tuple[int, int]:
    """Sides of at most so many pixels, in proportion, none under what MS-SSIM needs."""
    if height * width <= max_pixels:
        return height, width
    scale = math.sqrt(max_pixels / (height * width))
    short = max(MIN_SIDE, int(min(height, width) * scale))
    long = min(max(height, width), max_pixels // short)
    return (short, long) if height <= width else (long, short)
