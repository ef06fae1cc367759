"""Contrastive alignment: caption tokens made from the code are pulled towards the text embedding of their picture.

Source: DiT-IC, arXiv 2603.13162, latent-conditioned guidance; the loss is CLIP's, arXiv 2103.00020, figure 3.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tilecodec.errors import DatasetError, MissingFileError, ModelError
from tilecodec.train.recipe import CaptionRecipe


class CaptionEmbeddings:
    """Text embeddings by picture.

    Args:
        path: ``.npz`` or ``.safetensors``, one vector for each name; see ``CaptionRecipe.embeddings``.

    Raises:
        MissingFileError: no such file.
        ModelError: a file of another kind; vectors that are none, not finite, or of several lengths.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise MissingFileError("there are no such embeddings", got=str(path), expected=".npz or .safetensors")
        try:
            arrays = _read(path)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ModelError("the embeddings cannot be read", got=str(error), where=str(path)) from error
        for name, array in arrays.items():
            if array.ndim != 1 or not np.isfinite(array).all():
                got = f"shape {array.shape}"
                raise ModelError("an embedding is no finite vector", got=got, expected="(n,)", where=f"{path}, {name}")
        sizes = {a.shape[0] for a in arrays.values()}
        if len(sizes) != 1:
            raise ModelError("the embeddings are not of one length", got=sorted(sizes), expected="one", where=str(path))
        (self.size,) = sizes
        self._vectors = {name: torch.from_numpy(a.astype(np.float32)) for name, a in arrays.items()}

    def of(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, size) float32 of pictures, zeros where there is none, and bool (B,): which have one."""
        found = [self._find(name) for name in names]
        rows = [torch.zeros(self.size) if v is None else v for v in found]
        return torch.stack(rows), torch.tensor([v is not None for v in found])

    def check(self, names: Sequence[str]) -> None:
        """Refuses embeddings none of which belongs to one of these pictures.

        Raises:
            DatasetError: they do not.
        """
        if not any(self._find(name) is not None for name in names):
            raise DatasetError(
                "no picture has a text embedding",
                got=f"embeddings named {list(self._vectors)[:3]} ...",
                expected=f"names of pictures such as {list(names)[:3]}",
                where="captions.embeddings",
            )

    def _find(self, name: str) -> Tensor | None:
        vector = self._vectors.get(name)
        return self._vectors.get(str(PurePosixPath(name).with_suffix(""))) if vector is None and name else vector


def _read(path: Path) -> dict[str, NDArray[np.floating]]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(str(error)) from error


class CaptionHead(nn.Module):
    """Caption tokens (B, T, C) to the space of the embeddings, (B, size): their mean, and a linear layer where the
    sizes differ. It is part of the training only."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.map = nn.Identity() if channels == size else nn.Linear(channels, size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.map(tokens.float().mean(1))  # type: ignore[no-any-return]


def contrastive_loss(pooled: Tensor, embeddings: Tensor, names: Sequence[str], temperature: float) -> Tensor:
    """Symmetric cross entropy of picking each other's partner among the batch, a scalar; 0 for fewer than two.

    Args:
        pooled: (B, n) float32.
        embeddings: (B, n) float32.
        names: of the pictures; crops of one picture are no wrong partners of each other and are left out.
        temperature: of the softmax.
    """
    if len(names) < 2:
        return pooled.sum() * 0
    logits = F.normalize(pooled, dim=1) @ F.normalize(embeddings, dim=1).T / temperature
    same = torch.tensor([[a == b and i != j for j, b in enumerate(names)] for i, a in enumerate(names)])
    logits = logits.masked_fill(same.to(logits.device), -math.inf)
    target = torch.arange(len(names), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def annealed(recipe: CaptionRecipe, done: float) -> float:
    """The loss's weight when a share ``done`` of the stage is done: from ``weight`` to 0 along a cosine."""
    if done >= recipe.until:
        return 0.0
    return recipe.weight * 0.5 * (1 + math.cos(math.pi * done / recipe.until))
