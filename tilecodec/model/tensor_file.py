"""Safetensors files, written tensor by tensor, and their headers read without their tensors.

The library's writer wants every tensor in memory at once. A converted model has gigabytes of them, each made from
another file's tensor when its turn comes; so they are written, and hashed, one after the other. The bytes are those
that the library would write.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tilecodec.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HEADER_LIMIT: Final = 100_000_000
"""Bytes of a header, as the library limits them."""
_PIECE: Final = 64 << 20
"""Bytes handed to the file at once."""
_DTYPES: Final = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
}
"""Names of torch's types in a header, in the library's order: the tensors of the last one come first."""


@dataclass(frozen=True, eq=False, slots=True)
class LazyTensor:
    """A tensor that is made when it is written."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    """Returns the tensor, on the CPU."""


def write_tensors(file: Path, tensors: Mapping[str, Tensor | LazyTensor], metadata: Mapping[str, str]) -> str:
    """Writes a safetensors file, atomically, and returns its sha256.

    Args:
        file: path of the file; its folder exists.
        tensors: by name; of lazy ones, no two are in memory at a time.
        metadata: the header's ``__metadata__``, one entry.

    Raises:
        ModelError: a lazy tensor is not what it said it would be.
    """
    ranks = list(_DTYPES)
    names = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-ranks.index(names[name]), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name in order:
        end = at + _bytes(tensors[name])
        header[name] = {"dtype": _DTYPES[names[name]], "shape": list(tensors[name].shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    partial = file.with_name(file.name + ".part")
    try:
        with partial.open("wb") as stream:
            for piece in (len(text).to_bytes(8, "little"), text):
                stream.write(piece)
                digest.update(piece)
            for name in order:
                data = _made(name, tensors[name])
                for start in range(0, len(data), _PIECE):
                    stream.write(data[start : start + _PIECE])
                    digest.update(data[start : start + _PIECE])
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def _bytes(tensor: Tensor | LazyTensor) -> int:
    size = tensor.dtype.itemsize
    for n in tensor.shape:
        size *= n
    return size


def _made(name: str, tensor: Tensor | LazyTensor) -> memoryview:
    """A tensor's bytes."""
    import torch

    made = tensor.make() if isinstance(tensor, LazyTensor) else tensor
    if (made.dtype, tuple(made.shape)) != (tensor.dtype, tuple(tensor.shape)):
        got, expected = (f"{t.dtype} {tuple(t.shape)}" for t in (made, tensor))
        raise ModelError("a tensor is not what was announced", got=got, expected=expected, where=name)
    return made.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_header(file: Path) -> dict[str, Any]:
    """A safetensors file's header, as JSON. Its tensors are not read.

    Raises:
        ValueError: the file is no safetensors file, or a part of one (:class:`json.JSONDecodeError` is one too).
        RecursionError: the header is nested too deep.
        OSError: it cannot be read.
    """
    total = file.stat().st_size
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if not 2 <= size <= min(HEADER_LIMIT, total - 8):
            raise ValueError(f"a header of {size} bytes in a file of {total}")
        header = json.loads(stream.read(size))
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    return header
