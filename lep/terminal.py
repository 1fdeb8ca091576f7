"""What a person sees on the terminal: the plan before the work, the table after it, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from lep.artifacts import Store
from lep.callbacks import NOT_REPAIRED
from lep.config import calibrations, planned_stages, trained_rows, variant_name
from lep.processes import is_leader
from lep.report import calibration_sentences, incomplete_sentences, terminal_table, unequal_sentences, vocabulary_tables
from lep.results import IN_TRAINING, Result
from lep.stages import Plan, needs

console = Console()


def speak_for_all() -> None:
    """Of the processes of one run, only the leader is heard."""
    console.quiet = not is_leader()


def say(message: str) -> None:
    console.print(message, highlight=False, markup=False, soft_wrap=True)


def complain(message: str) -> int:
    """Show a user's mistake; gives the exit status."""
    Console(stderr=True).print(f"[bold red]lep:[/] {escape(message)}", highlight=False, soft_wrap=True)
    return 2


def name_failures(errors: Mapping[Path, str]) -> int:
    """Show which runs of a sweep failed, by their folders, and why; gives the exit status."""
    lines = "".join(
        f"\n  {folder.name}: {message.strip()}\n    log: {folder}/run.log" for folder, message in errors.items()
    )
    count = "1 run" if len(errors) == 1 else f"{len(errors)} runs"
    complain(f"{count} failed. The same command does what failed again; what is done stays.{lines}")
    return 1


def show_plan(plan: Plan, run_dir: Path) -> None:
    """The stages with their sizes, and which of them the store already has."""
    config = plan.config
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for stage, what in _sizes(config).items():
        if stage in planned_stages(config):
            table.add_row(f"[bold]{stage}[/]", escape(what), _state(plan, stage))
    found = needs(plan)
    if found is not None:
        memory, disk = found
        table.add_row("[bold]needs[/]", f"about {memory / 1e9:.1f} GB of memory, {disk / 1e9:.1f} GB of disk", "")
    title = f"lep  {config.model.name} · {variant_name(config)} · seed {config.seed}"
    console.print(Panel(table, title=title, subtitle=escape(str(run_dir)), title_align="left", subtitle_align="left"))


def _sizes(config: DictConfig) -> dict[str, str]:
    training, name = config.training, variant_name(config)
    per_step = training.batch_size * training.block_size * config.trainer.get("accumulate_grad_batches", 1)
    given = [(key, value) for key, value in config.tokenizer.items() if not str(key).startswith("_") and value]
    variant = ", ".join(f"{key} {value}" for key, value in given)
    return {
        "corpus": config.corpus.name,
        "tokenizer": str(config.adapted or (f"{name} ({variant})" if variant else name)),
        "training": (
            "none: trained tables are given"
            if config.adapted
            else f"{training.steps:,} steps of {per_step:,} tokens, {trained_rows(config)} rows"
        ),
        "propagation": ", ".join(map(str, config.propagation)) or "none",
        "calibration": f"{', '.join(named)} of {', '.join(config.calibration.on)}"
        if (named := calibrations(config))
        else "none",
        "benchmark": ", ".join(map(str, config.benchmark)) or "none",
    }


def _state(plan: Plan, stage: str) -> str:
    kind = {"corpus": "corpus", "tokenizer": "tokenizer", "training": "adapted"}.get(stage)
    if kind is None or (plan.config.adapted and kind != "corpus"):
        return ""
    return "[green]cached[/]" if plan.cached(kind) else "[dim]to do[/]"


def show_result(result: Result, run_dir: Path, config: DictConfig) -> None:
    """The table of models and tasks; what was saved, where the page lies, and what to try next."""
    if result.rows:
        console.print(terminal_table(result, width=console.width))
    elif result.tokenizer:
        console.print(vocabulary_tables(result))
    for sentence in incomplete_sentences(result):
        say(f"incomplete {sentence}")
    for sentence in unequal_sentences(result):
        say(f"unequal   {sentence}")
    for sentence in calibration_sentences(result):
        say(f"gain      {sentence}")
    if tables := Store(config.artifacts_dir).find("adapted", result.artifacts.get("adapted", {}).get("key", "")):
        say(f"tables    {tables}  (adapted=DIR takes them to another instruct tune)")
    for path in sorted((run_dir / "models").glob("[!.]*")):
        say(f"{'adapter' if path.name.endswith('-adapter') else 'model':9} {path}")
    for name, found in result.propagation.items():
        if found.get("end of turn", {}).get("unchanged_because") == NOT_REPAIRED:
            say(f"note      {name}: the end-of-turn token was not repaired: {NOT_REPAIRED}")
    if unwatched(result, config):
        say(
            f"note      during_training.every_steps={config.during_training.every_steps} had no effect: the tables had "
            "been trained before, by a run that did not ask for it. Another artifacts_dir or seed trains anew"
        )
    kept = [name for name in ("config.yaml", "metrics.csv", "answers", "result.json") if (run_dir / name).exists()]
    say(f"saved     {run_dir}/  ({', '.join(kept)})")
    say(f"page      {run_dir / 'report.html'}")
    say(f"next      {_next_command(config, run_dir)}")


def unwatched(result: Result, config: DictConfig) -> bool:
    """Whether scores in training were asked for, and the tables came from the store with a curve that has none."""
    curve, every = result.training.get("curve"), config.during_training.every_steps
    if not curve or every is None or every > config.training.steps:
        return False
    return not any(name.startswith(IN_TRAINING) for row in curve for name in row)


def _next_command(config: DictConfig, run_dir: Path) -> str:
    if planned_stages(config)[-1] == "corpus":
        return "the same command with stages=[tokenizer]: what a new vocabulary does to this text"
    if "benchmark" not in planned_stages(config):
        return "lep  (without stages=...: train, propagate, benchmark)"
    if config.model.name == "tiny" and not config.export:
        return "lep -m tokenizer=bpe,unigram,extension,optimization"
    exported = sorted(path.parent.name for path in (run_dir / "models").glob("[!.]*/config.json"))
    if not exported:
        return "the same command with export=[conversion] writes a model directory to chat with"
    return f"chat with it: the commands are in {exported[0]}/README.md beside its weights"
