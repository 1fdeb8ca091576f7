"""A line on the terminal while tables of several gigabytes are made or written; nothing where nobody watches."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def bytes_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives `advance(nbytes)`; shows how much of the total is written, how fast, and how long it still takes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with _progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task(label, total=total)
        yield lambda nbytes: progress.advance(task, nbytes)


@contextmanager
def rows_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives `advance(rows)`; shows how many rows of the total are there, how many a second, and how long it takes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with _progress(*columns, TimeRemainingColumn()) as progress:
        task, started, done = progress.add_task(label, total=total, rate=""), time.monotonic(), 0

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            rate = done / max(time.monotonic() - started, 1e-9)
            progress.update(task, completed=done, rate=f"{rate:,.0f} a second")

        yield advance


@contextmanager
def busy(label: str) -> Iterator[None]:
    """Shows that something without a measure of its own goes on, and since when."""
    with _progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as progress:
        progress.add_task(label, total=None)
        yield


def _progress(*columns: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
