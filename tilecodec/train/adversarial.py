"""The adversarial loss: a patch discriminator with hinge losses, weighed so that it does not drown the distortion.

Source: hinge loss, arXiv 1802.05957; PatchGAN of three layers, arXiv 1611.07004 (appendix 6.1); adaptive weight, arXiv
2012.09841, equation 7, here from gradients at the picture instead of the last layer, which with low-rank adapters is
frozen and has none.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilecodec.train.recipe import AdversarialRecipe

LAYERS: Final = 3
MOST_CHANNELS: Final = 8
"""Widest layer, as a multiple of the first."""
MOST_WEIGHT: Final = 1e4
"""Bound of the adaptive weight."""


class PatchDiscriminator(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to one score for each patch of 70 pixels, (B, 1, about H/8, about W/8).

    Batch norms use the batch at hand and keep no averages, so threads can share the network.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for number in range(1, LAYERS + 1):
            wider = channels * min(2**number, MOST_CHANNELS)
            stride = 2 if number < LAYERS else 1
            layers += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(wider, track_running_stats=False),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """The discriminator's loss from its scores of originals and of reconstructions, a scalar."""
    return (F.relu(1 - real.float()).mean() + F.relu(1 + made.float()).mean()) / 2


def adaptive_weight(distortion: Tensor, deceit: Tensor, picture: Tensor) -> Tensor:
    """How much the adversarial loss must weigh to move the picture as far as the distortion does, a scalar.

    Args:
        distortion: scalar loss that depends on ``picture``.
        deceit: scalar adversarial loss, likewise.
        picture: (B, 3, H, W), part of both graphs.
    """
    pull, push = (torch.autograd.grad(loss, picture, retain_graph=True)[0].norm() for loss in (distortion, deceit))
    weight: Tensor = pull / (push + 1e-4)
    return weight.clamp(0, MOST_WEIGHT).detach()


class Adversary:
    """The discriminator and its optimizer."""

    def __init__(self, recipe: AdversarialRecipe, device: torch.device) -> None:
        self.recipe = recipe
        self.network = PatchDiscriminator(recipe.channels).to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=recipe.lr, betas=(0.5, 0.9), weight_decay=0.0)

    def deceit(self, picture: Tensor, distortion: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the loss, and the plain loss for the log, scalars.

        Args:
            picture: reconstruction, (B, 3, H, W), with its graph.
            distortion: scalar, see :func:`adaptive_weight`.
        """
        plain = -self.network(picture).float().mean()
        weight = self.recipe.weight * adaptive_weight(distortion, plain, picture)
        return weight * plain, plain.detach()

    def learn(self, originals: Tensor, pictures: Tensor, factor: float) -> Tensor:
        """One step of the discriminator, and its loss.

        Args:
            originals: (B, 3, H, W) in [-1, 1].
            pictures: reconstructions of them, without a graph.
            factor: of the learning rate.
        """
        self.network.requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        loss = hinge(self.network(originals), self.network(pictures))
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def freeze(self) -> None:
        """Before the network's own gradients: the discriminator gets none."""
        self.network.requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        """Network and optimizer."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
