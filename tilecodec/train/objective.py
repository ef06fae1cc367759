"""What a stage minimises: rate, distortion, alignments, and the adversary's part, for one share of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tilecodec.train.adversarial import Adversary
from tilecodec.train.captions import annealed, contrastive_loss
from tilecodec.train.dists import DISTS
from tilecodec.train.losses import LPIPSSqueeze, alignment_loss, grid_loss, ms_ssim
from tilecodec.train.network import Noise, TrainingNetwork, TrainingPass
from tilecodec.train.recipe import TrainRecipe
from tilecodec.train.schedule import rate_weight

KNEE = 0.002
"""λ beyond which a picture's loss is scaled down, so that high qualities do not rule the gradients."""


@dataclass(frozen=True, eq=False, slots=True)
class Share:
    """A part of a batch."""

    pixels: Tensor
    """(B, 3, H, W) float32 in [-1, 1]."""
    rate: Tensor
    """(B,) float32 in [0, 1]: the quality each picture is coded at."""
    noise: Noise
    embeddings: Tensor | None = None
    """(B, n) float32: text embeddings."""
    described: Tensor | None = None
    """(B,) bool: the pictures that have one."""
    names: tuple[str, ...] = ()

    def part(self, index: slice) -> Share:
        """Some of the pictures."""
        return Share(
            self.pixels[index],
            self.rate[index],
            self.noise.part(index),
            None if self.embeddings is None else self.embeddings[index],
            None if self.described is None else self.described[index],
            self.names[index],
        )


@dataclass(frozen=True, eq=False, slots=True)
class Outcome:
    """The loss of a share."""

    loss: Tensor
    """Scalar, with its graph."""
    parts: Tensor
    """Means for the log, float32, in the order of :attr:`ObjectiveTerms.columns`, without a graph."""
    picture: Tensor
    """Reconstructions (B, 3, H, W) float32, without a graph."""


class ObjectiveTerms:
    """The terms of a recipe, and the frozen networks they need.

    Args:
        recipe: which terms, and their weights.
        device: of those networks.
    """

    def __init__(self, recipe: TrainRecipe, device: torch.device) -> None:
        self.recipe = recipe
        self.lpips = LPIPSSqueeze(recipe.lpips_weights).to(device) if recipe.lpips_weights else None
        self.dists = DISTS(recipe.dists_weights).to(device) if recipe.dists_weights else None
        self.adversary = None if recipe.adversarial is None else Adversary(recipe.adversarial, device)
        self.columns = ["loss", "bpp", "mse255", "ms_ssim", "lpips", "grid"]
        """Names of what is logged."""
        optional = {
            "dists": recipe.dists_weight > 0,
            "alignment": recipe.alignment_weight > 0,
            "captions": recipe.captions is not None,
            "deceit": recipe.adversarial is not None,
        }
        self.columns += [name for name, used in optional.items() if used]

    def deceives(self, done: float) -> bool:
        """Whether the adversarial loss takes part when a share ``done`` of the stage is done."""
        return self.adversary is not None and done >= self.adversary.recipe.after

    def __call__(self, network: TrainingNetwork, share: Share, *, step: int, done: float) -> Outcome:
        """The loss of a share.

        Args:
            network: the network or a replica of it.
            share: on the network's device.
            step: of the stage.
            done: share of the stage, 0 to 1.
        """
        recipe, x = self.recipe, share.pixels
        with self._autocast(x.device):
            result = network(
                x.contiguous(memory_format=torch.channels_last),
                share.rate,
                share.noise,
                diffuse=recipe.transformer,
                block_scale_gradient=recipe.block_scale_gradient,
            )
        picture = result.picture.float()
        terms = self._distortion(picture, x)
        bpp = result.bpp_y + result.bpp_z
        logged = {**terms, "bpp": bpp}
        distortion = self._weighted(terms)
        if recipe.objective == "rate-distortion":
            weight = recipe.lambda_low * (recipe.lambda_high / recipe.lambda_low) ** share.rate
            ramp = min(1.0, 0.1 + 0.9 * step / max(1, recipe.rate_ramp_steps))
            total = (ramp * bpp + weight * distortion) / torch.sqrt(1 + weight / KNEE)
        else:
            total = rate_weight(step, recipe, share.rate) * bpp + distortion
        if recipe.grid_weight:
            total = total + recipe.grid_weight * terms["grid"]
        if recipe.alignment_weight:
            aligned = alignment_loss(result.denoised.x0, result.latent, recipe.alignment_margin)
            logged["alignment"] = aligned
            total = total + recipe.alignment_weight * aligned
        logged["loss"] = total
        loss = total.mean()
        extra = self._contrast(network, share, result, done)
        if extra is not None:
            logged["captions"] = extra[1]
            loss = loss + extra[0]
        if self.adversary is not None:
            logged["deceit"] = torch.zeros(())
            if self.deceives(done):
                with self._autocast(x.device):
                    deceit, logged["deceit"] = self.adversary.deceit(picture, loss)
                loss = loss + deceit
        parts = torch.stack([logged[name].detach().mean().float().cpu() for name in self.columns])
        return Outcome(loss, parts, picture.detach())

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def _distortion(self, picture: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Every term that the recipe weighs, (B,) each; zeros for those that are logged without."""
        recipe = self.recipe
        terms = {"mse255": (picture - x).pow(2).mean((1, 2, 3)) * 127.5**2}
        none = torch.zeros_like(terms["mse255"])
        terms["ms_ssim"] = ms_ssim(picture, x) if recipe.ms_ssim_weight else none
        terms["lpips"] = terms["dists"] = none
        with self._autocast(x.device):
            if self.lpips is not None and recipe.lpips_weight:
                terms["lpips"] = self.lpips(picture, x)
            if self.dists is not None and recipe.dists_weight:
                terms["dists"] = self.dists(picture, x)
        terms["grid"] = grid_loss(picture, x) if recipe.grid_weight else none
        return terms

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        recipe = self.recipe
        unit = 1.0 if recipe.objective == "rate-distortion" else 127.5**2
        total = recipe.mse_weight / unit * terms["mse255"]
        if recipe.ms_ssim_weight:
            total = total + recipe.ms_ssim_weight * (1 - terms["ms_ssim"])
        if recipe.lpips_weight:
            total = total + recipe.lpips_weight * terms["lpips"]
        if recipe.dists_weight:
            total = total + recipe.dists_weight * terms["dists"]
        return total

    def _contrast(
        self, network: TrainingNetwork, share: Share, result: TrainingPass, done: float
    ) -> tuple[Tensor, Tensor] | None:
        """The weighted contrastive loss and the plain one, scalars; None where captions take no part."""
        recipe, tokens = self.recipe.captions, result.denoised.caption
        if recipe is None or network.captions is None or tokens is None or share.embeddings is None:
            return None
        weight = annealed(recipe, done)
        assert share.described is not None
        chosen = share.described.nonzero()[:, 0].tolist()
        pooled = network.captions(tokens)
        names = [share.names[n] for n in chosen]
        plain = contrastive_loss(pooled[chosen], share.embeddings[chosen], names, recipe.temperature)
        return weight * plain, plain
