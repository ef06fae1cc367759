"""The diffusion transformer: SANA's linear attention, cross attention to the caption, and gated convolutions.

Tensor names and arithmetic are those of diffusers' ``SanaTransformer2DModel`` without positional encoding, which the
tests compare it with; it needs no import of that library, and fewer passes over memory.

Shape legend: B batch; h, w latent positions; N = h w / patch_size^2 tokens; D = heads x head size; T caption tokens.

Source: SANA, arXiv 2410.10629; diffusers 0.35, ``models/transformers/sana_transformer.py`` (Apache-2.0).
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilecodec.model.blocks import random_start
from tilecodec.model.config import TransformerConfig
from tilecodec.model.linear_attention import linear_attention

TIME_CHANNELS = 256
"""Sines and cosines that a timestep is embedded as."""
HALF_MAX = 65504.0
"""The largest float16."""


class SanaTransformer(nn.Module):
    """Latents, caption tokens and a timestep to the velocity, of the latents' shape."""

    def __init__(self, config: TransformerConfig, channels: int, caption_channels: int) -> None:
        super().__init__()
        self.patch_size = p = config.patch_size
        width = config.num_attention_heads * config.attention_head_dim
        self.patch_embed = _PatchEmbed(channels, width, p)
        self.time_embed = _TimeEmbed(width)
        self.caption_projection = _TwoLinear(caption_channels, width)
        self.caption_norm = _RMSNorm(width)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(config, width) for _ in range(config.num_layers)])
        self.scale_shift_table = random_start(2, width, std=width**-0.5)
        self.proj_out = nn.Linear(width, p * p * channels)

    def forward(self, latent: Tensor, caption: Tensor, timestep: Tensor) -> Tensor:
        """Args:
        latent: (B, channels, h, w).
        caption: (B, T, caption_channels).
        timestep: (B,) float32.

        Returns:
            (B, channels, h, w).
        """
        p = self.patch_size
        batch, _, height, width = latent.shape
        x = self.patch_embed.proj(latent).permute(0, 2, 3, 1)
        rows, cols = x.shape[1:3]
        modulation, embedded = self.time_embed(timestep, x.dtype)
        seen = self.caption_norm(self.caption_projection(caption))
        for block in self.transformer_blocks:
            x = block(x, seen, modulation)
        x = x.flatten(1, 2)
        shift, scale = (self.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
        patches: Tensor = self.proj_out(_modulated(x, scale, shift)).reshape(batch, rows, cols, p, p, -1)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, height, width)


class _PatchEmbed(nn.Module):
    """Patches to tokens."""

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)


class _TwoLinear(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))  # type: ignore[no-any-return]


class _TimeEmbed(nn.Module):
    """A timestep to every block's shifts, scales and gates, and to the last layer's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = nn.Module()
        self.emb.timestep_embedder = _TwoLinear(TIME_CHANNELS, width)
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(B,) to (B, 6 D) and (B, D)."""
        half = TIME_CHANNELS // 2
        frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, device=timestep.device))
        angles = timestep[:, None].float() * frequencies[None]
        waves = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1).to(dtype)
        embedder = cast(_TwoLinear, self.emb.timestep_embedder)
        embedded = embedder.linear_2(F.silu(embedder.linear_1(waves)))
        return self.linear(F.silu(embedded)), embedded


class _RMSNorm(nn.Module):
    """Root mean square norm over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)
        return (x * scale).to(self.weight.dtype) * self.weight


class _Attention(nn.Module):
    """The projections of an attention layer."""

    def __init__(self, width: int, inner: int, *, bias: bool) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, inner, bias=bias)
        self.to_k = nn.Linear(width, inner, bias=bias)
        self.to_v = nn.Linear(width, inner, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])


class _LinearAttention(_Attention):
    """Self attention without softmax: ``relu(q) relu(k)^T v``, normalised; sums in float32."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, width, bias=False)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(2, (self.heads, -1)) for part in (self.to_q, self.to_k, self.to_v))
        out: Tensor = self.to_out[0](linear_attention(q, k, v))
        return out.clip(-HALF_MAX, HALF_MAX) if x.dtype == torch.float16 else out


class _CrossAttention(_Attention):
    """Attention from the tokens to the caption."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__(width, heads * head_dim, bias=True)
        self.heads = heads

    def forward(self, x: Tensor, caption: Tensor) -> Tensor:
        def split(t: Tensor) -> Tensor:
            return t.reshape(t.shape[0], t.shape[1], self.heads, -1).transpose(1, 2)

        out = F.scaled_dot_product_attention(split(self.to_q(x)), split(self.to_k(caption)), split(self.to_v(caption)))
        return self.to_out[0](out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _GatedConv(nn.Module):
    """Pointwise, depthwise 3x3, gate, pointwise."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv_inverted = nn.Conv2d(width, 2 * hidden, 1)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inplace = not torch.is_grad_enabled()
        wide = self.conv_depth(F.silu(self.conv_inverted(x), inplace=inplace))
        value, gate = wide.chunk(2, dim=1)
        return self.conv_point(value * F.silu(gate))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """One transformer block, modulated by the timestep."""

    def __init__(self, config: TransformerConfig, width: int) -> None:
        super().__init__()
        self.attn1 = _LinearAttention(width, config.num_attention_heads)
        self.attn2 = _CrossAttention(width, config.num_cross_attention_heads, config.cross_attention_head_dim)
        self.ff = _GatedConv(width, int(config.mlp_ratio * width))
        self.scale_shift_table = random_start(6, width, std=width**-0.5)

    def forward(self, x: Tensor, caption: Tensor, modulation: Tensor) -> Tensor:
        """Args:
        x: (B, rows, columns, D).
        caption: (B, T, D).
        modulation: (B, 6 D).

        Returns:
            (B, rows, columns, D).
        """
        batch, rows, cols, _ = x.shape
        x = x.flatten(1, 2)
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self.scale_shift_table[None] + modulation.reshape(batch, 6, -1)
        ).chunk(6, dim=1)
        x = torch.addcmul(x, gate1, self.attn1(_modulated(x, scale1, shift1)))
        x = x + self.attn2(x, caption)
        picture = _modulated(x, scale2, shift2).unflatten(1, (rows, cols)).permute(0, 3, 1, 2)
        x = torch.addcmul(x, gate2, self.ff(picture).flatten(2).transpose(1, 2))
        return x.view(batch, rows, cols, -1)


def _modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``norm(x) (1 + scale) + shift`` over the last axis."""
    return torch.addcmul(shift, F.layer_norm(x, (x.shape[-1],), eps=1e-6), 1 + scale)
