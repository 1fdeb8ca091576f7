"""A killed run goes on to the same loss curve and the same tables, bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pico import NEW, OLD, WIDTH, pico_blocks, pico_fit, pico_module

from lep.training import EmbeddingTraining, PackedData
from lep.training.data import HeldOutWindow
from lep.training.watching import BenchmarkWhileTraining

STEPS = 14


class Killed(Exception):
    pass


class KillAt(pl.Callback):
    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.seen = 0

    def on_train_batch_start(self, *_) -> None:
        if self.seen == self.batch:
            raise Killed
        self.seen += 1


def data(*, validate: bool = False, seed: int = 3) -> PackedData:
    windows = [HeldOutWindow(block[:-1], block[1:], 9) for block in pico_blocks(3)]
    return PackedData(pico_blocks(), batch_size=4, seed=seed, held_out={"ru": windows} if validate else None)


def curve(module: EmbeddingTraining) -> list[dict[str, float]]:
    return [{key: row[key] for key in row if key != "train/tokens_per_second"} for row in module.history]


def assert_same(resumed: EmbeddingTraining, whole: EmbeddingTraining) -> None:
    assert curve(resumed) == curve(whole)
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


# An epoch is 11 batches, or 10 where two are accumulated; checkpoints come every second step.
@pytest.mark.parametrize(
    ("accumulate", "killed_at", "rows"),
    [(1, 4, "all"), (1, 8, "new"), (1, 11, "all"), (1, 12, "all"), (2, 11, "all"), (2, 12, "new"), (2, 20, "all")],
)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, accumulate: int, killed_at: int, rows: str):
    settings = {"rows": rows, "first_new_row": OLD, "frozen_rows": [35]}
    whole = pico_module(**settings)
    pico_fit(whole, STEPS, data=data(), accumulate_grad_batches=accumulate)
    common = {"checkpoints": tmp_path, "every": 2, "accumulate_grad_batches": accumulate}
    with pytest.raises(Killed):
        pico_fit(pico_module(**settings), STEPS, data=data(), callbacks=[KillAt(killed_at)], **common)
    resumed = pico_module(**settings)
    pico_fit(resumed, STEPS, data=data(), resume=True, **common)
    assert_same(resumed, whole)


@pytest.mark.parametrize("max_epochs", [None, 2])
@pytest.mark.parametrize("killed_at", [5, 7, 13])
def test_validations_and_epochs_survive_a_kill(tmp_path: Path, killed_at: int, max_epochs: int | None):
    steps = STEPS if max_epochs is None else -1
    common = {
        "val_check_interval": 4,
        "check_val_every_n_epoch": None,
        "max_epochs": max_epochs,
        "log_every_n_steps": 5,
    }
    whole = pico_module()
    pico_fit(whole, steps, data=data(validate=True), **common)
    with pytest.raises(Killed):
        doomed = pico_module()
        pico_fit(doomed, steps, data=data(validate=True), checkpoints=tmp_path, callbacks=[KillAt(killed_at)], **common)
    resumed = pico_module()
    pico_fit(resumed, steps, data=data(validate=True), checkpoints=tmp_path, resume=True, **common)
    assert_same(resumed, whole)


def test_a_validation_that_a_kill_cut_off_is_not_lost(tmp_path: Path):
    class KillInValidation(pl.Callback):
        def on_validation_batch_start(self, trainer: pl.Trainer, *_) -> None:
            if trainer.global_step == 8:
                raise Killed

    common = {"val_check_interval": 4, "check_val_every_n_epoch": None, "every": 4}
    whole, doomed, resumed = pico_module(), pico_module(), pico_module()
    pico_fit(whole, STEPS, data=data(validate=True), checkpoints=tmp_path / "whole", **common)
    common["checkpoints"] = tmp_path / "doomed"
    with pytest.raises(Killed):
        pico_fit(doomed, STEPS, data=data(validate=True), callbacks=[KillInValidation()], **common)
    pico_fit(resumed, STEPS, data=data(validate=True), resume=True, **common)
    assert_same(resumed, whole)


def test_a_finished_run_is_taken_up_with_its_tables_and_trains_no_more(tmp_path: Path):
    whole, again = pico_module(), pico_module()
    pico_fit(whole, STEPS, data=data(), checkpoints=tmp_path)
    ended = []
    callback = pl.Callback()
    callback.on_fit_end = lambda *_: ended.append(True)
    pico_fit(again, STEPS, data=data(), checkpoints=tmp_path, resume=True, callbacks=[callback])
    assert_same(again, whole)
    assert ended == [True]


DOOMED_RUN = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import pytorch_lightning as pl
import torch
from test_resume import STEPS, data, pico_fit, pico_module

class HangAtTheNinth(pl.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 8:
            print("hanging", flush=True)
            time.sleep(1000)

torch.set_num_threads(int(sys.argv[3]))
callbacks = [HangAtTheNinth()]
pico_fit(pico_module(), STEPS, data=data(), checkpoints=Path(sys.argv[2]), every=3, callbacks=callbacks)
"""


def test_a_run_killed_by_signal_goes_on_bit_for_bit(tmp_path: Path):
    whole = pico_module()
    pico_fit(whole, STEPS, data=data())
    arguments = [str(Path(__file__).parent), str(tmp_path), str(torch.get_num_threads())]
    process = subprocess.Popen([sys.executable, "-c", DOOMED_RUN, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any("hanging" in line for line in process.stdout)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resumed = pico_module()
    pico_fit(resumed, STEPS, data=data(), checkpoints=tmp_path, resume=True)
    assert_same(resumed, whole)


@pytest.mark.parametrize(("tied", "rows"), [(False, "all"), (True, "all"), (False, "new")])
def test_a_checkpoint_holds_only_what_is_trained(tmp_path: Path, tied: bool, rows: str):
    module = pico_module(tied=tied, rows=rows, first_new_row=OLD)
    pico_fit(module, 4, checkpoints=tmp_path)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    names = {"input.trained"} if tied else {"input.trained", "output.trained"}
    trained_rows = NEW if rows == "all" else NEW - OLD
    assert set(checkpoint["state_dict"]) == names
    weights = sum(value.numel() for value in checkpoint["state_dict"].values())
    assert weights == len(names) * trained_rows * WIDTH
    states = checkpoint["optimizer_states"][0]["state"]
    assert sum(state["exp_avg"].numel() for state in states.values()) == weights
    # Three float32 numbers a trained weight (itself and two moments), and some kilobytes of progress.
    assert (tmp_path / "last.ckpt").stat().st_size < 12 * weights + 20_000
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_of_other_tables_is_refused(tmp_path: Path):
    pico_fit(pico_module(), 4, data=data(), checkpoints=tmp_path)
    with pytest.raises(ValueError, match="input.trained as"):
        pico_fit(pico_module(rows="new", first_new_row=OLD), 8, data=data(), checkpoints=tmp_path, resume=True)


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path):
    pico_fit(pico_module(), 4, data=data(), checkpoints=tmp_path)
    with pytest.raises(ValueError, match="seed=3, this run has seed=4"):
        pico_fit(pico_module(), 8, data=data(seed=4), checkpoints=tmp_path, resume=True)


def test_a_checkpoint_that_fails_halfway_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pico_fit(pico_module(), 4, checkpoints=tmp_path)
    before = (tmp_path / "last.ckpt").read_bytes()

    def broken(checkpoint, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("lep.training.checkpoint.torch.save", broken)
    with pytest.raises(OSError, match="disk full"):
        pico_fit(pico_module(), 4, checkpoints=tmp_path)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_run_that_goes_on_is_not_judged_again_at_its_first_step(tmp_path: Path):
    """Batches that are accumulated end at the step of the checkpoint once more."""

    def judging() -> BenchmarkWhileTraining:
        return BenchmarkWhileTraining(4, lambda tables: {"right": 1.0})

    common = {"checkpoints": tmp_path, "every": 2, "accumulate_grad_batches": 2}
    with pytest.raises(Killed):
        pico_fit(pico_module(), STEPS, data=data(), callbacks=[judging(), KillAt(9)], **common)
    module = pico_module()
    pico_fit(module, STEPS, data=data(), resume=True, callbacks=[judging()], **common)
    assert [row["step"] for row in module.history if "benchmark/right" in row] == [4, 8, 12]
