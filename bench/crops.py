"""Side-by-side crops at near-equal rate: ours, JPEG XL, AVIF, original."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bench.common import Bench, Pixels
from tilecodec.evaluation.anchors import CODECS, at_rates
from tilecodec.evaluation.measure import code_ours
from tilecodec.evaluation.rows import OURS

BESIDE = ("jpegxl", "avif")
STRIP = 18
"""Height of the label above each crop, pixels."""
TRIES = 7


def write_crops(bench: Bench, args: argparse.Namespace) -> None:
    """Writes ``DIR/<picture>.png`` for every picture, the centre at 100 %."""
    folder: Path = args.crops
    folder.mkdir(parents=True, exist_ok=True)
    for picture in bench.pictures:
        original = picture.pixels()
        area = original.shape[0] * original.shape[1]
        panels = [_ours(original, bench, args)]
        for codec in CODECS:
            if codec.name in BESIDE:
                nearest = at_rates(codec, original, [args.crops_bpp], tolerance=float("inf"))[0]
                label = f"{codec.name} {nearest.setting} {8 * nearest.size / area:.3f} bpp"
                panels.append((label, nearest.pixels))
        panels.append((f"original {picture.name}", original))
        bench.note(f"crop of {picture.name}")
        Image.fromarray(_beside(panels, args.crops_size)).save(folder / f"{picture.name}.png")


def _ours(original: Pixels, bench: Bench, args: argparse.Namespace) -> tuple[str, Pixels]:
    """Our codec at the quality nearest to the wanted rate, by bisection."""
    area = original.shape[0] * original.shape[1]
    low, high = 1.0, 100.0
    best: tuple[float, str, Pixels] | None = None
    for _ in range(TRIES):
        quality = round((low + high) / 2, 1)
        coded = code_ours(original, quality, model=args.model, work=bench.work)
        bpp = 8 * coded.size / area
        distance = abs(np.log(bpp / args.crops_bpp))
        if best is None or distance < best[0]:
            best = (distance, f"{OURS} {coded.setting} {bpp:.3f} bpp", coded.pixels)
        low, high = (quality, high) if bpp < args.crops_bpp else (low, quality)
    assert best is not None
    return best[1], best[2]


def _beside(panels: list[tuple[str, Pixels]], size: int) -> Pixels:
    parts = []
    for label, pixels in panels:
        top, left = (max(0, n - size) // 2 for n in pixels.shape[:2])
        crop = pixels[top : top + size, left : left + size]
        strip = Image.new("RGB", (crop.shape[1], STRIP), "white")
        ImageDraw.Draw(strip).text((4, 3), label, fill="black")
        parts.append(np.concatenate([np.asarray(strip), crop]))
    return np.concatenate(parts, 1)
