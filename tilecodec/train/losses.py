"""Rate and distortion terms."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE_BOUND = 0.11
"""Gaussian scales are bounded below by this."""


def gaussian_bits(residual: Tensor, scale: Tensor) -> Tensor:
    """Bits of each element of ``residual``, a value in a unit-wide bin of a zero-mean Gaussian.

    Args:
        residual: float32, any shape.
        scale: float32 of the same shape; values under 0.11 count as 0.11.
    """
    scale = scale.clamp_min(SCALE_BOUND)
    size = residual.abs()
    upper = torch.special.ndtr((0.5 - size) / scale)
    lower = torch.special.ndtr((-0.5 - size) / scale)
    return -torch.log2((upper - lower).clamp_min(1e-6))


class _Fire(nn.Module):
    """SqueezeNet's fire module, with torchvision's names."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class LPIPSSqueeze(nn.Module):
    """LPIPS v0.1 on SqueezeNet 1.1 features.

    Weights come from a safetensors file with torchvision's ``features.N...`` names and ``lpips.lin0``...``lpips.lin6``.

    Source: arXiv 1801.03924; SqueezeNet arXiv 1602.07360.
    """

    taps = (1, 4, 7, 9, 10, 11, 12)

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from safetensors.torch import load_file

        fires = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128)}
        fires |= {9: (256, 48, 192), 10: (384, 48, 192), 11: (384, 64, 256), 12: (512, 64, 256)}
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU()]
        for index in range(2, 13):
            layers.append(_Fire(*fires[index]) if index in fires else nn.MaxPool2d(3, 2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        tensors = {k: v.float() for k, v in load_file(weights).items()}
        self.features.load_state_dict({k[9:]: v for k, v in tensors.items() if k.startswith("features.")})
        self.lins = nn.ParameterList(tensors[f"lpips.lin{n}"].reshape(1, -1, 1, 1) for n in range(7))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1))
        self.register_buffer("spread", torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1))
        self.requires_grad_(False)

    def _taps(self, x: Tensor) -> list[Tensor]:
        x, out = (x - self.shift) / self.spread, []  # type: ignore[operator]  # buffers are tensors
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                f = x.float()
                out.append(f / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        return out

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each picture pair, (B,), for (B, 3, H, W) in [-1, 1]; ``b`` gets no gradient."""
        with torch.no_grad():
            reference = self._taps(b)
        total = torch.zeros(a.shape[0], device=a.device)
        for lin, x, y in zip(self.lins, self._taps(a), reference, strict=True):
            total = total + ((x - y).pow(2) * lin).sum(1).mean((1, 2))
        return total
