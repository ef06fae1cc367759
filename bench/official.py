"""The authors' network at full size, random weights: loading, decode latency by stage, memory by precision, PSNR.

The stages are those of table 3 of the DiT-IC paper (arXiv 2603.13162): VAE, codec (entropy decoding and the branches
from the code to the transformer's inputs), diffusion. Each row is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.common import BENCH, MEGAPIXEL, Check, Pixels, add_arguments, mosaic, start, table
from bench.memory import peak_bytes
from tilecodec.config import Precision

LOAD_SECONDS: Final = 30.0
CPU_GIB: Final = 8.0
GPU_GIB: Final = 5.0
SPEEDUP: Final = 5.0
PSNR: Final = 45.0
TILE: Final = 512
STAGES: Final = ("vae", "codec", "diffusion")
WHOLE: Final = 1024
"""Largest side that is decoded in one window on a CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What one process does."""

    way: str
    """``load``, ``encode``, ``decode`` (by tiles), or ``whole`` (untiled, float32, on diffusers' classes)."""
    model: str
    device: str = "cpu"
    precision: Precision = "auto"
    compile: bool = False
    source: str = ""
    """A picture as ``.npy`` (H, W, 3), or a container."""
    target: str = ""
    """A container, or pixels as ``.npy`` (H, W, 3)."""
    tile: int = TILE
    threads: int | None = None


def run(job: Job) -> dict[str, float]:
    """Does a job in this process; seconds and bytes by name."""
    import torch

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    if job.way == "whole":
        return _whole(job)
    from tilecodec.entropy.model import CodecModel, shared_model

    begin = time.perf_counter()
    model: CodecModel = shared_model(job.model, job.device, job.precision, compile=job.compile)
    result = {"load_seconds": time.perf_counter() - begin, "load_peak": float(peak_bytes())}
    begin = time.perf_counter()
    if job.way == "encode":
        import tilecodec

        options = {"model": job.model, "device": job.device, "precision": job.precision, "compile": job.compile}
        tilecodec.encode(np.load(job.source), job.target, tile=job.tile, levels=1, **options)
    elif job.way == "decode":
        clock = _Clock(model)
        decoder = _decoder(job)
        pixels = decoder.read(0, decoder.height, 0, decoder.width)
        result |= clock.seconds
        np.save(job.target, pixels)
    _settle(model.device)
    return result | {"seconds": time.perf_counter() - begin, **_peaks(model.device)}


def _decoder(job: Job) -> Any:
    import tilecodec

    image = tilecodec.open(job.source, model=job.model, device=job.device, precision=job.precision, compile=job.compile)
    return image.level(0).decoder


def _settle(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peaks(device: Any) -> dict[str, float]:
    import torch

    peaks = {"peak": float(peak_bytes())}
    if device.type == "cuda":
        peaks["gpu_peak"] = float(torch.cuda.max_memory_reserved(device))
    return peaks


class _Clock:
    """Adds up the seconds of each stage, over all threads."""

    def __init__(self, model: Any) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._lock, self._device = threading.Lock(), model.device
        network = model.network
        model.tile_codec.decode = self._timed(model.tile_codec.decode, codec=1.0)
        network.denoise = self._timed(network.denoise, codec=1.0)
        network.render_levels = self._timed(network.render_levels, vae=1.0)
        if network.DiT is not None:  # runs within denoise
            network.DiT.forward = self._timed(network.DiT.forward, diffusion=1.0, codec=-1.0)

    def _timed(self, call: Callable[..., Any], **shares: float) -> Callable[..., Any]:
        def timed(*args: Any, **words: Any) -> Any:
            _settle(self._device)
            begin = time.perf_counter()
            result = call(*args, **words)
            _settle(self._device)
            seconds = time.perf_counter() - begin
            with self._lock:
                for stage, share in shares.items():
                    self.seconds[stage] += share * seconds
            return result

        return timed


def _whole(job: Job) -> dict[str, float]:
    """Decodes a container's picture in one piece: diffusers' classes, float32, as the authors' release does."""
    import torch

    from tilecodec.entropy.model import LatentWindow

    begin = time.perf_counter()
    device = torch.device(job.device if job.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    network = library_network(job.model, device)
    result = {"load_seconds": time.perf_counter() - begin, "load_peak": float(peak_bytes())}
    latent: LatentWindow = whole_latent(job)
    y_hat, scale = (t[None].float().to(device) for t in (latent.y_hat, latent.scale))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begin = time.perf_counter()
    with torch.inference_mode():
        x0 = network.denoise(y_hat, scale, torch.zeros(1, device=device)).x0
        pixels = network.render(x0)[0]
        levels = pixels.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    _settle(device)
    result |= {"seconds": time.perf_counter() - begin, **_peaks(device)}
    np.save(job.target, levels)
    return result


def whole_latent(job: Job) -> Any:
    """The latents of all tiles of a container side by side."""
    import torch

    from tilecodec.entropy.model import LatentWindow
    from tilecodec.tiles import TilePosition

    decoder = _decoder(Job(**{**_fields(job), "device": "cpu", "precision": "bf16"}))
    grid = decoder.layout.grid
    rows = [[decoder.fetcher.request(TilePosition(row, col))() for col in range(grid.cols)] for row in range(grid.rows)]
    parts = [
        torch.cat([torch.cat([getattr(tile, name) for tile in row], dim=2) for row in rows], dim=1)
        for name in ("y_hat", "scale")
    ]
    return LatentWindow(*parts)


def library_network(name: str, device: Any) -> Any:
    """The network of a model file in float32, its autoencoder and transformer of diffusers' classes."""
    import torch
    from torch import nn

    from tilecodec.model.ditic import DiTIC
    from tilecodec.model.weights import INTEGER_PARTS, find_model
    from tilecodec.testing import library_autoencoder, library_transformer

    file = find_model(name)
    config = file.config

    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            library = library_autoencoder(config.vae)
            self.encoder, self.decode_part = library.encoder, library.decoder

        def decode(self, latent: torch.Tensor) -> torch.Tensor:
            pixels: torch.Tensor = self.decode_part(latent)
            return pixels

    with torch.device("meta"):
        network = DiTIC(config)
        network.vae = Autoencoder()
        network.DiT = library_transformer(config)
        network.DiT.register_forward_hook(lambda _module, _given, output: output.sample)
    network.aux_codec = None
    network.vae.encoder = None  # type: ignore[assignment]
    for part in INTEGER_PARTS:
        network.codec._modules[part.split(".")[1]] = None
    for part in ("g_a", "h_a"):
        network.codec._modules[part] = None
    state = {}
    for key in network.state_dict():
        stored = key.replace("vae.decode_part.", "vae.decoder.")
        state[key] = file.tensors[stored].to(device, torch.float32)
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _fields(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in Job.__slots__}


def in_a_process(job: Job) -> dict[str, float]:
    """Does a job in a process of its own."""
    command = [sys.executable, "-m", "bench.official", "--job", json.dumps(_fields(job))]
    done = subprocess.run(command, cwd=BENCH.parent, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["--job"]:
        print(json.dumps(run(Job(**json.loads(words[1])))))
        return 0
    parser = argparse.ArgumentParser(prog="python -m bench.official", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--sizes", default="1024,2048", help="sides, multiples of 256 (default 1024,2048)")
    parser.add_argument("--tile", type=int, default=TILE, help=f"tile side (default {TILE})")
    parser.add_argument("--precisions", default="bf16,int8,fp32", help="the first at every size, the rest at the first")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")
    parser.add_argument("--compile", action="store_true", help="one more row with torch.compile")
    parser.add_argument(
        "--whole", type=int, default=WHOLE, help="largest side to be decoded untiled in float32 as well"
    )
    parser.add_argument("--model", help="folder of a model of the authors' architecture (default: random weights)")
    args = parser.parse_args(argv)
    bench = start(parser, args, "official", argv)
    import torch

    from bench.golden_model import write_golden_model
    from tilecodec.model.config import official_config
    from tilecodec.testing import small_config

    sizes = [256] if bench.smoke else [int(part) for part in args.sizes.split(",")]
    tile = 256 if bench.smoke else args.tile
    precisions = args.precisions.split(",")
    on_gpu = args.device != "cpu"
    do: Callable[[Job], dict[str, float]] = run if bench.smoke else in_a_process
    if args.model is None:
        bench.note("writing a model file of random weights")
        config = small_config() if bench.smoke else official_config()
        args.model = str(write_golden_model(bench.work / "random", config, torch.bfloat16))
    stored = sum(p.stat().st_size for p in Path(args.model).glob("*.safetensors"))
    common = {"model": args.model, "device": args.device, "threads": args.threads}
    rows: list[dict[str, Any]] = []
    pictures: dict[tuple[int, str], Pixels] = {}

    def measure(way: str, size: int, precision: str, *, compile: bool = False, **more: Any) -> None:  # noqa: A002
        bench.note(f"{way} {size} px, {precision}")
        seen = do(Job(way=way, precision=precision, compile=compile, tile=tile, **common, **more))
        megapixels = size * size / MEGAPIXEL
        seconds = seen["seconds"]
        name = "diffusers, untiled" if way == "whole" else f"{way} in tiles" if way != "load" else way
        rows.append(
            {
                "what": f"{name}, compiled" if compile else name,
                "size": size,
                "precision": precision,
                "seconds": round(seconds, 3),
                **{stage: round(seen[stage], 3) if stage in seen else "-" for stage in STAGES},
                "mp_s": round(megapixels / seconds, 4) if size else "-",
                "load_s": round(seen["load_seconds"], 2),
                "load_peak_gib": round(seen["load_peak"] / 2**30, 3),
                "peak_gib": round(seen["peak"] / 2**30, 3),
                "gpu_peak_gib": round(seen["gpu_peak"] / 2**30, 3) if "gpu_peak" in seen else "-",
            }
        )
        if way in ("decode", "whole"):
            pictures[size, "whole" if way == "whole" else f"{precision}{'+' * compile}"] = np.load(more["target"])

    for precision in precisions:
        measure("load", 0, precision)
    for size in sizes:
        picture, container, target = (bench.work / name for name in (f"{size}.npy", f"{size}.zarr", "out.npy"))
        np.save(picture, mosaic(bench.pictures, size, size))
        measure("encode", size, precisions[0], source=str(picture), target=str(container))
        for precision in precisions if size == sizes[0] else precisions[:1]:
            measure("decode", size, precision, source=str(container), target=str(target))
        if args.compile and size == sizes[0]:
            measure("decode", size, precisions[0], compile=True, source=str(container), target=str(target))
        if size <= args.whole or on_gpu:
            measure("whole", size, "fp32", source=str(container), target=str(target))
        shutil.rmtree(container)
        picture.unlink()
    bench.write_csv(rows)
    body = (
        f"Random weights of the full-size network ({stored / 2**30:.2f} GiB in bf16), tiles of {tile} px. Stage "
        "seconds are added up over threads. *load*: from a file that lies in the page cache.\n\n"
    )
    if bench.smoke:
        body = "A narrow network of the same layers.\n\n"
    body += table(list(rows[0]), [list(r.values()) for r in rows]) + "\n\n"
    body += table(["size", "decoded", "against", "PSNR, dB"], _compared(pictures, precisions[0]))
    return bench.finish(body, _checks(rows, pictures, on_gpu=on_gpu))


def _compared(pictures: dict[tuple[int, str], Pixels], first: str) -> list[list[object]]:
    """PSNR of every decoded picture against the one in float32 with the same tiles, and against the untiled one."""
    lines: list[list[object]] = []
    for (size, name), pixels in pictures.items():
        for other in ("fp32", first, "whole"):
            if name not in (other, "whole") and (size, other) in pictures:
                lines.append([size, name, other, psnr(pixels, pictures[size, other])])
    return lines


def psnr(a: Pixels, b: Pixels) -> float:
    """PSNR of two pictures, dB; 100 where they are equal."""
    from tilecodec.metrics import psnr as exact

    value = exact(a, b)
    return value if np.isfinite(value) else 100.0


def _checks(rows: list[dict[str, Any]], pictures: dict[tuple[int, str], Pixels], *, on_gpu: bool) -> list[Check]:
    """Only what was measured in this run."""
    checks = []
    load = next(r for r in rows if r["what"] == "load" and r["precision"] == "bf16")
    checks.append(
        Check(
            what="load, bf16 file to bf16",
            wanted=f"at most {LOAD_SECONDS:g} s",
            measured=f"{load['load_s']:.1f} s, {load['load_peak_gib']:.2f} GiB at most",
            ok=load["load_s"] <= LOAD_SECONDS,
        )
    )
    tiled = [r for r in rows if r["what"] == "decode in tiles" and r["precision"] == "bf16"]
    limit, column = (GPU_GIB, "gpu_peak_gib") if on_gpu else (CPU_GIB, "peak_gib")
    for row in tiled:
        checks.append(
            Check(
                what=f"decode {row['size']} px in tiles, bf16, peak memory",
                wanted=f"at most {limit:g} GiB",
                measured=f"{row[column]:.2f} GiB",
                ok=row[column] <= limit,
            )
        )
    for size in {size for size, _ in pictures}:
        if (size, "bf16") in pictures and (size, "fp32") in pictures:
            value = psnr(pictures[size, "bf16"], pictures[size, "fp32"])
            checks.append(
                Check(
                    what=f"bf16 against fp32, {size} px, the same tiles",
                    wanted=f"at least {PSNR:g} dB",
                    measured=f"{value:.2f} dB",
                    ok=value >= PSNR,
                )
            )
    for row in rows if on_gpu else ():
        if row["what"] == "diffusers, untiled":
            ours = next(r for r in tiled if r["size"] == row["size"])
            times = row["seconds"] / ours["seconds"]
            checks.append(
                Check(
                    what=f"bf16 in tiles against fp32 untiled on diffusers, {row['size']} px",
                    wanted=f"at least {SPEEDUP:g} x",
                    measured=f"{times:.1f} x",
                    ok=times >= SPEEDUP,
                )
            )
    return checks


if __name__ == "__main__":
    sys.exit(main())
