"""Where curves and tables go besides the run's own files: Lightning's loggers, made from config, all fed alike.

Weights & Biases gets more, as it can show more: tables, plots, the page, and what was made from what.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger, WandbLogger

from lep import checkpoints
from lep.artifacts import MANIFEST
from lep.config import build, plain, variant_name
from lep.durable import replacing
from lep.processes import is_leader
from lep.report import language_name, languages, render_report, tasks
from lep.results import ORIGINAL, UNTRAINED, Result, Row, Score
from lep.stages import Plan
from lep.training import EndTraining

GAIN = ("before", "after", "difference", "low", "high", "n")
SHARE = ("share", "low", "high")
# How loggers call the name of a run.
NAME = {"WandbLogger": "name", "MLFlowLogger": "run_name"}
TAGGED = ("model", "corpus", "tokenizer", "init")
ID_FILE = "wandb_id.txt"


@contextmanager
def open_loggers(config: DictConfig, run_dir: Path, *, chosen: dict[str, str]) -> Iterator[list[Logger]]:
    """The loggers of the config, in the run's folder; `metrics.csv` is always among them.

    They are closed at the end, since the next job of a sweep may run in this process: as failed where an error ends it.
    Of several processes only the leader has any.
    """
    if not is_leader():
        yield []
        return
    os.environ.setdefault("WANDB_MODE", "offline")
    nodes = {
        "csv": OmegaConf.create({"_target_": "pytorch_lightning.loggers.CSVLogger"}),
        **(config.get("logger") or {}),
    }
    loggers: list[Logger] = [build(node, **of_run(node, config, run_dir, chosen)) for node in nodes.values()]
    failed = True
    try:
        yield loggers
        failed = False
    except EndTraining:
        failed = False
        raise
    finally:
        close(loggers, failed=failed)


def of_run(node: DictConfig, config: DictConfig, run_dir: Path, chosen: dict[str, str]) -> dict[str, Any]:
    """What a logger is told of the run beside its own config."""
    kind = str(node._target_).rpartition(".")[2]
    told: dict[str, Any] = {"save_dir": str(run_dir)}
    if kind == "CSVLogger":
        told |= {"name": "", "version": ""}  # in the folder itself, where the record looks for it
    if kind in NAME:
        told[NAME[kind]] = run_dir.name
    if kind == "WandbLogger":
        told |= {
            "id": run_id(run_dir),
            "resume": "allow",
            "job_type": node.job_type or ("propagate" if config.adapted else "adapt"),
            "tags": [f"{group}:{chosen[group]}" for group in TAGGED if group in chosen],
        }
    return told


def run_id(run_dir: Path) -> str:
    """The id of this run at Weights & Biases, kept in its folder: after a kill the same run goes on there.

    It is drawn and not made from the name, which two people, or a second run in a folder that was deleted, may share.
    """
    path = run_dir / ID_FILE
    if not path.exists():
        with replacing(path) as staging:
            staging.write_text(secrets.token_hex(8), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def log_config(loggers: list[Logger], config: DictConfig, *, chosen: dict[str, str]) -> None:
    """The resolved config, and the option that was chosen of each group, by which runs are sorted."""
    for logger in loggers[1:]:
        logger.log_hyperparams({**plain(config), "choices": chosen})


def log_result(loggers: list[Logger], result: Result, plan: Plan, run_dir: Path) -> None:
    """The headline and every score, to every logger; tables, plots and artifacts to those that can hold them."""
    figures = {name: value for name, value in headline(result).items() if isinstance(value, int | float)}
    every = {f"{row.name}/{measure}": score.value for row in result.rows for measure, score in measures(row)}
    every |= {f"{row}/answers/{reason}": count for row, reason, count in answer_counts(result)}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            # Not as curves: each would be a panel of one point.
            logger.experiment.summary.update({**headline(result), "scores": nested(result)})
            log_tables(logger, result)
            log_plots(logger, result)
            log_artifacts(logger, plan, run_dir)
        elif every or figures:
            logger.log_metrics({**figures, **every}, step=plan.config.training.steps)
        logger.save()


def headline(result: Result) -> dict[str, float | str]:
    """A handful of figures under names that every run has, so that a table of runs compares them at a glance.

    "best/..." is of one propagated model, calibrated or not: that with the highest mean over the scores of the first
    language (Russian where it is there), without a benchmark that with the fewest bits per byte. It is chosen on the
    items that it is then shown by, so it flatters a run with many rules a little. Shares, bits, tokens, seconds.
    """
    spoken, found = languages(result), dict[str, float | str]()
    carried = [row for row in result.rows if row.name not in (ORIGINAL, UNTRAINED) and not of_original(result, row)]
    shown = {"original": [row for row in result.rows if row.name == ORIGINAL], "best": carried}
    for name, rows in shown.items():
        if not rows:
            continue
        row = max(rows, key=lambda row: rank(row, result, spoken[0]))
        found |= {"best/model": row.name} if name == "best" else {}
        for language in spoken:
            if (score := mean_score(row, result, language)) is not None:
                found[f"{name}/score/{language}"] = score
            if language in row.bits_per_byte:
                found[f"{name}/bits_per_byte/{language}"] = row.bits_per_byte[language].value
    after = result.tokenizer.get("after", {}).get("languages", {})
    found |= {f"characters_per_token/{language}": of["characters_per_token"] for language, of in after.items()}
    found |= {key: result.training[key] for key in ("tokens", "tokens_per_second") if key in result.training}
    found["seconds"] = sum(value for key, value in result.timings.items() if key != "peak_memory_bytes")
    return found


def of_original(result: Result, row: Row) -> bool:
    """Whether a row is the original itself, calibrated."""
    return result.calibration.get(row.name, {}).get("before") == ORIGINAL


def rank(row: Row, result: Result, language: str) -> tuple[float, float]:
    """Rows in the order of their mean scores, equal ones in that of their bits per byte."""
    bits = row.bits_per_byte.get(language)
    score = mean_score(row, result, language)
    return -1.0 if score is None else score, -bits.value if bits else 0.0


def mean_score(row: Row, result: Result, language: str) -> float | None:
    """Mean over the scores of a language that every row has; None without any."""
    keys = [f"{task}/{language}" for task in tasks(result, language)]
    shared = [key for key in keys if all(key in other.scores for other in result.rows)]
    return mean(row.scores[key].value for key in shared) if shared else None


def nested(result: Result) -> dict[str, dict[str, float]]:
    """Every score: by row, then by measure."""
    return {row.name: {name: score.value for name, score in measures(row)} for row in result.rows}


def measures(row: Row) -> list[tuple[str, Score]]:
    """Everything a row was scored on, by name."""
    return [*row.scores.items(), *((f"bits_per_byte/{language}", bits) for language, bits in row.bits_per_byte.items())]


def answer_counts(result: Result) -> list[tuple[str, str, int]]:
    """(row, reason, count) of the answers that were learnt from: how many were asked for, kept, and left out why."""
    return [
        (row, reason, count)
        for row, found in result.calibration.items()
        for reason, count in _counts(found.get("answers", {}))
    ]


def _counts(facts: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, int]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _counts(value, f"{within}{name}/")
        elif isinstance(value, int):
            yield within + name, value


def log_tables(logger: WandbLogger, result: Result) -> None:
    """Scores, diagnostics of propagation, gains of calibration, answers, split texts; and the page that shows all."""
    import wandb

    scores = [[row.name, name, *astuple(score)] for row in result.rows for name, score in measures(row)]
    diagnostics = [
        [rule, side, name, value]
        for rule, sides in result.propagation.items()
        for side, facts in sides.items()
        for name, value in facts.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    gains = [
        [row, gain["task"], *(gain[key] for key in GAIN), *((gain["recovered"] or {}).get(key) for key in SHARE)]
        for row, found in result.calibration.items()
        for gain in found["gains"]
    ]
    answers = [
        [of["task"], of["language"], of["prompt"], of["expected"], given["model"], given["answer"], given["right"]]
        for of in result.samples
        for given in of["answers"]
    ]
    split = [
        [example["language"], vocabulary, " | ".join(tokens), len(tokens)]
        for example in result.tokenizer.get("examples", [])
        for vocabulary, tokens in example["tokens"].items()
    ]
    tables = {
        "benchmark": (["model", "measure", "value", "standard error", "n"], scores),
        "propagation": (["rule", "table", "diagnostic", "value"], diagnostics),
        "calibration": (["model", "task", *GAIN, *(f"share of the gap: {key}" for key in SHARE)], gains),
        "learnt from": (["model", "answers", "count"], [list(row) for row in answer_counts(result)]),
        "answers": (["task", "language", "prompt", "expected", "model", "answer", "right"], answers),
        "segmentation": (["language", "vocabulary", "text", "tokens"], split),
    }
    logged = {name: table(columns, data) for name, (columns, data) in tables.items() if data}
    logger.experiment.log({**logged, "report": wandb.Html(render_report(result), inject=False)})


def table(columns: list[str], data: list[list[Any]]) -> Any:
    """A table of Weights & Biases. A cell may be empty."""
    import wandb

    return wandb.Table(columns=columns, data=data, allow_mixed_types=True)  # type: ignore[arg-type]


def log_plots(logger: WandbLogger, result: Result) -> None:
    """Bars over the models: mean score and bits per byte, one plot a language each."""
    import wandb

    plots = {}
    for language in languages(result):
        bars = {
            "score": {row.name: mean_score(row, result, language) for row in result.rows},
            "bits_per_byte": {row.name: of.value for row in result.rows if (of := row.bits_per_byte.get(language))},
        }
        for measure, values in bars.items():
            data = [[name, value] for name, value in values.items() if value is not None]
            if data:
                title = f"{measure.replace('_', ' ')}, {language_name(language)}"
                plots[f"plots/{measure}/{language}"] = wandb.plot.bar(
                    table(["model", measure], data), "model", measure, title=title
                )
    if plots:
        logger.experiment.log(plots)


def log_artifacts(logger: WandbLogger, plan: Plan, run_dir: Path) -> None:
    """What was made from what, as the graph of Weights & Biases draws it: tokenizer, adapted tables, exported models.

    The first two are used by the run as well, whoever made them. Models are named where they lie, with the digests of
    their files, and not uploaded.
    """
    import wandb

    run = logger.experiment
    for kind, path in inputs(plan).items():
        manifest = path / MANIFEST
        made = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
        name = made.get("name", path.name)
        artifact = wandb.Artifact(
            f"{name}-{kind}", type=kind, metadata={"key": made.get("key"), "directory": str(path)}
        )
        if made:
            artifact.add_dir(str(path), policy="immutable")  # no second copy on the disk
        else:
            artifact.add_reference(path.resolve().as_uri())
        # What `use_artifact` does with a new artifact; offline, too, where `use_artifact` refuses.
        run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
    for path in sorted((run_dir / "models").glob("[!.]*")):
        name = f"{plan.config.model.name}-{variant_name(plan.config)}-{path.name.replace('+', '-')}"
        artifact = wandb.Artifact(name, type="model", metadata={"directory": str(path)})
        artifact.add_reference(path.resolve().as_uri())
        run.log_artifact(artifact)


def inputs(plan: Plan) -> dict[str, Path]:
    """The directories of the tokenizer and the adapted tables of this run, of those that there are."""
    if plan.config.adapted:
        return {"adapted": checkpoints.resolve_adapted(plan.config.adapted)}
    found = {}
    for kind in ("tokenizer", "adapted"):
        if kind in plan.stages and plan.cached(kind):
            stage = plan.stages[kind]
            with plan.store.open(stage.kind, stage.name, stage.inputs) as slot:
                found[kind] = slot.path
    return found


def close(loggers: list[Logger], *, failed: bool) -> None:
    """Leave nothing open. A run of Weights & Biases that never began is none."""
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
        if isinstance(logger, WandbLogger):
            import wandb

            wandb.finish(exit_code=int(failed))
