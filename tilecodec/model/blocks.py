"""The building blocks of DiT-IC's latent codec. Tensor names follow the authors' checkpoints.

Shape legend: B batch, C channels, h w spatial. Every block maps (B, C, h, w) to (B, C', h', w'), any float dtype.

Source: arXiv 2603.13162, supplement; DepthConvBlock after DCVC-RT (arXiv 2502.20762).
"""

from __future__ import annotations

from typing import Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(x: Tensor, conv: nn.Conv2d, gain: float) -> Tensor:
    """``conv(x)`` with input gain: the power of two goes into the small weight, not into the wide activations."""
    return F.conv2d(x, conv.weight * gain, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _conv4(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """``4 * conv(x)``, exactly."""
    assert conv.bias is not None
    return F.conv2d(x, conv.weight * 4, conv.bias * 4, conv.stride, conv.padding, conv.dilation, conv.groups)


def _gated(wide: nn.Module, x: Tensor) -> Tensor:
    """The sum of the two halves of ``silu(wide(x))``. On a CPU each half is computed by itself: the same bits, and the
    sum goes over memory that is in one piece and in the cache."""
    if type(wide) is not nn.Conv2d or x.device.type != "cpu" or torch.is_grad_enabled():
        first, second = F.silu(wide(x), inplace=not torch.is_grad_enabled()).chunk(2, dim=1)
        return first + second
    assert wide.bias is not None
    half = len(wide.weight) // 2
    parts = (slice(None, half), slice(half, None))
    first, second = (F.silu(F.conv2d(x, wide.weight[part], wide.bias[part]), inplace=True) for part in parts)
    return first.add_(second)


def _added(x: Tensor, y: Tensor) -> Tensor:
    """``x + y``, in the place of x where no gradients are recorded."""
    return x + y if torch.is_grad_enabled() else x.add_(y)


class _Activation(nn.Module):
    """Marks where an activation stands, so that the layers keep the checkpoint's numbers. Never called."""


class DepthConvBlock(nn.Module):
    """A residual depthwise-convolution step, then a residual gated pointwise step.

    ``shortcut`` adds the block's (adapted) input once more at the end. The activation is WSiLU, ``x sigmoid(4x)``,
    computed as ``silu(4x) / 4`` with both powers of two folded into the neighbouring weights: the same bits, and two
    passes over the widest tensors less. :meth:`fold` does so once and for all.
    """

    def __init__(self, in_channels: int, out_channels: int, *, shortcut: bool = False) -> None:
        super().__init__()
        c = out_channels
        self.adaptor = nn.Conv2d(in_channels, c, 1) if in_channels != c else None
        self.shortcut = shortcut
        self.dc = nn.Sequential(
            nn.Conv2d(c, c, 1), _Activation(), nn.Conv2d(c, c, 3, padding=1, groups=c), nn.Conv2d(c, c, 1)
        )
        self.ffn = nn.Sequential(nn.Conv2d(c, 4 * c, 1), _Activation(), nn.Conv2d(2 * c, c, 1))
        self.folded = False

    def forward(self, x: Tensor) -> Tensor:
        if self.adaptor is not None:
            x = self.adaptor(x)
        expand, depthwise, project = (cast(nn.Conv2d, self.dc[n]) for n in (0, 2, 3))
        wide, narrow = (cast(nn.Conv2d, self.ffn[n]) for n in (0, 2))
        inplace = not torch.is_grad_enabled()
        if self.folded:
            inner = F.silu(expand(x), inplace=inplace)
            out: Tensor = _added(project(depthwise(inner)), x)
            out = _added(narrow(_gated(wide, out)), out)
        else:
            inner = F.silu(_conv4(x, expand), inplace=inplace)
            out = x + project(_conv(inner, depthwise, 0.25))
            first, second = F.silu(_conv4(out, wide), inplace=inplace).chunk(2, dim=1)
            out = out + _conv(first + second, narrow, 0.25)
        return _added(out, x) if self.shortcut else out

    def fold(self) -> None:
        """Multiplies the weights themselves, for inference: the same results, but other numbers in ``state_dict``."""
        if self.folded:
            return
        with torch.no_grad():
            for step in (self.dc, self.ffn):
                first, second = cast(nn.Conv2d, step[0]), cast(nn.Conv2d, step[2])
                first.weight.mul_(4)
                cast(Tensor, first.bias).mul_(4)
                second.weight.mul_(0.25)
        self.folded = True


class Down2(nn.Module):
    """Halves height and width: a 2x2 convolution of stride 2, then a DepthConvBlock with shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(in_channels, out_channels, 2, stride=2)
        self.conv = DepthConvBlock(out_channels, out_channels, shortcut=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.down(x))  # type: ignore[no-any-return]


class SubPixelConv(nn.Module):
    """A pointwise convolution to four times the channels, then PixelShuffle(2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(in_channels, 4 * out_channels, 1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class Up2(nn.Module):
    """Doubles height and width: SubPixelConv, then a DepthConvBlock with shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = SubPixelConv(in_channels, out_channels)
        self.conv = DepthConvBlock(out_channels, out_channels, shortcut=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.up(x))  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Halves height and width with one 3x3 convolution of stride 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Doubles height and width: 3x3 convolution, GELU, pointwise to 4x channels, PixelShuffle(2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(in_channels, 4 * out_channels, 1),
            nn.PixelShuffle(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x)  # type: ignore[no-any-return]


class Adapter(nn.Module):
    """Three 3x3 convolutions with GELU between them, through the mean of the two widths."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        mid = (in_channels + out_channels) // 2
        self.branch1 = nn.Sequential(
            nn.Conv2d(in_channels, mid, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(mid, mid, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(mid, out_channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.branch1(x)  # type: ignore[no-any-return]


class PointwiseAdapter(nn.Module):
    """One pointwise convolution: the light counterpart of :class:`Adapter`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branch1 = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.branch1(x)  # type: ignore[no-any-return]


def depth_blocks(channels: int, count: int) -> list[nn.Module]:
    """``count`` DepthConvBlocks of one width."""
    return [DepthConvBlock(channels, channels) for _ in range(count)]


def random_start(*shape: int, std: float) -> nn.Parameter:
    """A learned table that starts at random; on the meta device, where normal draws import torch's compiler, empty."""
    table = torch.empty(shape)
    return nn.Parameter(table if table.is_meta else nn.init.normal_(table, std=std))


TURNS: Final = ((0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2))
"""By step and channel group: the position that is coded, twice its row in the 2x2 cell plus its column."""


def quadtree_masks(height: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """Which positions each channel group codes at each step.

    Returns:
        Bool (4 steps, 4 groups, height, width). At every position and step exactly one group is True, and over the
        four steps each group's turn comes once: step 0 codes positions A B C D of each 2x2 cell in groups 0..3,
        step 1 D C B A, step 2 C D A B, step 3 B A D C, with A=(0,0) B=(0,1) C=(1,0) D=(1,1).

    Source: DiT-IC's four-step quadtree context (after ELIC and DCVC-DC).
    """
    order = torch.tensor(TURNS, device=device)
    rows = torch.arange(height, device=device) % 2
    cols = torch.arange(width, device=device) % 2
    position = rows[:, None] * 2 + cols[None, :]
    return order[:, :, None, None] == position
