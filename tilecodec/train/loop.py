"""The training loop: steps, averages, checkpoints that resume to the same curve."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from tilecodec.entropy.quantise import entropy_layers, rounded_weight
from tilecodec.errors import DivergedError, RecipeError, TrainingError
from tilecodec.model.config import DiTICConfig
from tilecodec.train import checkpoint, samples
from tilecodec.train.captions import CaptionEmbeddings
from tilecodec.train.data import Batch
from tilecodec.train.log import Log, Means, Say, clock, say_on_stderr, write_rows
from tilecodec.train.network import Noise, TrainingNetwork
from tilecodec.train.objective import ObjectiveTerms, Outcome, Share
from tilecodec.train.optim import MuonAdamW
from tilecodec.train.recipe import TrainRecipe
from tilecodec.train.schedule import learning_rate_factor, share_done
from tilecodec.train.setup import check, checked_config, make_network, make_sampler, training_device, twin_of
from tilecodec.train.stopping import Stop, determined, stoppable, told_what_to_turn
from tilecodec.train.weights import Start, read_start

__all__ = ["Run", "TrainRecipe", "learning_rate_factor"]

CALIBRATION_CROPS = 28
"""Crops kept beside the checkpoints, for the export."""
CALIBRATION = "calibration.pt"
SKIPPED = "skipped.csv"


class Run:
    """A training run that can be stopped and resumed.

    Args:
        recipe: the stage. Where ``recipe.out`` has a checkpoint, the run goes on from it.
        config: of the model, instead of the recipe's.
        say: takes lines for people; they go to stderr by default.

    Raises:
        RecipeError: the recipe does not fit the model, the data or the checkpoint.
        DatasetError: too few or too flat pictures.
        MissingFileError, ModelError, StorageError: files that the recipe names.
    """

    def __init__(self, recipe: TrainRecipe, config: DiTICConfig | None = None, *, say: Say = say_on_stderr) -> None:
        self.recipe, self.say = recipe, say
        self.device = training_device(recipe)
        torch.manual_seed(recipe.seed)
        last = recipe.out / checkpoint.LAST
        state = checkpoint.read(last) if last.exists() else None
        start = read_start(recipe.start_from) if recipe.start_from is not None and state is None else None
        config = config or checked_config(recipe, start, state)
        check(recipe, config, state)
        self.embeddings = None if recipe.captions is None else CaptionEmbeddings(recipe.captions.embeddings)
        self._told: set[str] = set()
        self.sampler = make_sampler(recipe, say)
        self._tell_skipped()
        try:
            self._build(config, start, state)
        except BaseException:
            self.sampler.close()
            raise

    def _build(self, config: DiTICConfig, start: Start | None, state: dict[str, Any] | None) -> None:
        """Makes the networks and optimizers; the sampler is there."""
        recipe, say = self.recipe, self.say
        if self.embeddings is not None:
            self.embeddings.check(self.sampler.names())
        self.network = make_network(
            recipe,
            config,
            sampler=self.sampler,
            start=start,
            embeddings=self.embeddings,
            resumed=state is not None,
            say=say,
        ).to(self.device)
        self.network.to(memory_format=torch.channels_last)
        self.replicas = [
            self.network,
            *(twin_of(self.network, frozen_only=False) for _ in range(recipe.replicas - 1)),
        ]
        self._pool = ThreadPoolExecutor(recipe.replicas)
        self.ema = twin_of(self.network, frozen_only=True).requires_grad_(False)
        self.ema_steps = 0
        named = [(n.removeprefix("model."), p) for n, p in self.network.named_parameters() if "quantiles" not in n]
        self.optimizer = MuonAdamW(
            named,
            lr=recipe.lr,
            muon_lr=recipe.muon_lr if recipe.optimizer == "muon" else None,
            workers=recipe.replicas,
            betas=recipe.adam_betas,
            weight_decay=recipe.weight_decay,
        )
        self.aux_optimizer = torch.optim.Adam([self.network.bottleneck.quantiles], lr=recipe.aux_lr)
        self.objective = ObjectiveTerms(recipe, self.device)
        self.columns = [*self.objective.columns, *(["discriminator"] if recipe.adversarial else [])]
        self.step = 0
        self.minutes_spent = 0.0
        self.means = Means(len(self.columns))
        if state is not None:
            self._resume(state)

    # --- checkpoints

    def _resume(self, state: dict[str, Any]) -> None:
        try:
            self.network.load_state_dict(state["network"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.aux_optimizer.load_state_dict(state["aux_optimizer"])
            if self.objective.adversary is not None and "adversary" in state:
                self.objective.adversary.load_state_dict(state["adversary"])
        except (RuntimeError, ValueError, KeyError) as error:
            if isinstance(error, TrainingError):
                raise
            raise RecipeError(
                "the checkpoint is of another recipe",
                got=str(error).splitlines()[0],
                where=self.recipe.out / checkpoint.LAST,
                hint="Resume with the recipe the run began with, or give its ema.pt as start_from to a run elsewhere",
            ) from error
        self.step, self.ema_steps = state["step"], state["ema_steps"]
        self.minutes_spent = state.get("minutes", 0.0)
        self.sampler.restore(state["rng_numpy"])
        torch.set_rng_state(state["rng_torch"])
        sums = state.get("log_sums")
        if sums is not None and len(sums) == len(self.columns):
            self.means.sums, self.means.count = sums, state["log_count"]
        self.say(f"resumed at step {self.step}")
        for name, before, now in self.recipe.changes(state.get("recipe", {})):
            self.say(f"{name} was {before}, is {now}")

    def save(self) -> None:
        """Writes ``last.pt`` (everything) and ``ema.pt`` (averaged weights), each replaced in one move.

        Raises:
            StorageError: they cannot be written; those before are still there.
        """
        frozen = checkpoint.frozen_tensors(self.network)
        out, config = self.recipe.out, self.network.model.config.to_dict()
        if frozen and not (out / checkpoint.FROZEN).exists():
            checkpoint.write(out / checkpoint.FROZEN, {"tensors": frozen})
        everything = {
            "network": checkpoint.state_of(self.network, frozen),
            "ema": checkpoint.state_of(self.ema, frozen),
            "optimizer": self.optimizer.state_dict(),
            "aux_optimizer": self.aux_optimizer.state_dict(),
            "step": self.step,
            "ema_steps": self.ema_steps,
            "minutes": self.minutes_spent,
            "rng_numpy": self.sampler.state(),
            "rng_torch": torch.get_rng_state(),
            "config": config,
            "log_sums": self.means.sums,
            "log_count": self.means.count,
            "frozen": bool(frozen),
            "lora": None if self.recipe.lora is None else self.recipe.to_dict()["lora"],
            "recipe": self.recipe.to_dict(),
        }
        if self.objective.adversary is not None:
            everything["adversary"] = self.objective.adversary.state_dict()
        checkpoint.write(out / checkpoint.LAST, everything)
        kept = ("ema", "step", "config", "frozen", "lora")
        checkpoint.write(out / checkpoint.EMA, {k: everything[k] for k in kept})

    # --- one step

    def share(self, batch: Batch) -> Share:
        """A batch with what is drawn for it. Rates are stratified, so that every batch has low and high ones."""
        count, _, height, width = batch.pixels.shape
        rate = (torch.randperm(count) + torch.rand(count)) / count
        noise = Noise.draw(self.network.model.config, count, height, width)
        embeddings = described = None
        if self.embeddings is not None:
            embeddings, described = self.embeddings.of(batch.names)
            embeddings = embeddings.to(self.device)
        return Share(batch.pixels.to(self.device), rate.to(self.device), noise, embeddings, described, batch.names)

    def loss(self, network: TrainingNetwork, share: Share) -> Outcome:
        """The loss of a part of a batch."""
        return self.objective(network, share, step=self.step, done=self.done)

    def gradients(self, whole: Share) -> tuple[Tensor, Tensor]:
        """Leaves a batch's gradients on the network's parameters.

        Returns:
            The log's means, in the order of the objective's columns, and the reconstructions (B, 3, H, W).
        """
        replicas, pieces = len(self.replicas), self.recipe.divisions
        count = len(whole.pixels)
        pictures = torch.empty_like(whole.pixels)

        def work(replica: int) -> Tensor:
            total: Tensor | None = None
            for piece in range(replica, pieces, replicas):
                index = slice(piece, None, pieces)
                part = whole.part(index)
                weight = len(part.pixels) / count
                outcome = self.loss(self.replicas[replica], part)
                (outcome.loss * weight).backward()
                pictures[index] = outcome.picture
                total = outcome.parts * weight if total is None else total + outcome.parts * weight
            assert total is not None
            return total

        with self._rounded():
            parts = list(self._pool.map(work, range(replicas)))
        for mirror in self.replicas[1:]:
            pairs = zip(self.network.parameters(), mirror.parameters(), strict=True)
            mine, other = zip(*((a.grad, b.grad) for a, b in pairs if a.grad is not None), strict=True)
            torch._foreach_add_(list(mine), list(other))
            mirror.zero_grad(set_to_none=True)
        return torch.stack(parts).sum(0), pictures

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

    def _advance(self) -> Tensor:
        """One step of all optimizers; returns the values for the log.

        Raises:
            DivergedError: the loss or its gradient is no number; weights are as before.
        """
        recipe = self.recipe
        if self.objective.adversary is not None:
            self.objective.adversary.freeze()
        share = self.share(self.sampler.draw(self.step, recipe.batch))
        parts, pictures = self.gradients(share)
        if not torch.isfinite(parts[0]):
            self._diverged("loss", parts[0])
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), recipe.grad_clip)
        if not torch.isfinite(norm):
            self._diverged("gradient's norm", norm)
        factor = learning_rate_factor(self.step, recipe, self.minutes_spent)
        if self.objective.adversary is not None:
            learned = torch.zeros(())
            if self.objective.deceives(self.done):
                learned = self.objective.adversary.learn(share.pixels, pictures, factor)
            parts = torch.cat([parts, learned.reshape(1).cpu()])
        self.optimizer.step(factor)
        self.aux_optimizer.zero_grad()
        self.network.bottleneck.loss().backward()
        self.aux_optimizer.step()
        self.network.bottleneck.zero_grad()
        self._average()
        self.step += 1
        return parts

    def _diverged(self, what: str, value: Tensor) -> NoReturn:
        path = self.recipe.out / checkpoint.LAST
        kept = "there is no checkpoint yet"
        if path.exists():
            kept = f"the checkpoint of step {checkpoint.read(path)['step']} is kept in {path}"
        raise DivergedError(
            f"the {what} is {float(value)} at step {self.step}; {kept}",
            expected="a finite number",
            where=f"step {self.step}",
            hint="Resume from there with a lower lr and muon_lr, or a lower grad_clip",
        )

    def _average(self) -> None:
        self.ema_steps += 1
        keep = min(self.recipe.ema, self.ema_steps / (self.ema_steps + 10))
        with torch.no_grad():
            pairs = zip(self.ema.parameters(), self.network.parameters(), strict=True)
            mine, other = zip(*((a, b) for a, b in pairs if b.requires_grad), strict=True)
            torch._foreach_lerp_(list(mine), list(other), 1 - keep)

    # --- the loop

    @property
    def done(self) -> float:
        """Share of the stage, 0 to 1."""
        return share_done(self.step, self.recipe, self.minutes_spent)

    @property
    def finished(self) -> bool:
        """Whether the stage's steps or minutes are over."""
        if self.recipe.minutes is not None:
            return self.minutes_spent >= self.recipe.minutes
        return self.step >= self.recipe.steps

    def train(self) -> None:
        """Runs to ``recipe.steps``, or for ``recipe.minutes``.

        Raises:
            KeyboardInterrupt, SystemExit: after a signal, when the step in work is done and saved.
            DivergedError: see :meth:`_advance`.
            TrainingMemoryError: a step does not fit into memory.
            DatasetError: crops cannot be read any more.
            StorageError: a checkpoint or the log cannot be written.
        """
        recipe = self.recipe
        log = Log(recipe.out, self.columns, step=self.step, say=self.say, events=recipe.tensorboard)
        self._keep_calibration()
        with stoppable() as stop, told_what_to_turn(recipe), determined(recipe):
            self._loop(log, stop)
        log.close()
        self._tell_skipped(all_of_them=True)

    def close(self) -> None:
        """Ends threads and closes pictures."""
        self.sampler.close()
        self._pool.shutdown()

    def _loop(self, log: Log, stop: Stop) -> None:
        recipe = self.recipe
        saved = begun = time.monotonic()
        first, spent = self.step, self.minutes_spent
        while not self.finished:
            self.means.add(self._advance())
            self.minutes_spent = spent + (time.monotonic() - begun) / 60
            if self.step % recipe.log_every == 0 or self.finished:
                pace = (time.monotonic() - begun) / (self.step - first)
                log.row(self.step, self.means.take(), pace, self._progress(pace))
                self._tell_skipped()
            if recipe.sample_every and self.step % recipe.sample_every == 0:
                self._sample(log)
            if time.monotonic() - saved > recipe.minutes_between_checkpoints * 60 or stop.signal is not None:
                self.save()
                saved = time.monotonic()
            if stop.signal is not None:
                self.say(f"stopped after step {self.step}; --resume goes on from there")
                stop.leave()
        self.save()

    def _progress(self, pace: float) -> str:
        recipe = self.recipe
        if recipe.minutes is not None:
            left = (recipe.minutes - self.minutes_spent) * 60
            return f"step {self.step}  {clock(left)} left"
        return f"step {self.step}/{recipe.steps}  {clock((recipe.steps - self.step) * pace)} left"

    def _sample(self, log: Log) -> None:
        recipe = self.recipe
        crops = self.sampler.extra(recipe.sample_pictures).to(self.device)
        rows = samples.reconstructions(self.ema, crops, diffuse=recipe.transformer, bf16=recipe.precision == "bf16")
        pixels = samples.grid([crops, *rows])
        png = samples.write_png(recipe.out / "samples" / f"step-{self.step:07d}.png", pixels)
        if log.events is not None:
            log.events.picture(self.step, "original above reconstructions", png, *pixels.shape[:2])

    def _keep_calibration(self) -> None:
        """Leaves crops beside the checkpoints, so that an export needs no data."""
        path = self.recipe.out / CALIBRATION
        if not path.exists():
            levels = (self.sampler.extra(CALIBRATION_CROPS) + 1) * 127.5
            checkpoint.write(path, {"levels": levels.round().to(torch.uint8)})

    def _tell_skipped(self, *, all_of_them: bool = False) -> None:
        """Says which pictures could not be read: new ones, or at the end all of them."""
        found = self.sampler.skipped()
        new = found if all_of_them else {k: v for k, v in found.items() if k not in self._told}
        if all_of_them and found:
            self.say(f"{len(found)} pictures could not be read:")
        for path, reason in new.items():
            self.say(f"skipped {path}: {reason}")
        if new:
            self._told |= set(found)
            write_rows(self.recipe.out / SKIPPED, [["path", "reason"], *(list(item) for item in found.items())])


def calibration_crops(folder: Path) -> Tensor:
    """The crops that a run left beside its checkpoints, float32 (B, 3, H, W) in [-1, 1].

    Raises:
        MissingFileError: there are none.
    """
    levels: Tensor = checkpoint.read(folder / CALIBRATION)["levels"]
    return levels.float() / 127.5 - 1
