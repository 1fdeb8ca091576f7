"""Which of a model's own answers are worth learning from: plain tests of a text, and a count of what each one dropped.

In: questions with their answers and how these ended, ratings where a judge gave them. Out: those that are kept, in
order, and the counts by reason, which add up.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from lep.benchmark.metrics import num_letters
from lep.calibration.conversations import Conversation
from lep.calibration.languages import known_languages, sure_language

KEPT = "kept"


@dataclass(frozen=True)
class Answered:
    """A question (the turns before the answer), what the model wrote, and what ended it ("end token" if itself)."""

    question: Conversation
    answer: str
    ended: str

    @property
    def conversation(self) -> Conversation:
        """The question with its answer, to learn from."""
        return self.question.answered(self.answer.strip())


@dataclass(frozen=True)
class AnswerFilters:
    """What an answer must be. Null or empty switches a test off.

    min_characters, max_characters: its length. ngram, max_repeated_share: of its n-grams of words (of letters where it
    has fewer words), the share that stood in it before. scripts, min_script_share: Unicode scripts that so much of its
    letters must be of. as_asked: the script of most of its letters is that of the question's. languages: those it may
    be in, by ISO 639-1 code; only what is surely in another is dropped (`sure_language`).
    """

    min_characters: int = 1
    max_characters: int | None = None
    ngram: int = 4
    max_repeated_share: float | None = 0.5
    scripts: Sequence[str] = ()
    min_script_share: float = 0.95
    as_asked: bool = False
    languages: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.ngram < 1:
            raise ValueError(f"answers.filters.ngram={self.ngram} is below 1. Give the words of a phrase, such as 4")
        for name in ("max_repeated_share", "min_script_share"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"answers.filters.{name}={share} is no share. Give 0 to 1")
        for script in self.scripts:
            try:
                num_letters("", script)
            except regex.error:
                raise ValueError(
                    f"answers.filters.scripts={script} is no Unicode script. Give such as Cyrillic"
                ) from None
        if self.as_asked and not self.scripts:
            raise ValueError(
                "answers.filters.as_asked needs answers.filters.scripts to choose from, such as [Cyrillic, Latin]"
            )
        unknown = sorted({*self.languages} - known_languages()) if self.languages else []
        if unknown:
            raise ValueError(
                f"answers.filters.languages={unknown[0]} is no ISO 639-1 code of a language. Give such as ru"
            )

    def reason(self, found: Answered) -> str | None:
        """Why an answer is dropped, the first reason that holds; None if it is kept."""
        text = found.answer.strip()
        if found.ended != "end token":
            return "did not stop"
        if len(text) < max(1, self.min_characters):
            return "too short"
        if self.max_characters is not None and len(text) > self.max_characters:
            return "too long"
        if self.max_repeated_share is not None and repeated_share(text, self.ngram) > self.max_repeated_share:
            return "repeats itself"
        if self.scripts and script_share(text, self.scripts) < self.min_script_share:
            return "other script"
        if self.as_asked:
            asked = main_script(" ".join(turn.content for turn in found.question.turns), self.scripts)
            if asked and main_script(text, self.scripts) not in (asked, None):
                return "not in the script it was asked in"
        if self.languages and sure_language(text) not in (*self.languages, None):
            return "other language"
        return None


def keep(answers: Sequence[Answered], filters: AnswerFilters) -> tuple[list[Answered], dict[str, int]]:
    """The answers that pass every test, and counts by reason, which add up: "kept" is among them."""
    return _sorted_out(answers, [filters.reason(found) for found in answers])


def keep_rated(
    answers: Sequence[Answered], ratings: Sequence[int], *, threshold: int
) -> tuple[list[Answered], dict[str, int]]:
    """The answers that are rated at least as high as the threshold, and the counts."""
    return _sorted_out(answers, [f"rated below {threshold}" if rating < threshold else None for rating in ratings])


def _sorted_out(answers: Sequence[Answered], reasons: Sequence[str | None]) -> tuple[list[Answered], dict[str, int]]:
    kept = [found for found, reason in zip(answers, reasons, strict=True) if reason is None]
    return kept, {KEPT: len(kept), **Counter(reason for reason in reasons if reason is not None)}


def repeated_share(text: str, n: int) -> float:
    """Share of the text's n-grams that stood in it before: of words, or of characters where there are too few words."""
    words = text.split()
    units: Sequence[str] = words if len(words) > n else text
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    return 1 - len({*grams}) / len(grams) if grams else 0.0


def script_share(text: str, scripts: Sequence[str]) -> float:
    """Share of the text's letters that are of any of the scripts; 1 where it has no letter."""
    total = num_letters(text)
    return sum(num_letters(text, script) for script in scripts) / total if total else 1.0


def main_script(text: str, scripts: Sequence[str]) -> str | None:
    """Of the scripts, the one that most letters of the text are of; None where none is."""
    counts = {script: num_letters(text, script) for script in scripts}
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else None
