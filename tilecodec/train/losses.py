"""Rate and distortion terms."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilecodec.train.perceptual import load_features, read_weights, take

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

    Weights come from a file with torchvision's ``features.N...`` names and ``lpips.lin0``...``lpips.lin6``, see
    :mod:`tilecodec.train.perceptual`.

    Source: arXiv 1801.03924; SqueezeNet arXiv 1602.07360.
    """

    taps = (1, 4, 7, 9, 10, 11, 12)

    def __init__(self, weights: Path) -> None:
        super().__init__()
        tensors = read_weights(weights, "squeezenet1_1")
        fires = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128)}
        fires |= {9: (256, 48, 192), 10: (384, 48, 192), 11: (384, 64, 256), 12: (512, 64, 256)}
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU()]
        for index in range(2, 13):
            layers.append(_Fire(*fires[index]) if index in fires else nn.MaxPool2d(3, 2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        load_features(self.features, tensors, weights)
        self.lins = nn.ParameterList(take(tensors, f"lpips.lin{n}", weights).reshape(1, -1, 1, 1) for n in range(7))
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


SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of MS-SSIM's five scales, finest first."""


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale structural similarity of each picture pair, (B,), for (B, 3, H, W) in [-1, 1], sides 161 or more.

    As :func:`tilecodec.metrics.ms_ssim`: Gaussian window of 11 and sigma 1.5 without padding, 2x2 means between
    scales. ``b`` gets no gradient.

    Source: Wang, Simoncelli, Bovik, "Multiscale structural similarity for image quality assessment", 2003.
    """
    a, b = a.float() / 2, b.detach().float() / 2
    c1, c2 = 0.01**2, 0.03**2
    product = torch.ones(a.shape[0], device=a.device)
    for scale, weight in enumerate(SCALE_WEIGHTS):
        blur = _Blur(a.shape[2], a.shape[3], a.device)
        mean_a, mean_b = blur(a), blur(b)
        var_a = blur(a * a) - mean_a * mean_a
        var_b = blur(b * b) - mean_b * mean_b
        covariance = blur(a * b) - mean_a * mean_b
        value = (2 * covariance + c2) / (var_a + var_b + c2)
        if scale == len(SCALE_WEIGHTS) - 1:
            # luminance is not shift invariant: back to [0, 1]
            mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
            value = value * (2 * mean_a * mean_b + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
        product = product[:, None] if product.ndim == 1 else product
        product = product * value.mean((2, 3)).clamp_min(1e-3) ** weight
        if scale < len(SCALE_WEIGHTS) - 1:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return product.mean(1)


class _Blur:
    """The Gaussian window as two banded matrices: on a CPU matrix products beat depthwise convolutions."""

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        self._rows, self._cols = _band(height, device), _band(width, device)

    def __call__(self, x: Tensor) -> Tensor:
        return self._rows @ (x @ self._cols.T)


def _band(size: int, device: torch.device) -> Tensor:
    """(size - 10, size): row i holds the window over i .. i+10."""
    taps = torch.exp(-((torch.arange(11, device=device) - 5.0) ** 2) / (2 * 1.5**2))
    taps = taps / taps.sum()
    band = torch.zeros(size - 10, size, device=device)
    for offset in range(11):
        band.diagonal(offset).fill_(float(taps[offset]))
    return band


def grid_loss(picture: Tensor, original: Tensor, periods: tuple[int, ...] = (8, 16, 32)) -> Tensor:
    """How much more the steps across block borders differ from the original's than other steps do, (B,).

    For each period and both directions: mean absolute step across lines at its multiples over the mean of all, in
    ``picture`` minus the same in ``original``, absolute, summed. A smooth picture without a block pattern gives 0.
    """
    total = torch.zeros(picture.shape[0], device=picture.device)
    for dim in (2, 3):
        steps, target = (x.diff(dim=dim).abs().mean((1, 5 - dim)) for x in (picture.float(), original.float()))
        for period in periods:
            border = slice(period - 1, None, period)
            ratio, wanted = (s[:, border].mean(1) / s.mean(1).clamp_min(1e-3) for s in (steps, target))
            total = total + (ratio - wanted).abs()
    return total


def alignment_loss(x0: Tensor, latent: Tensor, margin: float = 0.5) -> Tensor:
    """Self-distillation alignment: ``relu(1 - margin - cos)`` over channels, mean over positions, (B,).

    Args:
        x0: denoised latent, (B, C, h, w).
        latent: the encoder's, of the same shape; it gets no gradient.
        margin: below which distance nothing pulls.

    Source: DiT-IC, arXiv 2603.13162, self-distillation alignment.
    """
    cosine = F.cosine_similarity(x0.float(), latent.detach().float(), dim=1)
    return torch.relu(1 - margin - cosine).mean((1, 2))
