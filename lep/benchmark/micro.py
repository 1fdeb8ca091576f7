"""The micro benchmark: the micro-world's held-out items, zero-shot, in both languages, for any vocabulary.

In: a model, its tokenizer, items. Out: a score with its standard error for every task and language, what else is to be
said of a task (how answers ended, how copies were segmented), and a record of every prompt and answer.
An instruct model is asked in its chat; a base model, whose tokenizer has no template, in the plain lines it was trained
on, where an answer is the line after its question.
Content and stopping are judged apart: an answer is the text before the first newline or end token, right or wrong
however it ends; what ended it is counted in the details.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lep.assets.microworld import Item, benchmark_items
from lep.benchmark.metrics import exact_match, length_ratio, mean_and_stderr
from lep.benchmark.records import STOPS, Record, Stop, SuiteResult, group_by_key
from lep.benchmark.scoring import (
    Generation,
    end_tokens,
    generate,
    option_scores,
    render_chat,
    render_plain,
    sequence_logprobs,
    tokens_before,
)
from lep.chat import end_of_turn
from lep.results import Score


@dataclass(frozen=True)
class MicroBenchmark:
    """The suite as a config names it: `items_per_task` items of each task and language, drawn by `seed`."""

    items_per_task: int = 200
    seed: int = 0

    def __call__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, progress: str | None = None
    ) -> SuiteResult:
        items = benchmark_items(seed=self.seed, items_per_task=self.items_per_task)
        return run_micro(model, tokenizer, items, progress=progress)


def run_micro(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item], *, progress: str | None = None
) -> SuiteResult:
    """Ask every item and judge the answers."""
    written = [i for i, item in enumerate(items) if not item.options]
    ranked = [i for i, item in enumerate(items) if item.options and item.prompt]
    paired = [i for i, item in enumerate(items) if item.options and not item.prompt]
    records: dict[int, Record] = {}
    for places, ask in ((written, _written), (ranked, _ranked), (paired, _paired)):
        if places:
            records.update(zip(places, ask(model, tokenizer, [items[i] for i in places], progress), strict=True))
    return summarise([records[i] for i in range(len(items))])


def summarise(records: Sequence[Record]) -> SuiteResult:
    """Scores and details of the records, by task and language in order of appearance."""
    groups = group_by_key(records)
    scores = {key: Score(*mean_and_stderr([r.value for r in group]), len(group)) for key, group in groups.items()}
    details = {key: found for key, group in groups.items() if (found := _details(group))}
    return SuiteResult(scores, details, list(records))


def _written(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item], progress: str | None
) -> Iterator[Record]:
    assert not any("\n" in item.answer for item in items), "an answer is one line"
    prompts, chat = _opened(tokenizer, items)
    answers = generate(
        model,
        tokenizer,
        prompts,
        # In characters, as a budget in tokens would favour long tokens. Twice the right answer shows who runs on.
        max_new_characters=[2 * len(item.answer) + 16 for item in items],
        stop_ids=end_tokens(tokenizer),
        stop_character="\n",
        chat=chat,
        progress=progress and f"{progress}: answers",
    )
    turn = end_of_turn(tokenizer)
    expected = tokenizer([item.answer for item in items], add_special_tokens=False)["input_ids"]
    for item, prompt, answer, ids in zip(items, prompts, answers, expected, strict=True):
        right, stop = exact_match(answer.text, item.answer), _stop(answer, turn)
        produced = tokens_before(tokenizer, answer.ids, "\n") if item.task == "copying" else 0
        ratio = length_ratio(produced, len(ids)) if item.task == "copying" else None
        yield Record(item.task, item.language, prompt, answer.text, item.answer, right, stop, ratio)


def _opened(tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]) -> tuple[list[str], bool]:
    """The prompts up to where the answer begins, and whether they are chats."""
    if tokenizer.chat_template:
        return [render_chat(tokenizer, item.prompt) for item in items], True
    return [render_plain([("user", item.prompt), ("assistant", "")]) for item in items], False


def _ranked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item], progress: str | None
) -> Iterator[Record]:
    prompts, chat = _opened(tokenizer, items)
    options = [item.options for item in items]
    # The answer's text alone is scored: with the end token, a model that stops badly would be ranked by its stopping.
    scores = option_scores(
        model, tokenizer, prompts, options, chat=chat, progress=progress and f"{progress}: ranked options"
    )
    for item, prompt, row in zip(items, prompts, scores, strict=True):
        yield _choice(item, prompt, row)


def _paired(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item], progress: str | None
) -> Iterator[Record]:
    texts = [option for item in items for option in item.options]
    totals = [
        row.total for row in sequence_logprobs(model, tokenizer, texts, progress=progress and f"{progress}: pairs")
    ]
    ends = np.cumsum([len(item.options) for item in items])
    for item, row in zip(items, np.split(np.array(totals), ends[:-1]), strict=True):
        yield _choice(item, "", row)


def _choice(item: Item, prompt: str, scores: np.ndarray) -> Record:
    """The first option is the right one. A tie is wrong, or a model that says the same of everything would win."""
    right = bool(scores[0] > scores[1:].max())
    chosen = item.options[0 if right else 1 + int(scores[1:].argmax())]
    found = tuple(float(score) for score in scores)
    return Record(item.task, item.language, prompt, chosen, item.options[0], right, option_scores=found)


def _stop(answer: Generation, turn: int | None) -> Stop:
    if answer.stopped is not None:
        return "end of turn" if answer.stopped == turn else "other end token"
    return "newline" if answer.ended == "stop character" else "never"


def _details(records: Sequence[Record]) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if stops := [r.stop for r in records if r.stop is not None]:
        details["stopped"] = {stop: stops.count(stop) / len(stops) for stop in STOPS}
    if ratios := [r.length_ratio for r in records if r.length_ratio is not None]:
        details["length_ratio"] = mean_and_stderr(ratios)[0]
    return details
