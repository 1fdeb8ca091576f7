"""Files that are whole or not there, whenever the process or the machine stops."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import IO

FLUSH_EVERY = 1.0  # seconds


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A sibling to write to, which takes the place of `path` once the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield staging
        flush(staging)
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    flush(path.parent)


@contextmanager
def flushing(file: IO[bytes]) -> Iterator[None]:
    """Has the disk take what is written to a file while the block still computes: the last flush is short then."""
    done = Event()

    def flush_now_and_then() -> None:
        while not done.wait(FLUSH_EVERY):
            os.fsync(file.fileno())

    with ThreadPoolExecutor(max_workers=1) as pool:
        flushed = pool.submit(flush_now_and_then)
        try:
            yield
        finally:
            done.set()
        flushed.result()  # an error of the disk is told once


def flush(path: Path) -> None:
    """Have the disk hold what was written to a file, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
