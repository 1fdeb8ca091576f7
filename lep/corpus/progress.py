"""A line on the terminal for what takes long: how many, how fast."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


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
