"""Measures of answers and their uncertainty, as pure functions of texts, counts and numbers.

In: answers, token counts or per-item values. Out: plain numbers. Nothing here knows of models or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def normalise(text: str) -> str:
    """The text without outer whitespace and with each inner run of whitespace as one space."""
    return " ".join(text.split())


def exact_match(answer: str, expected: str) -> bool:
    """Whether two answers are the same text but for whitespace. Case and punctuation count."""
    return normalise(answer) == normalise(expected)


def length_ratio(produced: int, expected: int) -> float:
    """How near two token counts are, in 0..1: min(p/s, s/p), and 0 when either is empty.

    With a copied text it shows whether the model writes its vocabulary's own segmentation (DaruCopy's `len`).
    """
    return min(produced, expected) / max(produced, expected) if produced and expected else 0.0


def mean_and_stderr(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean of the values and the standard error of that mean (n - 1 in the variance; nan for a single value)."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("mean_and_stderr needs at least one value, got none.")
    stderr = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else np.nan
    return float(array.mean()), float(stderr)


def ratio_and_stderr(numerators: Sequence[float] | np.ndarray, denominators: Sequence[float]) -> tuple[float, float]:
    """Sum of the numerators over the sum of the denominators, with its standard error over the pairs.

    The linearised ratio estimator: units of unequal size (documents) weigh as much as they hold. nan for one pair.
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if not bottom.sum() > 0:
        raise ValueError(f"the denominators sum to {bottom.sum()}; they must sum to more than zero.")
    ratio, n = top.sum() / bottom.sum(), len(top)
    if n == 1:
        return float(ratio), float("nan")
    squares = np.square(top - ratio * bottom).sum()
    return float(ratio), float(np.sqrt(n / (n - 1) * squares) / bottom.sum())


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over the same items, with a bootstrap interval."""

    difference: float
    low: float
    high: float
    n: int

    @property
    def beyond_noise(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Difference:
    """How much better `a` is than `b` on the items both answered, by bootstrap over items.

    a, b: [n] values of the same items in the same order. Only the items on which the two differ move the mean, so
    they alone are drawn: how often each difference occurs among n draws is one multinomial, whatever n is.
    """
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if not len(differences):
        raise ValueError("paired_difference needs at least one pair of values, got none.")
    values, counts = np.unique(differences, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(differences), counts / len(differences), size=resamples)
    low, high = np.quantile(draws @ values / len(differences), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(float(differences.mean()), float(low), float(high), len(differences))
