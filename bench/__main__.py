"""Lists the measurements; with ``--smoke``, runs the tiny mode of each in one process."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

MEASUREMENTS: Final = (
    "startup",
    "region_invariance",
    "seams",
    "overhead",
    "throughput",
    "latency",
    "engine",
    "stages",
    "sweep",
    "peers",
    "panning",
    "memory",
    "memory_sizes",
    "rate_quality",
    "integer_cost",
    "ablation",
    "official",
    "parity",
    "entropy_matrix",
    "entropy_speed",
    "fuzz",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs every smoke mode, or lists the measurements; returns 1 if one fails."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="run the tiny mode of every measurement")
    parser.add_argument("--out", type=Path, help="folder of results/ and reports/ (default: temporary)")
    args = parser.parse_args(argv)
    modules = {name: importlib.import_module(f"bench.{name}") for name in MEASUREMENTS}
    if not args.smoke:
        for name, module in modules.items():
            print(f"python -m bench.{name:18} {(module.__doc__ or '').splitlines()[0]}")
        return 0
    words = ["--smoke", *([] if args.out is None else ["--out", str(args.out)])]
    failed = [name for name, module in modules.items() if module.main(words)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
