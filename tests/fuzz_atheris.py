"""Runs a target of ``fuzz_targets.py`` under atheris, which follows the coverage of this package.

    uv pip install -e '.[fuzz]'
    PYTHONPATH=formats/vectors python tests/fuzz_atheris.py TARGET WORK -max_total_time=1800

TARGET is payload, index, chunk or metadata. WORK/TARGET is filled with the vectors as seeds and keeps what the fuzzer
finds; what follows are options of libFuzzer. A finding ends the run and lies in the current folder as ``crash-*``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tilecodec"]):
    import fuzz_targets


def main() -> None:
    """Fills the corpus and fuzzes."""
    target, work, *options = sys.argv[1:]
    corpus = Path(work) / target
    corpus.mkdir(parents=True, exist_ok=True)
    for n, seed in enumerate(fuzz_targets.seeds(target)):
        (corpus / f"seed-{n:03}").write_bytes(seed)
    limits = ["-max_len=4096", "-timeout=10", "-rss_limit_mb=4096"]
    call = fuzz_targets.TARGETS[target]
    atheris.Setup([sys.argv[0], str(corpus), *limits, *options], lambda data: call(bytes(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
