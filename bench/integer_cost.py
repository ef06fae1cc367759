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

from bench.common import Check, Pixels, add_arguments, start, table
from bench.curves import bd_rate

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
        pixels = _middle(picture.pixels(), side)
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


class FloatEntropy:
    """The float evaluation of a model's entropy part, with the weights that its integer program stands for."""

    def __init__(self, model: Any) -> None:
        from tilecodec.entropy.quantise import restore
        from tilecodec.entropy.tables import scale_table
        from tilecodec.model.latent_codec import LatentCodec

        config = model.config
        aux = config.aux_encoder.channels if config.aux_encoder else 0
        self._codec = LatentCodec(config.codec, config.vae.latent_channels, aux).eval().requires_grad_(False)
        restore(self._codec, model.program)
        self._tables = model.tables
        self._median = model.program.z_median.astype(np.float32)[:, None, None] * np.float32(2.0**-model.program.z_bits)
        self._scales = scale_table().astype(np.float32)

    def code(self, y: torch.Tensor, z: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor]:
        """Bytes of the stream, and the decoded code and scales, (Cy, h, w) each."""
        from tilecodec.entropy.coder import SymbolGroup, encode_groups

        symbols = np.rint(z.numpy() - self._median).astype(np.int32)
        channels = np.repeat(np.arange(len(symbols), dtype=np.uint16), symbols[0].size)
        groups = [SymbolGroup(symbols.ravel(), channels, self._tables.z)]

        def step(_step: int, mean: torch.Tensor, scale: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            whole = torch.round(y - mean[0])
            rows = np.searchsorted(self._scales, scale[0][mask].numpy()).clip(max=len(self._scales) - 1)
            groups.append(SymbolGroup(whole[mask].int().numpy(), rows.astype(np.uint8), self._tables.y))
            return ((whole + mean[0]) * mask)[None]

        with torch.inference_mode():
            base = self._codec.h_s(torch.from_numpy(symbols.astype(np.float32) + self._median)[None])
            result = self._codec.run_context(base, step)
        return 4 * len(encode_groups(groups)), result.y_hat[0], result.scale[0]


def _both(model: Any, floats: FloatEntropy, pixels: Pixels, quality: float) -> dict[str, tuple[int, float]]:
    """Bytes and PSNR of one tile with either entropy model."""
    side = slice(0, len(pixels))
    y, z = model.hyper_analyse(model.analyse(pixels, (side, side), quality))
    payload = model.tile_codec.encode(y, z, quality=quality, height=len(pixels), width=len(pixels))
    latent = model.tile_codec.decode(payload, "bench")
    size, y_hat, scale = floats.code(y, z)
    return {
        "integer": (4 * len(payload.words), _psnr(model, latent.y_hat, latent.scale, quality, pixels)),
        "float": (size, _psnr(model, y_hat, scale, quality, pixels)),
    }


def _psnr(model: Any, y_hat: torch.Tensor, scale: torch.Tensor, quality: float, pixels: Pixels) -> float:
    from tilecodec.entropy.model import LatentWindow
    from tilecodec.metrics import psnr

    _, inverse = model.gain(quality)
    picture: NDArray[np.uint8] = model.reconstruct(LatentWindow(y_hat * inverse, scale * inverse), quality)
    value = psnr(picture, pixels)
    return value if math.isfinite(value) else 100.0


def _middle(pixels: Pixels, side: int) -> Pixels:
    """The square of ``side``, or of the largest multiple of 128 that fits, in the picture's middle."""
    side = min(side, *(length // 128 * 128 for length in pixels.shape[:2]))
    y0, x0 = ((length - side) // 2 for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[y0 : y0 + side, x0 : x0 + side])


if __name__ == "__main__":
    sys.exit(main())
