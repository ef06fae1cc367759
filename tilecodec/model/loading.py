"""Stored weights into a network that is ready for inference: each tensor straight to its device, dtype and layout.

The network is made without weights, then filled layer by layer, so no more than one layer is there twice. A tensor
that already has its dtype stays where it lies, in the mapped file. Blocks whose weights are folded for inference are
folded in float32 and cast once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from tilecodec.errors import ModelConfigError, ModelError
from tilecodec.model.blocks import DepthConvBlock
from tilecodec.model.config import DiTICConfig
from tilecodec.model.dc_ae import UpBlock
from tilecodec.model.ditic import DiTIC
from tilecodec.model.int8 import LEAST_WEIGHTS, int8_layer
from tilecodec.model.latent_codec import RateGains
from tilecodec.model.light_vae import LightVAE
from tilecodec.model.mapped import MappedFile

FOLDED = (LightVAE, DepthConvBlock, UpBlock)
EXACT = (RateGains,)
"""Modules that stay in float32."""


def load_network(
    config: DiTICConfig,
    tensors: Mapping[str, Tensor],
    *,
    device: torch.device,
    dtype: torch.dtype,
    int8: bool,
    absent: tuple[str, ...],
    where: Path,
) -> DiTIC:
    """A network for inference: channels_last, folded, without gradients.

    Args:
        config: the network's config.
        tensors: its weights by name, any float dtype, best mapped from ``where``.
        device: where it will run.
        dtype: of the activations, and of the weights unless ``int8``.
        int8: keep large weights in eight bits, see :mod:`tilecodec.model.int8`.
        absent: prefixes of the weights that the network does without.
        where: the file, for errors.

    Raises:
        ModelError: the tensors do not fit the config.
    """
    network = _empty(config, absent)
    _check(network, tensors, where)
    loader = _Loader(network, tensors, device, dtype, int8, MappedFile(where))
    loader.fill()
    return network.eval().requires_grad_(False)


def weights_bytes(config: DiTICConfig, dtype: torch.dtype, *, int8: bool, absent: tuple[str, ...]) -> int:
    """Bytes of a network's weights once loaded, see :func:`load_network`."""
    sizes = [p.numel() for p in _empty(config, absent).parameters()]
    return sum(n * (1 if int8 and n >= LEAST_WEIGHTS else dtype.itemsize) for n in sizes)


def _empty(config: DiTICConfig, absent: tuple[str, ...]) -> DiTIC:
    try:
        with torch.device("meta"):
            network = DiTIC(config)
    except (ValueError, RuntimeError, TypeError, ArithmeticError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelConfigError("no network can be made of the model's config", got=error, where="config") from error
    for prefix in absent:
        parent, _, name = prefix.removesuffix(".").rpartition(".")
        network.get_submodule(parent)._modules[name] = None
    return network


def _check(network: DiTIC, tensors: Mapping[str, Tensor], where: Path) -> None:
    own = network.state_dict()
    for name in own.keys() & tensors.keys():
        tensor = tensors[name]
        if (own[name].shape, True) != (tensor.shape, tensor.is_floating_point()):
            raise ModelError(
                "a tensor of the model does not fit its config",
                got=f"{tensor.dtype} {tuple(tensor.shape)}",
                expected=f"{own[name].dtype} {tuple(own[name].shape)}",
                where=f"{where}, {name}",
            )
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise ModelError(
            "the model's tensors do not fit its config",
            got=f"unexpected {unexpected[:8]}",
            expected=f"missing {missing[:8]} (of {len(own)})",
            where=where,
        )


class _Loader:
    """Fills a network that lies on the meta device."""

    def __init__(
        self,
        network: DiTIC,
        tensors: Mapping[str, Tensor],
        device: torch.device,
        dtype: torch.dtype,
        int8: bool,
        mapped: MappedFile,
    ) -> None:
        self._network, self._tensors, self._mapped = network, tensors, mapped
        self._device, self._dtype, self._int8 = device, dtype, int8

    def fill(self) -> None:
        """Loads every parameter."""
        for name, module in _units(self._network):
            if isinstance(module, FOLDED):
                self._assign_float(name, module)
                self._fold(module)
                self._settle(module)
            elif isinstance(module, EXACT):
                self._assign_float(name, module)
                module.to(self._device)
            elif self._int8 and _is_layer(module):
                self._shrink(name, module)
            else:
                for key in _own(module):
                    module._parameters[key] = self._placed(self._tensors[f"{name}.{key}" if name else key])

    def _placed(self, tensor: Tensor) -> nn.Parameter:
        """A parameter on its device, in its dtype and layout; the stored tensor itself where it is all that."""
        layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
        placed = tensor.to(self._device, self._dtype, memory_format=layout)
        if placed.data_ptr() != tensor.data_ptr():
            self._mapped.release(tensor)
        return nn.Parameter(placed, requires_grad=False)

    def _assign_float(self, prefix: str, module: nn.Module) -> None:
        """Float32 copies of a module's tensors, which may be written to."""
        for name, part in module.named_modules(prefix=prefix):
            for key in _own(part):
                stored = self._tensors[f"{name}.{key}"]
                part._parameters[key] = nn.Parameter(stored.to(torch.float32, copy=True), requires_grad=False)
                self._mapped.release(stored)

    def _fold(self, module: nn.Module) -> None:
        for part in module.modules():
            if isinstance(part, DepthConvBlock | UpBlock):
                part.fold()
        if isinstance(module, LightVAE):
            module.merge_ends()

    def _settle(self, module: nn.Module) -> None:
        """Casts a folded module, or keeps its large weights in eight bits."""
        if self._int8:
            exact = (module.from_levels, module.to_levels, module.lap) if isinstance(module, LightVAE) else ()
            for name, part in list(module.named_modules()):
                if _is_layer(part) and part not in exact:
                    small = int8_layer(part, self._dtype)
                    if small is not None:
                        _replace(module, name, small)
        for part in module.modules():
            for key in _own(part):
                part._parameters[key] = self._placed(cast(Tensor, part._parameters[key]))
            for key, buffer in part._buffers.items():
                part._buffers[key] = None if buffer is None else buffer.to(self._device)
        if isinstance(module, LightVAE):
            module.keep_end_exact()

    def _shrink(self, name: str, layer: nn.Module) -> None:
        """Puts a layer's int8 form in its place, made from the stored weight without a copy of it."""
        stored = {key: self._tensors[f"{name}.{key}"] for key in _own(layer)}
        for key, tensor in stored.items():
            layer._parameters[key] = nn.Parameter(tensor, requires_grad=False)
        small = int8_layer(layer, self._dtype)
        if small is not None:
            _replace(self._network, name, small.to(self._device))
        for key, tensor in stored.items():
            layer._parameters[key] = self._placed(tensor) if small is None else None
            self._mapped.release(tensor)


def _units(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that are loaded in one go, by name: what is folded or kept exact as a whole, all else by itself."""
    yield prefix, network
    if isinstance(network, (*FOLDED, *EXACT)):
        return
    for name, child in list(network.named_children()):
        yield from _units(child, f"{prefix}.{name}" if prefix else name)


def _own(module: nn.Module) -> list[str]:
    """Names of the parameters of the module itself."""
    return [key for key, value in module._parameters.items() if value is not None]


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)


def _replace(root: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    root.get_submodule(parent)._modules[child] = new
