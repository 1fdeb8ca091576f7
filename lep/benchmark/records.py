"""What a suite hands back: scores, details, and a record of every item, by which any two models are compared.

In: items as they were asked and answered. Out: JSON lines, paired differences, samples for people to read.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Literal

from lep.benchmark.metrics import Estimate, mean_estimate, paired_difference, recovered_share
from lep.results import BITS, TOTAL, Score

Stop = Literal["end of turn", "other end token", "newline", "never"]
STOPS: tuple[Stop, ...] = ("end of turn", "other end token", "newline", "never")


@dataclass(frozen=True)
class Record:
    """One item as it was asked and answered.

    prompt: the very text given to the model. expected: empty where nothing is, as in a text to go on with, which nobody
    judges. value: what the answer is worth, in 0..1 (right or wrong: 1 or 0). stop: what ended a written answer.
    length_ratio: of a copy, how near its token count is to that of the expected text. option_scores: of a ranked item,
    log-probabilities in nats. item: what it is called where prompts differ from model to model.
    """

    task: str
    language: str
    prompt: str
    answer: str
    expected: str
    value: float
    stop: Stop | None = None
    length_ratio: float | None = None
    option_scores: tuple[float, ...] = ()
    item: str = ""

    @property
    def key(self) -> str:
        return f"{self.task}/{self.language}"

    @property
    def right(self) -> bool:
        return self.value >= 1

    @property
    def judged(self) -> bool:
        return bool(self.expected)


@dataclass(frozen=True)
class SuiteResult:
    """What a suite found.

    scores: by "task/language". details: what else there is to say, by the same keys or the suite's name. records: in
    the order of the items. estimates: of scores that are no means over records, by the same keys, and of bits per byte;
    models are compared by them.
    """

    scores: dict[str, Score]
    details: dict[str, Any]
    records: list[Record]
    estimates: dict[str, Estimate] = field(default_factory=dict)


def together(suites: Iterable[SuiteResult]) -> SuiteResult:
    """What several suites found of one model."""
    whole = SuiteResult({}, {}, [])
    for found in suites:
        whole.scores.update(found.scores)
        whole.details.update(found.details)
        whole.records.extend(found.records)
        whole.estimates.update(found.estimates)
    return whole


def group_by_key(records: Iterable[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.key, []).append(record)
    return groups


def compare(models: Mapping[str, SuiteResult], *, baselines: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Paired differences between models on every score: what the report's verdict is computed from.

    models: what was found of each, on the same items in the same order. Every pair is compared but for those with a
    baseline in them, on the scores that both have (a vocabulary may fail a task) and that have at least two units.
    Returns dicts {task, a, b, difference, low, high, n}, `difference` = score of a minus that of b, with a 95 %
    bootstrap interval over items (variants of an exam, texts).
    """
    measured = {name: _estimates(found) for name, found in models.items() if name not in baselines}
    for a, b in combinations(measured, 2):
        _same_items(models[a].records, models[b].records)
    return [
        {"task": key, "a": a, "b": b, **asdict(paired_difference(measured[a][key], measured[b][key]))}
        for a, b in combinations(measured, 2)
        for key in measured[a]
        if key in measured[b] and measured[a][key].n > 1
    ]


def gains(before: SuiteResult, after: SuiteResult, original: SuiteResult) -> list[dict[str, Any]]:
    """What a change to a model gained on every score, and which share of its distance from the original it closed.

    All three answered the same items in the same order; a score that one of them lacks is left out. Returns dicts
    {task, before, after, difference, low, high, n, recovered}: the scores, their paired difference with a 95 %
    bootstrap interval, and {share, low, high}, or None where the distance is within the noise. The items of all tasks
    of a language are "all tasks/LANGUAGE" together, by their mean value.
    """
    models = (before, after, original)
    judged = [group_by_key(row for row in found.records if row.judged) for found in models]
    shared = [key for key in judged[0] if all(key in of for of in judged)]
    estimates = [
        _estimates(found) | _totals({key: of[key] for key in shared}) for found, of in zip(models, judged, strict=True)
    ]
    for found in (after, original):
        _same_items(before.records, found.records)
    gained = []
    for key, then in estimates[0].items():
        if not all(key in of for of in estimates[1:]) or then.n < 2 or key.startswith(f"{BITS}/"):
            continue
        now, whole = (of[key] for of in estimates[1:])
        share = recovered_share(then, now, whole)
        difference = asdict(paired_difference(now, then))
        figures = {"before": then.value, "after": now.value, **difference}
        gained.append({"task": key, **figures, "recovered": share and asdict(share)})
    return gained


def _estimates(found: SuiteResult) -> dict[str, Estimate]:
    """By score: those that the suite gave, and means over the items of what else was judged."""
    groups = group_by_key(row for row in found.records if row.judged)
    of_items = {key: _mean(key, rows) for key, rows in groups.items() if key not in found.estimates}
    return of_items | found.estimates


def _totals(groups: Mapping[str, list[Record]]) -> dict[str, Estimate]:
    """Of each language, the records of all tasks together."""
    totals: dict[str, list[Record]] = {}
    for record in chain.from_iterable(groups.values()):
        totals.setdefault(f"{TOTAL}/{record.language}", []).append(record)
    return {key: _mean(key, rows) for key, rows in totals.items()}


def _mean(key: str, records: Sequence[Record]) -> Estimate:
    return mean_estimate([record.value for record in records], name=key)


def _same_items(a: Sequence[Record], b: Sequence[Record]) -> None:
    ours, theirs = group_by_key(a), group_by_key(b)
    for key in ours.keys() & theirs.keys():
        assert _items(ours[key]) == _items(theirs[key]), "the same items, in one order"


def samples(records: Mapping[str, Sequence[Record]], *, per_task: int = 1) -> list[dict[str, Any]]:
    """The first items of every task with what each model answered, for people to read.

    records: of each model, on the same items in the same order.
    """
    grouped = {name: group_by_key(rows) for name, rows in records.items()}
    first = next(iter(grouped.values()), {})
    shared = set(first).intersection(*grouped.values())
    return [
        {
            "task": item.task,
            "language": item.language,
            "prompt": item.prompt,
            "expected": item.expected or None,
            "answers": [
                {"model": name, "answer": groups[key][i].answer, "right": groups[key][i].right if item.judged else None}
                for name, groups in grouped.items()
            ],
        }
        for key, group in first.items()
        if key in shared
        for i, item in enumerate(group[:per_task])
    ]


def write_records(path: Path, records: Iterable[Record]) -> None:
    """One JSON object a line, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for record in records:
            stream.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


def read_records(path: Path) -> list[Record]:
    """The records that `write_records` wrote."""
    with path.open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    return [Record(**{**row, "option_scores": tuple(row["option_scores"])}) for row in rows]


def _items(records: Sequence[Record]) -> list[tuple[str, str]]:
    return [(record.item or record.prompt, record.expected) for record in records]
