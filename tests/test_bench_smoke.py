"""Every measurement of bench/ runs in its tiny mode and leaves whole tables, and its arithmetic is right."""

from __future__ import annotations

import csv
import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = {
    "startup": 3,
    "region_invariance": 5,
    "seams": 6,
    "seams_whole": 1,
    "overhead": 1,
    "throughput": 5,
    "memory": 2,
    "rate_quality": 4,
    "integer_cost": 4,
    "official": 8,
    "entropy_matrix": 25,
    "entropy_speed": 2,
    "fuzz": 20,
    "rate_quality_reference": 10,
}
"""Fewest rows of each table in a smoke run."""
MAY_LACK = {("rate_quality", "lpips"), ("rate_quality_reference", "lpips")}
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
@pytest.mark.parametrize("name", sorted(set(ROWS) - {"rate_quality_reference", "seams_whole"}))
def test_report_names_machine_versions_commit_and_command(smoke_run: Path, name: str) -> None:
    (report,) = (smoke_run / "reports").glob(f"{name}_*.md")
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


@pytest.fixture(scope="module")
def curves() -> ModuleType:
    """bench/curves.py, which is not installed."""
    spec = importlib.util.spec_from_file_location("bench_curves", ROOT / "bench" / "curves.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RATES = np.array([0.1, 0.2, 0.4, 0.8])
CURVE = np.stack([RATES, 30 + 5 * np.log2(RATES)], 1)


def test_bd_rate_of_half_the_bytes(curves: ModuleType) -> None:
    assert curves.bd_rate(CURVE * [0.5, 1], CURVE) == pytest.approx(-0.5)
    assert curves.bd_rate(CURVE, CURVE * [0.5, 1]) == pytest.approx(1.0)
    assert curves.bd_rate(CURVE, CURVE[::-1]) == pytest.approx(0.0, abs=1e-12)


def test_bd_rate_drops_points_that_cost_more_for_nothing(curves: ModuleType) -> None:
    wasteful = np.concatenate([CURVE, [[0.7, CURVE[0, 1]]]])
    assert curves.bd_rate(wasteful, CURVE) == pytest.approx(0.0, abs=1e-12)


def test_bd_rate_without_shared_quality_is_no_number(curves: ModuleType) -> None:
    assert math.isnan(curves.bd_rate(CURVE + np.array([0, 100]), CURVE))
    assert math.isnan(curves.bd_rate(CURVE[:1], CURVE))


def test_metric_at_a_rate_is_linear_in_log_rate_and_never_beyond_the_curve(curves: ModuleType) -> None:
    assert curves.at_rate(CURVE[::-1], math.sqrt(0.1 * 0.2)) == pytest.approx((CURVE[0, 1] + CURVE[1, 1]) / 2)
    assert curves.at_rate(CURVE, 0.8) == pytest.approx(CURVE[-1, 1])
    assert math.isnan(curves.at_rate(CURVE, 0.09))
    assert math.isnan(curves.at_rate(CURVE, 0.81))
