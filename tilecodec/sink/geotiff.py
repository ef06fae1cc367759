"""GeoTIFF tags: where a picture lies on the Earth, for the TIFF writer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tilecodec.sink.tiff import Tag

if TYPE_CHECKING:
    from tilecodec.source import Georeference

_DOUBLE: Final = 12
_SHORT: Final = 3
_PIXEL_SCALE: Final = 33550
_TIE_POINT: Final = 33922
_TRANSFORMATION: Final = 34264
_KEY_DIRECTORY: Final = 34735
_PIXEL_IS_AREA: Final = 1
_USER_DEFINED: Final = 32767
_MAX_CODE: Final = 65535


def geotiff_tags(georeference: Georeference, *, height: int, width: int) -> tuple[Tag, ...]:
    """Return the tags of a picture's place: its transform and, where known, its EPSG code.

    A reference system that is known as WKT only is left out: GeoTIFF has no place for it.

    Args:
        georeference: of the picture written.
        height: rows of the picture.
        width: columns of the picture.

    Source: OGC GeoTIFF 1.1, sections 7.1 to 7.4 and annex B.6.
    """
    a, b, c, d, e, f = georeference.transform
    tags: list[Tag]
    if b == 0 and d == 0 and a > 0 and e < 0:
        tags = [
            (_PIXEL_SCALE, _DOUBLE, 3, (a, -e, 0.0), True),
            (_TIE_POINT, _DOUBLE, 6, (0.0, 0.0, 0.0, c, f, 0.0), True),
        ]
    else:
        matrix = (a, b, 0.0, c, d, e, 0.0, f, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
        tags = [(_TRANSFORMATION, _DOUBLE, 16, matrix, True)]
    keys = [(1024, _USER_DEFINED), (1025, _PIXEL_IS_AREA)]
    epsg = georeference.epsg
    if epsg is not None and 0 < epsg <= _MAX_CODE:
        geographic = _is_geographic(georeference, height, width)
        keys[0] = (1024, 2 if geographic else 1)
        keys.append((2048 if geographic else 3072, epsg))
    directory = [1, 1, 0, len(keys)]
    for key, value in keys:
        directory += [key, 0, 1, value]
    tags.append((_KEY_DIRECTORY, _SHORT, len(directory), tuple(directory), True))
    return tuple(tags)


def _is_geographic(georeference: Georeference, height: int, width: int) -> bool:
    """Tell a system in degrees from one in metres: by WKT if there is one, else by the code and the extent."""
    wkt = (georeference.crs_wkt or "").lstrip().upper()
    if wkt:
        return wkt.startswith(("GEOGCS", "GEOGCRS", "GEODCRS"))
    epsg = georeference.epsg or 0
    if 2000 <= epsg < 4000 or 20000 <= epsg < 32767:  # national grids, UTM
        return False
    a, b, c, d, e, f = georeference.transform
    xs = [a * x + b * y + c for x in (0, width) for y in (0, height)]
    ys = [d * x + e * y + f for x in (0, width) for y in (0, height)]
    return all(abs(x) <= 360 for x in xs) and all(abs(y) <= 90.01 for y in ys)
