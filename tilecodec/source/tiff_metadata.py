"""What a TIFF file tells beyond its pixels: pixel size, place on Earth, colour profile, text properties."""

from __future__ import annotations

import re
from typing import Any, Final

from tifffile import TiffFile, TiffPage

from tilecodec.source.base import Georeference, SourceMetadata, dropped_band
from tilecodec.source.headers import parse_header, picture_kind
from tilecodec.source.tiff_layout import Layout

_TEXT_TAGS: Final = {
    269: "tiff.DocumentName",
    270: "tiff.ImageDescription",
    271: "tiff.Make",
    272: "tiff.Model",
    305: "tiff.Software",
    306: "tiff.DateTime",
    315: "tiff.Artist",
    316: "tiff.HostComputer",
    33432: "tiff.Copyright",
    42112: "tiff.GDAL_METADATA",
    42113: "tiff.GDAL_NODATA",
}
_LOSSES: Final = {
    6: "jpeg",
    7: "jpeg",
    33007: "jpeg",
    34892: "jpeg",
    33003: "jpeg2000",
    33005: "jpeg2000",
    34712: "jpeg2000",
    50001: "webp",
    50002: "jpegxl",
    52546: "jpegxl",
    22610: "jpegxr",
    34934: "jpegxr",
}
"""TIFF compression → the lossy codec's name."""
_UNIT_UM: Final = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
_RESOLUTION_UM: Final = {2: 25400.0, 3: 10000.0}
"""ResolutionUnit → micrometres: inch, centimetre."""
_USER_DEFINED: Final = 32767


def read_metadata(tif: TiffFile, layout: Layout, first_segment: bytes, name: str) -> SourceMetadata:
    """Collect the metadata of a picture.

    Args:
        tif: the open file.
        layout: the picture.
        first_segment: first bytes of one of its segments, which tell lossy from lossless coding.
        name: the file's name, for messages.
    """
    page = layout.page
    properties = _properties(tif, page)
    properties |= dropped_band(layout.bands, "alpha" if any(int(e) for e in page.extrasamples) else "unspecified")
    geokeys = _geokeys(page)
    properties |= {f"geotiff.{key}": str(value) for key, value in geokeys.items()}
    size = _pixel_size(page, layout, properties)
    icc = page.iccprofile
    return SourceMetadata(
        pixel_size_um=size,
        icc_profile=bytes(icc) if icc else None,
        properties=properties,
        georeference=georeference(geokeys),
        earlier_losses=_losses(page, first_segment, name),
    )


def _losses(page: TiffPage, first_segment: bytes, name: str) -> tuple[str, ...]:
    loss = _LOSSES.get(page.compression)
    if loss is None:
        return ()
    kind = picture_kind(first_segment[:32])
    lossy = kind is None or parse_header(kind, first_segment, name).lossy
    return (loss,) if lossy else ()


def _properties(tif: TiffFile, page: TiffPage) -> dict[str, str]:
    found: dict[str, str] = {}
    for code, key in _TEXT_TAGS.items():
        value = page.tags.valueof(code)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str) and value:
            found[key] = value
    orientation = page.tags.valueof(274, default=1)
    if orientation != 1:
        found["tiff.Orientation"] = str(int(orientation))
    if 282 in page.tags and 283 in page.tags:
        found["tiff.XResolution"], found["tiff.YResolution"] = (f"{r:.17g}" for r in page.get_resolution())
        found["tiff.ResolutionUnit"] = {2: "inch", 3: "centimeter"}.get(page.resolutionunit, "none")
    if tif.is_svs:
        found |= _aperio(page.description)
    if tif.is_ndpi:
        found |= _hamamatsu(page)
    return found


def _aperio(description: str) -> dict[str, str]:
    """Return the ``key = value`` pairs of an Aperio description, and OpenSlide's names of some."""
    found = {"openslide.vendor": "aperio"}
    for item in description.split("|")[1:]:
        key, separator, value = item.partition("=")
        if separator:
            found[f"aperio.{key.strip()}"] = value.strip()
    if "aperio.MPP" in found:
        found["openslide.mpp-x"] = found["openslide.mpp-y"] = found["aperio.MPP"]
    if "aperio.AppMag" in found:
        found["openslide.objective-power"] = found["aperio.AppMag"]
    return found


def _hamamatsu(page: TiffPage) -> dict[str, str]:
    found = {"openslide.vendor": "hamamatsu"}
    for key, value in (page.ndpi_tags or {}).items():
        if isinstance(value, str | int | float):
            found[f"hamamatsu.{key}"] = str(value)
    if "hamamatsu.Magnification" in found:
        found["openslide.objective-power"] = found["hamamatsu.Magnification"]
    return found


def _pixel_size(page: TiffPage, layout: Layout, properties: dict[str, str]) -> tuple[float, float] | None:
    """Return height and width of a pixel in micrometres: by Aperio, OME or the resolution tags, in this order."""
    mpp = _positive(properties.get("openslide.mpp-x"))
    if mpp:
        return mpp, mpp
    ome = _ome_pixel_size(page.description, layout.height, layout.width) if "<OME" in page.description[:4096] else None
    if ome:
        return ome
    unit = _RESOLUTION_UM.get(page.resolutionunit) if 282 in page.tags and 283 in page.tags else None
    if unit is None:
        return None
    x, y = page.get_resolution()
    return (unit / y, unit / x) if x > 0 and y > 0 else None


def _ome_pixel_size(xml: str, height: int, width: int) -> tuple[float, float] | None:
    """Return the physical pixel size of the OME image that has the picture's size."""
    for element in re.finditer(r"<(?:\w+:)?Pixels\b[^>]*>", xml):
        values = dict(re.findall(r"(\w+)\s*=\s*[\"']([^\"']*)[\"']", element.group()))
        if values.get("SizeX") != str(width) or values.get("SizeY") != str(height):
            continue
        sizes = []
        for axis in "YX":
            size = _positive(values.get(f"PhysicalSize{axis}"))
            unit = _UNIT_UM.get(values.get(f"PhysicalSize{axis}Unit", "µm"))
            if size is None or unit is None:
                return None
            sizes.append(size * unit)
        return sizes[0], sizes[1]
    return None


def _positive(text: str | None) -> float | None:
    try:
        value = float(text) if text else 0.0
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def _geokeys(page: TiffPage) -> dict[str, Any]:
    """Return the GeoTIFF keys and transformation tags by name; empty where there are none or they are damaged."""
    try:
        return dict(page.geotiff_tags or {})
    except (ValueError, LookupError, TypeError):
        return {}


def georeference(geokeys: dict[str, Any]) -> Georeference | None:
    """Return the place on Earth from GeoTIFF keys as tifffile names them, or None.

    Source: OGC GeoTIFF 1.1, annexes B.6 (transformations) and C.1 (raster types).
    """
    transform = _transform(geokeys)
    if transform is None:
        return None
    projected = geokeys.get("ProjectedCSTypeGeoKey")
    code = int(geokeys.get("GeographicTypeGeoKey", 0) if projected is None else projected)
    epsg = None if code in (0, _USER_DEFINED) else code
    a, b, c, d, e, f = transform
    if int(geokeys.get("GTRasterTypeGeoKey", 1)) == 2:  # tie points name pixel centres
        c, f = c - (a + b) / 2, f - (d + e) / 2
    return Georeference(epsg=epsg, transform=(a, b, c, d, e, f))


def _transform(geokeys: dict[str, Any]) -> tuple[float, float, float, float, float, float] | None:
    matrix = geokeys.get("ModelTransformation")
    if matrix is not None:
        (a, b, _, c), (d, e, _, f) = matrix[0], matrix[1]
        return float(a), float(b), float(c), float(d), float(e), float(f)
    scale, tie = geokeys.get("ModelPixelScale"), geokeys.get("ModelTiepoint")
    if scale is None or tie is None or len(scale) < 2 or len(tie) < 6 or isinstance(tie[0], list):
        return None
    column, row, _, x, y, _ = tie[:6]
    a, e = float(scale[0]), -float(scale[1])
    return a, 0.0, float(x) - column * a, 0.0, e, float(y) - row * e
