"""DISTS: structure and texture similarity in the features of VGG-16."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilecodec.errors import ModelError
from tilecodec.train.perceptual import load_features, read_weights, take

STAGES: Final = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions of each stage of VGG-16; a stage's last one is compared."""
CHANNELS: Final = (3, *(widths[-1] for widths in STAGES))
"""Of what is compared: the picture itself and the five stages."""
_EPSILON: Final = 1e-6


class DISTS(nn.Module):
    """Distance of picture pairs: means of feature maps tell texture, their correlation tells structure.

    VGG-16 without its fully connected layers, ReLU after every convolution; between stages, an L2 pooling by a 3 x 3
    Hann window of stride 2 takes the place of the maximum. Layer numbers are torchvision's.

    Source: Ding, Ma, Wang, Simoncelli, "Image Quality Assessment: Unifying Structure and Texture Similarity",
    arXiv 2004.07728, sections 3.1 to 3.3.
    """

    alpha: Tensor
    """(1, 1475, 1, 1), weights of the texture terms."""
    beta: Tensor
    """(1, 1475, 1, 1), weights of the structure terms; both together sum to 1."""
    shift: Tensor
    spread: Tensor
    window: Tensor

    def __init__(self, weights: Path) -> None:
        super().__init__()
        tensors = read_weights(weights, "vgg16")
        layers: dict[str, nn.Module] = {}
        number, before = 0, 3
        self._stages: list[list[str]] = []
        for widths in STAGES:
            stage = []
            for width in widths:
                layers[str(number)] = nn.Conv2d(before, width, 3, padding=1)
                stage.append(str(number))
                number, before = number + 2, width  # a ReLU lies between
            self._stages.append(stage)
            number += 1  # so does a pooling
        self.features = nn.ModuleDict(layers)
        load_features(self.features, tensors, weights)
        parts = [take(tensors, f"dists.{name}", weights).reshape(1, -1, 1, 1) for name in ("alpha", "beta")]
        for part in parts:
            if part.shape[1] != sum(CHANNELS):
                got = part.shape[1]
                raise ModelError("the weights are of another network", got=got, expected=sum(CHANNELS), where=weights)
        total = sum(float(part.sum()) for part in parts)
        for name, part in zip(("alpha", "beta"), parts, strict=True):
            self.register_buffer(name, part / total)
        self.register_buffer("shift", torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1))
        self.register_buffer("spread", torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1))
        taps = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("window", (taps[:, None] * taps)[None, None])
        self.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each picture pair, (B,) in 0 to about 1, for (B, 3, H, W) in [-1, 1]; ``b`` gets no gradient."""
        with torch.no_grad():
            reference = self._features(b)
        total = torch.zeros(a.shape[0], device=a.device)
        alphas, betas = (w.reshape(-1).split(CHANNELS) for w in (self.alpha, self.beta))
        for x, y, alpha, beta in zip(self._features(a), reference, alphas, betas, strict=True):
            mean_x, mean_y = x.mean((2, 3)), y.mean((2, 3))
            var_x, var_y = x.var((2, 3), correction=0), y.var((2, 3), correction=0)
            covariance = (x * y).mean((2, 3)) - mean_x * mean_y
            texture = (2 * mean_x * mean_y + _EPSILON) / (mean_x**2 + mean_y**2 + _EPSILON)
            structure = (2 * covariance + _EPSILON) / (var_x + var_y + _EPSILON)
            total = total + (alpha * texture + beta * structure).sum(1)
        return 1 - total

    def _features(self, x: Tensor) -> list[Tensor]:
        """The picture in [0, 1] and each stage's last activations, float32."""
        x = (x + 1) / 2
        out = [x.float()]
        x = (x - self.shift) / self.spread
        for number, stage in enumerate(self._stages):
            if number:
                x = self._pooled(x)
            for name in stage:
                x = F.relu(self.features[name](x))
            out.append(x.float())
        return out

    def _pooled(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        window = self.window.expand(channels, 1, 3, 3)
        squares = F.conv2d(x.float().pow(2), window, stride=2, padding=1, groups=channels)
        return (squares + 1e-12).sqrt()
