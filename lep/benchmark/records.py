"""What a suite hands back: scores, details, and a record of every item, by which any two models are compared.

In: items as they were asked and answered. Out: JSON lines, paired differences, samples for people to read.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Literal

from lep.benchmark.metrics import Difference, paired_difference, recovered_share
from lep.results import TOTAL, Score

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
    the order of the items.
    """

    scores: dict[str, Score]
    details: dict[str, dict[str, Any]]
    records: list[Record]


def group_by_key(records: Iterable[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.key, []).append(record)
    return groups


def compare(
    records: Mapping[str, Sequence[Record]], *, baselines: Sequence[str] = (), seed: int = 0
) -> list[dict[str, Any]]:
    """Paired differences between models on every task: what the report's verdict is computed from.

    records: of each model, on the same items in the same order. Every pair of models is compared but for those with a
    baseline in them, on the tasks that both were judged on (a vocabulary may fail one). Returns dicts {task, a, b,
    difference, low, high, n}, `difference` = mean value of a minus of b, with a 95 % bootstrap interval over items.
    """
    judged = {name: [row for row in rows if row.judged] for name, rows in records.items() if name not in baselines}
    grouped = {name: group_by_key(rows) for name, rows in judged.items()}
    return [
        {"task": key, "a": a, "b": b, **asdict(_difference(grouped[a][key], grouped[b][key], seed))}
        for a, b in combinations(grouped, 2)
        for key in grouped[a]
        if key in grouped[b]
    ]


def gains(
    before: Sequence[Record], after: Sequence[Record], original: Sequence[Record], *, seed: int = 0
) -> list[dict[str, Any]]:
    """What a change to a model gained on every task, and which share of its distance from the original it closed.

    All three answered the same items in the same order; a task that one of them lacks is left out. Returns dicts {task,
    before, after, difference, low, high, n, recovered}: means, their paired difference with a 95 % bootstrap interval,
    and {share, low, high}, or None where the distance is within the noise. The items of all tasks of a language are
    "all tasks/LANGUAGE" together.
    """
    judged = [group_by_key(row for row in rows if row.judged) for rows in (before, after, original)]
    shared = [key for key in judged[0] if all(key in of for of in judged)]
    grouped = [_with_totals({key: of[key] for key in shared}) for of in judged]
    found = []
    for key, rows in grouped[0].items():
        assert len({tuple(_items(group[key])) for group in grouped}) == 1, "the same items, in one order"
        then, now, whole = ([row.value for row in group[key]] for group in grouped)
        share = recovered_share(then, now, whole, seed=seed)
        means = {"before": sum(then) / len(rows), "after": sum(now) / len(rows)}
        difference = asdict(paired_difference(now, then, seed=seed))
        found.append({"task": key, **means, **difference, "recovered": share and asdict(share)})
    return found


def _with_totals(groups: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """The groups, and the records of each language together."""
    totals: dict[str, list[Record]] = {}
    for record in chain.from_iterable(groups.values()):
        totals.setdefault(f"{TOTAL}/{record.language}", []).append(record)
    return {**groups, **totals}


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


def _difference(a: Sequence[Record], b: Sequence[Record], seed: int) -> Difference:
    assert _items(a) == _items(b), "the same items, in one order"
    return paired_difference([r.value for r in a], [r.value for r in b], seed=seed)


def _items(records: Sequence[Record]) -> list[tuple[str, str]]:
    return [(record.item or record.prompt, record.expected) for record in records]
