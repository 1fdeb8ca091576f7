"""Propagation from files stays within the memory that is foreseen for it."""

import os
import subprocess
import sys

import torch
from pico_models import random_operator

from lep import memory
from lep.embeddings import Embeddings
from lep.memory import propagation_bytes
from lep.propagation.gram import CHUNK_ROWS

HIDDEN, ROWS = 768, 3 * CHUNK_ROWS
CODE = """
import sys
from functools import partial
from pathlib import Path
from lep.embeddings import open_tables
from lep.memory import peak_memory_bytes
from lep.propagation import propagate
from lep.propagation.conversion import conversion
from lep.vocabulary import SubtokenOperator
folder = Path(sys.argv[1])
models = [open_tables(folder / f"{name}.safetensors") for name in ("adapted", "base", "instruct")]
tables, _ = propagate(partial(conversion, ridge=1e-3), *models, SubtokenOperator.load(folder / "operator.safetensors"))
tables.save(folder / "result.safetensors")
print(peak_memory_bytes())
"""


def test_a_fit_on_files_takes_no_more_memory_than_foreseen(tmp_path):
    random_operator(ROWS, ROWS, shared=ROWS // 2).save(tmp_path / "operator.safetensors")
    for seed, name in enumerate(("adapted", "base", "instruct")):
        table = torch.randn(ROWS, HIDDEN, generator=torch.Generator().manual_seed(seed)).bfloat16()
        Embeddings(table).save(tmp_path / f"{name}.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert int(done.stdout) <= propagation_bytes(HIDDEN, chunk_rows=CHUNK_ROWS)


def test_what_is_foreseen_at_8b_fits_a_laptop():
    assert propagation_bytes(4096, chunk_rows=CHUNK_ROWS) < 6e9


def test_a_kernel_that_does_not_say_the_peak_is_asked_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    elsewhere = memory.peak_memory_bytes()
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t  100 kB\n")
    assert memory.peak_memory_bytes() == elsewhere > 10**7
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  100 kB\n")
    assert memory.peak_memory_bytes() == 100 * 1024
