"""Size, bands and colour profile of picture files, read from their first bytes, before anything is decoded."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Final, Literal

from tilecodec.errors import SourceError

Kind = Literal["png", "jpeg", "webp", "jpegxl", "avif", "bmp", "jpeg2k"]
ICC_LIMIT: Final = 16 << 20
"""Most bytes of a colour profile that is unpacked."""
_JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A marker that ends the entropy-coded bytes of a scan: neither a stuffed byte, nor a restart, nor a fill byte."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What a picture file says of itself."""

    width: int
    """Columns of pixels."""
    height: int
    """Rows of pixels."""
    bands: int | None = None
    """Stored samples per pixel; None: not told by the header."""
    bits: int | None = None
    """Bits of a sample; None: not told by the header."""
    lossy: bool = True
    """Whether the coding may have lost something."""
    icc_profile: bytes | None = None
    """Embedded ICC profile."""
    orientation: int = 1
    """EXIF orientation, 1 to 8; 1: as stored."""


def picture_kind(start: bytes) -> Kind | None:
    """Return the kind of a picture file from its first 32 bytes, or None if it is none that is read here."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "webp"
    if start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")):
        return "jpegxl"
    if start[4:8] == b"ftyp" and b"avif" in start[8:32]:
        return "avif"
    if start.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")):
        return "jpeg2k"
    if start.startswith(b"BM"):
        return "bmp"
    return None


def parse_header(kind: Kind, data: bytes, name: str) -> Header:
    """Read the header of a picture file.

    Args:
        kind: from ``picture_kind``.
        data: the file's bytes.
        name: the file's name, for messages.

    Raises:
        SourceError: the header is cut off or makes no sense.
    """
    parse = {
        "png": _png,
        "jpeg": _jpeg,
        "webp": _webp,
        "jpegxl": _jpegxl,
        "avif": _avif,
        "bmp": _bmp,
        "jpeg2k": _jpeg2k,
    }[kind]
    try:
        return parse(data)
    except (struct.error, IndexError, ValueError, zlib.error) as error:
        raise SourceError(f"damaged {kind} header", got=str(error), where=name) from error


def jpeg_damage(data: bytes | bytearray) -> str | None:
    """Say what is wrong with the marker structure of a JPEG stream, or None.

    The decoder fills the rest of a stream that was cut off with grey, so the end mark is looked for here.

    Source: ITU-T T.81, annex B (marker segments).
    """
    position, in_scan = 2, False
    while True:
        if in_scan:
            found = _JPEG_MARKER.search(data, position)
            if found is None:
                return f"JPEG stream is cut off: {len(data)} bytes without an end mark"
            position = found.start()
        elif data[position : position + 1] not in (b"\xff", b""):
            return f"JPEG marker expected at byte {position}"
        while data[position + 1 : position + 2] == b"\xff":
            position += 1
        if data[position + 1 : position + 2] == b"\xd9":
            return None
        if position + 4 > len(data):
            return f"JPEG stream is cut off: {len(data)} bytes without an end mark"
        marker, length = struct.unpack_from(">xBH", data, position)
        if marker < 0xC0 or 0xD0 <= marker <= 0xD8:
            return f"unexpected JPEG marker 0x{marker:02x} at byte {position}"
        position += 2 + length
        in_scan = marker == 0xDA


def _png(data: bytes) -> Header:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    bands = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(colour)
    if bands is None:
        raise ValueError(f"colour type {colour}")
    icc, position = None, 8
    while position + 8 <= len(data):
        length, tag = struct.unpack_from(">I4s", data, position)
        if tag == b"iCCP":
            packed = data[position + 8 : position + 8 + length].split(b"\0", 1)[1][1:]
            icc = zlib.decompressobj().decompress(packed, ICC_LIMIT)
        if tag == b"tRNS" and colour in (0, 2, 3):
            bands += 1
        if tag == b"IDAT":
            break
        position += 12 + length
    return Header(width=width, height=height, bands=bands, bits=max(bits, 8), lossy=False, icc_profile=icc)


def _jpeg(data: bytes) -> Header:
    position, orientation = 2, 1
    profile: dict[int, bytes] = {}
    while True:
        while data[position + 1] == 0xFF:
            position += 1
        marker, length = struct.unpack_from(">xBH", data, position)
        body = data[position + 4 : position + 2 + length]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, bands = struct.unpack_from(">BHHB", body)
            icc = b"".join(profile[i] for i in sorted(profile)) or None
            return Header(
                width=width,
                height=height,
                bands=bands,
                bits=bits,
                lossy=marker not in (0xC3, 0xC7, 0xCB, 0xCF),
                icc_profile=icc,
                orientation=orientation,
            )
        if marker in (0xD9, 0xDA) or data[position] != 0xFF:
            raise ValueError(f"no frame header before byte {position}")
        if marker == 0xE2 and body.startswith(b"ICC_PROFILE\0"):
            profile[body[12]] = body[14:]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = _exif_orientation(body[6:])
        position += 2 + length


def _exif_orientation(exif: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 10:
        return 1
    offset = struct.unpack_from(order + "I", exif, 4)[0]
    if offset + 2 > len(exif):
        return 1
    count = struct.unpack_from(order + "H", exif, offset)[0]
    for start in range(offset + 2, min(offset + 2 + 12 * count, len(exif) - 11), 12):
        tag, _, _, value = struct.unpack_from(order + "HHIH", exif, start)
        if tag == 0x0112:
            return int(value) if 1 <= value <= 8 else 1
    return 1


def _webp(data: bytes) -> Header:
    chunk = data[12:16]
    if chunk == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        return Header(width=width, height=height, lossy=b"VP8L" not in data[30:64], bits=8, icc_profile=_webp_icc(data))
    if chunk == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return Header(width=1 + (bits & 0x3FFF), height=1 + (bits >> 14 & 0x3FFF), bits=8, lossy=False)
    width, height = struct.unpack_from("<HH", data, 26)
    return Header(width=width & 0x3FFF, height=height & 0x3FFF, bits=8)


def _webp_icc(data: bytes) -> bytes | None:
    tag, length = struct.unpack_from("<4sI", data, 30)
    return data[38 : 38 + length] if tag == b"ICCP" else None


def _bmp(data: bytes) -> Header:
    width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
    return Header(width=abs(width), height=abs(height), lossy=False, bits=8 if bits in (8, 24, 32) else bits)


def _jpeg2k(data: bytes) -> Header:
    start = data.find(b"\xff\x4f\xff\x51", 0, 1 << 20)
    if start < 0:
        raise ValueError("no code stream in the first megabyte")
    x1, y1, x0, y0 = struct.unpack_from(">IIII", data, start + 8)
    bands, depth = struct.unpack_from(">HB", data, start + 40)
    style = data.find(b"\xff\x52", start, start + (1 << 16))
    return Header(
        width=x1 - x0,
        height=y1 - y0,
        bands=bands,
        bits=(depth & 0x7F) + 1,
        lossy=style < 0 or data[style + 13] == 0,
    )


def _jpegxl(data: bytes) -> Header:
    if data[:2] == b"\xff\x0a":
        return _jpegxl_stream(data[2:32])
    position = 0
    while position + 8 <= len(data):
        size, tag = struct.unpack_from(">I4s", data, position)
        begin = position + 8
        if size == 1:
            size, begin = struct.unpack_from(">Q", data, begin)[0], begin + 8
        if tag in (b"jxlc", b"jxlp"):
            return _jpegxl_stream(data[begin + (4 if tag == b"jxlp" else 0) + 2 :][:32])
        if size < 8:
            break
        position += size
    raise ValueError("no code stream box")


def _jpegxl_stream(data: bytes) -> Header:
    """Read the size header.

    Source: ISO/IEC 18181-1, SizeHeader.
    """
    bits, used = int.from_bytes(data.ljust(32, b"\0"), "little"), 0

    def take(count: int) -> int:
        nonlocal used
        value = bits >> used & ((1 << count) - 1)
        used += count
        return value

    def side(small: bool) -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    if len(data) < 10:
        raise ValueError("cut off")
    small = bool(take(1))
    height = side(small)
    ratio = take(3)
    if ratio == 0:
        return Header(height=height, width=side(small))
    over, under = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return Header(height=height, width=height * over // under)


def _avif(data: bytes) -> Header:
    sizes = [struct.unpack_from(">II", data, found.end() + 4) for found in re.finditer(rb"ispe", data[: 1 << 16])]
    if not sizes:
        raise ValueError("no image size in the first 64 KiB")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return Header(width=width, height=height)
