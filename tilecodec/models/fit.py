"""Which of a checkpoint's tensors is which of the network's: all of them, or one error that lists what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilecodec.entropy.floats import official_scale_table
from tilecodec.entropy.tables import CDFTable
from tilecodec.errors import CheckpointError, ModelError
from tilecodec.model.config import DiTICConfig, official_config
from tilecodec.model.ditic import DiTIC
from tilecodec.model.tensor_file import LazyTensor
from tilecodec.models import lora
from tilecodec.models.bottleneck import LAYERS, PARAMETERS, STORED, computed_table, stored_table
from tilecodec.models.checkpoint import PARTS, Adapter, Checkpoint, plain, read_tensors

BOTTLENECK: Final = "codec.entropy_bottleneck."
GAUSSIAN: Final = "codec.gaussian_conditional."
BASE_REPO: Final = "Efficient-Large-Model/Sana_600M_1024px_diffusers"
"""Where the base of the authors' raw checkpoints is published."""
LISTED: Final = 100
"""Misfits that a message lists in full; of more, the first of each kind."""
_FIRST: Final = 20
_ELIC_PREFIXES: Final = ("module.", "aux_codec.", "g_a.")


@dataclass(frozen=True, eq=False, slots=True)
class Fitted:
    """A network's weights and tables, each tensor made when it is asked for."""

    tensors: dict[str, LazyTensor]
    """By the network's names, float32."""
    z_table: CDFTable
    z_median: NDArray[np.float32]
    """(Cz,)."""
    scales: NDArray[np.float32]
    """Gaussian scales of the code's tables, ascending, (rows,)."""
    remarks: tuple[str, ...]
    """What a user should know, in sentences."""


@dataclass(slots=True)
class _Misfits:
    """What does not fit, one line each."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def check(self, checkpoint: Checkpoint, fitting: int, wanted: int) -> None:
        """Raises one error with all of them, if there are any."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "misshapen": self.misshapen}
        total = sum(map(len, kinds.values()))
        if not total:
            return
        shown = LISTED if total <= LISTED else _FIRST
        lines = []
        for kind, entries in kinds.items():
            lines += [f"  {kind}: {entry}" for entry in entries[:shown]]
            if len(entries) > shown:
                lines.append(f"  {kind}: ... and {len(entries) - shown} more")
        other = "the checkpoint does not fit the network"
        if fitting < wanted // 2:
            other = "this is a checkpoint of another network, or of another size"
        raise CheckpointError(
            other,
            got=", ".join(f"{len(entries)} {kind}" for kind, entries in kinds.items() if entries),
            expected=f"{wanted} tensors, of which {fitting} are there",
            where=checkpoint.path,
            hint="\n".join(["", *lines]),
        )


def fit(
    config: DiTICConfig, checkpoint: Checkpoint, *, base: Mapping[str, Tensor] | None = None, elic: Path | None = None
) -> Fitted:
    """Puts every tensor of a checkpoint in its place.

    Args:
        config: the network's.
        checkpoint: merged or raw.
        base: for a raw checkpoint, the weights its adapters belong to, by the merged checkpoint's names.
        elic: a file with the auxiliary encoder's weights; it overrides the checkpoint's.

    Raises:
        CheckpointError: tensors are missing, unexpected or misshapen, all of which are listed; or a raw checkpoint
            came without its base.
    """
    with torch.device("meta"):
        network = DiTIC(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    misfits = _Misfits()
    given = _first_names(checkpoint.tensors, wanted, misfits)
    entropy = {k: given.pop(k) for k in list(given) if k.startswith((BOTTLENECK, GAUSSIAN))}
    _check_schedule(given.pop("timesteps", None), misfits)
    if elic is not None:
        given = {k: v for k, v in given.items() if not k.startswith("aux_codec.")} | _read_elic(elic)
    _check_complete(checkpoint, given, wanted, base)
    known = {**(base or {}), **given}
    misfits.unexpected += sorted(set(known) - set(wanted))
    tensors = {}
    for name, shape in wanted.items():
        layer = name.removesuffix(".weight")
        adapters = checkpoint.adapters.get(layer, {}) if layer != name else {}
        if name not in known:
            misfits.missing.append(f"{name} {shape}")
        elif tuple(known[name].shape) != shape or not known[name].is_floating_point():
            got = f"{known[name].dtype} {tuple(known[name].shape)}"
            misfits.misshapen.append(f"{name}: got {got}, expected a float {shape}")
        elif wrong := [f"{name}: got {w}, expected a pair for {shape}" for w in _wrong(shape, adapters.values())]:
            misfits.misshapen += wrong
        else:
            tensors[name] = _lazy(known[name], shape, tuple(adapters.values()))
    misfits.unexpected += sorted(f"{a}.lora_*" for a in checkpoint.adapters if f"{a}.weight" not in wanted)
    remarks = [f"Left out of the checkpoint: {', '.join(checkpoint.left_out)}."] if checkpoint.left_out else []
    tables = _tables(entropy, config.codec.z_channels, misfits, remarks)
    misfits.check(checkpoint, len(tensors), len(wanted))
    assert tables is not None
    return Fitted(tensors, *tables, tuple(remarks))


def _first_names(tensors: Mapping[str, Tensor], wanted: Mapping[str, object], misfits: _Misfits) -> dict[str, Tensor]:
    """Tensors without their aliases: checkpoints hold ``up`` and ``down`` layers again as ``branch1``."""
    found = {name: tensor for name, tensor in tensors.items() if _first_name(name, wanted) == name}
    for name, tensor in tensors.items():
        first = _first_name(name, wanted)
        if first == name:
            continue
        known = found.setdefault(first, tensor)  # a file that stores shared tensors once may keep either name
        if known is not tensor and not torch.equal(known, tensor):
            misfits.misshapen.append(f"{name}: differs from {first}, of which it is an alias")
    return found


def _first_name(name: str, wanted: Mapping[str, object]) -> str:
    if name not in wanted and ".branch1." in name:
        for own in (".up.", ".down."):
            if name.replace(".branch1.", own) in wanted:
                return name.replace(".branch1.", own)
    return name


def _check_schedule(timesteps: Tensor | None, misfits: _Misfits) -> None:
    official = official_config().transformer
    assert official is not None
    if timesteps is not None and timesteps.flatten().tolist() != [official.timestep]:
        misfits.misshapen.append(f"timesteps: got {timesteps.flatten().tolist()}, expected [{official.timestep:g}]")


def _check_complete(
    checkpoint: Checkpoint, given: Mapping[str, Tensor], wanted: Mapping[str, object], base: object
) -> None:
    """Says what to add, where whole parts are absent that lie in files of their own."""
    absent = {part: all(not k.startswith(f"{part}.") for k in given) for part in PARTS}
    from_base = [k for k in wanted if k.startswith(("vae.", "DiT.")) and k not in given]
    if checkpoint.kind == "lora" and from_base and base is None:
        raise CheckpointError(
            "this is a raw checkpoint: of autoencoder and transformer it holds the LoRA tensors only",
            got=f"{sum(map(len, checkpoint.adapters.values()))} adapters, no base",
            expected="the weights that they are merged onto",
            where=checkpoint.path,
            hint=f"Give --base DIR, a copy of {BASE_REPO} with its folders vae and transformer",
        )
    if absent["aux_codec"] and not (absent["codec"] and absent["DiT"]):
        raise no_auxiliary(checkpoint)


def no_auxiliary(checkpoint: Checkpoint) -> CheckpointError:
    """The error about a checkpoint without the auxiliary encoder, whose weights are published elsewhere."""
    return CheckpointError(
        "the checkpoint lacks the auxiliary encoder",
        got="no tensors aux_codec.*",
        expected="the weights of ELIC's analysis transform",
        where=checkpoint.path,
        hint="Give them with --elic FILE",
    )


def _wrong(shape: tuple[int, ...], adapters: Iterable[Adapter]) -> list[str]:
    return [words for adapter in adapters if (words := lora.misfit(shape, adapter)) is not None]


def _lazy(tensor: Tensor, shape: tuple[int, ...], adapters: tuple[Adapter, ...]) -> LazyTensor:
    return LazyTensor(torch.float32, shape, lambda: lora.merged(tensor, adapters) if adapters else tensor.float())


def _read_elic(path: Path) -> dict[str, Tensor]:
    """The analysis transform of an ELIC checkpoint, whose other parts are not needed, by the merged names."""
    content = read_tensors(path)
    for wrapper in ("state_dict", "model", "ema"):
        inside = content.get(wrapper)
        content = inside if isinstance(inside, Mapping) else content
    found = {}
    for name, tensor in content.items():
        short, before = str(name), ""
        while short != before:
            before = short
            for prefix in _ELIC_PREFIXES:
                short = short.removeprefix(prefix)
        if short.startswith("analysis_transform.") and isinstance(tensor, Tensor):
            found[f"aux_codec.{short}"] = plain(tensor, str(name), path)
    if not found:
        raise CheckpointError(
            "this file holds no ELIC analysis transform",
            got=sorted(map(str, content))[:6],
            expected="names like analysis_transform.0.weight, with or without aux_codec. or g_a. before them",
            where=path,
        )
    return found


# --- entropy tables


def _tables(
    tensors: Mapping[str, Tensor], channels: int, misfits: _Misfits, remarks: list[str]
) -> tuple[CDFTable, NDArray[np.float32], NDArray[np.float32]] | None:
    own = {k.removeprefix(BOTTLENECK): v for k, v in tensors.items() if k.startswith(BOTTLENECK)}
    scales = _scales(tensors.get(f"{GAUSSIAN}scale_table"), misfits, remarks)
    quantiles = own.get("quantiles")
    if quantiles is None or tuple(quantiles.shape) != (channels, 1, 3):
        where = misfits.missing if quantiles is None else misfits.misshapen
        got = "" if quantiles is None else f": got {tuple(quantiles.shape)}, expected"
        where.append(f"{BOTTLENECK}quantiles{got} {(channels, 1, 3)}")
        return None
    try:
        table = stored_table(own)
        if table is None:
            before = len(misfits.missing) + len(misfits.misshapen)
            _check_densities(own, channels, misfits)
            if len(misfits.missing) + len(misfits.misshapen) > before:
                return None
            table = computed_table(own)
            remarks.append("The checkpoint held no tables of the hyper-latent; they were computed from its densities.")
    except ModelError as error:
        misfits.misshapen.append(f"{BOTTLENECK}*: {error}")
        return None
    if len(table.length) != channels:
        misfits.misshapen.append(f"{BOTTLENECK}{STORED[0]}: got {len(table.length)} rows, expected {channels}")
        return None
    median = quantiles[:, 0, 1].float().numpy().copy()
    if not np.isfinite(median).all():
        misfits.misshapen.append(f"{BOTTLENECK}quantiles: got values that are not finite")
    return table, median, scales


def _check_densities(own: Mapping[str, Tensor], channels: int, misfits: _Misfits) -> None:
    for name in PARAMETERS:
        kind, _, number = name.partition(".")
        inputs, outputs = (1 if int(number) == 0 else 3), (1 if int(number) == LAYERS - 1 else 3)
        shape = (channels, outputs, inputs if kind == "matrices" else 1)
        if name not in own:
            misfits.missing.append(f"{BOTTLENECK}{name} {shape}, or {', '.join(STORED)}")
        elif tuple(own[name].shape) != shape:
            misfits.misshapen.append(f"{BOTTLENECK}{name}: got {tuple(own[name].shape)}, expected {shape}")


def _scales(table: Tensor | None, misfits: _Misfits, remarks: list[str]) -> NDArray[np.float32]:
    if table is None or table.numel() == 0:
        remarks.append("The checkpoint held no table of scales; the usual one was taken (64 from 0.11 to 256).")
        return official_scale_table()
    scales = table.float().numpy().reshape(-1).copy()
    good = np.isfinite(scales).all() and (scales > 0).all() and (np.diff(scales) > 0).all() and len(scales) <= 256
    if table.ndim != 1 or not good:
        misfits.misshapen.append(f"{GAUSSIAN}scale_table: got {tuple(table.shape)}, expected 1 to 256 ascending scales")
    return scales
