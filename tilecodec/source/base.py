"""What every source is: a picture that is read window by window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tilecodec.errors import RegionError, SourceError, UnsupportedPixelsError

Pixels = NDArray[np.uint8]

BANDS: Final = (1, 3, 4)
"""Band counts that are read: grey, RGB, RGB and a fourth band that is dropped."""
SUPPORTED: Final = "uint8 with 1, 3 or 4 bands"
WHOLE_LIMIT: Final = 1 << 30
"""Most pixels of anything that can only be decoded in one piece: a PNG, a strip, a chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Georeference:
    """Where the picture lies on the Earth."""

    epsg: int | None
    """EPSG code of the coordinate reference system, where it has one."""
    crs_wkt: str | None = None
    """The reference system as WKT, where the file gives it so."""
    transform: tuple[float, float, float, float, float, float]
    """a, b, c, d, e, f: the upper left corner of pixel (y, x) lies at X = a·x + b·y + c, Y = d·x + e·y + f."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceMetadata:
    """What a source tells beyond its pixels."""

    pixel_size_um: tuple[float, float] | None = None
    """Height and width of a pixel in micrometres."""
    icc_profile: bytes | None = None
    """The embedded ICC profile, verbatim."""
    properties: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Text properties, verbatim; names as OpenSlide gives them where it has one."""
    georeference: Georeference | None = None
    earlier_losses: tuple[str, ...] = ()
    """Lossy codecs the pixels came through, as far as the file tells: ``jpeg``, ``jpeg2000``, ``webp`` …"""


class Source(Protocol):
    """A picture that is read window by window, from any thread."""

    @property
    def name(self) -> str:
        """Path or kind, for messages."""

    @property
    def height(self) -> int:
        """Rows of pixels."""

    @property
    def width(self) -> int:
        """Columns of pixels."""

    @property
    def metadata(self) -> SourceMetadata:
        """What is known beyond the pixels."""

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Pixels:
        """Return one window.

        Args:
            y0: first row.
            y1: row after the last.
            x0: first column.
            x1: column after the last.

        Returns:
            (y1 - y0, x1 - x0, 3) uint8, C-contiguous, RGB, the caller's own copy.

        Raises:
            RegionError: the window is empty or not inside the picture.
            SourceError: the pixels there are damaged.
            StorageError: the file cannot be read.
        """

    def close(self) -> None:
        """Give back files and memory; the source cannot be read afterwards."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_window(source: Source, y0: int, y1: int, x0: int, x1: int) -> None:
    """Refuse a window that is empty or not inside the picture.

    Raises:
        RegionError: it is.
    """
    if not (0 <= y0 < y1 <= source.height and 0 <= x0 < x1 <= source.width):
        raise RegionError(
            "window outside the picture",
            got=f"rows {y0}..{y1}, columns {x0}..{x1}",
            expected=f"within rows 0..{source.height}, columns 0..{source.width}, at least one pixel",
            where=source.name,
        )


def check_pixels(name: str, *, height: int, width: int, bands: int, dtype: object) -> None:
    """Refuse sizes and pixel kinds that cannot be encoded.

    Raises:
        SourceError: no pixels at all.
        UnsupportedPixelsError: another dtype or band count than ``SUPPORTED``.
    """
    if height < 1 or width < 1:
        raise SourceError("picture without pixels", got=f"{width} x {height} px", expected="at least 1 x 1", where=name)
    if str(dtype) != "uint8":
        raise UnsupportedPixelsError("unsupported pixel type", got=str(dtype), expected=SUPPORTED, where=name)
    if bands not in BANDS:
        raise UnsupportedPixelsError("unsupported number of bands", got=bands, expected=SUPPORTED, where=name)


def dropped_band(bands: int, kind: str = "alpha") -> dict[str, str]:
    """Return the property that tells of a fourth band that is not read."""
    return {"tilecodec.dropped-band": f"4: {kind}"} if bands == 4 else {}


def paint(block: Pixels, out: Pixels, lut: Pixels | None = None) -> None:
    """Write raw samples as RGB.

    Args:
        block: (h, w, s) uint8, s one of ``BANDS``; a fourth band is dropped.
        out: (h, w, 3) uint8, written.
        lut: (256, 3) uint8 colours of one-band samples; None: grey.
    """
    if block.shape[2] >= 3:
        out[...] = block[..., :3]
    elif lut is None:
        out[...] = block
    else:
        np.take(lut, block[..., 0], axis=0, out=out)
