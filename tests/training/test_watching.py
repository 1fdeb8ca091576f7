"""A benchmark while training goes on: at the right steps, of the tables as they stand, in the history once."""

from pathlib import Path

import pytest
import torch
from pico import pico_blocks, pico_fit, pico_module
from pytorch_lightning.loggers import CSVLogger

from lep.embeddings import Embeddings
from lep.training import BenchmarkWhileTraining, EndTraining, PackedData, ReportHeldOut
from lep.training.data import HeldOutWindow


@pytest.mark.parametrize("accumulate", [1, 2])
def test_tables_are_judged_every_so_many_optimizer_steps(accumulate: int, tmp_path: Path):
    module, seen = pico_module(), list[Embeddings]()

    def judge(tables: Embeddings) -> dict[str, float]:
        seen.append(tables)
        return {"pairs/ru": float(len(seen))}

    watcher = BenchmarkWhileTraining(3, judge)
    logger = CSVLogger(str(tmp_path), name="", version="")
    pico_fit(module, 7, callbacks=[watcher], logger=logger, accumulate_grad_batches=accumulate)
    assert [(row["step"], row["benchmark/pairs/ru"]) for row in module.history if "benchmark/pairs/ru" in row] == [
        (3, 1.0),
        (6, 2.0),
    ]
    assert not torch.equal(seen[0].input, seen[1].input) and not torch.equal(seen[1].input, module.embeddings().input)
    logger.save()
    assert "benchmark/pairs/ru" in (tmp_path / "metrics.csv").read_text()


def test_a_period_below_one_is_refused():
    with pytest.raises(ValueError, match="every_steps=0 is below 1"):
        BenchmarkWhileTraining(0, lambda tables: {})


VALIDATED = {"val_check_interval": 2, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}


def held_out() -> PackedData:
    windows = [HeldOutWindow(block[:-1], block[1:], 9) for block in pico_blocks(3)]
    return PackedData(pico_blocks(), batch_size=4, seed=3, held_out={"ru": windows})


def test_what_is_measured_on_held_out_text_is_reported_and_may_end_the_run() -> None:
    module, told = pico_module(), list[tuple[int, float]]()

    def report(step: int, bits: float) -> None:
        told.append((step, bits))
        if step == 4:
            raise EndTraining("behind")

    watch = ReportHeldOut("val/bits_per_byte/ru", report)
    with pytest.raises(EndTraining, match="behind"):
        pico_fit(module, 7, data=held_out(), callbacks=[watch], **VALIDATED)
    assert module.trainer.global_step == 4
    assert told == [
        (row["step"], row["val/bits_per_byte/ru"]) for row in module.history if "val/bits_per_byte/ru" in row
    ]


def test_a_measure_that_is_none_is_told_with_those_that_are() -> None:
    watch = ReportHeldOut("val/bits_per_byte/kk", lambda step, bits: None)
    with pytest.raises(ValueError, match=r"search.measure=val/bits_per_byte/kk is not measured.*val/bits_per_byte/ru"):
        pico_fit(pico_module(), 7, data=held_out(), callbacks=[watch], **VALIDATED)
