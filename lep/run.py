"""The entry point: `main` composes a config, `adapt` is the whole method on one screen."""

from __future__ import annotations

import logging
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger
from transformers.utils import logging as transformers_logging

from lep import checkpoints, plan_app, processes, stages, terminal
from lep.config import check, choices, planned_stages, write_once
from lep.corpus import PreparedCorpus
from lep.embeddings import Embeddings, open_embeddings
from lep.export.checks import check_reads_back
from lep.loggers import log_config, log_result, open_loggers
from lep.report import write_report
from lep.results import ENDED_FILE, ERROR_FILE, Result, read_result, write_result
from lep.shards import Table
from lep.sweep import forget_notes, leave_note
from lep.training import EndTraining, ReportHeldOut, measured

# Kept in this one place: configs are written so that Hydra 1.3 and 1.4 read them alike.
HYDRA_VERSION_BASE = "1.3"


def adapt(
    config: DictConfig,
    run_dir: Path,
    loggers: list[Logger],
    *,
    chosen: dict[str, str],
    watch: Sequence[Callback] = (),
) -> Result:
    """Corpus, tokenizer, T, initialisation, training, propagation, calibration, benchmark: one run of the method.

    What was made before, by this run or another, comes from the store. Later stages than `config.stages` are left out.
    watch: what else is called back in training.
    """
    torch.manual_seed(config.seed)
    asked, seconds, judged = planned_stages(config), dict[str, float](), list[stages.Judged]()
    vocabularies: dict[str, Any] = {}
    history: list[dict[str, float]] = []
    plan = stages.make_plan(config)
    terminal.show_plan(plan, run_dir)
    log_config(loggers, config, chosen=chosen)

    def conclude() -> Result:
        result = stages.collect(plan, run_dir, chosen, judged, history, corpus, vocabularies, seconds)
        log_result(loggers, result, plan, run_dir)
        return result

    with timed(seconds, "corpus"):
        corpus = stages.make_corpus(plan)
        held_out = PreparedCorpus(corpus.path).all_held_out(config.measured_characters)
        copies = stages.make_copies(plan, corpus)
    if "tokenizer" not in asked:
        return conclude()

    with timed(seconds, "tokenizer"):
        tokenizer_dir = (
            checkpoints.resolve_adapted(config.adapted) if config.adapted else stages.make_tokenizer(plan, corpus).path
        )
        tokenizer = checkpoints.load_tokenizer(tokenizer_dir, key="adapted")
        if config.export and plan.instruct_dir:
            check_reads_back(tokenizer, plan.instruct_dir)
        operator = stages.make_operator(plan, tokenizer)
        vocabularies = stages.describe_vocabularies(plan, corpus, tokenizer, operator)
    if "training" not in asked:
        return conclude()

    with timed(seconds, "initialisation"):
        base = open_embeddings(plan.base_dir)
        initial = stages.initialise(config, base, operator)

    def evaluate(adapted: Embeddings[Table]) -> None:
        """Propagate by every rule, calibrate what is to be, and benchmark each."""
        if "propagation" in asked:
            with timed(seconds, "propagation and benchmark"):
                judge = stages.make_judge(plan, base, operator, tokenizer, held_out)
                calibrator = stages.make_calibrator(judge, plan, loggers, copies)
                judged.extend(
                    stages.judge_all(judge, plan, run_dir, initial=initial, adapted=adapted, calibrator=calibrator)
                )

    if config.adapted:
        evaluate(open_embeddings(tokenizer_dir))
    else:
        with timed(seconds, "training"):
            blocks = stages.make_packed(plan, corpus, tokenizer_dir)
            start = stages.Adaptation(initial, tokenizer, blocks, held_out)
            history = stages.train(plan, run_dir, start, loggers, evaluate, watch=watch)
    return conclude()


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note how long a stage took, without the stages inside it."""
    started, before = time.monotonic(), sum(seconds.values())
    yield
    inside = sum(seconds.values()) - before
    seconds[stage] = time.monotonic() - started - inside


def run_job(config: DictConfig, run_dir: Path, *, chosen: dict[str, str]) -> None:
    """One job, which may be a trial of a search."""
    check(config)
    if config.adapted or "training" not in planned_stages(config):
        if not processes.is_leader():
            raise processes.LeaderGoesOn
    else:
        processes.expect_word()
    if config.search is None:
        make_result(config, run_dir, chosen=chosen)
    else:
        run_trial(config, run_dir, chosen=chosen)


def run_trial(config: DictConfig, run_dir: Path, *, chosen: dict[str, str]) -> None:
    """One job with what a search says it should try. It may be ended early; then it leaves no result."""
    from lep.search import take_trial  # Optuna is an extra

    measure, trial = config.search.measure, take_trial(config, run_dir)
    try:
        trial.check_not_ended()
        result = make_result(config, run_dir, chosen=chosen, watch=[ReportHeldOut(measure, trial.report)])
    except EndTraining as ended:
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        leave_note(run_dir, ENDED_FILE, str(ended))
        terminal.say(f"ended     {run_dir}: {ended}")
    else:
        last = {name: value for row in result.training["curve"] for name, value in row.items()}
        bits = measured(measure, last)
        terminal.say(f"search    {trial.finish(bits)}")


def make_result(config: DictConfig, run_dir: Path, *, chosen: dict[str, str], watch: Sequence[Callback] = ()) -> Result:
    """A run that is done returns at once, one that was killed goes on, a new one starts."""
    if processes.is_leader():
        write_once(run_dir / "config.yaml", config)
    record = run_dir / "result.json"
    if record.exists():
        result = read_result(record)
        terminal.say(f"{run_dir} is done already; delete it to run again.")
    else:
        with open_loggers(config, run_dir, chosen=chosen) as loggers:
            result = adapt(config, run_dir, loggers, chosen=chosen, watch=watch)
        write_report(result, run_dir / "report.html", configuration=(run_dir / "config.yaml").read_text())
        write_result(record, result)
    terminal.show_result(result, run_dir, config)
    return result


@hydra.main(config_path="pkg://lep.conf", config_name="config", version_base=HYDRA_VERSION_BASE)
def compose_and_run(config: DictConfig) -> None:
    """The task of Hydra: one job, also of a sweep."""
    as_task(run_job, config)


def as_task(job: Callable[..., object], config: DictConfig) -> None:
    """Do a job in the folder that Hydra chose for it. A user's mistake ends it with its message, and no trace.

    In a sweep any error ends the job alone.
    """
    # Here, since a launcher may start this in a process of its own.
    processes.join()
    terminal.speak_for_all()
    quieten()
    hydra_config = HydraConfig.get()
    run_dir, sweeping = Path(hydra_config.runtime.output_dir), hydra_config.mode == RunMode.MULTIRUN
    if processes.is_leader():
        forget_notes(run_dir)
    try:
        job(config, run_dir, chosen=choices(hydra_config.runtime.choices))
    except processes.LeaderGoesOn:
        return
    except Exception as error:
        mistake = isinstance(error, ValueError)
        message = str(error) if mistake else f"{type(error).__name__}: {error}"
        leave_note(run_dir, ERROR_FILE, message)
        if not (mistake or sweeping):
            raise
        # The message says what to do, the trace is in the log.
        logging.getLogger(__name__).exception("refused" if mistake else "failed")
        status = terminal.complain(message)
        if not sweeping:
            raise SystemExit(status) from error
        processes.leave()


def main() -> None:
    """The console script `lep`; `lep plan` says what a run would cost and runs nothing."""
    if sys.argv[1:2] == ["plan"]:
        raise SystemExit(plan_app.main(sys.argv[2:], version_base=HYDRA_VERSION_BASE))
    compose_and_run()


def quieten() -> None:
    """Keep the terminal for the plan, the bars and the table: libraries speak up only about what needs attention."""
    transformers_logging.disable_progress_bar()
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for known in (
        "Experiment logs directory",  # a run that is resumed writes its metrics again
        ".*isinstance\\(treespec, LeafSpec\\)",  # Lightning 2.6 with torch 2.13
        "Found .* module\\(s\\) in eval mode",  # the frozen body, on purpose
        "The .*dataloader.* does not have many workers",  # blocks come from a memory map
        "The number of training batches .* is smaller than the logging interval",  # the last step is always logged
        "MLFlow only allows",  # it leaves other characters out of the names of metrics
        "The ``noload`` loader strategy",  # MLflow 3.17 with SQLAlchemy 2.1
    ):
        warnings.filterwarnings("ignore", message=known)


if __name__ == "__main__":
    main()
