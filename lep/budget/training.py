"""Training of the tables and what leads to it, and what would help where it does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lep import cost
from lep.budget.forecast import Forecast, Row, gigabytes, with_heap
from lep.budget.judging import judging_memory, suites_tokens
from lep.budget.text import packing_row
from lep.cost import Batch, Memory
from lep.memory import PROCESS_BYTES

PIECES = 3  # old tokens that a new one is made of
SHORTEST_BLOCK = 128  # that a remedy proposes
SHARED_AMONG = (2, 4, 8)  # devices


def training_rows(forecast: Forecast) -> Iterator[Row]:
    """Packing, initialisation and training; nothing where trained tables are given."""
    if forecast.config.adapted:
        return
    packed = packing_row(forecast)
    yield packed
    shape, rows = forecast.shape, forecast.trained.vocabulary
    yield Row(
        "initialisation",
        f"{shape.tables} x {rows:,} rows",
        flops=2 * PIECES * shape.tables * rows * shape.hidden,
        host=cost.tables_bytes(shape, rows),
    )
    yield _training_row(forecast, packed.tokens)


def _training_row(forecast: Forecast, packed: int | None) -> Row:
    """packed: tokens of the text, which training goes through as often as its steps take."""
    shape, trained, batch, steps = forecast.shape, forecast.trained, forecast.batch, forecast.config.training.steps
    blocks = steps * batch.blocks * batch.accumulate * forecast.devices
    flops = cost.training_flops(shape, trained, tokens=blocks * batch.length, length=batch.length)
    flops += cost.forward_flops(
        shape, vocabulary=trained.vocabulary, tokens=_measured_on_the_way(forecast), length=batch.length
    )
    initial = cost.tables_bytes(shape, trained.vocabulary)
    tokens = blocks * batch.block_size
    passes = f"; {float(f'{tokens / packed:.2g}'):,g} times the text" if packed else ""
    return Row(
        "training",
        f"{steps:,} steps, {trained.output:,} of {trained.vocabulary:,} rows move{passes}",
        tokens=tokens,
        flops=flops,
        memory=_highest(forecast, batch),
        # The model as its files have it, the tables as initialised, and the trained rows on their way to the device.
        host=shape.parameters() * forecast.stored + initial + cost.WIDE * trained.rows * shape.hidden,
        disk=cost.checkpoint_bytes(shape, trained) + initial,
        timed=True,
        batches=steps * batch.accumulate,
    )


def _measured_on_the_way(forecast: Forecast) -> int:
    """Tokens that are read to validate, in windows that overlap by a quarter, and for benchmarks during training."""
    steps, watched = forecast.config.training.steps, forecast.config.during_training
    validations = 1 + steps // forecast.config.training.validate_every_steps
    tokens = int(validations * forecast.measured_tokens * 4 / 3)
    if watched.every_steps:
        tokens += steps // watched.every_steps * suites_tokens(forecast, watched.suites, limit=watched.limit)
    return tokens


def _highest(forecast: Forecast, batch: Batch) -> Memory:
    """Of training, and of a model that is loaded beside it where benchmarks are asked for on the way."""
    memory = training_memory(forecast, batch)
    if not forecast.config.during_training.every_steps:
        return memory
    beside = replace(memory, activations=0, logits=0) + judging_memory(forecast)
    return max(memory, beside, key=lambda moment: moment.total)


def training_memory(forecast: Forecast, batch: Batch, *, shards: int | None = None) -> Memory:
    """On one device; on a CPU with the program, what its allocator holds, and the tables as they were initialised."""
    shape, trained = forecast.shape, forecast.trained
    shards = shards or forecast.shards
    memory = cost.training_memory(shape, trained, batch, replicas=max(forecast.devices, shards), shards=shards)
    if not forecast.device.is_cpu:
        return memory
    # In float32 the frozen rows are those of the initial tables themselves.
    again = trained.rows if batch.width == cost.WIDE else shape.tables * trained.vocabulary
    memory = replace(memory, tables=memory.tables + cost.WIDE * again * shape.hidden, process=PROCESS_BYTES)
    return with_heap(memory, forecast.device)


def training_remedies(forecast: Forecast, room: int) -> Iterator[str]:
    """Settings with which training fits into that many bytes, and what it takes then; a step keeps its blocks."""
    batch = forecast.batch
    in_step = batch.blocks * batch.accumulate  # on this device
    narrow = replace(batch, width=2)
    single = replace(narrow, blocks=1, accumulate=in_step)
    smaller = [replace(batch, blocks=n, accumulate=in_step // n) for n in _halves(batch.blocks, least=1)]
    shorter = [replace(single, block_size=length) for length in _halves(batch.block_size, least=SHORTEST_BLOCK)]
    whole = [_first_fitting(forecast, tried, room) for tried in ([narrow] if narrow != batch else [], smaller)]
    found = [(fitting, 1) for fitting in whole if fitting]
    if not found:
        fitting = _first_fitting(forecast, shorter, room)
        found += [(fitting, 1)] if fitting else []
        found += _first_sharing(forecast, single, room)
    for after, shards in found:
        memory = gigabytes(training_memory(forecast, after, shards=shards).total)
        shared = f"trainer=fsdp trainer.devices={shards} " if shards > 1 else ""
        yield f"{shared}{_settings(batch, after, in_step * forecast.devices)} ({memory}{' each' if shards > 1 else ''})"


def _first_fitting(forecast: Forecast, batches: list[Batch], room: int) -> Batch | None:
    return next((batch for batch in batches if training_memory(forecast, batch).total <= room), None)


def _first_sharing(forecast: Forecast, batch: Batch, room: int) -> list[tuple[Batch, int]]:
    """The fewest devices among which the body fits, with the batch of each."""
    if forecast.shards > 1 or forecast.device.is_cpu:
        return []
    shared = [(replace(batch, accumulate=max(1, batch.accumulate // devices)), devices) for devices in SHARED_AMONG]
    return [pair for pair in shared if training_memory(forecast, pair[0], shards=pair[1]).total <= room][:1]


def _settings(before: Batch, after: Batch, in_step: int) -> str:
    """What is set to come from one batch to the other, where a step has so many blocks on all devices."""
    changed = {
        "training.body_dtype=bfloat16": before.width != after.width,
        f"training.batch_size={after.blocks}": before.blocks != after.blocks,
        f"trainer.accumulate_grad_batches={in_step // after.blocks}": before.blocks != after.blocks,
        f"training.block_size={after.block_size}": before.block_size != after.block_size,
    }
    return " ".join(setting for setting, differs in changed.items() if differs)


def larger_batches(forecast: Forecast) -> Iterator[str]:
    """What to set so that a GPU has enough to do at once, where its kernels would take longer to start than to run."""
    batch, shape = forecast.batch, forecast.shape

    def waits(tried: Batch) -> bool:
        flops = cost.training_flops(shape, forecast.trained, tokens=tried.tokens, length=tried.length)
        reached = cost.reached(shape, forecast.device.efficiency)
        busy = cost.hours(flops, flops_a_second=forecast.device.tflops * 1e12, efficiency=reached)
        return busy < cost.launch_hours(shape, 1)

    if forecast.device.is_cpu or not waits(batch):
        return
    doubled = (2**n for n in range(1, batch.accumulate.bit_length()) if batch.accumulate % 2**n == 0)
    larger = [replace(batch, blocks=n * batch.blocks, accumulate=batch.accumulate // n) for n in doubled]
    fitting = [tried for tried in larger if training_memory(forecast, tried).total <= forecast.device.memory]
    for after in [tried for tried in fitting if not waits(tried)][:1] or fitting[-1:]:
        settings = _settings(batch, after, batch.blocks * batch.accumulate * forecast.devices)
        yield (
            f"{batch.blocks} blocks of {batch.block_size} tokens are few for {forecast.device.name}; the same steps "
            f"are over sooner with {settings} ({gigabytes(training_memory(forecast, after).total)})"
        )


def _halves(value: int, least: int) -> list[int]:
    """Half of it, a quarter, and so on, down to the least."""
    found = []
    while value // 2 >= least:
        value //= 2
        found.append(value)
    return found
