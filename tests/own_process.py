"""`lep` in a process of its own without the seconds that its imports take: forked from one that has done them."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # for what is preloaded, as it is read in importing
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["lep.run"])


def run_lep(folder: Path, arguments: list[str], environment: Mapping[str, str], *, check: bool):
    """As `subprocess.run([python, "-m", "lep", *arguments])` in a folder, with what it printed."""
    with TemporaryDirectory() as place:
        out, err = Path(place) / "out", Path(place) / "err"
        process = FORKS.Process(target=_lep, args=(folder, arguments, dict(environment), out, err))
        process.start()
        process.join()
        done = subprocess.CompletedProcess(["lep", *arguments], process.exitcode or 0, out.read_text(), err.read_text())
    if check and done.returncode:
        raise AssertionError(f"{done.args} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def _lep(folder: Path, arguments: list[str], environment: dict[str, str], out: Path, err: Path) -> None:
    from lep.run import main

    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = ["lep", *arguments]
    main()
