"""One function over a stream of batches, on several processes, in order and with a bounded number under way."""

import itertools
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

Batch = TypeVar("Batch")
Outcome = TypeVar("Outcome")

# Starting processes costs seconds of importing; a stream this short is done by then.
BATCHES_BEFORE_PROCESSES = 8
UNDER_WAY = 3  # batches a process: enough that none waits while the reader is busy

_work: Callable[[Any], Any] | None = None  # in a worker process: what it does to a batch


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    make_work: Callable[..., Callable[[Batch], Outcome]], arguments: tuple, batches: Iterable[Batch], *, processes: int
) -> Iterator[Outcome]:
    """`make_work(*arguments)` of every batch, in the order of the batches, whatever the number of processes.

    `make_work` is called once in every process that works. The first batches are done here, so that a short stream
    starts no process at all; so is everything with `processes=1`. Beyond that a script needs the usual
    `if __name__ == "__main__":`, for processes are spawned (a fork of a process with threads may hang).
    """
    if processes < 1:
        raise ValueError(f"processes={processes} must be at least 1 (this machine lends {available_cores()}).")
    stream = iter(batches)
    here = make_work(*arguments)
    yield from map(here, stream if processes == 1 else itertools.islice(stream, BATCHES_BEFORE_PROCESSES))
    following = next(stream, None)
    if following is None:
        return
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_start, initargs=(make_work, arguments)
    )
    under_way: deque[Future] = deque()
    try:
        for batch in itertools.chain((following,), stream):
            under_way.append(pool.submit(_call, batch))
            if len(under_way) >= UNDER_WAY * processes:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def batched(items: Iterable[Batch], *, weight: Callable[[Batch], int], limit: int) -> Iterator[list[Batch]]:
    """Lists of consecutive items, each list closed once its weights reach `limit`."""
    batch, total = [], 0
    for item in items:
        batch.append(item)
        total += weight(item)
        if total >= limit:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _start(make_work: Callable[..., Callable], arguments: tuple) -> None:
    global _work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _work = make_work(*arguments)


def _call(batch: Any) -> Any:
    assert _work is not None
    return _work(batch)
