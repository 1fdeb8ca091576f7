"""Training of the tables on a GPU, at full size: tokens a second and memory, beside what `lep plan` foretells.

A model of the named shape with random weights and random tables of its new vocabulary trains for a few steps on random
tokens, through the module, loss and trainer of a run. Each argument is a run as `lep` takes it, in quotation marks; the
median over all steps but the first is shown. Efficiency is the share of the device's TFLOP/s (`hardware`) that the
operations of docs/cost.md come to.

    python benchmarks/train.py "model=llama3_8b tokenizer=extension" "model=gemma3_1b tokenizer=bpe" --hardware h100
"""

import argparse
import gc
import statistics
from dataclasses import dataclass, replace

import numpy as np
import torch
from pytorch_lightning import Trainer
from rich.console import Console
from rich.table import Table as Lines
from transformers import AutoModelForCausalLM

from lep import cost
from lep.budget.forecast import Device, Forecast, read_forecast
from lep.budget.training import training_memory
from lep.checkpoints import shape_config
from lep.config import plain, trained_rows
from lep.embeddings import Embeddings
from lep.plan_app import plan
from lep.run import HYDRA_VERSION_BASE
from lep.training import EmbeddingTraining, PackedData


@dataclass
class Found:
    """Of one run: tokens a second, the share of the device's speed, and bytes at the height."""

    tokens_a_second: float
    efficiency: float
    foretold: int
    allocated: int
    reserved: int


def measure(forecast: Forecast, steps: int, accumulate: int) -> Found:
    batch = replace(forecast.batch, accumulate=accumulate)
    module = make_module(forecast)
    blocks = np.random.default_rng(0).integers(
        0, forecast.trained.vocabulary, (steps * accumulate * batch.blocks, batch.block_size)
    )
    trainer = Trainer(
        accelerator="gpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    module.train()  # Lightning warns of modules in eval mode; the module itself puts the body there
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    trainer.fit(module, PackedData(blocks, batch_size=batch.blocks, seed=0))
    speeds = [row["train/tokens_per_second"] for row in module.history]
    speed = statistics.median(speeds[1:])
    flops = cost.training_flops(forecast.shape, forecast.trained, tokens=batch.tokens, length=batch.length)
    return Found(
        speed,
        speed * flops / batch.tokens / (forecast.device.tflops * 1e12),
        training_memory(forecast, batch).total,
        torch.cuda.max_memory_allocated(),
        torch.cuda.max_memory_reserved(),
    )


def make_module(forecast: Forecast) -> EmbeddingTraining:
    """As a run makes it, but that the model's weights are random and made where they are needed."""
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(
            shape_config(plain(forecast.config.model.shape)), dtype=torch.bfloat16
        ).eval()
        tables = [
            (torch.randn(forecast.trained.vocabulary, forecast.shape.hidden) * 0.02).cpu()
            for _ in range(forecast.shape.tables)
        ]
    rows = trained_rows(forecast.config)
    return EmbeddingTraining(
        model,
        Embeddings(tables[0], tables[1] if len(tables) > 1 else None),
        learning_rate=1e-4,
        warmup_steps=1,
        rows=rows,
        first_new_row=forecast.trained.vocabulary - forecast.trained.output if rows == "new" else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--hardware", default="h100", help="a file of conf/hardware; default %(default)s")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps; default %(default)s")
    parser.add_argument("--accumulate", type=int, default=2, help="batches of a step; default %(default)s")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch finds no GPU, which this measures")
    lines = Lines(title=f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name in ("run", "blocks", "tokens a second", "TFLOP/s", "efficiency", "foretold, GB", "allocated", "reserved"):
        lines.add_column(name, justify="left" if name == "run" else "right")
    for run in arguments.runs:
        (job,) = plan([*run.split(), "trainer=gpu", f"hardware={arguments.hardware}"], version_base=HYDRA_VERSION_BASE)
        forecast = read_forecast(job.config, job.budget.device)
        found = measure(forecast, arguments.steps, arguments.accumulate)
        lines.add_row(*cells(run, forecast, forecast.device, found))
        Console().print(lines)  # each time: the next run may not fit
        gc.collect()
        torch.cuda.empty_cache()


def cells(run: str, forecast: Forecast, device: Device, found: Found) -> tuple[str, ...]:
    memory = (f"{size / 1e9:.2f}" for size in (found.foretold, found.allocated, found.reserved))
    speed = (f"{found.tokens_a_second:,.0f}", f"{found.efficiency * device.tflops:.0f}", f"{found.efficiency:.1%}")
    return (run, f"{forecast.batch.blocks} x {forecast.batch.block_size}", *speed, *memory)


if __name__ == "__main__":
    main()
