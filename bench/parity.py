"""The authors' network at full size, random weights: our tensors beside those of diffusers' classes, in float32.

The autoencoder's encoder, the transformer and the autoencoder's decoder are compared, the decoder also at the end of
both roads: its input is what the respective transformer gives. The parts between them have their golden tensors in the
tests at full size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from bench.common import Check, Pixels, add_arguments, mosaic, start, table

LIMIT: Final = 1e-4
"""Largest difference, times the larger of 1 and the largest value."""
ENTRIES: Final = ("vae_latent", "velocity", "x0", "recon")


def library_tensors(network: Any, image_u8: Pixels, seen: dict[str, Any]) -> dict[str, Any]:
    """The compared tensors by diffusers' classes, with our network's weights and our tensors before the transformer.

    Args:
        network: our network, float32.
        image_u8: (3, H, W), sides multiples of the hyper-latent's stride.
        seen: our tensors, see :func:`tilecodec.testing.trace`.
    """
    import torch

    from tilecodec.testing import library_autoencoder, library_transformer

    config = network.config
    with torch.device("meta"):
        vae, transformer = library_autoencoder(config.vae), library_transformer(config)
    for part, prefix in ((vae, "vae."), (transformer, "DiT.")):
        state = {k.removeprefix(prefix): v for k, v in network.state_dict().items() if k.startswith(prefix)}
        part.load_state_dict(state, assign=True)
        part.eval()
    given = {name: torch.from_numpy(seen[name]) for name in ("mean", "log_scale", "res", "caption", "timestep")}
    found = {}
    with torch.inference_mode():
        pixels = torch.from_numpy(image_u8)[None].float() / 127.5 - 1
        found["vae_latent"] = vae.encoder(pixels) * config.vae.scaling_factor
        found["velocity"] = transformer(given["mean"], given["caption"], given["timestep"]).sample
        sigma = torch.exp(given["log_scale"].clamp(-30.0, 20.0) / 2)
        weight = torch.where(sigma < 4, 0.15 * sigma + 0.4, 1.0)
        found["x0"] = given["mean"] - config.transformer.sigma * weight * found["velocity"] + given["res"]
        found["recon"] = vae.decoder(found["x0"] / config.vae.scaling_factor).clamp(-1, 1)
    return {name: value.numpy() for name, value in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.parity", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--sizes", default="256x256,512x768", help="height x width of the pictures, multiples of 256")
    parser.add_argument("--seeds", default="g0,g1", help="of the weights, see tilecodec.testing.golden_weight")
    args = parser.parse_args(argv)
    bench = start(parser, args, "parity", argv)

    from tilecodec.model.config import official_config
    from tilecodec.testing import golden_model, small_config, trace

    config = small_config() if bench.smoke else official_config()
    sizes = [(256, 512)] if bench.smoke else [tuple(map(int, part.split("x"))) for part in args.sizes.split(",")]
    rows: list[dict[str, Any]] = []
    for seed in args.seeds.split(","):
        network = golden_model(config, seed=seed)
        for height, width in sizes:
            bench.note(f"weights {seed}, {height} x {width} px")
            image = np.ascontiguousarray(mosaic(bench.pictures, height, width).transpose(2, 0, 1))
            ours = trace(network, image)
            theirs = library_tensors(network, image, ours)
            for name in ENTRIES:
                largest = max(1.0, float(np.abs(theirs[name]).max()))
                error = float(np.abs(ours[name].astype(np.float64) - theirs[name]).max())
                rows.append(
                    {
                        "weights": seed,
                        "size": f"{height}x{width}",
                        "tensor": name,
                        "absmax": f"{np.abs(theirs[name]).max():.4g}",
                        "max_abs_error": f"{error:.3g}",
                        "relative": f"{error / largest:.3g}",
                    }
                )
    bench.write_csv(rows)
    worst = max(rows, key=lambda row: float(row["relative"]))
    check = Check(
        what="largest difference from diffusers, over max(1, absmax)",
        wanted=f"at most {LIMIT:g}",
        measured=f"{worst['relative']} ({worst['tensor']}, weights {worst['weights']}, {worst['size']})",
        ok=float(worst["relative"]) <= LIMIT,
        exact=True,
    )
    body = "A narrow network of the same layers.\n\n" if bench.smoke else ""
    return bench.finish(body + table(list(rows[0]), [list(row.values()) for row in rows]), [check])


if __name__ == "__main__":
    sys.exit(main())
