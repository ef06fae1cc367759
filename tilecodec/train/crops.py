"""Random crops straight from pictures of any kind and size: only the parts that a crop needs are read.

The batch of a step is a function of the seed and the step alone, so threads may prepare batches in any order and a run
that resumes sees the crops it would have seen.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tilecodec.errors import DatasetError, TileCodecError
from tilecodec.train.catalogue import Catalogue, Found, find_pictures
from tilecodec.train.data import Batch, Sampler, as_floats, as_tensor
from tilecodec.train.pictures import OpenPictures
from tilecodec.train.recipe import DataRecipe

TRIES: Final = 64
"""Crops drawn in place of one that cannot be read, before the pictures are given up."""
FLAT_TRIES: Final = 8
"""Crops drawn in place of one that is too flat, before it is taken as it is."""
PROBES: Final = 64
"""Crops looked at before training, at most four batches of 16."""
FLAT: Final = 1.0
"""Standard deviation, in grey levels, under which a crop has nothing to teach."""
FLAT_SHARE: Final = 0.95
"""Share of the looked-at crops which must not be as flat as that."""
_BATCH, _POOL, _EXTRA = range(3)
"""What a generator is for, as part of its seed."""


class PictureSampler:
    """Crops from the pictures of a recipe; see :class:`tilecodec.train.data.Sampler`.

    Args:
        recipe: which pictures, and what is done to the crops.
        crop: side of a crop, pixels.
        seed: of all draws.

    Raises:
        DatasetError: too few pictures, or nearly all of them flat.
        MissingFileError: a path of the recipe is not there.
    """

    def __init__(self, recipe: DataRecipe, *, crop: int, seed: int) -> None:
        self.recipe, self._crop, self._seed = recipe, crop, seed
        self.catalogue = find_pictures(recipe.domains, crop=crop)
        self._check_size()
        self._chance = _chances(self.catalogue, {name: d.weight for name, d in recipe.domains.items()})
        self._open = OpenPictures(recipe.open_megabytes << 20)
        self._lock = threading.Lock()
        self._skipped = dict(self.catalogue.unreadable)
        self._threads = ThreadPoolExecutor(recipe.workers, "crops") if recipe.workers else None
        self._ready: deque[tuple[int, int, Future[Batch]]] = deque()
        try:
            check_flatness(self)
        except BaseException:
            self.close()
            raise

    def draw(self, step: int, count: int) -> Batch:
        """The batch of a step; those of the next steps are begun."""
        if self._threads is None:
            return self._batch([_BATCH, step], step // self.recipe.pool_steps, count)
        if self._ready and self._ready[0][:2] != (step, count):
            while self._ready:
                self._ready.popleft()[2].cancel()
        first = self._ready[-1][0] + 1 if self._ready else step
        for ahead in range(first, step + self.recipe.ahead + 1):
            job = self._threads.submit(self._batch, [_BATCH, ahead], ahead // self.recipe.pool_steps, count)
            self._ready.append((ahead, count, job))
        return self._ready.popleft()[2].result()

    def extra(self, count: int) -> Tensor:
        """Further crops, always the same, of all pictures."""
        return self._batch([_EXTRA], None, count).pixels

    def state(self) -> dict[str, Any]:
        """Nothing: batches depend on the step alone."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def names(self) -> list[str]:
        """Names of all pictures."""
        return [p.name for p in self.catalogue.pictures]

    def skipped(self) -> dict[str, str]:
        """Path of each picture that could not be read so far, whole or in part, and why."""
        with self._lock:
            return dict(self._skipped)

    def close(self) -> None:
        """Ends the threads and closes the pictures."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self._open.close()

    def _generator(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *purpose])

    def _pool(self, number: int) -> NDArray[np.int64] | None:
        """Pictures that the steps of a pool choose from, each as often as it was drawn; None: all."""
        if len(self.catalogue.pictures) <= self.recipe.pool:
            return None
        return self._generator(_POOL, number).choice(len(self._chance), size=self.recipe.pool, p=self._chance)

    def _batch(self, purpose: list[int], pool: int | None, count: int) -> Batch:
        rng = self._generator(*purpose)
        chosen = None if pool is None else self._pool(pool)
        tiles, names = [], []
        for _ in range(count):
            picture, tile = self._one(rng, chosen)
            tiles.append(as_tensor(tile))
            names.append(picture.name)
        return Batch(as_floats(tiles), tuple(names))

    def _one(self, rng: np.random.Generator, chosen: NDArray[np.int64] | None) -> tuple[Found, NDArray[np.uint8]]:
        flat = 0
        for _ in range(TRIES + FLAT_TRIES):
            index = rng.choice(chosen) if chosen is not None else rng.choice(len(self._chance), p=self._chance)
            picture = self.catalogue.pictures[int(index)]
            tile = self._tile(rng, picture)
            if tile is None:
                continue
            if flat < FLAT_TRIES and self.recipe.skip_flat and float(tile.std()) < self.recipe.skip_flat:
                flat += 1
                continue
            return picture, tile
        if chosen is not None:
            return self._one(rng, None)  # this pool may be a bad one
        raise DatasetError(
            f"{TRIES} crops in a row could not be read",
            got=next(reversed(self.skipped().values()), "no error"),
            expected="pictures that can be read",
            where=f"{len(self.skipped())} of {len(self.catalogue.pictures)} pictures",
        )

    def _tile(self, rng: np.random.Generator, picture: Found) -> NDArray[np.uint8] | None:
        """One crop, turned and mirrored; None if it cannot be read. Takes the same random numbers either way."""
        recipe, crop = self.recipe, self._crop
        factor = 1
        if recipe.downscale and rng.random() < recipe.downscale:
            most = min(recipe.downscale_most, min(picture.height, picture.width) // crop)
            factor = int(rng.integers(2, most + 1)) if most >= 2 else 1
        side = crop * factor
        top = int(rng.integers(picture.height - side + 1))
        left = int(rng.integers(picture.width - side + 1))
        turns = int(rng.integers(4)) if recipe.turns else 0
        mirrored = bool(rng.integers(2)) if recipe.flips else False
        try:
            with self._open.use(picture) as source:
                tile = source.read(top, top + side, left, left + side)
        except TileCodecError as error:
            with self._lock:
                self._skipped.setdefault(str(picture.path), str(error))
            return None
        if factor > 1:
            sums = tile.reshape(crop, factor, crop, factor, 3).sum((1, 3), dtype=np.uint32)
            tile = ((sums + factor * factor // 2) // (factor * factor)).astype(np.uint8)
        tile = np.rot90(tile, turns)
        return tile[:, ::-1] if mirrored else tile

    def _check_size(self) -> None:
        crops = self.catalogue.crops(self._crop)
        if crops < self.recipe.least_crops:
            told = f"; {len(self.catalogue.small)} pictures are smaller than a crop" if self.catalogue.small else ""
            raise DatasetError(
                "too few pictures to learn from",
                got=f"{crops} crops of {self._crop} px side by side in {len(self.catalogue.pictures)} pictures{told}",
                expected=f"at least {self.recipe.least_crops}",
                where="data",
                hint="Add pictures, lower crop, or lower data.least_crops if you mean it",
            )


def check_flatness(sampler: Sampler) -> None:
    """Refuses pictures that have nothing to teach.

    Raises:
        DatasetError: nearly all crops are of one colour.
    """
    levels = (sampler.extra(PROBES) + 1) * 127.5
    flat = int((levels.reshape(PROBES, -1).std(1) < FLAT).sum())
    if flat > FLAT_SHARE * PROBES:
        raise DatasetError(
            "the pictures are too flat to learn from",
            got=f"{flat} of {PROBES} crops with a standard deviation under {FLAT:g} grey level",
            expected=f"at most {FLAT_SHARE:.0%} of them",
            where="data",
            hint="Are these masks or nodata? data.skip_flat draws flat crops anew, if there are others",
        )


def _chances(catalogue: Catalogue, weights: Mapping[str, float]) -> NDArray[np.float64]:
    """Chance of each picture: domains by weight, pictures of a domain by area."""
    area = np.array([p.height * p.width for p in catalogue.pictures], np.float64)
    domains = np.array([p.domain for p in catalogue.pictures])
    chance = np.zeros(len(area))
    for domain, weight in weights.items():
        mine = domains == domain
        if mine.any():
            chance[mine] = weight * area[mine] / area[mine].sum()
    total: NDArray[np.float64] = chance / chance.sum()
    return total
