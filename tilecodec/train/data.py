"""Random training crops from one memory-mapped store of decoded pictures, and what every source of crops offers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilecodec.errors import DatasetError

STORE_PIXELS = "pixels.u8"
STORE_INDEX = "index.json"


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Crops for one step."""

    pixels: Tensor
    """float32 (B, 3, crop, crop) in [-1, 1]."""
    names: tuple[str, ...]
    """Of the pictures they were taken from."""


class Sampler(Protocol):
    """Where a run takes its crops from."""

    def draw(self, step: int, count: int) -> Batch:
        """The batch of a step; steps are asked for in order."""

    def extra(self, count: int) -> Tensor:
        """Further crops, float32 (count, 3, crop, crop), always the same; later batches do not depend on it."""

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs, besides the step, to go on with the batches that would have come."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`."""

    def names(self) -> list[str]:
        """Names of all pictures."""

    def skipped(self) -> dict[str, str]:
        """Pictures that could not be used so far, and why."""

    def close(self) -> None:
        """Ends threads and closes files."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Where one picture lies in the store."""

    domain: str
    offset_bytes: int
    height: int
    width: int
    name: str = ""


def build_store(folder: Path, store: Path) -> int:
    """Decodes every picture under ``folder`` once into ``store``; the first folder level names the domain.

    Args:
        folder: pictures as ``folder/<domain>/**/*.(jxl|png|jpg|jpeg|webp|tif|tiff)``, RGB uint8.
        store: a folder to be made.

    Returns:
        The number of pictures stored.
    """
    import imagecodecs

    store.mkdir(parents=True, exist_ok=True)
    suffixes = {".jxl", ".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"}
    pictures: list[tuple[str, int, int, int, str]] = []
    offset = 0
    with (store / STORE_PIXELS).open("wb") as out:
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes):
            pixels = imagecodecs.imread(path)
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
                continue
            out.write(np.ascontiguousarray(pixels).tobytes())
            relative = path.relative_to(folder)
            name = Path(*relative.parts[1:]).as_posix()
            pictures.append((relative.parts[0], offset, pixels.shape[0], pixels.shape[1], name))
            offset += pixels.size
    (store / STORE_INDEX).write_text(json.dumps(pictures))
    return len(pictures)


class CropSampler:
    """Draws random crops, turned and mirrored, with given weights per domain and by area within a domain."""

    def __init__(self, store: Path, *, crop: int, weights: Mapping[str, float], seed: int) -> None:
        entries = [Picture(*row) for row in json.loads((store / STORE_INDEX).read_text())]
        self._pictures = [p for p in entries if min(p.height, p.width) >= crop and weights.get(p.domain, 0) > 0]
        if not self._pictures:
            raise DatasetError(
                "no picture to take a crop from",
                got=f"{len(entries)} pictures of the domains {sorted({p.domain for p in entries})}",
                expected=f"at least {crop} x {crop} px, of {sorted(weights)}",
                where=store,
            )
        area = np.array([p.height * p.width for p in self._pictures], dtype=np.float64)
        chance = np.zeros(len(area))
        for domain, weight in weights.items():
            of_domain = np.array([p.domain == domain for p in self._pictures])
            if of_domain.any():
                chance[of_domain] = weight * area[of_domain] / area[of_domain].sum()
        self._chance = chance / chance.sum()
        self._pixels = np.memmap(store / STORE_PIXELS, dtype=np.uint8, mode="r")
        self._crop = crop
        self._seed = seed
        self.rng = np.random.default_rng(seed)

    def batch(self, count: int) -> Tensor:
        """float32 (count, 3, crop, crop) in [-1, 1]."""
        return self._draw(self.rng, count).pixels

    def draw(self, step: int, count: int) -> Batch:
        """The next batch; see :class:`Sampler`."""
        return self._draw(self.rng, count)

    def extra(self, count: int) -> Tensor:
        """See :class:`Sampler`."""
        return self._draw(np.random.default_rng([self._seed, 1]), count).pixels

    def state(self) -> dict[str, Any]:
        """The generator's state."""
        return dict(self.rng.bit_generator.state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        self.rng.bit_generator.state = dict(state)

    def names(self) -> list[str]:
        """Names of all pictures."""
        return [p.name for p in self._pictures]

    def skipped(self) -> dict[str, str]:
        """None: what could not be read is not in the store."""
        return {}

    def close(self) -> None:
        """Nothing is held but the memory map."""

    def _draw(self, rng: np.random.Generator, count: int) -> Batch:
        crop, out, names = self._crop, [], []
        for index in rng.choice(len(self._pictures), size=count, p=self._chance):
            p = self._pictures[index]
            top = int(rng.integers(p.height - crop + 1))
            left = int(rng.integers(p.width - crop + 1))
            view = self._pixels[p.offset_bytes : p.offset_bytes + p.height * p.width * 3]
            tile = view.reshape(p.height, p.width, 3)[top : top + crop, left : left + crop]
            tile = np.rot90(tile, int(rng.integers(4)))
            if rng.integers(2):
                tile = tile[:, ::-1]
            out.append(as_tensor(tile))
            names.append(p.name)
        return Batch(as_floats(out), tuple(names))


def as_tensor(tile: NDArray[np.uint8]) -> Tensor:
    """(h, w, 3) uint8 as a tensor (3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(tile.transpose(2, 0, 1)))


def as_floats(tiles: Sequence[Tensor]) -> Tensor:
    """uint8 (3, h, w) each as float32 (B, 3, h, w) in [-1, 1]."""
    return torch.stack(list(tiles)).float() / 127.5 - 1
