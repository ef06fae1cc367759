"""Where a network's first weights come from: a checkpoint, a model file, or published parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from compressai.entropy_models import EntropyBottleneck
from torch import Tensor

from tilecodec.entropy.program import parse_program
from tilecodec.entropy.quantise import restore
from tilecodec.entropy.tables import CDFTable
from tilecodec.errors import MissingFileError, ModelError, RecipeError, StorageError
from tilecodec.model.config import DiTICConfig, default_config, official_config
from tilecodec.model.ditic import DiTIC
from tilecodec.model.weights import INTEGER_PARTS, ModelFile, find_model
from tilecodec.train import checkpoint, lora
from tilecodec.train.bottleneck import fit_bottleneck
from tilecodec.train.network import TrainingNetwork
from tilecodec.train.recipe import BaseRecipe, LoraRecipe, TrainRecipe
from tilecodec.train.schema import build, parse

CONFIGS: Final[dict[str, Callable[[], DiTICConfig]]] = {"default": default_config, "dit-ic": official_config}
_PREFIXES: Final = ("module.", "aux_codec.", "vae.", "DiT.", "g_a.", "analysis_transform.")
"""What published names may begin with, beside our own."""


@dataclass(frozen=True, eq=False, slots=True)
class Start:
    """Weights to begin with."""

    config: DiTICConfig
    """Of the network they are from."""
    weights: dict[str, Tensor]
    """By the names of a ``TrainingNetwork`` without adapters, or with those of ``lora``."""
    source: str
    """For messages."""
    adapted: LoraRecipe | None = None
    """What adapters the weights have."""


def model_config(recipe: TrainRecipe, start: Start | None) -> DiTICConfig:
    """The config that a recipe names; see ``TrainRecipe.model``.

    Raises:
        RecipeError: no such model, or a file that holds none.
    """
    if recipe.model is None:
        return start.config if start is not None else default_config()
    if recipe.model in CONFIGS:
        return CONFIGS[recipe.model]()
    path = Path(recipe.model)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise RecipeError(
            "there is no such model", got=recipe.model, expected=f"{', '.join(CONFIGS)}, or a file", where="model"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError("this is no model config", got=str(error), where=recipe.model) from error
    except OSError as error:
        raise StorageError("the model's config cannot be read", got=error.strerror, where=recipe.model) from error
    return build(DiTICConfig, parse(text, str(path)))


def read_start(start_from: Path) -> Start:
    """The weights of a checkpoint or of a model; see ``TrainRecipe.start_from``.

    Raises:
        MissingFileError, UnknownModelError, TrainingError, ModelError: nothing to start from there.
    """
    if start_from.suffix == ".pt":
        state = checkpoint.read(start_from)
        described = state.get("lora")
        adapted = lora.recipe_of(described) if described else None
        return Start(DiTICConfig.from_dict(state["config"]), state["ema"], str(start_from), adapted)
    return _of_model(find_model(str(start_from)))


def load_start(network: TrainingNetwork, start: Start, recipe: TrainRecipe) -> str:
    """Loads what fits by name and shape, and says how much that was.

    Raises:
        RecipeError: nothing fits.
    """
    weights = start.weights
    if start.adapted is not None and start.adapted != recipe.lora:
        model = {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
        rest = {k: v for k, v in weights.items() if not k.startswith("model.")}
        plain = lora.merged(start.config, model, start.adapted)
        weights = {**{f"model.{k}": v for k, v in plain.items()}, **rest}
    own = network.state_dict()
    fitting = {}
    for name, tensor in own.items():
        found = weights.get(name, weights.get(lora.plain_name(name)))
        if found is not None and found.shape == tensor.shape:
            fitting[name] = found
    parameters = {n for n, _ in network.named_parameters()}
    if not parameters & set(fitting):
        raise RecipeError(
            "nothing fits this network", got=f"{len(weights)} tensors", where=f"start_from: {start.source}"
        )
    network.load_state_dict(fitting, strict=False)
    left = sorted(parameters - set(fitting))
    told = f"; new: {', '.join(left[:4])}{' ...' if len(left) > 4 else ''}" if left else ""
    return f"started from {len(fitting)} of {len(own)} tensors of {start.source}{told}"


def load_base(model: DiTIC, base: BaseRecipe) -> list[str]:
    """Loads published parts, each whole, and says how many tensors that were.

    Raises:
        RecipeError: the model has no such part.
        MissingFileError: no such file.
        ModelError: tensors that do not fit.
    """
    told = []
    parts = (("vae", base.vae, model.vae), ("transformer", base.transformer, model.DiT))
    for key, path, module in (*parts, ("aux_encoder", base.aux_encoder, model.aux_codec)):
        if path is None:
            continue
        if module is None:
            raise RecipeError("the model has no such part", got=str(path), where=f"base.{key}")
        own = module.state_dict()
        found = {_own_name(name, own): tensor for name, tensor in _tensors(path).items()}
        missing = [n for n in own if n not in found]
        wrong = [n for n in own if n in found and found[n].shape != own[n].shape]
        if missing or wrong:
            raise ModelError(
                "the weights do not fit the model",
                got=f"missing {missing[:4]}, of another shape {wrong[:4]}",
                expected=f"{len(own)} tensors",
                where=f"base.{key}: {path}",
            )
        module.load_state_dict({n: found[n].float() for n in own})
        told.append(f"{key}: {len(own)} tensors of {path}")
    return told


def _own_name(name: str, own: Mapping[str, Tensor]) -> str:
    """A published name as the module has it."""
    for prefix in ("", *_PREFIXES):
        bare = name.removeprefix(prefix)
        for candidate in (bare, f"analysis_transform.{bare}"):
            if candidate in own:
                return candidate
    return name


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files: Iterable[Path] = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    found: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise MissingFileError("there are no such weights", got=str(file), expected="safetensors")
        try:
            found |= load_file(file)
        except SafetensorError as error:
            raise ModelError("the weights cannot be read", got=str(error), where=str(file)) from error
    if not found:
        raise MissingFileError("there are no such weights", got=str(path), expected="*.safetensors in the folder")
    return found


def _of_model(file: ModelFile) -> Start:
    """A model file's weights in floats: the entropy model from its integers, the prior from its tables."""
    model = DiTIC(file.config)
    state = {k: v.float() if v.is_floating_point() else v for k, v in file.tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or [n for n in missing if not n.startswith(INTEGER_PARTS)]:
        raise ModelError("the model's tensors do not fit its config", got=[*unexpected, *missing][:8], where=file.path)
    arrays = {k: (v.float() if v.is_floating_point() else v).numpy() for k, v in file.program_tensors.items()}
    codec = file.config.codec
    program = parse_program(file.program, arrays, y_channels=codec.y_channels, z_channels=codec.z_channels)
    restore(model.codec, program)
    network = TrainingNetwork(model)
    table = CDFTable(*(cast(Any, file.tables[f"z.{k}"].numpy()) for k in ("cdf", "length", "offset")))
    median = (program.z_median * 2.0**-program.z_bits).astype(np.float32)
    bottleneck: EntropyBottleneck = network.bottleneck
    with torch.random.fork_rng(devices=[]):
        fit_bottleneck(bottleneck, table, median)
    return Start(file.config, network.state_dict(), f"{file.alias} (sha256:{file.sha256[:12]})")
