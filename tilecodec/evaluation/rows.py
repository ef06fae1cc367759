"""One row for each picture coded by one codec at one setting, and the table they make."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tilecodec.errors import StorageError
from tilecodec.evaluation.anchors import Coded
from tilecodec.evaluation.quality import METRICS, Quality

OURS: Final = "tilecodec"
"""Our codec's name in the column ``codec``."""
_DIGITS: Final = {"psnr": 4, "ms_ssim": 6, "lpips": 6, "dists": 6, "ssimulacra2": 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One picture coded by one codec at one setting."""

    codec: str
    setting: str
    domain: str
    picture: str
    bytes: int
    """All of them: every file of a container, the headers of the others."""
    bpp: float
    psnr: float
    ms_ssim: float
    lpips: float = float("nan")
    dists: float = float("nan")
    ssimulacra2: float = float("nan")

    def metric(self, name: str) -> float:
        """A metric by name, NaN where it was not measured."""
        return float(getattr(self, name))

    def to_dict(self, metrics: Sequence[str]) -> dict[str, Any]:
        """What the row says, with these metrics."""
        first = ("codec", "setting", "domain", "picture", "bytes", "bpp")
        return {name: getattr(self, name) for name in (*first, *metrics)}


def make_row(codec: str, domain: str, picture: str, coded: Coded, quality: Quality) -> Row:
    """The row of one measurement; bits per pixel are those of the picture itself."""
    area = coded.pixels[..., 0].size
    return Row(
        codec=codec,
        setting=coded.setting,
        domain=domain,
        picture=picture,
        bytes=coded.size,
        bpp=round(8 * coded.size / area, 5),
        **{name: round(getattr(quality, name), digits) for name, digits in _DIGITS.items()},
    )


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file, none if it is not there; metrics without a column are NaN."""
    if not path.exists():
        return []
    numbers = {"bpp", *METRICS}
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(**{k: float(v) if k in numbers else int(v) if k == "bytes" else v for k, v in line.items()})  # type: ignore[arg-type]
            for line in csv.DictReader(file)
        ]


def write_rows(path: Path, rows: Sequence[Row], metrics: Sequence[str]) -> None:
    """Writes a CSV file with these metrics as columns.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0].to_dict(metrics)), lineterminator="\n")
            writer.writeheader()
            writer.writerows(row.to_dict(metrics) for row in rows)
    except OSError as error:
        raise StorageError("cannot write", got=error.strerror, where=str(path)) from error
