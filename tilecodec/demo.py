"""The demo: a drawn landscape is encoded, read in, decoded, measured and shown beside what came back."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tilecodec.errors import StorageError, TargetExistsError, TileCodecError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tilecodec.api import Progress
    from tilecodec.source import Source

    Pixels = npt.NDArray[np.uint8]

SMALLEST: Final = 256
LARGEST: Final = 65536
REGIONS: Final = 8
"""Random regions that are read back and compared with the full decode."""
MEASURED: Final = 8192
"""Side of the square in the middle that PSNR and MS-SSIM are measured on, pixels: all of a smaller picture."""
_PANEL: Final = 766
_GAP: Final = 4
_HEIGHT: Final = 768
"""Width of the side-by-side picture's halves, width of the bar between them, height: 1536 × 768 pixels in all."""
_NAMES: Final = ("scene.tif", "scene.zarr", "scene-decoded.tif", "side-by-side.png")
_REPORT: Final = "tilecodec-demo.json"
"""Written first: a folder that has it is the demo's own, and may be written again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoReport:
    """What the demo measured."""

    folder: str
    files: tuple[str, ...]
    width: int
    height: int
    raw_bytes: int
    """Of the pixels, three a pixel."""
    tiff_bytes: int
    """Of the deflated TIFF the landscape was encoded from."""
    bytes: int
    """Of the container."""
    ratio: float
    """Raw bytes over container bytes."""
    bpp: float
    psnr: float | None
    """dB; None if the pictures are equal."""
    ms_ssim: float
    encode_megapixels_per_second: float
    decode_megapixels_per_second: float
    peak_memory_bytes: int
    """Of the whole process until the decode was done."""
    regions: int
    """Random regions read back, each equal to the same region of the full decode."""
    model: str
    quality: float

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for a person to read."""
        psnr = "equal" if self.psnr is None else f"{self.psnr:.2f} dB"
        return [
            ("landscape", f"{self.width:,} × {self.height:,} px"),
            ("raw pixels", f"{self.raw_bytes:,} bytes"),
            ("deflated TIFF", f"{self.tiff_bytes:,} bytes"),
            ("container", f"{self.bytes:,} bytes, all pyramid levels"),
            ("rate", f"{self.bpp:.3f} bpp, 1 : {self.ratio:.0f}"),
            ("PSNR", psnr),
            ("MS-SSIM", f"{self.ms_ssim:.4f}"),
            ("encode", f"{self.encode_megapixels_per_second:.2f} MP/s"),
            ("decode", f"{self.decode_megapixels_per_second:.2f} MP/s"),
            ("peak memory", f"{self.peak_memory_bytes / 2**20:,.0f} MiB"),
            ("regions", f"{self.regions} random reads equal the full decode, bit for bit"),
            ("model", f"{self.model}, quality {self.quality:g}"),
            *(("wrote", str(Path(self.folder) / name)) for name in self.files),
        ]


def run_demo(
    folder: str | os.PathLike[str],
    *,
    size: int = 4096,
    model: str = "default",
    quiet: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> DemoReport:
    """Draw, encode, read regions, decode, measure, and write a picture of the original beside the decoded.

    Args:
        folder: made where it is missing. Files of an earlier demo are replaced, those of anyone else are not.
        size: side of the landscape in pixels, SMALLEST to LARGEST.
        model: name, hash or path of the model.
        quiet: show no progress.
        say: called with a word on each step.

    Raises:
        UsageError: the size is out of range.
        TargetExistsError: a file of the demo's names is there and no demo wrote it.
        TileCodecError: what encoding and decoding raise; or a region differs from the full decode.
    """
    if not SMALLEST <= size <= LARGEST:
        raise UsageError("no landscape of this size", got=size, expected=f"{SMALLEST} to {LARGEST}", where="--size")
    out = _prepared(Path(folder))
    from tilecodec import api
    from tilecodec.entropy.model import shared_model
    from tilecodec.progress import progress_bar
    from tilecodec.scene import Scene
    from tilecodec.sink import write_rows
    from tilecodec.source import open_source

    original, container, decoded, picture = (out / name for name in _NAMES)
    say(f"drawing {size} × {size} px")
    with progress_bar("drawing", quiet=quiet) as progress:
        bands = _told(Scene(size).bands(), size, progress)
        write_rows(original, bands, height=size, width=size, overwrite=True)
    say("loading the model")
    shared_model(model)  # before the clock of the encoder starts
    say("encoding")
    with progress_bar("encoding", quiet=quiet) as progress:
        encoded = api.encode(original, container, model=model, overwrite=container.exists(), progress=progress)
    say("decoding")
    with progress_bar("decoding", quiet=quiet) as progress:
        report = api.decode(container, decoded, overwrite=True, progress=progress)
    say(f"reading {REGIONS} regions")
    _check_regions(container, decoded)
    say("measuring")
    with open_source(original) as before, open_source(decoded) as after:
        _write_side_by_side(picture, before, after)
        psnr, ms_ssim = _compared(before, after)
    demo = DemoReport(
        folder=str(out),
        files=(*_NAMES, _REPORT),
        width=size,
        height=size,
        raw_bytes=3 * size * size,
        tiff_bytes=original.stat().st_size,
        bytes=encoded.bytes,
        ratio=encoded.ratio,
        bpp=encoded.bpp,
        psnr=psnr,
        ms_ssim=ms_ssim,
        encode_megapixels_per_second=encoded.megapixels_per_second,
        decode_megapixels_per_second=report.megapixels_per_second,
        peak_memory_bytes=report.peak_memory_bytes,
        regions=REGIONS,
        model=encoded.model,
        quality=encoded.quality,
    )
    _write_json(out / _REPORT, demo.to_dict())
    return demo


def _prepared(out: Path) -> Path:
    """Return the folder, made and marked as the demo's own."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError("cannot make the demo's folder", got=error.strerror, where=str(out)) from error
    foreign = [name for name in _NAMES if os.path.lexists(out / name)]
    if foreign and not (out / _REPORT).is_file():
        raise TargetExistsError(
            "the folder holds files of the demo's names that no demo wrote",
            got=", ".join(foreign),
            where=str(out),
            hint="Give another folder with --out.",
        )
    _write_json(out / _REPORT, {})
    return out


def _write_json(path: Path, value: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError("cannot write", got=error.strerror, where=str(path)) from error


def _told(bands: Iterator[Pixels], size: int, progress: Callable[[Progress], None] | None) -> Iterator[Pixels]:
    """Yield the landscape's bands (h_i, size, 3) uint8 and tell how far the drawing has come."""
    from tilecodec.api import Progress

    begun, rows = time.monotonic(), 0
    for band in bands:
        yield band
        rows += len(band)
        if progress is not None:
            progress(Progress(rows * size, size * size, 0, time.monotonic() - begun))


def _check_regions(container: Path, decoded: Path) -> None:
    """Read random regions through the public call; each has to equal the same region of the full decode."""
    import numpy as np

    from tilecodec import api
    from tilecodec.source import open_source

    image = api.open(container)
    dice = random.Random(7)
    with open_source(decoded) as full:
        for _ in range(REGIONS):
            height, width = (dice.randint(1, min(700, side)) for side in (full.height, full.width))
            y, x = dice.randint(0, full.height - height), dice.randint(0, full.width - width)
            expected = full.read(y, y + height, x, x + width).transpose(2, 0, 1)
            if not np.array_equal(image[:, y : y + height, x : x + width], expected):
                where = f"{container}, x {x}, y {y}, width {width}, height {height}"
                raise TileCodecError("a region read alone differs from the full decode", where=where)


def _compared(before: Source, after: Source) -> tuple[float | None, float]:
    """Return PSNR in dB, None for equal pictures, and MS-SSIM, of the middle MEASURED px square at most."""
    from tilecodec.metrics import ms_ssim, psnr

    sides = [min(side, MEASURED) for side in (before.height, before.width)]
    y, x = (before.height - sides[0]) // 2, (before.width - sides[1]) // 2
    a, b = (source.read(y, y + sides[0], x, x + sides[1]) for source in (before, after))
    ratio = psnr(a, b)
    return (ratio if math.isfinite(ratio) else None), ms_ssim(a, b)


def _write_side_by_side(path: Path, before: Source, after: Source) -> None:
    """Write a detailed part at full scale: the original on the left, a white bar, the decoded on the right."""
    import numpy as np

    from tilecodec.sink import write_rows

    height, width = min(_HEIGHT, before.height), min(_PANEL, before.width)
    y = min(round(0.36 * before.height), before.height - height)
    x = min(round(0.19 * before.width), before.width - width)
    left, right = (source.read(y, y + height, x, x + width) for source in (before, after))
    both = np.concatenate([left, np.full((height, _GAP, 3), 255, np.uint8), right], axis=1)
    write_rows(path, [both], height=height, width=both.shape[1], overwrite=True)
