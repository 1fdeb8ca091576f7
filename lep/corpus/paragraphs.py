"""Where a text may be cut: paragraphs first, and inside one that is too long lines, then sentences, then words."""

import re
from collections.abc import Callable, Iterable

import numpy as np

_EMPTY_LINE = re.compile(r"\n(?:[^\S\n]*\n)+")
_LINE = re.compile(r"\n+")
_SENTENCE = re.compile(r"[.!?…][\"»”’)\]]*\s+")
_WORD = re.compile(r"\s+")


def paragraph_levels(text: str) -> list[Callable[[], np.ndarray]]:
    """Starts in characters by level, coarse to fine, each computed when called.

    Paragraphs are what empty lines part; in a text without empty lines every line is one.
    """
    coarse = _EMPTY_LINE if _EMPTY_LINE.search(text) else _LINE
    return [lambda level=level: _starts_after(level, text) for level in (coarse, _LINE, _SENTENCE, _WORD)]


def _starts_after(pattern: re.Pattern[str], text: str) -> np.ndarray:
    ends = np.fromiter((match.end() for match in pattern.finditer(text)), dtype=np.int64)
    return ends[ends < len(text)]


def admissible_starts(levels: Iterable[Callable[[], np.ndarray]], length: int, *, limit: int) -> np.ndarray:
    """Sorted starts, the first 0, no gap above `limit`: all of the first level, finer ones only in gaps too long.

    Where even the finest level leaves a gap above `limit`, it is cut every `limit`. Units are the caller's (characters
    or tokens). int64.
    """
    starts = np.zeros(1, dtype=np.int64)
    for number, level in enumerate(levels):
        too_long = np.diff(starts, append=length) > limit
        if number and not too_long.any():
            return starts
        finer = level()
        inside = np.searchsorted(starts, finer, side="right") - 1
        starts = np.union1d(starts, finer if number == 0 else finer[too_long[inside]])
    gaps = np.diff(starts, append=length)
    hard = [np.arange(starts[i] + limit, starts[i] + gaps[i], limit) for i in np.flatnonzero(gaps > limit)]
    return np.union1d(starts, np.concatenate(hard)) if hard else starts


def split_long_text(text: str, *, limit: int) -> list[str]:
    """Parts of at most `limit` characters that together are the text, cut at paragraphs where there are any."""
    if len(text) <= limit:
        return [text]
    starts = admissible_starts(paragraph_levels(text), len(text), limit=limit)
    cuts = [0]
    while cuts[-1] + limit < len(text):
        cuts.append(int(starts[np.searchsorted(starts, cuts[-1] + limit, side="right") - 1]))
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
