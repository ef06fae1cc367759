"""Which values a part of a window is made of.

The transformer looks at the whole window; before and after it, the branches and the light autoencoder look a few
positions around. So a part of a window's pixels takes the whole of its prediction, and little more than the part of all
else. Each value comes from the same sums as in one piece.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilecodec.model.config import DiTICConfig
from tilecodec.tiles import Window


@dataclass(frozen=True, slots=True)
class Needs:
    """What a part of a window is made of, and where it lies in what comes out."""

    code: tuple[slice, slice]
    """Rows and columns of the window's code."""
    latent_of_code: tuple[slice, slice]
    """Of the latents that these make, those needed."""
    latent: tuple[slice, slice]
    """The same, in the window's latent."""
    pixels: tuple[slice, slice]
    """Of the pixels that these make, those asked for."""

    @property
    def positions(self) -> int:
        """Latents to decode."""
        rows, cols = self.latent
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


def _along(config: DiTICConfig, begin: int, end: int, length: int) -> tuple[slice, slice, slice, slice]:
    """One axis of :class:`Needs`."""
    stride, ratio, codec = config.vae.stride, config.y_stride // config.vae.stride, config.codec
    deep, shallow = config.vae.decoder_layers[1], 1 + config.vae.decoder_layers[0] + config.vae.lapped
    reach = deep + -(-shallow // 2)  # 3x3 layers at the latent's stride, and at half of it
    first, last = max(begin // stride - reach, 0), min(-(-end // stride) + reach, length // stride)
    # 3x3 layers at the code's stride: the blocks, and the one before the upsampling; then one at the latent's
    reach = max(codec.residual.blocks, codec.variance.blocks) + 1
    from_code = max((first - 1) // ratio - reach, 0)
    to_code = min(last // ratio + 1 + reach, length // config.y_stride)
    return (
        slice(from_code, to_code),
        slice(first - ratio * from_code, last - ratio * from_code),
        slice(first, last),
        slice(begin - stride * first, end - stride * first),
    )
