"""A benchmark while training goes on: at the right steps, of the tables as they stand, in the history once."""

from pathlib import Path

import pytest
import torch
from pico import pico_fit, pico_module
from pytorch_lightning.loggers import CSVLogger

from lep.embeddings import Embeddings
from lep.training import BenchmarkWhileTraining


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
