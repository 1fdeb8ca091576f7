"""Darumeru: seventeen tasks in five groups on which the paper judges adapted models (arXiv 2412.21140, section 4.1).

In: a model, its tokenizer. Out: a score with its standard error for every task, the means of the groups, and Micro-Avg,
the mean over all seventeen. A mean of which a task is missing is not given; the details say what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lep.benchmark.asking import Answer, Journal, Query, Ranks, Reading, ask
from lep.benchmark.darumeru.protocol import Protocol, protocol_named
from lep.benchmark.darumeru.sources import Source, digest, make_source
from lep.benchmark.darumeru.tasks import GROUPS, TASKS, Item, Judgement, PairedChoice, Prompts, Task
from lep.benchmark.metrics import average
from lep.benchmark.records import Record, SuiteResult
from lep.benchmark.scoring import SameFirstToken, Turn, render_plain, render_turns, takes_system
from lep.results import Score

MICRO_AVERAGE = "Micro-Avg/ru"
# Examples before a query where nothing else is said: a base model is shown how, an instruct model is asked.
PLAIN_SHOTS, CHAT_SHOTS = 5, 0
MOST_CUTS = 8  # of a prompt; where pieces meet, tokens change, so that one cut may be a few tokens short


@dataclass(frozen=True)
class Darumeru:
    """The suite as a config names it.

    source: `hub`, `stand_in`, or a directory with data/<config>/{test,prompt}.jsonl. files: {config: {split: [files]}}
        that replace single configs, e.g. {rucola: {test: [in_domain_dev.csv], prompt: [in_domain_train.csv]}}.
    protocol: `paper2024` or `corrected`. reading: how options are scored, `full_string` or `first_token`; null is the
        protocol's way.
    prompts: a YAML file with the wording that the data does not carry; null is the package's.
    tasks: names; null is all. limit: items of a task; null is all.
    shots: examples before a query; null is 5 in plain text and 0 in a chat. chat: whether to use the chat format; null
        is as the tokenizer has one. system: what the system says in a chat; null is the protocol's way.
    """

    source: str = "hub"
    revision: str | None = None
    files: Mapping[str, Mapping[str, Sequence[str]]] | None = None
    protocol: str = "corrected"
    reading: Reading | None = None
    prompts: str | None = None
    tasks: Sequence[str] | None = None
    limit: int | None = None
    shots: int | None = None
    chat: bool | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("shots", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"benchmark.darumeru.{name}={value} is out of range. Give {least} or more, or null")

    def __call__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        progress: str | None = None,
        journal: Journal | None = None,
        ranks: Ranks | None = None,
    ) -> SuiteResult:
        protocol, prompts, source = self._protocol(), self._prompts(), self._source()
        dialogue = self._dialogue(tokenizer, protocol)
        judged: dict[str, list[tuple[Item, str, Judgement]]] = {}
        details: dict[str, Any] = {}
        for task in self._chosen():
            found = task_items(task, source, prompts, shots=dialogue.shots)
            if found is None:
                continue
            items, examples = found
            items = task.limited(items[: task.max_items], self.limit)
            asked = dialogue.queries(task, items, examples, model)
            started = time.monotonic()
            label = progress and f"{progress}: {task.name}"
            try:
                answers = ask(model, tokenizer, asked.queries, journal=journal, ranks=ranks, progress=label)
            except SameFirstToken as error:
                details[task.name] = {"failed": str(error)}
                continue
            seconds = time.monotonic() - started
            per_item = _by_item(items, asked.queries, answers)
            judgements = [task.judge(item, of, tokenizer, protocol) for item, of in zip(items, per_item, strict=True)]
            judged[task.name] = list(zip(items, asked.prompts, judgements, strict=True))
            details[task.name] = asked.facts | {"seconds": seconds, "items_per_second": len(items) / seconds}
        if not judged:
            raise ValueError(
                f"benchmark.darumeru.source={self.source} holds none of the tasks. It should hold "
                f"data/<config>/test.jsonl and prompt.jsonl for configs such as {TASKS[0].config}"
            )
        return self._result(judged, details, protocol, dialogue)

    def fingerprint(self) -> dict[str, Any]:
        """What scores depend on besides the model and which of the items are asked."""
        source, configs = self._source(), {task.config for task in self._chosen()}
        return {
            "protocol": self._protocol().described(),
            "prompts": digest([dict(self._prompts())]),
            "data": {
                f"{config}/{split}": digest(source.rows(config, split) or [])
                for config in sorted(configs)
                for split in ("test", "prompt")
            },
            "shots": self.shots,
            "chat": self.chat,
            "system": self.system,
        }

    def _protocol(self) -> Protocol:
        protocol = protocol_named(self.protocol)
        if self.reading not in (None, "full_string", "first_token"):
            raise ValueError(f"benchmark.darumeru.reading={self.reading} is unknown. Use full_string or first_token")
        return replace(protocol, choice=self.reading) if self.reading else protocol

    def _prompts(self) -> Prompts:
        packaged = files("lep.assets").joinpath("darumeru/prompts.yaml").read_text(encoding="utf-8")
        ours = yaml.safe_load(packaged)
        if self.prompts is None:
            return ours
        path = Path(self.prompts).expanduser()
        if not path.is_file():
            raise ValueError(f"benchmark.darumeru.prompts={path} is no file. Give a YAML file of wordings, or null")
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(given, dict):
            raise ValueError(f"benchmark.darumeru.prompts={path} must map names to wordings, such as {', '.join(ours)}")
        unknown = sorted(set(given) - set(ours))
        if unknown:
            raise ValueError(f"{self.prompts}: {unknown[0]!r} is no prompt of Darumeru. Those are {', '.join(ours)}")
        return {**ours, **given}

    def _source(self) -> Source:
        return make_source(self.source, self.revision, self.files or {})

    def _chosen(self) -> list[Task]:
        names = [task.name for task in TASKS]
        unknown = [name for name in self.tasks or () if name not in names]
        if unknown:
            raise ValueError(f"benchmark.darumeru.tasks holds {unknown[0]!r}. The tasks are {', '.join(names)}")
        return [task for task in TASKS if self.tasks is None or task.name in self.tasks]

    def _dialogue(self, tokenizer: PreTrainedTokenizerFast, protocol: Protocol) -> Dialogue:
        chat = bool(tokenizer.chat_template) if self.chat is None else self.chat
        shots = self.shots if self.shots is not None else CHAT_SHOTS if chat else PLAIN_SHOTS
        system = self.system
        if chat and system is None and protocol.system is not None and takes_system(tokenizer):
            system = protocol.system
        return Dialogue(tokenizer, protocol, chat, shots, system)

    def _result(
        self,
        judged: Mapping[str, Sequence[tuple[Item, str, Judgement]]],
        details: dict[str, Any],
        protocol: Protocol,
        dialogue: Dialogue,
    ) -> SuiteResult:
        tasks = {task.name: task for task in TASKS if task.name in judged}
        found = {name: task.score([judgement for _, _, judgement in judged[name]]) for name, task in tasks.items()}
        for name, of in found.items():
            details[name]["metrics"] = of.metrics
        missing = [task.name for task in TASKS if task.name not in judged]
        about = {
            "protocol": protocol.described(),
            "shots": dialogue.shots,
            "chat": dialogue.chat,
            "system": dialogue.system,
            "prompts": digest([dict(self._prompts())]),
            "source": self.source,
            "limit": self.limit,
            "complete": not missing and self.limit is None,
            "missing": missing,
            "tasks": details,
        }
        scores = {f"{name}/{task.language}": found[name].score for name, task in tasks.items()}
        estimates = {f"{name}/{task.language}": found[name].estimate for name, task in tasks.items()}
        records = [
            _record(tasks[name], item, prompt, judgement)
            for name, of in judged.items()
            for item, prompt, judgement in of
        ]
        for key, of in complete_means(found).items():
            scores[key] = mean_of([found[name].score for name in of])
            estimates[key] = average([found[name].estimate for name in of])
        return SuiteResult(scores, {"darumeru": about}, records, estimates)


def complete_means(found: Collection[str]) -> dict[str, list[str]]:
    """What the means of the groups, and Micro-Avg, are means of: those of which no task is missing."""
    parts = {f"{group}/{_language(group)}": [task.name for task in TASKS if task.group == group] for group in GROUPS}
    parts[MICRO_AVERAGE] = [task.name for task in TASKS]
    return {key: of for key, of in parts.items() if set(of) <= set(found)}


def mean_of(scores: Sequence[Score]) -> Score:
    """Unweighted mean of independent scores; n is their number."""
    stderr = float(np.sqrt(np.sum([score.stderr**2 for score in scores])) / len(scores))
    return Score(float(np.mean([score.value for score in scores])), stderr, len(scores))


def task_items(
    task: Task, source: Source, prompts: Prompts, *, shots: int = PLAIN_SHOTS
) -> tuple[list[Item], dict[str, list[tuple[Turn, ...]]]] | None:
    """Items and examples of a task; None if the source lacks them. A row that serves as an example is not asked."""
    rows, example_rows = source.rows(task.config, "test"), source.rows(task.config, "prompt")
    if not rows:
        return None
    try:
        examples, items = task.examples(example_rows or [], prompts), task.items(rows, prompts)
    except KeyError as error:
        raise ValueError(
            f"benchmark.darumeru: a record of {task.config}, or the wording of {task.name} in prompts, lacks {error}. "
            "Compare it with the published schema (inputs, outputs, meta) and with the packaged wording"
        ) from error
    shown = {turns for of in examples.values() for turns in of[: max(shots, PLAIN_SHOTS)]}
    return [item for item in items if task.answered(item) not in shown], examples


def _by_item(items: Sequence[Item], queries: Sequence[Query], answers: Sequence[Answer]) -> list[list[Answer]]:
    found: dict[str, list[Answer]] = {item.key: [] for item in items}
    for query, answer in zip(queries, answers, strict=True):
        found[query.key.removesuffix("/swapped")].append(answer)
    return [found[item.key] for item in items]


def _record(task: Task, item: Item, prompt: str, found: Judgement) -> Record:
    return Record(task.name, task.language, prompt, found.answer, found.expected, found.value, item=item.key)


def _language(group: str) -> str:
    return "en" if group.endswith("EN") else "ru"


@dataclass(frozen=True)
class Asked:
    """Queries of a task; prompts: the first of each item; facts: examples that found room, prompts that were cut."""

    queries: list[Query]
    prompts: list[str]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Dialogue:
    """How items become prompts for one tokenizer: the format, the examples, and what is left out to find room."""

    tokenizer: PreTrainedTokenizerFast
    protocol: Protocol
    chat: bool
    shots: int
    system: str | None

    def queries(
        self,
        task: Task,
        items: Sequence[Item],
        examples: Mapping[str, Sequence[tuple[Turn, ...]]],
        model: PreTrainedModel,
    ) -> Asked:
        """What to ask of the items, each within the model's context."""
        shots = self.shots if task.max_shots is None else min(self.shots, task.max_shots)
        if shots and min((len(examples.get(item.examples, ())) for item in items), default=shots) < shots:
            raise ValueError(
                f"benchmark.darumeru.shots={shots} is more than the examples there are for {task.name}. Lower it, or "
                "give the prompt split"
            )
        limit = getattr(model.config, "max_position_embeddings", None) or 2**40
        room = limit - self._reserved(task, items, limit)
        asked = [(item, item.key, item.turns) for item in items]
        if isinstance(task, PairedChoice):
            asked += [(item, f"{item.key}/swapped", item.meta["swapped"]) for item in items]
        kept = [shots] * len(asked)
        texts = [""] * len(asked)
        open_places = list(range(len(asked)))
        while open_places:
            for place in open_places:
                item, _, turns = asked[place]
                texts[place] = self._text(task, item, turns, examples.get(item.examples, ())[: kept[place]])
            too_long = self._too_long([texts[place] for place in open_places], room)
            open_places = [place for place, long in zip(open_places, too_long, strict=True) if long and kept[place]]
            for place in open_places:
                kept[place] -= 1
        too_long = [place for place, length in enumerate(self._lengths(texts)) if length >= room]
        if self.protocol.cut == "longest_turn":
            for place in too_long:
                item, _, turns = asked[place]
                texts[place] = self._without_middle(task, item, turns, room)
        texts = self._cut(texts, room)
        queries = [self._query(task, item, key, text) for (item, key, _), text in zip(asked, texts, strict=True)]
        facts = {"shots": float(np.mean(kept)) if kept else 0.0, "prompts_cut": len(too_long)}
        return Asked(queries, texts[: len(items)], facts)

    def _text(self, task: Task, item: Item, turns: Sequence[Turn], examples: Sequence[Sequence[Turn]]) -> str:
        shown = reversed(examples) if task.reversed_examples else examples
        whole = [turn for example in shown for turn in example] + list(turns)
        if item.headline and (examples or self.protocol.headline_without_examples):
            whole[0] = (whole[0][0], item.headline + whole[0][1])
        if item.opening and self._spells_options:
            whole[-1] = ("assistant", item.opening)
        if not self.chat:
            return render_plain(whole)
        return render_turns(self.tokenizer, [("system", self.system), *whole] if self.system is not None else whole)

    def _query(self, task: Task, item: Item, key: str, text: str) -> Query:
        query = Query(key, text, group=f"{task.name}/{item.examples}", chat=self.chat)
        if item.options:
            reading = self.protocol.sentence_reading if item.opening else self.protocol.choice
            if item.opening and not self._spells_options:
                options = tuple(f"{item.opening} {option}" for option in item.options)
            else:
                space = "" if text[-1:].isspace() else " "
                options = tuple(space + option for option in item.options)
            return replace(query, options=options, reading=reading)
        characters = self.protocol.characters_per_new_token
        budget = (
            {"max_new_characters": characters * task.new_tokens} if characters else {"max_new_tokens": task.new_tokens}
        )
        return replace(query, one_line=not self.chat, sampling=self.protocol.sampling, **budget)

    @property
    def _spells_options(self) -> bool:
        """Whether an option's worth is that of its own letters alone, so that the opening belongs to the prompt."""
        return self.protocol.sentence_reading == "per_character"

    def _reserved(self, task: Task, items: Sequence[Item], limit: int) -> int:
        """Positions that a prompt must leave: for the longest option, or for what may be written."""
        options = sorted({f"{item.opening} {option}" for item in items for option in item.options}, key=len)[-8:]
        if options:
            return max(map(len, self.tokenizer(options, add_special_tokens=False, verbose=False)["input_ids"])) + 2
        return min(task.new_tokens, limit // 2)

    def _too_long(self, texts: Sequence[str], room: int) -> list[bool]:
        protocol = self.protocol
        most = min(room, protocol.prompt_tokens or room)
        characters = protocol.prompt_characters or 2**40
        return [
            length >= most or len(text) > characters for length, text in zip(self._lengths(texts), texts, strict=True)
        ]

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        """In tokens."""
        return [len(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    def _without_middle(self, task: Task, item: Item, turns: Sequence[Turn], room: int) -> str:
        """The item without examples, its longest turn without so much of its middle that it fits, if it can."""
        kept = list(turns)
        for _ in range(MOST_CUTS):
            text = self._text(task, item, kept, ())
            surplus = self._lengths([text])[0] - room + 1
            longest = max(range(len(kept) - 1), key=lambda place: len(kept[place][1]))
            if surplus <= 0 or not kept[longest][1]:
                break
            kept[longest] = (kept[longest][0], self._shortened(kept[longest][1], surplus))
        return self._text(task, item, kept, ())

    def _shortened(self, text: str, surplus: int) -> str:
        """The text without its middle, of so many tokens."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoded["offset_mapping"]
        kept = max(0, len(offsets) - surplus)
        first, last = kept // 2, kept - kept // 2
        return text[: offsets[first][0]] + (text[offsets[-last][0] :] if last else "")

    def _cut(self, texts: Sequence[str], room: int) -> list[str]:
        """The texts, those that do not fit the model without their beginnings (but for BOS)."""
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        bos = str(self.tokenizer.bos_token or "") if self.chat else ""
        shortened = []
        for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            opening = bos if text.startswith(bos) else ""
            surplus = len(ids) - room + 1
            shortened.append(opening + text[offsets[surplus + bool(opening)][0] :] if surplus > 0 else text)
        return shortened
