"""The float evaluation of a model's entropy part, with the weights that its integer program stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class FloatEntropy:
    """Codes tiles as a codec without the integer program would: the same coder and tables, float32 networks.

    Args:
        model: a loaded model.
    """

    def __init__(self, model: Any) -> None:
        from tilecodec.entropy.quantise import restore
        from tilecodec.entropy.tables import scale_table
        from tilecodec.model.latent_codec import LatentCodec

        config = model.config
        aux = config.aux_encoder.channels if config.aux_encoder else 0
        self._codec = LatentCodec(config.codec, config.vae.latent_channels, aux).eval().requires_grad_(False)
        self._codec.to(memory_format=torch.channels_last)
        restore(self._codec, model.program)
        self._tables = model.tables
        self._median = model.program.z_median.astype(np.float32)[:, None, None] * np.float32(2.0**-model.program.z_bits)
        self._scales = scale_table().astype(np.float32)

    def encode(self, y: torch.Tensor, z: torch.Tensor) -> tuple[NDArray[np.uint32], torch.Tensor, torch.Tensor]:
        """The stream's words, and the decoded code and scales, (Cy, h, w) each."""
        from tilecodec.entropy.coder import SymbolGroup, encode_groups

        symbols = np.rint(z.numpy() - self._median).astype(np.int32)
        groups = [SymbolGroup(symbols.ravel(), _channels(symbols.shape), self._tables.z)]

        def step(_step: int, mean: torch.Tensor, scale: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            whole = torch.round(y - mean[0])
            groups.append(SymbolGroup(whole[mask].int().numpy(), self._rows(scale, mask), self._tables.y))
            return ((whole + mean[0]) * mask)[None]

        with torch.inference_mode():
            result = self._codec.run_context(self._base(symbols), step)
        return encode_groups(groups), result.y_hat[0], result.scale[0]

    def decode(self, words: NDArray[np.uint32], height: int, width: int) -> torch.Tensor:
        """The code (Cy, h, w) of a tile whose hyper-latent has these sides."""
        from tilecodec.entropy.coder import GroupDecoder

        stream = GroupDecoder(words, "bench")
        shape = (len(self._median), height, width)
        symbols = stream.decode(_channels(shape), self._tables.z).reshape(shape)

        def step(_step: int, mean: torch.Tensor, scale: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            found = stream.decode(self._rows(scale, mask), self._tables.y)
            code = torch.zeros_like(mean[0])
            code[mask] = torch.from_numpy(found).float() + mean[0][mask]
            return code[None]

        with torch.inference_mode():
            return self._codec.run_context(self._base(symbols), step).y_hat[0]

    def _base(self, symbols: NDArray[np.int32]) -> torch.Tensor:
        z = torch.from_numpy(symbols.astype(np.float32) + self._median)[None]
        base: torch.Tensor = self._codec.h_s(z.contiguous(memory_format=torch.channels_last))
        return base

    def _rows(self, scale: torch.Tensor, mask: torch.Tensor) -> NDArray[np.uint8]:
        rows = np.searchsorted(self._scales, scale[0][mask].numpy()).clip(max=len(self._scales) - 1)
        return rows.astype(np.uint8)


def _channels(shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """The table row of every hyper-latent symbol: its channel."""
    return np.repeat(np.arange(shape[0], dtype=np.uint16), shape[1] * shape[2])
