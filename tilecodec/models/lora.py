"""LoRA tensors merged onto the weights they belong to: W + B · A, what peft's own merge computes.

The released adapters have alpha equal to their rank and no biases, so the factor is 1. Each layer is merged when it is
written, so that neither the base nor the result is ever whole in memory.

Source: LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from tilecodec.models.checkpoint import Adapter


def misfit(weight: tuple[int, ...], adapter: Adapter) -> str | None:
    """What keeps an adapter from being merged onto a weight, in words; None if nothing does.

    Args:
        weight: the weight's shape, (outputs, inputs) or (outputs, inputs, k, k).
        adapter: its two tensors.
    """
    if adapter.a is None or adapter.b is None:
        return f"lora_{'A' if adapter.a is None else 'B'} is missing"
    a, b = tuple(adapter.a.shape), tuple(adapter.b.shape)
    fits = len(weight) in (2, 4) and a[1:] == weight[1:] and b == (weight[0], a[0], *[1] * (len(weight) - 2))
    return None if fits else f"lora_A {a}, lora_B {b}"


def merged(weight: Tensor, adapters: Iterable[Adapter]) -> Tensor:
    """A weight with its adapters, float32, of the weight's shape.

    Args:
        weight: any float dtype; not changed.
        adapters: of matching shapes, see :func:`misfit`.
    """
    total = weight.float().clone()
    for adapter in adapters:
        assert adapter.a is not None
        assert adapter.b is not None
        total += (adapter.b.float().flatten(1) @ adapter.a.float().flatten(1)).reshape(total.shape)
    return total
