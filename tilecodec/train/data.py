"""Random training crops from one memory-mapped store of decoded pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

STORE_PIXELS = "pixels.u8"
STORE_INDEX = "index.json"


@dataclass(frozen=True, slots=True)
class Picture:
    """Where one picture lies in the store."""

    domain: str
    offset_bytes: int
    height: int
    width: int


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
    pictures: list[tuple[str, int, int, int]] = []
    offset = 0
    with (store / STORE_PIXELS).open("wb") as out:
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes):
            pixels = imagecodecs.imread(path)
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
                continue
            out.write(np.ascontiguousarray(pixels).tobytes())
            pictures.append((path.relative_to(folder).parts[0], offset, pixels.shape[0], pixels.shape[1]))
            offset += pixels.size
    (store / STORE_INDEX).write_text(json.dumps(pictures))
    return len(pictures)


class CropSampler:
    """Draws random crops, turned and mirrored, with given weights per domain and by area within a domain."""

    def __init__(self, store: Path, *, crop: int, weights: Mapping[str, float], seed: int) -> None:
        entries = [Picture(*row) for row in json.loads((store / STORE_INDEX).read_text())]
        self._pictures = [p for p in entries if min(p.height, p.width) >= crop and weights.get(p.domain, 0) > 0]
        if not self._pictures:
            raise ValueError(f"no picture of at least {crop} px in {store} for the domains {sorted(weights)}")
        area = np.array([p.height * p.width for p in self._pictures], dtype=np.float64)
        chance = np.zeros(len(area))
        for domain, weight in weights.items():
            of_domain = np.array([p.domain == domain for p in self._pictures])
            if of_domain.any():
                chance[of_domain] = weight * area[of_domain] / area[of_domain].sum()
        self._chance = chance / chance.sum()
        self._pixels = np.memmap(store / STORE_PIXELS, dtype=np.uint8, mode="r")
        self._crop = crop
        self.rng = np.random.default_rng(seed)

    def batch(self, count: int) -> Tensor:
        """float32 (count, 3, crop, crop) in [-1, 1]."""
        crop, out = self._crop, []
        for index in self.rng.choice(len(self._pictures), size=count, p=self._chance):
            p = self._pictures[index]
            top = int(self.rng.integers(p.height - crop + 1))
            left = int(self.rng.integers(p.width - crop + 1))
            view = self._pixels[p.offset_bytes : p.offset_bytes + p.height * p.width * 3]
            tile = view.reshape(p.height, p.width, 3)[top : top + crop, left : left + crop]
            tile = np.rot90(tile, int(self.rng.integers(4)))
            if self.rng.integers(2):
                tile = tile[:, ::-1]
            out.append(torch.from_numpy(np.ascontiguousarray(tile.transpose(2, 0, 1))))
        return torch.stack(out).float() / 127.5 - 1
