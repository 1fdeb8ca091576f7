"""What a model writes after given words, for people to read, and how fast it writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lep.benchmark.bits_per_byte import generation_speed
from lep.benchmark.records import Record, SuiteResult
from lep.benchmark.scoring import generate


@dataclass(frozen=True)
class Continuation:
    """Continue `prompts` (by language) greedily; the speed goes to the details, in characters and tokens a second."""

    prompts: Mapping[str, Sequence[str]]
    max_new_tokens: int = 48

    def __call__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, progress: str | None = None
    ) -> SuiteResult:
        records, details = [], {}
        for language, prompts in self.prompts.items():
            written = generate(model, tokenizer, prompts, max_new_tokens=self.max_new_tokens, progress=progress)
            records += [
                Record("continuation", language, prompt, found.text, "", False)
                for prompt, found in zip(prompts, written, strict=True)
            ]
            speed = generation_speed(model, tokenizer, prompts, max_new_tokens=self.max_new_tokens)
            details["speed" if not details else f"speed/{language}"] = speed  # the first language is the target
        return SuiteResult({}, details, records)
