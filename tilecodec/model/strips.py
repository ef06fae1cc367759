"""Convolutions over a picture in strips of rows: the same sums, in memory for a few rows.

A wide network's intermediate tensors are what fills memory and what falls out of the cache. Two layers that look no
further than the rows next to a row can run strip by strip over a picture that lies in memory once: a strip of the
first layer's result is all that the second one needs. No row is computed twice, and each comes from the same inputs
as in one piece, so the results differ by no more than the order of a sum.

Shape legend: 1 picture, C channels, h rows, w columns, channels_last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP_BYTES: Final = {"cpu": 2 << 20}
"""About what a strip of the widest tensor takes, by type of device: on a CPU it should stay in the cache."""
OTHER_STRIP_BYTES: Final = 128 << 20
"""On other devices: large enough to keep the device busy."""
LEAST_ROWS: Final = 4

First = Callable[[int, int], Tensor]
"""``(begin, end) -> rows begin...end`` of the first layer's result, (1, C, end - begin, w)."""
Second = Callable[[Tensor, bool, bool], Tensor]
"""``(rows, top, bottom) -> `` the second layer's result, (1, C, h', w): one row less than it was given at the upper
side unless the rows begin at the picture's ``top``, and likewise at the lower side."""


def strip_rows(device: torch.device, row_bytes: int, weight_bytes: int) -> int:
    """Rows of a strip: enough for :data:`STRIP_BYTES`, and for more values than there are weights to go over them.

    Args:
        device: where the network runs.
        row_bytes: bytes of a row of the widest tensor.
        weight_bytes: bytes of the largest weight.
    """
    return _rows(device.type, row_bytes, weight_bytes)


def strips_bytes(device_type: str, row_bytes: int, weight_bytes: int, height: int) -> int:
    """Bytes of a strip of the widest tensor, see :func:`strip_rows`, out of ``height`` rows."""
    return min(_rows(device_type, row_bytes, weight_bytes) + 2, height) * row_bytes


def _rows(device_type: str, row_bytes: int, weight_bytes: int) -> int:
    return max(LEAST_ROWS, max(STRIP_BYTES.get(device_type, OTHER_STRIP_BYTES), weight_bytes) // row_bytes)


def rolling(height: int, rows: int, first: First, second: Second) -> Iterator[tuple[int, int, Tensor]]:
    """The second layer's result, strip by strip.

    What has been given out may overwrite the rows that ``first`` reads at the same place: of the rows above a strip,
    the first layer's results are kept, and its inputs are not looked at again.

    Args:
        height: rows of the picture.
        rows: rows of a strip, 2 or more.
        first: the first layer; may read one row beyond those it is asked for.
        second: the second layer, which sees one row beyond each.

    Yields:
        The first row, the row after the last, and the rows, (1, C, h', w).
    """
    kept: Tensor | None = None
    done = 0
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        ahead = min(bottom + 1, height)
        parts = [] if kept is None else [kept]
        if done < ahead:
            parts.append(first(done, ahead))
        wide = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
        if bottom < height:
            kept = wide[:, :, -2:].clone(memory_format=torch.channels_last)
        done = ahead
        yield top, bottom, second(wide, top == 0, bottom == height)


def conv_rows(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, top: bool, bottom: bool, groups: int = 1, stride: int = 1
) -> Tensor:
    """A convolution of odd kernel over some rows of a picture.

    Args:
        x: (1, C, h, w).
        weight: (O, C / groups, k, k).
        bias: (O,).
        top: the rows begin at the picture's first: it is padded with zeros, as the sides are.
        bottom: the rows end at the picture's last.
        groups: see :func:`torch.nn.functional.conv2d`.
        stride: likewise.

    Returns:
        (1, O, h', w'): without padding the kernel's reach is lost, k // 2 rows at either side.
    """
    reach = weight.shape[2] // 2
    if top and bottom:
        return F.conv2d(x, weight, bias, stride, reach, 1, groups)
    if reach and (top or bottom):
        x = F.pad(x, (0, 0, reach * top, reach * bottom))
    return F.conv2d(x, weight, bias, stride, (0, reach), 1, groups)


def conv_between(x: Tensor, begin: int, end: int, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Rows ``begin...end`` of a 3x3 convolution of a picture, see :func:`conv_rows`."""
    height = x.shape[2]
    around = x[:, :, max(begin - 1, 0) : min(end + 1, height)]
    return conv_rows(around, weight, bias, top=begin == 0, bottom=end == height)
