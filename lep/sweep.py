"""Runs of a sweep that fail do so alone: the others go on, and the end names them with their errors.

A launcher ends the whole sweep where one of its runs raises or exits. So a run that fails leaves its error as a file in
its folder, whichever launcher ran it and on which machine; when all are over, `NameFailures` reads what is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lep import terminal
from lep.durable import replacing
from lep.results import ENDED_FILE, ERROR_FILE


def leave_note(run_dir: Path, name: str, message: str) -> None:
    """Note in a run's folder why it failed or was ended, for the end of the sweep, for reports and for people."""
    with replacing(run_dir / name) as staging:
        staging.write_text(message + "\n", encoding="utf-8")


def forget_notes(run_dir: Path) -> None:
    """A run that starts again has neither failed nor been ended yet."""
    for name in (ERROR_FILE, ENDED_FILE):
        (run_dir / name).unlink(missing_ok=True)


class NameFailures(Callback):
    """At the end of a sweep: its failed runs with their errors, and an exit status that says so."""

    def __init__(self) -> None:
        self._known: dict[Path, int] = {}

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self._known = _errors(config)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        # The study's folder may hold older failures, of runs that this sweep does not have.
        failed = [path for path, written in _errors(config).items() if self._known.get(path) != written]
        if failed:
            raise SystemExit(terminal.name_failures({path.parent: path.read_text(encoding="utf-8") for path in failed}))


def _errors(config: DictConfig) -> dict[Path, int]:
    """Of every failed run the file that says why, and when it was written.

    Looked for in all studies: where a sweep is over experiments, its runs lie in those of the experiments.
    """
    found = {
        *Path(config.hydra.sweep.dir).glob(f"*/{ERROR_FILE}"),
        *Path(config.output_dir).glob(f"*/*/{ERROR_FILE}"),
    }
    return {path: path.stat().st_mtime_ns for path in sorted(found)}
