"""What holds on a CPU holds on a GPU too: losses, training, tuning, answers, memory. Runs where torch finds one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from own_process import run_lep
from pico_models import FAMILIES, TEXT, pico_model, pico_tokenizer
from torch.nn import functional

from lep import cost
from lep.benchmark.micro import MicroBenchmark
from lep.benchmark.scoring import generate, option_scores, sequence_logprobs
from lep.calibration.packing import pack
from lep.calibration.rendering import Rendered
from lep.calibration.tuning import InstructionTuning, Tuning, TuningData
from lep.checkpoints import load_model, load_tokenizer, resolve
from lep.embeddings import Embeddings, embeddings_of, set_embeddings_
from lep.results import read_result
from lep.training import EmbeddingTraining, LastCheckpoint, PackedData
from lep.training.loss import chunked_cross_entropy, positions_at_once

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")

SMALL = (
    "training.steps=12",
    "training.warmup_steps=2",
    "training.log_every_steps=1",
    "training.validate_every_steps=6",
    "corpus.source.num_documents=1500",
    "corpus.held_out.documents=10",
)
OLD, NEW, BLOCK, BLOCKS = 60, 83, 33, 8
WORKSPACES = 70e6  # that cuBLAS takes for its products on a Hopper GPU
MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(autouse=True)
def exact_products():
    """As the framework leaves them: float32 products are float32 and not TF32."""
    assert not torch.backends.cuda.matmul.allow_tf32
    torch.manual_seed(0)


def blocks(count: int, vocabulary: int = NEW) -> np.ndarray:
    """Blocks in which a token follows from the one before."""
    starts = np.random.default_rng(0).integers(0, vocabulary, (count, 1))
    return (starts + 7 * np.arange(BLOCK)) % vocabulary


def training(family: str, *, tied: bool = False, rows: str = "all", **settings) -> EmbeddingTraining:
    model = pico_model(family, tied=tied)
    generator = torch.Generator().manual_seed(1)
    tables = [torch.randn(NEW, 32, generator=generator) * 0.2 for _ in range(2)]
    return EmbeddingTraining(
        model,
        Embeddings(tables[0], None if tied else tables[1]),
        **{
            "learning_rate": 0.01,
            "warmup_steps": 2,
            "body_dtype": "auto",
            "frozen_rows": [70],
            "rows": rows,
            "first_new_row": OLD,
        }
        | settings,
    )


def fit(module: EmbeddingTraining, steps: int = 8, *, accelerator: str = "gpu", resume: Path | None = None, **trainer):
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": -1}
    folder = trainer.pop("checkpoints", None)
    own = [LastCheckpoint(folder, every_n_steps=3)] if folder else []
    found = pl.Trainer(
        accelerator=accelerator, devices=1, max_steps=steps, gradient_clip_val=1.0, log_every_n_steps=1,
        callbacks=own, enable_checkpointing=folder is not None, **settings | trainer,
    )  # fmt: skip
    module.train()
    found.fit(module, PackedData(blocks(BLOCKS * 12), batch_size=BLOCKS, seed=3), ckpt_path=resume)
    return found


def losses(module: EmbeddingTraining) -> list[float]:
    return [row["train/loss"] for row in module.history if "train/loss" in row]


def both(module: EmbeddingTraining) -> list[torch.Tensor]:
    tables = module.embeddings()
    return [tables.input] if tables.output is None else [tables.input, tables.output]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_loss_and_gradients_are_those_of_whole_logits_in_float64(dtype: torch.dtype, tolerance: float):
    """At the default chunk of a GPU, over a frozen and a trained part of a long table."""
    positions, old, new, width = 3000, 40_000, 10_000, 64
    assert 1 < positions_at_once(old + new, "cuda") < positions
    hidden = torch.randn(positions, width, device="cuda", dtype=dtype, requires_grad=True)
    tables = [torch.randn(old, width, device="cuda"), torch.randn(new, width, device="cuda", requires_grad=True)]
    targets = torch.randint(0, old + new, (positions,), device="cuda")
    targets[::7] = -100
    loss = chunked_cross_entropy(hidden, tables, targets=targets)
    loss.backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, *tables)]
    reference = functional.cross_entropy(exact[0] @ torch.cat(exact[1:]).T, targets)
    reference.backward()
    torch.testing.assert_close(loss.double(), reference, rtol=tolerance, atol=0)
    for found, expected in ((hidden.grad, exact[0].grad), (tables[1].grad, exact[2].grad)):
        assert found is not None and expected is not None
        assert (found.double() - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", ["all", "new"])
def test_training_in_float32_is_that_of_a_cpu(family: str, rows: str):
    there, here = (training(family, rows=rows, body_dtype="float32") for _ in range(2))
    fit(there)
    fit(here, accelerator="cpu")
    assert losses(there) == pytest.approx(losses(here), rel=1e-4)
    for found, expected in zip(both(there), both(here), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_body_in_bfloat16_learns_and_keeps_what_is_frozen(family: str, tied: bool):
    """`auto` is bfloat16 here; the tables stay float32, the frozen row and the first rows as they were given."""
    module = training(family, tied=tied, rows="new")
    before = both(module)
    body = {name: value.clone() for name, value in module.body.state_dict().items()}
    fit(module, 12)
    assert {p.dtype for p in module.body.parameters()} == {torch.bfloat16}
    assert losses(module)[-1] < losses(module)[0]
    for found, start in zip(both(module), before, strict=True):
        assert found.dtype == torch.float32 and torch.equal(found[:OLD], start[:OLD])
        assert torch.equal(found[70], start[70]) and not torch.equal(found[71:], start[71:])
    for name, value in module.body.state_dict().items():
        assert torch.equal(value.cpu(), body[name].to(value.dtype)), name


def test_a_killed_training_goes_on_with_the_same_curve(tmp_path: Path):
    whole, first, second = training("llama"), training("llama"), training("llama")
    fit(whole, 8)
    fit(first, 8, checkpoints=tmp_path, limit_train_batches=6)  # ends where a process might have been killed
    fit(second, 8, checkpoints=tmp_path, resume=tmp_path / "last.ckpt")
    assert losses(second) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.parametrize("rows", ["all", "new"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_memory_is_what_was_foretold(family: str, rows: str):
    """With sizes at which the allocator's rounding counts for little; `lep plan` says the rest."""
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8,
             "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512}  # fmt: skip
    old, new, length, count = 30_000, 40_000, 257, 16
    model = pico_model(family, tied=False, vocab_size=old, **sizes)
    shape, moving = cost.Shape.of(model.config), new if rows == "all" else new - old
    tables = Embeddings(torch.randn(new, 512) * 0.02, torch.randn(new, 512) * 0.02)
    module = EmbeddingTraining(model, tables, learning_rate=1e-3, warmup_steps=1, rows=rows, first_new_row=old)  # type: ignore
    packed = np.random.default_rng(0).integers(0, new, (count * 6, length))
    trainer = pl.Trainer(accelerator="gpu", devices=1, max_steps=3, max_epochs=-1, accumulate_grad_batches=2,
                         gradient_clip_val=1.0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False)  # fmt: skip
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    started = torch.cuda.memory_allocated()
    module.train()
    trainer.fit(module, PackedData(packed, batch_size=count, seed=0))
    batch = cost.Batch(count, length, 2, positions_at_once(new, "cuda"), accumulate=2)
    told = cost.training_memory(shape, cost.Trained(new, output=moving, input=moving), batch)
    beside = torch.cuda.max_memory_allocated() - started - told.total
    assert -0.03 * told.total < beside < WORKSPACES + 0.03 * told.total


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_tuning_is_that_of_a_cpu(family: str):
    def tuned(accelerator: str) -> list[float]:
        settings = Tuning(rank=4, alpha=8.0, layers="all", modules=MAPS, tables=["input", "output"], learning_rate=1e-2,
                          weight_decay=0.1, batch_size=4, blocks_at_once=2, block_size=16, epochs=4,
                          log_every_steps=1, body_dtype="float32")  # fmt: skip
        rng = np.random.default_rng(0)
        rendered = [Rendered(rng.integers(3, OLD, 7).astype(np.int32), np.arange(7) > 2) for _ in range(24)]
        torch.manual_seed(0)
        module = InstructionTuning(pico_model(family, tied=False).train(), settings, steps=6)
        found = pl.Trainer(accelerator=accelerator, devices=1, max_steps=6, max_epochs=-1, accumulate_grad_batches=2,
                           gradient_clip_val=1.0, log_every_n_steps=1, logger=False, enable_checkpointing=False,
                           enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
        found.fit(module, TuningData(pack(rendered, 16, 0), batch_size=2, seed=3))
        return [row["train/loss"] for row in module.history if "train/loss" in row]

    there, here = tuned("gpu"), tuned("cpu")
    assert len(there) == 6 and there[-1] < there[0]
    assert there == pytest.approx(here, rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_scores_are_those_of_a_cpu(family: str):
    tokenizer = pico_tokenizer(family="qwen2" if family == "qwen2" else "")
    there, here = (pico_model(family, tied=True, vocab_size=len(tokenizer)).to(device) for device in ("cuda", "cpu"))  # type: ignore
    prompts = ["the cat sat on", "Мария купила", "потом она пошла в парк и"]
    written = [generate(model, tokenizer, prompts, max_new_tokens=12) for model in (there, here)]
    assert written[0] == written[1]
    options = [[" the mat", " a log"], [" красную книгу", " the log"], [" там", " читала"]]
    for found, expected in zip(*(option_scores(m, tokenizer, prompts, options) for m in (there, here)), strict=True):
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-4)
    for found, expected in zip(*(sequence_logprobs(m, tokenizer, TEXT) for m in (there, here)), strict=True):
        assert np.allclose(found.logprobs, expected.logprobs, rtol=1e-4, atol=1e-4)


def test_a_shipped_model_answers_as_on_a_cpu():
    """The embedded instruct model: greedy answers of a real vocabulary, also with other tables set."""
    directory = resolve("package:lep.assets/tiny/instruct", None, key="model.instruct")
    tokenizer = load_tokenizer(directory, key="model.instruct")
    found = []
    for device in ("cuda", "cpu"):
        model = load_model(directory, device=device, dtype=torch.float32)
        set_embeddings_(model, embeddings_of(model).map(lambda table: table.cpu()))
        found.append(MicroBenchmark(items_per_task=10)(model, tokenizer))
    there, here = ({key: score.value for key, score in result.scores.items()} for result in found)
    assert there == here and len(there) > 8


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_a_process_of_torchrun_trains_over_nccl(trainer: str, tmp_path: Path):
    """Validation before training and after it included, which takes other ways over NCCL than over gloo."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m", "lep")
    command = [*torchrun, *SMALL, f"trainer={trainer}", "propagation=[swap]", "benchmark=none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = (tmp_path / "runs").rglob("result.json")
    bits = [row["val/bits_per_byte"] for row in read_result(found).training["curve"] if "val/bits_per_byte" in row]
    assert len(bits) > 1 and bits[-1] < bits[0]


def test_the_whole_method_runs_on_a_gpu(tmp_path: Path):
    """`lep trainer=gpu`, a calibration behind it and an export; the original's scores are those of a CPU."""
    more = (
        "calibration=instruct_copy",
        "calibration.on=[delta]",
        "export=[delta]",
        "benchmark.micro.items_per_task=20",
    )
    more = (*more, "instructions.source.count=64", "instructions.copies.count=16")
    results = []
    for trainer in ("gpu", "cpu"):
        overrides = (*SMALL, *more, f"trainer={trainer}", f"output_dir=out_{trainer}", f"artifacts_dir=art_{trainer}")
        run_lep(tmp_path, [*overrides], os.environ, check=True)
        (found,) = (tmp_path / f"out_{trainer}").rglob("result.json")
        results.append(read_result(found))
    there, here = results
    assert [row.name for row in there.rows] == [row.name for row in here.rows]
    assert there.rows[0].scores == here.rows[0].scores
    curves = [[row["train/loss"] for row in result.training["curve"] if "train/loss" in row] for result in results]
    assert curves[0] == pytest.approx(curves[1], rel=0.02)  # a body in bfloat16 beside one in float32
    assert there.environment["device"] == "gpu"
