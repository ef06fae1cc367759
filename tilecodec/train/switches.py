"""Parts of the network switched off: by weights held constant, so that what is exported needs no switch of its own."""

from __future__ import annotations

from typing import Final, cast

import torch
from torch import nn

from tilecodec.errors import RecipeError
from tilecodec.model.ditic import DiTIC
from tilecodec.train.recipe import TrainRecipe

LOG_VARIANCE: Final = 3.0
"""Its standard deviation, exp(1.5) = 4.48, is past 4, where the diffusion step's weight is 1."""
_ENCODERS: Final = {"light": ("vae.front.", "vae.encoder."), "dc-ae": ("vae.encoder.",)}


def apply_switches(model: DiTIC, recipe: TrainRecipe) -> None:
    """Freezes what the recipe says, after weights were loaded and before anything is trained.

    Raises:
        RecipeError: a switch that this model does not have.
    """
    if not recipe.variance_guidance:
        _hold(model.codec.scale.synthesis_transform, LOG_VARIANCE)
    if not recipe.latent_guidance:
        _hold(model.codec.prompt.synthesis_transform, 0.0)
    if recipe.freeze_encoder:
        frozen = (*_ENCODERS[model.config.vae.kind], "aux_codec.")
        for name, parameter in model.named_parameters():
            if name.startswith(frozen):
                parameter.requires_grad_(False)
    if recipe.transformer and model.DiT is None:
        raise RecipeError("the model has no transformer", got=True, expected="false", where="transformer")
    if recipe.gain_start is not None and model.codec.gains is None:
        raise RecipeError("the model has no gains", got=recipe.gain_start, expected="nothing", where="gain_start")


def set_gains(model: DiTIC, low: float, high: float) -> None:
    """The code's gains at the rate points from exp(low) to exp(high), the same for all channels, and their inverses."""
    gains = model.codec.gains
    if gains is None:
        return
    with torch.no_grad():
        logs = torch.linspace(low, high, len(gains.log_gain), device=gains.log_gain.device)[:, None]
        gains.log_gain.copy_(logs.expand_as(gains.log_gain))
        gains.log_inverse.copy_(-logs.expand_as(gains.log_inverse))


def _hold(branch: nn.Sequential, value: float) -> None:
    """The branch gives ``value`` everywhere and learns nothing."""
    last = cast(nn.Conv2d, branch[-1])
    with torch.no_grad():
        last.weight.zero_()
        assert last.bias is not None
        last.bias.fill_(value)
    branch.requires_grad_(False)
