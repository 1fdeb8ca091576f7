"""A line on the terminal for what takes long: how many, how fast."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def document_progress(label: str) -> Iterator[Callable[[int], None]]:
    """Gives `advance(documents)`; shows count and rate while it is called, and nothing where nobody watches."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task, started, done = progress.add_task(label), time.monotonic(), 0

        def advance(documents: int) -> None:
            nonlocal done
            done += documents
            rate = done / max(time.monotonic() - started, 1e-9)
            progress.update(task, description=f"{label}: {done:,} documents, {rate:,.0f} a second")

        yield advance


@contextmanager
def reading_progress(texts: Iterable[str], *, total: int, reading: str, then: str) -> Iterator[Iterable[str]]:
    """Gives the texts to whoever reads them, with a bar and a rate for every reading.

    Between readings and until the end the line says `then`, for what is made of them has no measure of its own.
    """
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"))
    times = (TimeRemainingColumn(), TimeElapsedColumn())
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(then, total=None, rate="")

        class Watched:
            def __iter__(self) -> Iterator[str]:
                progress.reset(task, description=reading, total=total)
                started = time.monotonic()
                for done, text in enumerate(texts, 1):
                    yield text
                    rate = done / max(time.monotonic() - started, 1e-9)
                    progress.update(task, completed=done, rate=f"{done:,} documents, {rate:,.0f} a second")
                progress.reset(task, description=then, total=None)

        yield Watched()
