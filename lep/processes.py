"""The processes that train one run together: which of them this one is, and what the first tells the others.

In: the environment variables of torchrun, or a job of submitit with several tasks. Out: plain answers. The first
process leads: it holds the store's lock, keeps the record and judges; the others only train beside it.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

FOREVER = timedelta(days=365)  # the leader may wait for another run that makes the same
FAILED = "failed"  # the leader's word where it has no other to give

_awaited = False  # whether the others wait for this process to take part in `word_of_leader`
_kept: list[Any] = []  # the store it went through, for as long as the process lives


class LeaderGoesOn(Exception):
    """What is left of the run is the leader's work: this process has done its part."""


def join() -> None:
    """In a job of submitit with several tasks, say in the environment what torchrun would have said."""
    if "SUBMITIT_EXECUTOR" not in os.environ or started():
        return
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def started() -> bool:
    """Whether something started this process as one of a group, which may be of one."""
    return "LOCAL_RANK" in os.environ


def under_torchrun() -> bool:
    """Whether it was torchrun: then the group is there for one run, and not made anew for each of a sweep."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_leader() -> bool:
    """Whether this process is the only one, or the first of its group."""
    return int(os.environ.get("RANK", "0")) == 0


def count() -> int:
    """How many processes train together, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def count_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count()))


def word_of_leader(word: str = "") -> str:
    """What the leader says, in every process; the leader gives the word. Each waits until all have heard it.

    Every process must call this, once. There is no limit to the wait: a process that dies is for the launcher to see,
    one that fails says so (`leave`).
    """
    global _awaited
    _awaited = False
    if count() == 1:
        return word
    from torch.distributed.rendezvous import rendezvous

    store: Any
    store, rank, size = next(iter(rendezvous("env://", timeout=FOREVER)))
    if rank == 0:
        store.set("word", word)
    store.wait(["word"], FOREVER)
    word = store.get("word").decode()
    store.set(f"heard by {rank}", "")
    if rank == 0:  # its end of the store must not close before
        store.wait([f"heard by {other}" for other in range(size)], FOREVER)
    # Nor later: whoever goes on looks for the next store at the same address, and torch then makes it of this one.
    _kept.append(store)
    return word


def expect_word() -> None:
    """From here on the others wait for this process's part in the leader's word."""
    global _awaited
    _awaited = True


def leave() -> None:
    """Of a process that failed: the others are not left waiting for its part in the leader's word."""
    if _awaited:
        word_of_leader(FAILED)


def share_of_step(batch_size: int, accumulate: int, processes: int) -> tuple[int, int]:
    """(blocks at once, batches accumulated) of each process, so that a step is as many blocks as in one process.

    batch_size: blocks that a device holds at once, at most. ValueError if the blocks of a step do not divide evenly.
    """
    in_step = batch_size * accumulate
    if in_step % processes:
        raise ValueError(
            f"A step of {in_step} blocks (training.batch_size={batch_size} x "
            f"trainer.accumulate_grad_batches={accumulate}) cannot be shared evenly by {processes} processes. Start a "
            "number of them that divides it, or change one of the two"
        )
    own = in_step // processes
    batches = next(number for number in range(1, own + 1) if own % number == 0 and own // number <= batch_size)
    return own // batches, batches
