"""Makes a store of decoded pictures from those of a recipe, for the fastest data on a CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from tilecodec.errors import DatasetError, StorageError, TileCodecError
from tilecodec.source import open_source
from tilecodec.train.catalogue import find_pictures
from tilecodec.train.data import STORE_INDEX, STORE_PIXELS
from tilecodec.train.recipe import DataRecipe

ROWS: Final = 1024
"""Rows that are decoded at a time."""
LIMIT_BYTES: Final = 64 << 30
"""Largest store: past that, crops are better read from the pictures."""


def store_pictures(recipe: DataRecipe, store: Path, *, crop: int) -> dict[str, str]:
    """Decodes every picture of a recipe into ``store``, which then is read by ``CropSampler``.

    Args:
        recipe: which pictures.
        store: a folder to be made; its index is written last, so a store that was not finished is not taken for one.
        crop: pictures with a side shorter than this are left out.

    Returns:
        Path of each picture that could not be read, and why.

    Raises:
        DatasetError: no pictures, or more than :data:`LIMIT_BYTES`.
        StorageError: the store cannot be written.
    """
    catalogue = find_pictures(recipe.domains, crop=crop)
    total = sum(3 * p.height * p.width for p in catalogue.pictures)
    if total > LIMIT_BYTES:
        raise DatasetError(
            "too many pixels for a store",
            got=f"{total >> 30} GiB",
            expected=f"at most {LIMIT_BYTES >> 30} GiB",
            where="store",
            hint="Leave store out: crops are read from the pictures",
        )
    skipped = dict(catalogue.unreadable)
    index: list[tuple[str, int, int, int, str]] = []
    try:
        store.mkdir(parents=True, exist_ok=True)
        with (store / STORE_PIXELS).open("wb") as out:
            for picture in catalogue.pictures:
                offset = out.tell()
                try:
                    with open_source(picture.path) as source:
                        for y in range(0, picture.height, ROWS):
                            rows = source.read(y, min(y + ROWS, picture.height), 0, picture.width)
                            out.write(rows.data)
                except TileCodecError as error:
                    skipped[str(picture.path)] = str(error)
                    out.seek(offset)
                    out.truncate()
                    continue
                index.append((picture.domain, offset, picture.height, picture.width, picture.name))
        partial = store / (STORE_INDEX + ".part")
        partial.write_text(json.dumps(index))
        os.replace(partial, store / STORE_INDEX)
    except OSError as error:
        raise StorageError("the store cannot be written", got=error.strerror, where=str(store)) from error
    return skipped
