"""Weights of the perceptual losses: from files, their backbones also from torchvision where its hub can be reached.

A file is safetensors, or a ``.pt`` or ``.pth`` that holds tensors only. It has the backbone under torchvision's names,
``features.N...``, and the loss's own weights:

    LPIPS   ``lpips.lin0`` ... ``lpips.lin6``, or ``lin0.model.1.weight`` ... as its authors publish them (v0.1)
    DISTS   ``dists.alpha`` and ``dists.beta``, or ``alpha`` and ``beta`` as its authors publish them

Without the backbone in the file, torchvision's is taken: SqueezeNet 1.1 for LPIPS, VGG-16 for DISTS.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from tilecodec.errors import MissingFileError, ModelError

Backbone = Literal["squeezenet1_1", "vgg16"]
FEATURES: Final = "features."
_PUBLISHED: Final = (
    (re.compile(r"lin(\d+)\.model\.1\.weight"), r"lpips.lin\1"),
    (re.compile(r"(alpha|beta)"), r"dists.\1"),
)


def read_weights(path: Path, backbone: Backbone) -> dict[str, Tensor]:
    """Every tensor of a perceptual loss, float32, by the names above.

    Args:
        path: the file.
        backbone: torchvision's name of the network whose ``features`` are needed.

    Raises:
        MissingFileError: no such file.
        ModelError: a file of another kind, or a backbone that is neither in the file nor to be had.
    """
    if not path.is_file():
        raise MissingFileError("there are no such weights", got=str(path), expected="a safetensors or .pth file")
    try:
        tensors = _read(path)
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError, EOFError, AttributeError) as error:
        raise ModelError("the weights cannot be read", got=str(error), where=str(path)) from error
    named = {_renamed(k): v.detach().float() for k, v in tensors.items() if isinstance(v, Tensor)}
    if not any(name.startswith(FEATURES) for name in named):
        named |= {f"{FEATURES}{k}": v.float() for k, v in _hub(backbone, path).items()}
    return named


def take(tensors: dict[str, Tensor], name: str, path: Path) -> Tensor:
    """One tensor of :func:`read_weights`.

    Raises:
        ModelError: it is not there.
    """
    if name not in tensors:
        raise ModelError("the weights lack a tensor", got=sorted(tensors)[:8], expected=name, where=str(path))
    return tensors[name]


def load_features(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Loads the backbone's tensors; those of layers that the loss does not use are left out.

    Raises:
        ModelError: a layer has no tensor, or one of another shape.
    """
    own = {name: take(tensors, FEATURES + name, path) for name in module.state_dict()}
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        raise ModelError("the weights are of another network", got=str(error), where=str(path)) from error


def _read(path: Path) -> dict[str, Any]:
    if path.suffix in (".pt", ".pth"):
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__} instead of tensors by name")
        return content
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _renamed(name: str) -> str:
    for pattern, new in _PUBLISHED:
        if pattern.fullmatch(name):
            return pattern.sub(new, name)
    return name


def _hub(backbone: Backbone, path: Path) -> dict[str, Tensor]:
    import torchvision

    models = torchvision.models
    enum = {"squeezenet1_1": models.SqueezeNet1_1_Weights, "vgg16": models.VGG16_Weights}[backbone]
    try:
        network = getattr(models, backbone)(weights=enum.IMAGENET1K_V1)
    except (OSError, RuntimeError) as error:  # no network; a download cut short
        raise ModelError(
            f"{backbone} is not in the file and cannot be downloaded",
            got=str(error),
            expected=f"tensors {FEATURES}* in the file, or torchvision's hub within reach",
            where=str(path),
        ) from error
    features: dict[str, Tensor] = network.features.state_dict()
    return features
