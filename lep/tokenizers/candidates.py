"""Candidate pieces for a Unigram vocabulary: the substrings of counted words, weighed by the words' counts.

In: distinct words with counts. Out: (substring, weight) pairs, heaviest first. All words lie in one array; substrings
of length n + 1 are grown from the frequent ones of length n, so that memory follows the number of letters.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

MAX_PIECE = 16  # characters; SentencePiece's default
MIN_COUNT = 2


@dataclass(frozen=True)
class _Letters:
    """The words laid end to end: letter codes, how many letters of its word each still has before it, its count."""

    codes: np.ndarray
    left: np.ndarray
    counts: np.ndarray


def candidates(words: Mapping[str, int], *, number: int) -> list[tuple[str, int]]:
    """The `number` heaviest substrings of 2 to `MAX_PIECE` letters; weight = count x length, as SentencePiece has it.

    A substring that is always followed by the same letter is left out: the longer one says the same.
    """
    letters = _lay_out(words)
    found = list(_grow(letters))
    if not found:
        return []
    starts, lengths, counts = (np.concatenate(part) for part in zip(*found, strict=True))
    weights = counts * lengths
    # Ties go to the earlier substring, so that one corpus gives one vocabulary.
    best = np.lexsort((starts, lengths, -weights))[:number]
    text = "".join(words)
    return [(text[s : s + n], int(w)) for s, n, w in zip(starts[best], lengths[best], weights[best], strict=True)]


def _lay_out(words: Mapping[str, int]) -> _Letters:
    sizes = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
    codes = np.frombuffer("".join(words).encode("utf-32-le"), dtype=np.uint32).astype(np.int64)
    ends = np.repeat(np.cumsum(sizes), sizes)
    counts = np.repeat(np.fromiter(words.values(), dtype=np.int64, count=len(words)), sizes)
    return _Letters(codes, ends - np.arange(len(codes)), counts)


def _grow(letters: _Letters) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(first start, length, count) of the frequent right-maximal substrings, one length at a time from 2."""
    alive = np.arange(len(letters.codes))
    group = np.unique(letters.codes, return_inverse=True)[1]  # substrings of the current length, by their start
    num_groups = int(group.max()) + 1 if len(group) else 0
    starts = totals = np.zeros(0, dtype=np.int64)
    alphabet = int(letters.codes.max()) + 1 if len(letters.codes) else 1
    for length in range(2, MAX_PIECE + 2):
        longer = letters.left[alive] >= length
        alive, group = alive[longer], group[longer]
        keys = group * alphabet + letters.codes[alive + length - 1]
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        counts = np.bincount(inverse, letters.counts[alive], minlength=len(first)).astype(np.int64)
        if length > 2:
            best_child = np.zeros(num_groups, dtype=np.int64)
            np.maximum.at(best_child, group[first], counts)
            kept = best_child < totals
            yield starts[kept], np.full(int(kept.sum()), length - 1), totals[kept]
        frequent = counts >= MIN_COUNT
        starts, totals = alive[first][frequent], counts[frequent]
        renumbered = np.cumsum(frequent) - 1
        still = frequent[inverse]
        alive, group, num_groups = alive[still], renumbered[inverse[still]], int(frequent.sum())
