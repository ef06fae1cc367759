"""Damaged tiles: an error that names the tile, or the rest of the picture and the tile's name."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import catalogue
import faulty
import numpy as np
import pytest
import tiny
import zarr

import tilecodec
from tilecodec import cli
from tilecodec.container.chunk import TileState
from tilecodec.container.store import ByteStore
from tilecodec.decoder import failures
from tilecodec.decoder.reference import decode_reference
from tilecodec.decoder.tiles import TileCaches, TileFetcher
from tilecodec.entropy.codec import POOL
from tilecodec.entropy.model import LatentWindow, shared_model
from tilecodec.errors import LostTileError, StorageError, TileError, UsageError
from tilecodec.tiles import TilePosition

FILL = (9, 200, 31)
ALL = [(row, col) for row in range(3) for col in range(3)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "p.zarr"
    faulty.make(path)
    return path


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "p.zarr"))


def lose(path: Path, *tiles: tuple[int, int]) -> None:
    """Breaks tiles of level 0, each in another way."""
    ways = [
        lambda _: (TileState.LOST, b""),
        faulty.wrong_symbols,
        lambda raw: (TileState.CODED, raw[:-4]),
        lambda _: (TileState.EMPTY, b"r"),
    ]
    for n, (row, col) in enumerate(tiles):
        key = path / "0" / "c" / "0" / str(row // 2) / str(col // 2)
        faulty.repack(key, {row % 2 * key.read_bytes()[6] + col % 2: ways[n % len(ways)]})


def core(row: int, col: int) -> tuple[slice, slice, slice]:
    return slice(None), slice(128 * row, 128 * row + 128), slice(128 * col, 128 * col + 128)


@pytest.mark.parametrize("cache_bytes", [0, 64 << 20])
@pytest.mark.parametrize(
    "lost",
    [[(1, 1)], [(0, 0)], [(2, 2)], [(0, 1), (1, 1)], [(0, 0), (1, 1), (2, 2)], [t for t in ALL if t != (1, 1)], ALL],
    ids=str,
)
def test_the_rest_is_that_of_the_slow_decoder(lost: list[tuple[int, int]], cache_bytes: int, copy: Path) -> None:
    before = tilecodec.open(copy)[...]
    lose(copy, *lost)
    whole = decode_reference(copy, fill=FILL).transpose(2, 0, 1)
    image = tilecodec.open(copy, on_error="fill", fill=FILL, cache_bytes=cache_bytes)
    np.testing.assert_array_equal(image[...], whole)
    assert [e.where.rsplit("level 0, ")[-1] for e in image.errors] == [f"tile row {r}, column {c}" for r, c in lost]
    assert all(isinstance(error, TileError) for error in image.errors)
    assert all(error.__traceback__ is None for error in image.errors)  # whose frames would hold the tiles' bytes
    assert image.failed_tiles == len(lost)
    for row, col in lost:
        part = whole[core(row, col)]
        assert (part == np.array(FILL)[:, None, None]).all()
    for row, col in set(ALL) - {(r + i, c + j) for r, c in lost for i in (-1, 0, 1) for j in (-1, 0, 1)}:
        inner = (slice(None), *(slice(s.start + 64, s.stop - 64) for s in core(row, col)[1:]))
        np.testing.assert_array_equal(whole[inner], before[inner])
    rng = np.random.default_rng(3)
    for _ in range(8):
        y0, y1 = sorted(rng.choice(301, 2, replace=False))
        x0, x1 = sorted(rng.choice(291, 2, replace=False))
        image = tilecodec.open(copy, on_error="fill", fill=FILL, cache_bytes=cache_bytes)
        np.testing.assert_array_equal(image[:, y0:y1, x0:x1], whole[:, y0:y1, x0:x1])


def test_tiles_of_one_colour_beside_lost_ones(tmp_path: Path) -> None:
    case, path = catalogue.case("part-empty"), tmp_path / "p.zarr"
    tilecodec.encode(case.pixels, path, model=tiny.tiny_model(), tile=128, chunk_tiles=2, levels=1)
    (path / faulty.CHUNK).unlink()
    whole = decode_reference(path, fill=FILL)
    np.testing.assert_array_equal(tilecodec.open(path, on_error="fill", fill=FILL)[...], whole.transpose(2, 0, 1))
    np.testing.assert_array_equal(whole[256:, :], case.pixels[256:, :])


@pytest.mark.parametrize("bitstream", [1, 2])
def test_neighbours_are_decoded_as_at_the_picture_s_edge(tmp_path: Path, bitstream: int) -> None:
    """One of two tiles, by hand: its latents with an outer column repeated in place of the lost one's. In bitstream 1
    the left tile's window reaches into the right one; in bitstream 2 it is the other way round."""
    path = tmp_path / "p.zarr"
    tilecodec.encode(
        catalogue.case("photo-whole-tiles").pixels[:128, :256], path, model=tiny.tiny_model(), tile=128, levels=1
    )
    if bitstream == 1:
        tiny.make_bitstream_1(path)
    own, lost = (0, 1) if bitstream == 1 else (1, 0)
    image = tilecodec.open(path)
    (layout,), model = image.metadata.levels, shared_model(tiny.tiny_model())
    store = ByteStore(zarr.storage.LocalStore(path), "0")
    caches = TileCaches(1 << 20, layout, model)
    tile = TileFetcher(store, layout, model, caches=caches).request(TilePosition(0, own))()
    margin = layout.codec.overlap // model.config.y_stride * bitstream
    wide = (t.float().numpy() for t in (tile.y_hat, tile.scale))
    import torch

    y_hat, scale = (
        torch.from_numpy(np.pad(t, ((0, 0), (0, 0), (margin * own, margin * lost)), mode="edge")).to(model.dtype)
        for t in wide
    )
    window = POOL.submit(model.reconstruct, LatentWindow(y_hat, scale), layout.codec.quality).result()
    faulty.repack(path / faulty.CHUNK, {lost: lambda _: (TileState.LOST, b"")})
    pixels = tilecodec.open(path, on_error="fill")[...].transpose(1, 2, 0)
    begin = margin * model.config.y_stride * own
    np.testing.assert_array_equal(pixels[:, 128 * own : 128 * own + 128], window[:, begin : begin + 128])
    assert not pixels[:, 128 * lost : 128 * lost + 128].any()


def test_only_tiles_that_a_read_depends_on_are_told(copy: Path) -> None:
    lose(copy, (2, 2))
    image = tilecodec.open(copy, on_error="fill")
    assert (image.errors, image.failed_tiles) == ([], 0)
    image[:, :60, :60]
    assert image.errors == []
    image[:, 240:250, 240:250]  # in the share of the lost tile's window
    assert [error.reason for error in image.errors] == ["tile-lost"]
    image.level(1)[...]
    image[...]
    assert image.failed_tiles == 1


def test_strict_is_the_default(copy: Path, tmp_path: Path) -> None:
    (copy / faulty.CHUNK).unlink()
    for image in (tilecodec.open(copy), tilecodec.open(copy, on_error="raise", fill=FILL)):
        with pytest.raises(LostTileError, match=r"level 0, chunk c/0/0/0, tile row 0, column 0"):
            image[...]
        assert image.errors == []
    with pytest.raises(LostTileError):
        zarr.open_group(copy, mode="r")["0"][...]
    with pytest.raises(LostTileError):
        tilecodec.decode(copy, tmp_path / "a.npy")
    assert not (tmp_path / "a.npy").exists()


def test_each_tile_of_a_lost_chunk_is_named(copy: Path) -> None:
    (copy / faulty.CHUNK).write_bytes(b"no chunk")
    image = tilecodec.open(copy, on_error="fill")
    image[...]
    assert [(error.reason, error.where) for error in image.errors] == [
        ("index-length", f"level 0, chunk c/0/0/0, tile row {row}, column {col}") for row in (0, 1) for col in (0, 1)
    ]


def test_a_store_that_fails_is_an_error_always(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tilecodec.open(copy, on_error="fill")

    def fail(*_: object) -> bytes:
        raise StorageError("gone")

    monkeypatch.setattr(ByteStore, "get_range", fail)
    with pytest.raises(StorageError):
        image[...]


@pytest.mark.parametrize(
    "options", [{"on_error": "ignore"}, {"fill": (0, 0)}, {"fill": (0, 0, 256)}, {"fill": (0, 0, True)}, {"fill": 0}]
)
def test_wrong_options(options: dict[str, object], sound: Path) -> None:
    with pytest.raises(UsageError):
        tilecodec.open(sound, **options)


def test_errors_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "KEPT", 3)
    failed = failures.FailedTiles(20)
    for number in (19, 3, 3, 8, 0):
        failed.add(number, TileError(where=number))
    assert [error.where for error in failed.errors] == [3, 8, 19]
    assert failed.count == 4
    assert [n for n in range(20) if n in failed] == [0, 3, 8, 19]


def test_decode_tells_which_tiles(copy: Path, tmp_path: Path) -> None:
    lose(copy, (1, 0), (1, 1))
    for name in ("a.npy", "a.tif", "a.zarr"):
        report = tilecodec.decode(copy, tmp_path / name, on_error="fill")
        assert report.failed_tiles == 2
        assert [(p.reason, p.where) for p in report.errors] == [
            ("tile-lost", "level 0, tile row 1, column 0"),
            ("symbol-check", "level 0, tile row 1, column 1"),
        ]
    expected = tilecodec.open(copy, on_error="fill")[...].transpose(1, 2, 0)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)


def test_the_command_writes_the_rest_and_fails(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        return cli.main(["decode", str(copy), *map(str, argv)]), *capsys.readouterr()

    assert run(tmp_path / "sound.npy", "--on-error", "fill")[::2] == (0, "")
    lose(copy, (1, 0), (1, 1))
    code, out, err = run(tmp_path / "a.npy")
    assert (code, out) == (1, "")
    assert "tile row 1, column" in err
    assert not (tmp_path / "a.npy").exists()
    code, out, err = run(tmp_path / "a.npy", "--on-error", "fill", "--json")
    assert code == 1
    report = json.loads(out)
    assert [problem["reason"] for problem in report["errors"]] == ["tile-lost", "symbol-check"]
    assert report["failed_tiles"] == 2
    lines = err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("tilecodec: error: ") for line in lines)
    assert "tile row 1, column 0" in lines[0]
    assert "2 tiles could not be decoded" in lines[2]
    pixels = np.load(tmp_path / "a.npy")
    assert not pixels[128:256, :256].any()
    assert pixels[:128].any()


def test_images_that_fill_travel_between_processes(copy: Path) -> None:
    import pickle

    lose(copy, (0, 0))
    sent = pickle.dumps(tilecodec.open(copy, on_error="fill", fill=FILL))
    again = pickle.loads(sent)  # noqa: S301  # our own bytes
    assert (again[:, :50, :50] == np.array(FILL)[:, None, None]).all()


class Web(BaseHTTPRequestHandler):
    """Serves the folder ``root`` with ranges."""

    root: Path
    broken = "nothing"
    """What a path ends in that the server fails to serve."""
    ranges = True

    def do_GET(self) -> None:
        file = self.root / self.path[1:]
        if self.path.endswith(self.broken):
            self._answer(500)
        elif not file.is_file():
            self._answer(404)
        else:
            data = file.read_bytes()
            if not self.ranges:
                self._answer(200, data)
                return
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1 if last else None]
            self._answer(206 if part else 416, part)

    def _answer(self, status: int, data: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing to standard error."""


@pytest.fixture
def web(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of ``copy``."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(Web, "root", copy.parent, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{copy.name}"
    server.shutdown()
    server.server_close()


def test_a_chunk_cut_short_is_found_over_http_too(web: str, copy: Path) -> None:
    chunk = copy / faulty.CHUNK
    chunk.write_bytes(chunk.read_bytes()[:70])
    image = tilecodec.open(web, on_error="fill", fill=FILL)
    np.testing.assert_array_equal(image[...], decode_reference(copy, fill=FILL).transpose(2, 0, 1))
    assert [error.reason for error in image.errors] == ["chunk-length"] * 4


def test_a_server_that_knows_no_ranges_is_read(web: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Web, "ranges", False)
    np.testing.assert_array_equal(tilecodec.open(web)[...], tilecodec.open(copy)[...])
    chunk = copy / faulty.CHUNK
    chunk.write_bytes(chunk.read_bytes()[:70])
    image = tilecodec.open(web, on_error="fill", fill=FILL)
    np.testing.assert_array_equal(image[...], decode_reference(copy, fill=FILL).transpose(2, 0, 1))
    assert [error.reason for error in image.errors] == ["chunk-length"] * 4


def test_a_server_that_fails_is_a_storage_error(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Web, "broken", faulty.CHUNK)
    with pytest.raises(StorageError, match="500") as caught:
        tilecodec.open(web, on_error="fill")[...]
    assert faulty.CHUNK in str(caught.value.where)
