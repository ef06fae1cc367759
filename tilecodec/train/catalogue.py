"""Finds the pictures of a recipe and their sizes, and tells which cannot be used and why."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tilecodec.errors import DatasetError, MissingFileError, TileCodecError
from tilecodec.source import open_source
from tilecodec.source.headers import parse_header, picture_kind
from tilecodec.source.zarr import MARKS
from tilecodec.train.recipe import DomainRecipe

SUFFIXES: Final = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".webp", ".jxl", ".avif", ".bmp", ".jp2", ".j2k", ".jpf"),
        *(".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn", ".gtiff"),
    )
)
"""Files in a folder that count as pictures; one that is named itself may have any suffix."""
HEAD_BYTES: Final = 1 << 18
"""Of a file, in which most headers lie whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One usable picture."""

    domain: str
    name: str
    """Path under the folder that was named in the recipe, with forward slashes."""
    path: Path
    height: int
    width: int
    whole: bool
    """Whether it can only be decoded in one piece."""


@dataclass(slots=True)
class Catalogue:
    """The pictures of a recipe."""

    pictures: list[Found]
    small: list[str] = field(default_factory=list)
    """Pictures smaller than a crop: path and size."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Path of each picture that could not be read, and why."""

    def crops(self, crop: int) -> int:
        """Crops that fit side by side into all pictures."""
        return sum((p.height // crop) * (p.width // crop) for p in self.pictures)


def find_pictures(domains: Mapping[str, DomainRecipe], *, crop: int, workers: int = 8) -> Catalogue:
    """Looks at every picture of a recipe: only headers are read.

    Args:
        domains: those with a weight of 0 are left out.
        crop: pictures with a side shorter than this are told apart.
        workers: threads.

    Raises:
        MissingFileError: a path of the recipe is not there, or a pattern fits nothing.
        DatasetError: a domain, or all of them together, has no picture to take a crop from.
    """
    found = Catalogue([])
    for domain, recipe in domains.items():
        if recipe.weight == 0:
            continue
        candidates = list(_candidates(domain, recipe.paths))
        before = len(found.pictures)
        small, unreadable = len(found.small), len(found.unreadable)
        with ThreadPoolExecutor(workers) as pool:
            for (name, path), size in zip(candidates, pool.map(lambda c: _size(c[1]), candidates), strict=True):
                if isinstance(size, str):
                    found.unreadable[str(path)] = size
                    continue
                height, width, whole = size
                if min(height, width) < crop:
                    found.small.append(f"{path} ({width} x {height} px)")
                    continue
                found.pictures.append(
                    Found(domain=domain, name=name, path=path, height=height, width=width, whole=whole)
                )
        if len(found.pictures) == before:
            small, unreadable = len(found.small) - small, len(found.unreadable) - unreadable
            example = [*list(found.unreadable.values())[-1:], *found.small[-1:]]
            raise DatasetError(
                "no picture to take a crop from",
                got=f"{len(candidates)} files, {unreadable} unreadable, {small} too small"
                + (f", e.g. {example[0]}" if example else ""),
                expected=f"pictures of at least {crop} x {crop} px",
                where=f"domain {domain}",
            )
    return found


def _candidates(domain: str, paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Names and paths of everything that may be a picture, in an order that does not depend on the machine."""
    for path in paths:
        text = str(path)
        if path.exists():
            yield from _below(path)
        elif glob.has_magic(text):
            matches = sorted(Path(match) for match in glob.glob(text, recursive=True))  # noqa: PTH207  # any root
            if not matches:
                raise MissingFileError("a pattern that fits nothing", got=text, where=f"domain {domain}")
            for match in matches:
                yield from _below(match)
        else:
            raise MissingFileError("there is no such file or folder", got=text, where=f"domain {domain}")


def _below(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.is_dir() or _is_zarr(path):
        yield path.name, path
        return
    for child in _walk(path):
        yield child.relative_to(path).as_posix(), child


def _walk(folder: Path) -> Iterator[Path]:
    for child in sorted(folder.iterdir()):
        if child.name.startswith("."):
            continue
        if child.is_dir():
            if _is_zarr(child):
                yield child
            else:
                yield from _walk(child)
        elif child.suffix.lower() in SUFFIXES:
            yield child


def _is_zarr(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in MARKS)


def _size(path: Path) -> tuple[int, int, bool] | str:
    """Height, width, and whether it is decoded in one piece; or why it cannot be read."""
    try:
        if not path.is_dir():
            with path.open("rb") as file:
                data = file.read(HEAD_BYTES)
                kind = picture_kind(data[:32])
                if kind is not None:
                    try:
                        header = parse_header(kind, data, str(path))
                    except TileCodecError:
                        header = parse_header(kind, data + file.read(), str(path))
                    return header.height, header.width, True
        with open_source(path) as source:
            return source.height, source.width, False
    except TileCodecError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
