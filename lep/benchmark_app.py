"""The entry point `lep-benchmark`: suites on model directories, without training, resumable at the item.

Answers lie in `artifacts/answers`, in a file for each suite and fingerprint: model, data, prompts and protocol. A run
that is killed goes on there; another model, prompt or protocol has a file of its own.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from rich import box
from rich.table import Table

from lep import checkpoints, processes, terminal
from lep.artifacts import artifact_key
from lep.benchmark.asking import Journal, Ranks, run_suite
from lep.benchmark.records import SuiteResult, compare, samples, together, write_records
from lep.config import build, plain
from lep.report import change, fair_lines, incomplete_sentences, unequal_sentences, write_report
from lep.results import Result, Row, Score, environment, write_result
from lep.run import HYDRA_VERSION_BASE, as_task

# What answers have in common though more may be asked later: all but how many, and of which data. What was asked of a
# record is part of each answer's key.
MAY_GROW = ("limit", "tasks", "data", "pairs")


def benchmark(config: DictConfig, run_dir: Path, *, chosen: dict[str, str]) -> Result:
    """Judge the model, and the one it is compared with, by every suite; one record with tables and differences."""
    models = find_models(config)
    suites = {str(name): build(node) for name, node in config.benchmark.items()}
    if not suites:
        raise ValueError("benchmark is empty. Choose suites: benchmark=[darumeru,fair,minimal_pairs]")
    ranks, device = start_ranks(), pick_device(config.device)
    judged: dict[str, SuiteResult] = {}
    started = time.monotonic()
    for name, directory in models.items():
        tokenizer = checkpoints.load_tokenizer(directory, key="model")
        model = checkpoints.load_model(directory, device=device, dtype=dtype_of(config.dtype))
        identity = {"model": checkpoints.fingerprint(directory), "dtype": str(model.dtype)}
        judged[name] = together(
            run_suite(
                suites[suite],
                model,
                tokenizer,
                journal=open_journal(suite, suites[suite], node, identity, config, ranks, name),
                ranks=ranks,
                progress=None if ranks.rank else f"{name}: {suite}",
            )
            for suite, node in config.benchmark.items()
        )
    records = {name: found.records for name, found in judged.items()}
    for name, of in records.items():
        if not ranks.rank:
            write_records(run_dir / "answers" / f"{name}.jsonl", of)
    return Result(
        study=config.study,
        run=run_dir.name,
        choices=chosen,
        seed=0,
        rows=[make_row(name, found) for name, found in judged.items()],
        comparisons=compare(judged),
        samples=samples(records),
        environment=environment(device=device),
        artifacts={name: str(directory) for name, directory in models.items()},
        timings={"benchmark": time.monotonic() - started},
    )


def find_models(config: DictConfig) -> dict[str, Path]:
    """The directories of the model and of the one it is compared with, by the names of their rows."""
    reference = config.model_dir
    if reference is None and config.get("model"):
        reference = config.model.instruct or config.model.base
    if reference is None:
        raise ValueError("there is no model to judge. Give one: lep-benchmark model=DIR")
    found = {_name(reference): checkpoints.resolve(reference, None, key="model")}
    if config.against is not None:
        name = _name(config.against)
        name = f"{name} (against)" if name in found else name
        found[name] = checkpoints.resolve(config.against, None, key="against")
    return found


def open_journal(
    name: str, suite: Any, node: DictConfig, identity: dict[str, Any], config: DictConfig, ranks: Ranks, model_name: str
) -> Journal | None:
    """The answers that are known of a model, if the suite can go on from them."""
    if not hasattr(suite, "fingerprint"):
        return None
    settings, asked = (
        {key: value for key, value in of.items() if key not in MAY_GROW} for of in (plain(node), suite.fingerprint())
    )
    fingerprint = {"suite": name, "settings": settings, "asked": asked, **identity}
    key = artifact_key("answers", fingerprint)
    path = Path(config.artifacts_dir).expanduser() / "answers" / f"{name}-{key[:12]}"
    journal = Journal(path, {"key": key, **fingerprint}, rank=ranks.rank)
    if journal.known and not ranks.rank:
        terminal.say(f"resumed   {name} of {model_name}: {len(journal.known):,} answers are there")
    return journal


def make_row(name: str, found: SuiteResult) -> Row:
    """The line of the table: scores, and the text measures of the suite `fair` in the columns of their own."""
    texts = {key.partition("/")[2]: facts for key, facts in found.details.items() if key.startswith("text/")}
    bits = {
        language: Score(facts["bits_per_byte"], facts["bits_per_byte_stderr"], facts["texts"])
        for language, facts in texts.items()
    }
    characters = {language: facts["characters_per_token"] for language, facts in texts.items()}
    return Row(name, found.scores, characters, bits, found.details)


def start_ranks() -> Ranks:
    """This process among those that torchrun started, if it did."""
    if processes.count() > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")  # answers are gathered as Python objects
    return Ranks.current()


def pick_device(asked: str) -> str:
    if asked != "auto":
        return asked
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def dtype_of(asked: str) -> torch.dtype | str:
    known = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if asked not in known:
        raise ValueError(f"dtype={asked} is unknown. Use one of {', '.join(known)}")
    return known[asked]


def show(result: Result) -> None:
    """Scores with 95 % intervals, models side by side; what else was measured; differences beyond the noise."""
    table = Table("measure", *(row.name for row in result.rows), box=box.SIMPLE_HEAD)
    for key in dict.fromkeys(key for row in result.rows for key in row.scores):
        table.add_row(key, *(_interval(row.scores.get(key)) for row in result.rows))
    for language in dict.fromkeys(language for row in result.rows for language in row.bits_per_byte):
        table.add_row(f"bits per byte/{language}", *(_bits(row.bits_per_byte.get(language)) for row in result.rows))
    for label, values in fair_lines(result):
        table.add_row(label, *values)
    terminal.console.print(table)
    for found in result.comparisons:
        if found["low"] > 0 or found["high"] < 0:
            terminal.say(
                f"beyond the noise: {found['task']}: {found['a']} {change(found, 'difference')} "
                f"[{change(found, 'low')}, {change(found, 'high')}] against {found['b']} (n={found['n']})"
            )
    for sentence in incomplete_sentences(result):
        terminal.say(f"incomplete: {sentence}")
    for sentence in unequal_sentences(result):
        terminal.say(f"not asked alike: {sentence}")


def _interval(score: Score | None) -> str:
    if score is None:
        return "-"
    if math.isnan(score.stderr):
        return f"{100 * score.value:.1f} (n={score.n})"
    return f"{100 * score.value:.1f} ±{196 * score.stderr:.1f} (n={score.n})"


def _bits(score: Score | None) -> str:
    return "-" if score is None else f"{score.value:.3f} ±{1.96 * score.stderr:.3f} (n={score.n})"


def _name(reference: str) -> str:
    return reference.rstrip("/").rpartition("/")[2] or reference


def run_job(config: DictConfig, run_dir: Path, *, chosen: dict[str, str]) -> Result:
    """Judge and leave the record, the page and the answers in the run's folder."""
    result = benchmark(config, run_dir, chosen=chosen)
    if Ranks.current().rank == 0:
        write_report(result, run_dir / "report.html")
        write_result(run_dir / "result.json", result)
        show(result)
        terminal.say(f"saved     {run_dir}/  (answers, result.json, report.html)")
    return result


@hydra.main(config_path="pkg://lep.conf", config_name="benchmark_only", version_base=HYDRA_VERSION_BASE)
def compose_and_run(config: DictConfig) -> None:
    """The task of Hydra: one job, also of a sweep."""
    as_task(run_job, config)


def as_overrides(arguments: Sequence[str]) -> list[str]:
    """`model=DIR` as an override that Hydra takes: `model` is a group, and a directory is none of its options."""
    options = {path.name.removesuffix(".yaml") for path in files("lep.conf").joinpath("model").iterdir()}
    return [
        f"model_dir={argument.removeprefix('model=')}"
        if argument.startswith("model=") and not set(argument.removeprefix("model=").split(",")) <= options
        else argument
        for argument in arguments
    ]


def main() -> None:
    """The console script `lep-benchmark`."""
    sys.argv[1:] = as_overrides(sys.argv[1:])
    compose_and_run()


if __name__ == "__main__":
    main()
