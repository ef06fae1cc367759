"""The auxiliary encoder: ELIC's analysis transform, pixels to features at stride 16.

Tensor names follow the authors' checkpoints (``aux_codec.*``).

Source: ELIC, arXiv 2203.10886; the attention block is the simplified one of arXiv 2001.01568.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilecodec.model.config import AuxEncoderConfig

BOTTLENECKS = 3
"""Residual bottlenecks after each of the first three downsamplings."""


def _bottleneck(channels: int) -> nn.Sequential:
    """Pointwise to half the channels, 3x3, pointwise back, with ReLU between."""
    half = channels // 2
    return nn.Sequential(
        nn.Conv2d(channels, half, 1),
        nn.ReLU(),
        nn.Conv2d(half, half, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(half, channels, 1),
    )


class ResidualBottleneck(nn.Module):
    """``x + bottleneck(x)``, (B, C, h, w) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = _bottleneck(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)  # type: ignore[no-any-return]


class AttentionUnit(nn.Module):
    """``relu(x + bottleneck(x))``, (B, C, h, w) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _bottleneck(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


class Attention(nn.Module):
    """A local attention: one branch of units, gated by the sigmoid of another, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_a = nn.Sequential(*[AttentionUnit(channels) for _ in range(3)])
        self.conv_b = nn.Sequential(
            *[AttentionUnit(channels) for _ in range(3)],
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_a(x) * torch.sigmoid(self.conv_b(x))  # type: ignore[no-any-return]


class ElicAnalysis(nn.Module):
    """Pixels in [0, 1], (B, 3, H, W) with sides multiples of 16, to features (B, channels, H/16, W/16)."""

    def __init__(self, config: AuxEncoderConfig) -> None:
        super().__init__()
        width = config.width

        def down(in_channels: int, out_channels: int) -> nn.Conv2d:
            return nn.Conv2d(in_channels, out_channels, 5, stride=2, padding=2)

        def bottlenecks() -> list[nn.Module]:
            return [ResidualBottleneck(width) for _ in range(BOTTLENECKS)]

        self.analysis_transform = nn.Sequential(
            down(3, width),
            *bottlenecks(),
            down(width, width),
            *bottlenecks(),
            Attention(width),
            down(width, width),
            *bottlenecks(),
            down(width, config.channels),
            Attention(config.channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.analysis_transform(x)  # type: ignore[no-any-return]
