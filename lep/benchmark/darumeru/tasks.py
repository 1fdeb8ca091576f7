"""Darumeru's seventeen tasks: what each asks of a record, what an answer to it is worth, how its score is formed.

In: rows in the published schema (`messages` with {placeholders}, `inputs`, `outputs`, `meta`), or those of RuCoLA, MMLU
and the summaries with the wording from a file of prompts. Out: items to ask, judgements, a score with its metrics.
Source: arXiv 2412.21140 (section 4.1 and its published code).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerFast

from lep.benchmark.asking import Answer
from lep.benchmark.darumeru.grading import USE_POINTS, best_f1, best_match, copied, rouge_of_lemmas, use_points
from lep.benchmark.darumeru.protocol import Protocol
from lep.benchmark.darumeru.sources import Row
from lep.benchmark.metrics import (
    Estimate,
    accuracy,
    bootstrap,
    f1_macro,
    length_ratio,
    matthews,
    mean_and_stderr,
    mean_estimate,
    r_precision,
    stratified_mean,
)
from lep.benchmark.scoring import Turn
from lep.results import Score
from lep.vocabulary import read_vocabulary

Prompts = Mapping[str, Any]
ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "bot": "assistant",
    "assistant": "assistant",
}
LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Item:
    """Something to ask. turns: the last is the open one of the assistant. gold: what is right, as the task has it.

    options: to choose from; empty where the answer is written. unit: what scores are averaged over where it is not the
    item (the variant of an exam, the subject). examples: which examples go before it. headline: what the very first
    turn of the dialogue begins with. opening: what stands between the assistant's turn and an option.
    """

    key: str
    turns: tuple[Turn, ...]
    gold: Any
    options: tuple[str, ...] = ()
    unit: str = ""
    examples: str = ""
    headline: str = ""
    opening: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """What the answers to an item were worth.

    value: in 0..1, for comparing models item by item. labels: the right one and the one found.
    """

    value: float
    answer: str
    expected: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    unit: str = ""
    labels: tuple[str, str] | None = None


@dataclass(frozen=True)
class Scored:
    """A task's score, the metrics beside it, and the score's bootstrap replicates, by which models are compared."""

    score: Score
    metrics: dict[str, float]
    estimate: Estimate


@dataclass(frozen=True)
class Task:
    """What the tasks have in common.

    new_tokens: what the paper lets a model write. reversed_examples: whether the first example stands next to the
    query; else the last does. first_example: where examples begin in their split.
    """

    name: str
    group: str
    language: str
    config: str
    new_tokens: int = 1
    reversed_examples: bool = True
    max_shots: int | None = None
    max_items: int | None = None
    first_example: int = 0

    def items(self, rows: Sequence[Row], prompts: Prompts) -> list[Item]:
        """What to ask of the rows of the test split."""
        return [self._item(f"{self.name}/{number}", row, prompts) for number, row in enumerate(rows)]

    def examples(self, rows: Sequence[Row], prompts: Prompts) -> dict[str, list[tuple[Turn, ...]]]:
        """Answered dialogues of the prompt split, by what items they go before, in the order of the rows."""
        found: dict[str, list[tuple[Turn, ...]]] = defaultdict(list)
        for row in rows[self.first_example :]:
            item = self._item("", row, prompts)
            found[item.examples].append(self.answered(item))
        return found

    def limited(self, items: Sequence[Item], limit: int | None) -> list[Item]:
        """The first items, as many as `limit` (None: all of them)."""
        return list(items[:limit])

    def judge(
        self, item: Item, answers: Sequence[Answer], tokenizer: PreTrainedTokenizerFast, protocol: Protocol
    ) -> Judgement:
        raise NotImplementedError

    def score(self, judgements: Sequence[Judgement]) -> Scored:
        """The mean value of the items; of the metrics some may not count in it."""
        values = [judgement.value for judgement in judgements]
        metrics = {name: float(np.mean([j.metrics[name] for j in judgements])) for name in judgements[0].metrics}
        return Scored(Score(*mean_and_stderr(values), len(values)), metrics, mean_estimate(values, name=self.name))

    def _item(self, key: str, row: Row, prompts: Prompts) -> Item:
        return Item(key, turns_of(row), row["outputs"], meta=row.get("meta", {}))

    def answered(self, item: Item) -> tuple[Turn, ...]:
        """The dialogue of an example. In the published prompt split the last message already holds the answer."""
        return item.turns


def turns_of(row: Row, inputs: Mapping[str, str] | None = None) -> tuple[Turn, ...]:
    """The messages of a published record, their placeholders filled."""
    values = row["inputs"] if inputs is None else inputs
    return tuple((ROLES[message["role"]], message["content"].format(**values)) for message in row["messages"])


def worded(prompts: Prompts, name: str, **values: str) -> tuple[Turn, ...]:
    """One turn of the user and the open one of the assistant, in the words of the prompts file."""
    wording = prompts[name]
    return (("user", wording["user"].format(**values)), ("assistant", wording["assistant"]))


def closed(turns: Sequence[Turn], answer: str) -> tuple[Turn, ...]:
    """The dialogue with its open turn answered."""
    role, opening = turns[-1]
    return (*turns[:-1], (role, f"{opening} {answer}"))


# ---------------------------------------------------------------------------------------------------------------------
# To choose.

LABEL_METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "accuracy": accuracy,
    "f1_macro": f1_macro,
    "mcc": matthews,
}


@dataclass(frozen=True)
class Choice(Task):
    """To name one of the options; the score is the mean of the label metrics."""

    options: tuple[str, ...] = LETTERS
    metrics: tuple[str, ...] = ("accuracy", "f1_macro")

    def judge(
        self, item: Item, answers: Sequence[Answer], tokenizer: PreTrainedTokenizerFast, protocol: Protocol
    ) -> Judgement:
        chosen = item.options[answers[0].choice]
        right = item.gold.startswith(chosen)
        labels = (item.gold, item.gold if right else chosen)
        return Judgement(float(right), chosen, item.gold, {"accuracy": float(right)}, item.unit, labels)

    def score(self, judgements: Sequence[Judgement]) -> Scored:
        if self.metrics == ("accuracy",):
            return super().score(judgements)
        expected, found = zip(*(j.labels for j in judgements if j.labels), strict=True)

        def mean_metric(places: np.ndarray) -> float:
            gold, chosen = [expected[i] for i in places], [found[i] for i in places]
            return float(np.mean([LABEL_METRICS[name](gold, chosen) for name in self.metrics]))

        estimate = bootstrap(mean_metric, [""] * len(expected), name=self.name)
        metrics = {name: LABEL_METRICS[name](expected, found) for name in self.metrics}
        return Scored(Score(estimate.value, estimate.stderr, estimate.n), metrics, estimate)

    def _item(self, key: str, row: Row, prompts: Prompts) -> Item:
        return Item(key, turns_of(row), str(row["outputs"]), self.options, meta=row.get("meta", {}))


@dataclass(frozen=True)
class PairedChoice(Choice):
    """PARus: each item asked twice, its choices swapped; right only where both are. Always the first option gives 0."""

    options: tuple[str, ...] = ("1", "2")
    metrics: tuple[str, ...] = ("accuracy",)

    def swapped(self, item: Item, row: Row) -> tuple[Turn, ...]:
        inputs = dict(row["inputs"])
        inputs["choice1"], inputs["choice2"] = inputs["choice2"], inputs["choice1"]
        return turns_of(row, inputs)

    def judge(
        self, item: Item, answers: Sequence[Answer], tokenizer: PreTrainedTokenizerFast, protocol: Protocol
    ) -> Judgement:
        straight, swapped = (item.options[answer.choice] for answer in answers)
        right = straight == item.gold and swapped != item.gold
        return Judgement(float(right), f"{straight}, {swapped}", item.gold, {"accuracy": float(right)})

    def _item(self, key: str, row: Row, prompts: Prompts) -> Item:
        item = super()._item(key, row, prompts)
        return Item(key, item.turns, item.gold, item.options, meta={"swapped": self.swapped(item, row)})


@dataclass(frozen=True)
class Rucola(Choice):
    """Is a sentence acceptable? Rows of RuCoLA: sentence, and label (the hub) or acceptable (CSV)."""

    options: tuple[str, ...] = ("0", "1")
    metrics: tuple[str, ...] = ("accuracy", "mcc")

    def _item(self, key: str, row: Row, prompts: Prompts) -> Item:
        label = row.get("label", row.get("acceptable"))
        if str(label) not in self.options:
            raise ValueError(f"rucola: a row without label or acceptable in 0, 1: {dict(row)!s:.120}")
        return Item(key, worded(prompts, "rucola", sentence=row["sentence"]), str(label), self.options)

    def answered(self, item: Item) -> tuple[Turn, ...]:
        return closed(item.turns, item.gold)


@dataclass(frozen=True)
class Mmlu(Choice):
    """MMLU in Russian or English: accuracy by subject, then by category, then over the four categories."""

    metrics: tuple[str, ...] = ("accuracy",)

    def limited(self, items: Sequence[Item], limit: int | None) -> list[Item]:
        """As many items, evenly over the subjects."""
        if limit is None:
            return list(items)
        turn, seen = [], defaultdict[str, int](int)
        for place, item in enumerate(items):
            turn.append((seen[item.examples], place))
            seen[item.examples] += 1
        return [items[place] for place in sorted(place for _, place in sorted(turn)[:limit])]

    def score(self, judgements: Sequence[Judgement]) -> Scored:
        subjects: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for judgement in judgements:
            category, _, subject = judgement.unit.partition("/")
            subjects[category][subject].append(judgement.value)
        parts = {category: stratified_mean(list(of.values())) for category, of in subjects.items()}
        stderr = float(np.sqrt(sum(error**2 for _, error in parts.values())) / len(parts))
        metrics = {category: value for category, (value, _) in parts.items()}
        return Scored(
            Score(float(np.mean(list(metrics.values()))), stderr, len(judgements)), metrics, self._estimate(judgements)
        )

    def _estimate(self, judgements: Sequence[Judgement]) -> Estimate:
        """Items are drawn within their category, so that a subject of one item varies too."""
        units = [judgement.unit for judgement in judgements]
        categories = [unit.partition("/")[0] for unit in units]
        subjects, subject = np.unique(units, return_inverse=True)
        names, category = np.unique([of.partition("/")[0] for of in subjects], return_inverse=True)
        values = np.array([judgement.value for judgement in judgements])

        def mean_of_categories(places: np.ndarray) -> float:
            counts = np.bincount(subject[places], minlength=len(subjects))
            sums = np.bincount(subject[places], weights=values[places], minlength=len(subjects))
            drawn = counts > 0
            means, of = sums[drawn] / counts[drawn], category[drawn]
            return float(np.mean(np.bincount(of, weights=means, minlength=len(names)) / np.bincount(of)))

        return bootstrap(mean_of_categories, categories, name=self.name)

    def _item(self, key: str, row: Row, prompts: Prompts) -> Item:
        if row["subject"] not in prompts["subjects"]:
            raise ValueError(f"prompts: MMLU's subject {row['subject']!r} has no line under `subjects`. Add it")
        category, russian = prompts["subjects"][row["subject"]]
        subject = russian if self.language == "ru" else row["subject"].replace("_", " ")
        question, choices = row[f"question_{self.language}"], row[f"choices_{self.language}"]
        values = dict(zip("abcd", choices, strict=True))
        return Item(
            key,
            worded(prompts, self.name, question=question, **values),
            LETTERS[row["answer"]] if isinstance(row["answer"], int) else str(row["answer"]),
            self.options,
            unit=f"{category}/{row['subject']}",
            examples=row["subject"],
            headline=prompts[self.name]["headline"].format(subject=subject),
        )

    def answered(self, item: Item) -> tuple[Turn, ...]:
        return closed(item.turns, item.gold)


# ---------------------------------------------------------------------------------------------------------------------
# To write.


@dataclass(frozen=True)
class MultiQ(Task):
    """A question over two texts; F1 over words and exact match, the best over the right answers."""

    def judge(
        self, item: Item, answers: Sequence[Answer], tokenizer: PreTrainedTokenizerFast, protocol: Protocol
    ) -> Judgement:
        right = [item.gold] if isinstance(item.gold, str) else [gold["segment"] for gold in item.gold]
        text = answers[0].text.strip()
        metrics = {"f1": best_f1(text, right), "em": best_match(text, right)}
        return Judgement(float(np.mean(list(metrics.values()))), text, right[0], metrics)


@dataclass(frozen=True)
class Exam(Task):
    """The Unified State Exam: points of a variant over the 34 there are, averaged over the variants."""

    def limited(self, items: Sequence[Item], limit: int | None) -> list[Item]:
        """Whole variants, in order of appearance, until there are as many items."""
        if limit is None:
            return list(items)
        kept: list[str] = []
        for unit in dict.fromkeys(item.unit for item in items):
            if sum(item.unit in kept for item in items) >= limit:
                break
            kept.append(unit)
        return [item for item in items if item.unit in kept]

    def judge(
        self, item: Item, answers: Sequence[Answer], tokenizer: PreTrainedTokenizerFast, protocol: Protocol
    ) -> Judgement:
        kind, task = item.meta["type"], str(item.meta["id_task"])
        points = use_points(answers[0].text, item.gold, kind=kind, task=task)
        most = use_points(item.gold.split(",")[0] if kind == "text" else item.gold, item.gold, kind=kind, task=task)
        metrics = {"points": float(points)}
        return Judgement(points / most if most else 0.0, answers[0].text.strip(), item.gold, metrics, item.unit)

    def score(self, judgements: Sequence[Judgement]) -> Scored:
        points: dict[str, float] = defaultdict(float)
        for judgement in judgements:
            points[judgement.unit] += judgement.metrics["points"]
        grades = [total / USE_POINTS for total in points.values()]
        value, stderr = mean_and_stderr(grades)
        estimate = mean_estimate(grades, name=self.name)
        return Scored(Score(value, stderr, len(grades)), {"grade_norm": value}, estimate)

    def _item(self, key: str, row: Row, prompts: Prompts) -> Item:
        return Item(key, turns_of(row), row["outputs"], unit=str(row["meta"]["variant"]), meta=row["meta"])


@dataclass(frozen=True)
class Abstract(Task):
    """A summary in the model's own words: mean F1 of ROUGE-1 and ROUGE-2 over lemmas.

    The paper's text speaks of recall, its code and figures are F1; recall is told beside it and does not count.
    """

    def judge(
        self, item: Item, answers: Sequence[Answer], tokenizer: PreTrainedTokenizerFast, protocol: Protocol
    ) -> Judgement:
        text, unicode_punctuation = answers[0].text.strip(), protocol.unicode_punctuation
        found = [rouge_of_lemmas(text, item.gold, n=n, unicode_punctuation=unicode_punctuation) for n in (1, 2)]
        metrics = {f"rouge{n}": of.f1 for n, of in enumerate(found, 1)}
        recall = {f"rouge{n}_recall": of.recall for n, of in enumerate(found, 1)}
        return Judgement(float(np.mean(list(metrics.values()))), text, item.gold, metrics | recall)

    def _item(self, key: str, row: Row, prompts: Prompts) -> Item:
        text, summary = " ".join(row["src_sents"]), " ".join(row["summary_sents"])
        return Item(key, worded(prompts, "treeway_abstractive", text=text), summary)

    def answered(self, item: Item) -> tuple[Turn, ...]:
        return closed(item.turns, item.gold)


@dataclass(frozen=True)
class Extract(Task):
    """Sentences of a text ranked by how likely the model is to say them; R-precision. Asked without examples."""

    def judge(
        self, item: Item, answers: Sequence[Answer], tokenizer: PreTrainedTokenizerFast, protocol: Protocol
    ) -> Judgement:
        value = r_precision(answers[0].scores, item.gold)
        best = np.argsort(-np.array(answers[0].scores), kind="stable")[: len(item.gold)]
        found, right = (",".join(map(str, sorted(places))) for places in (best.tolist(), item.gold))
        return Judgement(value, found, right or "none", {"r_precision": value})

    def _item(self, key: str, row: Row, prompts: Prompts) -> Item:
        turns = worded(prompts, "treeway_extractive", text=" ".join(row["src_sents"]))
        sentences, gold = tuple(row["src_sents"]), list(row["extractive_summary"])
        return Item(key, (*turns[:-1], ("assistant", "")), gold, sentences, opening=turns[-1][1])


@dataclass(frozen=True)
class Copy(Task):
    """To repeat a text: a sentence, judged by the number of tokens it takes; or a paragraph, by what of it is there.

    How often the copy is exact is told beside it and does not count.
    """

    measure: Literal["len", "lcs"] = "len"

    def judge(
        self, item: Item, answers: Sequence[Answer], tokenizer: PreTrainedTokenizerFast, protocol: Protocol
    ) -> Judgement:
        answer = answers[0]
        if self.measure == "lcs":
            value = copied(answer.text, item.gold, over=protocol.copied_over, matching=protocol.matching)
        else:
            produced = answer.tokens if protocol.stop_holds_text else answer.whole_tokens
            value = length_ratio(produced, self._tokens(item.gold, tokenizer, protocol))
        exact = float(answer.text.strip() == item.gold.strip())
        return Judgement(value, answer.text.strip(), item.gold, {self.measure: value, "exact": exact})

    def _tokens(self, text: str, tokenizer: PreTrainedTokenizerFast, protocol: Protocol) -> int:
        """Tokens that the text takes after the prompt, within the budget."""
        if protocol.characters_per_new_token:
            text = text[: protocol.characters_per_new_token * self.new_tokens]
        spaced = text if _puts_a_space(tokenizer) else f" {text}"
        ids = tokenizer(spaced, add_special_tokens=False, verbose=False)["input_ids"]
        return len(ids) if protocol.characters_per_new_token else min(len(ids), self.new_tokens)

    def _item(self, key: str, row: Row, prompts: Prompts) -> Item:
        return Item(key, turns_of(row), row["inputs"]["text"])


def _puts_a_space(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer itself begins a text with a space."""
    first = read_vocabulary(tokenizer).tokens[tokenizer("a", add_special_tokens=False)["input_ids"][0]]
    return first is not None and first.startswith(b" ")


MMLU, MERA, SUM, COPY_EN, COPY_RU = "DaruMMLU", "DaruMERA", "DaruSum", "DaruCopy-EN", "DaruCopy-RU"
GROUPS = (MMLU, MERA, SUM, COPY_EN, COPY_RU)
# The first 500 documents alone, as in the paper.
SUMMARIES = 500
TASKS: tuple[Task, ...] = (
    Choice("rummlu", MMLU, "ru", "rummlu", metrics=("accuracy",)),
    Mmlu("mmlu_ru", MMLU, "ru", "mmlu_nlpcoreteam", reversed_examples=False),
    Mmlu("mmlu_en", MMLU, "en", "mmlu_nlpcoreteam", reversed_examples=False),
    MultiQ("multiq", MERA, "ru", "multiq", new_tokens=64),
    PairedChoice("parus", MERA, "ru", "parus"),
    Choice("rcb", MERA, "ru", "rcb", options=("1", "2", "3")),
    Choice("rwsd", MERA, "ru", "rwsd", options=("Да", "Нет"), metrics=("accuracy",)),
    Exam("use", MERA, "ru", "use", new_tokens=64),
    Choice("ruopenbookqa", MERA, "ru", "ruopenbookqa"),
    Choice("ruworldtree", MERA, "ru", "ruworldtree"),
    Rucola("rucola", MERA, "ru", "rucola", first_example=29),
    Abstract("treeway_abstractive", SUM, "ru", "daru_treeway_eval", new_tokens=512, max_items=SUMMARIES),
    Extract("treeway_extractive", SUM, "ru", "daru_treeway_eval", max_shots=0, max_items=SUMMARIES),
    Copy("cp_sent_en", COPY_EN, "en", "cp_sent_en", new_tokens=128),
    Copy("cp_para_en", COPY_EN, "en", "cp_para_en", new_tokens=1024, measure="lcs"),
    Copy("cp_sent_ru", COPY_RU, "ru", "cp_sent_ru", new_tokens=128),
    Copy("cp_para_ru", COPY_RU, "ru", "cp_para_ru", new_tokens=1024, measure="lcs"),
)
