"""tilecodec eval: the pictures of a folder through ours and other codecs, and what is said of it."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import skimage.data
import tiny
import zarr

import tilecodec
from tilecodec import EvaluationOptions, EvaluationReport, cli, evaluate
from tilecodec.errors import MissingFileError, ModelError, SourceError, TargetExistsError, UsageError
from tilecodec.evaluation import plots, run
from tilecodec.evaluation.anchors import CODECS, NAMES, at_rates, pick
from tilecodec.evaluation.measure import code_ours
from tilecodec.evaluation.pictures import find_pictures
from tilecodec.evaluation.quality import METRICS, Meter, ssimulacra2
from tilecodec.evaluation.rows import OURS, Row, read_rows, write_rows
from tilecodec.evaluation.summary import ALL, bd_rate_against, domains_of, mean_curve, means, paired
from tilecodec.evaluation.tables import bd_table, mean_tables
from tilecodec.metrics import MIN_SIDE

PHOTO = np.ascontiguousarray(skimage.data.astronaut()[100:300, 100:300])
QUALITIES = (20.0, 80.0)
FAST = ("jpeg", "webp")


def write_png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains, one file beside them, and what has to be skipped."""
    root = tmp_path_factory.mktemp("pictures") / "mine"
    write_png(root / "people" / "deep" / "astronaut.png", PHOTO[:170, :190])
    write_png(root / "things" / "coffee.png", skimage.data.coffee()[:300, :400])
    write_png(root / "top.png", skimage.data.chelsea()[:165, :165])
    write_png(root / "things" / "low.png", PHOTO[: MIN_SIDE - 1])
    write_png(root / "things" / ".hidden.png", PHOTO)
    (root / "things" / "broken.png").write_bytes(imagecodecs.png_encode(PHOTO)[:500])
    (root / "notes.txt").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationReport, Path, list[Any]]:
    """A report, its folder, and the progress that was told."""
    out, told = tmp_path_factory.mktemp("out") / "new", []
    report = evaluate(
        folder, out, model=tiny.tiny_model(), qualities=QUALITIES, codecs=FAST, max_pixels=40_000, progress=told.append
    )
    return report, out, told


# --- pictures


def test_subfolders_are_domains_and_the_unreadable_is_listed(folder: Path) -> None:
    found = find_pictures(folder, 10**6)
    places = {(p.domain, p.name) for p in found.pictures}
    assert places == {("people", "deep/astronaut.png"), ("things", "coffee.png"), ("mine", "top.png")}
    assert [Path(p.where).name for p in found.skipped] == ["notes.txt", "broken.png", "low.png"]
    assert "161" in found.skipped[-1].message


def test_a_large_picture_is_cut_in_its_middle(folder: Path) -> None:
    whole = find_pictures(folder, 300 * 400)
    assert not any(p.cut for p in whole.pictures)
    cut = {p.name: p for p in find_pictures(folder, 300 * 400 - 1).pictures}["coffee.png"]
    assert cut.cut
    assert 0.98 < cut.area / (300 * 400) < 1
    assert cut.width / cut.height == pytest.approx(4 / 3, rel=0.01)
    y, x = (300 - cut.height) // 2, (400 - cut.width) // 2
    assert np.array_equal(cut.read(), skimage.data.coffee()[y : y + cut.height, x : x + cut.width])


def test_a_cut_never_goes_under_what_ms_ssim_needs(tmp_path: Path) -> None:
    write_png(tmp_path / "long.png", np.zeros((170, 3000, 3), np.uint8))
    (picture,) = find_pictures(tmp_path, 50_000).pictures
    assert (picture.height, picture.area <= 50_000) == (MIN_SIDE, True)


def test_a_zarr_is_one_picture_and_links_end(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=PHOTO.shape, dtype="uint8", chunks=PHOTO.shape)[:] = PHOTO
    (tmp_path / "loop").symlink_to(tmp_path)
    (picture,) = find_pictures(tmp_path, 10**6).pictures
    assert np.array_equal(picture.read(), PHOTO)


def test_an_earlier_report_is_no_picture(folder: Path) -> None:
    names = {p.domain for p in find_pictures(folder, 10**6, without=folder / "people").pictures}
    assert names == {"things", "mine"}


def test_folders_with_nothing_to_measure(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such folder"):
        find_pictures(tmp_path / "absent", 10**6)
    with pytest.raises(SourceError, match="the folder is empty"):
        find_pictures(tmp_path, 10**6)
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(SourceError, match=r"no picture .* 1 files, the first: not a picture"):
        find_pictures(tmp_path, 10**6)
    with pytest.raises(SourceError, match="not a folder"):
        find_pictures(tmp_path / "notes.txt", 10**6)


# --- codecs


@pytest.mark.parametrize("codec", CODECS, ids=NAMES)
def test_settings_come_near_the_rates(codec: Any) -> None:
    coded = at_rates(codec, PHOTO, [1.0, 2.0])
    assert [c.pixels.shape for c in coded] == [PHOTO.shape] * 2
    for c, rate in zip(coded, (1.0, 2.0), strict=True):
        assert 1 / 1.25 <= 8 * c.size / 200**2 / rate <= 1.25
    assert at_rates(codec, PHOTO, [1e-4]) == []


def test_a_misspelt_codec_names_the_nearest() -> None:
    assert [c.name for c in pick(["webp", "jpeg"])] == ["jpeg", "webp"]
    with pytest.raises(UsageError, match="Did you mean jpegxl") as caught:
        pick(["jpeg-xl"])
    assert (caught.value.got, caught.value.where) == ("jpeg-xl", "codecs")
    with pytest.raises(UsageError, match="no such codec"):
        EvaluationOptions(codecs=("none", "jpeg"))


def test_ours_counts_the_whole_container(tmp_path: Path) -> None:
    coded = code_ours(PHOTO, 50, model=tiny.tiny_model())
    report = tilecodec.encode(PHOTO, tmp_path / "picture.zarr", quality=50, model=tiny.tiny_model())
    assert coded.size == report.bytes
    assert np.array_equal(coded.pixels, np.moveaxis(tilecodec.open(tmp_path / "picture.zarr")[:, :, :], 0, 2))


# --- metrics


@pytest.fixture(scope="module")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LPIPS with random weights."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    features = torchvision.models.squeezenet1_1(weights=None).features.state_dict()
    tensors = {f"features.{k}": v for k, v in features.items()}
    for n, channels in enumerate((64, 128, 256, 384, 384, 512, 512)):
        tensors[f"lpips.lin{n}"] = torch.rand(1, channels, 1, 1)
    path = tmp_path_factory.mktemp("weights") / "lpips.safetensors"
    save_file(tensors, path)
    return path


def jpeg(quality: int) -> np.ndarray:
    return imagecodecs.jpeg8_decode(imagecodecs.jpeg8_encode(PHOTO, quality))


def test_the_meter_measures_what_it_can(lpips: Path) -> None:
    meter = Meter(lpips)
    assert meter.metrics == ("psnr", "ms_ssim", "lpips")
    pictures = [PHOTO, jpeg(80), jpeg(10), jpeg(5), jpeg(2)]
    qualities = meter(pictures, PHOTO)
    assert (qualities[0].psnr, qualities[0].lpips) == (math.inf, pytest.approx(0, abs=1e-6))
    for name, metric in METRICS.items():
        values = [getattr(q, name) for q in qualities]
        if name in meter.metrics:
            assert values == sorted(values, reverse=metric.rising)
        else:
            assert all(math.isnan(v) for v in values)
    alone = [meter([p], PHOTO)[0].lpips for p in pictures]
    assert alone == pytest.approx([q.lpips for q in qualities], abs=1e-5)


def test_ssimulacra2_is_100_for_equal_pictures_and_falls() -> None:
    pytest.importorskip("ssimulacra2")
    assert ssimulacra2(PHOTO, PHOTO) == pytest.approx(100, abs=1e-6)
    good, bad = Meter(ssimulacra2=True)([jpeg(90), jpeg(10)], PHOTO)
    assert bad.ssimulacra2 + 20 < good.ssimulacra2 < 100


def test_dists_is_measured_where_its_weights_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(weights: Path, device: str) -> Any:
        assert (weights.name, device) == ("dists.pth", "cpu")
        return lambda pictures, original: [float(np.abs(p.astype(int) - original).mean()) for p in pictures]

    monkeypatch.setattr("tilecodec.evaluation.distances.load_dists", load)
    meter = Meter(dists=Path("dists.pth"))
    assert meter.metrics == ("psnr", "ms_ssim", "dists")
    values = [q.dists for q in meter([PHOTO] + [jpeg(q) for q in (90, 80, 60, 40, 20)], PHOTO)]
    assert values == sorted(values)
    assert values[0] == 0


def test_ssimulacra2_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"no package ssimulacra2.*tilecodec\[eval\]"):
        Meter(ssimulacra2=True)


@pytest.mark.parametrize("option", ["lpips", "dists"])
def test_weights_of_another_kind(option: str, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        Meter(**{option: tmp_path / "absent.safetensors"})
    other = next(Path(tiny.tiny_model()).glob("*.safetensors"))
    with pytest.raises(ModelError, match="another kind") as caught:
        Meter(**{option: other})
    assert caught.value.where == str(other)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ModelError, match="cannot be read"):
        Meter(**{option: tmp_path / "text.safetensors"})


# --- what the rows say

LADDER = ((0.1, 25.0, 0.9, 0.4), (0.2, 28.0, 0.95, 0.3), (0.4, 31.0, 0.97, 0.2), (0.8, 34.0, 0.99, 0.1))
"""Bits per pixel, PSNR, MS-SSIM, LPIPS."""


def rows_of(codec: str, factor: float = 1.0, picture: str = "p", domain: str = "d", start: int = 0) -> list[Row]:
    return [
        Row(
            codec=codec,
            setting=f"s={n}",
            domain=domain,
            picture=picture,
            bytes=1000,
            bpp=factor * bpp,
            psnr=psnr,
            ms_ssim=ms_ssim,
            lpips=lpips,
        )
        for n, (bpp, psnr, ms_ssim, lpips) in enumerate(LADDER[start:])
    ]


@pytest.mark.parametrize("metric", ["psnr", "ms_ssim", "lpips"])
def test_bd_rate_of_half_the_bytes_and_its_pictures(metric: str) -> None:
    rows = rows_of(OURS, 0.5) + rows_of("jpeg")
    rows += rows_of(OURS, 0.25, "q", "e") + rows_of("jpeg", 1, "q", "e") + rows_of(OURS, 1, "only ours")
    rate = bd_rate_against(rows, "jpeg", "d", metric)
    assert (rate.percent, rate.pictures) == (pytest.approx(-50), 1)
    rate = bd_rate_against(rows, "jpeg", ALL, metric)
    assert (rate.percent, rate.pictures) == (pytest.approx((-50 - 75) / 2), 2)
    rate = bd_rate_against(rows, "webp", ALL, metric)
    assert (rate.percent, rate.pictures) == (None, 0)
    assert "| jpeg | -62.5 % (2) |" in bd_table(rows, ALL, [metric], ["jpeg"])


def test_pictures_of_one_name_in_two_domains_stay_apart() -> None:
    rows = rows_of("jpeg") + rows_of("jpeg", 2, domain="e")
    assert domains_of(rows) == [ALL, "d", "e"]
    at = {m.bpp: m for m in means(rows, ALL, "psnr", [0.1, 0.4, 1.0])}
    assert (at[0.1].pictures, at[0.4].pictures, at[1.0].pictures) == (1, 2, 1)
    assert at[0.4].mean == pytest.approx((31 + 28) / 2)
    assert "| jpeg | 25 (1) | - |" in next(mean_tables(rows, "d", ["psnr"], [0.1, 2.0]))


def test_gains_are_of_the_same_pictures() -> None:
    rows = rows_of(OURS, 0.5) + rows_of("jpeg") + rows_of("jpeg", 1, "only theirs")
    (pair,) = paired(rows, "jpeg", "d", "lpips", [0.2])
    assert (pair.gain, pair.won, pair.compared, pair.missed) == (pytest.approx(0.1), 1, 1, 1)


def test_infinite_psnr_is_left_out_of_curves() -> None:
    rows = rows_of("jpeg")
    rows.append(Row(codec="jpeg", setting="s", domain="d", picture="p", bytes=1, bpp=2.0, psnr=math.inf, ms_ssim=1.0))
    (mean,) = means(rows, "d", "psnr", [1.0])
    assert (mean.mean, mean.pictures) == (None, 0)


def test_a_mean_curve_is_of_one_set_of_pictures() -> None:
    rows = [row for n in range(9) for row in rows_of("jpeg", 1, f"p{n}")]
    assert mean_curve(rows, "jpeg", "d", "psnr").pictures == 9
    rows += rows_of("jpeg", 50, "far off")
    found = mean_curve(rows, "jpeg", "d", "psnr")
    assert (found.pictures, found.total) == (9, 10)
    assert found.points[0] == pytest.approx([0.1, 25])
    assert found.points[-1] == pytest.approx([0.8, 34])
    assert mean_curve(rows, "webp", "d", "psnr").pictures == 0


def test_rows_survive_the_file(tmp_path: Path) -> None:
    rows = rows_of("jpeg", picture='a "quoted", odd\nname')
    write_rows(tmp_path / "rows.csv", rows, ["psnr", "ms_ssim", "lpips"])
    back = read_rows(tmp_path / "rows.csv")
    assert [r.to_dict(["psnr", "ms_ssim", "lpips"]) for r in back] == [
        r.to_dict(["psnr", "ms_ssim", "lpips"]) for r in rows
    ]
    assert all(math.isnan(r.dists) for r in back)
    assert read_rows(tmp_path / "absent.csv") == []


# --- the whole


def test_the_report_is_whole(made: tuple[EvaluationReport, Path, list[Any]], folder: Path) -> None:
    report, out, told = made
    assert [p.name for p in report.pictures] == ["deep/astronaut.png", "coffee.png", "top.png"]
    assert [p.cut for p in report.pictures] == [False, True, False]
    assert len(report.skipped) == 3
    assert report.domains == [ALL, "people", "things", "mine"]
    ours = [r for r in report.rows if r.codec == OURS]
    assert [r.setting for r in ours] == ["quality=20", "quality=80"] * 3
    assert {r.codec for r in report.rows} == {OURS, *FAST}
    assert report.left_out[0].startswith("LPIPS")
    assert told[-1].pixels_done == told[-1].pixels_total == sum(p.area for p in report.pictures)
    assert [p.pixels_done for p in told] == sorted(p.pixels_done for p in told)

    parsed = json.loads(report.to_json())
    assert parsed == json.loads((out / "report.json").read_text())
    assert len(parsed["rows"]) == len(report.rows)
    assert {r["against"] for r in parsed["bd_rates"]} == set(FAST)
    with (out / "rows.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(report.rows)
    text = (out / "report.md").read_text()
    for part in ("BD-rate of tilecodec, all", "the middle of 400 × 300", "## Skipped", "broken.png", "2 files"):
        assert (part in text) == (part != "2 files")
    assert str(folder.parent) not in text.split("## Skipped")[0]


def test_plots_are_small_and_their_text_is_text(made: tuple[EvaluationReport, Path, list[Any]]) -> None:
    pytest.importorskip("matplotlib")
    _, out, _ = made
    for domain in ("all", "people", "things", "mine"):
        svg = (out / f"rd-{domain}.svg").read_text()
        assert len(svg) < 64_000
        assert ">bits per pixel</text>" in svg
        assert ">JPEG</text>" in svg
        assert "<dc:date>" not in svg
        assert imagecodecs.imread(out / f"rd-{domain}.png").shape[2] == 4
        assert f"rd-{domain}.svg" in (out / "report.md").read_text()


def test_colours_stand_out_from_light_and_dark() -> None:
    def lightness(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert set(plots.COLOURS) == {OURS, *NAMES}
    for colour in (plots.INK, *plots.COLOURS.values()):
        assert 1.05 / (lightness(colour) + 0.05) > 3
        assert (lightness(colour) + 0.05) / (lightness("#0d1117") + 0.05) > 3


def test_without_matplotlib_the_plots_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png(tmp_path / "in" / "a.png", PHOTO)
    monkeypatch.setattr(run, "can_plot", lambda: False)
    options: dict[str, Any] = {"model": tiny.tiny_model(), "qualities": (50.0,), "codecs": ()}
    report = evaluate(tmp_path / "in", tmp_path / "out", **options)
    assert report.left_out[-1].startswith("plots: matplotlib is not installed")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"rows.csv", "report.json", "report.md"}
    assert "plots: matplotlib" in (tmp_path / "out" / "report.md").read_text()
    assert report.bd_rates() == []
    with pytest.raises(TargetExistsError, match="--overwrite"):
        evaluate(tmp_path / "in", tmp_path / "out", **options)
    again = evaluate(tmp_path / "in", tmp_path / "out", overwrite=True, **options)
    assert [r.to_dict(again.metrics) for r in again.rows] == [r.to_dict(again.metrics) for r in report.rows]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"qualities": (0.5,)}, "qualities"),
        ({"qualities": (101,)}, "qualities"),
        ({"qualities": (math.nan,)}, "qualities"),
        ({"qualities": ()}, "qualities"),
        ({"qualities": (50, 50)}, "qualities"),
        ({"rates": (0.0,)}, "rates"),
        ({"max_pixels": 100}, "max_pixels"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], where: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        evaluate(tmp_path, **options)
    assert caught.value.where == where


# --- the command


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs ``tilecodec eval`` in this process; returns its exit code and what it wrote to stdout and stderr."""

    def command(*argv: object) -> tuple[int, str, str]:
        code = cli.main(["eval", *(str(a) for a in argv)])
        return code, *capsys.readouterr()

    return command


def test_the_command(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    write_png(tmp_path / "in" / "a.png", PHOTO)
    (tmp_path / "in" / "b.txt").write_text("no picture")
    options = ["--model", tiny.tiny_model(), "--qualities", "20,80", "--codecs", "jpeg", "--device", "cpu"]
    code, out, err = command(tmp_path / "in", *options)
    assert (code, err) == (0, "")
    assert re.search(r"pictures +1 in in; 0 cut, 1 skipped", out)
    assert re.search(r"skipped source +not a picture", out)
    assert re.search(r"BD-rate in, jpeg +psnr ", out)
    code, out, err = command(tmp_path / "in", *options, "--json", "--quiet")
    assert (code, err) == (0, "")
    assert json.loads(out)["codecs"] == ["jpeg"]
    code, out, err = command(tmp_path / "in", *options[:4], "--codecs", "none", "--json")
    assert json.loads(out)["codecs"] == []


def test_the_command_s_errors(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    for argv, code, words in (
        ([tmp_path / "absent"], 3, "no such folder"),
        ([tmp_path], 1, "the folder is empty"),
        ([tmp_path, "--codecs", "jpg"], 2, "Did you mean jpeg?"),
        ([tmp_path, "--qualities", "1,200"], 2, "got: 200.0; expected: 1 to 100"),
        ([tmp_path, "--qualities", "1,,2"], 2, "--qualities cannot be read"),
        ([tmp_path, "--lpips", tmp_path / "absent"], 3, "no such weights"),
    ):
        got, out, err = command(*argv, "--model", tiny.tiny_model())
        assert (got, out) == (code, "")
        assert words in err
