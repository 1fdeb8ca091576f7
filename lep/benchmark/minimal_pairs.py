"""Minimal pairs: does a model find the good sentence more likely than the bad one? (BLiMP; good for small models.)

In: any CSV or JSONL file with a column of good and one of bad sentences. Out: the share of pairs in which the good
sentence has the higher sum of log-probabilities, by phenomenon and over all. A tie is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lep.assets.microworld import benchmark_items
from lep.benchmark.asking import Journal, Query, Ranks, ask
from lep.benchmark.darumeru.sources import digest, read_rows
from lep.benchmark.metrics import mean_and_stderr, mean_estimate
from lep.benchmark.records import Record, SuiteResult, group_by_key
from lep.results import Score

ALL = "minimal pairs"


@dataclass(frozen=True)
class MinimalPairs:
    """The suite as a config names it.

    path: the file; null is agreement in the micro-world. good, bad, phenomenon: its columns; without the last (null)
    all pairs are of one phenomenon. limit: pairs of each phenomenon.
    """

    path: str | None = None
    good: str = "sentence_good"
    bad: str = "sentence_bad"
    phenomenon: str | None = "UID"
    language: str = "ru"
    limit: int | None = None

    def __call__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        progress: str | None = None,
        journal: Journal | None = None,
        ranks: Ranks | None = None,
    ) -> SuiteResult:
        pairs = self._pairs()
        queries = [Query(f"pair/{number}", "", options=(good, bad)) for number, (_, good, bad) in enumerate(pairs)]
        answers = ask(model, tokenizer, queries, journal=journal, ranks=ranks, progress=progress)
        records = []
        for (phenomenon, good, bad), query, answer in zip(pairs, queries, answers, strict=True):
            right = answer.scores[0] > answer.scores[1]
            chosen = good if right else bad
            records.append(
                Record(
                    *(phenomenon, self.language, "", chosen, good, float(right)),
                    option_scores=answer.scores,
                    item=query.key,
                )
            )
        by_phenomenon = {
            key: Score(*mean_and_stderr([r.value for r in group]), len(group))
            for key, group in group_by_key(records).items()
        }
        values, key = [record.value for record in records], f"{ALL}/{self.language}"
        overall = Score(*mean_and_stderr(values), len(values))
        return SuiteResult({key: overall, **by_phenomenon}, {}, records, {key: mean_estimate(values, name=key)})

    def fingerprint(self) -> dict[str, Any]:
        """What answers depend on besides the model."""
        return {"pairs": digest([dict(enumerate(pair)) for pair in self._pairs()])}  # type: ignore[arg-type]

    def _pairs(self) -> list[tuple[str, str, str]]:
        """(phenomenon, good, bad) of every pair."""
        if self.path is None:
            items = benchmark_items(seed=0, items_per_task=self.limit or 200)
            chosen = [i for i in items if i.options and not i.prompt and i.language == self.language]
            return [(item.task, item.options[0], item.options[1]) for item in chosen]
        rows = read_rows(Path(self.path))
        wanted = [self.good, self.bad, *([self.phenomenon] if self.phenomenon else [])]
        missing = [column for column in wanted if rows and column not in rows[0]]
        if missing or not rows:
            raise ValueError(
                f"{self.path} has no column {', '.join(missing)}; it has {', '.join(rows[0]) if rows else 'no rows'}. "
                "Name the columns with benchmark.minimal_pairs.good, .bad and .phenomenon (null for none)"
            )
        kept = [
            (str(row[self.phenomenon]) if self.phenomenon else "pairs", row[self.good], row[self.bad]) for row in rows
        ]
        return _first(kept, self.limit)


def _first(pairs: Sequence[tuple[str, str, str]], limit: int | None) -> list[tuple[str, str, str]]:
    """The first pairs of each phenomenon."""
    seen: dict[str, int] = {}
    kept = []
    for pair in pairs:
        seen[pair[0]] = seen.get(pair[0], 0) + 1
        if limit is None or seen[pair[0]] <= limit:
            kept.append(pair)
    return kept
