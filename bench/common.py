"""Shared parts of the measurements: arguments, pictures, mosaics, container bytes, CSV and report."""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from tilecodec.evaluation.markdown import bullets, table

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3) uint8."""

BENCH: Final = Path(__file__).resolve().parent
MEGAPIXEL: Final = 1024 * 1024
SUFFIXES: Final = frozenset({".jxl", ".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})
CELL: Final = 719
"""Side of a mosaic's cells: prime, so that the pictures' own borders stay off the tile borders."""
CPU_FLAGS: Final = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
PACKAGES: Final = ("tilecodec", "torch", "diffusers", "zarr", "numpy", "constriction", "tifffile", "imagecodecs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture by name; its pixels are read when asked for."""

    domain: str
    name: str
    path: Path | None
    """None: one of scikit-image's bundled pictures."""

    def pixels(self) -> Pixels:
        """(H, W, 3) uint8, C-contiguous."""
        if self.path is None:
            import skimage.data

            return np.ascontiguousarray(getattr(skimage.data, self.name)()[..., :3])
        import imagecodecs

        pixels = imagecodecs.imread(self.path)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise SystemExit(f"{self.path.name}: RGB uint8 expected, got {pixels.dtype} {pixels.shape}")
        return np.ascontiguousarray(pixels)


def load_pictures(folder: Path | None) -> list[Picture]:
    """The pictures ``folder/<domain>/*``, photographs first; scikit-image's bundled ones for None."""
    if folder is None:
        bundled = {"astronaut": "photo", "coffee": "photo", "rocket": "photo", "chelsea": "photo", "retina": "medical"}
        return [Picture(domain=domain, name=name, path=None) for name, domain in bundled.items()]
    files = sorted(p for p in folder.glob("*/*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"no pictures in {folder}/<domain>/ ({', '.join(sorted(SUFFIXES))})")
    pictures = [Picture(domain=p.parent.name, name=p.stem, path=p) for p in files]
    return sorted(pictures, key=lambda p: (p.domain != "photo", p.domain, p.name))


def mosaic(pictures: Sequence[Picture], height: int, width: int, *, cell: int = CELL) -> Pixels:
    """(height, width, 3) uint8: cells of ``cell`` px, each one picture, mirrored where it is too small."""
    sources = [p.pixels() for p in pictures]
    out = np.empty((height, width, 3), np.uint8)
    spots = [(y, x) for y in range(0, height, cell) for x in range(0, width, cell)]
    for count, (y, x) in enumerate(spots):
        source = sources[count % len(sources)]
        source = np.rot90(source, count // len(sources))
        h, w = min(cell, height - y), min(cell, width - x)
        spare = max(0, h - source.shape[0]), max(0, w - source.shape[1])
        top, left = max(0, source.shape[0] - h) // 2, max(0, source.shape[1] - w) // 2
        part = source[top : top + h, left : left + w]
        out[y : y + h, x : x + w] = np.pad(part, ((0, spare[0]), (0, spare[1]), (0, 0)), mode="symmetric")
    return out


def middle(pixels: Pixels, side: int) -> Pixels:
    """The square of ``side``, or of the largest multiple of 128 that fits, in the picture's middle."""
    side = min(side, *(length // 128 * 128 for length in pixels.shape[:2]))
    y0, x0 = ((length - side) // 2 for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[y0 : y0 + side, x0 : x0 + side])


def container_bytes(path: Path) -> int:
    """Bytes of all files under a container, metadata included."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def add_arguments(parser: argparse.ArgumentParser, *, data: bool = True) -> None:
    """Adds the arguments that every measurement has."""
    parser.add_argument("--smoke", action="store_true", help="tiny run of a few seconds on bundled pictures")
    parser.add_argument("--out", type=Path, help="folder of results/ and reports/ (default: bench/; smoke: temporary)")
    parser.add_argument("--work", type=Path, help="folder for temporary files (default: the system's)")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice)")
    if data:
        parser.add_argument("--data", type=Path, help="folder with <domain>/*.jxl|png|jpg|webp|tif")


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One number held against what is wanted."""

    what: str
    wanted: str
    measured: str
    ok: bool | None
    """None: could not be measured here."""
    exact: bool = False
    """Holds in a smoke run too (equality, not speed or quality)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """One run of one measurement."""

    name: str
    smoke: bool
    out: Path
    work: Path
    command: str
    pictures: tuple[Picture, ...]

    def note(self, text: str) -> None:
        """Progress, on stderr."""
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def write_csv(self, rows: Sequence[Mapping[str, object]], name: str | None = None) -> Path:
        """Writes ``results/NAME.csv``, columns from the first row."""
        path = self.out / "results" / f"{name or self.name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return path

    def finish(self, body: str, checks: Sequence[Check] = ()) -> int:
        """Writes and prints ``reports/NAME_HARDWARE_DATE.md``, drops temporary files, returns the exit status."""
        text = f"# {self.name}\n\n{header(self.command)}\n"
        if checks:
            verdict = {True: "yes", False: "**no**", None: "not measured"}
            rows = [[c.what, c.wanted, c.measured, verdict[c.ok]] for c in checks]
            text += f"\n{table(['what', 'wanted', 'measured', 'reached'], rows)}\n"
        text += f"\n{body.strip()}\n"
        path = self.out / "reports" / f"{self.name}_{hardware()}_{datetime.now(UTC):%Y-%m-%d}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(text)
        self.note(f"report: {path}")
        if self.out != self.work:
            shutil.rmtree(self.work)
        return int(any(c.ok is False and (c.exact or not self.smoke) for c in checks))


def start(parser: argparse.ArgumentParser, args: argparse.Namespace, name: str, argv: Sequence[str] | None) -> Bench:
    """Makes the run's folders from the parsed arguments; ends with a usage error when ``--data`` is missing."""
    smoke: bool = args.smoke
    pictures: list[Picture] = []
    if hasattr(args, "data"):
        if args.data is None and not smoke:
            parser.error("--data DIR is needed (or --smoke)")
        pictures = load_pictures(None if smoke else args.data)
    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)
    work = Path(tempfile.mkdtemp(prefix=f"tilecodec-bench-{name}-", dir=args.work))
    out = args.out or (work if smoke else BENCH)
    words = [_shown(word) for word in (sys.argv[1:] if argv is None else argv)]
    command = shlex.join(["python", "-m", f"bench.{name}", *words])
    return Bench(name=name, smoke=smoke, out=out, work=work, command=command, pictures=tuple(pictures))


def _shown(word: str) -> str:
    """An absolute path by its last part only: reports say what was run, not where one machine keeps its files."""
    return Path(word).name if Path(word).is_absolute() else word


def header(command: str) -> str:
    """The facts every report names: machine, CPU flags, versions, commit, command."""
    cpu, flags = _cpu()
    used = [flag for flag in CPU_FLAGS if flag in flags]
    facts = {
        "machine": f"{cpu}, {os.cpu_count()} CPUs, {_memory_gib():.0f} GiB, {platform.system()} {platform.machine()}",
        "CPU flags": " ".join(used) or "unknown",
        "versions": f"Python {platform.python_version()}, " + ", ".join(_versions()),
        "picture libraries": ", ".join(_codec_versions()),
        "commit": commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": f"`{command}`",
    }
    if "torch" in sys.modules:
        import torch

        facts["threads"] = str(torch.get_num_threads())
    return bullets([f"{key}: {value}" for key, value in facts.items()])


def hardware() -> str:
    """The machine as a part of a file name, such as ``amd-epyc-9r14-2cpu``."""
    return re.sub(r"[^a-z0-9]+", "-", f"{_cpu()[0]} {os.cpu_count()}cpu".lower()).strip("-")


def commit() -> str:
    """The checkout's commit, with ``(modified)`` when tracked files of the package or the bench differ from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "tilecodec", "bench/*.py")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head} (modified)" if changed else head


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=BENCH.parent, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _cpu() -> tuple[str, frozenset[str]]:
    fields = dict(_cpuinfo())
    name = fields.get("model name") or platform.processor() or platform.machine()
    name = re.sub(r"\s+", " ", re.sub(r"\((R|TM)\)|CPU|Processor", "", name)).strip()
    if fields.get("cpu family") and fields.get("vendor_id") == "AuthenticAMD" and name == "AMD EPYC":
        name += f" family {fields['cpu family']} model {fields['model']}"
    return name, frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _cpuinfo() -> Iterator[tuple[str, str]]:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            yield key.strip(), value.strip()


def _memory_gib() -> float:
    if not hasattr(os, "sysconf"):
        return float("nan")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _versions() -> Iterator[str]:
    for package in PACKAGES:
        try:
            yield f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{package} (not installed)"


def _codec_versions() -> Iterator[str]:
    import imagecodecs

    for part in imagecodecs.version().split(", "):
        if part.startswith(("libjpeg_turbo", "openjpeg", "libwebp", "libavif", "libjxl-")):
            yield part
