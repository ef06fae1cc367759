"""Start-up: CPU seconds of ``tilecodec --help`` and ``import tilecodec``, and whether either loads torch."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from bench.common import BENCH, Check, add_arguments, start, table

LIMIT: Final = 0.3
"""CPU seconds."""
HELP: Final = "import sys\nfrom tilecodec.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
CASES: Final = {"python alone": "import sys", "import tilecodec": "import sys, tilecodec", "tilecodec --help": HELP}
VERDICT: Final = "\nsys.exit(7 if 'torch' in sys.modules else 0)"


def run(code: str) -> tuple[float, bool]:
    """CPU seconds (user and system) of a fresh interpreter that runs ``code``, and whether it loaded torch."""
    child = subprocess.Popen([sys.executable, "-c", code + VERDICT], cwd=BENCH.parent, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in (0, 7):
        raise SystemExit(f"exit status {child.returncode} from: {code}")
    return usage.ru_utime + usage.ru_stime, child.returncode == 7


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=__doc__)
    add_arguments(parser, data=False)
    parser.add_argument("--runs", type=int, default=15, help="runs of each case after one that warms the disk cache")
    args = parser.parse_args(argv)
    bench = start(parser, args, "startup", argv)
    rows, checks = [], []
    for case, code in CASES.items():
        run(code)
        results = [run(code) for _ in range(2 if bench.smoke else args.runs)]
        seconds, torch = [s for s, _ in results], any(t for _, t in results)
        median = statistics.median(seconds)
        rows.append({"case": case, "median_s": round(median, 4), "min_s": round(min(seconds), 4), "torch": torch})
        if case != "python alone":
            shown = f"{median:.3f} s"
            checks.append(Check(what=f"{case}, CPU", wanted=f"under {LIMIT} s", measured=shown, ok=median < LIMIT))
            loaded = "loaded" if torch else "not loaded"
            checks.append(Check(what=f"{case}, torch", wanted="not loaded", measured=loaded, ok=not torch, exact=True))
    bench.write_csv(rows)
    return bench.finish(table(list(rows[0]), [list(r.values()) for r in rows]), checks)


if __name__ == "__main__":
    sys.exit(main())
