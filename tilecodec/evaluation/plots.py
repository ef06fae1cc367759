"""Rate-quality curves as pictures, SVG and PNG, that read on light and on dark backgrounds alike."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tilecodec.errors import StorageError
from tilecodec.evaluation.anchors import CODECS
from tilecodec.evaluation.curves import Curve
from tilecodec.evaluation.quality import METRICS
from tilecodec.evaluation.rows import OURS, Row
from tilecodec.evaluation.summary import codecs_of, growing, mean_curve

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

COLOURS: Final = {
    OURS: "#e03131",
    "jpeg": "#808080",
    "jpeg2000": "#b7791f",
    "webp": "#2f9e44",
    "avif": "#3b82f6",
    "jpegxl": "#a75de0",
}
"""Of middle lightness: each stands out from white and from black."""
INK: Final = "#808080"
"""Text, axes and grid."""
DASHES: Final = {"jpeg": ":", "jpeg2000": (0, (5, 1, 1, 1)), "webp": "--", "avif": "-.", "jpegxl": (0, (7, 2))}
"""For those who see the colours alike; ours is solid."""
PANEL: Final = (4.6, 3.7)
"""Inches, width and height, of one metric's panel."""
COLUMNS: Final = 3
"""Panels in a row."""
DPI: Final = 144
RATE_TICKS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
SSIM_TICKS: Final = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
_STYLE: Final = {
    "svg.fonttype": "none",  # text stays text: small, and sharp at any size
    "svg.hashsalt": "tilecodec",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "path.simplify_threshold": 0.5,
}


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def plot_curves(rows: Sequence[Row], domain: str, metrics: Sequence[str], files: Sequence[Path]) -> None:
    """Draws every codec's mean curve, one panel for each metric, better always upwards.

    Beside other codecs ours is drawn over the rates that they reach. A codec that does not reach one range of rates on
    all pictures is drawn for most of them, and their number stands in the legend.

    Args:
        rows: of all pictures.
        domain: one domain, or ``all``.
        metrics: names of what to draw.
        files: where to; the suffix, ``.svg`` or ``.png``, is the format.

    Raises:
        StorageError: a file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # its keys are literals there
        columns = min(COLUMNS, len(metrics))
        lines = -(-len(metrics) // columns)
        figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * lines + 0.5), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for panel, metric in zip(panels, metrics, strict=False):
            _draw(panel, rows, domain, metric)
        for panel in panels[len(metrics) :]:
            panel.remove()
        handles: dict[str, Artist] = {}
        for panel in panels[: len(metrics)]:
            handles |= {label: line for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=6, frameon=False, fontsize=10
        )
        for file in files:
            date: dict[str, Any] = {"Date": None} if file.suffix == ".svg" else {}
            try:
                figure.savefig(file, transparent=True, dpi=DPI, metadata=date)
            except OSError as error:
                raise StorageError("cannot write", got=error.strerror, where=str(file)) from error


def _draw(panel: Axes, rows: Sequence[Row], domain: str, metric: str) -> None:
    drawn = {codec: mean_curve(rows, codec, domain, metric) for codec in codecs_of(rows)}
    reached = [found.points[:, 0] for codec, found in drawn.items() if codec != OURS and len(found.points)]
    titles = {codec.name: codec.title for codec in CODECS}
    for codec, found in drawn.items():
        points = found.points
        if codec == OURS and reached:
            low, high = min(r.min() for r in reached), max(r.max() for r in reached)
            points = points[(points[:, 0] >= low) & (points[:, 0] <= high)]
        if not len(points):
            continue
        part = "" if found.pictures == found.total else f" ({found.pictures} of {found.total})"
        panel.plot(
            points[:, 0],
            _upwards(metric, points),
            label=titles.get(codec, codec) + part,
            color=COLOURS.get(codec, INK),
            linestyle=DASHES.get(codec, "-"),
            linewidth=2.6 if codec == OURS else 1.7,
            zorder=3 if codec == OURS else 2,
        )
    _set_axes(panel, metric)


def _upwards(metric: str, points: Curve) -> Curve:
    """The metric as it is drawn: MS-SSIM in dB, others as they are; the axis of a falling one is turned over."""
    return growing(metric, points)[:, 1] if metric == "ms_ssim" else points[:, 1]


def _set_axes(panel: Axes, metric: str) -> None:
    panel.set_title(METRICS[metric].title, fontsize=12)
    panel.set_xscale("log")
    panel.set_xlabel("bits per pixel")
    low, high = panel.get_xlim()
    ticks = [t for t in RATE_TICKS if low <= t <= high]
    panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
    panel.set_xticks([], minor=True)
    if metric == "ms_ssim":
        bottom, top = panel.get_ylim()
        scaled = dict(zip(SSIM_TICKS, growing(metric, np.array([(1.0, t) for t in SSIM_TICKS]))[:, 1], strict=True))
        shown = {tick: place for tick, place in scaled.items() if bottom <= place <= top}
        panel.set_yticks(list(shown.values()), [f"{tick:g}" for tick in shown])
    if not METRICS[metric].rising:
        panel.invert_yaxis()
    panel.grid(True, color=INK, alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
