"""The sink stage: every format gives back the picture, whatever the bands; nothing half-written is left."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import stat
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import catalogue
import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from tilecodec.errors import MissingFileError, StorageError, TargetExistsError, UsageError
from tilecodec.sink import SUFFIXES, check_write, write_blocks, write_rows
from tilecodec.sink import tiff as tiff_sink
from tilecodec.sink.rows import Arriving
from tilecodec.source import Georeference, SourceMetadata, open_source
from tilecodec.tiles.rolling import Block

each_suffix = pytest.mark.parametrize("suffix", SUFFIXES)


def cut(pixels: np.ndarray, *heights: int) -> Iterator[np.ndarray]:
    """Bands of the given heights in turn, repeated to the end, each in the same reused array."""
    y = n = 0
    while y < len(pixels):
        height = heights[n % len(heights)]
        band = pixels[y : y + height].copy()
        yield band
        band[:] = 99  # a producer may use its array again
        y, n = y + height, n + 1


def read(path: Path) -> np.ndarray:
    """The picture (h, w, 3) read by the format's own library, not by ours."""
    if path.suffix in {".tif", ".tiff"}:
        return tifffile.imread(path)
    if path.suffix == ".png":
        return imagecodecs.png_decode(path.read_bytes())
    if path.suffix == ".npy":
        return np.load(path)
    return zarr.open_array(path, mode="r")[...].transpose(1, 2, 0)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


# --- bands


@given(
    heights=st.lists(st.integers(0, 9), max_size=12),
    cuts=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    band=st.integers(1, 12),
    reuse=st.booleans(),
    on_disk=st.booleans(),
)
def test_what_arrives_in_blocks_is_read_in_bands(
    heights: list[int], cuts: list[int], band: int, reuse: bool, on_disk: bool
) -> None:
    height, width = sum(heights), sum(cuts)
    pixels = noise(height, width) if height else np.empty((0, width, 3), np.uint8)

    def blocks() -> Iterator[Block]:
        y = 0
        for h in filter(None, heights):
            x = 0
            for w in cuts:
                piece = pixels[y : y + h, x : x + w].copy()
                yield Block(y, x, piece)
                if reuse:
                    piece[:] = 0
                x += w
            y += h

    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr("tilecodec.tiles.rolling.IN_MEMORY", -1 if on_disk else 1 << 20)
        arriving = Arriving(blocks(), height=height, width=width, tallest=9, band=band)
        stack.callback(arriving.close)
        got = []
        for y, end in arriving.bands(band):
            split = width // 2
            parts = [arriving.read(y, end, 0, split), arriving.read(y, end, split, width)]
            got.append(np.concatenate(parts, axis=1))
    assert [len(b) for b in got] == [band] * (height // band) + [height % band] * (height % band > 0)
    np.testing.assert_array_equal(np.concatenate([*got, pixels[:0]]), pixels)


def test_blocks_that_are_not_the_picture(tmp_path: Path) -> None:
    block = Block(0, 0, noise(4, 5))
    with pytest.raises(UsageError, match="fewer rows"):
        write_blocks(tmp_path / "a.tif", iter([block]), height=8, width=5, tallest=4)
    with pytest.raises(UsageError, match="more rows"):
        write_blocks(tmp_path / "a.tif", iter([block, block]), height=4, width=5, tallest=4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("bands", "words"),
    [
        ([np.zeros((4, 5, 3), np.uint8)], "fewer rows"),
        ([np.zeros((4, 5, 3), np.uint8)] * 2 + [np.zeros((1, 5, 3), np.uint8)], "more rows"),
        ([np.zeros((8, 6, 3), np.uint8)], "wrong shape"),
        ([np.zeros((8, 5, 4), np.uint8)], "wrong shape"),
        ([np.zeros((8, 5), np.uint8)], "wrong shape"),
        ([np.zeros((8, 5, 3), np.uint16)], "uint16"),
        ([], "fewer rows"),
    ],
)
@each_suffix
def test_bands_that_are_not_the_picture(tmp_path: Path, suffix: str, bands: list[np.ndarray], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        write_rows(tmp_path / f"a{suffix}", bands, height=8, width=5)
    assert not list(tmp_path.iterdir())


# --- formats


@each_suffix
def test_catalogue_comes_back(case: catalogue.Case, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    write_rows(path, cut(case.pixels, 1, 50, 7), height=case.height, width=case.width)
    np.testing.assert_array_equal(read(path), case.pixels)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@each_suffix
def test_picture_of_several_bands_comes_back(suffix: str, tmp_path: Path) -> None:
    pixels = noise(2100, 1030)
    path = tmp_path / f"a{suffix.upper()}"
    write_rows(path, cut(pixels, 700, 1100), height=2100, width=1030)
    np.testing.assert_array_equal(read(path.rename(tmp_path / f"a{suffix}")), pixels)


def test_tiff_is_tiled_and_compressed(tmp_path: Path) -> None:
    pixels = np.full((600, 1200, 3), 7, np.uint8)
    write_rows(tmp_path / "a.tif", [pixels], height=600, width=1200)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        page = tiff.pages[0]
        assert not tiff.is_bigtiff
        assert (page.tilelength, page.tilewidth) == (256, 256)
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert page.predictor == tifffile.PREDICTOR.HORIZONTAL
        assert page.photometric == tifffile.PHOTOMETRIC.RGB
    assert (tmp_path / "a.tif").stat().st_size < pixels.size / 100


@pytest.mark.parametrize(("limit", "big"), [(48 * 64 * 3, False), (48 * 64 * 3 - 1, True)])
def test_tiff_above_the_limit_is_big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, big: bool) -> None:
    assert 2**31 < tiff_sink.BIG_BYTES < 2**32
    monkeypatch.setattr(tiff_sink, "BIG_BYTES", limit)
    pixels = noise(48, 64)
    write_rows(tmp_path / "a.tif", [pixels], height=48, width=64)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.is_bigtiff == big
        np.testing.assert_array_equal(tiff.asarray(), pixels)


def test_zarr_is_plain_version_3(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.zarr", [noise(1500, 1100)], height=1500, width=1100)
    array = zarr.open_array(tmp_path / "a.zarr", mode="r")
    document = array.metadata.to_dict()
    assert array.metadata.zarr_format == 3
    assert array.metadata.dimension_names == ("c", "y", "x")
    assert array.shape == (3, 1500, 1100)
    assert array.chunks == (3, 1024, 1024)
    assert [codec["name"] for codec in document["codecs"]] == ["bytes", "zstd"]


def test_npy_is_rows_columns_bands(tmp_path: Path) -> None:
    pixels = noise(5, 7)
    write_rows(tmp_path / "a.npy", cut(pixels, 2), height=5, width=7)
    expected = io.BytesIO()
    np.save(expected, pixels)
    assert (tmp_path / "a.npy").read_bytes() == expected.getvalue()


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".zarr"])
def test_memory_does_not_grow_with_the_picture(suffix: str, tmp_path: Path) -> None:
    width, peaks = 2048, []
    for height in (2048, 16384):
        tracemalloc.start()
        write_rows(
            tmp_path / f"{height}{suffix}", (np.zeros((256, width, 3), np.uint8) for _ in range(height // 256)),
            height=height, width=width,
        )  # fmt: skip
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + (4 << 20)
    assert peaks[1] < 16384 * width * 3 / 2


# --- what is known beyond the pixels

ICC = zlib.compress(bytes(range(256)) * 3)
"""Some bytes; the formats carry a profile without reading it."""
KNOWN = SourceMetadata(
    pixel_size_um=(0.5, 0.25),
    icc_profile=ICC,
    georeference=Georeference(epsg=32633, transform=(0.5, 0.0, 500_000.0, 0.0, -0.25, 5_000_000.0)),
)


def test_tiff_keeps_metadata(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.tif", [noise(30, 40)], height=30, width=40, metadata=KNOWN)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        tags = tiff.pages[0].tags
        assert tags["InterColorProfile"].value == ICC
        assert tags["ResolutionUnit"].value == tifffile.RESUNIT.CENTIMETER
        x, y = (tags[name].value[0] / tags[name].value[1] for name in ("XResolution", "YResolution"))
        assert (x, y) == (40_000, 20_000)
    with open_source(tmp_path / "a.tif") as source:
        assert source.metadata.pixel_size_um == pytest.approx((0.5, 0.25))
        assert source.metadata.georeference == KNOWN.georeference


@pytest.mark.parametrize(
    ("georeference", "keys"),
    [
        (
            Georeference(epsg=4326, transform=(0.001, 0.0, 12.5, 0.0, -0.001, 47.5)),
            {"GTModelTypeGeoKey": 2, "GeographicTypeGeoKey": 4326},
        ),
        (
            Georeference(epsg=3857, transform=(0.01, 0.0, 12.5, 0.0, -0.01, 47.5)),
            {"GTModelTypeGeoKey": 1, "ProjectedCSTypeGeoKey": 3857},
        ),
        (
            Georeference(epsg=9999, crs_wkt='GEOGCRS["a"]', transform=(2.0, 0.0, 1e6, 0.0, -2.0, 1e6)),
            {"GTModelTypeGeoKey": 2, "GeographicTypeGeoKey": 9999},
        ),
        (
            Georeference(epsg=5514, transform=(2.0, 0.5, -740_000.0, 0.25, -2.0, -1_040_000.0)),
            {"GTModelTypeGeoKey": 1, "ProjectedCSTypeGeoKey": 5514},
        ),
        (Georeference(epsg=None, transform=(2.0, 0.0, 7.0, 0.0, -2.0, 8.0)), {"GTModelTypeGeoKey": 32767}),
    ],
    ids=["degrees", "metres near the origin", "by WKT", "turned", "no code"],
)
def test_tiff_lies_where_it_lay(tmp_path: Path, georeference: Georeference, keys: dict[str, int]) -> None:
    metadata = SourceMetadata(georeference=georeference)
    write_rows(tmp_path / "a.tif", [noise(30, 40)], height=30, width=40, metadata=metadata)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        found = tiff.pages[0].geotiff_tags
    assert {key: int(found[key]) for key in keys} == keys
    assert ("ProjectedCSTypeGeoKey" in found) + ("GeographicTypeGeoKey" in found) == len(keys) - 1
    with open_source(tmp_path / "a.tif") as source:
        again = source.metadata.georeference
    assert again is not None
    assert (again.epsg, again.transform) == (georeference.epsg, pytest.approx(georeference.transform))


@pytest.mark.parametrize("size", [1e-320, 1e-12, 1e300])
@each_suffix
def test_pixel_sizes_beyond_a_format_are_left_out(tmp_path: Path, suffix: str, size: float) -> None:
    metadata = SourceMetadata(pixel_size_um=(1.0, size))
    write_rows(tmp_path / f"a{suffix}", [noise(30, 40)], height=30, width=40, metadata=metadata)
    np.testing.assert_array_equal(read(tmp_path / f"a{suffix}"), noise(30, 40))


def test_tiff_without_metadata_claims_nothing(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.tif", [noise(30, 40)], height=30, width=40, metadata=SourceMetadata())
    with open_source(tmp_path / "a.tif") as source:
        assert source.metadata.pixel_size_um is None
        assert source.metadata.georeference is None
        assert source.metadata.icc_profile is None


def test_png_keeps_profile_and_pixel_size(tmp_path: Path) -> None:
    pixels = noise(30, 40)
    write_rows(tmp_path / "a.png", [pixels], height=30, width=40, metadata=KNOWN)
    data = (tmp_path / "a.png").read_bytes()
    chunks, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size]) == (zlib.crc32(kind + body),)
        chunks[kind] = body
        at += 12 + size
    assert list(chunks)[:3] == [b"IHDR", b"iCCP", b"pHYs"]
    assert zlib.decompress(chunks[b"iCCP"].split(b"\0\0", 1)[1]) == ICC
    assert struct.unpack(">IIB", chunks[b"pHYs"]) == (4_000_000, 2_000_000, 1)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), pixels)


# --- targets


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.tif.gz", ".zarr"])
def test_unknown_suffix_names_the_known(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.tif, \.png, \.npy or \.zarr") as caught:
        write_rows(tmp_path / name, [noise(1, 1)], height=1, width=1)
    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_png_above_the_limit_names_tiff(tmp_path: Path) -> None:
    check_write(tmp_path / "a.png", height=1 << 14, width=1 << 14)
    with pytest.raises(UsageError, match=r"too large.*\.tif"):
        write_rows(tmp_path / "a.png", [], height=1 << 14, width=(1 << 14) + 1)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere") as caught:
        write_rows(tmp_path / "nowhere" / "a.tif", [noise(1, 1)], height=1, width=1)
    assert isinstance(caught.value, StorageError)
    assert caught.value.exit_code == 3


def test_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="not a folder"):
        write_rows(tmp_path / "file" / "a.tif", [noise(1, 1)], height=1, width=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@each_suffix
def test_folder_without_permission(tmp_path: Path, suffix: str) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(StorageError):
        write_rows(tmp_path / f"a{suffix}", [noise(1, 1)], height=1, width=1)


@each_suffix
def test_existing_target_is_kept_unless_asked(tmp_path: Path, suffix: str) -> None:
    path, first, second = tmp_path / f"a{suffix}", noise(20, 31), noise(40, 11)
    write_rows(path, [first], height=20, width=31)
    with pytest.raises(TargetExistsError, match="--overwrite"):
        write_rows(path, [second], height=40, width=11)
    np.testing.assert_array_equal(read(path), first)
    write_rows(path, [second], height=40, width=11, overwrite=True)
    np.testing.assert_array_equal(read(path), second)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@each_suffix
def test_target_of_another_kind_is_never_replaced(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".zarr":
        path.write_text("mine")
    else:
        path.mkdir()
    with pytest.raises(UsageError, match="another kind"):
        write_rows(path, [noise(1, 1)], height=1, width=1, overwrite=True)
    assert path.exists()


def test_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "a.zarr"
    folder.mkdir()
    write_rows(folder, [noise(1, 1)], height=1, width=1, overwrite=True)
    (folder / "zarr.json").unlink()
    (folder / "notes").write_text("mine")
    with pytest.raises(UsageError, match="something else"):
        write_rows(folder, [noise(1, 1)], height=1, width=1, overwrite=True)
    assert (folder / "notes").read_text() == "mine"


class Interrupted(BaseException):
    """Stands for Ctrl-C and whatever else ends a program."""


@each_suffix
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("raised", [KeyboardInterrupt, Interrupted, ValueError, StorageError])
def test_nothing_is_left_of_an_interrupted_write(
    tmp_path: Path, suffix: str, overwrite: bool, raised: type[BaseException]
) -> None:
    path, old = tmp_path / f"a{suffix}", noise(9, 9)
    if overwrite:
        write_rows(path, [old], height=9, width=9)
    closed = []

    def rows() -> Iterator[np.ndarray]:
        try:
            yield noise(1100, 600)
            assert any(".part-" in p.name for p in tmp_path.iterdir()) == (suffix != ".png")
            raise raised
        finally:
            closed.append(True)

    with pytest.raises(raised):
        write_rows(path, rows(), height=3000, width=600, overwrite=overwrite)
    assert closed
    assert [p.name for p in tmp_path.iterdir()] == [path.name] * overwrite
    if overwrite:
        np.testing.assert_array_equal(read(path), old)


def test_generator_is_closed_when_the_target_is_refused(tmp_path: Path) -> None:
    closed = []

    def rows() -> Iterator[np.ndarray]:
        try:
            yield noise(1, 1)
            yield noise(1, 1)
        finally:
            closed.append(True)

    started = rows()
    next(started)
    with pytest.raises(UsageError):
        write_rows(tmp_path / "a.jpg", started, height=1, width=1)
    assert closed


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_disk_full_is_a_storage_error(tmp_path: Path, suffix: str) -> None:
    """A limit on the size of files stands for the full disk: the write fails with OSError half-way."""
    pixels = noise(1024, 1024)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(StorageError, match="too large") as caught:
            write_rows(tmp_path / f"a{suffix}", cut(pixels, 300), height=1024, width=1024)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(caught.value.__cause__, OSError)
    assert str(tmp_path / f"a{suffix}") in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_sink_imports_no_torch() -> None:
    code = "import sys, tilecodec.sink, tilecodec.sink.tiff, tilecodec.sink.zarr_array; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
