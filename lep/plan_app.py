"""What a run, or every run of a sweep, would cost, before anything is downloaded or made.

    lep plan model=llama3_8b tokenizer=extension trainer=gpu hardware=h100
    lep plan experiment=gates
    lep plan model=qwen3_8b model.base=DIR trainer=gpu training.block_size=512 hardware=rtx4090

`lep plan` takes what `lep` takes (overrides, -m, --config-dir), and hardware=NAME (see conf/hardware); without it a
config that trains on a CPU is planned for this machine's, any other for an H100. docs/cost.md has the formulas, and
what is assumed where only the data know.
"""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich import box
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from lep.budget import Budget, Device, gigabytes, make_budget
from lep.config import plain, run_name, variant_name
from lep.cost import Memory
from lep.terminal import complain, console, say

MEASURED_SECONDS, MEASURED_SIZE = 0.5, 1024  # of products of two square matrices
FLAGS = ArgumentParser(add_help=False, allow_abbrev=False)  # of Hydra's, those that change what is planned, and -m
FLAGS.add_argument("-m", "--multirun", action="store_true")  # what is swept is planned with it as without
FLAGS.add_argument("-cd", "--config-dir")
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Job:
    """A run by the overrides that make it, and what it takes."""

    name: str
    config: DictConfig
    budget: Budget


def main(arguments: Sequence[str], *, version_base: str) -> int:
    """Print what the runs that `lep ARGUMENTS` starts would take; gives the exit status."""
    if {"-h", "--help"} & {*arguments}:
        say(__doc__ or "")
        return 0
    try:
        jobs = plan(arguments, version_base=version_base)
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        return complain(str(error))
    show(max(jobs, key=lambda job: job.budget.flops))
    if len(jobs) > 1:
        console.print(jobs_table(jobs))
    return 0


def plan(arguments: Sequence[str], *, version_base: str) -> list[Job]:
    """Every run that the arguments start, with what it takes. ValueError, and Hydra's own errors, say what is wrong."""
    flags, overrides = FLAGS.parse_known_args(arguments)
    unknown = [override for override in overrides if override.startswith("-")]
    if unknown:
        raise ValueError(f"lep plan has no flag {unknown[0]}. Give overrides as to `lep`, and hardware=NAME")
    place = also_in(flags.config_dir)
    of_hardware = [override for override in overrides if override.startswith(("hardware=", "hardware."))]
    with initialize_config_module("lep.conf", version_base=version_base):
        jobs = sweep([*place, *(override for override in overrides if override not in of_hardware)])
        configs = [compose("config", overrides=job) for job in jobs]
        default = "cpu" if configs[0].trainer.accelerator == "cpu" else "h100"
        device = find_device([*place, *of_hardware], default=default)
    budgets = [make_budget(config, device) for config in configs]
    return [Job(run_name(job), config, budget) for job, config, budget in zip(jobs, configs, budgets, strict=True)]


def also_in(config_dir: str | None) -> list[str]:
    """The override by which options are looked for in a folder of the user's too; ValueError if it is not there."""
    if config_dir is None:
        return []
    if not Path(config_dir).is_dir():
        raise ValueError(f"--config-dir {config_dir} is no folder; give the one that holds corpus/, benchmark/, ...")
    return [f"hydra.searchpath=['file://{Path(config_dir).absolute()}']"]


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every run: those given, and those that an experiment sweeps over."""
    parser = OverridesParser.create()
    given = parser.parse_overrides([*overrides])
    single = [str(override.input_line) for override in given if not override.is_sweep_override()]
    hydra = compose("config", overrides=single, return_hydra_config=True).hydra
    own = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    several = str(hydra.mode).endswith("MULTIRUN")
    # A later override of a key takes the place of an earlier one, as in a sweep.
    (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides([*(own if several else []), *overrides]), None)
    return jobs


def find_device(overrides: Sequence[str], *, default: str) -> Device:
    """The device that is named; of a CPU, what this machine does and has. The group is none of a run's own."""
    named = [override for override in overrides if override.startswith("hardware=")] or [f"hardware={default}"]
    settings = [override for override in overrides if override not in named]
    node: dict[str, Any] = plain(compose("config", overrides=[f"+{named[-1]}", *settings]).hardware)
    if node["tflops"] is None:
        node["tflops"] = measure_flops() / 1e12
    if node["memory_gb"] is None:
        node["memory_gb"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return Device(**node)


def measure_flops() -> float:
    """Operations a second of products of float32 matrices on this CPU: the best of half a second of them."""
    matrix, best = torch.randn(MEASURED_SIZE, MEASURED_SIZE), 0.0
    until = time.perf_counter() + MEASURED_SECONDS
    while (started := time.perf_counter()) < until:
        torch.mm(matrix, matrix)
        best = max(best, 2 * MEASURED_SIZE**3 / (time.perf_counter() - started))
    return best


# ---------------------------------------------------------------------------------------------------------------------
# What a person sees.


def show(job: Job) -> None:
    """The stages of one run, the memory by kind of those that need a device, and what is to be said of them."""
    config, budget = job.config, job.budget
    device, parameters = budget.device, budget.shape.parameters()
    head = Table.grid(padding=(0, 2, 0, 0))
    stored = f"{gigabytes(parameters * budget.stored)} as stored"
    head.add_row("[bold]model[/]", escape(f"{quantity(parameters)} parameters, {stored}; from {budget.source}"))
    speed = f"{device.tflops:,.3g} TFLOP/s, of which this model reaches {100 * budget.efficiency:.0f} %"
    head.add_row("[bold]device[/]", f"{budget.devices} x {device.name}, {gigabytes(device.memory)}; {speed}")
    title = f"lep plan  {config.model.name} · {variant_name(config)} · seed {config.seed}"
    console.print(Panel(head, title=title, title_align="left"))
    console.print(stages_table(budget))
    console.print(memory_table(budget))
    for warning in budget.warnings:
        console.print(f"[bold red]too large[/]  {escape(warning)}", highlight=False)
    for note in budget.notes:
        console.print(f"[bold]note[/]       {escape(note)}", highlight=False)


def stages_table(budget: Budget) -> Table:
    """A row a stage; memory is that of the device, or of the machine where the device has no part in it."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("stage", min_width=len("initialisation"))
    table.add_column("", min_width=13)
    for name in ("tokens", "FLOPs", "memory", "disk", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in budget.rows:
        memory = row.memory.total if row.memory else row.host
        cells = (quantity(row.tokens), flops(row.flops), size(memory), size(row.disk), hours(budget.hours(row)))
        table.add_row(row.stage, escape(row.what), *cells)
    table.add_section()
    table.add_row("all", "", "", flops(budget.flops), "", size(budget.disk), hours(budget.total_hours))
    return table


def memory_table(budget: Budget) -> Table:
    """Memory of the device by kind, a stage a column, and that of the machine beside it."""
    rows = [row for row in budget.rows if row.memory]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("memory", no_wrap=True)
    for row in rows:
        table.add_column(row.stage, justify="right")
    for kind in fields(Memory):
        found = [getattr(row.memory, kind.name) for row in rows]
        if any(found):
            table.add_row(kind.name, *map(size, found))
    table.add_section()
    table.add_row("all", *(size(row.memory.total) for row in rows if row.memory))
    if not budget.device.is_cpu:
        table.add_row("beside it, in the machine", *(size(row.host) for row in rows))
    return table


def jobs_table(jobs: Sequence[Job]) -> Table:
    """A row a run. What runs share is made once, and is counted with each of them here."""
    table = Table(title=f"{len(jobs)} runs; the costliest is above", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("run", overflow="fold")
    for name in ("tokens", "FLOPs", "memory", "disk", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for job in jobs:
        budget = job.budget
        tokens = sum(row.tokens or 0 for row in budget.rows if row.timed)
        cells = (
            quantity(tokens),
            flops(budget.flops),
            size(budget.memory),
            size(budget.disk),
            hours(budget.total_hours),
        )
        table.add_row(escape(job.name), *cells)
    table.add_section()
    budgets = [job.budget for job in jobs]
    total = flops(sum(budget.flops for budget in budgets))
    spent = hours(sum(budget.total_hours for budget in budgets))
    table.add_row("all, if nothing is shared", "", total, "", size(sum(budget.disk for budget in budgets)), spent)
    return table


def quantity(number: float | None) -> str:
    """A number in three digits and the prefix of its thousands."""
    if number is None:
        return "–"
    scale, prefix = next(((scale, prefix) for scale, prefix in PREFIXES if number >= scale), (1, ""))
    return f"{number / scale:.3g} {prefix}".strip()


def flops(number: int | None) -> str:
    return f"{number:.1e}".replace("e+", "e") if number else "–"


def size(nbytes: int | None) -> str:
    return gigabytes(nbytes) if nbytes else "–"


def hours(number: float | None) -> str:
    if number is None:
        return "–"
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}" if number >= 0.01 else "<0.01"
