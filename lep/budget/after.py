"""After training: propagation, exports, calibration, benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from lep import cost
from lep.budget.forecast import CHARACTERS_PER_TOKEN, Forecast, Row, width_of, with_heap
from lep.budget.judging import ASKING, beside_judging, judged, judging_memory, suites_tokens
from lep.budget.training import PIECES
from lep.checkpoints import find_config
from lep.config import calibrations
from lep.cost import Lora, Memory, Trained
from lep.embeddings import written_bytes
from lep.memory import propagation_bytes
from lep.propagation.gram import CHUNK_ROWS

CONVERSATION = 400  # tokens of a conversation outside the micro-world
ANSWERED = 0.5  # share of a conversation's tokens that are learnt, its answers
WINDOW = 256  # tokens that benchmarks read in one go


def propagation_rows(forecast: Forecast) -> Iterator[Row]:
    """The rules, on the CPU, and the model directories that are written."""
    shape, rows, config = forecast.shape, forecast.trained.vocabulary, forecast.config
    fitted = {"overlap": min(rows, shape.vocabulary), "conversion": rows}
    flops = 0
    for node in config.propagation.values():
        kind = str(node._target_).rpartition(".")[2]
        if kind in fitted:
            flops += cost.fit_flops(shape, fitted_rows=fitted[kind], new_vocabulary=rows)
        else:
            flops += 2 * PIECES * shape.tables * rows * shape.hidden
    host = propagation_bytes(shape.hidden, chunk_rows=CHUNK_ROWS)
    if judged(forecast):
        # The trained tables, and those of one rule as the model takes them.
        host += cost.tables_bytes(shape, rows) + cost.tables_bytes(shape, rows, forecast.stored)
    yield Row("propagation", ", ".join(map(str, config.propagation)), flops=flops, host=host)
    if config.export:
        yield _export_row(forecast, -(-rows // config.export_pad_to) * config.export_pad_to)


def _export_row(forecast: Forecast, rows: int) -> Row:
    """Model directories of propagations, whose files without a table are links; calibrated ones, merged, are whole."""
    exported = list(forecast.config.export)
    each, found = _export_bytes(forecast, rows)
    merged = [of for _, of in _calibrated(forecast) if of in exported and of != "original"]
    whole = forecast.shape.parameters(rows) * forecast.stored
    carried = len(exported) - exported.count("original")
    return Row("export", f"{', '.join(exported)}; {found}", disk=carried * each + len(merged) * whole)


def _export_bytes(forecast: Forecast, rows: int) -> tuple[int, str]:
    """Bytes of one exported model, and how they are known."""
    model = forecast.config.model
    here = find_config(model.instruct, model.instruct_revision, key="model.instruct")
    if here and any(here[1].glob("*.safetensors")):
        return written_bytes(here[1], rows), "files without a table are linked"
    return forecast.shape.parameters(rows) * forecast.stored, "at most: files without a table are linked"


def calibration_rows(forecast: Forecast) -> Iterator[Row]:
    for name, node in calibrations(forecast.config).items():
        models = [of for method, of in _calibrated(forecast) if method == name]
        if not models:
            continue
        tokens = _tokens_learnt_from(forecast, name, node)
        flops = None
        if tokens is not None:
            block = _block_size(forecast, node.tuning)
            tokens = -(-tokens // block) * block * node.tuning.epochs * len(models)
            flops = _tuning_flops(forecast, node.tuning, tokens) + _answering_flops(forecast, node)
        yield Row(
            f"calibration {name}",
            f"of {', '.join(models)}; estimated",
            tokens=tokens,
            flops=flops,
            memory=beside_judging(forecast) + _tuning_memory(forecast, node.tuning),
            disk=len(models) * _tuned_bytes(forecast, node.tuning),
            timed=True,
        )


def _calibrated(forecast: Forecast) -> list[tuple[str, str]]:
    """(method, model) of every calibration; its own answers teach the original nothing."""
    methods, on = calibrations(forecast.config), list(forecast.config.calibration.on)
    return [(name, of) for name, node in methods.items() for of in on if of != "original" or node.answers is None]


def _tokens_learnt_from(forecast: Forecast, name: str, node: DictConfig) -> int | None:
    """Tokens of the conversations, by the counts of the config; None where only the data know how many there are."""
    count = _questions(node)
    if count is None:
        forecast.notes.append(
            f"how many conversations calibration={name} learns from only their data know: set "
            "instructions.source.limit to plan for so many"
        )
        return None
    tokens = count * (ASKING if _is_micro(node) else CONVERSATION)
    if node.copies is not None:
        number = node.copies.get("count") or node.get("num_copies") or 0
        lengths = node.copies.get("characters")
        # The middle of the least and the most, once in the request and once in the answer.
        tokens += int(number * (sum(lengths) / CHARACTERS_PER_TOKEN if lengths else ASKING))
    return tokens


def _is_micro(node: DictConfig) -> bool:
    return str(node.instructions._target_).endswith("MicroWorldChats")


def _questions(node: DictConfig) -> int | None:
    source, answers = node.instructions, node.answers
    limits = (source.get("count"), source.get("limit"), answers and answers.get("questions"))
    return min((limit for limit in limits if limit), default=None)


def _block_size(forecast: Forecast, tuning: DictConfig) -> int:
    return min(tuning.block_size, forecast.context or tuning.block_size)


def _tuned_tables(forecast: Forecast, tuning: DictConfig) -> Trained:
    rows, tables = forecast.trained.vocabulary, list(tuning.tables)
    if forecast.shape.tables == 1:
        return Trained(rows, output=rows if tables else 0)
    return Trained(rows, output=rows if "output" in tables else 0, input=rows if "input" in tables else 0)


def _lora(forecast: Forecast, tuning: DictConfig) -> Lora:
    layers = forecast.shape.layers
    return Lora(tuning.rank, tuple(tuning.modules), layers if tuning.layers == "all" else min(2, layers))


def _tuning_memory(forecast: Forecast, tuning: DictConfig) -> Memory:
    width = width_of(tuning.get("body_dtype", "auto"), forecast.device)
    accumulate = tuning.batch_size // tuning.blocks_at_once
    batch = forecast.make_batch(tuning.blocks_at_once, _block_size(forecast, tuning), width, accumulate)
    tables, lora = _tuned_tables(forecast, tuning), _lora(forecast, tuning)
    return with_heap(cost.training_memory(forecast.shape, tables, batch, lora=lora), forecast.device)


def _tuning_flops(forecast: Forecast, tuning: DictConfig, tokens: int) -> int:
    tables, length = _tuned_tables(forecast, tuning), _block_size(forecast, tuning) - 1
    lora, learnt = _lora(forecast, tuning), int(ANSWERED * tokens)
    return cost.training_flops(forecast.shape, tables, tokens=tokens, length=length, learnt=learnt, lora=lora)


def _answering_flops(forecast: Forecast, node: DictConfig) -> int:
    """Of the original model's own answers, each as long as it may be."""
    if node.answers is None:
        return 0
    longest, shape = node.answers.max_new_tokens, forecast.shape
    tokens = (_questions(node) or 0) * longest
    return cost.forward_flops(shape, vocabulary=shape.vocabulary, tokens=tokens, length=longest)


def _tuned_bytes(forecast: Forecast, tuning: DictConfig) -> int:
    """Of the adapter, and of the checkpoint while it is tuned."""
    moving = _tuned_tables(forecast, tuning).rows * forecast.shape.hidden
    moving += _lora(forecast, tuning).parameters(forecast.shape)
    return cost.WIDE * moving * (2 + cost.MOMENTS)


def benchmark_rows(forecast: Forecast) -> Iterator[Row]:
    config, shape = forecast.config, forecast.shape
    models = len(judged(forecast)) + len(_calibrated(forecast))
    if not models:
        return
    # Windows for bits per byte advance by half of themselves.
    tokens = models * (suites_tokens(forecast, config.benchmark) + int(2 * forecast.measured_tokens))
    suites = ", ".join(map(str, config.benchmark)) or "bits per byte"
    yield Row(
        "benchmark",
        f"{suites} of {models} models; estimated",
        tokens=tokens,
        flops=cost.forward_flops(shape, vocabulary=forecast.trained.vocabulary, tokens=tokens, length=WINDOW),
        memory=beside_judging(forecast) + judging_memory(forecast),
        timed=True,
    )
