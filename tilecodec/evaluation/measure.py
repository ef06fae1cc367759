"""One picture through the codecs: bytes and quality at every setting."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from tilecodec import api
from tilecodec.evaluation.anchors import Codec, Coded, Pixels, at_rates
from tilecodec.evaluation.quality import Meter
from tilecodec.evaluation.rows import OURS, Row, make_row

AHEAD: Final = 2
"""Codecs that are at work on a picture at the same time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A picture to be coded."""

    domain: str
    name: str
    pixels: Pixels
    """(H, W, 3) uint8."""


def code_ours(
    pixels: Pixels, quality: float, *, model: str = "default", device: str = "auto", work: Path | None = None
) -> Coded:
    """One picture through our codec at default options.

    Args:
        pixels: (H, W, 3) uint8.
        quality: 1 to 100.
        model: name or path.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        work: folder for the container, which is removed again; None: the system's.

    Returns:
        The bytes of all files of the container, metadata and pyramid included, and what it decodes to.
    """
    with tempfile.TemporaryDirectory(prefix="tilecodec-eval-", dir=work) as folder:
        target = Path(folder) / "picture.zarr"
        api.encode(pixels, target, model=model, quality=quality, device=device)
        image = api.open(target, model=model, device=device)
        decoded = np.ascontiguousarray(np.asarray(image[:, :, :]).transpose(1, 2, 0))
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return Coded(setting=f"quality={quality:g}", size=size, pixels=decoded)


def name_of(model: str, device: str = "auto") -> str:
    """A model's alias and the first digits of its hash.

    Raises:
        ModelError: there is no such model, or it cannot be used.
    """
    from tilecodec.entropy.model import shared_model

    loaded = shared_model(model, device)
    return f"{loaded.alias} (sha256:{loaded.sha256[:12]})"


def measure_ours(
    subject: Subject,
    qualities: Sequence[float],
    meter: Meter,
    *,
    model: str = "default",
    device: str = "auto",
    work: Path | None = None,
) -> list[Row]:
    """Rows of our codec; arguments as for :func:`code_ours`."""
    coded = [code_ours(subject.pixels, quality, model=model, device=device, work=work) for quality in qualities]
    return _rows(OURS, subject, coded, meter)


def measure_anchors(
    subject: Subject, codecs: Sequence[Codec], rates: Sequence[float], meter: Meter
) -> Iterator[list[Row]]:
    """Yields the rows of each codec, in order; while one is measured the next are at work."""
    pool = ThreadPoolExecutor(AHEAD)
    try:
        running = [pool.submit(at_rates, codec, subject.pixels, rates) for codec in codecs]
        for codec, coded in zip(codecs, running, strict=True):
            yield _rows(codec.name, subject, coded.result(), meter)
    finally:
        pool.shutdown(cancel_futures=True)


def _rows(codec: str, subject: Subject, coded: Sequence[Coded], meter: Meter) -> list[Row]:
    measured = meter([c.pixels for c in coded], subject.pixels)
    return [make_row(codec, subject.domain, subject.name, c, q) for c, q in zip(coded, measured, strict=True)]
