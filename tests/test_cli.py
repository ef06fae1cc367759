"""The command line: results on stdout, the rest on stderr, exit codes, no traceback, a fast start."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import tifffile
import tiny

import tilecodec
from tilecodec import api, cli, demo
from tilecodec.errors import TargetExistsError, TileCodecError, UsageError
from tilecodec.metrics import psnr
from tilecodec.progress import figures, progress_bar

HEIGHT, WIDTH = 300, 400
RUN = [sys.executable, "-m", "tilecodec"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "photo.tif"
    tifffile.imwrite(path, skimage.data.coffee()[:HEIGHT, :WIDTH], resolution=(4e4, 4e4), resolutionunit="CENTIMETER")
    return path


@pytest.fixture(scope="module")
def container(picture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("container") / "photo.zarr"
    tilecodec.encode(picture, path, model=tiny.tiny_model(), tile=128, levels=2)
    return path


# --- the commands


def test_control_characters_of_a_container_do_not_reach_the_terminal(
    container: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    path = shutil.copytree(container, tmp_path / "p.zarr")
    document = json.loads((path / "zarr.json").read_text())
    own = document["attributes"]["tilecodec"]
    own["properties"] = {"a\x1b[8m": "first\r\nsecond\tthird\x9b31m"}
    (path / "zarr.json").write_text(json.dumps(document))
    code, out, _ = run("info", path)
    assert code == 0
    assert re.search(r"^a\\x1b\[8m +first\nsecond\tthird\\x9b31m$", out, flags=re.MULTILINE)
    assert json.loads(run("info", path, "--json")[1])["properties"] == own["properties"]
    own["version"] = "\x1b]0;2\x07"
    (path / "zarr.json").write_text(json.dumps(document))
    for command in ("info", "validate"):
        code, out, err = run(command, path)
        assert code == 1
        assert r"\x1b]0;2\x07" in out + err
        assert "\x1b" not in out + err


def test_encode_decode_and_info(picture: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    made, back = tmp_path / "a.zarr", tmp_path / "a.tif"
    options = ["--model", tiny.tiny_model(), "--quality", "30.5", "--tile", 128, "--levels", 2, "--device", "cpu"]
    code, out, err = run("encode", picture, made, *options)
    assert (code, err) == (0, "")
    assert "400 × 300 px, 2 levels" in out
    assert "quality 30.5" in out

    code, out, err = run("info", made)
    assert (code, err) == (0, "")
    assert "complete" in out
    assert "quality 30.5" in out
    assert "0.25 × 0.25 µm" in out
    assert "level 1" in out

    code, out, err = run("decode", made, back)
    assert (code, err) == (0, "")
    assert str(back) in out
    np.testing.assert_array_equal(tifffile.imread(back).transpose(2, 0, 1), tilecodec.open(made)[...])


def test_json_is_the_report_of_the_public_call(
    picture: Path, container: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    made = tmp_path / "a.zarr"
    code, out, err = run("encode", picture, made, "--model", tiny.tiny_model(), "--tile", 128, "--json", "--quiet")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert set(report) == set(api.EncodeReport.__dataclass_fields__)
    assert (report["width"], report["height"], report["quality"]) == (WIDTH, HEIGHT, 50)
    assert report["bytes"] == sum(p.stat().st_size for p in made.rglob("*") if p.is_file())

    code, out, _ = run("info", container, "--json")
    assert code == 0
    assert json.loads(out) == json.loads(json.dumps(tilecodec.info(container).to_dict()))

    code, out, _ = run("decode", container, tmp_path / "a.npy", "--json")
    assert code == 0
    assert set(json.loads(out)) == set(api.DecodeReport.__dataclass_fields__)


def test_region_and_level(container: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    image = tilecodec.open(container)
    code, _, _ = run("decode", container, tmp_path / "a.npy", "--region", "17,40,130,9")
    assert code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy").transpose(2, 0, 1), image[:, 40:49, 17:147])
    code, _, _ = run("decode", container, tmp_path / "b.npy", "--region", "0,149,200,1", "--level", 1)
    assert code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy").transpose(2, 0, 1), image.level(1)[:, 149:])


def test_quiet_prints_nothing(container: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("decode", container, tmp_path / "a.npy", "--quiet") == (0, "", "")
    assert (tmp_path / "a.npy").exists()


def test_overwrite(picture: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    made, back = tmp_path / "a.zarr", tmp_path / "a.png"
    encode = ("encode", picture, made, "--model", tiny.tiny_model(), "--tile", 128)
    assert run(*encode)[0] == 0
    before = (made / "zarr.json").read_bytes()
    assert run(*encode, "--quality", 70)[0] == 3
    assert (made / "zarr.json").read_bytes() == before
    assert run(*encode, "--quality", 70, "--overwrite")[0] == 0
    assert tilecodec.info(made).quality == 70
    assert run("decode", made, back)[0] == 0
    assert run("decode", made, back)[0] == 3
    assert run("decode", made, back, "--overwrite")[0] == 0


def test_version(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("--version") == (0, f"tilecodec {tilecodec.__version__}\n", "")


# --- errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--quality", "0.9"], "1 to 100"),
        (["--quality", "101"], "got: 101"),
        (["--quality", "nan"], "1 to 100"),
        (["--quality", "best"], "got: best"),
        (["--tile", "100"], "a multiple of 128"),
        (["--tile", "1e3"], "a whole number"),
        (["--levels", "0"], "auto or 1 to 24"),
        (["--levels", "some"], "a whole number"),
        (["--device", "tpu"], "auto, cpu, cuda or cuda:N"),
        (["--resume", "--overwrite"], "not allowed with"),
        (["--qual", "3"], "unrecognized"),
    ],
)
def test_wrong_options_of_encode(
    picture: Path, tmp_path: Path, options: list[str], words: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = run("encode", picture, tmp_path / "a.zarr", *options)
    assert (code, out) == (2, "")
    assert words in err
    assert "error: " in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--region", "1,2,3"], 2, "four whole numbers"),
        (["--region", "1,2,3,4,5"], 2, "four whole numbers"),
        (["--region", "a,2,3,4"], 2, "got: a,2,3,4"),
        (["--region", "1.5,2,3,4"], 2, "four whole numbers"),
        (["--region", "1,,3,4"], 2, "four whole numbers"),
        (["--region=-1,0,3,4"], 2, "four whole numbers"),
        (["--region", "0,0,0,4"], 2, "region is empty"),
        (["--region", "0,0,401,300"], 1, "within 400 x 300"),
        (["--region", "400,0,1,1"], 1, "within 400 x 300"),
        (["--region", "0,0,201,150", "--level", "1"], 1, "within 200 x 150"),
        (["--level", "2"], 1, "0 to 1"),
        (["--level", "-1"], 2, "--level"),
        (["--level", "x"], 2, "a whole number"),
    ],
)
def test_wrong_options_of_decode(
    container: Path, tmp_path: Path, options: list[str], code: int, words: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    got, out, err = run("decode", container, tmp_path / "a.tif", *options)
    assert (got, out) == (code, "")
    assert words in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["7,0,3,4", " 7, 0 ,3,4"])
def test_region_is_parsed(text: str) -> None:
    assert cli.parse_region(text) == (7, 0, 3, 4)
    with pytest.raises(UsageError):
        cli.parse_region(text + "٣")  # digits of another script are letters here


def test_files_that_are_wrong(
    picture: Path, container: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "text.tif").write_text("no picture")
    (tmp_path / "empty.zarr").mkdir()
    missing = tmp_path / "missing"
    for argv, code in (
        (["encode", missing, tmp_path / "a.zarr"], 3),
        (["encode", tmp_path / "text.tif", tmp_path / "a.zarr"], 1),
        (["encode", picture, tmp_path / "a.zarr", "--model", "nobody"], 1),
        (["encode", picture, picture, "--overwrite"], 2),
        (["encode", picture, container.parent, "--overwrite"], 3),
        (["decode", container, f"{container}/../{container.name}", "--overwrite"], 2),
        (["decode", container, container / "a.tif"], 2),
        (["decode", missing, tmp_path / "a.tif"], 3),
        (["decode", tmp_path / "empty.zarr", tmp_path / "a.tif"], 1),
        (["decode", container, tmp_path / "a.jpg"], 2),
        (["decode", container, missing / "a.tif"], 3),
        (["decode", container, picture / "a.tif"], 3),
        (["info", missing], 3),
        (["info", picture], 1),
    ):
        got, out, err = run(*argv)
        assert (got, out) == (code, ""), (argv, err)
        assert err.startswith("tilecodec: error: "), err
        assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.zarr", "text.tif"]
    assert tilecodec.info(container).complete


def test_unfinished_container(container: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    unfinished = shutil.copytree(container, tmp_path / "a.zarr")
    text = (unfinished / "zarr.json").read_text()
    (unfinished / "zarr.json").write_text(re.sub(r'"complete":\s*true', '"complete": false', text))
    code, out, err = run("decode", unfinished, tmp_path / "a.tif")
    assert (code, out) == (1, "")
    assert "never finished" in err
    assert not (tmp_path / "a.tif").exists()
    code, out, _ = run("info", unfinished)
    assert code == 0
    assert "unfinished" in out


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "/some/where"), 3, "Permission denied: /some/where"),
        (OSError("odd"), 3, "odd"),
        (MemoryError(), 1, "out of memory"),
        (TargetExistsError("there", got="x"), 3, "there; got: x"),
    ],
)
def test_whatever_ends_a_command(
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    code: int,
    words: str,
    run: Callable[..., tuple[int, str, str]],
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(api, "info", fail)
    assert run("info", "x.zarr") == (code, "", f"tilecodec: error: {words}\n")


def test_a_defect_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(api, "info", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["info", "x.zarr"])


def test_sigterm_tidies_up(
    monkeypatch: pytest.MonkeyPatch, container: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """The signal comes when the first band has been decoded, in the middle of writing."""
    before = signal.getsignal(signal.SIGTERM)
    decode = api.decode

    def killed(*args: object, **options: object) -> object:
        options["progress"] = lambda _: os.kill(os.getpid(), signal.SIGTERM)
        return decode(*args, **options)

    monkeypatch.setattr(api, "decode", killed)
    assert run("decode", container, tmp_path / "a.tif") == (143, "", "")
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_arguments_that_cannot_be_parsed(run: Callable[..., tuple[int, str, str]]) -> None:
    for argv in ([], ["encode"], ["encode", "a"], ["frobnicate"], ["info", "a", "b"]):
        code, out, err = run(*argv)
        assert (code, out) == (2, "")
        assert "usage:" in err


# --- terminals


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_table_on_a_terminal_has_the_same_words(
    container: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    _, plain, _ = run("info", container)
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERM", "dumb")  # no colours
    assert cli.main(["info", str(container)]) == 0
    monkeypatch.undo()
    words = [line.split() for line in plain.splitlines()]
    assert words == [line.split() for line in screen.getvalue().splitlines()]


def test_figures_of_progress() -> None:
    megapixels = 3 << 20
    assert figures(api.Progress(megapixels, 2 * megapixels, megapixels // 32, 2.0)) == "1.5 MP/s  0.250 bpp"
    assert figures(api.Progress(megapixels, megapixels, 0, 1.5)) == "2.0 MP/s"
    assert figures(api.Progress(0, megapixels, 0, 0.0)) == "0.0 MP/s"


def test_bar_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with progress_bar("encoding") as show:
        assert show is None
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("encoding", quiet=True) as show:
        assert show is None
    with progress_bar("encoding") as show:
        assert show is not None
        show(api.Progress(1 << 20, 4 << 20, 1 << 15, 0.5))
        time.sleep(0.25)  # the bar is drawn ten times a second
    assert "encoding" in screen.getvalue()
    assert "25%" in screen.getvalue()
    assert "2.0 MP/s  0.250 bpp" in screen.getvalue()


# --- as its own process


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["encode", "--help"]])
def test_start_is_fast_and_imports_nothing_heavy(argv: list[str]) -> None:
    code = (
        "import sys, time\n"
        "from tilecodec.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as left: assert left.code == 0\n"
        "heavy = {'torch', 'numpy', 'zarr', 'dask', 'rich', 'tifffile'} & set(sys.modules)\n"
        "print(sorted(heavy), time.process_time(), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    heavy, seconds = done.stderr.rsplit(maxsplit=1)
    assert heavy == "[]"
    assert float(seconds) < 0.3
    assert "tilecodec" in done.stdout


def test_reader_of_stdout_that_leaves(container: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*RUN, "info", str(container)], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals")
def test_progress_on_a_terminal_and_json_in_a_pipe(picture: Path, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    shown = []

    def watch() -> None:
        with contextlib.suppress(OSError):  # the terminal is gone when its last user is
            while data := os.read(ours, 1 << 16):
                shown.append(data)

    command = [*RUN, "encode", picture, tmp_path / "ä.zarr", "--model", tiny.tiny_model(), "--tile", "128", "--json"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "PYTHONIOENCODING": "ascii"}
    watcher = threading.Thread(target=watch)
    watcher.start()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, check=False)
    os.close(theirs)
    watcher.join()
    os.close(ours)
    screen = b"".join(shown).decode(errors="replace")
    assert done.returncode == 0
    assert json.loads(done.stdout)["target"] == str(tmp_path / "ä.zarr")
    assert all(word in screen for word in ("encoding", "MP/s", "bpp"))


# --- demo


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]) -> None:
    monkeypatch.setattr(demo, "run_demo", partial(demo.run_demo, model=tiny.tiny_model()))
    out = tmp_path / "some" / "where"
    code, text, err = run("demo", "--size", 300, "--out", out, "--json")
    assert (code, err) == (0, "")
    report = json.loads(text)
    assert sorted(p.name for p in out.iterdir()) == sorted(report["files"])
    assert json.loads((out / "tilecodec-demo.json").read_text()) == report

    original, decoded = tifffile.imread(out / "scene.tif"), tifffile.imread(out / "scene-decoded.tif")
    assert original.shape == decoded.shape == (300, 300, 3)
    np.testing.assert_array_equal(decoded.transpose(2, 0, 1), tilecodec.open(out / "scene.zarr")[...])
    assert report["psnr"] == pytest.approx(psnr(original, decoded))
    assert report["bytes"] == sum(p.stat().st_size for p in (out / "scene.zarr").rglob("*") if p.is_file())
    assert report["bpp"] == pytest.approx(8 * report["bytes"] / 300**2)
    assert report["ratio"] == pytest.approx(3 * 300**2 / report["bytes"])
    with api.open_source(out / "side-by-side.png") as both:
        assert (both.height, both.width) == (300, 604)
        np.testing.assert_array_equal(both.read(0, 300, 0, 300), original)
        np.testing.assert_array_equal(both.read(0, 300, 304, 604), decoded)

    code, text, _ = run("demo", "--size", 256, "--out", out)  # its own files may be replaced
    assert code == 0
    assert "256 × 256 px" in text
    assert "bit for bit" in text


def test_demo_keeps_the_files_of_others(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "scene.tif").write_text("mine")
    code, out, err = run("demo", "--size", 256, "--out", tmp_path)
    assert (code, out) == (3, "")
    assert "scene.tif" in err
    assert [p.name for p in tmp_path.iterdir()] == ["scene.tif"]
    assert run("demo", "--out", tmp_path / "scene.tif")[0] == 3
    assert run("demo", "--size", 255, "--out", tmp_path / "a")[0] == 2
    assert not (tmp_path / "a").exists()


def test_demo_notices_a_region_that_differs(container: Path, tmp_path: Path) -> None:
    pixels = tilecodec.open(container)[...].transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / "same.tif", pixels)
    demo._check_regions(container, tmp_path / "same.tif")
    tifffile.imwrite(tmp_path / "other.tif", pixels ^ (np.indices(pixels.shape[:2]).sum(0) == 350)[..., None])
    with pytest.raises(TileCodecError, match="differs from the full decode"):
        demo._check_regions(container, tmp_path / "other.tif")
