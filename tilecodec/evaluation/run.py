"""Evaluate our codec on a folder of pictures, beside the codecs that people would use instead."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tilecodec.api import Progress, ProgressCall
from tilecodec.errors import Problem, SourceError, StorageError, TargetExistsError, TileCodecError
from tilecodec.evaluation.anchors import RATES, Codec, pick
from tilecodec.evaluation.measure import Subject, measure_anchors, measure_ours, name_of
from tilecodec.evaluation.options import EvaluationOptions
from tilecodec.evaluation.pictures import Found, Picture, find_pictures
from tilecodec.evaluation.plots import can_plot, plot_curves
from tilecodec.evaluation.quality import Meter
from tilecodec.evaluation.report import EvaluationReport, left_out
from tilecodec.evaluation.rows import OURS, Row, write_rows
from tilecodec.evaluation.summary import domains_of

ROWS: Final = "rows.csv"
REPORT: Final = ("report.json", "report.md")
PLOTS: Final = (".svg", ".png")
_PACKAGES: Final = ("tilecodec", "torch", "imagecodecs", "numpy")


def evaluate(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    progress: ProgressCall | None = None,
    **options: Any,
) -> EvaluationReport:
    """Measures rate and quality on the pictures of a folder, beside JPEG, JPEG 2000, WebP, AVIF and JPEG XL.

    Subfolders are domains, reported one by one and all together. Files that cannot be read and pictures under 161 px
    are skipped and listed; of a picture with more than ``max_pixels`` the middle is measured.

    Args:
        folder: pictures of any format that ``encode`` reads.
        out: folder for ``rows.csv``, ``report.json``, ``report.md`` and plots, made where it is missing; None: none of
            them. The table grows with every picture.
        overwrite: replace files of these names.
        progress: called after every codec on every picture; its pixels are those of the pictures done so far.
        **options: fields of :class:`~tilecodec.EvaluationOptions`.

    Raises:
        UsageError: an option is out of range, or names a codec that is not there.
        MissingFileError: no such folder, or no such file of weights.
        SourceError: the folder is empty, or no picture in it can be measured.
        ModelError: there is no such model, or weights are of another kind.
        TargetExistsError: a file to write is there already.
        StorageError: reading or writing failed.
    """
    settings = EvaluationOptions(**options)
    begun = time.monotonic()
    place = None if out is None else Path(out)
    _check_free(place, overwrite)
    meter = Meter(
        None if settings.lpips is None else Path(settings.lpips),
        None if settings.dists is None else Path(settings.dists),
        ssimulacra2=settings.ssimulacra2,
        device=settings.device,
    )
    model = name_of(settings.model, settings.device)
    found = find_pictures(folder, settings.max_pixels, without=place)
    _make(place)
    measured = _Measured(found, settings, meter, progress, place)
    measured.run()
    missing = left_out(meter.metrics)
    names: list[str] = []
    if place is not None:
        names, line = _draw(measured.rows, meter.metrics, place)
        missing += line
    report = EvaluationReport(
        folder=os.fspath(folder),
        model=model,
        qualities=tuple(sorted(settings.qualities)),
        codecs=tuple(codec.name for codec in measured.codecs),
        rates=settings.rates,
        metrics=meter.metrics,
        left_out=tuple(missing),
        max_pixels=settings.max_pixels,
        pictures=tuple(measured.done),
        skipped=(*found.skipped, *measured.failed),
        rows=tuple(measured.rows),
        versions=_versions(),
        seconds=time.monotonic() - begun,
        files=() if place is None else tuple(str(place / name) for name in (ROWS, *REPORT, *names)),
    )
    if place is not None:
        _write(place / REPORT[0], report.to_json() + "\n")
        _write(place / REPORT[1], report.to_markdown([name for name in names if name.endswith(PLOTS[0])]))
    return report


class _Measured:
    """The measurement of one picture after the other."""

    def __init__(
        self,
        found: Found,
        settings: EvaluationOptions,
        meter: Meter,
        progress: ProgressCall | None,
        place: Path | None,
    ) -> None:
        self._found, self._settings, self._meter, self._progress, self._place = found, settings, meter, progress, place
        self.codecs: tuple[Codec, ...] = pick(settings.codecs)
        self.rows: list[Row] = []
        self.done: list[Picture] = []
        self.failed: list[Problem] = []
        self._begun = time.monotonic()
        self._pixels, self._total = 0, sum(picture.area for picture in found.pictures)

    def run(self) -> None:
        """Measures all pictures; one whose pixels turn out to be damaged is left out.

        Raises:
            SourceError: none is left.
        """
        for picture in self._found.pictures:
            try:
                pixels = picture.read()
            except TileCodecError as error:
                self.failed.append(Problem.of(error))
                self._tell(picture.area)
                continue
            subject = Subject(domain=picture.domain, name=picture.name, pixels=pixels)
            parts, told = len(self.codecs) + 1, 0
            for number, rows in enumerate(self._rows(subject)):
                self.rows += rows
                share = picture.area * (number + 1) // parts
                self._tell(share - told)
                told = share
            self.done.append(picture)
            if self._place is not None:
                write_rows(self._place / ROWS, self.rows, self._meter.metrics)
        if not self.done:
            raise SourceError("no picture in the folder can be measured", got=self.failed[0].message)
        order = [OURS, *(codec.name for codec in self.codecs)]
        self.rows.sort(key=lambda row: order.index(row.codec))

    def _rows(self, subject: Subject) -> Iterator[list[Row]]:
        qualities = sorted(self._settings.qualities)
        yield measure_ours(subject, qualities, self._meter, model=self._settings.model, device=self._settings.device)
        yield from measure_anchors(subject, self.codecs, RATES, self._meter)

    def _tell(self, pixels: int) -> None:
        self._pixels += pixels
        if self._progress is not None:
            self._progress(Progress(self._pixels, self._total, 0, time.monotonic() - self._begun))


def _check_free(place: Path | None, overwrite: bool) -> None:
    """Refuses a folder that holds files of the names that are written."""
    if place is None or overwrite:
        return
    for name in (ROWS, *REPORT):
        if os.path.lexists(place / name):
            raise TargetExistsError(
                got=str(place / name), expected="a new folder", where="out", hint="Give --overwrite to replace it"
            )


def _make(place: Path | None) -> None:
    if place is None:
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError("cannot make the folder", got=error.strerror, where=str(place)) from error


def _draw(rows: Sequence[Row], metrics: Sequence[str], place: Path) -> tuple[list[str], list[str]]:
    """Draws the plots; returns their names, and a line on why there are none."""
    if not can_plot():
        return [], ["plots: matplotlib is not installed; install the extra: tilecodec[eval]"]
    names: list[str] = []
    for domain in domains_of(rows):
        stem = "rd-" + (re.sub(r"[^\w-]+", "-", domain).strip("-") or "domain")
        while stem + PLOTS[0] in names:
            stem += "-2"
        plot_curves(rows, domain, metrics, [place / (stem + suffix) for suffix in PLOTS])
        names += [stem + suffix for suffix in PLOTS]
    return names, []


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError("cannot write", got=error.strerror, where=str(path)) from error


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
