"""Makes what a run consists of from its recipe: sampler, network, starting weights."""

from __future__ import annotations

import copy
from typing import Any

import torch

from tilecodec.entropy.model import pick_device
from tilecodec.errors import RecipeError
from tilecodec.model.config import DiTICConfig
from tilecodec.model.ditic import DiTIC
from tilecodec.model.light_vae import LightVAE
from tilecodec.train import checkpoint, lora
from tilecodec.train.captions import CaptionEmbeddings
from tilecodec.train.crops import PictureSampler, check_flatness
from tilecodec.train.data import STORE_INDEX, CropSampler, Sampler
from tilecodec.train.log import Say
from tilecodec.train.network import TrainingNetwork
from tilecodec.train.recipe import TrainRecipe
from tilecodec.train.start import start_as_transform
from tilecodec.train.store import store_pictures
from tilecodec.train.switches import apply_switches, set_gains
from tilecodec.train.weights import Start, load_base, load_start, model_config

TRANSFORM_CROPS = 160
"""Crops whose principal components a light model starts from."""


def training_device(recipe: TrainRecipe) -> torch.device:
    """The device a recipe names.

    Raises:
        UsageError: there is no such device.
        RecipeError: replicas elsewhere than on a CPU.
    """
    device = pick_device(recipe.device)
    if device.type != "cpu" and recipe.replicas > 1:
        got, hint = f"{recipe.replicas} on {device}", "Set replicas to 1, or device to cpu"
        raise RecipeError("replicas share a CPU", got=got, expected="1", where="replicas", hint=hint)
    return device


def checked_config(recipe: TrainRecipe, start: Start | None, state: dict[str, Any] | None) -> DiTICConfig:
    """The model's config: that of the checkpoint a run resumes from, unless the recipe names one.

    Raises:
        RecipeError: see :func:`check`.
    """
    if state is not None and recipe.model is None:
        return DiTICConfig.from_dict(state["config"])
    return model_config(recipe, start)


def check(recipe: TrainRecipe, config: DiTICConfig, state: dict[str, Any] | None) -> None:
    """Refuses what does not fit together, before anything large is made.

    Raises:
        RecipeError: the recipe does not fit the model, or the checkpoint is of another model; no pictures.
    """
    if recipe.crop % config.z_stride:
        expected = f"a multiple of {config.z_stride}"
        raise RecipeError("crop does not fit the model", got=recipe.crop, expected=expected, where="crop")
    if recipe.store is None and recipe.data is None:
        raise RecipeError("there are no pictures", expected="data, or store", where="data")
    if state is not None and DiTICConfig.from_dict(state["config"]) != config:
        where = recipe.out / checkpoint.LAST
        raise RecipeError("the checkpoint is of another model", expected="the recipe's", where=where)


def make_sampler(recipe: TrainRecipe, say: Say) -> Sampler:
    """Where the run's crops come from.

    Raises:
        DatasetError: too few or too flat pictures.
        MissingFileError: a path of the recipe is not there.
        StorageError: the store cannot be written.
    """
    if recipe.store is None:
        assert recipe.data is not None
        sampler = PictureSampler(recipe.data, crop=recipe.crop, seed=recipe.seed)
        small = len(sampler.catalogue.small)
        say(f"{len(sampler.catalogue.pictures)} pictures" + (f", and {small} smaller than a crop" if small else ""))
        return sampler
    weights = dict(recipe.domains)
    if recipe.data is not None:
        weights = {name: domain.weight for name, domain in recipe.data.domains.items()}
        if not (recipe.store / STORE_INDEX).exists():
            say(f"decoding pictures into {recipe.store}")
            for path, reason in store_pictures(recipe.data, recipe.store, crop=recipe.crop).items():
                say(f"skipped {path}: {reason}")
    stored = CropSampler(recipe.store, crop=recipe.crop, weights=weights, seed=recipe.seed)
    check_flatness(stored)
    return stored


def make_network(
    recipe: TrainRecipe,
    config: DiTICConfig,
    *,
    sampler: Sampler,
    start: Start | None,
    embeddings: CaptionEmbeddings | None,
    resumed: bool,
    say: Say,
) -> TrainingNetwork:
    """The network with its first weights, in float32 on the CPU, what the recipe freezes frozen.

    Args:
        recipe: the stage.
        config: of the model.
        sampler: gives the crops that a light model's first transforms are computed from.
        start: weights to start from.
        embeddings: where captions take part.
        resumed: whether a checkpoint's weights will be loaded, so that first ones do not matter.
        say: takes lines for people.

    Raises:
        RecipeError, ModelError, MissingFileError: weights or switches that do not fit.
    """
    network = TrainingNetwork(DiTIC(config), embedding=None if embeddings is None else embeddings.size)
    model = network.model
    start_near_identity(model)
    if isinstance(model.vae, LightVAE) and not resumed:
        stored = sampler if isinstance(sampler, CropSampler) else None
        start_as_transform(model, sampler.extra(TRANSFORM_CROPS) if stored is None else stored.batch(TRANSFORM_CROPS))
    if recipe.base is not None and not resumed:
        for told in load_base(model, recipe.base):
            say(told)
    if recipe.lora is not None:
        lora.add_adapters(model, recipe.lora)
    if start is not None:
        say(load_start(network, start, recipe))
    apply_switches(model, recipe)
    if recipe.gain_start is not None and not resumed:
        set_gains(model, *recipe.gain_start)
    return network


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


def twin_of(network: TrainingNetwork, *, frozen_only: bool) -> TrainingNetwork:
    """A copy that shares weights, all of them or the frozen ones only; its gradients are its own."""
    twin = copy.deepcopy(network)
    for own, shared in zip(twin.parameters(), network.parameters(), strict=True):
        if not (frozen_only and shared.requires_grad):
            own.data = shared.data
    return twin
