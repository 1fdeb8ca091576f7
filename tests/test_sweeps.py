"""Sweeps as a person starts them: what the runs share is made once, and a run that fails does so alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from own_process import run_lep
from wandb_offline import read_offline_run

from lep.results import ERROR_FILE
from lep.sweep import NameFailures, forget_notes, leave_note

SMALL = (
    "training.steps=4",
    "training.warmup_steps=1",
    "training.validate_every_steps=2",
    "corpus.source.num_documents=400",
    "corpus.held_out.documents=4",
    "measured_characters=2000",
    "stages=[training]",
    "study=test",
)
AT_ONCE = {
    "processes": ("hydra/launcher=processes", "hydra.launcher.n_jobs=2"),
    "submitit": ("hydra/launcher=submitit_local",),
    "ray": (
        "hydra/launcher=ray",
        "+hydra.launcher.ray.init.num_cpus=2",
        "+hydra.launcher.ray.init.include_dashboard=false",
    ),
}


def sweep(folder: Path, *overrides: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    arguments = ["-m", *SMALL, *overrides]
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "140",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if not any(override.startswith("hydra/launcher=") for override in overrides):
        return run_lep(folder, arguments, variables, check=check)
    command = [sys.executable, "-m", "lep", *arguments]  # a launcher starts more like it
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=check)


def runs(folder: Path, file: str) -> list[Path]:
    """The file of that name of every run that has it."""
    return sorted((folder / "runs" / "test").glob(f"*/{file}"))


def made(folder: Path, kind: str) -> int:
    """How often the runs made an artifact of that kind, by their logs."""
    return sum(path.read_text().count(f"made {kind}/") for path in runs(folder, "run.log"))


@pytest.mark.parametrize("launcher", AT_ONCE)
def test_runs_at_the_same_time_make_what_they_share_once(tmp_path: Path, launcher: str) -> None:
    sweep(tmp_path, *AT_ONCE[launcher], "seed=0,1")
    assert len(runs(tmp_path, "result.json")) == 2
    assert {kind: made(tmp_path, kind) for kind in ("corpus", "tokenizer", "operator", "packed")} == {
        "corpus": 1,
        "tokenizer": 1,
        "operator": 1,
        "packed": 1,
    }
    assert made(tmp_path, "adapted") == 2


def test_a_run_that_fails_leaves_the_others_alone_and_is_done_again_alone(tmp_path: Path) -> None:
    """In the middle of training, where an error is no mistake that was seen before any work."""
    swept = "trainer.precision=32-true,64-true,bf16-mixed"
    done = sweep(tmp_path, swept, "logger=[wandb]", check=False)
    assert done.returncode == 1
    results = runs(tmp_path, "result.json")
    assert len(results) == 2
    (error,) = runs(tmp_path, "error.txt")
    assert "64-true" in error.parent.name
    end = done.stderr[done.stderr.index("1 run failed") :]
    assert error.parent.name in end and "would train the tables in another type than float32" in " ".join(end.split())
    assert "Traceback" not in done.stderr and "Traceback" in (error.parent / "run.log").read_text()

    # In one process: the run that failed is closed, and what comes after it is a run of its own.
    logged = [read_offline_run(path.parent) for path in (*results, error)]
    assert [run.exit_code for run in logged] == [0, 0, 1] and len({run.run_id for run in logged}) == 3
    assert [run.config["trainer"]["precision"] for run in logged] == ["32-true", "bf16-mixed", "64-true"]

    before = [path.stat().st_mtime_ns for path in results]
    again = sweep(tmp_path, swept, check=False)
    assert again.returncode == 1 and again.stdout.count("is done already") == 2
    assert [path.stat().st_mtime_ns for path in results] == before
    # Of an older failure that is not among its runs, a sweep says nothing.
    other = sweep(tmp_path, "trainer.precision=32-true,bf16-mixed")
    assert "failed" not in other.stderr and error.exists()


def test_only_failures_of_this_sweep_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Old ones stay in their folders until their runs start again."""
    for name in ("old", "again", "mended"):
        (tmp_path / name).mkdir()
        leave_note(tmp_path / name, ERROR_FILE, f"{name} before")
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}, "output_dir": str(tmp_path / "runs")})
    naming = NameFailures()
    naming.on_multirun_start(config)
    forget_notes(tmp_path / "mended")
    forget_notes(tmp_path / "again")
    naming.on_multirun_end(config)
    leave_note(tmp_path / "again", ERROR_FILE, "steps=0 is too few")
    of_another_study = tmp_path / "runs" / "far" / "default"  # a sweep over experiments
    leave_note(of_another_study, ERROR_FILE, "steps=1 is too few")
    with pytest.raises(SystemExit) as ended:
        naming.on_multirun_end(config)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert (
        "again: steps=0 is too few" in said
        and "default: steps=1" in said
        and "old" not in said
        and "mended" not in said
    )
