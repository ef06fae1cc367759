"""Latent-conditioned guidance: the code itself gives the caption tokens, so no text encoder runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilecodec.model.blocks import random_start
from tilecodec.model.config import GuidanceConfig


class LatentGuidance(nn.Module):
    """Prompt features (B, C, h, w) to caption tokens (B, pooled + learned tokens, caption_channels).

    Source: DiT-IC, arXiv 2603.13162, latent-conditioned guidance.
    """

    def __init__(self, config: GuidanceConfig, prompt_channels: int) -> None:
        super().__init__()
        self.pooled_tokens = config.pooled_tokens
        wide = config.caption_channels
        self.pattern = random_start(1, config.learned_tokens, prompt_channels, std=0.02)
        self.align = nn.Sequential(
            nn.Linear(prompt_channels, wide), nn.SiLU(), nn.Linear(wide, wide), nn.SiLU(), nn.Linear(wide, wide)
        )

    def forward(self, prompt: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool1d(prompt.flatten(2), self.pooled_tokens).transpose(1, 2)
        pattern = self.pattern.to(pooled.dtype).expand(pooled.shape[0], -1, -1)
        return self.align(torch.cat([pooled, pattern], dim=1))  # type: ignore[no-any-return]
