"""Reads the authors' checkpoints: a merged one, or a raw one whose autoencoder and transformer are LoRA tensors only.

    merged   one flat dict: vae.* DiT.* codec.* prompter.* aux_codec.* timesteps loss.*
    raw      {"ema": PARTS, "model": PARTS}, PARTS = {"state_dict_codec", "state_dict_prompter": complete;
              "state_dict_vae", "state_dict_DiT": tensors named MODULE.lora_A.weight and MODULE.lora_B.weight}

Pickles are opened with ``weights_only=True`` alone, and mapped instead of read where their format allows it, as
safetensors files always are. What comes out has the merged checkpoint's names; no network has checked it yet.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from tilecodec.errors import CheckpointError, MissingFileError
from tilecodec.memory import available_memory_bytes
from tilecodec.model.tensor_file import read_header
from tilecodec.models.room import check_memory

Weights = Literal["ema", "model"]
"""Which of a raw checkpoint's two sets: the moving average, or the weights as they were last."""

PARTS: Final = ("vae", "DiT", "codec", "prompter", "aux_codec")
"""First components of a merged checkpoint's names."""
IGNORED: Final = ("loss.",)
_STATE: Final = "state_dict_"
_WRAPPERS: Final = ("state_dict", "ema", "model")
_PREFIXES: Final = ("module.", "_orig_mod.", "base_model.model.", "base_model.")
"""What data-parallel training, the compiler and peft put before a name."""
_DAMAGED: Final = (
    *(RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError),
    *(struct.error, zipfile.BadZipFile),
)
"""What torch raises over a pickle with wrong bytes in it."""
_LORA: Final = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")


@dataclass(eq=False, slots=True)
class Adapter:
    """One LoRA adapter of a layer: its weight grows by B · A (alpha is the rank, so the factor is 1)."""

    a: Tensor | None = None
    """(rank, inputs) or (rank, inputs, k, k)."""
    b: Tensor | None = None
    """(outputs, rank) or (outputs, rank, 1, 1)."""


@dataclass(frozen=True, eq=False, slots=True)
class Checkpoint:
    """A checkpoint's tensors, most of them still in the file."""

    path: Path
    kind: Literal["merged", "lora"]
    tensors: dict[str, Tensor]
    """By the merged checkpoint's names, aliases included."""
    adapters: dict[str, dict[str, Adapter]] = field(default_factory=dict)
    """By layer (``DiT.transformer_blocks.0.attn1.to_q``), then by adapter; of a raw checkpoint."""
    left_out: tuple[str, ...] = ()
    """Parts that no network has: of training alone."""


def open_checkpoint(path: Path, *, weights: Weights = "ema") -> Checkpoint:
    """Opens a checkpoint.

    Args:
        path: ``.pth``, ``.pt``, ``.ckpt`` or ``.safetensors``; the content decides, not the name.
        weights: which set of a raw checkpoint.

    Raises:
        MissingFileError: no such file.
        CheckpointError: no checkpoint, half of one, or another network's.
        NotEnoughMemoryError: an old format, which cannot be mapped, of a file too large to be read.
    """
    content = read_tensors(path)
    for _ in range(2):
        content = _chosen(content, weights, path)
    if any(key.startswith(_STATE) for key in content):
        return _raw(content, path)
    tensors = {k: plain(v, k, path) for k, v in content.items() if isinstance(v, Tensor)}
    shared = _shared_prefix(tensors)
    tensors = {k.removeprefix(shared): v for k, v in tensors.items()}
    if not any(k.split(".")[0] in PARTS for k in tensors):
        raise CheckpointError(
            "this is a checkpoint of another network",
            got=f"{len(tensors)} tensors, such as {sorted(tensors)[:4]}",
            expected=f"names that begin with {', '.join(f'{p}.' for p in PARTS)}",
            where=path,
        )
    return Checkpoint(path, "merged", {k: v for k, v in tensors.items() if not k.startswith(IGNORED)})


def _chosen(content: Mapping[str, Any], weights: Weights, path: Path) -> Mapping[str, Any]:
    """What is inside of a dict whose tensors lie one level deeper; else the dict itself."""
    if not all(isinstance(k, str) for k in content):
        raise CheckpointError("this is no checkpoint of a network", got="names that are no text", where=path)
    inside = {k: v for k in _WRAPPERS if isinstance(v := content.get(k), Mapping)}
    names = [k for k, v in content.items() if isinstance(v, Tensor)]
    ours = any(k.split(".")[0] in PARTS for k in names)  # a step counter beside the sets is none of them
    if any(k.startswith(_STATE) for k in content) or (names and (ours or not inside)):
        return content
    if not inside:
        raise CheckpointError(
            "there are no tensors in this checkpoint",
            got=sorted(map(str, content)),
            expected="tensors by name, or a raw checkpoint's 'ema' and 'model'",
            where=path,
        )
    if "state_dict" in inside:
        return inside["state_dict"]
    if weights not in inside:
        other = next(iter(inside))
        raise CheckpointError(
            f"the checkpoint has no weights {weights!r}",
            got=sorted(inside),
            expected=weights,
            where=path,
            hint=f"Take what it has: --weights {other}",
        )
    return inside[weights]


def _raw(content: Mapping[str, Any], path: Path) -> Checkpoint:
    tensors: dict[str, Tensor] = {}
    adapters: dict[str, dict[str, Adapter]] = {}
    left_out = []
    for key, part in content.items():
        name = key.removeprefix(_STATE)
        if not (key.startswith(_STATE) and name in PARTS and isinstance(part, Mapping)):
            left_out.append(key)
            continue
        for inner, value in part.items():
            if not isinstance(value, Tensor) or not isinstance(inner, str):
                continue
            full = _full_name(inner, name)
            tensor = plain(value, full, path)
            lora = _LORA.fullmatch(full)
            if lora is None:
                tensors[full.replace(".base_layer.", ".")] = tensor
                continue
            adapter = adapters.setdefault(lora["module"], {}).setdefault(lora["adapter"] or "", Adapter())
            setattr(adapter, lora["side"].lower(), tensor)
    kept = {k: v for k, v in tensors.items() if not k.startswith(IGNORED)}
    return Checkpoint(path, "lora", kept, adapters, tuple(left_out))


def plain(tensor: Tensor, name: str, path: Path) -> Tensor:
    """A tensor without the graph that a saved parameter would keep.

    Raises:
        CheckpointError: it is none that can be copied: sparse, quantised, or without values.
    """
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        got = f"{tensor.layout}, {tensor.dtype} on {tensor.device}"
        raise CheckpointError("a tensor of the checkpoint is no plain one", got=f"{name}: {got}", where=path)
    return tensor.detach()


def _full_name(inner: str, part: str) -> str:
    """A name within a part to the merged checkpoint's, whatever wrappers put before it."""
    while True:
        shorter = inner
        for prefix in (*_PREFIXES, f"{part}."):
            shorter = shorter.removeprefix(prefix)
        if shorter == inner:
            break
        inner = shorter
    return inner if inner.startswith("aux_codec.") else f"{part}.{inner}"


def _shared_prefix(tensors: Mapping[str, Tensor]) -> str:
    """``module.`` and the like, where every name has it."""
    shared = ""
    while True:
        more = next((p for p in (*_PREFIXES, "model.") if all(k.startswith(shared + p) for k in tensors)), None)
        if not tensors or more is None:
            return shared
        shared += more


# --- files


def read_tensors(path: Path) -> Mapping[str, Any]:
    """A checkpoint file's content: tensors by name, or dicts of them.

    Raises:
        MissingFileError, CheckpointError, NotEnoughMemoryError: see :func:`open_checkpoint`.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else None
        raise MissingFileError("there is no such checkpoint", got=what, expected="a file", where=path)
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(1024)
    text = head.lstrip().lower()
    if not size:
        raise _unreadable("the file is empty", "", path)
    if text.startswith((b"<!doctype", b"<html", b"<?xml")) or b"<html" in text:
        page = "On the hub, use the link of 'download file' (.../resolve/...), not the file's page"
        raise CheckpointError("this is a web page, not a checkpoint", got=_quoted(head), where=path, hint=page)
    if text.startswith(b"version https://git-lfs"):
        pointer = "This is what git leaves without Git LFS: run 'git lfs pull', or download the file itself"
        raise CheckpointError(
            "this is a Git LFS pointer, not a checkpoint", got=f"{size} bytes", where=path, hint=pointer
        )
    if head[8:9] == b"{":
        return _safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        if not _is_zip(path):
            raise _unreadable("the file is cut short", f"{size:,} bytes, without the directory at its end", path)
        return _pickled(path, mapped=True)
    if head.startswith(b"\x80"):
        check_memory(2 * size, available_memory_bytes(), f"read {path.name}, of a format that cannot be mapped")
        return _pickled(path, mapped=False)
    raise CheckpointError(
        "this is no checkpoint", got=_quoted(head), expected="a PyTorch or safetensors file", where=path
    )


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # a directory that contradicts itself
        return False


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        read_header(path)
        return load_file(path)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise _unreadable("the safetensors file is damaged or cut short", repr(error), path) from error


def _pickled(path: Path, *, mapped: bool) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        first = str(error).splitlines()[0] if str(error) else "it does not say"
        raise CheckpointError(
            "the checkpoint is damaged, or holds more than tensors, which is never loaded: it could run code",
            got=first,
            expected="tensors, numbers and text in dicts and lists",
            where=path,
            hint="Download it anew; if it is your own, save state dicts only",
        ) from error
    except _DAMAGED as error:
        raise _unreadable("the checkpoint is damaged or cut short", repr(error), path) from error
    if not isinstance(content, Mapping) or not all(isinstance(k, str) for k in content):
        raise CheckpointError(
            "this is no checkpoint of a network", got=type(content).__name__, expected="a dict of tensors", where=path
        )
    return content


def _unreadable(problem: str, got: str, path: Path) -> CheckpointError:
    return CheckpointError(problem, got=got, expected="a whole checkpoint", where=path, hint="Download it anew")


def _quoted(head: bytes) -> str:
    return repr(head[:60])
