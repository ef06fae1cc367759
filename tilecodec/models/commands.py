"""The command line's ``models``: its arguments, and what each subcommand returns to be printed.

Importing this imports no torch: what a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilecodec.models.library import ModelEntry

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a subcommand found or did."""

    result: dict[str, Any]
    """As JSON."""
    rows: list[tuple[str, str]]
    """As a person reads it."""
    code: int = 0
    """Exit code."""


Run = Callable[[argparse.Namespace, Say], Outcome]


class _Parser(argparse.ArgumentParser):
    """Takes options between its positional arguments, where the optional one would otherwise be passed over."""

    _between = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._between:  # the method below calls this one
            return super().parse_known_args(args, namespace)
        self._between = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._between = False


def add_commands(parser: argparse.ArgumentParser, parents: list[argparse.ArgumentParser]) -> None:
    """Gives ``models`` its subcommands.

    Args:
        parser: of ``models``.
        parents: parsers with the options of every subcommand: ``--json`` and ``--quiet``.
    """
    kind: type[argparse.ArgumentParser] = _Parser
    commands = parser.add_subparsers(metavar="SUBCOMMAND", required=True, parser_class=kind)

    def command(name: str, run: Run, about: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(
            name, help=about, description=about, parents=parents, allow_abbrev=False
        )
        added.set_defaults(models_command=run)
        return added

    command("list", _list, "List the models on this machine.")

    show = command("show", _show, "Tell what a model is and where it came from.")
    show.add_argument("name", metavar="NAME", help="a name, sha256:..., or a path")

    verify = command("verify", _verify, "Hash models anew and compare with what was recorded when they were made.")
    verify.add_argument("name", nargs="?", metavar="NAME", help="a name, sha256:..., or a path (default: all)")

    remove = command("rm", _remove, "Remove a model that was pulled or converted.")
    remove.add_argument("name", metavar="NAME", help="a name, or sha256:...")

    pull = command("pull", _pull, "Fetch a checkpoint of the DiT-IC authors from their hub and convert it.")
    pull.add_argument("name", metavar="NAME", help="dit-ic-q1 (fewest bits) to dit-ic-q4; any name with --file")
    pull.add_argument(
        "--file", metavar="PATH", help="the checkpoint's path in the repository (default: found by its name)"
    )
    pull.add_argument("--repo", metavar="OWNER/NAME", help="repository on the hub (default: the authors')")
    pull.add_argument("--revision", metavar="REV", help="branch, tag or commit (default: the default branch)")
    pull.add_argument("--yes", action="store_true", help="do not ask before the download")
    _conversion(pull)

    convert = command("convert", _convert, "Convert a checkpoint of the DiT-IC authors that is on this machine.")
    convert.add_argument("checkpoint", metavar="CKPT", help="merged or raw LoRA; .pth, .pt, .ckpt or .safetensors")
    convert.add_argument(
        "target", nargs="?", metavar="OUT", help="folder to make (default: among the models, by --alias)"
    )
    convert.add_argument("--alias", metavar="NAME", help="the model's name (default: that of OUT)")
    _conversion(convert)


def _conversion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base",
        metavar="DIR",
        help="folder with transformer/ and vae/ as diffusers writes them: their configs, and the weights that LoRA "
        "needs (default: the official configs)",
    )
    parser.add_argument(
        "--elic", metavar="FILE", help="weights of the auxiliary encoder, where the checkpoint has none"
    )
    parser.add_argument(
        "--weights", default="ema", choices=("ema", "model"), help="which set of a raw checkpoint (default: ema)"
    )
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16"),
        help="fp32 keeps every bit; bf16 halves the file, by the rounding that computing in bf16 does anyway "
        "(default: fp32)",
    )
    parser.add_argument(
        "--calibration", metavar="DIR", help="pictures for the integer entropy model (default: drawn ones)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model of this name")


# --- what they do


def _list(_arguments: argparse.Namespace, _say: Say) -> Outcome:
    from tilecodec.models.library import list_models

    entries = list_models()
    return Outcome({"models": [entry.to_dict() for entry in entries]}, [(e.name, _line(e)) for e in entries])


def _line(entry: ModelEntry) -> str:
    if entry.problem is not None:
        return f"cannot be used: {entry.problem}"
    other = f", also {', '.join(entry.aliases)}" if entry.aliases else ""
    place = "part of the package" if entry.embedded else "on this machine"
    size = f"{entry.bytes / 1e6:,.1f} MB, {sum(entry.parameters.values()) / 1e6:,.1f} M parameters"
    return f"sha256:{entry.sha256[:12]}, {size}, {entry.dtype}, {place}{other}"


def _show(arguments: argparse.Namespace, _say: Say) -> Outcome:
    from tilecodec.models.library import show_model

    entry = show_model(arguments.name)
    rows = [
        ("model", ", also ".join([entry.name, *entry.aliases])),
        ("sha256", entry.sha256),
        ("file", entry.path),
        ("bytes", f"{entry.bytes:,}"),
        ("weights", entry.dtype),
        *((f"parameters of {part}", f"{count:,}") for part, count in entry.parameters.items()),
        ("tile side", f"a multiple of {entry.stride} px"),
        ("quality", "1 to 100" if entry.qualities else "one rate point: the option has no effect"),
        *((name.replace("_", " "), str(value)) for name, value in entry.source.items() if value is not None),
    ]
    return Outcome(entry.to_dict(), rows)


def _verify(arguments: argparse.Namespace, _say: Say) -> Outcome:
    from tilecodec.models.library import verify_models

    found = verify_models(arguments.name)
    rows = [
        (
            v.name,
            v.problem or f"sha256:{v.sha256}, {'as recorded' if v.recorded else 'nothing is recorded to compare with'}",
        )
        for v in found
    ]
    return Outcome({"models": [v.to_dict() for v in found]}, rows, 1 if any(v.problem for v in found) else 0)


def _remove(arguments: argparse.Namespace, _say: Say) -> Outcome:
    from tilecodec.models.library import remove_model

    folder = remove_model(arguments.name)
    return Outcome({"removed": str(folder)}, [("removed", str(folder))])


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("base", "elic", "weights", "dtype", "calibration", "overwrite")
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def _convert(arguments: argparse.Namespace, say: Say) -> Outcome:
    from tilecodec.models.convert import convert_model

    report = convert_model(
        arguments.checkpoint, arguments.target, alias=arguments.alias, say=say, **_options(arguments)
    )
    rows = [
        ("model", report.name),
        ("sha256", report.sha256),
        ("folder", report.path),
        ("bytes", f"{report.bytes:,}"),
        ("weights", report.dtype),
        ("time", f"{report.seconds:.1f} s"),
        ("memory", f"{report.peak_memory_bytes / 2**20:,.0f} MiB at most, mapped files included"),
        *(("remark", remark) for remark in report.remarks),
    ]
    return Outcome(report.to_dict(), rows)


def _pull(arguments: argparse.Namespace, say: Say) -> Outcome:
    from tilecodec.models.hub import REPO, pull_model

    report = pull_model(
        arguments.name,
        file=arguments.file,
        repository=arguments.repo or REPO,
        revision=arguments.revision,
        confirm=lambda notice: _confirmed(notice, asks=not arguments.yes),
        say=say,
        progress=sys.stderr.isatty() and not arguments.quiet,
        **_options(arguments),
    )
    rows = [
        ("model", report.name),
        ("sha256", report.sha256),
        ("folder", report.path),
        ("bytes", f"{report.bytes:,}"),
        ("from", f"{report.repository}, {report.file}, revision {report.revision[:12]}"),
        *(("remark", remark) for remark in report.remarks),
    ]
    return Outcome(report.to_dict(), rows)


def _confirmed(notice: str, *, asks: bool) -> bool:
    """Says under which terms something is about to be downloaded; asks only where someone can answer."""
    sys.stderr.write(f"{notice}\n")
    if not (asks and sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    sys.stderr.write("Downloading means accepting these terms. Go on? [Y/n] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("", "y", "yes")
