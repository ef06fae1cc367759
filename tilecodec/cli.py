"""The command line: parses, calls the public functions, prints. Results go to stdout, all else to stderr.

Exit codes: 0 done, 1 invalid or failed data, 2 usage, 3 input or output, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from tilecodec.config import PRECISIONS, parse_budget, parse_device_budget
from tilecodec.errors import CompileWarning, TileCodecError, UsageError
from tilecodec.models.commands import add_commands

if TYPE_CHECKING:
    from tilecodec.api import Progress, ProgressCall

Rows = list[tuple[str, str]]
"""A result as a person reads it: names and values."""

_INTERRUPTED: Final = 130
_BROKEN_PIPE: Final = 141
_TERMINATED: Final = 143
"""What a shell reports for a program that SIGINT, SIGPIPE or SIGTERM ended."""
_STORAGE: Final = 3
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but tab and line feed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Raises:
        SystemExit: from argparse, for ``--help``, ``--version`` (0) and arguments it cannot parse (2).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name must not be what a message fails on
            stream.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    arguments.ending = ending = _Ending()
    try:
        with warnings.catch_warnings(), ending.by_signals():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", CompileWarning)
                warnings.showwarning = _warn
            code = command(arguments)
        sys.stdout.flush()
    except TileCodecError as error:
        return _complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        # Whoever read stdout has gone. Python would complain again when it flushes at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except OSError as error:
        return _complain(": ".join(str(part) for part in (error.strerror or error, error.filename) if part), _STORAGE)
    except MemoryError:
        return _complain("out of memory", 1)
    return code


class _Ending:
    """Lets SIGINT and SIGTERM end the program as exceptions do, so that nothing half-written is left.

    Python drops an exception that reaches it in a finaliser or within an import, so it is raised once more when there
    is progress to tell.
    """

    def __init__(self) -> None:
        self._due: Callable[[], BaseException] | None = None

    @contextlib.contextmanager
    def by_signals(self) -> Iterator[None]:
        """Within, signals are heeded; an ignored SIGINT (of a job in the background) stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        endings: dict[int, Callable[[], BaseException]] = {signal.SIGTERM: lambda: SystemExit(_TERMINATED)}
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            endings[signal.SIGINT] = KeyboardInterrupt

        def end(number: int, _: object) -> None:
            self._due = endings[number]
            raise self._due()

        before = {number: signal.signal(number, end) for number in endings}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def told(self, progress: ProgressCall | None) -> ProgressCall:
        """What is to be called with progress: it raises what is due, or tells ``progress``."""

        def tell(made: Progress) -> None:
            if self._due is not None:
                raise self._due()
            if progress is not None:
                progress(made)

        return tell


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    print(f"tilecodec: warning: {_harmless(str(message))}", file=sys.stderr)


def _complain(message: str, code: int) -> int:
    print(f"tilecodec: error: {_harmless(message)}", file=sys.stderr)
    return code


def _harmless(text: str) -> str:
    """Text that may come from a container, its control characters written out: a terminal would obey them."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))


def _set_verbose(verbose: bool) -> None:
    """Lets what the package logs reach standard error."""
    if verbose:
        logging.basicConfig(format="tilecodec: %(message)s", stream=sys.stderr)
        logging.getLogger("tilecodec").setLevel(logging.INFO)


# --- commands


def _encode(arguments: argparse.Namespace) -> int:
    options = {
        "model": arguments.model,
        "quality": _number("--quality", arguments.quality),
        "levels": "auto" if arguments.levels == "auto" else _integer("--levels", arguments.levels),
        "device": _device(arguments.device),
        "precision": arguments.precision,
        "compile": arguments.compile,
        "memory": arguments.memory,
        "device_memory": arguments.device_memory,
        "resume": arguments.resume,
        "overwrite": arguments.overwrite,
    }
    if arguments.tile is not None:
        options["tile"] = _integer("--tile", arguments.tile)
    from tilecodec.config import EncodeOptions

    EncodeOptions(**options)  # wrong options are told before anything large is loaded
    _set_verbose(arguments.verbose)
    from tilecodec import api
    from tilecodec.progress import progress_bar

    with progress_bar("encoding", quiet=arguments.quiet) as progress:
        report = api.encode(arguments.source, arguments.target, progress=arguments.ending.told(progress), **options)
    rows = [
        ("container", report.target),
        ("size", f"{_size(report.width, report.height)}, {_count(report.levels, 'level')}"),
        ("bytes", f"{report.bytes:,}"),
        ("rate", f"{report.bpp:.3f} bpp, 1 : {report.ratio:.0f}"),
        ("tiles", f"{report.tiles:,}, {report.empty_tiles:,} of them empty"),
        ("model", f"{report.model}, quality {report.quality:g}"),
        *_effort(report.seconds, report.megapixels_per_second, report.peak_memory_bytes),
    ]
    _show(arguments, report.to_dict(), rows)
    return 0


def _decode(arguments: argparse.Namespace) -> int:
    region = None if arguments.region is None else parse_region(arguments.region)
    level = _integer("--level", arguments.level)
    device = _device(arguments.device)
    memory, device_memory = parse_budget(arguments.memory), parse_device_budget(arguments.device_memory, device)
    _set_verbose(arguments.verbose)
    from tilecodec import api
    from tilecodec.progress import progress_bar

    with progress_bar("decoding", quiet=arguments.quiet) as progress:
        report = api.decode(
            arguments.source,
            arguments.target,
            region=region,
            level=level,
            model=arguments.model,
            device=device,
            precision=arguments.precision,
            compile=arguments.compile,
            memory=memory,
            device_memory=device_memory,
            overwrite=arguments.overwrite,
            on_error=arguments.on_error,
            progress=arguments.ending.told(progress),
        )
    rows = [
        ("picture", report.target),
        ("size", _size(report.width, report.height)),
        *_effort(report.seconds, report.megapixels_per_second, report.peak_memory_bytes),
    ]
    _show(arguments, report.to_dict(), rows)
    for problem in report.errors:
        _complain(f"filled: {problem.message}", 1)
    if not report.failed_tiles:
        return 0
    return _complain(f"{_count(report.failed_tiles, 'tile')} could not be decoded; the rest is written", 1)


def _info(arguments: argparse.Namespace) -> int:
    from tilecodec import api

    info = api.info(arguments.source)
    rows = [
        ("container", info.path),
        ("name", info.name),
        ("state", "complete" if info.complete else "unfinished: encode --resume completes it"),
        ("size", _size(info.width, info.height)),
        ("bytes", f"{info.bytes:,}"),
        ("rate", f"{info.bpp:.3f} bpp"),
        ("model", f"{info.model} (sha256:{info.model_sha256[:12]}), quality {info.quality:g}"),
        ("tiles", f"{info.tile} px, overlap {info.overlap} px, blend {info.blend} px, halo {info.halo} px"),
    ]
    if info.pixel_size_um is not None:
        rows.append(("pixel size", " × ".join(f"{size:g}" for size in reversed(info.pixel_size_um)) + " µm"))
    rows += [("losses", loss) for loss in info.lossy_history]
    for level in info.levels:
        chunks = f"{level.chunks_present:,} of {_count(level.chunks, 'chunk')}"
        about = f"{_size(level.width, level.height)}, {_count(level.tiles, 'tile')}, {chunks}, {level.bytes:,} bytes"
        rows.append((f"level {level.path}", about))
    rows += sorted(info.properties.items())
    _show(arguments, info.to_dict(), rows)
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from tilecodec.progress import progress_bar
    from tilecodec.validation import validate

    with progress_bar("checking", quiet=arguments.quiet) as progress:
        report = validate(arguments.source, arguments.deep, model=arguments.model, progress=progress)
    checked = f"{_count(report.levels, 'level')}, {_count(report.chunks, 'chunk')}, {_count(report.tiles, 'tile')}"
    rows = [
        ("container", report.path),
        ("in order", checked + (f", symbols of {_count(report.decoded_tiles, 'tile')}" if report.deep else "")),
        ("problems", f"{report.problem_count:,}"),
        *((problem.reason, problem.message) for problem in report.problems),
    ]
    _show(arguments, report.to_dict(), rows)
    if any(problem.reason == "storage" for problem in report.problems):
        return _STORAGE
    return 0 if report.ok else 1


def _eval(arguments: argparse.Namespace) -> int:
    codecs = [name for name in arguments.codecs.split(",") if name]
    options = {
        "model": arguments.model,
        "qualities": _numbers("--qualities", arguments.qualities),
        "rates": _numbers("--rates", arguments.rates),
        "codecs": () if codecs == ["none"] else tuple(codecs),
        "lpips": arguments.lpips,
        "dists": arguments.dists,
        "ssimulacra2": arguments.ssimulacra2,
        "max_pixels": _integer("--max-pixels", arguments.max_pixels),
        "device": _device(arguments.device),
    }
    from tilecodec.evaluation.run import evaluate
    from tilecodec.progress import progress_bar

    with progress_bar("measuring", quiet=arguments.quiet) as progress:
        report = evaluate(arguments.folder, arguments.out, overwrite=arguments.overwrite, progress=progress, **options)
    _show(arguments, report.to_dict(), report.summary())
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    size = _integer("--size", arguments.size)
    from tilecodec.demo import run_demo

    report = run_demo(arguments.out, size=size, quiet=arguments.quiet, say=_say(arguments))
    _show(arguments, report.to_dict(), report.rows())
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    if (arguments.config is None) == (arguments.export is None):
        raise UsageError("nothing to train", expected="CONFIG, or --export CHECKPOINT OUT", where="train")
    from tilecodec.train import command

    if arguments.export is not None:
        checkpoint, target = (Path(path) for path in arguments.export)
        sha256 = command.export_run(checkpoint, target)
        _show(arguments, {"model": str(target), "sha256": sha256}, [("model", str(target)), ("sha256", sha256)])
        return 0
    report = command.train(
        Path(arguments.config),
        out=None if arguments.out is None else Path(arguments.out),
        settings=arguments.set,
        resume=arguments.resume,
        quiet=arguments.quiet,
    )
    rows = [
        ("run", report.out),
        ("steps", f"{report.steps:,}"),
        *((name, f"{value:g}") for name, value in report.last.items() if name != "step" and value),
        *(("skipped", f"{path}: {reason}") for path, reason in report.skipped.items()),
    ]
    if report.model is not None:
        rows += [("model", report.model), ("sha256", str(report.sha256))]
    _show(arguments, report.to_dict(), rows)
    return 0


def _models(arguments: argparse.Namespace) -> int:
    outcome = arguments.models_command(arguments, _say(arguments))
    _show(arguments, outcome.result, outcome.rows)
    return int(outcome.code)


# --- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tilecodec", description="Gigapixel pictures in a small Zarr container, read anywhere in, at any size."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    quiet = argparse.ArgumentParser(add_help=False)
    quiet.add_argument("--quiet", action="store_true", help="print errors only, and the result if --json is given")
    device = argparse.ArgumentParser(add_help=False)
    device.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:N or cuda:N,cuda:M,... (default: auto)"
    )
    device.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="what networks compute in; int8: weights in eight bits, for large models (default: auto, bf16 where the "
        "device computes it natively, else fp32)",
    )
    device.add_argument(
        "--compile", action="store_true", help="let torch.compile make faster code, which takes minutes (large models)"
    )

    budget = argparse.ArgumentParser(add_help=False)
    budget.add_argument("--memory", metavar="SIZE", help="what the process may take in all, such as 2GiB")
    budget.add_argument(
        "--device-memory", metavar="SIZE", help="what weights and windows may take on a GPU, such as 6GiB"
    )
    budget.add_argument("--verbose", action="store_true", help="say how the memory is divided")

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str, *parents: Any) -> Any:
        added = commands.add_parser(name, help=about, description=about, parents=[*parents, common], allow_abbrev=False)
        added.set_defaults(command=run)
        return added

    encode = command("encode", _encode, "Encode a picture into a container.", device, budget, quiet)
    encode.add_argument("source", metavar="SRC", help="TIFF, BigTIFF, SVS, PNG, JPEG, Zarr ...")
    encode.add_argument("target", metavar="DST.zarr", help="the container to make")
    encode.add_argument("--model", default="default", metavar="NAME|PATH", help="model to encode with")
    encode.add_argument("--quality", default="50", metavar="1..100", help="1 smallest, 100 best (default: 50)")
    encode.add_argument("--tile", metavar="N", help="tile side in pixels, a multiple of 128 (default: 512)")
    encode.add_argument("--levels", default="auto", metavar="auto|N", help="pyramid levels (default: auto)")
    existing = encode.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="finish a container that was begun the same way")
    existing.add_argument("--overwrite", action="store_true", help="replace an existing container")

    decode = command("decode", _decode, "Decode a container, or a region of it, to a picture.", device, budget, quiet)
    decode.add_argument("source", metavar="SRC.zarr", help="the container")
    decode.add_argument("target", metavar="DST", help="picture to write: .tif, .png, .npy or .zarr")
    decode.add_argument("--region", metavar="X,Y,W,H", help="left, top, width, height in pixels of the level")
    decode.add_argument("--level", default="0", metavar="L", help="pyramid level, 0 the largest (default: 0)")
    decode.add_argument("--model", metavar="NAME|PATH", help="the model, where it is not found by its hash")
    decode.add_argument(
        "--on-error",
        default="raise",
        choices=("raise", "fill"),
        help="fill: write black where a tile cannot be decoded, tell which, and exit with 1 (default: raise)",
    )
    decode.add_argument("--overwrite", action="store_true", help="replace an existing picture")

    info = command("info", _info, "Tell what a container holds.")
    info.add_argument("source", metavar="SRC.zarr", help="the container")

    check = command("validate", _validate, "Check a container: metadata, presence, checksums.", quiet)
    check.add_argument("source", metavar="SRC.zarr", help="the container")
    check.add_argument("--deep", action="store_true", help="decode the symbols of every tile as well")
    check.add_argument("--model", metavar="NAME|PATH", help="the model, where it is not found by its hash")

    about = "Measure rate and quality on your own pictures, beside JPEG, JPEG 2000, WebP, AVIF and JPEG XL."
    measure = command("eval", _eval, about, quiet)
    measure.add_argument("folder", metavar="FOLDER", help="pictures; its subfolders are domains")
    measure.add_argument("--out", metavar="DIR", help="folder for rows.csv, report.json, report.md and plots")
    measure.add_argument("--overwrite", action="store_true", help="replace files of these names")
    measure.add_argument("--model", default="default", metavar="NAME|PATH", help="name, hash or folder of the model")
    measure.add_argument(
        "--qualities", default="1,10,20,35,50,65,80,100", metavar="Q,Q", help="ours, 1 to 100 (default: %(default)s)"
    )
    measure.add_argument(
        "--codecs",
        default="jpeg,jpeg2000,webp,avif,jpegxl",
        metavar="NAME,NAME",
        help="encoded beside it, or none (default: %(default)s)",
    )
    measure.add_argument(
        "--rates", default="0.1,0.15,0.2,0.3,0.5", metavar="B,B", help="bpp to compare at (default: %(default)s)"
    )
    measure.add_argument("--lpips", metavar="FILE", help="weights of LPIPS (SqueezeNet), to measure it")
    measure.add_argument("--dists", metavar="FILE", help="weights of DISTS, to measure it")
    measure.add_argument("--ssimulacra2", action="store_true", help="measure SSIMULACRA2, one second per megapixel")
    measure.add_argument(
        "--max-pixels",
        default=str(2 << 20),
        metavar="N",
        help="of a larger picture the middle is measured (default: %(default)s)",
    )
    measure.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: auto)")

    train = command("train", _train, "Train or fine-tune a model by a recipe (needs the extra: train).", quiet)
    train.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file, or default-stage1, dit-ic-stage1 ...")
    train.add_argument("--resume", action="store_true", help="go on with the run that lies in the folder")
    train.add_argument("--out", metavar="DIR", help="folder of the run, instead of the recipe's")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a value of the recipe; repeat")
    train.add_argument("--export", nargs=2, metavar=("CHECKPOINT", "OUT"), help="only write a run's model folder")

    demo = command("demo", _demo, "Draw a landscape, encode and decode it, measure, and show both side by side.", quiet)
    demo.add_argument("--size", default="4096", metavar="N", help="side of the landscape in pixels (default: 4096)")
    demo.add_argument("--out", default="tilecodec-demo", metavar="DIR", help="folder (default: ./tilecodec-demo)")

    about = "List, fetch, convert, check and remove models."
    models = commands.add_parser("models", help=about, description=about, allow_abbrev=False)
    models.set_defaults(command=_models)
    add_commands(models, [quiet, common])
    return parser


class _Version(argparse.Action):
    """Print the version and exit; it is looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from tilecodec import __version__

        print(f"tilecodec {__version__}")
        parser.exit()


def parse_region(text: str) -> tuple[int, int, int, int]:
    """Return left, top, width and height from ``X,Y,W,H``.

    Raises:
        UsageError: the text is not four whole numbers, or names no pixel.
    """
    parts = text.split(",")
    expected = "X,Y,W,H: four whole numbers, W and H at least 1"
    if len(parts) != 4 or not all(re.fullmatch(r"\s*[0-9]{1,12}\s*", part) for part in parts):
        raise UsageError("the region cannot be read", got=text, expected=expected, where="--region")
    x, y, width, height = (int(part) for part in parts)
    if width < 1 or height < 1:
        raise UsageError("the region is empty", got=text, expected=expected, where="--region")
    return x, y, width, height


def _integer(option: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise UsageError(f"{option} cannot be read", got=text, expected="a whole number", where=option)
    return int(text)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    return tuple(_number(option, part) for part in text.split(","))


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option} cannot be read", got=text, expected="a number", where=option) from None


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda|cuda:[0-9]{1,3}(,cuda:[0-9]{1,3})*", text):
        expected = "auto, cpu, cuda or cuda:N,..."
        raise UsageError("no such device", got=text, expected=expected, where="--device")
    return text


# --- results


def _show(arguments: argparse.Namespace, result: dict[str, Any], rows: Rows) -> None:
    """Print a result on stdout: as JSON, as a table on a terminal, as plain lines elsewhere."""
    if arguments.json:
        import json

        print(json.dumps(result, indent=2, allow_nan=False))
    elif not getattr(arguments, "quiet", False):
        _print_table(rows)


def _print_table(rows: Rows) -> None:
    rows = [(_harmless(name), _harmless(value)) for name, value in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(Text(name), Text(value))
        Console().print(table)
        return
    indent = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        print(f"{name:<{indent}}{value}")


def _say(arguments: argparse.Namespace) -> Callable[[str], None]:
    """Return what to call with a word on what is going on; it goes to stderr, if someone is there to read it."""

    def say(text: str) -> None:
        if not arguments.quiet and sys.stderr.isatty():
            print(text, file=sys.stderr)

    return say


def _size(width: int, height: int) -> str:
    return f"{width:,} × {height:,} px"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _effort(seconds: float, megapixels_per_second: float, peak_memory_bytes: int) -> Rows:
    return [
        ("time", f"{seconds:.1f} s, {megapixels_per_second:.2f} MP/s"),
        ("memory", f"{peak_memory_bytes / 2**20:,.0f} MiB at most"),
    ]
