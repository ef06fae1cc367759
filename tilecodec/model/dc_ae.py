"""The official pixel autoencoder, DC-AE: residual convolutions at high resolution, EfficientViT blocks below.

Tensor names are those of the published checkpoints (and of diffusers' ``AutoencoderDC``, which the tests compare it
with). For inference its wide layers run in strips, see :mod:`tilecodec.model.strips`, so that a window takes little
more memory than its widest tensor once.

Shape legend: B batch, C channels, h w spatial. Blocks take and give (B, C, h, w) of one float dtype, best
channels_last. Without gradients some overwrite what they take.

Source: DC-AE, arXiv 2410.10733; EfficientViT, arXiv 2205.14756; layer counts of
``mit-han-lab/dc-ae-f32c32-sana-1.0``.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilecodec.errors import ModelConfigError
from tilecodec.model.config import VAEConfig
from tilecodec.model.linear_attention import linear_attention
from tilecodec.model.strips import conv_between, conv_rows, rolling, strip_rows

ATTENTION_STAGES = 3
"""The last stages, the deepest, are EfficientViT blocks; those before them are residual convolutions."""
HEAD = 32
"""Channels of an attention head."""
EXPANSION = 4
"""Hidden channels of an EfficientViT block's convolutions, times its own; twice that before the gate."""
NORM_EPS = 1e-5


class ChannelNorm(nn.Module):
    """Root mean square norm over the channels: (B, C, h, w) to float32 of the same shape, to be rounded later."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        values = x.permute(0, 2, 3, 1).float()
        size = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
        scale = torch.rsqrt(size.square() / x.shape[1] + NORM_EPS)
        return torch.addcmul(self.bias.float(), values * scale, self.weight.float()).permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """``x + norm(conv(silu(conv(x))))``, both convolutions 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return x + self.norm(self.conv2(F.silu(self.conv1(x)))).to(x.dtype)  # type: ignore[no-any-return]
        first, bias, second = self.conv1.weight, self.conv1.bias, self.conv2.weight
        rows = strip_rows(x.device, x[:, :, 0].nbytes, first.nbytes)

        def inner(begin: int, end: int) -> Tensor:
            return F.silu(conv_between(x, begin, end, first, bias), inplace=True)

        def outer(rows: Tensor, top: bool, bottom: bool) -> Tensor:
            return self.norm(conv_rows(rows, second, None, top=top, bottom=bottom))  # type: ignore[no-any-return]

        for top, bottom, step in rolling(x.shape[2], rows, inner, outer):
            x[:, :, top:bottom] += step.to(x.dtype)
        return x


class GatedConv(nn.Module):
    """``x + norm(point(value * silu(gate)))``, where value and gate are the halves of ``depth(silu(inverted(x)))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = EXPANSION * channels
        self.conv_inverted = nn.Conv2d(channels, 2 * hidden, 1)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, channels, 1, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            value, gate = self.conv_depth(F.silu(self.conv_inverted(x))).chunk(2, dim=1)
            return x + self.norm(self.conv_point(value * F.silu(gate))).to(x.dtype)  # type: ignore[no-any-return]
        wide, wide_bias = self.conv_inverted.weight, self.conv_inverted.bias
        depth, depth_bias, point = self.conv_depth.weight, self.conv_depth.bias, self.conv_point.weight
        channels = wide.shape[0]
        rows = strip_rows(x.device, x.shape[0] * x.shape[3] * channels * x.element_size(), wide.nbytes)

        def inner(begin: int, end: int) -> Tensor:
            return F.silu(F.conv2d(x[:, :, begin:end], wide, wide_bias), inplace=True)

        def outer(rows: Tensor, top: bool, bottom: bool) -> Tensor:
            deep = conv_rows(rows, depth, depth_bias, top=top, bottom=bottom, groups=channels)
            value, gate = deep.chunk(2, dim=1)
            return self.norm(F.conv2d(F.silu(gate).mul_(value), point))  # type: ignore[no-any-return]

        for top, bottom, step in rolling(x.shape[2], rows, inner, outer):
            x[:, :, top:bottom] += step.to(x.dtype)
        return x


class _Multiscale(nn.Module):
    """Queries, keys and values gathered over 5x5 positions: depthwise, then pointwise within each head's third."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.proj_in = nn.Conv2d(wide, wide, 5, padding=2, groups=wide, bias=False)
        self.proj_out = nn.Conv2d(wide, wide, 1, groups=wide // HEAD, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_out(self.proj_in(x))  # type: ignore[no-any-return]


class MultiscaleAttention(nn.Module):
    """``x + norm(out(attention))``: linear attention at two scales, (B, C, h, w) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_qkv_multiscale = nn.ModuleList([_Multiscale(channels)])
        self.to_out = nn.Linear(2 * channels, channels, bias=False)
        self.norm_out = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = x.permute(0, 2, 3, 1)
        strips = not torch.is_grad_enabled()
        near = torch.cat([part(tokens) for part in (self.to_q, self.to_k, self.to_v)], dim=-1)
        far = self.to_qkv_multiscale[0](near.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        # The checkpoints order all 3 C channels by head: queries, keys and values of each lie together.
        seen = [
            linear_attention(*t.reshape(batch, height * width, -1, 3 * HEAD).split(HEAD, dim=-1), strips=strips)
            for t in (near, far)
        ]
        out = self.to_out(torch.cat(seen, dim=-1)).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return (x + self.norm_out(out)).to(x.dtype)  # type: ignore[no-any-return]


class VitBlock(nn.Module):
    """EfficientViT: linear attention, then gated convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn = MultiscaleAttention(channels)
        self.conv_out = GatedConv(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.attn(x))  # type: ignore[no-any-return]


class DownBlock(nn.Module):
    """Halves height and width: a 3x3 convolution of stride 2, and beside it the means of groups of 2x2 values."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.conv(x) + self._means(x)  # type: ignore[no-any-return]
        batch, _, height, width = x.shape
        weight, bias = self.conv.weight, self.conv.bias
        shape = (batch, weight.shape[0], height // 2, width // 2)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        rows = strip_rows(x.device, 2 * x[:, :, 0].nbytes, weight.nbytes)
        for top in range(0, height // 2, rows):
            bottom = min(top + rows, height // 2)
            around = x[:, :, max(2 * top - 1, 0) : 2 * bottom]
            if top == 0:
                around = F.pad(around, (0, 0, 1, 0))
            step = F.conv2d(around, weight, bias, 2, (0, 1))
            torch.add(step, self._means(x[:, :, 2 * top : 2 * bottom]), out=out[:, :, top:bottom])
        return out

    def _means(self, x: Tensor) -> Tensor:
        out_channels = self.conv.weight.shape[0]
        return F.pixel_unshuffle(x, 2).unflatten(1, (out_channels, -1)).mean(dim=2)  # type: ignore[no-any-return]


class UpBlock(nn.Module):
    """Doubles height and width: a 3x3 convolution of the repeated pixels, and beside it the channels spread out.

    Each repeated pixel stands under the 3x3 kernel up to four times: :meth:`fold` adds up the weights that meet the
    same pixel, which leaves one 2x2 kernel for each of the four places of an output pixel, and 16 products instead of
    36.
    """

    kernels: nn.Module
    """After :meth:`fold`: a 2x2 convolution of C to 4 C' channels, the four places one after another."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.repeats = 4 * out_channels // in_channels
        self.folded = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.folded:
            spread = F.pixel_shuffle(x.repeat_interleave(self.repeats, dim=1), 2)
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")) + spread  # type: ignore[no-any-return]
        kernels = cast(nn.Conv2d, self.kernels)
        weight, bias = kernels.weight, kernels.bias
        batch, _, height, width = x.shape
        channels = weight.shape[0] // 4
        shape = (batch, channels, 2 * height, 2 * width)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        rows = strip_rows(x.device, batch * (width + 1) * weight.shape[0] * x.element_size(), weight.nbytes)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            around = x[:, :, max(top - 1, 0) : min(bottom + 1, height)]
            if top == 0 or bottom == height:
                around = F.pad(around, (0, 0, int(top == 0), int(bottom == height)))
            places = F.conv2d(around, weight, bias, 1, (0, 1))
            for place in range(4):
                y, x_ = divmod(place, 2)
                step = places[:, place * channels : (place + 1) * channels, y : y + bottom - top, x_ : x_ + width]
                into = out[:, :, 2 * top + y : 2 * bottom : 2, x_::2]
                torch.add(step, self._spread(x[:, :, top:bottom], place), out=into)
        return out

    def _spread(self, x: Tensor, place: int) -> Tensor:
        """The channels that land at one of the four places, (B, C', h, w)."""
        if 4 % self.repeats == 0:
            return x[:, place // self.repeats :: 4 // self.repeats]
        taken = torch.arange(place, x.shape[1] * self.repeats, 4, device=x.device) // self.repeats
        return x.index_select(1, taken)

    def fold(self) -> None:
        """For inference: adds up the weights, in their own dtype. ``state_dict`` has other names and shapes then."""
        if self.folded:
            return
        weight, bias = self.conv.weight, cast(Tensor, self.conv.bias)
        # rows (or columns) of the 3x3 kernel that meet each row of the 2x2 one, at the upper and at the lower place
        meet = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
        kernels = torch.einsum("ayr,bxc,oirc->aboiyx", meet, meet, weight)
        with torch.device("meta"):  # no starting values are drawn
            self.kernels = nn.Conv2d(weight.shape[1], 4 * weight.shape[0], 2)
        self.kernels.weight = nn.Parameter(kernels.flatten(0, 2), requires_grad=weight.requires_grad)
        self.kernels.bias = nn.Parameter(bias.repeat(4), requires_grad=bias.requires_grad)
        del self.conv
        self.folded = True


class Encoder(nn.Module):
    """Pixels to latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        stages = []
        for n, (width, layers) in enumerate(zip(widths, config.encoder_layers, strict=True)):
            down = [DownBlock(width, widths[n + 1])] if n + 1 < len(widths) else []
            stages.append(nn.Sequential(*_blocks(n, len(widths), width, layers), *down))
        self.down_blocks = nn.ModuleList(stages)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x = stage(x)
        latent = self.conv_out(x)
        return latent + x.unflatten(1, (latent.shape[1], -1)).mean(dim=2)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        stages = []
        for n, (width, layers) in enumerate(zip(widths, config.decoder_layers, strict=True)):
            up = [UpBlock(widths[n + 1], width)] if n + 1 < len(widths) else []
            stages.append(nn.Sequential(*up, *_blocks(n, len(widths), width, layers)))
        self.up_blocks = nn.ModuleList(stages)
        self.norm_out = ChannelNorm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        repeats = self.conv_in.weight.shape[0] // latent.shape[1]
        x = self.conv_in(latent) + latent.repeat_interleave(repeats, dim=1)
        for stage in reversed(self.up_blocks):
            x = stage(x)
        if torch.is_grad_enabled():
            return self.conv_out(F.relu(self.norm_out(x)).to(x.dtype))  # type: ignore[no-any-return]
        weight, bias = self.conv_out.weight, self.conv_out.bias
        rows = strip_rows(x.device, x[:, :, 0].nbytes, weight.nbytes)

        def inner(begin: int, end: int) -> Tensor:
            return self.norm_out(x[:, :, begin:end]).relu_().to(x.dtype)  # type: ignore[no-any-return]

        def outer(rows: Tensor, top: bool, bottom: bool) -> Tensor:
            return conv_rows(rows, weight, bias, top=top, bottom=bottom)

        return torch.cat([strip for _, _, strip in rolling(x.shape[2], rows, inner, outer)], dim=2)


def _blocks(stage: int, stages: int, width: int, layers: int) -> list[nn.Module]:
    kind = VitBlock if stage >= stages - ATTENTION_STAGES else ResBlock
    return [kind(width) for _ in range(layers)]


class DCAE(nn.Module):
    """Pixels in [-1, 1] (B, 3, H, W) to unscaled latents (B, latent_channels, H/stride, W/stride) and back.

    Tensors are named ``encoder.*`` and ``decoder.*``, as in the published checkpoints. Each half can be used, moved or
    dropped without the other.

    Raises:
        ModelConfigError: the config's stages contradict each other.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        stages = len(config.widths)
        if not ATTENTION_STAGES <= stages == len(config.encoder_layers) == len(config.decoder_layers):
            raise ModelConfigError(
                got=(config.widths, config.encoder_layers, config.decoder_layers),
                expected=f"widths, encoder_layers and decoder_layers of one length, {ATTENTION_STAGES} or more",
                where="vae",
            )
        if config.stride != 2 ** (stages - 1):
            raise ModelConfigError(got=config.stride, expected=2 ** (stages - 1), where="vae.stride")
        for name, layers in (("encoder_layers", config.encoder_layers), ("decoder_layers", config.decoder_layers)):
            if min(layers) < 1:
                raise ModelConfigError(got=layers, expected="1 or more in each stage", where=f"vae.{name}")
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], sides multiples of the stride, to the latent before its scaling factor."""
        return self.encoder(x.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]

    def decode(self, latent: Tensor) -> Tensor:
        """(B, latent_channels, h, w), scaling factor divided out, to pixels about [-1, 1], not clamped."""
        return self.decoder(latent.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]
