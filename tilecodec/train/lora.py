"""Low-rank adapters by peft: put in, told apart, merged into the weights they adapt.

Checkpoints hold the adapters under peft's names, ``...base_layer.weight`` and ``...lora_A.default.weight``.

Source: LoRA, arXiv 2106.09685; ranks and layers of DiT-IC, arXiv 2603.13162, supplement.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor, nn

from tilecodec.errors import RecipeError
from tilecodec.model.blocks import DepthConvBlock
from tilecodec.model.config import DiTICConfig
from tilecodec.model.ditic import DiTIC
from tilecodec.train.recipe import LoraRecipe

BASE: Final = ".base_layer."
"""Where peft's names differ from the plain ones."""
MARK: Final = ".lora_"


def add_adapters(model: DiTIC, recipe: LoraRecipe) -> None:
    """Puts adapters into the autoencoder's decoder and the transformer, and freezes all else of both.

    An adapter starts as no change: its second factor is zero.

    Raises:
        RecipeError: no layer goes by any of the targets' names, or one that does takes no adapter.
    """
    if recipe.vae_rank:
        _inject(model.vae, r"decoder\.(?:.*\.)?", recipe.vae_targets, recipe.vae_rank, "vae_targets")
        _only_adapters(model.vae)
    if recipe.transformer_rank:
        if model.DiT is None:
            raise RecipeError(
                "the model has no transformer", got=recipe.transformer_rank, where="lora.transformer_rank"
            )
        targets = recipe.transformer_targets
        _inject(model.DiT, r"(?:.*\.)?", targets, recipe.transformer_rank, "transformer_targets")
        _only_adapters(model.DiT)


def plain_name(name: str) -> str:
    """A tensor's name without adapters."""
    return name.replace(BASE, ".")


def merged(config: DiTICConfig, weights: Mapping[str, Tensor], recipe: LoraRecipe) -> dict[str, Tensor]:
    """The weights of a network with adapters as those of one without.

    Args:
        config: of the network.
        weights: the model's tensors under peft's names, float32.
        recipe: what the adapters were made from.

    Returns:
        Tensors under the model's own names, the adapters multiplied out and added.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = DiTIC(config)
    add_adapters(model, recipe)
    model.load_state_dict(weights)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    return {plain_name(k): v for k, v in model.state_dict().items() if MARK not in k}


def recipe_of(described: Mapping[str, Any]) -> LoraRecipe:
    """A recipe from a checkpoint's plain values."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in described.items()}
    known = {f.name for f in dataclasses.fields(LoraRecipe)}
    return LoraRecipe(**{k: v for k, v in values.items() if k in known})


def _inject(module: nn.Module, before: str, targets: tuple[str, ...], rank: int, key: str) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    pattern = before + "(?:" + "|".join(re.escape(t) for t in targets) + ")"
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, bias="none", target_modules=pattern)
    names = [n for n, m in module.named_modules() if re.fullmatch(pattern, n)]
    if not names:
        ends = sorted({n.rsplit(".", 1)[-1] for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)})
        got = ", ".join(targets)
        raise RecipeError(
            "no layer for an adapter", got=got, expected=f"ends of names among {ends}", where=f"lora.{key}"
        )
    folded = {id(part) for block in module.modules() if isinstance(block, DepthConvBlock) for part in block.modules()}
    passed = [n for n in names if id(module.get_submodule(n)) in folded]
    if passed:  # the block reads the weights of its layers, past any adapter
        raise RecipeError("a layer that takes no adapter", got=passed[0], where=f"lora.{key}")
    inject_adapter_in_model(config, module)


def _only_adapters(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(MARK in name)
