"""Run the command line: ``python -m tilecodec``."""

from __future__ import annotations

import sys

from tilecodec.cli import main

if __name__ == "__main__":
    sys.exit(main())
