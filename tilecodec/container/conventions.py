"""Attributes of the GeoZarr conventions: where the picture lies on the Earth.

Source: the zarr-conventions ``spatial`` (v0.1), ``geo-proj`` (v0.1) and ``multiscales`` repositories; conventions are
identified by uuid.
"""

from __future__ import annotations

from typing import Any, Final

from tilecodec.source import Georeference

SPATIAL: Final = {"uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "name": "spatial"}
PROJ: Final = {"uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f", "name": "proj"}
MULTISCALES: Final = {"uuid": "d35379db-88df-4056-af3a-620245f8e347", "name": "multiscales"}


def scaled(transform: tuple[float, ...], factor: int) -> list[float]:
    """The affine transform of a level whose pixels are ``factor`` times larger; the corner stays."""
    a, b, c, d, e, f = transform
    return [a * factor, b * factor, c, d * factor, e * factor, f]


def geo_attributes(geo: Georeference, levels: list[tuple[str, int, int]]) -> dict[str, Any]:
    """The group's attributes for a georeferenced picture.

    Args:
        geo: reference system and transform of level 0.
        levels: path, height and width of each level, largest first.
    """
    attributes: dict[str, Any] = {"zarr_conventions": [SPATIAL, PROJ, MULTISCALES]}
    if geo.epsg is not None:
        attributes["proj:code"] = f"EPSG:{geo.epsg}"
    elif geo.crs_wkt is not None:
        attributes["proj:wkt2"] = geo.crs_wkt
    _, height, width = levels[0]
    a, b, c, d, e, f = geo.transform
    corners = [(a * x + b * y + c, d * x + e * y + f) for x in (0, width) for y in (0, height)]
    attributes |= {
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": list(geo.transform),
        "spatial:shape": [height, width],
        "spatial:bbox": [
            min(p[0] for p in corners),
            min(p[1] for p in corners),
            max(p[0] for p in corners),
            max(p[1] for p in corners),
        ],
        "spatial:registration": "pixel",
    }
    layout = []
    for n, (path, rows, cols) in enumerate(levels):
        item: dict[str, Any] = {
            "asset": path,
            "spatial:transform": scaled(geo.transform, 2**n),
            "spatial:shape": [rows, cols],
        }
        if n:
            item |= {
                "derived_from": levels[n - 1][0],
                "transform": {"scale": [2.0, 2.0], "translation": [0.0, 0.0]},
                "resampling_method": "average",
            }
        layout.append(item)
    attributes["multiscales"] = {"layout": layout}
    return attributes
