"""Asks a model many things, remembers every answer on disk, and goes on where a killed process stopped.

In: a model, its tokenizer, queries as text. Out: an answer for each. Assumed: a journal belongs to one model (a
fingerprint says which); in it a query is known by its key and by all that is asked.
"""

from __future__ import annotations

import glob
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lep.artifacts import canonical_json
from lep.benchmark.scoring import Sampling, end_tokens, generate, option_logprobs, tokens_before

# How an option's worth is read off the log-probabilities of its tokens.
Reading = Literal["full_string", "first_token", "common_tokens", "per_character"]
# Queries between two writes to the journal, so that about this many seconds of work are lost by a kill.
_FIRST_CHUNK, _LARGEST_CHUNK, _SECONDS_AT_ONCE = 16, 2048, 8.0


@dataclass(frozen=True)
class Query:
    """One thing to ask: to choose among `options`, or, without any, to write after `prompt`.

    group: queries of one group begin alike (the same examples) and are asked together. reading: "common_tokens" is the
    mean over as many tokens as the shortest option has, "per_character" the sum over the option's characters.
    max_new_tokens, max_new_characters: budgets of what is written; a newline ends it where `one_line`.
    """

    key: str
    prompt: str
    group: str = ""
    options: tuple[str, ...] = ()
    reading: Reading = "full_string"
    max_new_tokens: int | None = None
    max_new_characters: int | None = None
    one_line: bool = False
    sampling: Sampling | None = None
    chat: bool = False

    @property
    def identity(self) -> str:
        """The key with a digest of all that is asked: what was asked in other words is another query."""
        return f"{self.key} {hashlib.sha256(canonical_json(asdict(self)).encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Answer:
    """scores: of the options, in nats. text, ended: what was written and what ended it. tokens: those written before
    the stop, with those that hold a stop beside other text; whole_tokens: without these."""

    scores: tuple[float, ...] = ()
    text: str = ""
    ended: str = ""
    tokens: int = 0
    whole_tokens: int = 0

    @property
    def choice(self) -> int:
        """The best option; of equal ones the first."""
        return int(np.argmax(self.scores))


@dataclass
class Journal:
    """Values by key, each appended to a file as soon as it is known; what the file holds is known from the start.

    path: None keeps nothing. fingerprint: what all values belong to; a file of another fingerprint is refused. Several
    processes write beside each other, each into a file of its own, and read them all.
    """

    path: Path | None = None
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    rank: int = 0
    known: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.*.jsonl")):
            self._read(path)
        own = self._own()
        if not own.exists() or not own.stat().st_size:
            self._append(own, [{"fingerprint": self.fingerprint}])

    def add(self, values: Mapping[str, Any]) -> None:
        self.known |= values
        if self.path is not None:
            self._append(self._own(), [{"key": key, "value": value} for key, value in values.items()])

    def remember(self, key: str, work: Callable[[], Any]) -> Any:
        """The value under the key, from `work` (plain JSON) if it is not known yet."""
        if key not in self.known:
            self.add({key: work()})
        return self.known[key]

    def _own(self) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.name}.{self.rank}.jsonl")

    def _append(self, path: Path, rows: Sequence[Any]) -> None:
        with path.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            stream.flush()

    def _read(self, path: Path) -> None:
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]  # a line that was being written when the process died is no line
        rows = [json.loads(line) for line in whole.splitlines()]
        if path == self._own() and len(whole) < len(raw):
            path.write_bytes(whole)
        if rows and canonical_json(rows[0].get("fingerprint")) != canonical_json(self.fingerprint):
            raise ValueError(f"{path} holds answers of another model, other prompts or another protocol. Delete it")
        self.known |= {row["key"]: row["value"] for row in rows[1:]}


@dataclass(frozen=True)
class Ranks:
    """The processes that share the work: this one's number, how many there are."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def current() -> Ranks:
        """Those of torch.distributed, or this process alone. Every one of them must then take part."""
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return Ranks(distributed.get_rank(), distributed.get_world_size())
        return Ranks()

    def gather(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values of all processes, in each of them."""
        if self.count == 1:
            return values
        parts: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(parts, values)
        return {key: value for part in parts for key, value in part.items()}


def run_suite(
    suite: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    journal: Journal | None = None,
    ranks: Ranks | None = None,
    progress: str | None = None,
) -> Any:
    """A suite's result. One that asks through `ask` (it has a fingerprint) goes on where a killed process stopped, and
    its items are shared out; others run whole, on every rank."""
    shared = {"journal": journal, "ranks": ranks} if hasattr(suite, "fingerprint") else {}
    return suite(model, tokenizer, progress=progress, **shared)


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    queries: Sequence[Query],
    *,
    journal: Journal | None = None,
    ranks: Ranks | None = None,
    progress: str | None = None,
) -> list[Answer]:
    """An answer to every query, in order. What the journal holds is not asked again.

    ranks: the processes that share the queries out; all of them must call, and each gets all answers.
    """
    assert len({query.key for query in queries}) == len(queries), "a key names one query"
    journal, ranks = journal or Journal(), ranks or Ranks()
    mine = queries[ranks.rank :: ranks.count]
    own = [query for query in mine if query.identity not in journal.known]
    with tqdm(
        total=len(mine), initial=len(mine) - len(own), desc=progress, unit="item", leave=False, disable=progress is None
    ) as bar:
        for chunk in _chunks(own, bar):
            found = (_choose if chunk[0].options else _write)(model, tokenizer, chunk)
            journal.add({query.identity: asdict(answer) for query, answer in zip(chunk, found, strict=True)})
    found = ranks.gather({query.key: journal.known[query.identity] for query in mine})
    answers = [found[query.key] for query in queries]
    return [Answer(**{**answer, "scores": tuple(answer["scores"])}) for answer in answers]


def _chunks(queries: Sequence[Query], bar: tqdm) -> Iterator[list[Query]]:
    """Queries that can be asked in one call, of like length together; the slower the answers, the fewer at once."""
    size = _FIRST_CHUNK
    for alike in _alike(queries):
        alike = sorted(alike, key=lambda query: len(query.prompt), reverse=True)
        while alike:
            chunk, alike = alike[:size], alike[size:]
            started = time.monotonic()
            yield chunk
            bar.update(len(chunk))
            seconds = time.monotonic() - started
            size = size * 2 if 2 * seconds < _SECONDS_AT_ONCE else size // 2 if seconds > 2 * _SECONDS_AT_ONCE else size
            size = min(max(size, _FIRST_CHUNK), _LARGEST_CHUNK)


def _alike(queries: Sequence[Query]) -> list[list[Query]]:
    """Queries by everything that one call has in common."""
    groups: dict[tuple, list[Query]] = {}
    for query in queries:
        way = (query.group, bool(query.options), query.reading, query.chat, query.one_line, query.sampling)
        groups.setdefault((*way, query.max_new_tokens, query.max_new_characters is None), []).append(query)
    return list(groups.values())


def _choose(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, queries: Sequence[Query]) -> Iterator[Answer]:
    reading = queries[0].reading
    scores = option_logprobs(
        model,
        tokenizer,
        [query.prompt for query in queries],
        [query.options for query in queries],
        mode="first_token" if reading == "first_token" else "full_string",
        chat=queries[0].chat,
    )
    for query, rows in zip(queries, scores, strict=True):
        if reading == "common_tokens":
            shortest = min(map(len, rows))
            values = [row[:shortest].mean() for row in rows]
        elif reading == "per_character":
            values = [row.sum() / len(option) for row, option in zip(rows, query.options, strict=True)]
        else:
            values = [row.sum() for row in rows]
        yield Answer(scores=tuple(map(float, values)))


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, queries: Sequence[Query]) -> Iterator[Answer]:
    first = queries[0]
    budgets = [query.max_new_characters for query in queries]
    written = generate(
        model,
        tokenizer,
        [query.prompt for query in queries],
        max_new_tokens=first.max_new_tokens,
        max_new_characters=None if first.max_new_characters is None else [b for b in budgets if b is not None],
        stop_ids=end_tokens(tokenizer),
        stop_character="\n" if first.one_line else None,
        sampling=first.sampling,
        chat=first.chat,
    )
    for found in written:
        tokens = whole = len(found.ids)
        if found.ended == "stop character":
            tokens, whole = tokens_before(tokenizer, found.ids, "\n"), len(found.ids) - 1
        yield Answer(text=found.text, ended=found.ended, tokens=tokens, whole_tokens=whole)
