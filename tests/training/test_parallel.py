"""Two processes train as one does, to rounding: whole, in shards, and from each other's checkpoints."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parallel_run import (
    ARCHITECTURES,
    KILLED_AT_STEP,
    STEPS,
    STRATEGIES,
    fit,
    fit_until_killed,
    leave,
    loss_of,
    weights_here,
)
from pico import NEW, OLD, WIDTH
from safetensors.torch import load_file

from lep.processes import share_of_step

RUN = Path(__file__).with_name("parallel_run.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and then two left: see `parallel_run`."""
    folder = tmp_path_factory.mktemp("parallel")
    module = fit(None)
    leave(folder / "one whole", module)
    for name in STRATEGIES:
        fit_until_killed(None, folder / f"one killed for {name}")
    copytree(folder / "one killed for ddp", folder / "one killed")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(RUN),
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(torchrun, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def assert_same_training(one: Path, other: Path) -> None:
    """The same curve (losses, bits per byte, rates, tokens), and the same tables."""
    curves = [json.loads((path / "curve.json").read_text()) for path in (one, other)]
    assert [row["step"] for row in curves[0]] == [row["step"] for row in curves[1]]
    for mine, theirs in zip(*curves, strict=True):
        names = mine.keys() - {"train/tokens_per_second"}
        assert mine.keys() == theirs.keys()
        assert {name: mine[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, rel=1e-5)
    tables = [load_file(path / "tables.safetensors") for path in (one, other)]
    torch.testing.assert_close(*tables, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_train_as_one(folder: Path, name: str):
    curve = json.loads((folder / "one whole" / "curve.json").read_text())
    assert curve[-1]["step"] == STEPS and sum("train/loss" in row for row in curve) == STEPS // 2
    assert_same_training(folder / f"{name} whole", folder / "one whole")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_of_two_processes_that_was_killed_goes_on_in_two_and_in_one(folder: Path, name: str):
    assert_same_training(folder / f"{name} killed, then {name}", folder / "one whole")
    here = copytree(folder / f"{name} kept", folder / f"{name} killed, then one")
    module = fit(None, checkpoints=here, resume=True)
    leave(here, module)
    assert_same_training(here, folder / "one whole")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_of_one_process_that_was_killed_goes_on_in_two(folder: Path, name: str):
    assert_same_training(folder / f"one killed for {name}, then {name}", folder / "one whole")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_checkpoint_of_two_processes_is_one_of_one(folder: Path, name: str):
    one, two = (torch.load(folder / left / "last.ckpt", weights_only=True) for left in ("one killed", f"{name} kept"))
    assert two["global_step"] == one["global_step"] == KILLED_AT_STEP // 3 * 3
    assert two.keys() == one.keys() and two["state_dict"].keys() == one["state_dict"].keys()
    for table, trained in one["state_dict"].items():
        assert type(two["state_dict"][table]) is torch.Tensor
        torch.testing.assert_close(two["state_dict"][table], trained, rtol=1e-4, atol=1e-5)
    assert one["state_dict"]["input.trained"].shape == (NEW - OLD, WIDTH)


def test_shards_hold_the_frozen_body_once_and_every_process_the_tables(folder: Path):
    module = fit(None)
    whole = weights_here(module)
    held = {name: [json.loads((folder / f"{name} {rank}.json").read_text()) for rank in (0, 1)] for name in STRATEGIES}
    assert held["ddp"] == [whole, whole]
    assert sum(here["body"] for here in held["fsdp"]) == whole["body"]
    assert all(here["body"] < 0.6 * whole["body"] and here["tables"] == whole["tables"] for here in held["fsdp"])


def test_every_architecture_trains_in_shards(folder: Path):
    alone = [loss_of(None, *architecture) for architecture in ARCHITECTURES]
    losses = json.loads((folder / "architectures.json").read_text())
    assert losses[:-1] == pytest.approx(alone[:-1], rel=1e-5)
    assert losses[-1] == pytest.approx(alone[-1], rel=1e-3)  # in bfloat16
    assert losses[0] == losses[1]  # Llama and Mistral, which differ beyond these blocks only
    assert len({round(loss, 4) for loss in losses}) == len(losses) - 1


def test_the_leader_goes_on_when_the_other_process_is_gone(folder: Path):
    assert (folder / "others left").exists()


def test_all_processes_hear_the_leader(folder: Path):
    assert [(folder / f"heard by {rank}").read_text() for rank in (0, 1)] == ["train", "train"]


@given(batch_size=st.integers(1, 12), accumulate=st.integers(1, 12), processes=st.integers(1, 12))
def test_a_step_is_as_large_whatever_the_number_of_processes(batch_size: int, accumulate: int, processes: int):
    if batch_size * accumulate % processes:
        with pytest.raises(ValueError, match=f"cannot be shared evenly by {processes} processes"):
            share_of_step(batch_size, accumulate, processes)
        return
    at_once, batches = share_of_step(batch_size, accumulate, processes)
    assert at_once * batches * processes == batch_size * accumulate and at_once <= batch_size
    fewer = math.ceil(batch_size * accumulate / processes / batch_size)
    assert batches >= fewer and (processes > 1 or (at_once, batches) == (batch_size, accumulate))
