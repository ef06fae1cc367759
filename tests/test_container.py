"""Containers: metadata, chunks, presence, what is refused, resuming and replacing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import zarr
from faulty import PICTURE, edit
from faulty import make as encode

import tilecodec
from tilecodec.container.chunk import ChunkPlace, TileState, index_bytes, pack_chunk, parse_index
from tilecodec.errors import (
    CorruptTileError,
    IncompleteContainerError,
    LostTileError,
    ModelHashError,
    NotAContainerError,
    RegionError,
    SourceError,
    StorageError,
    TargetExistsError,
    TileCodecError,
    UnknownModelError,
    UsageError,
)
from tilecodec.zarr_codec import decode_alone


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "p.zarr"
    encode(path)
    return path


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "p.zarr"))


# --- chunks ---------------------------------------------------------------------------------------------------------

PLACE = ChunkPlace(0, 0, 0)
TILES = [(TileState.CODED, b"abcde"), (TileState.EMPTY, b"rgb"), (TileState.NODATA, b""), (TileState.CODED, b"x" * 300)]


def test_chunk_index_round_trip() -> None:
    chunk = pack_chunk(2, 2, TILES, PLACE)
    index = parse_index(chunk, 2, 2, "here")
    for n, (state, payload) in enumerate(TILES):
        entry = index.entry(n // 2, n % 2)
        assert (entry.state, chunk[entry.offset : entry.offset + entry.length]) == (state, payload)
    assert len(chunk) == index_bytes(2, 2) + 308


def test_every_flipped_bit_of_an_index_is_caught() -> None:
    chunk = pack_chunk(2, 2, TILES, PLACE)
    for bit in range(8 * index_bytes(2, 2)):
        broken = bytearray(chunk)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptTileError, match="here"):
            parse_index(bytes(broken), 2, 2, "here")


# --- metadata -------------------------------------------------------------------------------------------------------


def test_metadata_are_ome_zarr_with_levels_in_order(finished: Path) -> None:
    group = zarr.open_group(finished, mode="r")
    (multiscale,) = group.attrs["ome"]["multiscales"]
    assert group.attrs["ome"]["version"] == "0.5"
    assert [a["name"] for a in multiscale["axes"]] == ["c", "y", "x"]
    assert [d["path"] for d in multiscale["datasets"]] == ["0", "1"]
    scales = [d["coordinateTransformations"][0]["scale"] for d in multiscale["datasets"]]
    assert scales == [[1, 1.0, 1.0], [1, 2.0, 2.0]]
    for path in ("0", "1"):
        assert group[path].metadata.dimension_names == ("c", "y", "x")
    assert group["0"].shape == (3, 300, 290)
    assert group["1"].shape == (3, 150, 145)


def test_info_counts_every_byte(finished: Path) -> None:
    info = tilecodec.info(finished)
    assert info.bytes == sum(f.stat().st_size for f in finished.rglob("*") if f.is_file())
    assert info.complete
    assert (info.width, info.height, info.tile) == (290, 300, 128)
    assert info.levels[0].tiles == 9
    assert info.levels[0].chunks == info.levels[0].chunks_present == 4
    assert 0 < info.levels[0].payload_bytes < info.levels[0].bytes
    assert "generative" in info.lossy_history[-1]


def test_report_agrees_with_the_files(tmp_path: Path) -> None:
    report = encode(tmp_path / "p.zarr")
    size = sum(f.stat().st_size for f in (tmp_path / "p.zarr").rglob("*") if f.is_file())
    assert report.bytes == size
    assert report.bpp == pytest.approx(8 * size / (300 * 290))
    assert report.tiles == 13
    assert json.dumps(report.to_dict())


def test_source_metadata_are_kept(tmp_path: Path) -> None:
    import tifffile

    source = tmp_path / "s.tif"
    geo = [
        (33550, "d", 3, (10.0, 10.0, 0.0), False),
        (33922, "d", 6, (0.0, 0.0, 0.0, 500000.0, 4600000.0, 0.0), False),
        (34735, "H", 12, (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32632), False),
    ]
    tifffile.imwrite(source, PICTURE, photometric="rgb", tile=(128, 128), extratags=geo, iccprofile=b"profile bytes")
    tilecodec.encode(source, tmp_path / "g.zarr", model=tiny.tiny_model(), tile=128, levels=2)
    attributes = zarr.open_group(tmp_path / "g.zarr", mode="r").attrs
    assert attributes["proj:code"] == "EPSG:32632"
    assert attributes["spatial:transform"] == [10.0, 0.0, 500000.0, 0.0, -10.0, 4600000.0]
    assert attributes["spatial:bbox"] == [500000.0, 4597000.0, 502900.0, 4600000.0]
    assert attributes["multiscales"]["layout"][1]["spatial:transform"][0] == 20.0
    image = tilecodec.open(tmp_path / "g.zarr")
    assert image.metadata.georeference.epsg == 32632
    assert image.metadata.icc_profile == b"profile bytes"


# --- what is refused ------------------------------------------------------------------------------------------------


def test_what_is_no_container_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAContainerError, match=r"no zarr\.json"):
        tilecodec.open(tmp_path)
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(NotAContainerError, match="not JSON"):
        tilecodec.open(tmp_path)


def test_an_unfinished_container_is_refused_but_described(copy: Path) -> None:
    edit(copy / "zarr.json", lambda v: v["attributes"]["tilecodec"].update(complete=False))
    with pytest.raises(IncompleteContainerError, match="resume"):
        tilecodec.open(copy)
    assert not tilecodec.info(copy).complete


def test_a_model_that_is_not_there_is_named(copy: Path) -> None:
    other = "0" * 64
    for level in ("0", "1"):
        edit(copy / level / "zarr.json", lambda v: v["codecs"][0]["configuration"].update(model=f"sha256:{other}"))
    with pytest.raises(UnknownModelError, match="sha256:000"):
        tilecodec.open(copy)[:, :5, :5]
    with pytest.raises(ModelHashError, match="wrote the container"):
        tilecodec.open(copy, model=tiny.tiny_model())[:, :5, :5]


def test_a_lost_chunk_is_an_error_everywhere(copy: Path) -> None:
    (copy / "0" / "c" / "0" / "1" / "1").unlink()
    image = tilecodec.open(copy)
    assert image[:, :96, :96].shape == (3, 96, 96)  # its window needs tiles of the first chunk only
    with pytest.raises(LostTileError, match="level 0, chunk c/0/1/1"):
        image[:, 260:, 260:]
    with pytest.raises(LostTileError):
        zarr.open_group(copy, mode="r")["0"][:, 260:, 260:]


def test_a_tile_marked_lost_is_an_error(copy: Path) -> None:
    key = copy / "0" / "c" / "0" / "0" / "0"
    chunk = key.read_bytes()
    index = parse_index(chunk, 2, 2, "")
    tiles = [(e.state, chunk[e.offset : e.offset + e.length]) for e in index.entries]
    tiles[3] = (TileState.LOST, b"")
    key.write_bytes(pack_chunk(2, 2, tiles, PLACE))
    with pytest.raises(LostTileError, match="tile row 1, column 1"):
        tilecodec.open(copy)[:, 150:160, 150:160]


@pytest.mark.parametrize("offset", [3, 12, 60, 200, -1])
def test_a_damaged_chunk_is_an_error_that_names_the_place(copy: Path, offset: int) -> None:
    key = copy / "0" / "c" / "0" / "0" / "0"
    chunk = bytearray(key.read_bytes())
    chunk[offset] ^= 0x10
    key.write_bytes(bytes(chunk))
    with pytest.raises(CorruptTileError, match="level 0"):
        tilecodec.open(copy)[:, :256, :256]


@pytest.mark.parametrize(("taken", "level"), [("0/c/0/0/0", 1), ("1/c/0/0/0", 0)])
def test_a_chunk_in_another_ones_place_is_an_error(copy: Path, taken: str, level: int) -> None:
    """Both are of 2 x 2 tiles, and whole."""
    shutil.copy(copy / taken, copy / str(level) / "c" / "0" / "0" / "0")
    with pytest.raises(CorruptTileError, match=f"belongs elsewhere.*level {level}, chunk c/0/0/0"):
        tilecodec.open(copy).level(level)[:, :100, :100]
    with pytest.raises(CorruptTileError, match="belongs elsewhere"):
        zarr.open_group(copy, mode="r")[str(level)][:, :100, :100]
    assert {problem.reason for problem in tilecodec.validate(copy).problems} == {"index-place"}


def test_a_tile_in_another_ones_place_is_an_error(tmp_path: Path) -> None:
    """Two payloads of one length, each in order by itself, change places."""
    tiles = [(TileState.EMPTY, bytes([grey] * 3)) for grey in (10, 200)]
    pixels = np.full((128, 256, 3), 10, np.uint8)
    pixels[:, 128:] = 200
    path = tmp_path / "p.zarr"
    tilecodec.encode(pixels, path, model=tiny.tiny_model(), tile=128, chunk_tiles=2, levels=1)
    chunk = path / "0" / "c" / "0" / "0" / "0"
    whole = chunk.read_bytes()
    assert whole == pack_chunk(1, 2, tiles, PLACE)
    chunk.write_bytes(whole[: index_bytes(1, 2)] + tiles[1][1] + tiles[0][1])
    with pytest.raises(CorruptTileError, match="not those that the chunk's index knows"):
        tilecodec.open(path)[...]


def test_a_chunk_cut_short_is_an_error(copy: Path) -> None:
    key = copy / "0" / "c" / "0" / "0" / "0"
    whole = key.read_bytes()
    for length in (0, 5, index_bytes(2, 2), len(whole) - 1):
        key.write_bytes(whole[:length])
        with pytest.raises(CorruptTileError, match="cut short"):
            tilecodec.open(copy)[:, :256, :256]


def test_regions_outside_are_refused(finished: Path, tmp_path: Path) -> None:
    image = tilecodec.open(finished)
    with pytest.raises(RegionError):
        image[:, 300]
    with pytest.raises(RegionError):
        image[0, 0, 0, 0]
    with pytest.raises(RegionError, match="0 to 1"):
        image.level(2)
    for region in ((0, 0, 291, 1), (-1, 0, 5, 5), (0, 0, 0, 5), (5, 299, 5, 2)):
        with pytest.raises(RegionError, match="290 x 300"):
            tilecodec.decode(finished, tmp_path / "r.png", region=region)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 0},
        {"quality": 101},
        {"tile": 100},
        {"levels": 0},
        {"overlap": 65},
        {"overlap": 16},
        {"halo": 20},
        {"overwrite": True, "resume": True},
        {"device": "tpu9"},
        {"precision": "int3"},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        encode(tmp_path / "p.zarr", **options)
    assert not list(tmp_path.iterdir())


def test_a_bad_source_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(b"not a picture")
    with pytest.raises(SourceError):
        tilecodec.encode(tmp_path / "x.tif", tmp_path / "x.zarr", model=tiny.tiny_model())
    with pytest.raises(UnknownModelError, match="default"):
        tilecodec.encode(PICTURE, tmp_path / "y.zarr", model="no-such-model")
    assert [p.name for p in tmp_path.iterdir()] == ["x.tif"]


# --- replacing and resuming -----------------------------------------------------------------------------------------


def test_a_target_is_not_replaced_unasked(copy: Path) -> None:
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    with pytest.raises(TargetExistsError, match="overwrite"):
        encode(copy)
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before
    encode(copy, overwrite=True, quality=90)
    assert tilecodec.info(copy).quality == 90
    assert [p.name for p in copy.parent.iterdir()] == ["p.zarr"]


def test_a_folder_that_is_no_zarr_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "thesis.txt").write_text("years of work")
    with pytest.raises(TargetExistsError, match="no Zarr"):
        encode(tmp_path / "docs", overwrite=True)
    assert (tmp_path / "docs" / "thesis.txt").read_text() == "years of work"


class StopError(Exception):
    """Raised in the middle of an encode."""


def test_a_failed_replacement_keeps_the_old_container(copy: Path) -> None:
    def stop(_: object) -> None:
        raise StopError

    before = tilecodec.open(copy)[...]
    with pytest.raises(StopError):
        tilecodec.encode(PICTURE[::-1], copy, model=tiny.tiny_model(), tile=128, overwrite=True, progress=stop)
    np.testing.assert_array_equal(tilecodec.open(copy)[...], before)
    assert [p.name for p in copy.parent.iterdir()] == ["p.zarr"]


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_a_stopped_encode_resumes_to_the_same_bytes(finished: Path, tmp_path: Path, chunks: int) -> None:
    path, seen = tmp_path / "p.zarr", []

    def stop(progress: object) -> None:
        seen.append(progress)
        if len(seen) == chunks:
            raise StopError

    with pytest.raises(StopError):
        encode(path, progress=stop)
    with pytest.raises(IncompleteContainerError):
        tilecodec.open(path)
    present = {p: p.stat().st_mtime_ns for p in path.glob("0/c/0/*/*")}
    assert len(present) >= chunks
    with pytest.raises(UsageError, match="other settings"):
        encode(path, resume=True, quality=77)
    options = {"model": tiny.tiny_model(), "tile": 128, "chunk_tiles": 2, "levels": 2}
    with pytest.raises(UsageError, match="another picture"):
        tilecodec.encode(PICTURE[::-1], path, resume=True, **options)
    report = encode(path, resume=True)
    assert all(p.stat().st_mtime_ns == t for p, t in present.items())
    for file in finished.rglob("*"):
        if file.is_file():
            assert (path / file.relative_to(finished)).read_bytes() == file.read_bytes(), file
    assert report.bytes == tilecodec.info(path).bytes
    with pytest.raises(TargetExistsError, match="nothing to resume"):
        encode(path, resume=True)


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    seen = []
    encode(tmp_path / "p.zarr", progress=seen.append)
    assert seen[-1].pixels_done == seen[-1].pixels_total == 300 * 290 + 150 * 145
    assert [p.pixels_done for p in seen] == sorted(p.pixels_done for p in seen)


def test_a_failing_store_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from zarr.storage import LocalStore

    async def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalStore, "set", full)
    with pytest.raises(StorageError, match=r"No space left.*resume") as caught:
        encode(tmp_path / "p.zarr")
    assert caught.value.exit_code == 3
    assert isinstance(caught.value, TileCodecError)


def test_chunks_decode_alone_where_neighbours_cannot_be_reached(finished: Path) -> None:
    """A getter that is no place in a store: the chunk's own bytes are all there is."""
    import asyncio

    from zarr.core.buffer import default_buffer_prototype

    array = zarr.open_group(finished, mode="r")["0"]
    whole = array[...]
    codec = array.metadata.codecs[0]
    spec = array.async_array.metadata.get_chunk_spec((0, 0, 0), array.async_array.config, default_buffer_prototype())
    data = (finished / "0" / "c" / "0" / "0" / "0").read_bytes()
    buffer = default_buffer_prototype().buffer.from_bytes(data)
    alone = asyncio.run(codec._decode_single(buffer, spec)).as_numpy_array()
    assert alone.shape == (3, 256, 256)
    np.testing.assert_array_equal(alone[:, :128, :128][:, :96, :96], whole[:, :96, :96])
    assert np.abs(alone[:, :220, :220].astype(int) - whole[:, :220, :220]).mean() < 20


def test_a_level_is_read_without_its_container(finished: Path, tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "other.zarr", mode="w")
    group.attrs["made"] = "by someone else"
    shutil.copytree(finished / "1", tmp_path / "other.zarr" / "small")
    whole = tilecodec.open(finished).level(1)[...]
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "other.zarr", mode="r")["small"][...], whole)
    np.testing.assert_array_equal(zarr.open_array(finished / "1", mode="r")[...], whole)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"TCK", "index-magic"),
        (b"TCK1\x02\xff\xff\x00" + bytes(600_000), "index-shape"),
        (b"TCK1\x02\x01\x01\x00" + bytes(25), "index-crc"),
        (pack_chunk(1, 1, [(TileState.CODED, b"\x01\x00" + b"\xff" * 14)], PLACE), "payload-size"),
        (pack_chunk(1, 1, [(TileState.CODED, bytes(16))], PLACE), "payload-size"),
    ],
)
def test_a_faulty_chunk_alone_is_refused_before_anything_large_is_made(
    finished: Path, data: bytes, reason: str
) -> None:
    configuration = tilecodec.open(finished).metadata.levels[0].codec
    with pytest.raises(CorruptTileError) as caught:
        decode_alone(data, configuration, (3, 256, 256))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "shape", [(3, 256, 100), (1, 256, 256), (3, 200, 200), (3, 0, 0), (3, 1 << 20, 1 << 20), (256, 256)], ids=str
)
def test_chunks_of_other_shapes_are_not_decoded_alone(finished: Path, shape: tuple[int, ...]) -> None:
    configuration = tilecodec.open(finished).metadata.levels[0].codec
    with pytest.raises(NotAContainerError) as caught:
        decode_alone((finished / "0/c/0/0/0").read_bytes(), configuration, shape)
    assert caught.value.reason == "array-geometry"


@pytest.mark.parametrize(("encoding", "key"), [(("default", "."), "c.0.0.0"), (("v2", "/"), "0/0/0")], ids=str)
def test_plain_zarr_reads_no_chunks_under_other_keys(copy: Path, encoding: tuple[str, str], key: str) -> None:
    """Their neighbours, and whether their container is complete, would not be found."""
    name, separator = encoding
    chosen = {"name": name, "configuration": {"separator": separator}}
    edit(copy / "0" / "zarr.json", lambda v: v.update(chunk_key_encoding=chosen))
    (copy / "0" / key).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(copy / "0/c/0/0/0", copy / "0" / key)
    with pytest.raises(NotAContainerError, match="other keys") as caught:
        zarr.open_group(copy, mode="r")["0"][:, :10, :10]
    assert caught.value.reason == "array-geometry"


def test_arrays_are_not_written_through_zarr(copy: Path) -> None:
    with pytest.raises(UsageError, match=r"tilecodec\.encode"):
        zarr.open_group(copy, mode="r+")["0"][:, :256, :256] = 7
