"""Containers of older bitstreams are read, and every reader agrees on the windows of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import catalogue
import numpy as np
import pytest
import tiny
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import tilecodec
from tilecodec.container.metadata import CodecConfiguration
from tilecodec.decoder.reader import StoredTile
from tilecodec.decoder.reference import decode_reference, decode_whole
from tilecodec.decoder.tiles import TileFetcher
from tilecodec.metrics import psnr
from tilecodec.pools import Pool
from tilecodec.tiles import Margin, TilePosition, Window

FILL = (9, 200, 31)


def encoded(path: Path, bitstream: int, name: str = "photo") -> Path:
    tilecodec.encode(catalogue.case(name).pixels, path, model=tiny.tiny_model(), tile=128, chunk_tiles=2, levels=2)
    if bitstream == 1:
        tiny.make_bitstream_1(path)
    return path


@pytest.fixture(scope="module", params=[1, 2])
def container(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoded(tmp_path_factory.mktemp("bitstreams") / "a.zarr", request.param)


def test_what_is_written(tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.zarr", 2)
    configuration = json.loads((path / "0" / "zarr.json").read_text())["codecs"][0]["configuration"]
    assert (configuration["bitstream"], configuration["overlap"], configuration["blend"]) == (2, 32, 8)
    tilecodec.encode(
        catalogue.case("photo").pixels, path, model=tiny.tiny_model(), tile=128, overlap=0, overwrite=True, levels=1
    )
    configuration = json.loads((path / "0" / "zarr.json").read_text())["codecs"][0]["configuration"]
    assert (configuration["overlap"], configuration["blend"]) == (0, 0)


def test_windows_of_a_bitstream(container: Path) -> None:
    layout = tilecodec.open(container).level(0).layout
    window, share = (f(TilePosition(1, 1)) for f in (layout.window, layout.share))
    if layout.codec.bitstream == 1:
        assert window == share == Window(96, 288, 96, 288)
    else:
        assert (window, share) == (Window(64, 256, 64, 256), Window(92, 228, 92, 228))
    assert len(list(layout.grid.tiles_of(window))) == (9 if layout.codec.bitstream == 1 else 4)


def test_regions_are_the_reference_s(container: Path) -> None:
    for level in range(2):
        whole = decode_reference(container, level).transpose(2, 0, 1)
        np.testing.assert_array_equal(tilecodec.open(container).level(level)[...], whole)
        np.testing.assert_array_equal(zarr.open_group(container, mode="r")[str(level)][...], whole)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_region_is_the_reference_s(container: Path, data: st.DataObject) -> None:
    whole = decode_reference(container).transpose(2, 0, 1)
    y0, x0 = (data.draw(st.integers(0, n - 1)) for n in whole.shape[1:])
    y1, x1 = (data.draw(st.integers(begin + 1, n)) for begin, n in zip((y0, x0), whole.shape[1:], strict=True))
    np.testing.assert_array_equal(tilecodec.open(container)[:, y0:y1, x0:x1], whole[:, y0:y1, x0:x1])


@pytest.mark.parametrize("bitstream", [1, 2])
@pytest.mark.parametrize("gone", ["0/c/0/0/0", "0/c/0/1/1", "0/c/0/0/1"])
def test_lost_chunks_too(bitstream: int, gone: str, tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.zarr", bitstream)
    (path / gone).unlink()
    whole = decode_reference(path, fill=FILL).transpose(2, 0, 1)
    image = tilecodec.open(path, on_error="fill", fill=FILL)
    np.testing.assert_array_equal(image[:, 200:250, 210:256], whole[:, 200:250, 210:256])
    np.testing.assert_array_equal(image[...], whole)


def test_newer_windows_are_nearer_to_one_window(tmp_path: Path) -> None:
    """Near its edges a window is at its worst: bitstream 1 shows that faintly, bitstream 2 leaves it out."""
    path = tmp_path / "a.zarr"
    tilecodec.encode(catalogue.case("photo").pixels, path, tile=128, levels=1)
    whole, newer = decode_whole(path), decode_reference(path)
    tiny.make_bitstream_1(path)
    older = decode_reference(path)
    assert psnr(newer, whole) > psnr(older, whole) + 0.5
    assert psnr(newer, whole) > 40


@pytest.mark.parametrize(("bitstream", "share"), [(1, Margin(32, 32)), (2, Margin(36, -28))])
def test_json_both_ways(bitstream: int, share: Margin) -> None:
    fields = {"model": "sha256:" + "0" * 64, "quality": 50, "tile": 256, "stride": 128, "overlap": 32, "halo": 32}
    data = fields | {"bitstream": bitstream} | ({"blend": 8} if bitstream == 2 else {})
    codec = CodecConfiguration.from_dict(data, "test")
    assert codec.to_dict() == data
    assert codec.share == share


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("bitstream", [1, 2])
def test_a_long_read_decodes_every_tile_once(
    bitstream: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no more remembered than is reckoned to be needed."""
    path = tmp_path / "a.zarr"
    pixels = np.tile(catalogue.case("photo").pixels[:128, :128], (3, 40, 1))
    tilecodec.encode(pixels, path, model=tiny.tiny_model(), tile=128, chunk_tiles=4, levels=1)
    if bitstream == 1:
        tiny.make_bitstream_1(path)
    pool = Pool(workers, "workers")
    for place in ("decoder.together", "decoder.engine", "decoder.tiles", "decoder.jobs"):
        monkeypatch.setattr(f"tilecodec.{place}.POOL", pool)
    monkeypatch.setattr("tilecodec.decoder.engine.LEAST_CACHED", 0)
    decoded: list[TilePosition] = []
    coded = TileFetcher._coded

    def counted(self: TileFetcher, tiles: Sequence[StoredTile]) -> Any:
        decoded.extend(tile.at for tile in tiles)
        return coded(self, tiles)

    monkeypatch.setattr(TileFetcher, "_coded", counted)
    image = tilecodec.open(path, cache_bytes=0)
    image[...]
    assert len(set(decoded)) == 120
    assert len(decoded) <= (120 if bitstream == 2 else 121)
    decoded.clear()
    tilecodec.open(path, cache_bytes=0)[:, :, 700:2600]  # some columns alone
    assert len(decoded) <= len(set(decoded)) + (bitstream == 1)
