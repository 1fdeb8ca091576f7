"""Rules by which Darumeru's written answers are graded, as pure functions of texts.

In: an answer and what was expected. Out: points. Source of the rules: MERA (USE, MultiQ) and the Darumeru benchmark of
arXiv 2412.21140; where the paper and its code differ, the caller's protocol decides.
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import regex

from lep.benchmark.metrics import Rouge, overlap_f1, rouge, squad_words

# Of a variant of the Unified State Exam, over which points are counted.
USE_POINTS = 34
# A paragraph is copied when this much of it is.
COPIED = 0.99


def use_points(answer: str, expected: str, *, kind: str, task: str) -> int:
    """Points of an answer to the Unified State Exam. kind: `type` of the record, task: its `id_task`."""
    answer = answer.strip()
    if kind == "matching":
        ours, theirs = ([part.strip() for part in text.split(",")] for text in (answer, expected))
        return sum(a == b for a, b in zip(ours, theirs, strict=True)) if len(ours) == len(theirs) else 0
    if kind == "text":
        word = "".join(letter for letter in answer if letter.isalpha() or letter == "_").lower()
        return int(word in expected.split(","))
    ours, theirs = answer.split(","), expected.split(",")
    if task == "16":
        missing = max(0, len(theirs) - len(ours))
        return max(0, len(set(ours) & set(theirs)) - (len(ours) + missing) + len(theirs))
    return int(set(ours) == set(theirs))


def best_f1(answer: str, expected: Sequence[str]) -> float:
    """F1 over words, the best over the right answers (MultiQ)."""
    return max(overlap_f1(squad_words(answer), squad_words(right)) for right in expected)


def best_match(answer: str, expected: Sequence[str]) -> float:
    """1 if the answer is one of the right ones, compared by their words (MultiQ)."""
    return float(any(squad_words(answer) == squad_words(right) for right in expected))


def lemmas(text: str, *, unicode_punctuation: bool) -> list[str]:
    """First normal forms of a text's words, in lower case, punctuation taken for spaces."""
    marks = r"[\p{P}\p{S}]" if unicode_punctuation else f"[{regex.escape(string.punctuation)}]"
    normal_form = _normal_form()
    return [normal_form(word) for word in regex.sub(marks, " ", text.lower()).split()]


def rouge_of_lemmas(answer: str, expected: str, *, n: int, unicode_punctuation: bool) -> Rouge:
    """ROUGE-n of two Russian texts by their lemmas."""
    ours, theirs = (lemmas(text, unicode_punctuation=unicode_punctuation) for text in (answer, expected))
    return rouge(ours, theirs, n=n)


@cache
def _normal_form() -> Callable[[str], str]:
    try:
        import pymorphy3
    except ImportError as error:
        raise ValueError(
            "summaries are compared by lemmas, which needs pymorphy3: pip install 'lep[darumeru]'"
        ) from error
    analyzer = pymorphy3.MorphAnalyzer(lang="ru")
    return cache(lambda word: analyzer.parse(word)[0].normal_form)


def copied(
    answer: str,
    source: str,
    *,
    over: Literal["copy", "longer"] = "longer",
    matching: Literal["difflib", "exact"] = "exact",
) -> float:
    """1 if the answer is the source but for a hundredth of its characters, else 0.

    Of the longest common subsequence in characters. over, matching: see `Protocol`.
    """
    answer, source = answer.strip(), source.strip()
    length = len(answer) if over == "copy" else max(len(answer), len(source))
    if not length:
        return 0.0
    return float(common_subsequence(answer, source, matching=matching) / length >= COPIED)


def common_subsequence(a: str, b: str, *, matching: Literal["difflib", "exact"] = "exact") -> int:
    """Characters of the longest common subsequence; "difflib" gives the sum of its matching blocks, a lower bound."""
    if matching == "difflib":
        return sum(block.size for block in difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks())
    try:
        from rapidfuzz.distance import LCSseq
    except ImportError as error:
        raise ValueError("copies are compared with rapidfuzz: pip install 'lep[darumeru]'") from error
    return int(LCSseq.similarity(a, b))
