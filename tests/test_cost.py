"""What is foretold is what is counted: parameters, floating point operations, memory of a training that runs."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pico_models import FAMILIES, pico_model
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lep import cost
from lep.calibration.packing import InstructionBlocks, attention_masks, pack
from lep.calibration.rendering import Rendered
from lep.calibration.tuning import InstructionTuning, Tuning, TuningData
from lep.embeddings import Embeddings
from lep.training import EmbeddingTraining, PackedData
from lep.training.loss import positions_at_once

aten = torch.ops.aten
# Products that torch's own counter does not know: into a sum, and attention as a CPU computes it.
UNCOUNTED = {
    aten.addmm_: lambda total, left, right, **_: 2 * left[0] * left[1] * right[1],
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: flop_counter.sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
        flop_counter.sdpa_backward_flop_count(grad, q, k, v)
    ),
}
MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OLD, NEW, BLOCK, BLOCKS = 700, 1000, 33, 4
SIZES: dict[str, Any] = {
    "vocab_size": OLD,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def model_of(family: str, *, tied: bool, **changes: Any):
    return pico_model(family, tied=tied, **SIZES | changes)


def training(family: str, *, tied: bool, rows: str, dtype: str = "float32", **changes: Any) -> EmbeddingTraining:
    """A model in embedding training on NEW tokens, of which the first OLD are its own."""
    model = model_of(family, tied=tied, **changes)
    table = torch.zeros(NEW, model.config.hidden_size)
    return EmbeddingTraining(
        model,
        Embeddings(table.normal_(), None if tied else torch.randn_like(table)),
        learning_rate=1e-3,
        warmup_steps=1,
        rows=rows,  # type: ignore[arg-type]
        first_new_row=OLD,
        body_dtype=dtype,  # type: ignore[arg-type]
    )


def shape_and_trained(family: str, *, tied: bool, rows: str, **changes: Any) -> tuple[cost.Shape, cost.Trained]:
    shape = cost.Shape.of(model_of(family, tied=tied, **changes).config)
    moving = NEW if rows == "all" else NEW - OLD
    return shape, cost.Trained(NEW, output=moving, input=0 if tied else moving)


# Parameters


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_model(family: str, tied: bool):
    model = model_of(family, tied=tied)
    shape = cost.Shape.of(model.config)
    assert shape.parameters() == model.num_parameters()
    assert shape.parameters(NEW) - shape.parameters() == shape.tables * (NEW - OLD) * shape.hidden


def test_a_family_whose_layers_nobody_worked_out_is_refused():
    config = CONFIG_MAPPING["gpt_neox"]()
    with pytest.raises(ValueError, match=r"model_type=gpt_neox.*llama, mistral.*model\.shape"):
        cost.Shape.of(config)


# Floating point operations


def counted(run: Callable[[], Any]) -> int:
    with flop_counter.FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_takes_the_operations_that_are_counted(family: str):
    model = model_of(family, tied=True)
    ids = torch.arange(3 * 20).reshape(3, 20)
    told = cost.forward_flops(cost.Shape.of(model.config), vocabulary=OLD, tokens=60, length=20)
    with torch.no_grad():
        assert counted(lambda: model(ids, use_cache=False)) == told


@pytest.mark.parametrize("rows", ["all", "new"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_takes_the_operations_that_are_counted(family: str, tied: bool, rows: str):
    module = training(family, tied=tied, rows=rows)
    batch = torch.randint(0, NEW, (BLOCKS, BLOCK))
    shape, trained = shape_and_trained(family, tied=tied, rows=rows)
    told = cost.training_flops(shape, trained, tokens=BLOCKS * (BLOCK - 1), length=BLOCK - 1)
    assert counted(lambda: module.loss(batch[:, :-1], batch[:, 1:]).backward()) == told


@pytest.mark.parametrize(("layers", "tables"), [("all", ["output"]), ("first_and_last", ["input", "output"])])
def test_tuning_takes_the_operations_that_are_counted(layers: str, tables: list[str]):
    module, data = tuning("llama", tied=False, layers=layers, tables=tables)
    batch = next(iter(TuningData.batches(data, batch_size=BLOCKS, seed=0)))
    masks = attention_masks(module.body.config, batch["documents"][:, :-1], module.body.dtype)
    reading = {"position_ids": batch["position_ids"][:, :-1], "attention_mask": masks}
    shape = cost.Shape.of(module.body.config)
    learnt = batch["answer_tokens"]
    assert 0 < learnt < BLOCKS * (BLOCK - 1)
    told = cost.training_flops(
        shape,
        cost.Trained(OLD, output=OLD),
        tokens=BLOCKS * (BLOCK - 1),
        length=BLOCK - 1,
        learnt=learnt,
        lora=cost.Lora(8, MAPS, 4 if layers == "all" else 2),
    )
    found = counted(lambda: module.loss(batch["input_ids"][:, :-1], batch["labels"][:, 1:], **reading).backward())
    # Without a trained input table nothing goes back beyond the first layer's factors: three products less.
    first = BLOCKS * (BLOCK - 1) * sum(2 * inputs * (outputs + 8) for inputs, outputs in list(shape.maps.values())[:3])
    assert found == told - (0 if "input" in tables else first)


def test_the_flops_of_llama_3_8b_are_those_of_twice_its_weights_and_a_little():
    shape = cost.Shape.of(CONFIG_MAPPING["llama"](vocab_size=128_256, num_key_value_heads=8, intermediate_size=14_336))
    assert shape.parameters() == 8_030_261_248
    told = cost.forward_flops(shape, vocabulary=128_256, tokens=1, length=1024)
    assert 1.0 < told / (2 * (shape.parameters() - 128_256 * 4096)) < 1.04


# Memory


class Allocations(TorchDispatchMode):
    """The most that tensors made while this was open came to at once, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # pyright: ignore
        for given in tensors_in((args, kwargs)):
            self._meet(given.untyped_storage(), nbytes=0)  # made before: known, and not counted
        made = func(*args, **(kwargs or {}))
        for tensor in tensors_in(made):
            self._meet(tensor.untyped_storage(), nbytes=tensor.untyped_storage().nbytes())
        return made

    def _meet(self, storage: torch.UntypedStorage, *, nbytes: int) -> None:
        place = id(storage)
        if place in self._known:
            return

        def let_go(_: object) -> None:
            self.now -= nbytes
            del self._known[place]

        self._known[place] = weakref.ref(storage, let_go)
        self.now += nbytes
        self.peak = max(self.peak, self.now)


def tensors_in(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def fitted(module: EmbeddingTraining, data: pl.LightningDataModule, *, accumulate: int = 1) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=3,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    module.train()  # Lightning warns of modules in eval mode; the module itself puts the body there
    trainer.fit(module, data)
    return trainer


def measured(module: EmbeddingTraining, data: pl.LightningDataModule, *, accumulate: int, width: int) -> int:
    """Bytes of tensors at the height of three steps, the module's own included."""
    held = sum(p.nbytes for p in module.parameters() if p.requires_grad or width == cost.WIDE)  # others are cast
    with Allocations() as allocations:
        fitted(module, data, accumulate=accumulate)
    return held + allocations.peak


def random_blocks(batches: int, *, blocks: int = BLOCKS) -> np.ndarray:
    return np.random.default_rng(0).integers(0, NEW, (batches * blocks, BLOCK))


def batch_of(width: int, accumulate: int, vocabulary: int, *, blocks: int = BLOCKS, block: int = BLOCK) -> cost.Batch:
    return cost.Batch(blocks, block, width, positions_at_once(vocabulary, "cpu"), accumulate)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", ["all", "new"])
def test_weights_tables_and_moments_are_those_of_the_module_to_the_byte(rows: str, tied: bool):
    module = training("qwen3", tied=tied, rows=rows, dtype="bfloat16")
    trainer = fitted(module, PackedData(random_blocks(3), batch_size=BLOCKS, seed=0))
    told = cost.training_memory(*shape_and_trained("qwen3", tied=tied, rows=rows), batch_of(2, 1, NEW))
    held = {wanted: sum(p.nbytes for p in module.parameters() if p.requires_grad is wanted) for wanted in (True, False)}
    moments = [v.nbytes for state in trainer.optimizers[0].state.values() for v in state.values() if v.ndim]
    stub = 64 * 2  # the one row that stands where the body's own table was
    assert (told.weights + stub, told.tables, told.optimizer) == (held[False], held[True], sum(moments))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize("rows", ["all", "new"])
@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("qwen3", True), ("gemma3_text", True)])
def test_memory_of_training_is_what_is_allocated(family, tied, rows, dtype, width, accumulate):
    """In every family with layers of its own; the window of Gemma's layers is shorter than a block."""
    module = training(family, tied=tied, rows=rows, dtype=dtype)
    blocks = random_blocks(3 * accumulate)
    found = measured(module, PackedData(blocks, batch_size=BLOCKS, seed=0), accumulate=accumulate, width=width)
    told = cost.training_memory(*shape_and_trained(family, tied=tied, rows=rows), batch_of(width, accumulate, NEW))
    assert told.total == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_memory_is_that_of_the_way_back_where_activations_are_most_of_it(family, accumulate):
    """A wide inner map and few trained rows: the height is in the last layer and not in the loss."""
    sizes = {"intermediate_size": 1024, "num_hidden_layers": 2}
    module = training(family, tied=False, rows="new", **sizes)
    blocks = random_blocks(3 * accumulate, blocks=16)
    found = measured(module, PackedData(blocks, batch_size=16, seed=0), accumulate=accumulate, width=4)
    batch = batch_of(4, accumulate, NEW, blocks=16)
    told = cost.training_memory(*shape_and_trained(family, tied=False, rows="new", **sizes), batch)
    assert told.logits == 0 and told.total == pytest.approx(found, rel=0.01)


def tuning(family: str, *, tied: bool, **changes: Any) -> tuple[InstructionTuning, InstructionBlocks]:
    settings: dict[str, Any] = {
        "rank": 8,
        "alpha": 8.0,
        "layers": "all",
        "modules": MAPS,
        "tables": ["input", "output"],
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "batch_size": 2 * BLOCKS,
        "blocks_at_once": BLOCKS,
        "block_size": BLOCK,
        "epochs": 3,
    }
    made = Tuning(**settings | changes)
    rng = np.random.default_rng(0)
    rendered = [Rendered(rng.integers(3, OLD, 15).astype(np.int32), np.arange(15) > 4) for _ in range(4 * BLOCKS)]
    return InstructionTuning(model_of(family, tied=tied), made, steps=3), pack(rendered, BLOCK, 0)


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize(
    ("layers", "tables", "modules"),
    [
        ("all", ["output"], MAPS),
        ("first_and_last", ["input", "output"], MAPS),
        ("all", [], ("q_proj", "o_proj", "down_proj")),
    ],
)
def test_memory_of_tuning_is_what_is_allocated(layers, tables, modules, dtype, width):
    module, data = tuning("llama", tied=False, layers=layers, tables=tables, modules=modules, body_dtype=dtype)
    found = measured(module, TuningData(data, batch_size=BLOCKS, seed=0), accumulate=2, width=width)
    trained = cost.Trained(OLD, *(OLD if table in tables else 0 for table in ("output", "input")))
    lora = cost.Lora(8, modules, 4 if layers == "all" else 2)
    batches = TuningData.batches(data, batch_size=BLOCKS, seed=0)
    learnt = max(batch["answer_tokens"] for _, batch in zip(range(len(data) // BLOCKS), batches, strict=False))
    batch = replace(batch_of(width, 2, OLD), learnt=learnt)
    told = cost.training_memory(cost.Shape.of(module.body.config), trained, batch, lora=lora)
    assert told.total == pytest.approx(found, rel=0.01)
