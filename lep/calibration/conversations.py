"""Chats to tune on: what a conversation is, and where conversations are read from.

    source.read() -> Conversation, Conversation, ...

A source is anything with `read()` and `fingerprint()`: files on disk, a data set of the hub, the micro-world. How the
fields of a record become turns is told by `MessageFields` or `ExchangeFields`, which records are good enough by `keep`.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import zstandard

from lep.assets.microworld import benchmark_items, tuning_exchanges
from lep.corpus.hub import HubDataset
from lep.corpus.text_files import (
    COMPRESSED,
    JSON_LINES,
    PARQUET,
    json_lines,
    matching_files,
    open_text,
    parquet_records,
)

Role = Literal["system", "user", "assistant"]
# What data sets call those who speak.
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}
JSON = (".json",)


@dataclass(frozen=True)
class Turn:
    """What one of them says."""

    role: Role
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns: perhaps the system's, then the user's and the assistant's in turn, the user's first.

    ValueError for any other order, and for a turn that says nothing: chat templates refuse the one, and there is
    nothing to learn from the other.
    """

    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        spoken = [turn.role for turn in self.turns]
        if spoken[:1] == ["system"]:
            spoken = spoken[1:]
        if not spoken:
            raise ValueError("the conversation has no turn of a user")
        expected = [("user", "assistant")[i % 2] for i in range(len(spoken))]
        if spoken != expected:
            at = next(i for i, pair in enumerate(zip(spoken, expected, strict=True)) if pair[0] != pair[1])
            where = at + len(self.turns) - len(spoken) + 1
            raise ValueError(f"turn {where} is the {spoken[at]}'s where the {expected[at]}'s belongs")
        empty = next((i for i, turn in enumerate(self.turns, 1) if not turn.content.strip()), None)
        if empty is not None:
            raise ValueError(f"turn {empty} (the {self.turns[empty - 1].role}'s) is empty")

    @staticmethod
    def exchange(request: str, answer: str) -> Conversation:
        """One question and its answer."""
        return Conversation((Turn("user", request), Turn("assistant", answer)))

    @property
    def num_answers(self) -> int:
        return sum(turn.role == "assistant" for turn in self.turns)

    def first(self, answers: int) -> Conversation:
        """The conversation up to that many answers, the last of them included."""
        ends = [i for i, turn in enumerate(self.turns, 1) if turn.role == "assistant"]
        return Conversation(self.turns[: ends[answers - 1]])

    def prompt(self) -> Conversation:
        """What is said before the first answer: what another model may be asked to answer."""
        first = next((i for i, turn in enumerate(self.turns) if turn.role == "assistant"), len(self.turns))
        return Conversation(self.turns[:first])

    def answered(self, answer: str) -> Conversation:
        """The conversation with an answer to its last turn, which is the user's."""
        return Conversation((*self.turns, Turn("assistant", answer)))

    def messages(self) -> list[dict[str, str]]:
        """As chat templates and JSON take it."""
        return [asdict(turn) for turn in self.turns]


class ConversationSource(Protocol):
    """Where conversations come from. Reading twice gives the same in the same order."""

    def read(self, dropped: Counter[str] | None = None) -> Iterator[Conversation]:
        """All conversations, streamed; records left out are counted in `dropped`, by reason."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Plain JSON that changes when the conversations may have changed; cheap, so that it can key what is made."""
        ...


class Fields(Protocol):
    """How a record becomes a conversation."""

    def conversation(self, record: Mapping[str, Any]) -> Conversation:
        """ValueError that names the field where the record has no such conversation."""
        ...


@dataclass(frozen=True)
class MessageFields:
    """Records with a list of messages, each with a role and a content; roles that `ROLES` lacks are named in `roles`.

    ShareGPT has conversations, from and value for messages, role and content.
    """

    messages: str = "messages"
    role: str = "role"
    content: str = "content"
    roles: Mapping[str, Role] | None = None

    def __post_init__(self) -> None:
        for name, role in (self.roles or {}).items():
            if role not in ("system", "user", "assistant"):
                raise ValueError(f"instructions.fields.roles.{name}={role} is no role. Give system, user or assistant.")

    def conversation(self, record: Mapping[str, Any]) -> Conversation:
        messages = _value(record, self.messages, list, "messages")
        return Conversation(tuple(self._turn(message, number) for number, message in enumerate(messages, 1)))

    def _turn(self, message: Any, number: int) -> Turn:
        named = _value(message, self.role, str, "role", where=f" of message {number}")
        known: dict[str, Role] = {**ROLES, **(self.roles or {})}
        role = known.get(named)
        if role is None:
            raise ValueError(
                f"the field {self.role!r} of message {number} is {named!r}, which is no known role; say whose it is, "
                f"as in instructions.fields.roles={{{named}: user}}"
            )
        return Turn(role, _value(message, self.content, str, "content", where=f" of message {number}"))


@dataclass(frozen=True)
class ExchangeFields:
    """Records with an instruction, perhaps an input to it and a system prompt, and an output, as in Alpaca."""

    instruction: str = "instruction"
    input: str | None = "input"
    output: str = "output"
    system: str | None = None

    def conversation(self, record: Mapping[str, Any]) -> Conversation:
        request = _value(record, self.instruction, str, "instruction")
        given = _optional(record, self.input, "input")
        opening = _optional(record, self.system, "system")
        turns = [
            *([Turn("system", opening)] if opening else []),
            Turn("user", f"{request}\n\n{given}" if given else request),
            Turn("assistant", _value(record, self.output, str, "output")),
        ]
        return Conversation(tuple(turns))


def _value(record: Any, name: str, kind: type, key: str, *, where: str = "") -> Any:
    value = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(value, kind):
        there = sorted(record) if isinstance(record, Mapping) else type(record).__name__
        wanted = {str: "text", list: "a list"}[kind]
        what = "is missing" if value is None else f"is a {type(value).__name__}, not {wanted}"
        raise ValueError(f"the field {name!r}{where} {what}; there is {there}. Set instructions.fields.{key}")
    return value


def _optional(record: Any, name: str | None, key: str) -> str:
    if name is None or not isinstance(record, Mapping) or record.get(name) is None:
        return ""
    return _value(record, name, str, key).strip()


Rule = Mapping[Literal["minimum", "equals"], Any]


@dataclass(frozen=True)
class _Choice:
    """What both files and hub do to records: keep the good, read their turns, count what is left out."""

    fields: Fields
    keep: Mapping[str, Rule]
    broken: Literal["error", "drop"]
    limit: int | None

    def __post_init__(self) -> None:
        for name, rule in self.keep.items():
            if not isinstance(rule, Mapping) or set(rule) not in ({"minimum"}, {"equals"}):
                raise ValueError(
                    f"instructions.source.keep.{name}={rule} is no rule. Give {{minimum: NUMBER}} or {{equals: VALUE}}."
                )
        if self.broken not in ("error", "drop"):
            raise ValueError(f"instructions.source.broken={self.broken} is unknown. Give error or drop.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"instructions.source.limit={self.limit} must be at least 1, or null for all.")

    def read(self, records: Iterator[tuple[str, Any]], dropped: Counter[str]) -> Iterator[Conversation]:
        """Conversations of (place, record) pairs."""
        return islice(self._good(records, dropped), self.limit)

    def _good(self, records: Iterator[tuple[str, Any]], dropped: Counter[str]) -> Iterator[Conversation]:
        for place, record in records:
            failed = next((name for name, rule in self.keep.items() if not _fulfils(record, name, rule, place)), None)
            if failed is not None:
                dropped[f"keep.{failed}"] += 1
                continue
            try:
                conversation = self.fields.conversation(record)
            except ValueError as error:
                if self.broken == "drop":
                    dropped["broken"] += 1
                    continue
                raise ValueError(
                    f"{place}: {error}. Correct the record, or leave such ones out: instructions.source.broken=drop"
                ) from None
            yield conversation


def _fulfils(record: Any, name: str, rule: Rule, place: str) -> bool:
    if not isinstance(record, Mapping) or name not in record:
        there = sorted(record) if isinstance(record, Mapping) else type(record).__name__
        raise ValueError(
            f"{place}: instructions.source.keep names the field {name!r}, which is missing; there is {there}. "
            "Name another, or take the rule out."
        )
    value = record[name]
    if "equals" in rule:
        return value == rule["equals"]
    return isinstance(value, int | float) and value >= rule["minimum"]


@dataclass(frozen=True)
class ChatFiles:
    """The conversations of all files that match `paths` (globs, `**`, `~`): JSON Lines, JSON lists, Parquet.

    The first two also as .gz and .zst. keep: field -> {minimum: NUMBER} or {equals: VALUE}; a record stays if it
    fulfils all, and one without a value does not. broken: what to do with a record that is no conversation. limit:
    conversations at most.
    """

    paths: Sequence[str]
    fields: Fields = field(default_factory=MessageFields)
    keep: Mapping[str, Rule] | None = None
    broken: Literal["error", "drop"] = "error"
    limit: int | None = None

    def __post_init__(self) -> None:
        paths = (self.paths,) if isinstance(self.paths, str | Path) else self.paths
        object.__setattr__(self, "paths", tuple(str(path) for path in paths))
        self._choice()  # settings are refused now, not when they are used

    def files(self) -> list[Path]:
        """The files, each once, by name. ValueError for a pattern that matches none and a format nobody reads."""
        if not self.paths:
            raise ValueError("instructions.paths is empty; give files or globs, as in instructions.paths=[chats.jsonl]")
        files = matching_files(self.paths, key="instructions.paths")
        for path in files:
            _format(path)
        return files

    def read(self, dropped: Counter[str] | None = None) -> Iterator[Conversation]:
        records = (placed for path in self.files() for placed in _placed_records(path))
        return self._choice().read(records, Counter() if dropped is None else dropped)

    def fingerprint(self) -> dict[str, Any]:
        stats = [(str(path), path.stat()) for path in self.files()]
        files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        return {"source": "chat files", "paths": files, **_settings(self)}

    def _choice(self) -> _Choice:
        return _Choice(self.fields, self.keep or {}, self.broken, self.limit)


@dataclass(frozen=True)
class HubChats:
    """The conversations of a data set of the hub (or of a directory in its layout), streamed. For the rest see
    `ChatFiles`."""

    dataset: HubDataset
    fields: Fields = field(default_factory=MessageFields)
    keep: Mapping[str, Rule] | None = None
    broken: Literal["error", "drop"] = "error"
    limit: int | None = None

    def __post_init__(self) -> None:
        self._choice()

    def read(self, dropped: Counter[str] | None = None) -> Iterator[Conversation]:
        records = ((f"{self.dataset.path}, record {i}", record) for i, record in enumerate(self.dataset.records(), 1))
        return self._choice().read(records, Counter() if dropped is None else dropped)

    def fingerprint(self) -> dict[str, Any]:
        return {"source": "hub chats", "dataset": self.dataset.fingerprint(), **_settings(self)}

    def _choice(self) -> _Choice:
        return _Choice(self.fields, self.keep or {}, self.broken, self.limit)


def _settings(source: ChatFiles | HubChats) -> dict[str, Any]:
    fields = {"kind": type(source.fields).__name__, **asdict(source.fields)}  # type: ignore[call-overload]
    keep = {name: dict(rule) for name, rule in (source.keep or {}).items()}
    return {"fields": fields, "keep": keep, "broken": source.broken, "limit": source.limit}


def _format(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] != [] and suffixes[-1] in COMPRESSED
    suffix = (suffixes[:-1] if packed else suffixes)[-1:]
    known = (*JSON_LINES, *JSON) if packed else (*JSON_LINES, *JSON, *PARQUET)
    if not suffix or suffix[0] not in known:
        raise ValueError(
            f"instructions.paths: {path} has no known ending; known are {', '.join((*JSON_LINES, *JSON))}, each also "
            f"with {' or '.join(COMPRESSED)}, and {PARQUET[0]}."
        )
    return suffix[0]


def _placed_records(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, record) of one file."""
    form = _format(path)
    try:
        if form in JSON_LINES:
            yield from ((f"{path}, line {number}", record) for number, record in json_lines(path))
            return
        records = parquet_records(path) if form in PARQUET else _json_list(path)
        yield from ((f"{path}, record {number}", record) for number, record in enumerate(records, 1))
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Convert or remove it.") from error


def _json_list(path: Path) -> list[Any]:
    with open_text(path) as stream:
        try:
            records = json.load(stream)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}). One record a line is JSON Lines: name it .jsonl") from None
    if not isinstance(records, list):
        raise ValueError(f"{path} holds a {type(records).__name__}, not a list of records. Give a list, or JSON Lines.")
    return records


@dataclass(frozen=True)
class MicroWorldChats:
    """Exchanges of the micro-world, as the tiny pair was tuned on: questions on passages, translations, facts.

    No copying, which is `MicroWorldCopies`' part. Requests of the micro benchmark with `benchmark_seed` are left out,
    but for facts of people whose facts are told in training anyway.
    """

    count: int
    seed: int = 0
    benchmark_seed: int = 0
    benchmark_items: int = 200

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"instructions.source.count={self.count} asks nothing. Give 1 or more.")

    def read(self, dropped: Counter[str] | None = None) -> Iterator[Conversation]:
        items = benchmark_items(seed=self.benchmark_seed, items_per_task=self.benchmark_items)
        asked = {item.prompt for item in items if not item.task.startswith("facts")}
        rng = random.Random(f"instructions-{self.seed}")
        # More than enough is drawn, as a few are the benchmark's.
        fresh = (
            Conversation.exchange(request, answer)
            for request, answer in tuning_exchanges(rng, 2 * self.count + 100, copying=False)
            if request not in asked
        )
        return islice(fresh, self.count)

    def fingerprint(self) -> dict[str, Any]:
        return {"source": "microworld chats", **asdict(self)}
