"""What an evaluation found."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tilecodec.errors import Problem
from tilecodec.evaluation.anchors import CODECS
from tilecodec.evaluation.markdown import bullets, plain, table
from tilecodec.evaluation.pictures import Picture
from tilecodec.evaluation.quality import METRICS
from tilecodec.evaluation.rows import OURS, Row
from tilecodec.evaluation.summary import BDRate, Mean, bd_rate_against, domains_of, means
from tilecodec.evaluation.tables import anchors_of, bd_table, mean_tables, paired_tables


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport:
    """Rate and quality of our codec on a folder of pictures, beside other codecs."""

    folder: str
    model: str
    """Its alias and the first digits of its hash."""
    qualities: tuple[float, ...]
    codecs: tuple[str, ...]
    """Encoded beside ours."""
    rates: tuple[float, ...]
    """Bits per pixel at which codecs are compared."""
    metrics: tuple[str, ...]
    """That were measured."""
    left_out: tuple[str, ...]
    """What was not measured or drawn, and why."""
    max_pixels: int
    pictures: tuple[Picture, ...]
    skipped: tuple[Problem, ...]
    """Files that were not measured."""
    rows: tuple[Row, ...]
    """One for each picture, codec and setting."""
    versions: dict[str, str]
    seconds: float
    files: tuple[str, ...]
    """Written into the output folder."""

    @property
    def domains(self) -> list[str]:
        """The subfolders with pictures; before several of them stands ``all``."""
        return domains_of(self.rows)

    def means(self) -> list[Mean]:
        """Every codec's mean of every metric at the common rates, for each domain."""
        return [m for d in self.domains for metric in self.metrics for m in means(self.rows, d, metric, self.rates)]

    def bd_rates(self) -> list[BDRate]:
        """BD-rate of our codec against each other codec by each metric, for each domain."""
        return [
            bd_rate_against(self.rows, codec, domain, metric)
            for domain in self.domains
            for codec in self.codecs
            for metric in self.metrics
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what is no number, or infinite, is None."""
        return {
            "folder": self.folder,
            "model": self.model,
            "qualities": list(self.qualities),
            "codecs": list(self.codecs),
            "rates": list(self.rates),
            "metrics": list(self.metrics),
            "left_out": list(self.left_out),
            "max_pixels": self.max_pixels,
            "pictures": [picture.to_dict() for picture in self.pictures],
            "skipped": [asdict(problem) for problem in self.skipped],
            "bd_rates": [asdict(rate) for rate in self.bd_rates()],
            "means": [asdict(mean) for mean in self.means()],
            "rows": [{k: _finite(v) for k, v in row.to_dict(self.metrics).items()} for row in self.rows],
            "versions": self.versions,
            "seconds": self.seconds,
            "files": list(self.files),
        }

    def to_json(self) -> str:
        """The JSON form as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for a person to read."""
        cut, domains = sum(p.cut for p in self.pictures), [d for d in self.domains if d != "all"]
        return [
            ("pictures", f"{len(self.pictures):,} in {', '.join(domains)}; {cut} cut, {len(self.skipped)} skipped"),
            ("model", self.model),
            *((f"skipped {p.reason}", p.message) for p in self.skipped),
            *(("left out", line) for line in self.left_out),
            *(self._bd_lines()),
            *(("wrote", file) for file in self.files),
        ]

    def _bd_lines(self) -> list[tuple[str, str]]:
        lines: dict[str, list[str]] = {}
        for rate in self.bd_rates():
            value = "-" if rate.percent is None else f"{rate.percent:+.1f} % ({rate.pictures})"
            lines.setdefault(f"BD-rate {rate.domain}, {rate.against}", []).append(f"{rate.metric} {value}")
        return [(name, ", ".join(values)) for name, values in lines.items()]

    def to_markdown(self, plots: Sequence[str] = ()) -> str:
        """The report for people.

        Args:
            plots: paths of the plots, one for each domain and in that order; none: without plots.
        """
        parts = ["# Rate and quality", bullets(self._facts()), _HOW]
        parts += [f"## Left out\n\n{bullets(self.left_out)}"] if self.left_out else []
        drawn = dict(zip(self.domains, plots, strict=True)) if plots else {}
        for domain in self.domains:
            parts.append(f"## {plain(domain)}")
            parts += [f"![{plain(domain)}]({drawn[domain]})"] if domain in drawn else []
            if self.codecs:
                parts.append(bd_table(self.rows, domain, self.metrics, anchors_of(self.rows)))
            parts += mean_tables(self.rows, domain, self.metrics, self.rates)
            parts += paired_tables(self.rows, domain, self.metrics, self.rates, anchors_of(self.rows))
        parts.append(f"## Pictures\n\n{self._pictures()}")
        if self.skipped:
            skipped = [[plain(p.where), p.reason, plain(p.message)] for p in self.skipped]
            parts.append(f"## Skipped\n\n{table(['file', 'reason', 'message'], skipped)}")
        return "\n\n".join(parts) + "\n"

    def _facts(self) -> list[str]:
        cut = sum(picture.cut for picture in self.pictures)
        fixed = {codec.name: codec.fixed for codec in CODECS}
        return [
            f"pictures: {len(self.pictures):,}, {sum(p.area for p in self.pictures) / 2**20:.1f} MP measured",
            f"of {cut} of them only the middle, at most {self.max_pixels:,} px; {len(self.skipped)} files skipped",
            f"{OURS}: default options, model {self.model}, qualities " + ", ".join(f"{q:g}" for q in self.qualities),
            *(f"{name}: {fixed[name]}" for name in self.codecs),
            "versions: " + ", ".join(f"{k} {v}" for k, v in self.versions.items()),
            f"time: {self.seconds:.0f} s",
        ]

    def _pictures(self) -> str:
        body = [
            [
                plain(p.domain),
                plain(p.name),
                f"{p.width} × {p.height}",
                f"the middle of {p.whole_width} × {p.whole_height}" if p.cut else "whole",
            ]
            for p in self.pictures
        ]
        return table(["domain", "picture", "px", "of the file's picture"], body)


_HOW = (
    "Bytes are whole: every file of the container, headers of the others. Each codec is run at the settings nearest to "
    "a list of rates, for each picture. Metrics are interpolated per picture (linear in log bpp, never beyond a "
    "codec's own range) and then averaged; the number of pictures stands in brackets. Means of two codecs compare only "
    "where both reach the same pictures; gains and BD-rates are of those. LPIPS and DISTS favour a model that was "
    "trained with them."
)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def left_out(metrics: Sequence[str]) -> list[str]:
    """What was not measured, and why."""
    reasons = {
        "lpips": "LPIPS: no file of weights was given",
        "dists": "DISTS: no file of weights was given",
        "ssimulacra2": "SSIMULACRA2: it was not asked for",
    }
    return [reasons[name] for name in METRICS if name not in metrics]
