"""A progress bar on a terminal: share done, MP/s, bits per pixel, time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilecodec.api import Progress

_MEGAPIXEL = 1 << 20


@contextmanager
def progress_bar(title: str, *, quiet: bool = False) -> Iterator[Callable[[Progress], None] | None]:
    """Yield what to call with the progress made, or None where there is no one to show it to.

    The bar is drawn on stderr, only if that is a terminal, and is gone when the body ends. It may be called from any
    thread.

    Args:
        title: what is being done, one word.
        quiet: show nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, figures="")

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.pixels_done, total=progress.pixels_total, figures=figures(progress))

        yield show


def figures(progress: Progress) -> str:
    """Return speed and, where bytes are written, their rate: ``3.1 MP/s  0.180 bpp``.

    Both count the pixels of all pyramid levels.
    """
    speed = progress.pixels_done / _MEGAPIXEL / progress.seconds if progress.seconds > 0 else 0.0
    text = f"{speed:.1f} MP/s"
    if progress.bytes_written and progress.pixels_done:
        text += f"  {8 * progress.bytes_written / progress.pixels_done:.3f} bpp"
    return text
