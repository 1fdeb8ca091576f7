"""Measures that do not know the vocabulary: what any two models can be compared by, on any text.

In: a model, its tokenizer, texts and prompts by language. Out: bits per byte and per character, characters a token,
tokens a word, how fast it writes (and reads) in characters and tokens a second, and in which script it writes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lep.assets.microworld import story
from lep.benchmark.asking import Answer, Journal, Query, Ranks, ask
from lep.benchmark.bits_per_byte import TextBits, bits_per_byte, characters_per_token, generation_speed
from lep.benchmark.darumeru.sources import read_rows
from lep.benchmark.metrics import Estimate, mean_and_stderr, script_share
from lep.benchmark.records import Record, SuiteResult
from lep.benchmark.scoring import render_chat
from lep.results import BITS, Score

SCRIPT_TASK, CHAT_TASK = "own script", "own script in a chat"
SCRIPTS = {"ru": "Cyrillic", "en": "Latin"}


@dataclass(frozen=True)
class Fair:
    """The suite as a config names it.

    prompts: by language, to be continued; `own script` is the share of letters written in the script that `scripts`
        gives the language (language confusion is what is left of 1); a text without letters counts as 0.
    requests: by language, to be answered in the chat format, judged in the same way; not asked of a model without one.
    texts: by language, a file: .jsonl with the field `text`, or plain text whose documents stand apart by empty lines;
        null is the micro-world. Bits per byte of English tell what is forgotten when a model is adapted to Russian.
    context: characters of a window. max_characters: of each language's texts; null is all.
    max_new_characters: written after a prompt. timed_tokens: how many are written to measure the speed; null measures
        none (speed depends on what else the machine does).
    """

    prompts: Mapping[str, Sequence[str]]
    requests: Mapping[str, Sequence[str]] = field(default_factory=dict)
    texts: Mapping[str, str | None] = field(default_factory=lambda: {"ru": None, "en": None})
    scripts: Mapping[str, str] = field(default_factory=lambda: dict(SCRIPTS))
    context: int = 1000
    max_characters: int | None = None
    max_new_characters: int = 200
    timed_tokens: int | None = 32

    def __call__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        progress: str | None = None,
        journal: Journal | None = None,
        ranks: Ranks | None = None,
    ) -> SuiteResult:
        journal = journal or Journal()
        details: dict[str, dict[str, Any]] = {}
        estimates: dict[str, Estimate] = {}
        for language, texts in self._texts().items():

            def measured(language: str = language, texts: Sequence[str] = texts) -> dict[str, Any]:
                label = progress and f"{progress}: bits per byte, {language}"
                return asdict(bits_per_byte(model, tokenizer, texts, context=self.context, progress=label))

            bits = TextBits(**journal.remember(f"text/{language}", measured))
            details[f"text/{language}"] = text_measures(tokenizer, texts, bits.score)
            estimates[f"{BITS}/{language}"] = bits.estimate
        scores: dict[str, Score] = {}
        records: list[Record] = []
        for task, language, queries in self._queries(tokenizer):
            label = progress and f"{progress}: {task}, {language}"
            answers = ask(model, tokenizer, queries, journal=journal, ranks=ranks, progress=label)
            written = [self._record(task, language, *of) for of in zip(queries, answers, strict=True)]
            records += written
            scores[f"{task}/{language}"] = Score(*mean_and_stderr([r.value for r in written]), len(written))
        for language, prompts in self.prompts.items() if self.timed_tokens else ():
            # Timed anew by every run: the journal may come from another machine.
            speed = generation_speed(model, tokenizer, prompts, max_new_tokens=self.timed_tokens or 0)
            details[f"speed/{language}"] = speed
        return SuiteResult(scores, details, records, estimates)

    def fingerprint(self) -> dict[str, Any]:
        """What answers depend on besides the model."""
        texts = {
            language: hashlib.sha256("\0".join(of).encode()).hexdigest()[:16] for language, of in self._texts().items()
        }
        plain = {key: value for key, value in asdict(self).items() if key != "texts"}
        return {"texts": texts, **plain}

    def _queries(self, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[str, str, list[Query]]]:
        """(task, language, what to go on with or to answer)."""
        budget = self.max_new_characters
        for language, prompts in self.prompts.items():
            keyed = enumerate(prompts)
            yield (
                *(SCRIPT_TASK, language),
                [Query(f"writing/{language}/{i}", prompt, max_new_characters=budget) for i, prompt in keyed],
            )
        for language, requests in self.requests.items() if tokenizer.chat_template else ():
            keyed = enumerate(render_chat(tokenizer, request) for request in requests)
            yield (
                *(CHAT_TASK, language),
                [Query(f"chat/{language}/{i}", text, max_new_characters=budget, chat=True) for i, text in keyed],
            )

    def _record(self, task: str, language: str, query: Query, answer: Answer) -> Record:
        """What was written, worth the share of its letters that are in the language's script."""
        script = self.scripts[language]
        value = script_share(answer.text, script) or 0.0
        return Record(task, language, query.prompt, answer.text, script, value, item=query.key)

    def _texts(self) -> dict[str, list[str]]:
        found = {}
        for language, path in self.texts.items():
            texts = micro_texts(language) if path is None else read_texts(Path(path))
            found[language] = _up_to(texts, self.max_characters)
            if not found[language]:
                raise ValueError(f"benchmark.fair.texts.{language}={path} holds no text")
        return found


def text_measures(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], bits: Score) -> dict[str, Any]:
    """What is told of texts, given their bits per byte."""
    characters, size = sum(map(len, texts)), sum(len(text.encode()) for text in texts)
    per_token = characters_per_token(tokenizer, texts)
    words = sum(len(text.split()) for text in texts)
    return {
        "bits_per_byte": bits.value,
        "bits_per_byte_stderr": bits.stderr,
        "bits_per_character": bits.value * size / characters,
        "characters_per_token": per_token,
        "tokens_per_word": characters / per_token / words,
        "characters": characters,
        "texts": len(texts),
    }


def micro_texts(language: str) -> list[str]:
    """Stories of the micro-world, the same in every language."""
    rng = random.Random("fair")
    return [" ".join(event.told[language] for event in story(rng, 4)) for _ in range(50)]


def read_texts(path: Path) -> list[str]:
    """Documents of a file: the field `text` of JSONL, or plain text parted by empty lines."""
    path = path.expanduser()
    if not path.is_file():
        raise ValueError(f"benchmark.fair.texts: {path} is not there")
    if path.suffix == ".jsonl":
        return [row["text"] for row in read_rows(path)]
    return [part.strip() for part in path.read_text(encoding="utf-8").split("\n\n") if part.strip()]


def _up_to(texts: Sequence[str], characters: int | None) -> list[str]:
    """The first texts, the last of them cut, of that many characters."""
    kept, left = [], characters if characters is not None else 2**62
    for text in texts:
        kept.append(text[:left])
        left -= len(kept[-1])
        if left <= 0:
            break
    return [text for text in kept if text]
