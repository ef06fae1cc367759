"""What a run leaves to read: a CSV table, TensorBoard's events, and lines with the time that is left."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tilecodec.errors import StorageError
from tilecodec.train.events import EventFile

FILE: Final = "log.csv"
_HOUR, _DAY = 3600, 86400

Say = Callable[[str], None]
"""Takes a line for people."""


def say_on_stderr(line: str) -> None:
    """Writes a line for people."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Means:
    """Means of the values of the steps since the last row; part of a checkpoint.

    Args:
        columns: values of a step.
    """

    def __init__(self, columns: int) -> None:
        self.sums = torch.zeros(columns)
        self.count = 0

    def add(self, values: Tensor) -> None:
        """The values of one step, (columns,) float32 on the CPU."""
        self.sums = self.sums + values
        self.count += 1

    def take(self) -> list[float]:
        """The means; the next steps begin anew."""
        means: list[float] = (self.sums / max(1, self.count)).tolist()
        self.sums, self.count = torch.zeros_like(self.sums), 0
        return means


class Log:
    """Rows of means over some steps each. A run that resumes goes on with the table as it was at its checkpoint.

    Args:
        folder: of the run.
        columns: names of the values of a step.
        step: of the checkpoint; later rows of an earlier attempt are dropped.
        say: called with a line for each row.
        events: whether TensorBoard's files are written as well.

    Raises:
        StorageError: the table cannot be written.
    """

    def __init__(self, folder: Path, columns: Sequence[str], *, step: int, say: Say, events: bool) -> None:
        self._path, self._say = folder / FILE, say
        self._columns = ["step", *columns, "seconds_per_step"]
        try:
            self._begin(step)
            self.events = EventFile(folder / "events", step) if events else None
        except OSError as error:
            raise StorageError("the log cannot be written", got=error.strerror, where=str(folder)) from error

    def row(self, step: int, means: list[float], seconds: float, progress: str) -> None:
        """Writes a row.

        Args:
            step: steps done.
            means: of the values of the last steps.
            seconds: of a step, lately.
            progress: how far the run is, for the line.

        Raises:
            StorageError: the table cannot be written.
        """
        try:
            with self._path.open("a", newline="") as file:
                csv.writer(file).writerow([step, *(f"{v:.5f}" for v in means), f"{seconds:.3f}"])
            if self.events is not None:
                self.events.scalars(step, dict(zip(self._columns[1:], [*means, seconds], strict=True)))
        except OSError as error:
            raise StorageError("the log cannot be written", got=error.strerror, where=str(self._path)) from error
        values = " ".join(f"{k} {v:.4g}" for k, v in zip(self._columns[1:-1], means, strict=True) if v or k == "loss")
        self._say(f"{progress}  {values}  {seconds:.3f} s/step")

    def close(self) -> None:
        """Closes the event file."""
        if self.events is not None:
            self.events.close()

    def _begin(self, step: int) -> None:
        rows: list[list[str]] = []
        if step and self._path.exists():
            with self._path.open(newline="") as file:
                rows = list(csv.reader(file))
        if rows and rows[0] != self._columns:  # other values were logged: the old table is kept beside
            os.replace(self._path, self._path.with_name(f"before-{step}-{FILE}"))
            rows = []
        kept = [self._columns, *(row for row in rows[1:] if row and row[0].isdigit() and int(row[0]) <= step)]
        write_rows(self._path, kept)


def write_rows(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Writes a CSV file whole, in one move.

    Raises:
        StorageError: it cannot be written.
    """
    partial = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        os.replace(partial, path)
    except OSError as error:
        raise StorageError("the log cannot be written", got=error.strerror, where=str(path)) from error


def clock(seconds: float) -> str:
    """A duration as people read it: ``45 s``, ``12:30 min``, ``3:05 h``, ``2 d 4 h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < _DAY:
        return f"{whole // _HOUR}:{whole % _HOUR // 60:02d} h"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"
