"""The training loop: warm-up, constant rate, cosine decay at the end; checkpoints that resume."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilecodec.entropy.quantise import entropy_layers, rounded_weight
from tilecodec.model.config import DiTICConfig, default_config
from tilecodec.model.ditic import DiTIC
from tilecodec.model.light_vae import LightVAE
from tilecodec.train.data import CropSampler
from tilecodec.train.losses import LPIPSSqueeze, grid_loss, ms_ssim
from tilecodec.train.network import TrainingNetwork
from tilecodec.train.optim import MuonAdamW
from tilecodec.train.start import start_as_transform

TRANSFORM_CROPS = 160
"""Crops whose principal components a light model starts from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRecipe:
    """One training stage. Steps count from the run's very first step, across stages."""

    store: Path
    """Store of decoded pictures, see :func:`tilecodec.train.data.build_store`."""
    out: Path
    """Folder for ``last.pt``, ``ema.pt`` and ``log.csv``."""
    lpips_weights: Path | None = None
    domains: dict[str, float] = field(default_factory=lambda: {"photo": 0.5, "aerial": 0.3, "medical": 0.2})
    crop: int = 256
    batch: int = 12
    steps: int = 3000
    decay_steps: int = 1200
    """The last steps, over which the learning rate falls to 2 % along a cosine."""
    minutes: float | None = None
    """Wall-clock budget instead of ``steps``: the learning rate falls over its last half."""
    start_from: Path | None = None
    """A checkpoint whose averaged weights a new run starts from, wherever names and shapes agree."""
    warmup_steps: int = 100
    lr: float = 1e-3
    muon_lr: float = 1e-2
    lambda_low: float = 0.00012
    lambda_high: float = 0.025
    """Weight of 255^2 MSE against bits per pixel at the lowest and the highest quality."""
    rate_ramp_steps: int = 300
    """Steps over which the rate's weight grows from 0.1 to 1: with full weight from the start, the low qualities press
    channels to zero before the decoder has learned to use them, and they stay there."""
    mse_weight: float = 1.0
    """Weight of 255^2 MSE in the distortion."""
    ms_ssim_weight: float = 0.0
    """Weight of 1 - MS-SSIM in the distortion; about 1300 balances it with MSE."""
    lpips_weight: float = 0.0
    """Weight of LPIPS in the distortion."""
    grid_weight: float = 0.0
    """Weight of the block pattern, see :func:`tilecodec.train.losses.grid_loss`; beside the rate, at every quality."""
    alignment_weight: float = 0.0
    """Weight of the self-distillation alignment of x0 with the encoder's latent."""
    transformer: bool = False
    integer_weights: bool = False
    """Whether the entropy model runs with the rounded weights that its integer program will have; gradients pass."""
    replicas: int = 1
    """Copies of the network that share the batch, one thread each: on two CPU cores, two are half again as fast as one
    on two threads. Run with ``OMP_NUM_THREADS=1``."""
    ema: float = 0.998
    grad_clip: float = 2.0
    seed: int = 1
    minutes_between_checkpoints: float = 4.0


def start_near_identity(model: DiTIC) -> None:
    """Residual branches start near zero, the transformer's output at zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("dc.3.weight", "ffn.2.weight")):
                parameter.mul_(0.2)
            if name.endswith(("dc.3.bias", "ffn.2.bias")):
                parameter.zero_()
        ends = [model.codec.aux.block[-1], getattr(model.DiT, "proj_out", None)]
        for parameter in (p for layer in ends if isinstance(layer, torch.nn.Module) for p in layer.parameters()):
            parameter.zero_()


def learning_rate_factor(step: int, recipe: TrainRecipe, minutes: float = 0.0) -> float:
    """Warm-up, constant, cosine to 2 %; by steps, or by the minutes the run has taken where it has a time budget."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    if recipe.minutes is None:
        into = (step - (recipe.steps - recipe.decay_steps)) / max(1, recipe.decay_steps)
    else:
        into = 2 * minutes / recipe.minutes - 1
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, into)))))


def alignment_loss(x0: Tensor, latent: Tensor, margin: float = 0.5) -> Tensor:
    """Self-distillation alignment: ``relu(1 - margin - cos)`` over channels, mean over positions, (B,)."""
    cosine = torch.nn.functional.cosine_similarity(x0.float(), latent.detach().float(), dim=1)
    return torch.relu(1 - margin - cosine).mean((1, 2))


def _mirror(network: TrainingNetwork) -> TrainingNetwork:
    """A copy with gradients of its own on the same weights: both see every update."""
    mirror = copy.deepcopy(network)
    for own, shared in zip(mirror.parameters(), network.parameters(), strict=True):
        own.data = shared.data
    return mirror


class Run:
    """A training run that can be stopped and resumed."""

    def __init__(self, recipe: TrainRecipe, config: DiTICConfig | None = None) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.network = TrainingNetwork(DiTIC(config or default_config()))
        start_near_identity(self.network.model)
        self.sampler = CropSampler(recipe.store, crop=recipe.crop, weights=recipe.domains, seed=recipe.seed)
        if isinstance(self.network.model.vae, LightVAE):
            start_as_transform(self.network.model, self.sampler.batch(TRANSFORM_CROPS))
        self.network.to(memory_format=torch.channels_last)
        self.replicas = [self.network, *(_mirror(self.network) for _ in range(recipe.replicas - 1))]
        self._pool = ThreadPoolExecutor(recipe.replicas)
        self.ema = copy.deepcopy(self.network).requires_grad_(False)
        self.ema_steps = 0
        named = [(n.removeprefix("model."), p) for n, p in self.network.named_parameters() if "quantiles" not in n]
        self.optimizer = MuonAdamW(named, lr=recipe.lr, muon_lr=recipe.muon_lr, workers=recipe.replicas)
        self.aux_optimizer = torch.optim.Adam([self.network.bottleneck.quantiles], lr=1e-2)
        self.lpips = LPIPSSqueeze(recipe.lpips_weights) if recipe.lpips_weights else None
        self.step = 0
        last = recipe.out / "last.pt"
        self.minutes_spent = 0.0
        if last.exists():
            self._resume(torch.load(last, weights_only=False))
        elif recipe.start_from is not None:
            self._start_from(torch.load(recipe.start_from, weights_only=True)["ema"])

    def _resume(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.aux_optimizer.load_state_dict(state["aux_optimizer"])
        self.step, self.ema_steps = state["step"], state["ema_steps"]
        self.minutes_spent = state.get("minutes", 0.0)
        self.sampler.rng.bit_generator.state = state["rng_numpy"]
        torch.set_rng_state(state["rng_torch"])

    def _start_from(self, weights: dict[str, Tensor]) -> None:
        own = self.network.state_dict()
        fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
        for target in (self.network, self.ema):
            target.load_state_dict(fitting, strict=False)
        print(f"started from {len(fitting)} of {len(own)} tensors")

    def save(self) -> None:
        """Writes ``last.pt`` (everything) and ``ema.pt`` (averaged weights), each replaced in one move."""
        self.recipe.out.mkdir(parents=True, exist_ok=True)
        everything = {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "aux_optimizer": self.aux_optimizer.state_dict(),
            "step": self.step,
            "ema_steps": self.ema_steps,
            "minutes": self.minutes_spent,
            "rng_numpy": self.sampler.rng.bit_generator.state,
            "rng_torch": torch.get_rng_state(),
            "config": self.network.model.config.to_dict(),
        }
        for name, value in (("last.pt", everything), ("ema.pt", {k: everything[k] for k in ("ema", "step", "config")})):
            torch.save(value, self.recipe.out / (name + ".tmp"))
            os.replace(self.recipe.out / (name + ".tmp"), self.recipe.out / name)

    def loss(self, network: TrainingNetwork, x: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of a batch at rate positions (B,), and the means of [bpp, mse255, MS-SSIM, LPIPS, grid] for the log."""
        recipe = self.recipe
        weight = recipe.lambda_low * (recipe.lambda_high / recipe.lambda_low) ** rate
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = network(x.contiguous(memory_format=torch.channels_last), rate, diffuse=recipe.transformer)
        picture = result.picture.float()
        mse = (picture - x).pow(2).mean((1, 2, 3)) * 127.5**2
        bpp = result.bpp_y + result.bpp_z
        distortion = recipe.mse_weight * mse
        similarity, lpips, grid = (torch.zeros_like(mse) for _ in range(3))
        if recipe.ms_ssim_weight:
            similarity = ms_ssim(picture, x)
            distortion = distortion + recipe.ms_ssim_weight * (1 - similarity)
        if self.lpips is not None and recipe.lpips_weight:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                lpips = self.lpips(picture, x)
            distortion = distortion + recipe.lpips_weight * lpips
        ramp = min(1.0, 0.1 + 0.9 * self.step / max(1, recipe.rate_ramp_steps))
        total = (ramp * bpp + weight * distortion) / torch.sqrt(1 + weight / 0.002)
        if recipe.grid_weight:
            grid = grid_loss(picture, x)
            total = total + recipe.grid_weight * grid
        if recipe.alignment_weight:
            total = total + recipe.alignment_weight * alignment_loss(result.denoised.x0, result.latent)
        return total.mean(), torch.stack([v.detach().mean() for v in (total, bpp, mse, similarity, lpips, grid)])

    def gradients(self, x: Tensor) -> Tensor:
        """Leaves a batch's gradients on the network's parameters; returns the log's means.

        Rates are drawn stratified, so that every batch has low and high ones.
        """
        count = len(self.replicas)
        rate = (torch.randperm(len(x)) + torch.rand(len(x))) / len(x)

        def share(index: int) -> Tensor:
            loss, parts = self.loss(self.replicas[index], x[index::count], rate[index::count])
            (loss / count).backward()
            return parts

        with self._rounded():
            parts = list(self._pool.map(share, range(count)))
        for mirror in self.replicas[1:]:
            pairs = zip(self.network.parameters(), mirror.parameters(), strict=True)
            mine, other = zip(*((a.grad, b.grad) for a, b in pairs if a.grad is not None), strict=True)
            torch._foreach_add_(list(mine), list(other))
            mirror.zero_grad(set_to_none=True)
        return torch.stack(parts).mean(0)

    @contextmanager
    def _rounded(self) -> Iterator[None]:
        """Within, the entropy model's weights are rounded, for all replicas: they share them."""
        layers = entropy_layers(self.network.model.codec).values() if self.recipe.integer_weights else ()
        kept = [layer.weight.detach().clone() for layer in layers]
        with torch.no_grad():
            for layer in layers:
                layer.weight.copy_(rounded_weight(layer.weight))
        try:
            yield
        finally:
            with torch.no_grad():
                for layer, weight in zip(layers, kept, strict=True):
                    layer.weight.copy_(weight)

    def train(self) -> None:
        """Runs to ``recipe.steps``."""
        recipe = self.recipe
        recipe.out.mkdir(parents=True, exist_ok=True)
        saved = begun = time.monotonic()
        first, sums, spent = self.step, torch.zeros(6), self.minutes_spent
        while self.minutes_spent < recipe.minutes if recipe.minutes is not None else self.step < recipe.steps:
            parts = self.gradients(self.sampler.batch(recipe.batch))
            if not torch.isfinite(parts[0]):
                raise FloatingPointError(f"loss is {float(parts[0])} at step {self.step}; last checkpoint kept")
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), recipe.grad_clip)
            self.optimizer.step(learning_rate_factor(self.step, recipe, self.minutes_spent))
            self.aux_optimizer.zero_grad()
            self.network.bottleneck.loss().backward()
            self.aux_optimizer.step()
            self.network.bottleneck.zero_grad()
            self._average()
            self.step += 1
            self.minutes_spent = spent + (time.monotonic() - begun) / 60
            sums += parts
            if self.step % 50 == 0:
                pace = (time.monotonic() - begun) / (self.step - first)
                row = ",".join(f"{v / 50:.5f}" for v in sums.tolist())
                with (recipe.out / "log.csv").open("a") as log:
                    log.write(f"{self.step},{row},{pace:.3f}\n")
                print(self.step, row, f"{pace:.3f} s/step", flush=True)
                sums.zero_()
            if time.monotonic() - saved > recipe.minutes_between_checkpoints * 60:
                self.save()
                saved = time.monotonic()
        self.save()

    def _average(self) -> None:
        self.ema_steps += 1
        keep = min(self.recipe.ema, self.ema_steps / (self.ema_steps + 10))
        with torch.no_grad():
            pairs = zip(self.ema.parameters(), self.network.parameters(), strict=True)
            mine, other = zip(*((a, b) for a, b in pairs), strict=True)
            torch._foreach_lerp_(list(mine), list(other), 1 - keep)
