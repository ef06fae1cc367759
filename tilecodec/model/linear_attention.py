"""Attention without softmax, whose cost grows with the tokens and not with their square.

Source: EfficientViT, arXiv 2205.14756; SANA, arXiv 2410.10629.
"""

from __future__ import annotations

from typing import Final

import torch.nn.functional as F
from torch import Tensor

STRIP_TOKENS: Final = {"cpu": 512}
"""Tokens taken at a time, by type of device: on a CPU their float32 values should stay in the cache."""
OTHER_STRIP_TOKENS: Final = 1 << 16
EPS: Final = 1e-15


def linear_attention(q: Tensor, k: Tensor, v: Tensor, *, strips: bool = False) -> Tensor:
    """``relu(q) relu(k)^T v / (relu(q) relu(k)^T 1)``, reckoned in float32.

    Args:
        q: queries, (B, N, heads, d), any float dtype.
        k: keys, likewise.
        v: values, likewise.
        strips: take the tokens in parts: the float32 values of many tokens are never there at once.

    Returns:
        (B, N, heads d), the dtype of q.
    """
    batch, count, heads, size = q.shape
    step = STRIP_TOKENS.get(q.device.type, OTHER_STRIP_TOKENS) if strips else count
    state, total = _state(k[:, :step], v[:, :step])
    for begin in range(step, count, step):
        more = _state(k[:, begin : begin + step], v[:, begin : begin + step])
        state, total = state + more[0], total + more[1]
    if step >= count:
        return _weighted(q, state, total)
    out = q.new_empty(batch, count, heads * size)
    for begin in range(0, count, step):
        out[:, begin : begin + step] = _weighted(q[:, begin : begin + step], state, total)
    return out


def _state(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys times values (B, heads, d, d), and the sum of the keys (B, heads, d, 1)."""
    keys, values = _by_head(F.relu(k)), _by_head(v)
    return keys.transpose(2, 3) @ values, keys.sum(2)[..., None]


def _weighted(q: Tensor, state: Tensor, total: Tensor) -> Tensor:
    """(B, n, heads, d) to (B, n, heads d)."""
    queries = _by_head(F.relu(q))
    weight = queries @ total
    out = (queries @ state) / (weight + EPS)
    return out.transpose(1, 2).flatten(2).to(q.dtype)


def _by_head(x: Tensor) -> Tensor:
    """(B, n, heads, d) to float32 (B, heads, n, d)."""
    return x.transpose(1, 2).float()
