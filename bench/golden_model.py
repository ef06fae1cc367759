"""Model files of the authors' architecture with reproducible random weights: what a converted checkpoint weighs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tilecodec.model.config import DiTICConfig

SPREAD = 1.5
"""Standard deviation of the codes that the integer entropy model is calibrated with."""


def write_golden_model(folder: Path, config: DiTICConfig, dtype: Any = None, *, seed: str = "g0") -> Path:
    """Writes a model file with the weights of :func:`tilecodec.testing.golden_weight` and returns its folder.

    Args:
        folder: of the model.
        config: the network's config.
        dtype: of the stored weights; ``torch.bfloat16`` unless given.
        seed: see :func:`tilecodec.testing.golden_weight`.
    """
    import torch

    from tilecodec.entropy.quantise import CalibrationTile, quantise
    from tilecodec.entropy.tables import gaussian_table, scale_table
    from tilecodec.model.ditic import DiTIC
    from tilecodec.model.weights import INTEGER_PARTS, save_model
    from tilecodec.testing import golden_weight

    dtype = dtype or torch.bfloat16
    with torch.device("meta"):
        network = DiTIC(config)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    tensors, floats = {}, {}
    for name, shape in shapes.items():
        value = torch.from_numpy(golden_weight(name, shape, seed=seed))
        if name.startswith("codec."):
            floats[name.removeprefix("codec.")] = value
        if not name.startswith(INTEGER_PARTS):
            tensors[name] = value.to(dtype)
    codec = network.codec
    codec.load_state_dict(floats, assign=True)
    generator = torch.Generator().manual_seed(0)
    code = torch.randn(config.codec.y_channels, 16, 16, generator=generator) * SPREAD
    with torch.inference_mode():
        hyper = codec.h_a(code[None])[0]
    median = np.zeros(config.codec.z_channels, np.float32)
    program = quantise(codec.eval(), median, scale_table().astype(np.float32), [CalibrationTile(code, hyper)])
    gaussian = gaussian_table()
    rows: dict[str, Any] = {"y": slice(None), "z": np.full(config.codec.z_channels, 24)}
    tables = {
        f"{name}.{field}": torch.from_numpy(np.ascontiguousarray(getattr(gaussian, field)[pick]))
        for name, pick in rows.items()
        for field in ("cdf", "length", "offset")
    }
    save_model(
        folder,
        alias=folder.name,
        config=config,
        tensors=tensors,
        tables=tables,
        program=program.header(),
        program_tensors={k: torch.from_numpy(v) for k, v in program.tensors().items()},
    )
    return folder
