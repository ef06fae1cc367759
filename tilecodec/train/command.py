"""``tilecodec train``: the stages of a recipe one after the other, then the export."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tilecodec.errors import TargetExistsError, UsageError
from tilecodec.train.reading import Stage, read_stages
from tilecodec.train.recipe import TrainRecipe

NEEDED: Final = ("compressai", "yaml", "torchvision", "peft")
MODEL: Final = "model"
"""Folder of the exported model, within the run's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainReport:
    """What a training came to."""

    out: str
    """Folder of the last stage."""
    steps: int
    """Of the last stage."""
    seconds: float
    """Of this call."""
    last: dict[str, float]
    """Means of the last row of the log, by name; empty where no row was written."""
    skipped: dict[str, str]
    """Pictures that could not be read, and why."""
    model: str | None
    """Folder of the exported model."""
    sha256: str | None
    """The model's hash."""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


def check_extra() -> None:
    """Refuses to begin without the packages that training needs.

    Raises:
        UsageError: one is missing.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        hint = "Install the extra: tilecodec[train]"
        raise UsageError("training needs more packages", got=f"no {', '.join(missing)}", where="train", hint=hint)


def train(
    config: Path, *, out: Path | None = None, settings: Sequence[str] = (), resume: bool = False, quiet: bool = False
) -> TrainReport:
    """Runs the stages of a recipe file; those that are finished are passed over.

    Args:
        config: see :func:`tilecodec.train.reading.read_stages`.
        out: see there.
        settings: see there.
        resume: go on with what lies in the folder; without it, nothing may.
        quiet: say nothing on stderr.

    Raises:
        RecipeError, MissingFileError: the recipe, or files it names.
        TargetExistsError: there is a run already.
        TrainingError: see :class:`tilecodec.train.loop.Run`.
    """
    check_extra()
    begun = time.monotonic()
    stages = read_stages(config, out=out, settings=settings)
    for stage in stages:
        last = stage.recipe.out / "last.pt"
        if last.exists() and not resume:
            raise TargetExistsError(
                "there is a run already", got=str(last), expected="an empty folder", hint="Go on with it by --resume"
            )
    _set_threads(stages[0].recipe)
    from tilecodec.train.log import say_on_stderr
    from tilecodec.train.loop import SKIPPED, Run

    say = (lambda _line: None) if quiet else say_on_stderr
    skipped: dict[str, str] = {}
    for number, stage in enumerate(stages):
        done = _passed_over(stages, number)
        if done:
            say(f"{stage.name} is finished")
            continue
        if len(stages) > 1:
            say(f"{stage.name}: {stage.recipe.out}")
        run = Run(stage.recipe, say=say)
        try:
            run.train()
            skipped |= run.sampler.skipped()
        finally:
            run.close()
    recipe = stages[-1].recipe
    model = sha256 = None
    if recipe.export:
        model = recipe.out / MODEL
        say(f"exporting {model}")
        sha256 = export_run(recipe.out / "ema.pt", model)
    if skipped:
        say(f"pictures that could not be read: {recipe.out / SKIPPED}")
    steps, means = _last_row(recipe)
    return TrainReport(
        out=str(recipe.out),
        steps=steps,
        seconds=round(time.monotonic() - begun, 1),
        last=means,
        skipped=skipped,
        model=None if model is None else str(model),
        sha256=sha256,
    )


def export_run(checkpoint: Path, target: Path) -> str:
    """Writes the model folder of a checkpoint, calibrated on the crops its run left beside it; returns the sha256.

    Args:
        checkpoint: ``ema.pt`` of a run, or the run's folder.
        target: folder of the model.

    Raises:
        MissingFileError: no checkpoint, or no crops beside it.
        TrainingError, ModelError: see :func:`tilecodec.train.export.export`.
    """
    check_extra()
    if checkpoint.is_dir():
        checkpoint = checkpoint / "ema.pt"
    from tilecodec.train.export import export
    from tilecodec.train.loop import calibration_crops

    pictures = calibration_crops(checkpoint.parent)
    alias = target.resolve().parent.name if target.name == MODEL else target.name
    return export(checkpoint, target, alias=alias, pictures=pictures)


def _passed_over(stages: Sequence[Stage], number: int) -> bool:
    """Whether a stage is finished: its checkpoint says so, or a later stage has begun."""
    if any((later.recipe.out / "last.pt").exists() for later in stages[number + 1 :]):
        return True
    recipe = stages[number].recipe
    last = recipe.out / "last.pt"
    if not last.exists():
        return False
    from tilecodec.train import checkpoint

    state = checkpoint.read(last)
    if recipe.minutes is not None:
        return float(state.get("minutes", 0.0)) >= recipe.minutes
    return int(state["step"]) >= recipe.steps


def _set_threads(recipe: TrainRecipe) -> None:
    """On a CPU, replicas run side by side, so each gets its part of the cores."""
    import torch

    from tilecodec.memory import keep_freed_memory

    keep_freed_memory()
    if recipe.replicas > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // recipe.replicas))


def _last_row(recipe: TrainRecipe) -> tuple[int, dict[str, float]]:
    import csv

    from tilecodec.train import checkpoint
    from tilecodec.train.log import FILE

    steps = int(checkpoint.read(recipe.out / "ema.pt")["step"])
    path = recipe.out / FILE
    if not path.exists():
        return steps, {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return steps, {k: float(v) for k, v in rows[-1].items()} if rows else {}
