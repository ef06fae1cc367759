"""Pictures from which the integer entropy model learns the ranges of its values.

The bundled recipe draws a landscape and takes six windows of it, so that a conversion needs no file and gives the same
model everywhere: natural ones, one of half the size, one with strong colours, a negative, and one in black and white.
Values beyond the ranges are limited alike by writer and reader: a picture of another kind costs a little rate, never
a wrong symbol.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilecodec.entropy.quantise import CalibrationTile
from tilecodec.errors import MissingFileError, SourceError
from tilecodec.model.ditic import DiTIC
from tilecodec.scene import Scene
from tilecodec.source import open_source

RECIPE: Final = "scene-1"
"""Name of the bundled recipe: another set of pictures gets another name."""
WINDOW: Final = 512
"""Side of a window, pixels, or the least multiple of the model's stride above it."""
FROM_FOLDER: Final = 16
"""Pictures taken from a folder, the first by name."""


def drawn_windows(side: int) -> Iterator[NDArray[np.uint8]]:
    """The bundled recipe: six windows, each (side, side, 3) uint8."""
    whole = np.concatenate(list(Scene(2 * side).bands()))
    first, second, third, fourth = (whole[y : y + side, x : x + side] for y in (0, side) for x in (0, side))
    yield first
    yield fourth
    yield whole.reshape(side, 2, side, 2, 3).mean((1, 3)).astype(np.uint8)
    yield np.clip((second[..., [2, 0, 1]].astype(np.float32) - 96) * 2.5 + 128, 0, 255).astype(np.uint8)
    yield 255 - third
    yield np.where(first.mean(2, keepdims=True) > np.median(first), 255, 0).astype(np.uint8).repeat(3, axis=2)


def folder_windows(folder: Path, side: int, stride: int) -> Iterator[NDArray[np.uint8]]:
    """Windows from the middles of a folder's pictures, uint8 (h, w, 3), sides multiples of ``stride`` up to ``side``.

    Raises:
        MissingFileError: no such folder.
        SourceError: it holds no picture, or one that is smaller than ``stride``.
    """
    if not folder.is_dir():
        raise MissingFileError("there is no such folder of pictures", where=folder)
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))[:FROM_FOLDER]
    if not files:
        raise SourceError("the folder holds no pictures", expected="some for calibration", where=folder)
    for file in files:
        with open_source(file) as source:
            height, width = (min(n, side) // stride * stride for n in (source.height, source.width))
            if not height or not width:
                got, expected = f"{source.width} x {source.height}", f"at least {stride} pixels a side"
                raise SourceError("a picture is too small", got=got, expected=expected, where=file)
            y, x = (source.height - height) // 2, (source.width - width) // 2
            yield np.asarray(source.read(y, y + height, x, x + width))


def calibration_tiles(network: DiTIC, pictures: Path | None = None) -> list[CalibrationTile]:
    """Codes of the windows, on the CPU.

    Args:
        network: float32, not folded, of one rate point; only its analysis is used.
        pictures: a folder; the bundled recipe unless given.

    Raises:
        MissingFileError, SourceError: see :func:`folder_windows`.
    """
    stride = network.config.z_stride
    side = -(-WINDOW // stride) * stride
    windows = drawn_windows(side) if pictures is None else folder_windows(pictures, side, stride)
    tiles = []
    with torch.inference_mode():
        for window in windows:
            y = network.analyse(_pixels(window))
            tiles.append(CalibrationTile(y[0], network.codec.h_a(y)[0]))
    return tiles


def _pixels(window: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(window)).permute(2, 0, 1)[None].float() / 127.5 - 1
