"""Searches: every run of a sweep is a trial of Optuna, which says what to try, and ends what falls behind the others.

In: `search` of the config, and bits per byte as training goes on. Out: values for keys of the config. The trials share
one journal in the study's folder, so that any launcher may run them, several at once; a trial that was killed goes on
with the values it had.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna  # type: ignore[import-not-found]
from omegaconf import DictConfig, OmegaConf
from optuna.storages import JournalStorage  # type: ignore[import-not-found]
from optuna.storages.journal import JournalFileBackend  # type: ignore[import-not-found]
from optuna.trial import TrialState  # type: ignore[import-not-found]

from lep.config import build
from lep.training import EndTraining

JOURNAL_FILE = "search.journal"
RUN = "run"  # what a trial is known by when its run starts again


class Trial:
    """A run's part in a search. Made by `take_trial`."""

    def __init__(self, study: optuna.Study, number: int) -> None:
        self._study = study
        self._number = number

    @property
    def _kept(self) -> optuna.trial.FrozenTrial:
        """What the journal says of it now."""
        return self._study.get_trials(deepcopy=False)[self._number]

    @property
    def values(self) -> dict[str, Any]:
        """What it tries, by the names of the space."""
        return self._kept.params

    def report(self, step: int, bits: float) -> None:
        """Note bits per byte at a step; of a run that goes on after a kill, those alone that are new.

        Raises EndTraining where the trial is behind.
        """
        if step in self._kept.intermediate_values:
            return
        trial = optuna.trial.Trial(self._study, self._kept._trial_id)
        trial.report(bits, step)
        if trial.should_prune():
            self._study.tell(self._number, state=TrialState.PRUNED)
            self.check_not_ended()

    def check_not_ended(self) -> None:
        """EndTraining if the trial fell behind, now or when it ran before."""
        kept = self._kept
        if kept.state == TrialState.PRUNED:
            raise EndTraining(f"ended at step {kept.last_step}, behind the others: {_said(self.values)}")

    def finish(self, bits: float) -> str:
        """Note the bits per byte that it ended with; gives a sentence on where the search stands."""
        if not self._kept.state.is_finished():
            self._study.tell(self._number, bits)
        best = self._study.best_trial
        return f"{_said(self.values)}: {bits:.4f}; best so far {_said(best.params)}: {best.value:.4f}"


def take_trial(config: DictConfig, run_dir: Path) -> Trial:
    """The trial of this run, as it was if the run was started before. Its values are set in `config`."""
    settings = config.search
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run_dir.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(run_dir.parent / JOURNAL_FILE))),
        study_name=config.study,
        load_if_exists=True,
        # Each of its own draw: one seed for all would make them try the same.
        sampler=build(settings.sampler, seed=config.seed + settings.trial),
        pruner=build(settings.pruner),
    )
    known = [trial.number for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get(RUN) == run_dir.name]
    if not known:
        asked = study.ask({str(name): build(of.distribution) for name, of in settings.space.items()})
        asked.set_user_attr(RUN, run_dir.name)
        known = [asked.number]
    trial = Trial(study, known[0])
    for name, value in trial.values.items():
        OmegaConf.update(config, settings.space[name].key, value)
    return trial


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
