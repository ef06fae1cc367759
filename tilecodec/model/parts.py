"""Which values a part of a window is made of.

The transformer looks at the whole window; before and after it, the branches and the light autoencoder look a few
positions around. So a part of a window's pixels takes the whole of its prediction, and little more than the part of all
else. Each value comes from the same sums as in one piece.

    code ─► a branch but for its last layer ─► widened ─► its last layer ─► latent
    latent ─► the autoencoder's layers at the latent's stride ─► inner ─► the others ─► pixels

Each arrow takes a part that the one before has made, without what only its neighbourhood was for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tilecodec.model.config import DiTICConfig
from tilecodec.tiles import Window

Part = tuple[slice, slice]
"""Rows and columns."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a part of a window is made of, and where it lies in what comes out."""

    code: Part
    """Of the window's code."""
    widened: Part
    """Of the latents that the code's part makes, those that the branches' last layer takes."""
    unwidened: Part
    """Of its results, those needed."""
    latent: Part
    """The same, in the window's latent."""
    inner: Part
    """Of what the autoencoder's layers at the latent's stride make of these, what the others take."""
    pixels: Part
    """Of the pixels that those make, those asked for."""

    @property
    def positions(self) -> int:
        """Latents of which pixels are made."""
        rows, cols = self.inner
        return int((rows.stop - rows.start) * (cols.stop - cols.start))


def needs(config: DiTICConfig, part: Window, height: int, width: int) -> Needs:
    """What a part of a window is made of, for a network with the light autoencoder.

    Args:
        config: the network's config.
        part: pixels of the window, not empty.
        height: of the window, pixels, a multiple of the code's stride.
        width: likewise.
    """
    rows, cols = _along(config, part.y0, part.y1, height), _along(config, part.x0, part.x1, width)
    return Needs(*zip(rows, cols, strict=True))


def _along(config: DiTICConfig, begin: int, end: int, length: int) -> tuple[slice, ...]:
    """One axis of :class:`Needs`."""
    stride, ratio, codec = config.vae.stride, config.y_stride // config.vae.stride, config.codec
    deep, shallow = config.vae.decoder_layers[1], 1 + config.vae.decoder_layers[0] + config.vae.lapped
    pixels = slice(begin // stride, -(-end // stride))
    # 3x3 layers at half of the latent's stride, then at the latent's; the branches' last one there, and those at the
    # code's: the blocks, and the one before the upsampling
    inner = _grown(pixels, -(-shallow // 2), length // stride)
    latent = _grown(inner, deep, length // stride)
    widened = _grown(latent, 1, length // stride)
    own = slice(widened.start // ratio, -(-widened.stop // ratio))
    code = _grown(own, max(codec.residual.blocks, codec.variance.blocks) + 1, length // config.y_stride)
    return (
        code,
        _seen(widened, ratio * code.start),
        _seen(latent, widened.start),
        latent,
        _seen(inner, latent.start),
        slice(begin - stride * inner.start, end - stride * inner.start),
    )


def _grown(part: slice, reach: int, length: int) -> slice:
    return slice(max(part.start - reach, 0), min(part.stop + reach, length))


def _seen(part: slice, start: int) -> slice:
    """A part as seen from where another one starts."""
    return slice(part.start - start, part.stop - start)


def cut(x: Tensor, part: Part) -> Tensor:
    """A part of (B, C, h, w), laid out as what convolutions take."""
    return x[:, :, *part].contiguous(memory_format=torch.channels_last)
