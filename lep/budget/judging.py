"""Benchmarks: the models that a run judges, and the tokens that each reads and writes in its suites, roughly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lep import cost
from lep.budget.forecast import CHARACTERS_PER_TOKEN, Forecast
from lep.config import calibrations, planned_stages
from lep.cost import Memory
from lep.memory import PROCESS_BYTES, SMALL_MODEL_BYTES
from lep.results import ORIGINAL, UNTRAINED

ASKING = 60  # tokens of a request and its answer in the micro-world
MICRO_TASKS = 16  # kinds of items in the micro benchmark, of both languages
PAIRS, SENTENCE = 200, 15  # minimal pairs of the micro-world, tokens of a sentence
# Darumeru's items in all, its tasks, tokens of an item with its question.
DARUMERU_ITEMS, DARUMERU_TASKS, DARUMERU_TOKENS = 46_500, 17, 200
# Of a model that is judged: tokens that it reads at once, numbers of logits at once.
READ_AT_ONCE, LOGITS_AT_ONCE = 8192, 2**26


def judged(forecast: Forecast) -> list[str]:
    """The models that are measured, but for calibrated ones: the original, the tables before training, every rule.

    None where tables go from files to files.
    """
    config = forecast.config
    needed = bool(calibrations(config)) or ("benchmark" in planned_stages(config) and bool(config.benchmark))
    repaired = config.repair_end_of_turn
    if repaired == "auto":
        repaired = forecast.shape.parameters() * forecast.stored <= SMALL_MODEL_BYTES
    if not needed and not repaired:
        return []
    return [ORIGINAL, *([] if config.adapted else [UNTRAINED]), *map(str, config.propagation)]


def beside_judging(forecast: Forecast) -> Memory:
    """Beside a model that is judged or tuned: on a CPU the program, and the tables before training and after."""
    if not forecast.device.is_cpu:
        return Memory()
    tables = 0 if forecast.config.adapted else 2 * cost.tables_bytes(forecast.shape, forecast.trained.vocabulary)
    return Memory(tables=tables, process=PROCESS_BYTES)


def judging_memory(forecast: Forecast) -> Memory:
    """Of a model that is judged."""
    width = cost.WIDE if forecast.device.is_cpu else forecast.stored
    rows = forecast.trained.vocabulary
    logits = min(LOGITS_AT_ONCE, READ_AT_ONCE * rows)
    return cost.reading_memory(forecast.shape, vocabulary=rows, width=width, tokens=READ_AT_ONCE, logits=logits)


def suites_tokens(forecast: Forecast, suites: Mapping[Any, Any], *, limit: int | None = None) -> int:
    """Tokens that a model reads and writes in all the suites that can be counted."""
    total = 0
    for name, node in suites.items():
        tokens = suite_tokens(node, limit)
        if tokens is None:
            forecast.notes.append(f"benchmark {name} is not counted: what it asks only its data know")
        total += tokens or 0
    return total


def suite_tokens(node: Mapping[Any, Any], limit: int | None = None) -> int | None:
    """Items times tokens; None for a suite whose items its config does not count."""
    kind = str(node["_target_"]).rpartition(".")[2]
    limit = limit or node.get("limit")
    prompts = sum(map(len, node["prompts"].values())) if isinstance(node.get("prompts"), Mapping) else 0
    if kind == "MicroBenchmark":
        return MICRO_TASKS * (limit or node["items_per_task"]) * ASKING
    if kind == "Darumeru":
        tasks = len(node["tasks"] or ()) or DARUMERU_TASKS
        return min(DARUMERU_ITEMS * tasks // DARUMERU_TASKS, (limit or DARUMERU_ITEMS) * tasks) * DARUMERU_TOKENS
    if kind == "MinimalPairs":
        pairs = limit or (None if node["path"] else PAIRS)
        return pairs and 2 * pairs * SENTENCE
    if kind == "Continuation":
        return 3 * prompts * node["max_new_tokens"]  # written once to be read, and twice to be timed
    if kind == "Fair" and node["max_characters"]:
        texts = 2 * len(node["texts"]) * node["max_characters"]  # in windows that advance by half of themselves
        written = prompts + sum(map(len, (node.get("requests") or {}).values()))
        return int((texts + written * node["max_new_characters"]) / CHARACTERS_PER_TOKEN)
    return None
