"""Every measurement of bench/ runs in its tiny mode and leaves whole tables."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = {
    "startup": 3,
    "region_invariance": 5,
    "seams": 4,
    "seams_whole": 1,
    "overhead": 1,
    "throughput": 5,
    "latency": 4,
    "engine": 2,
    "stages": 18,
    "sweep": 4,
    "peers": 7,
    "panning": 2,
    "memory": 2,
    "memory_sizes": 2,
    "rate_quality": 4,
    "integer_cost": 4,
    "ablation": 2,
    "ablation_rates": 4,
    "official": 8,
    "parity": 8,
    "entropy_matrix": 25,
    "entropy_speed": 2,
    "fuzz": 20,
    "rate_quality_reference": 10,
}
"""Fewest rows of each table in a smoke run."""
MAY_LACK = {("ablation_rates", "lpips"), ("rate_quality", "lpips"), ("rate_quality_reference", "lpips")}
"""Columns without a number: LPIPS needs weights that the tests do not have."""


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that one run of all measurements has filled."""
    out = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "bench", "--smoke", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ROWS))
def test_table_is_whole(smoke_run: Path, name: str) -> None:
    with (smoke_run / "results" / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= ROWS[name]
    for row in rows:
        for column, text in row.items():
            assert text != ""
            if (name, column) not in MAY_LACK:
                assert text not in {"nan", "inf"}, (column, row)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ROWS) - {"ablation_rates", "rate_quality_reference", "seams_whole"}))
def test_report_names_machine_versions_commit_and_command(smoke_run: Path, name: str) -> None:
    reports = (smoke_run / "reports").glob(f"{name}_*.md")
    (report,) = (path for path in reports if path.stem.rsplit("_", 2)[0] == name)
    text = report.read_text()
    for fact in ("- machine: ", "- versions: Python ", "- commit: ", f"- command: `python -m bench.{name} --smoke"):
        assert fact in text
    assert str(smoke_run) not in text


@pytest.mark.slow
def test_smoke_run_reads_every_region_alike(smoke_run: Path) -> None:
    with (smoke_run / "results" / "region_invariance.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["way"] for row in rows} >= {"tilecodec.open", "zarr.open", "dask.array.from_zarr", "tilecodec decode"}
    assert [row["differing"] for row in rows] == ["0"] * len(rows)
    assert all(int(row["regions"]) > 0 for row in rows)
