"""The original instruct model's own answers: what self-calibration learns from (paper, self-calibration).

In: conversations, of which the turns before the first answer are asked, and the model. Out: an answer for each, greedy,
in order. A journal holds them as they come, so that a killed process asks nothing twice.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lep.benchmark.asking import Answer, Journal, Query, ask
from lep.benchmark.scoring import end_tokens, render_chat
from lep.calibration.conversations import Conversation, Turn
from lep.calibration.filtering import Answered, AnswerFilters
from lep.calibration.rendering import render_questions
from lep.corpus.parallel import batched

Engine = Literal["auto", "transformers", "vllm"]
RATINGS = ("1", "2", "3", "4", "5")
# Questions that vLLM is given at once, between two writes to the journal.
_AT_ONCE = 2048


@dataclass(frozen=True)
class Rating:
    """A model that rates answers from 1 to 5: where it lies (None: nobody rates), and what it is asked.

    threshold: the least rating of an answer that is kept.
    """

    model: str | None
    request: str
    threshold: int = 4
    revision: str | None = None

    def __post_init__(self) -> None:
        if "{question}" not in self.request or "{answer}" not in self.request:
            raise ValueError("answers.rating.request must name {question} and {answer}, which are put into it")
        if not 1 <= self.threshold <= len(RATINGS):
            raise ValueError(
                f"answers.rating.threshold={self.threshold} is no rating. Give one from 1 to {len(RATINGS)}"
            )


@dataclass(frozen=True)
class SelfAnswers:
    """What is asked and which answers are kept.

    questions: at most so many. max_new_tokens: budget of an answer; one that does not end within it is dropped.
    engine: auto takes vLLM where it is installed, there is a GPU, and models are to run on it.
    """

    max_new_tokens: int
    questions: int | None = None
    engine: Engine = "auto"
    filters: AnswerFilters = field(default_factory=AnswerFilters)
    rating: Rating | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"answers.max_new_tokens={self.max_new_tokens} leaves nothing to say. Give 1 or more")
        if self.questions is not None and self.questions < 1:
            raise ValueError(f"answers.questions={self.questions} asks nothing. Give 1 or more, or null for all")
        if self.engine not in ("auto", "transformers", "vllm"):
            raise ValueError(f"answers.engine={self.engine} is unknown. Give auto, transformers or vllm")
        if self.engine == "vllm" and not vllm_is_here():
            raise ValueError(
                "answers.engine=vllm, but vllm is not installed or there is no GPU: pip install 'lep[vllm]', or take "
                "answers.engine=transformers"
            )

    @property
    def rates(self) -> bool:
        return self.rating is not None and self.rating.model is not None

    def uses_vllm(self, device: str) -> bool:
        """Whether vLLM answers in a run whose models are on this device."""
        return self.engine == "vllm" or (self.engine == "auto" and device != "cpu" and vllm_is_here())


def vllm_is_here() -> bool:
    """Whether vLLM can be used on this machine."""
    return torch.cuda.is_available() and importlib.util.find_spec("vllm") is not None


def questions_of(
    conversations: Iterable[Conversation],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_tokens: int,
    limit: int | None = None,
) -> tuple[list[Conversation], int]:
    """What is said before the first answer of each conversation, the first `limit` of them.

    Left out, and counted, are those that take more than `max_tokens` in the model's chat format.
    """
    asked = [conversation.prompt() for conversation in islice(conversations, limit)]
    rendered = render_questions(asked, tokenizer)
    lengths = [len(ids) for ids in tokenizer(rendered, add_special_tokens=False)["input_ids"]] if rendered else []
    kept = [question for question, length in zip(asked, lengths, strict=True) if length <= max_tokens]
    return kept, len(asked) - len(kept)


def own_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Conversation],
    *,
    max_new_tokens: int,
    journal: Journal,
    progress: str | None = None,
) -> list[Answered]:
    """Greedy answers of the model in memory; those that the journal holds are not asked again."""
    queries = [
        Query(str(i), rendered, max_new_tokens=max_new_tokens, chat=True)
        for i, rendered in enumerate(render_questions(questions, tokenizer))
    ]
    return _answered(questions, ask(model, tokenizer, queries, journal=journal, progress=progress))


def vllm_answers(
    model_dir: Path,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Conversation],
    *,
    max_new_tokens: int,
    journal: Journal,
) -> list[Answered]:
    """The same with vLLM, which reads the model directory itself. The only place that knows vLLM.

    Questions and answers must fit into the model's context together, as `questions_of` makes sure.
    """
    left = [i for i in range(len(questions)) if str(i) not in journal.known]
    if left:
        import vllm  # type: ignore[import-not-found]

        rendered = render_questions([questions[i] for i in left], tokenizer)
        rows = dict(zip(left, tokenizer(rendered, add_special_tokens=False)["input_ids"], strict=True))
        longest = max(map(len, rows.values())) + max_new_tokens
        torch.cuda.empty_cache()  # the engine wants most of the device for itself
        # By itself it makes room for requests as long as the model's whole context, and refuses where there is none.
        engine = vllm.LLM(model=str(model_dir), seed=0, max_model_len=longest)
        stops = sorted(end_tokens(tokenizer))
        greedy = vllm.SamplingParams(temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=stops)
        for chunk in batched(left, weight=lambda _: 1, limit=_AT_ONCE):
            outputs = engine.generate([{"prompt_token_ids": rows[i]} for i in chunk], greedy)
            journal.add({str(i): asdict(_from_vllm(one.outputs[0])) for i, one in zip(chunk, outputs, strict=True)})
        del engine
        gc.collect()  # which ends it
    return _answered(questions, [Answer(**journal.known[str(i)]) for i in range(len(questions))])


def _from_vllm(output: Any) -> Answer:
    tokens = len(output.token_ids)
    ended = "end token" if output.finish_reason == "stop" else "budget"
    return Answer(text=output.text, ended=ended, tokens=tokens, whole_tokens=tokens)


def _answered(questions: Sequence[Conversation], answers: Sequence[Answer]) -> list[Answered]:
    return [Answered(question, answer.text, answer.ended) for question, answer in zip(questions, answers, strict=True)]


def rate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    answers: Sequence[Answered],
    *,
    request: str,
    journal: Journal,
    progress: str | None = None,
) -> list[int]:
    """The rating from 1 to 5 that the judge finds most likely for each answer; greedy, by likelihood of the digit."""
    queries = [
        Query(str(i), render_chat(tokenizer, _rating_request(request, found)), options=RATINGS, chat=True)
        for i, found in enumerate(answers)
    ]
    return [1 + answer.choice for answer in ask(model, tokenizer, queries, journal=journal, progress=progress)]


def _rating_request(request: str, found: Answered) -> str:
    values = {"{question}": "\n".join(turn.content for turn in found.question.turns), "{answer}": found.answer}
    # Looked for in the request alone, never in what is put into it.
    return "".join(values.get(part, part) for part in re.split(r"(\{question\}|\{answer\})", request))


def write_answers(path: Path, answers: Sequence[Answered]) -> None:
    """One JSON object a line: the messages of the question, the answer, what ended it."""
    rows = [{"messages": one.question.messages(), "answer": one.answer, "ended": one.ended} for one in answers]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_answers(path: Path) -> list[Answered]:
    """What `write_answers` wrote."""
    with path.open(encoding="utf-8") as lines:  # which end where they were ended, not at what an answer may hold
        rows = [json.loads(line) for line in lines]
    return [
        Answered(Conversation(tuple(Turn(**turn) for turn in row["messages"])), row["answer"], row["ended"])
        for row in rows
    ]
