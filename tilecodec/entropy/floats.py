"""The entropy model in floating point: what an integer program was made from, or the nearest to it that a file tells.

Nothing here takes part in coding. It serves golden traces (:mod:`tilecodec.testing`) and further training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tilecodec.entropy.program import parse_program
from tilecodec.entropy.quantise import restore
from tilecodec.errors import ModelError
from tilecodec.model.ditic import DiTIC
from tilecodec.model.latent_codec import LatentCodec
from tilecodec.model.weights import INTEGER_PARTS, SCALE_TABLE, Z_MEDIAN, ModelFile


@dataclass(frozen=True, eq=False, slots=True)
class FloatEntropy:
    """A model's entropy parameters in float32, on the CPU."""

    codec: LatentCodec
    """Its entropy parts (``h_s``, ``adapter_in``, ``g_c``, ``adapter_out``, ``LRP``) have weights; the rest is on the
    meta device."""
    z_median: NDArray[np.float32]
    """Medians of the hyper-latent, (Cz,)."""
    scales: NDArray[np.float32] | None
    """Gaussian scales that have a CDF row, ascending, (rows,); None where the file does not hold them, because its
    table has the usual ones."""
    exact: bool
    """Whether these are the weights the program was made from. Otherwise they are those its integers stand for."""


def official_scale_table() -> NDArray[np.float32]:
    """The 64 Gaussian scales of the official entropy model, log-spaced from 0.11 to 256, float32.

    Computed in float32, as CompressAI does: a float64 table differs from it by one or two units in the last place.
    """
    return torch.exp(torch.linspace(math.log(0.11), math.log(256.0), 64)).numpy()


def float_entropy(file: ModelFile) -> FloatEntropy:
    """The entropy parameters of a model file in floating point.

    Raises:
        ModelError: the file holds neither the float weights nor what its integers stand for.
    """
    config = file.config
    with torch.device("meta"):
        codec = LatentCodec(
            config.codec, config.vae.latent_channels, config.aux_encoder.channels if config.aux_encoder else 0
        )
    if file.source:
        return _stored(file, codec)
    for part in _parts(codec).values():
        part.to_empty(device="cpu")
    arrays = {k: v.numpy() for k, v in file.program_tensors.items() if not v.is_floating_point()}
    program = parse_program(
        file.program, arrays, y_channels=config.codec.y_channels, z_channels=config.codec.z_channels
    )
    try:
        restore(codec, program)
    except (ModelError, KeyError) as error:
        raise ModelError(
            "the model file holds its entropy model as integers only, not as floats",
            got=error,
            expected=f"tensors under integer.source., or exponents of all layers: {', '.join(INTEGER_PARTS)}",
            where=file.path,
            hint="Convert the checkpoint anew, or train.export it with a later version",
        ) from error
    return FloatEntropy(codec.eval(), program.z_median * np.float32(2.0**-program.z_bits), None, exact=False)


def float_network(file: ModelFile) -> DiTIC:
    """The whole network of a model file as it was trained: float32, nothing merged or folded.

    Raises:
        ModelError: see :func:`float_entropy`; or the tensors do not fit the config.
    """
    with torch.device("meta"):
        network = DiTIC(file.config)
    for name, part in _parts(float_entropy(file).codec).items():
        setattr(network.codec, name, part)
    state = {k: v for k, v in network.state_dict().items() if k.startswith(INTEGER_PARTS)}
    state |= {k: v.float() for k, v in file.tensors.items()}
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise ModelError("the model's tensors do not fit its config", got=error, where=file.path) from error
    return network.eval()


def _parts(codec: LatentCodec) -> dict[str, torch.nn.Module]:
    """The modules that a program stands for, by name; those the config has."""
    names = [part.split(".")[1] for part in INTEGER_PARTS]
    return {name: module for name in names if (module := getattr(codec, name)) is not None}


def _stored(file: ModelFile, codec: LatentCodec) -> FloatEntropy:
    wanted = {name for name in codec.state_dict() if f"codec.{name}".startswith(INTEGER_PARTS)}
    floats = {name: tensor.float() for name, tensor in file.source.items()}
    if wanted | {SCALE_TABLE, Z_MEDIAN} != set(floats):
        raise ModelError(
            "the model's float entropy weights do not fit its config",
            got=f"unexpected {sorted(set(floats) - wanted - {SCALE_TABLE, Z_MEDIAN})}",
            expected=f"missing {sorted((wanted | {SCALE_TABLE, Z_MEDIAN}) - set(floats))}",
            where=file.path,
        )
    for part, module in _parts(codec).items():
        prefix = f"{part}."
        own = {k.removeprefix(prefix): v for k, v in floats.items() if k.startswith(prefix)}
        try:
            module.load_state_dict(own, strict=True, assign=True)
        except RuntimeError as error:
            raise ModelError(
                "the model's float entropy weights do not fit its config", got=error, where=file.path
            ) from error
    return FloatEntropy(codec.eval(), floats[Z_MEDIAN].numpy(), floats[SCALE_TABLE].numpy(), exact=True)
