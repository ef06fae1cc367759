"""The latent codec of DiT-IC: analysis, hyperprior, four-step quadtree context, and the synthesis branches.

Shape legend: B batch; l latent at 1/stride; y code at half of that; z hyper-latent at an eighth. Tensor names follow
the authors' checkpoints (``codec.*``).

            latent l ──► g_a ──► y ──(gain)──► h_a ──► z ──► [bottleneck] ──► z_hat
            [aux a] ───┘                                                        │
                                                             base ◄── h_s ◄─────┘
            for step k = 0..3:  base ──► adapter_in[k] ► g_c ► adapter_out[k] ──► (mean, scale)
                                symbols = round(y - mean) at the step's positions; base takes the decoded values
            y_hat ──(1/gain)──► g_s (mean), aux (residual), prompt;  scales ──► scale (log-variance)

Source: arXiv 2603.13162 sections 3.2 and 3.3; quadtree context after DCVC-DC (arXiv 2302.14402).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilecodec.model.blocks import (
    Adapter,
    DepthConvBlock,
    Down2,
    Downsample,
    PointwiseAdapter,
    Up2,
    Upsample,
    depth_blocks,
    quadtree_masks,
)
from tilecodec.model.config import BranchConfig, CodecConfig

STEPS = 4
"""Steps of the quadtree context, and groups of code channels."""

CodeStep = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""``(step, mean, scale, mask) -> y_hat`` at the step's positions: called with (B, Cy, h, w) tensors and the bool mask
(Cy, h, w) of the step; returns the decoded values ``symbols + mean``, zero outside the mask."""


@dataclass(frozen=True, slots=True)
class ContextResult:
    """What the four context steps leave behind, in symbol units."""

    y_hat: Tensor
    """Decoded code, (B, Cy, h, w)."""
    mean: Tensor
    """Mean of each element at the step that coded it, (B, Cy, h, w)."""
    scale: Tensor
    """Gaussian scale of each element at the step that coded it, (B, Cy, h, w)."""


class Analysis(nn.Module):
    """VAE latent (and auxiliary features) to the code y."""

    def __init__(self, config: CodecConfig, latent_channels: int, aux_channels: int) -> None:
        super().__init__()
        width = config.analysis_pre + config.analysis_aux
        self.pre1 = nn.Sequential(nn.Conv2d(latent_channels, config.analysis_pre, 3, padding=1))
        self.pre2 = nn.Sequential(Downsample(aux_channels, config.analysis_aux)) if config.analysis_aux else None
        self.analysis_transform = nn.Sequential(
            *depth_blocks(width, 2), Downsample(width, config.y_channels), *depth_blocks(config.y_channels, 2)
        )

    def forward(self, latent: Tensor, aux: Tensor | None) -> Tensor:
        features = self.pre1(latent)
        if self.pre2 is not None:
            features = torch.cat([features, self.pre2(aux)], dim=1)
        return self.analysis_transform(features)  # type: ignore[no-any-return]


class HyperAnalysis(nn.Module):
    """Code y to the hyper-latent z, at a quarter of its resolution."""

    def __init__(self, y_channels: int, z_channels: int) -> None:
        super().__init__()
        self.reduction = nn.Sequential(
            DepthConvBlock(y_channels, y_channels),
            DepthConvBlock(y_channels, z_channels),
            Down2(z_channels, z_channels),
            Down2(z_channels, z_channels),
        )

    def forward(self, y: Tensor) -> Tensor:
        return self.reduction(y)  # type: ignore[no-any-return]


class HyperSynthesis(nn.Module):
    """Decoded hyper-latent to the base that the context steps refine."""

    def __init__(self, y_channels: int, z_channels: int) -> None:
        super().__init__()
        self.increase = nn.Sequential(
            Up2(z_channels, z_channels),
            Up2(z_channels, z_channels),
            DepthConvBlock(z_channels, y_channels),
            DepthConvBlock(y_channels, y_channels),
        )

    def forward(self, z_hat: Tensor) -> Tensor:
        return self.increase(z_hat)  # type: ignore[no-any-return]


class ContextNetwork(nn.Module):
    """The network that all four steps share."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.block = nn.Sequential(*depth_blocks(width, blocks), nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)  # type: ignore[no-any-return]


class ResidualPrediction(nn.Module):
    """Latent residual prediction of one step: decoded values and base to a correction."""

    def __init__(self, y_channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(Adapter(2 * y_channels, y_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)  # type: ignore[no-any-return]


def _branch_layers(config: BranchConfig, in_channels: int, out_channels: int) -> nn.Sequential:
    layers = depth_blocks(in_channels, config.blocks)
    if config.mid is not None:
        layers.append(Upsample(in_channels, config.mid))
    layers.append(nn.Conv2d(config.mid or in_channels, out_channels, 3, padding=1))
    return nn.Sequential(*layers)


class Synthesis(nn.Module):
    """A branch from the code to features at the latent's resolution (g_s, scale, prompt)."""

    def __init__(self, config: BranchConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.synthesis_transform = _branch_layers(config, in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.synthesis_transform(x)  # type: ignore[no-any-return]


class ResidualBranch(nn.Module):
    """The branch from the code to the latent residual r."""

    def __init__(self, config: BranchConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = _branch_layers(config, in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)  # type: ignore[no-any-return]


class RateGains(nn.Module):
    """Per-channel gains that move one set of weights along the rate axis.

    Source: continuous quality by gain units, arXiv 2003.02012; geometric interpolation between anchors.
    """

    def __init__(self, points: int, channels: int, start: float = -0.4, span: float = 2.6) -> None:
        super().__init__()
        # on the CPU always: on the meta device these operations would import torch's compiler
        logs = torch.linspace(start, start + span, points, device="cpu")[:, None].expand(points, channels)
        self.log_gain = nn.Parameter(logs.clone())
        self.log_inverse = nn.Parameter(-logs.clone())

    def forward(self, rate_B: Tensor) -> tuple[Tensor, Tensor]:
        """Rate positions (B,) in [0, 1], 0 the lowest quality, to the gain and its inverse, each (B, C, 1, 1)."""
        position = rate_B.float() * (self.log_gain.shape[0] - 1)
        low = position.floor().long().clamp(0, self.log_gain.shape[0] - 2)
        part = (position - low)[:, None]
        gain, inverse = (
            torch.exp(table[low] * (1 - part) + table[low + 1] * part)[:, :, None, None]
            for table in (self.log_gain, self.log_inverse)
        )
        return gain, inverse


class LatentCodec(nn.Module):
    """All networks between the VAE latent and the entropy coder, and from the code to the transformer's inputs."""

    def __init__(self, config: CodecConfig, latent_channels: int, aux_channels: int) -> None:
        super().__init__()
        self.config = config
        cy, cz, width = config.y_channels, config.z_channels, config.context_width
        self.g_a = Analysis(config, latent_channels, aux_channels)
        self.h_a = HyperAnalysis(cy, cz)
        self.h_s = HyperSynthesis(cy, cz)
        adapter = Adapter if config.context_kernel == 3 else PointwiseAdapter
        self.adapter_in = nn.ModuleList([adapter(cy, width) for _ in range(STEPS)])
        self.g_c = ContextNetwork(width, config.context_blocks)
        self.adapter_out = nn.ModuleList([adapter(width, 2 * cy) for _ in range(STEPS)])
        self.LRP = nn.ModuleList([ResidualPrediction(cy) for _ in range(STEPS)]) if config.residual_prediction else None
        self.g_s = Synthesis(config.synthesis, cy, latent_channels)
        self.scale = Synthesis(config.variance, cy, latent_channels)
        self.aux = ResidualBranch(config.residual, cy, latent_channels)
        self.prompt = Synthesis(config.prompt, cy, config.prompt_channels)
        self.gains = RateGains(config.rate_points, cy) if config.rate_points else None

    def rate_gains(self, rate_B: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and inverse gain at rate positions (B,) in [0, 1]; ones where the model has one rate point."""
        if self.gains is None:
            one = torch.ones(rate_B.shape[0], 1, 1, 1, device=rate_B.device)
            return one, one
        return self.gains(rate_B)  # type: ignore[no-any-return]

    def step_masks(self, height: int, width: int, device: torch.device) -> Tensor:
        """Bool (4, Cy, height, width): the elements that each step codes."""
        masks = quadtree_masks(height, width, device=device)
        return masks.repeat_interleave(self.config.y_channels // STEPS, dim=1)

    def step_parameters(self, step: int, base: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale (unbounded below) of every element as step ``step`` sees them, each (B, Cy, h, w)."""
        raw = self.adapter_out[step](self.g_c(self.adapter_in[step](base)))
        mean, scale = raw.chunk(2, dim=1)
        return mean, self.scale_activation(scale)

    def scale_activation(self, raw: Tensor) -> Tensor:
        """The context network's second half to Gaussian scales."""
        return F.softplus(raw) if self.config.scale_activation == "softplus" else raw

    def run_context(self, base: Tensor, code_step: CodeStep) -> ContextResult:
        """The four steps, with ``code_step`` doing what differs between training, encoding and decoding.

        Args:
            base: hyper-synthesis output, (B, Cy, h, w).
            code_step: see :data:`CodeStep`.
        """
        masks = self.step_masks(base.shape[2], base.shape[3], base.device)
        y_hat, mean_all, scale_all = (torch.zeros_like(base) for _ in range(3))
        for step in range(STEPS):
            mask = masks[step]
            mean, scale = self.step_parameters(step, base)
            decoded = code_step(step, mean, scale, mask)
            if self.LRP is not None:
                correction = self.LRP[step](torch.cat([decoded, base], dim=1))
                decoded = decoded + 0.5 * torch.tanh(correction * mask)
            base = torch.where(mask, decoded, base)
            y_hat = y_hat + decoded
            mean_all = torch.where(mask, mean.to(mean_all.dtype), mean_all)
            scale_all = torch.where(mask, scale.to(scale_all.dtype), scale_all)
        return ContextResult(y_hat, mean_all, scale_all)
