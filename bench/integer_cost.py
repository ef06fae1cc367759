"""What the integer entropy model costs: bytes and quality beside the same weights evaluated in float32.

From each picture one tile in the middle is coded at several qualities, once with the model's integer program and once
with the float network whose weights are the program's: the same coder, tables and pixels' network.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from bench.common import Check, Pixels, add_arguments, middle, start, table
from bench.float_entropy import FloatEntropy
from tilecodec.evaluation.curves import bd_rate

LIMIT: Final = 0.01
QUALITIES: Final = (5, 20, 40, 60, 80, 100)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.integer_cost", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--model", default="default", help="name or path")
    parser.add_argument("--tile", type=int, default=512, help="side of the tile in pixels (default 512)")
    args = parser.parse_args(argv)
    bench = start(parser, args, "integer_cost", argv)
    from tilecodec.entropy.model import load_model

    model = load_model(args.model, device="cpu")
    floats = FloatEntropy(model)
    side = 256 if bench.smoke else args.tile
    rows: list[dict[str, object]] = []
    curves: dict[str, list[list[tuple[float, float]]]] = {"integer": [], "float": []}
    for picture in bench.pictures:
        bench.note(picture.name)
        pixels = middle(picture.pixels(), side)
        points: dict[str, list[tuple[float, float]]] = {"integer": [], "float": []}
        for quality in QUALITIES[1::2] if bench.smoke else QUALITIES:
            for kind, (size, psnr) in _both(model, floats, pixels, quality).items():
                bpp = 8 * size / pixels[..., 0].size
                points[kind].append((bpp, psnr))
                rows.append(
                    {
                        "picture": picture.name,
                        "domain": picture.domain,
                        "quality": quality,
                        "entropy": kind,
                        "bytes": size,
                        "psnr": round(psnr, 4),
                    }
                )
        for kind, curve in points.items():
            curves[kind].append(curve)
    bench.write_csv(rows)
    sums = {k: sum(int(str(r["bytes"])) for r in rows if r["entropy"] == k) for k in curves}
    rates = [bd_rate(np.array(i), np.array(f)) for i, f in zip(curves["integer"], curves["float"], strict=True)]
    rate = float(np.nanmean(rates))
    summary = [["all", sums["integer"], sums["float"], f"{100 * (sums['integer'] / sums['float'] - 1):+.3f} %"]]
    check = Check(
        what="BD-rate of integer against float entropy parameters, PSNR, mean of the pictures",
        wanted=f"at most {100 * LIMIT:g} %",
        measured=f"{100 * rate:+.3f} % (largest {100 * float(np.nanmax(rates)):+.3f} %)",
        ok=rate <= LIMIT,
    )
    return bench.finish(table(["tiles", "bytes, integer", "bytes, float", "difference"], summary), [check])


def _both(model: Any, floats: FloatEntropy, pixels: Pixels, quality: float) -> dict[str, tuple[int, float]]:
    """Bytes and PSNR of one tile with either entropy model."""
    side = slice(0, len(pixels))
    y = model.analyse(pixels, (side, side), quality)
    (z,) = model.hyper_analyse([y])
    payload = model.tile_codec.encode(y, z, quality=quality, height=len(pixels), width=len(pixels))
    latent = model.tile_codec.decode(payload, "bench")
    words, y_hat, scale = floats.encode(y, z)
    return {
        "integer": (4 * len(payload.words), _psnr(model, latent.y_hat, latent.scale, quality, pixels)),
        "float": (4 * len(words), _psnr(model, y_hat, scale, quality, pixels)),
    }


def _psnr(model: Any, y_hat: torch.Tensor, scale: torch.Tensor, quality: float, pixels: Pixels) -> float:
    from tilecodec.entropy.model import LatentWindow
    from tilecodec.metrics import psnr

    _, inverse = model.gain(quality)
    picture: NDArray[np.uint8] = model.reconstruct(LatentWindow(y_hat * inverse, scale * inverse), quality)
    value = psnr(picture, pixels)
    return value if math.isfinite(value) else 100.0


if __name__ == "__main__":
    sys.exit(main())
