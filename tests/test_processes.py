"""The first process's word reaches all, whatever started them and whichever is late; one that fails holds up nobody."""

import os
import socket
import subprocess
import sys

import pytest

HEARS = """
import sys, time
from datetime import timedelta
import torch.distributed as dist
from lep import processes

rank, how = int(sys.argv[1]), sys.argv[2]
processes.leave()  # of a failure before any word is expected
processes.expect_word()
time.sleep(2 * (rank == 2))  # one is late
if rank == 0 and how == "failing":
    processes.leave()
    print("left")
else:
    print(processes.word_of_leader("train" if rank == 0 else ""))
processes.leave()  # of a failure after the word: nobody waits for it
if how == "going on":
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    dist.barrier()
"""


@pytest.mark.parametrize(
    ("how", "heard"), [("going on", ["train", "train", "train"]), ("failing", ["left", "failed", "failed"])]
)
def test_three_processes_that_torchrun_did_not_start(how: str, heard: list[str]):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    of_all = {**os.environ, "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", HEARS, str(rank), how],
            env={**of_all, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        said = [process.communicate(timeout=90) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [out.strip() for out, _ in said] == heard, said
    assert [process.returncode for process in started] == [0, 0, 0], said
