"""The source stage: every kind of picture gives the windows of its array; every fault its typed error."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array
import imagecodecs
import numpy as np
import PIL.Image
import pytest
import skimage.data
import tifffile
import zarr

from tilecodec.errors import (
    MissingFileError,
    RegionError,
    SourceError,
    StorageError,
    TileCodecError,
    UnsupportedPixelsError,
)
from tilecodec.source import open_source
from tilecodec.source.cache import SegmentCache
from tilecodec.source.files import RandomAccessFile, read_block
from tilecodec.source.grid import GridSource
from tilecodec.source.headers import jpeg_damage

HEIGHT, WIDTH = 203, 331
RGB = np.ascontiguousarray(skimage.data.astronaut()[:HEIGHT, :WIDTH])
GREY = np.ascontiguousarray(RGB[..., 1])
RGBA = np.dstack([RGB, GREY[::-1]])
GREY_RGB = np.repeat(GREY[..., np.newaxis], 3, axis=2)


def windows(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Whole, corners, bands, and twelve random windows."""
    rng = np.random.default_rng(7)
    found = [
        (0, height, 0, width),
        (0, 1, 0, 1),
        (height - 1, height, width - 1, width),
        (0, height, width // 2, width // 2 + 1),
        (height // 2, height // 2 + 1, 0, width),
    ]
    for _ in range(12):
        y0, y1 = sorted(rng.choice(height + 1, 2, replace=False)) if height > 1 else (0, 1)
        x0, x1 = sorted(rng.choice(width + 1, 2, replace=False)) if width > 1 else (0, 1)
        found.append((int(y0), int(y1), int(x0), int(x1)))
    return found


def check_windows(source: Any, expected: np.ndarray) -> None:
    """Every window of a source equals that of the array, (h, w, 3) uint8."""
    height, width = expected.shape[:2]
    assert (source.height, source.width) == (height, width)
    for y0, y1, x0, x1 in windows(height, width):
        got = source.read(y0, y1, x0, x1)
        assert got.dtype == np.uint8
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, expected[y0:y1, x0:x1], err_msg=f"{source.name} {(y0, y1, x0, x1)}")


def pillow(picture: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    """A picture file as Pillow writes it."""
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


# --- TIFF: layouts by compressions ------------------------------------------------------------------------------------

LAYOUTS: dict[str, dict[str, Any]] = {
    "tiled": {"tile": (64, 48)},
    "strips": {"rowsperstrip": 17},
    "one strip": {"rowsperstrip": HEIGHT},
    "bigtiff tiled": {"tile": (128, 128), "bigtiff": True},
    "big-endian strips": {"rowsperstrip": 64, "byteorder": ">"},
}
COMPRESSIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "lzw": {"compression": "lzw"},
    "lzw predictor": {"compression": "lzw", "predictor": True},
    "deflate": {"compression": "deflate"},
    "deflate predictor": {"compression": "deflate", "predictor": True},
    "zstd": {"compression": "zstd"},
    "packbits": {"compression": "packbits"},
    "lzma": {"compression": "lzma"},
    "png": {"compression": "png"},
    "lerc": {"compression": "lerc"},
    "jpeg2000": {"compression": "jpeg2000"},
    "webp lossless": {"compression": "webp", "compressionargs": {"level": -1, "lossless": True}},
    "jpegxl lossless": {"compression": "jpegxl", "compressionargs": {"lossless": True}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_tiff_rgb(tmp_path: Path, layout: str, compression: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", **LAYOUTS[layout], **COMPRESSIONS[compression])
    with open_source(path) as source:
        check_windows(source, RGB)


BAND_WRITINGS: dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray]] = {
    "grey": (GREY, {"photometric": "minisblack"}, GREY_RGB),
    "white is zero": (255 - GREY, {"photometric": "miniswhite"}, GREY_RGB),
    "planar": (np.moveaxis(RGB, 2, 0), {"photometric": "rgb", "planarconfig": "separate"}, RGB),
    "alpha": (RGBA, {"photometric": "rgb", "extrasamples": ["unassalpha"]}, RGB),
    "planar alpha": (
        np.moveaxis(RGBA, 2, 0),
        {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["unassalpha"]},
        RGB,
    ),
}


@pytest.mark.parametrize("layout", [{"tile": (32, 64)}, {"rowsperstrip": 13}, {"rowsperstrip": HEIGHT}], ids=str)
@pytest.mark.parametrize("compression", [{}, {"compression": "deflate", "predictor": True}], ids=str)
@pytest.mark.parametrize("bands", BAND_WRITINGS)
def test_tiff_bands(tmp_path: Path, bands: str, compression: dict[str, Any], layout: dict[str, Any]) -> None:
    array, options, expected = BAND_WRITINGS[bands]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, **options, **layout, **compression)
    with open_source(path) as source:
        check_windows(source, expected)
        assert ("tilecodec.dropped-band" in source.metadata.properties) == ("alpha" in bands)


@pytest.mark.parametrize("compression", ["none", "lzw"])
@pytest.mark.parametrize("factor", [256, 257, 1], ids=["shifted", "spread", "bytes"])
def test_tiff_palette(tmp_path: Path, compression: str, factor: int) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (3, 256), dtype=np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, GREY, photometric="palette", colormap=(colours * factor).astype(np.uint16), compression=compression
    )
    with open_source(path) as source:
        check_windows(source, colours.T.astype(np.uint8)[GREY])


@pytest.mark.parametrize(
    ("array", "options", "colours"),
    [
        (RGB, {"photometric": "rgb", "tile": (64, 64)}, "YCBCR"),
        (RGB, {"photometric": "rgb", "rowsperstrip": 32, "subsampling": (2, 1)}, "YCBCR"),
        (RGB, {"photometric": "rgb", "rowsperstrip": HEIGHT, "subsampling": (1, 1)}, "YCBCR"),
        (GREY, {"photometric": "minisblack", "tile": (64, 64)}, "MINISBLACK"),
        (np.moveaxis(RGB, 2, 0), {"photometric": "rgb", "planarconfig": "separate", "tile": (64, 64)}, "RGB"),
    ],
    ids=["4:2:0 tiles", "4:2:2 strips", "4:4:4 strip", "grey", "planar"],
)
def test_tiff_jpeg(tmp_path: Path, array: np.ndarray, options: dict[str, Any], colours: str) -> None:
    """JPEG inside TIFF is near the picture it was made of, and windows agree with the whole."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, compression="jpeg", compressionargs={"level": 95}, **options)
    with tifffile.TiffFile(path) as tif:
        assert tif.pages.first.photometric.name == colours
    original = GREY_RGB if array is GREY else RGB
    with open_source(path) as source:
        whole = source.read(0, HEIGHT, 0, WIDTH)
        check_windows(source, whole)
        assert source.metadata.earlier_losses == ("jpeg",)
    assert np.abs(whole.astype(int) - original).mean() < 4


def test_tiff_jpeg_tables(tmp_path: Path) -> None:
    """Tiles whose quantisation and Huffman tables stand apart, in the JPEGTables tag, as libtiff writes them."""
    path = tmp_path / "a.tif"
    square = np.ascontiguousarray(skimage.data.astronaut()[:128, :128])
    tiles = [imagecodecs.jpeg8_encode(square[y : y + 64, x : x + 64], level=90) for y in (0, 64) for x in (0, 64)]
    expected = np.vstack([np.hstack([imagecodecs.jpeg8_decode(t) for t in tiles[i : i + 2]]) for i in (0, 2)])
    tables, stripped = split_jpeg(tiles[0])
    path.write_bytes(jpeg_tiff([stripped, *(split_jpeg(t)[1] for t in tiles[1:])], tables))
    with open_source(path) as source:
        check_windows(source, expected)


def split_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Return the tables and the rest of a baseline JPEG stream as two abbreviated streams."""
    position, tables, rest = 2, b"", b""
    while data[position + 1] != 0xDA:
        length = 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        part = data[position : position + length]
        if part[1] in (0xDB, 0xC4):
            tables += part
        else:
            rest += part
        position += length
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + data[position:]


def jpeg_tiff(tiles: list[bytes], tables: bytes) -> bytes:
    """Return a TIFF of 128 x 128 px in four JPEG tiles."""
    body, places = b"", []
    for data in (tables, *tiles):
        places.append(8 + len(body))
        body += data + b"\0" * (len(data) % 2)
    where = 8 + len(body)
    body += struct.pack("<3H", 8, 8, 8) + struct.pack("<4I", *places[1:]) + struct.pack("<4I", *map(len, tiles))
    entries = [
        (256, 3, 1, 128),
        (257, 3, 1, 128),
        (258, 3, 3, where),
        (259, 3, 1, 7),
        (262, 3, 1, 6),
        (277, 3, 1, 3),
        (284, 3, 1, 1),
        (322, 3, 1, 64),
        (323, 3, 1, 64),
        (324, 4, 4, where + 6),
        (325, 4, 4, where + 22),
        (347, 7, len(tables), places[0]),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + directory


def test_tiff_aperio_ycbcr(tmp_path: Path) -> None:
    """Aperio's JPEG 2000 of unconverted YCbCr (33003) comes back as RGB."""
    path = tmp_path / "a.svs"
    y = RGB[:128, :128] @ np.array([0.299, 0.587, 0.114])
    cb = (RGB[:128, :128, 2] - y) / 1.772 + 128
    cr = (RGB[:128, :128, 0] - y) / 1.402 + 128
    ycc = np.clip(np.rint(np.stack([y, cb, cr], -1)), 0, 255).astype(np.uint8)
    unspecified = imagecodecs.JPEG2K.CLRSPC.UNSPECIFIED
    tile = imagecodecs.jpeg2k_encode(ycc, codecformat="j2k", colorspace=unspecified, reversible=True, mct=False)
    tifffile.imwrite(
        path, iter([tile]), shape=(128, 128, 3), dtype=np.uint8, tile=(128, 128), compression=33003, photometric="rgb"
    )
    with open_source(path) as source:
        whole = source.read(0, 128, 0, 128)
        assert source.metadata.earlier_losses == ()  # a reversible code stream
    assert np.abs(whole.astype(int) - RGB[:128, :128]).max() <= 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 77), (77, 1), (16, 16), (17, 33)])
@pytest.mark.parametrize("compression", ["none", "deflate"])
@pytest.mark.parametrize("layout", [{"tile": (16, 16)}, {"rowsperstrip": 5}], ids=["tiled", "strips"])
def test_tiff_sizes(tmp_path: Path, shape: tuple[int, int], compression: str, layout: dict[str, Any]) -> None:
    array = RGB[: shape[0], : shape[1]]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, photometric="rgb", compression=compression, **layout)
    with open_source(path) as source:
        check_windows(source, array)


@pytest.mark.parametrize("nodata", [None, "200"])
@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_tiff_sparse(tmp_path: Path, compression: str, nodata: str | None) -> None:
    """Tiles that were never written are zero, or the file's nodata value."""
    path = tmp_path / "a.tif"
    tags = [] if nodata is None else [(42113, "s", 0, nodata, True)]
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(64, 64), compression=compression, extratags=tags)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        page = tif.pages.first
        for code, values in ((324, list(page.dataoffsets)), (325, list(page.databytecounts))):
            values[1] = 0
            page.tags[code].overwrite(values)
    expected = RGB.copy()
    expected[:64, 64:128] = int(nodata or 0)
    with open_source(path) as source:
        check_windows(source, expected)


def test_ndpi(tmp_path: Path) -> None:
    """Hamamatsu's one JPEG strip is read as the pieces between its restart marks."""
    picture = np.ascontiguousarray(skimage.data.astronaut()[:256, :512])
    options = {"quality": 95, "subsampling": 0, "restart_marker_blocks": 16}
    path = tmp_path / "a.ndpi"
    path.write_bytes(ndpi(pillow(PIL.Image.fromarray(picture), "JPEG", **options), 256, 512))
    with open_source(path) as source:
        whole = source.read(0, 256, 0, 512)
        check_windows(source, whole)
        assert source.segment_count == 256 * 512 // (16 * 64)
        assert source.metadata.pixel_size_um == pytest.approx((0.25, 0.25))
        assert source.metadata.properties["openslide.vendor"] == "hamamatsu"
        assert source.metadata.properties["openslide.objective-power"] == "40.0"
        assert source.metadata.earlier_losses == ("jpeg",)
    assert np.abs(whole.astype(int) - picture).mean() < 3


def ndpi(jpeg: bytes, height: int, width: int) -> bytes:
    """Return an NDPI file: a TIFF with 64-bit directory offsets and the starts of the JPEG's restart intervals."""
    scan = jpeg.index(b"\xff\xda")
    first = scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big")
    starts = [first, *(m.end() for m in re.compile(rb"\xff[\xd0-\xd7]").finditer(jpeg, first))]
    body = bytearray(jpeg)
    begin = 12

    def put(data: bytes) -> int:
        body.extend(data)
        return begin + len(body) - len(data)

    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, put(struct.pack("<3H", 8, 8, 8))),
        (259, 3, 1, 7),
        (262, 3, 1, 6),
        (271, 2, 10, put(b"Hamamatsu\0")),
        (273, 4, 1, begin),
        (277, 3, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, len(jpeg)),
        (282, 5, 1, put(struct.pack("<2I", 40000, 1))),
        (283, 5, 1, put(struct.pack("<2I", 40000, 1))),
        (296, 3, 1, 3),
        (65420, 4, 1, 1),
        (65421, 11, 1, int.from_bytes(struct.pack("<f", 40.0), "little")),
        (65426, 4, len(starts), put(struct.pack(f"<{len(starts)}I", *starts))),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries)
    directory += bytes(8) + bytes(4 * len(entries))
    return struct.pack("<2sHQ", b"II", 42, begin + len(body)) + bytes(body) + directory


def test_tiff_main_picture(tmp_path: Path) -> None:
    """The picture is level 0 of the largest series, neither overview, label, macro nor mask."""
    path = tmp_path / "a.svs"
    description = "Aperio Image Library v11\r\n331x203 [0,0 331x203] (16x16) JPEG/RGB Q=30|AppMag = 20|MPP = 0.499"
    with tifffile.TiffWriter(path) as writer:
        writer.write(RGB, tile=(16, 16), metadata=None, description=description)
        writer.write(RGB[:32, :48], metadata=None, description="Aperio\r\nthumb")
        writer.write(RGB[::2, ::2], tile=(16, 16), metadata=None, description=description)
        writer.write(np.zeros((400, 30, 3), np.uint8), metadata=None, description="Aperio\r\nlabel", subfiletype=1)
        writer.write(np.zeros((400, 500, 3), np.uint8), metadata=None, description="Aperio\r\nmacro", subfiletype=9)
    with open_source(path) as source:
        check_windows(source, RGB)
        properties = source.metadata.properties
        assert source.metadata.pixel_size_um == (0.499, 0.499)
        assert properties["openslide.mpp-x"] == properties["aperio.MPP"] == "0.499"
        assert properties["openslide.vendor"] == "aperio"
        assert properties["openslide.objective-power"] == "20"
        assert properties["tiff.ImageDescription"] == description


def test_tiff_ome_planes(tmp_path: Path) -> None:
    """Three pages that are the channels of one OME image are its bands."""
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path,
        np.moveaxis(RGB, 2, 0),
        photometric="minisblack",
        tile=(64, 64),
        compression="deflate",
        metadata={
            "axes": "CYX",
            "PhysicalSizeX": 250,
            "PhysicalSizeXUnit": "nm",
            "PhysicalSizeY": 0.5,
            "PhysicalSizeYUnit": "µm",
        },
    )
    with open_source(path) as source:
        check_windows(source, RGB)
        assert source.metadata.pixel_size_um == (0.5, 0.25)


@pytest.mark.parametrize(
    ("unit", "resolution", "expected"),
    [("CENTIMETER", (20000, 40000), (0.25, 0.5)), ("INCH", (254, 254), (100.0, 100.0)), ("NONE", (3, 3), None)],
)
def test_tiff_resolution(
    tmp_path: Path, unit: str, resolution: tuple[int, int], expected: tuple[float, float] | None
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, resolution=resolution, resolutionunit=unit)
    with open_source(path) as source:
        size = source.metadata.pixel_size_um
    assert size == (None if expected is None else pytest.approx(expected))


def test_tiff_tags(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    profile = bytes(range(200))
    tifffile.imwrite(
        path,
        RGB,
        iccprofile=profile,
        software="some scanner",
        extratags=[(274, 3, 1, 6, True), (271, 2, 0, "Maker", True)],
    )
    with open_source(path) as source:
        check_windows(source, RGB)  # the orientation is not applied
        assert source.metadata.icc_profile == profile
        assert source.metadata.properties["tiff.Orientation"] == "6"
        assert source.metadata.properties["tiff.Make"] == "Maker"
        assert source.metadata.properties["tiff.Software"] == "some scanner"
        assert source.metadata.earlier_losses == ()


def geokeys(*, projected: int, raster: int) -> tuple[int, int, int, list[int], bool]:
    """Return a GeoKeyDirectoryTag."""
    keys = [1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, raster, 3072, 0, 1, projected]
    return (34735, 3, len(keys), keys, True)


SCALE = (33550, 12, 3, (0.5, 0.25, 0.0), True)
TIE = (33922, 12, 6, (10.0, 20.0, 0.0, 1000.0, 2000.0, 0.0), True)
MATRIX = (34264, 12, 16, (1.0, 2.0, 0, 3.0, 4.0, 5.0, 0, 6.0, 0, 0, 0, 0, 0, 0, 0, 1), True)


@pytest.mark.parametrize(
    ("tags", "epsg", "transform"),
    [
        ([geokeys(projected=32633, raster=1), SCALE, TIE], 32633, (0.5, 0, 995.0, 0, -0.25, 2005.0)),
        ([geokeys(projected=32633, raster=2), SCALE, TIE], 32633, (0.5, 0, 994.75, 0, -0.25, 2005.125)),
        ([geokeys(projected=32767, raster=1), MATRIX], None, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)),
    ],
    ids=["scale and tie point", "pixel is point", "matrix"],
)
def test_geotiff(tmp_path: Path, tags: list[Any], epsg: int | None, transform: tuple[float, ...]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, extratags=tags, metadata=None)
    with open_source(path) as source:
        place = source.metadata.georeference
        assert place is not None
        assert (place.epsg, place.transform) == (epsg, transform)


# --- picture files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "encode", "array", "expected"),
    [
        ("png", imagecodecs.png_encode, RGB, RGB),
        ("png", imagecodecs.png_encode, RGBA, RGB),
        ("png", imagecodecs.png_encode, GREY, GREY_RGB),
        ("bmp", imagecodecs.bmp_encode, RGB, RGB),
        ("bmp", imagecodecs.bmp_encode, GREY, GREY_RGB),
        ("bmp", imagecodecs.bmp_encode, RGBA, RGB),
        ("bmp", lambda a: pillow(PIL.Image.fromarray(a), "BMP"), RGB, RGB),
        ("jp2", imagecodecs.jpeg2k_encode, RGB, RGB),
        ("webp", lambda a: imagecodecs.webp_encode(a, lossless=True), RGB, RGB),
        ("jxl", lambda a: imagecodecs.jpegxl_encode(a, lossless=True), RGBA, RGB),
        ("jpg", imagecodecs.jpeg8_encode, RGB, None),
        ("jpg", imagecodecs.jpeg8_encode, GREY, None),
        ("avif", lambda a: imagecodecs.avif_encode(a, speed=10), RGB, None),
        ("webp", lambda a: imagecodecs.webp_encode(a, level=80, lossless=False), RGB, None),
    ],
)
def test_picture_files(
    tmp_path: Path, suffix: str, encode: Callable[[np.ndarray], bytes], array: np.ndarray, expected: np.ndarray | None
) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(encode(array))
    with open_source(path) as source:
        if expected is None:
            expected = source.read(0, HEIGHT, 0, WIDTH)
            original = array if array.ndim == 3 else GREY_RGB
            assert np.abs(expected.astype(int) - original).mean() < 6
            assert source.metadata.earlier_losses == ({"jpg": "jpeg"}.get(suffix, suffix),)
        check_windows(source, expected)
        assert ("tilecodec.dropped-band" in source.metadata.properties) == (array is RGBA)


def test_name_does_not_matter(tmp_path: Path) -> None:
    """The content tells the format."""
    path = tmp_path / "a.tif"
    path.write_bytes(imagecodecs.png_encode(RGB))
    with open_source(str(path)) as source:
        check_windows(source, RGB)


def test_png_palette(tmp_path: Path) -> None:
    """A palette of four colours, two bits a pixel, comes back as its colours."""
    path = tmp_path / "a.png"
    path.write_bytes(png(4, 1, 2, 3, b"\0\x1b", chunk(b"PLTE", bytes(range(12)))))
    with open_source(path) as source:
        check_windows(source, np.arange(12, dtype=np.uint8).reshape(1, 4, 3))


def test_bmp_palette(tmp_path: Path) -> None:
    """A palette shorter than 256 colours; a colour outside it is an error."""
    path = tmp_path / "a.bmp"
    image = PIL.Image.fromarray(RGB).quantize(100)
    data = pillow(image, "BMP")
    path.write_bytes(data)
    with open_source(path) as source:
        check_windows(source, np.asarray(image.convert("RGB")))
    path.write_bytes(data[:-4] + b"\xff" * 4)
    expect(SourceError, "BMP colour 255 of 100", path)


def test_picture_profiles(tmp_path: Path) -> None:
    """ICC profiles of PNG and JPEG, and the EXIF orientation, are found and nothing is turned."""
    profile = np.random.default_rng(3).integers(0, 256, 70000, dtype=np.uint8).tobytes()
    packed = b"name\0\0" + zlib.compress(profile)
    path = tmp_path / "a.png"
    data = imagecodecs.png_encode(RGB)
    path.write_bytes(data[:33] + chunk(b"iCCP", packed) + data[33:])
    with open_source(path) as source:
        assert source.metadata.icc_profile == profile
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
    parts = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    for number, start in enumerate((0, 40000)):
        body = b"ICC_PROFILE\0" + bytes([number + 1, 2]) + profile[start : start + 40000]
        parts += b"\xff\xe2" + struct.pack(">H", len(body) + 2) + body
    path = tmp_path / "a.jpg"
    data = imagecodecs.jpeg8_encode(RGB)
    path.write_bytes(data[:2] + parts + data[2:])
    with open_source(path) as source:
        assert source.metadata.icc_profile == profile
        assert source.metadata.properties["tiff.Orientation"] == "6"
        np.testing.assert_array_equal(source.read(0, HEIGHT, 0, WIDTH), imagecodecs.jpeg8_decode(data))


def chunk(tag: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# --- arrays and Zarr -------------------------------------------------------------------------------------------------

ARRAYS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "y x c": (RGB, RGB),
    "c y x": (np.moveaxis(RGB, 2, 0), RGB),
    "y x": (GREY, GREY_RGB),
    "y x 1": (GREY[..., np.newaxis], GREY_RGB),
    "1 y x": (GREY[np.newaxis], GREY_RGB),
    "y x 4": (RGBA, RGB),
    "4 y x": (np.moveaxis(RGBA, 2, 0), RGB),
    "strided": (RGB[::-1, ::2], RGB[::-1, ::2]),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
def test_arrays(kind: str, name: str) -> None:
    array, expected = ARRAYS[name]
    source: Any = array
    if kind == "dask":
        source = dask.array.from_array(array, chunks=(2, 70, 90)[-array.ndim :] if array.ndim == 3 else (70, 90))
    if kind == "zarr":
        source = zarr.create_array({}, data=np.ascontiguousarray(array), chunks=(50,) * array.ndim)
    with open_source(source) as opened:
        check_windows(opened, expected)
        assert ("tilecodec.dropped-band" in opened.metadata.properties) == ("4" in name)


def test_numpy_is_copied() -> None:
    array = RGB.copy()
    with open_source(array) as source:
        source.read(0, HEIGHT, 0, WIDTH)[:] = 0
    np.testing.assert_array_equal(array, RGB)


def test_dask_chunks_are_computed_once() -> None:
    """Windows in raster order compute each chunk once, never the whole, also where chunks are uneven."""
    computed: list[tuple[int, int]] = []

    def make(block_info: Any = None) -> np.ndarray:
        (y0, y1), (x0, x1), _ = block_info[None]["array-location"]
        computed.append((y1 - y0, x1 - x0))
        y, x = np.mgrid[y0:y1, x0:x1]
        return np.stack([y, x, y + x], -1).astype(np.uint8)

    chunks = ((600, 512, 700, 288), (1000, 600, 500), (3,))
    array = dask.array.map_blocks(make, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    with open_source(array) as source:
        for y0, y1, x0, x1 in raster(2100, 2100, 500, 32):
            y, x = np.mgrid[y0:y1, x0:x1]
            np.testing.assert_array_equal(source.read(y0, y1, x0, x1), np.stack([y, x, y + x], -1).astype(np.uint8))
    assert sorted(computed) == sorted(itertools.product(chunks[0], chunks[1]))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("names", ["cyx", "yxc", "tczyx", "yx"])
def test_ome_zarr(tmp_path: Path, version: str, names: str) -> None:
    """Level 0 of an OME-Zarr group by its axes, with its pixel size."""
    array = {"cyx": np.moveaxis(RGB, 2, 0), "yxc": RGB, "tczyx": np.moveaxis(RGB, 2, 0)[None, :, None], "yx": GREY}[
        names
    ]
    kinds = {"c": "channel", "t": "time"}
    axes = [{"name": n, "type": kinds.get(n, "space"), **({"unit": "millimeter"} if n in "yx" else {})} for n in names]
    scale = [{"y": 0.001, "x": 0.002}.get(n, 1.0) for n in names]
    multiscales = [
        {"axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}]}
    ]
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2 if version == "0.4" else 3)
    group.create_array("s0", data=np.ascontiguousarray(array), chunks=tuple(min(n, 64) for n in array.shape))
    group.attrs.update({"multiscales": multiscales} if version == "0.4" else {"ome": {"multiscales": multiscales}})
    with open_source(tmp_path / "a.zarr") as source:
        check_windows(source, GREY_RGB if names == "yx" else RGB)
        assert source.metadata.pixel_size_um == pytest.approx((1.0, 2.0))
        assert "multiscales" in source.metadata.properties["zarr.attributes"]
    with open_source(tmp_path / "a.zarr" / "s0") if len(names) < 4 else open_source(group["s0"][0, :, 0]) as source:
        check_windows(source, GREY_RGB if names == "yx" else RGB)


def test_sharded_zarr() -> None:
    array = zarr.create_array({}, data=RGB, chunks=(32, 32, 3), shards=(128, 128, 3), dimension_names=("y", "x", "c"))
    with open_source(array) as source:
        check_windows(source, RGB)


def test_bioformats2raw_zarr(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    group.create_array("0/0", data=RGB)
    group["0"].attrs["multiscales"] = [{"axes": ["y", "x", "c"], "datasets": [{"path": "0"}]}]
    with open_source(tmp_path / "a.zarr") as source:
        check_windows(source, RGB)


# --- each segment is decoded once, in bounded memory -----------------------------------------------------------------


def raster(height: int, width: int, side: int, halo: int) -> list[tuple[int, int, int, int]]:
    """Windows of ``side`` with a halo, in raster order."""
    return [
        (max(0, y - halo), min(height, y + side + halo), max(0, x - halo), min(width, x + side + halo))
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]


@pytest.mark.parametrize("layout", [{"tile": (256, 256)}, {"rowsperstrip": 8}, {"rowsperstrip": 700}], ids=str)
@pytest.mark.parametrize("memory_bytes", [64 << 20, 1 << 20], ids=["in memory", "spooled"])
def test_decoded_once(tmp_path: Path, layout: dict[str, Any], memory_bytes: int) -> None:
    """Raster order of 2048 px windows with a halo of 64: no more than 1.2 decodes a segment, memory in its bound."""
    height, width = 4300, 4200
    y, x = np.ogrid[:height, :width]
    array = np.stack([y + x, y ^ x, y - x], -1).astype(np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, photometric="rgb", compression="deflate", compressionargs={"level": 1}, **layout)
    with open_source(path, memory_bytes=memory_bytes) as source:
        assert isinstance(source, GridSource)
        cache: SegmentCache = source.segments.cache  # type: ignore[attr-defined]
        for window in raster(height, width, 2048, 64):
            y0, y1, x0, x1 = window
            np.testing.assert_array_equal(source.read(*window), array[y0:y1, x0:x1])
            assert cache.memory_bytes <= memory_bytes
            band = (2176 + 2 * max(layout.get("tile", [0])[0], layout.get("rowsperstrip", 0))) * (width + 256) * 3
            assert cache.file_bytes <= 2.2 * band
        assert source.segment_count <= cache.decoded <= 1.2 * source.segment_count
        assert (cache.file_bytes > 0) == (memory_bytes == 1 << 20)


def test_plain_pixels_are_not_decoded_nor_mapped(tmp_path: Path) -> None:
    """A window of an uncompressed file takes memory for itself, not for the file."""
    path = tmp_path / "a.tif"
    height, width = 6000, 5000
    tifffile.memmap(path, shape=(height, width, 3), dtype=np.uint8, photometric="rgb").flush()
    assert path.stat().st_size > height * width * 3
    with open_source(path) as source:
        assert not hasattr(source.segments, "cache")
        before = resident_bytes()
        for window in raster(height, width, 1024, 32):
            assert not source.read(*window).any()
        assert resident_bytes() - before < 24 << 20


def resident_bytes() -> int:
    """Memory of this process, mapped files included."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("needs /proc")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("memory_bytes", [1 << 20, 4000])
def test_threads(tmp_path: Path, memory_bytes: int) -> None:
    """Many threads get right pixels, and decode no segment twice while all of them fit."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", compression="zstd", rowsperstrip=3)
    wrong: list[tuple[int, ...]] = []
    with open_source(path, memory_bytes=memory_bytes) as source:

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(60):
                y0, y1 = sorted(rng.choice(HEIGHT + 1, 2, replace=False))
                x0, x1 = sorted(rng.choice(WIDTH + 1, 2, replace=False))
                if not np.array_equal(source.read(y0, y1, x0, x1), RGB[y0:y1, x0:x1]):
                    wrong.append((y0, y1, x0, x1))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert source.segments.cache.decoded == source.segment_count  # type: ignore[attr-defined]


def test_cache_bound() -> None:
    """Memory holds the segments used last, the file as many as two bands."""
    decoded: list[int] = []

    def get(cache: SegmentCache, key: int) -> None:
        def decode() -> np.ndarray:
            decoded.append(key)
            return np.full((10, 10, 1), key, np.uint8)

        assert (cache.block(key, decode, 2, 5, 3, 9) == key).all()

    memory = SegmentCache(slot_bytes=100, memory_bytes=300)
    for key in (0, 1, 2, 0, 3, 0, 1):
        get(memory, key)
        assert memory.memory_bytes <= 300
    assert decoded == [0, 1, 2, 3, 1]
    decoded.clear()
    spooled = SegmentCache(slot_bytes=100, memory_bytes=300)
    spooled.reserve(400)
    for key in [*range(8), *range(8), 8, 9, 2, 0]:
        get(spooled, key)
        assert spooled.memory_bytes == 0
        assert spooled.file_bytes <= 800
    assert decoded == [*range(8), 8, 9, 0]
    spooled.close()


def test_cache_forgets_failures() -> None:
    """A segment that failed is tried again, by every reader."""
    cache = SegmentCache(slot_bytes=4)

    def fail() -> np.ndarray:
        raise SourceError("damaged")

    for _ in range(2):
        with pytest.raises(SourceError):
            cache.block(0, fail, 0, 1, 0, 1)
    assert cache.block(0, lambda: np.ones((1, 1, 1), np.uint8), 0, 1, 0, 1) == 1


def test_no_room_for_the_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a temporary file the pixels are right still, and the log tells what it costs."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", compression="zstd", rowsperstrip=50)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with open_source(path, memory_bytes=4000) as source:
        check_windows(source, RGB)
    assert "temporary file unusable" in caplog.text


@pytest.mark.parametrize("positioned", [True, False])
def test_files_at_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, positioned: bool) -> None:
    """Parts of an array in a file, also on systems without reads at offsets."""
    if not positioned:
        monkeypatch.delattr(os, "preadv", raising=False)
        monkeypatch.delattr(os, "pwrite", raising=False)
    file = RandomAccessFile((tmp_path / "a").open("w+b", buffering=0))
    file.write(11, RGB.reshape(-1).data)
    assert file.size == 11 + RGB.nbytes
    for y0, y1, x0, x1 in windows(HEIGHT, WIDTH):
        np.testing.assert_array_equal(read_block(file, 11, RGB.shape, y0, y1, x0, x1), RGB[y0:y1, x0:x1])
    with pytest.raises(EOFError, match="1 bytes too early"):
        file.read(11, RGB.nbytes + 1)
    file.close()


# --- faults ----------------------------------------------------------------------------------------------------------


def read_all(path: Path) -> None:
    """Open a source and read all of it."""
    with open_source(path) as source:
        source.read(0, source.height, 0, source.width)


def expect(error: type[TileCodecError], words: str, path: Path) -> TileCodecError:
    """Reading fails with exactly this error, which names the file and says these words."""
    with pytest.raises(error, match=words) as caught:
        read_all(path)
    assert type(caught.value) is error
    assert str(path) in str(caught.value)
    return caught.value


def test_missing_file(tmp_path: Path) -> None:
    expect(MissingFileError, "no such file", tmp_path / "a.tif")


@pytest.mark.parametrize("content", [b"", b"hello world, this is text", b"\0" * 100, b"GIF89a", b"%PDF-1.7"], ids=repr)
def test_not_a_picture(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    assert "TIFF" in str(expect(SourceError, "not a picture", path).expected)


def test_folder_is_no_picture(tmp_path: Path) -> None:
    expect(SourceError, "not Zarr", tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    expect(SourceError, "regular file", tmp_path / "a")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(RGB))
    path.chmod(0)
    expect(StorageError, "cannot be read", path)


def test_not_a_source() -> None:
    with pytest.raises(SourceError, match="list"):
        open_source([1, 2])  # type: ignore[arg-type]


ALL_TIFF = {**COMPRESSIONS, "jpeg": {"compression": "jpeg"}}


@pytest.mark.parametrize("layout", ["tiled", "strips", "one strip"])
@pytest.mark.parametrize("compression", ALL_TIFF)
def test_truncated_tiff(tmp_path: Path, compression: str, layout: str) -> None:
    """Cut anywhere, a file is refused and never read as black."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", **LAYOUTS[layout], **ALL_TIFF[compression])
    data = path.read_bytes()
    for part in (5, 60, len(data) // 3, len(data) * 9 // 10, len(data) - 1):
        path.write_bytes(data[:part])
        expect(SourceError, ".", path)


def test_truncated_tiff_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(64, 64), compression="deflate")
    path.write_bytes(path.read_bytes()[:-10])
    expect(SourceError, r"1 of 24 strips or tiles.*tile \(row 3, col 5\), rows 192..203, columns 320..331", path)


@pytest.mark.parametrize("layout", ["tiled", "strips"])
@pytest.mark.parametrize("compression", [c for c in ALL_TIFF if c not in ("none", "lerc")])
def test_damaged_segment(tmp_path: Path, compression: str, layout: str) -> None:
    """A segment that is overwritten is named."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", **LAYOUTS[layout], **ALL_TIFF[compression])
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        offset, count = (v[2] for v in (tif.pages.first.dataoffsets, tif.pages.first.databytecounts))
    data[offset + 8 : offset + count] = bytes(255 for _ in range(count - 8))
    path.write_bytes(data)
    strip = "strip 2, rows 64..96" if compression == "jpeg" else "strip 2, rows 34..51"
    place = r"tile \(row 0, col 2\), rows 0..64, columns 96..144" if layout == "tiled" else strip
    expect(SourceError, f"damaged TIFF.*{place}", path)


def test_damaged_tiff_directories(tmp_path: Path) -> None:
    """Random damage to the directory gives pixels or a typed error, never another exception."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB[:40, :40], photometric="rgb", tile=(16, 16), compression="deflate", description="x")
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tif:
        head = min(tif.pages.first.dataoffsets)
    rng = np.random.default_rng(5)
    failed = 0
    for _ in range(400):
        damaged = bytearray(data)
        for position in rng.integers(0, head, 2):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            with open_source(path) as source:
                source.read(0, min(source.height, 100), 0, min(source.width, 100))
        except SourceError:
            failed += 1
        except MemoryError:  # a plain size too large to be read at once is not the file's fault
            continue
    assert failed > 100


@pytest.mark.parametrize(
    ("suffix", "encode"),
    [
        ("png", imagecodecs.png_encode),
        ("jpg", imagecodecs.jpeg8_encode),
        ("webp", imagecodecs.webp_encode),
        ("jxl", imagecodecs.jpegxl_encode),
        ("avif", lambda a: imagecodecs.avif_encode(a, speed=10)),
        ("jp2", imagecodecs.jpeg2k_encode),
        ("bmp", imagecodecs.bmp_encode),
    ],
)
def test_truncated_picture(tmp_path: Path, suffix: str, encode: Callable[[np.ndarray], bytes]) -> None:
    path = tmp_path / f"a.{suffix}"
    data = encode(RGB)
    for part in (len(data) - 20, len(data) * 9 // 10, len(data) // 2, 200, 33):
        path.write_bytes(data[:part])
        expect(SourceError, "damaged", path)


def test_jpeg_damage() -> None:
    """Whole streams pass, baseline and progressive; cut ones and foreign markers in the scan do not."""
    baseline, progressive = imagecodecs.jpeg8_encode(RGB), progressive_jpeg()
    assert progressive.count(b"\xff\xda") > 1
    for data in (baseline, progressive):
        assert jpeg_damage(data) is None
        assert jpeg_damage(data + b"padding") is None
        assert jpeg_damage(data[:-2]) is not None
        middle = len(data) * 3 // 4
        assert jpeg_damage(data[:middle] + b"\xff\x37" + data[middle + 2 :]) is not None


def progressive_jpeg() -> bytes:
    """A progressive JPEG has several scans with tables between them."""
    return pillow(PIL.Image.fromarray(RGB), "JPEG", progressive=True)


@pytest.mark.parametrize(
    ("array", "options", "words"),
    [
        (RGB.astype(np.uint16), {"photometric": "rgb"}, "uint16"),
        (GREY.astype(np.float32), {"photometric": "minisblack"}, "float32"),
        (GREY > 100, {"photometric": "minisblack"}, "1 bit"),
        (RGB[..., :2], {"photometric": "minisblack", "planarconfig": "contig"}, "got: 2"),
        (np.dstack([RGB, RGB]), {"photometric": "rgb"}, "got: 6"),
        (RGBA, {"photometric": "separated"}, "SEPARATED"),
        (np.stack([RGB, RGB]), {"photometric": "rgb"}, "stack"),
        (np.stack([GREY] * 16), {"photometric": "minisblack", "volumetric": True, "tile": (16, 16, 16)}, "stack"),
    ],
    ids=["uint16", "float32", "bilevel", "2 bands", "6 bands", "cmyk", "2 pages", "volume"],
)
def test_unsupported_tiff(tmp_path: Path, array: np.ndarray, options: dict[str, Any], words: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, **options)
    error = expect(UnsupportedPixelsError, words, path)
    if "stack" not in words:
        assert "uint8 with 1, 3 or 4 bands" in str(error.expected)


def test_unsupported_tiff_compression(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages.first.tags[259].overwrite(32809)  # ThunderScan
    assert "gdal_translate" in str(expect(UnsupportedPixelsError, "compression", path).hint)


@pytest.mark.parametrize("tag", [256, 257])
def test_tiff_without_pixels(tmp_path: Path, tag: int) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages.first.tags[tag].overwrite(0)
    expect(SourceError, ".", path)


def test_tiff_never_written(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(128, 128), compression="deflate")
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages.first.tags[325].overwrite([0] * 6)
    expect(SourceError, "never written", path)


def test_bif_is_not_stitched(tmp_path: Path) -> None:
    path = tmp_path / "a.bif"
    xml = b'<?xml version="1.0"?><Metadata><iScan Magnification="20" ScanRes="0.46"/></Metadata>'
    tags = [(700, 1, len(xml), xml, True)]
    tifffile.imwrite(
        path, RGB, photometric="rgb", tile=(64, 64), metadata=None, extratags=tags, software="ScanOutputManager 1.1"
    )
    with tifffile.TiffFile(path) as tif:
        assert tif.is_bif
    expect(UnsupportedPixelsError, "Ventana", path)


def test_giant_strip(tmp_path: Path) -> None:
    """A compressed strip above the limit is refused with the remedy; an uncompressed one is simply read."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY, photometric="minisblack", compression="deflate", rowsperstrip=HEIGHT)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        for tag, value in ((256, 40000), (257, 30000), (278, 30000)):
            tif.pages.first.tags[tag].overwrite(value)
    assert "gdal_translate -co TILED=YES" in str(expect(SourceError, "40000 x 30000 px", path).hint)
    path = tmp_path / "b.tif"
    tifffile.imwrite(path, shape=(30000, 40000), dtype=np.uint8, photometric="minisblack", rowsperstrip=30000)
    with open_source(path) as source:
        assert source.read(29990, 30000, 39000, 40000).shape == (10, 1000, 3)


def test_picture_above_the_limit(tmp_path: Path) -> None:
    """The header is enough to refuse a picture that would take too much memory."""
    path = tmp_path / "a.png"
    path.write_bytes(png(40000, 30000, 8, 2, b""))
    expect(SourceError, "too large", path)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("16 bit", imagecodecs.png_encode(RGB.astype(np.uint16) * 257), "16 bits"),
        ("grey and alpha", imagecodecs.png_encode(np.ascontiguousarray(RGB[..., :2])), "got: 2"),
        ("cmyk", imagecodecs.jpeg8_encode(RGBA), "CMYK"),
        ("12 bit", imagecodecs.avif_encode(RGB.astype(np.uint16) * 4, bitspersample=10), "uint16"),
        ("bmp", pillow(PIL.Image.fromarray(GREY > 100), "BMP"), "1 bits"),
        ("jxl", imagecodecs.jpegxl_encode(RGB.astype(np.uint16) * 257), "uint16"),
    ],
)
def test_unsupported_pictures(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    expect(UnsupportedPixelsError, words, path)


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.zeros((5, 5), np.uint16), UnsupportedPixelsError),
        (np.zeros((5, 5), bool), UnsupportedPixelsError),
        (np.zeros((5, 5, 2), np.uint8), UnsupportedPixelsError),
        (np.zeros((2, 5, 5), np.uint8), UnsupportedPixelsError),
        (np.zeros(5, np.uint8), UnsupportedPixelsError),
        (np.zeros((2, 5, 5, 3), np.uint8), UnsupportedPixelsError),
        (np.zeros((0, 5, 3), np.uint8), SourceError),
        (np.zeros((5, 0), np.uint8), SourceError),
    ],
    ids=lambda v: f"{v.shape} {v.dtype}" if isinstance(v, np.ndarray) else "",
)
@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
def test_unsupported_arrays(kind: str, array: np.ndarray, error: type[SourceError]) -> None:
    source: Any = array
    if kind == "dask":
        source = dask.array.from_array(array)
    if kind == "zarr":
        source = zarr.create_array({}, shape=array.shape, dtype=array.dtype, chunks=(1,) * array.ndim)
    with pytest.raises(error) as caught:
        open_source(source)
    assert type(caught.value) is error


def test_dask_of_unknown_shape() -> None:
    array = dask.array.from_array(GREY)
    with pytest.raises(SourceError, match="unknown shape"):
        open_source(array[array[:, 0] > 100])


def test_dask_that_lies() -> None:
    array = dask.array.from_array(RGB).map_blocks(lambda b: b.astype(np.float32), dtype=np.uint8)
    with open_source(array) as source, pytest.raises(SourceError, match="float32"):
        source.read(0, 1, 0, 1)


def test_zarr_faults(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    array = group.create_array("pixels", data=RGB, chunks=(64, 64, 3))
    assert "path of one array" in str(expect(SourceError, "no picture.*pixels", tmp_path / "a.zarr").hint)
    for metadata in ({"datasets": []}, {"datasets": [{"path": "absent"}]}, {"axes": "q"}, 5):
        group.attrs["ome"] = {"multiscales": [metadata]}
        expect(SourceError, ".", tmp_path / "a.zarr")
    long = group.create_array("long", data=np.zeros((2, 1, 1, 9, 9), np.uint8))
    group.attrs["ome"] = {"multiscales": [{"datasets": [{"path": "long"}]}]}
    expect(UnsupportedPixelsError, "t: 2", tmp_path / "a.zarr")
    assert long.shape[0] == 2

    chunk_path = tmp_path / "a.zarr" / "pixels" / "c" / "0" / "1" / "0"
    chunk_path.write_bytes(chunk_path.read_bytes()[:-100])
    expect(SourceError, "chunk cannot be decoded.*rows 0..203, columns 0..331", tmp_path / "a.zarr" / "pixels")
    description = tmp_path / "a.zarr" / "pixels" / "zarr.json"
    description.write_text(description.read_text()[:100])
    expect(SourceError, "metadata", tmp_path / "a.zarr" / "pixels")
    description.write_text(json.dumps({"zarr_format": 3, "node_type": "array"}))
    expect(SourceError, "metadata", tmp_path / "a.zarr" / "pixels")
    assert array.shape == RGB.shape


@pytest.mark.parametrize(
    "window",
    [(0, 0, 0, 5), (5, 4, 0, 5), (-1, 5, 0, 5), (0, HEIGHT + 1, 0, 5), (0, 5, 0, WIDTH + 1), (0, 5, WIDTH, WIDTH)],
)
def test_region_error(tmp_path: Path, window: tuple[int, int, int, int]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", compression="lzw")
    for kind in (RGB, path):
        with open_source(kind) as source, pytest.raises(RegionError, match="outside"):
            source.read(*window)


def test_import_is_light() -> None:
    """The package of sources imports neither torch nor a reader before one is needed."""
    code = "import sys, tilecodec.source; print([m for m in ('torch', 'tifffile', 'zarr', 'dask') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"[]"


def test_file_shrinks_while_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb")
    with open_source(path) as source:
        path.write_bytes(io.BytesIO(path.read_bytes()[:5000]).getvalue())
        with pytest.raises(SourceError, match="truncated"):
            source.read(HEIGHT - 1, HEIGHT, 0, WIDTH)
