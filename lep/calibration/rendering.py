"""Conversations as token ids in a model's own chat format, with a mask of what the assistant says.

In: conversations and a tokenizer with a chat template. Out: for each, its ids and which of them are learnt.
The template is rendered twice: with the conversation, and with placeholders for what is said. What the two have in
common is the template's, the rest is theirs, so no template needs markers of its own. What the assistant says is its
words, the special token after them, which ends its turn, and blanks before them that a prompt leaves to it.
"""

# N tokens of a conversation

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lep.calibration.conversations import Conversation, Turn
from lep.chat import chat_text
from lep.corpus.parallel import batched
from lep.corpus.progress import document_progress
from lep.vocabulary import read_vocabulary

# Conversations that are rendered and tokenised at once.
_AT_ONCE = 1000
# Letters that no template writes by itself.
_PLACE = "zqxplace{}zqx"
_PLACES = re.compile(r"zqxplace(\d+)zqx")


@dataclass(frozen=True)
class Rendered:
    """One conversation: ids int32 [N], and which of them the assistant says, bool [N]. The last one is its own."""

    ids: np.ndarray
    answered: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Counts:
    """What became of the conversations. Every one that was read is in `rendered` or, by reason, in `dropped`.

    cut: conversations that lost exchanges at their end, `exchanges_cut` in all. unanswered: turns of users at the end
    that were left out. folded: system turns put before the user's first, by a template that knows no system.
    """

    read: int = 0
    rendered: int = 0
    cut: int = 0
    exchanges_cut: int = 0
    unanswered: int = 0
    folded: int = 0
    tokens: int = 0
    answered_tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def facts(self) -> dict[str, Any]:
        """What is not zero, as plain JSON."""
        return {name: value for name, value in {**vars(self), "dropped": dict(self.dropped)}.items() if value}


class _Text(NamedTuple):
    """A rendered conversation: its text, and in characters where its contents and its answers stand."""

    text: str
    said: list[tuple[int, int]]
    answers: list[tuple[int, int, int]]  # start, end, start of what is said next (or the end of the text)


class _Frame(NamedTuple):
    """What a template writes around turns: first of all, and in the order of the text after each turn (by number).

    blanks: of each answer, how many blanks stand before it that the opened turn of a prompt does not have.
    """

    opening: str
    around: list[tuple[int, str]]
    blanks: dict[int, int]


def render(
    conversations: Iterable[Conversation], tokenizer: PreTrainedTokenizerFast, *, max_tokens: int
) -> tuple[list[Rendered], Counts]:
    """Token ids and answer masks, in order, and what was cut or dropped on the way.

    A conversation longer than `max_tokens` loses exchanges at its end until it fits; one whose first exchange does not
    fit is dropped ("too long"), as is one without an answer ("no answer"), one that holds a special token of the model
    in what is said ("special token"), and one that the template does not write out word for word ("rewritten").
    Nothing stands behind the last answer, for there is nothing to learn from it.

    ValueError if the tokenizer has no template, if the template refuses the turns, or if nothing is left.
    """
    renderer, counts, found = _Renderer(tokenizer, max_tokens), Counts(), list[Rendered]()
    with document_progress("rendering conversations") as advance:
        for batch in batched(conversations, weight=lambda _: 1, limit=_AT_ONCE):
            counts.read += len(batch)
            found += renderer.render(batch, counts)
            advance(len(batch))
    if not found:
        raise ValueError(
            f"Of {counts.read} conversations none is left to tune on; dropped were {dict(counts.dropped) or 'none'}. "
            f"Give other conversations, or raise the limit of {max_tokens} tokens if they are too long."
        )
    counts.rendered = len(found)
    counts.tokens = sum(map(len, found))
    counts.answered_tokens = int(sum(one.answered.sum() for one in found))
    return found, counts


def render_questions(questions: Sequence[Conversation], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Turns in the model's chat format up to where the answer begins, as `render` has them before the answer it learns.

    So a system turn is folded where the template knows none, and a template that opens every answer with an empty
    thought (Qwen3) has it here too: what is asked for is the answer that can be learnt.
    """
    template = _Template(tokenizer)
    return [template.question(question) for question in questions]


class _Renderer:
    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> None:
        self._template = _Template(tokenizer)
        self._max_tokens = max_tokens
        self._backend = _with_exact_offsets(tokenizer)
        # As `lep.chat.end_of_turn`: also an added token that no text can give ends a turn.
        self._ends = np.array(sorted(read_vocabulary(tokenizer).specials), dtype=np.int64)
        added = tokenizer.added_tokens_decoder.items()
        self._special = np.array(sorted(i for i, token in added if token.special), dtype=np.int64)

    def render(self, conversations: Sequence[Conversation], counts: Counts) -> list[Rendered]:
        """The conversations that can be, in order. Those that are too long come back shortened, in another round."""
        found: dict[int, Rendered] = {}
        waiting = {i: self._complete(conversation, counts) for i, conversation in enumerate(conversations)}
        shortened = dict[int, int]()
        while waiting:
            texts = {i: text for i, one in waiting.items() if one and (text := self._text(one, counts))}
            encodings = self._backend.encode_batch([text.text for text in texts.values()], add_special_tokens=False)
            following = dict[int, Conversation | None]()
            for (i, text), encoding in zip(texts.items(), encodings, strict=True):
                made = self._masked(text, encoding)
                conversation = waiting[i]
                assert conversation is not None
                if made is None:
                    counts.dropped["special token"] += 1
                elif len(made.rendered) <= self._max_tokens:
                    found[i] = made.rendered
                else:
                    # Fewer answers anyway: a template may write a shorter conversation longer than its part here.
                    fitting = sum(end <= self._max_tokens for end in made.answer_ends)
                    kept = min(fitting, conversation.num_answers - 1)
                    if kept:
                        following[i] = conversation.first(kept)
                        shortened[i] = shortened.get(i, 0) + conversation.num_answers - kept
                    else:
                        counts.dropped["too long"] += 1
            waiting = following
        cut = [number for i, number in shortened.items() if i in found]
        counts.cut += len(cut)
        counts.exchanges_cut += sum(cut)
        counts.folded += sum(self._template.folds and conversations[i].turns[0].role == "system" for i in found)
        return [found[i] for i in sorted(found)]

    def _complete(self, conversation: Conversation, counts: Counts) -> Conversation | None:
        """The conversation up to its last answer."""
        if not conversation.num_answers:
            counts.dropped["no answer"] += 1
            return None
        whole = conversation.first(conversation.num_answers)
        counts.unanswered += len(conversation.turns) - len(whole.turns)
        return whole

    def _text(self, conversation: Conversation, counts: Counts) -> _Text | None:
        text = self._template.write(conversation)
        if text is None:
            counts.dropped["rewritten"] += 1
        return text

    def _masked(self, text: _Text, encoding: Any) -> _Masked | None:
        """Ids and mask of a text; None if a special token stands in what is said."""
        ids = np.array(encoding.ids, dtype=np.int32)
        starts, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        special = np.flatnonzero(np.isin(ids, self._special))
        if any(((starts[special] < end) & (ends[special] > start)).any() for start, end in text.said):
            return None
        answered, answer_ends = np.zeros(len(ids), dtype=bool), list[int]()
        for start, end, following in text.answers:
            # A token that reaches into the answer is the answer's: the space before a word is spoken with it.
            first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(starts, end, side="left")
            limit = np.searchsorted(ends, following, side="right")
            closing = np.flatnonzero(np.isin(ids[last:limit], self._ends))
            stop = int(last + closing[0] + 1 if len(closing) else last)
            answered[first:stop] = True
            answer_ends.append(stop)
        return _Masked(Rendered(ids[: answer_ends[-1]], answered[: answer_ends[-1]]), answer_ends)


class _Masked(NamedTuple):
    rendered: Rendered
    answer_ends: list[int]  # how many tokens there are up to the end of each answer


class _Template:
    """A chat template, and what it writes around the turns of any conversation with the same roles."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if not tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template, so there is no format to tune in. Use the tokenizer of an "
                "instruct model, or copy its chat_template."
            )
        self._tokenizer = tokenizer
        self.folds = not self._knows_system()
        self._frame = cache(self._make_frame)

    def write(self, conversation: Conversation) -> _Text | None:
        """The text, with the places of what is said in it; None if the template changes what is said."""
        turns = self._folded(conversation.turns)
        text = self._apply(turns)
        opening, around, blanks = self._frame(tuple(turn.role for turn in turns))
        if not text.startswith(opening):
            return None
        place, said = len(opening), list[tuple[int, int]]()
        for number, after in around:
            content = _written(text, place, turns[number].content, after, last=len(said) == len(around) - 1)
            if content is None:
                return None
            said.append((place, place + len(content)))
            place += len(content) + len(after)
        spans = {number: span for (number, _), span in zip(around, said, strict=True)}
        followed_by = dict(zip(said, [*(start for start, _ in said[1:]), len(text)], strict=True))
        answers = [(spans[i][0] - blank, spans[i][1], followed_by[spans[i]]) for i, blank in blanks.items()]
        return _Text(text, said, answers)

    def question(self, conversation: Conversation) -> str:
        """The text before the answer to the last turn, without the blanks that the answer is spoken with."""
        turns = self._folded(conversation.turns)
        before = _PLACES.split(self._apply([*turns, Turn("assistant", _PLACE.format(0))]))[0]
        return before[: len(before) - _own_blanks(before, self._apply(turns, open_answer=True))]

    def _make_frame(self, roles: tuple[Any, ...]) -> _Frame:
        turns = [Turn(role, _PLACE.format(number)) for number, role in enumerate(roles)]
        opening, *rest = _PLACES.split(self._apply(turns))
        around = [(int(number), after) for number, after in zip(rest[::2], rest[1::2], strict=True)]
        if sorted(number for number, _ in around) != list(range(len(roles))):
            missing = next(role for i, role in enumerate(roles) if [n for n, _ in around].count(i) != 1)
            raise ValueError(
                f"the chat template does not write a turn of the {missing} exactly once in a conversation of "
                f"{', '.join(roles)}. Use the template of the model's tokenizer, or conversations it knows."
            )
        before = {number: text for (number, _), text in zip(around, [opening, *(t for _, t in around)], strict=False)}
        blanks = dict[int, int]()
        for number in (i for i, role in enumerate(roles) if role == "assistant"):
            opened = _PLACES.split(self._apply(turns[:number], open_answer=True))[-1]
            blanks[number] = _own_blanks(before[number], opened)
        return _Frame(opening, around, blanks)

    def _knows_system(self) -> bool:
        turns = [Turn(role, _PLACE.format(i)) for i, role in enumerate(("system", "user", "assistant"))]
        try:
            return _PLACE.format(0) in self._apply(turns)
        except ValueError:
            return False

    def _folded(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """The turns, with the system's put before the user's first where the template knows no system."""
        if not self.folds or turns[0].role != "system":
            return turns
        return (Turn("user", f"{turns[0].content}\n\n{turns[1].content}"), *turns[2:])

    def _apply(self, turns: Sequence[Turn], *, open_answer: bool = False) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return chat_text(self._tokenizer, messages, open_answer=open_answer)
        except TemplateError as error:
            roles = ", ".join(turn.role for turn in turns)
            raise ValueError(
                f"the chat template refuses turns of {roles}: {error}. Use conversations that it knows."
            ) from error


def _own_blanks(before: str, opened: str) -> int:
    """How many blanks stand before an answer that the opened turn of a prompt does not have: the answer's own."""
    left = before.removeprefix(opened) if before.startswith(opened) else ""
    return len(left) if left.isspace() else 0


def _written(text: str, place: int, content: str, after: str, *, last: bool) -> str | None:
    """How the content is written at this place: as it is, or trimmed; None if neither."""
    for form in (content, content.strip(), content.lstrip(), content.rstrip(), content.lstrip("\n")):
        if text.startswith(form + after, place) and (not last or place + len(form) + len(after) == len(text)):
            return form
    return None


def _with_exact_offsets(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The tokenizer without a post-processor, for some leave white space out of a token's offsets."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.post_processor = None  # type: ignore[assignment]
    return backend
