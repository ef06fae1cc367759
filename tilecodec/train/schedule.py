"""How far a stage is, and what follows from it: learning rate and rate weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tilecodec.train.recipe import TrainRecipe

LEAST = 0.02
"""Share of the learning rate that is left at the end of a cosine."""


def share_done(step: int, recipe: TrainRecipe, minutes: float = 0.0) -> float:
    """How much of the stage is done, 0 to 1: of its steps, or of its minutes where it has a time budget."""
    done = step / recipe.steps if recipe.minutes is None else minutes / recipe.minutes
    return min(1.0, max(0.0, done))


def learning_rate_factor(step: int, recipe: TrainRecipe, minutes: float = 0.0) -> float:
    """Warm-up, then constant and cosine to 2 %, or falling in steps; by the minutes where there is a time budget."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    if recipe.schedule == "steps":
        passed = sum(share_done(step, recipe, minutes) >= at for at in recipe.decay_at)
        return warm * recipe.decay_factor**passed
    if recipe.minutes is None:
        into = (step - (recipe.steps - recipe.decay_steps)) / max(1, recipe.decay_steps)
    else:
        into = 2 * minutes / recipe.minutes - 1
    return warm * (LEAST + (1 - LEAST) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, into)))))


def rate_weight(step: int, recipe: TrainRecipe, rate_B: Tensor) -> Tensor:
    """``dit-ic``: weight of the bits per pixel of each picture, (B,) like the rate positions.

    Implicit bitrate pruning: over ``pruning_steps`` the weight moves from ``lambda_base`` to its target, by equal
    factors.

    Source: DiT-IC, arXiv 2603.13162, two-stage training.
    """
    high = recipe.lambda_target if recipe.lambda_target_high is None else recipe.lambda_target_high
    target = math.log(recipe.lambda_target) + (math.log(high) - math.log(recipe.lambda_target)) * rate_B
    if recipe.lambda_base is not None and step < recipe.pruning_steps:
        part = step / recipe.pruning_steps
        target = math.log(recipe.lambda_base) * (1 - part) + target * part
    return torch.exp(target)
