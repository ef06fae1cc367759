"""Decoded windows before blending: whole ones, and such parts of them as were asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tilecodec.entropy.model import CodecModel, LatentWindow
from tilecodec.tiles import Window

WORTH: Final = 0.75
"""A part of a window that takes more than this of the whole one's work is not worth decoding alone."""


@dataclass(frozen=True, eq=False, slots=True)
class DecodedWindow:
    """A tile's window, or a part of it."""

    pixels: NDArray[np.uint8]
    """(height, width, 3) of ``place``."""
    place: Window
    """In the padded picture, pixels."""
    prediction: Tensor | None = None
    """Where ``place`` is a part: what the networks found for the whole, see :meth:`CodecModel.predict`."""

    def covers(self, part: Window) -> bool:
        """Whether these pixels are here, given in the padded picture."""
        return self.place.covers(part)

    def cut(self, part: Window) -> NDArray[np.uint8]:
        """A view of pixels that are here, given in the padded picture."""
        own = self.place
        return self.pixels[part.y0 - own.y0 : part.y1 - own.y0, part.x0 - own.x0 : part.x1 - own.x0]

    def size_bytes(self) -> int:
        """What it takes in a cache."""
        return self.pixels.nbytes + (0 if self.prediction is None else self.prediction.nbytes)


def decode_window(
    model: CodecModel, latent: LatentWindow, quality: float, place: Window, part: Window, before: DecodedWindow | None
) -> DecodedWindow:
    """Decodes a window, or only the part asked for, where that is much less work and the first time.

    The same pixels either way. What is asked for a second time may well be asked for a third: it is decoded whole.

    Args:
        model: the container's.
        latent: of the window.
        quality: the container's.
        place: the window, in the padded picture, pixels.
        part: what is needed of it.
        before: a part of the same window that was decoded before.
    """
    if before is not None and before.covers(part):  # decoded since it was asked for
        return before
    prediction = None if before is None else before.prediction
    if prediction is None:
        shifted = _within(place, part)
        if not model.renders_parts or model.part_cost(shifted, place.height, place.width) > WORTH:
            return DecodedWindow(model.reconstruct(latent, quality), place)
        prediction = model.predict(latent, quality)
        return DecodedWindow(model.render(latent, prediction, shifted), part, prediction)
    return DecodedWindow(model.render(latent, prediction, _within(place, place)), place)


def _within(place: Window, part: Window) -> Window:
    """A part of the picture as a part of a window."""
    return Window(part.y0 - place.y0, part.y1 - place.y0, part.x0 - place.x0, part.x1 - place.x0)
