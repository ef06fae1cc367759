"""tilecodec: a Zarr v3 codec for gigapixel pictures, tiles compressed by DiT-IC, a one-step diffusion transformer.

report = tilecodec.encode("scene.tif", "scene.zarr", quality=50)
image = tilecodec.open("scene.zarr")
pixels = image[:, y0:y1, x0:x1]
tilecodec.decode("scene.zarr", "crop.tif", region=(x, y, w, h))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilecodec.api import (
        ContainerInfo,
        DecodeReport,
        EncodeReport,
        Image,
        Level,
        LevelInfo,
        Progress,
        decode,
        encode,
        info,
        open,  # noqa: A004
    )
    from tilecodec.config import DecodeOptions, EncodeOptions
    from tilecodec.entropy.model import CodecModel, load_model
    from tilecodec.errors import Problem, TileCodecError
    from tilecodec.evaluation.options import EvaluationOptions
    from tilecodec.evaluation.report import EvaluationReport
    from tilecodec.evaluation.run import evaluate
    from tilecodec.limits import Limits
    from tilecodec.models.convert import ConvertReport, convert_model
    from tilecodec.models.hub import PullReport, pull_model
    from tilecodec.models.library import (
        ModelCheck,
        ModelEntry,
        list_models,
        remove_model,
        show_model,
        verify_models,
    )
    from tilecodec.validation import ValidationReport, validate

__version__ = "0.1.0"

_HOMES = {
    "tilecodec.api": (
        "ContainerInfo",
        "DecodeReport",
        "EncodeReport",
        "Image",
        "Level",
        "LevelInfo",
        "Progress",
        "decode",
        "encode",
        "info",
        "open",
    ),
    "tilecodec.config": ("DecodeOptions", "EncodeOptions"),
    "tilecodec.entropy.model": ("CodecModel", "load_model"),
    "tilecodec.errors": ("Problem", "TileCodecError"),
    "tilecodec.evaluation.options": ("EvaluationOptions",),
    "tilecodec.evaluation.report": ("EvaluationReport",),
    "tilecodec.evaluation.run": ("evaluate",),
    "tilecodec.limits": ("Limits",),
    "tilecodec.models.convert": ("ConvertReport", "convert_model"),
    "tilecodec.models.hub": ("PullReport", "pull_model"),
    "tilecodec.models.library": (
        "ModelEntry",
        "ModelCheck",
        "list_models",
        "remove_model",
        "show_model",
        "verify_models",
    ),
    "tilecodec.validation": ("ValidationReport", "validate"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022  # grouped by use
    "encode",
    "decode",
    "open",
    "info",
    "validate",
    "evaluate",
    "load_model",
    "list_models",
    "show_model",
    "verify_models",
    "remove_model",
    "pull_model",
    "convert_model",
    "EncodeOptions",
    "DecodeOptions",
    "EvaluationOptions",
    "Limits",
    "EncodeReport",
    "DecodeReport",
    "ContainerInfo",
    "LevelInfo",
    "ValidationReport",
    "ModelEntry",
    "ModelCheck",
    "PullReport",
    "ConvertReport",
    "EvaluationReport",
    "Problem",
    "Progress",
    "Image",
    "Level",
    "CodecModel",
    "TileCodecError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Public names are loaded when first used, so that importing the package stays instant."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
