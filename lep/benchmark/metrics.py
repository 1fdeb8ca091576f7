"""Measures of answers and their uncertainty, as pure functions of texts, counts and numbers.

In: answers, token counts or per-item values. Out: plain numbers. Nothing here knows of models or files.
"""

import string
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import regex


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
class Estimate:
    """A figure of n units, and what it is of each bootstrap sample of them (float64 [R]).

    Sample i of a name draws the same units whoever answered them, so figures of two models can be compared sample by
    sample: the interval then knows that both answered the same items.
    """

    value: float
    replicates: np.ndarray
    n: int

    @property
    def stderr(self) -> float:
        """nan for a single unit."""
        return float(np.std(self.replicates, ddof=1)) if self.n > 1 else float("nan")


def bootstrap(
    statistic: Callable[[np.ndarray], float], strata: Sequence[Hashable], *, name: str, resamples: int = 2000
) -> Estimate:
    """A statistic with its bootstrap replicates, by drawing units anew within each stratum.

    statistic: of the units at the given places (int64 [n], with repeats). strata: of each unit. name: decides what is
    drawn; figures that are to be compared share it, figures that are to be averaged do not.
    """
    kinds = list(dict.fromkeys(strata))
    places = [np.flatnonzero([stratum == kind for stratum in strata]) for kind in kinds]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = (np.concatenate([of[rng.integers(0, len(of), len(of))] for of in places]) for _ in range(resamples))
    replicates = np.fromiter(map(statistic, drawn), dtype=np.float64, count=resamples)
    return Estimate(float(statistic(np.arange(len(strata)))), replicates, len(strata))


def mean_estimate(values: Sequence[float] | np.ndarray, *, name: str) -> Estimate:
    """The mean of the values of units."""
    array = np.asarray(values, dtype=np.float64)
    return bootstrap(lambda places: array[places].mean(), [""] * len(array), name=name)


def ratio_estimate(numerators: Sequence[float] | np.ndarray, denominators: Sequence[float], *, name: str) -> Estimate:
    """The sum of the numerators of units over the sum of their denominators."""
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    return bootstrap(lambda places: top[places].sum() / bottom[places].sum(), [""] * len(top), name=name)


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Unweighted mean of figures of independent units; n is their number."""
    replicates = np.mean([estimate.replicates for estimate in estimates], axis=0)
    return Estimate(float(np.mean([estimate.value for estimate in estimates])), replicates, len(estimates))


@dataclass(frozen=True)
class Difference:
    """a - b over the same n units, with a bootstrap interval."""

    difference: float
    low: float
    high: float
    n: int

    @property
    def beyond_noise(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_difference(a: Estimate, b: Estimate, *, confidence: float = 0.95) -> Difference:
    """How much larger `a` is than `b`; both of one name and the same units."""
    low, high = np.quantile(a.replicates - b.replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(a.value - b.value, float(low), float(high), a.n)


@dataclass(frozen=True)
class Recovered:
    """Which share of a gap a change closed, over the same n units, with a bootstrap interval."""

    share: float
    low: float
    high: float
    n: int


def recovered_share(
    before: Estimate, after: Estimate, whole: Estimate, *, confidence: float = 0.95
) -> Recovered | None:
    """(after - before) / (whole - before), all of one name and the same units; None where no gap is beyond noise."""
    edges = [(1 - confidence) / 2, (1 + confidence) / 2]
    gained, gaps = after.replicates - before.replicates, whole.replicates - before.replicates
    if np.quantile(gaps, edges[0]) <= 0:
        return None
    low, high = np.quantile(gained[gaps > 0] / gaps[gaps > 0], edges)
    share = (after.value - before.value) / (whole.value - before.value)
    return Recovered(float(share), float(low), float(high), before.n)


def stratified_mean(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Mean of the means of groups of values, each group weighing the same, with its standard error.

    Values are taken to vary alike in groups of one, which cannot tell, as in the others; where all groups are of one,
    the error is that of a plain mean.
    """
    if all(len(group) == 1 for group in values):
        return mean_and_stderr([value for group in values for value in group])
    sizes, means = np.array([len(group) for group in values]), [np.mean(group) for group in values]
    within = np.array([np.var(group, ddof=1) if len(group) > 1 else 0.0 for group in values])
    pooled = (within * (sizes - 1)).sum() / (sizes - 1).sum()
    squares = np.where(sizes > 1, within, pooled) / sizes
    return float(np.mean(means)), float(np.sqrt(squares.sum()) / len(means))


def accuracy(expected: Sequence[Hashable], found: Sequence[Hashable]) -> float:
    """Share of equal pairs."""
    return sum(a == b for a, b in zip(expected, found, strict=True)) / len(expected)


def f1_macro(expected: Sequence[Hashable], found: Sequence[Hashable]) -> float:
    """Unweighted mean of F1 over the labels that occur in either."""
    pairs = Counter(zip(expected, found, strict=True))
    labels = {label for pair in pairs for label in pair}
    right = {label: pairs[label, label] for label in labels}
    wrong = Counter(label for pair in pairs.elements() if pair[0] != pair[1] for label in pair)
    return sum(2 * right[label] / (2 * right[label] + wrong[label]) for label in labels) / len(labels)


def matthews(expected: Sequence[Hashable], found: Sequence[Hashable]) -> float:
    """Matthews correlation of two labellings with any number of labels; 0 where either holds one label only."""
    n, pairs = len(expected), Counter(zip(expected, found, strict=True))
    truth, guess = Counter(expected), Counter(found)
    right = sum(count for (a, b), count in pairs.items() if a == b)
    covariance = right * n - sum(truth[label] * guess[label] for label in truth)
    spread = (n * n - sum(c * c for c in truth.values())) * (n * n - sum(c * c for c in guess.values()))
    return covariance / spread**0.5 if spread else 0.0


def overlap_f1(found: Sequence[Hashable], expected: Sequence[Hashable]) -> float:
    """F1 of two multisets, say the words of an answer and of the right one; 0 where they share nothing."""
    shared = (Counter(found) & Counter(expected)).total()
    return 2 * shared / (len(found) + len(expected)) if shared else 0.0


def squad_words(text: str) -> list[str]:
    """Words as SQuAD compares them: lower case, without ASCII punctuation and English articles."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return [word for word in bare.split() if word not in ("a", "an", "the")]


@dataclass(frozen=True)
class Rouge:
    """Overlap of n-grams of a text with those of a reference."""

    precision: float
    recall: float
    f1: float


def rouge(found: Sequence[str], reference: Sequence[str], *, n: int) -> Rouge:
    """ROUGE-n of two texts given as words; zeros where either has no n-gram."""
    ours, theirs = (Counter(zip(*(words[k:] for k in range(n)), strict=False)) for words in (found, reference))
    shared = (ours & theirs).total()
    if not shared:
        return Rouge(0.0, 0.0, 0.0)
    return Rouge(shared / ours.total(), shared / theirs.total(), 2 * shared / (ours.total() + theirs.total()))


def r_precision(scores: Sequence[float] | np.ndarray, relevant: Sequence[int]) -> float:
    """Share of the K relevant places among the K highest scores; ties go to the earlier place, 0 where K is 0."""
    wanted = set(relevant)
    best = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")[: len(wanted)]
    return len(wanted & set(best.tolist())) / len(wanted) if wanted else 0.0


def script_share(text: str, script: str) -> float | None:
    """Share of the text's letters that are of a Unicode script ("Cyrillic", "Latin"); None where it has no letter."""
    letters = num_letters(text)
    return num_letters(text, script) / letters if letters else None


def num_letters(text: str, script: str | None = None) -> int:
    """How many letters there are, of a Unicode script where one is named."""
    return len(regex.findall(r"\p{L}" if script is None else rf"(?=\p{{L}})\p{{{script}}}", text))
