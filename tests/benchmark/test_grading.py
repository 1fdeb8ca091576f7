"""Darumeru's measures on worked values; metrics against the definitions, or a library where one is there."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lep.benchmark.darumeru.grading import (
    best_f1,
    best_match,
    common_subsequence,
    copied,
    lemmas,
    rouge_of_lemmas,
    use_points,
)
from lep.benchmark.metrics import (
    accuracy,
    f1_macro,
    matthews,
    r_precision,
    rouge,
    script_share,
    stratified_mean,
)


@pytest.mark.parametrize(
    ("answer", "points"),
    [("1,3", 2), ("1", 1), ("1,2", 1), ("1,3,4", 1), ("", 0), ("2", 0), ("1,2,3,4", 0), ("3,1\n", 2)],
)
def test_task_16_of_the_exam_takes_points_off_for_what_is_too_much(answer: str, points: int) -> None:
    assert use_points(answer, "1,3", kind="multiple_choice_independent_options", task="16") == points


@pytest.mark.parametrize(("answer", "points"), [("13", 0), ("3,1", 1), ("1,3.", 0), (" 1,3 ", 1), ("1", 0)])
def test_other_choices_of_the_exam_are_right_as_sets(answer: str, points: int) -> None:
    assert use_points(answer, "1,3", kind="multiple_choice_based_on_text", task="2") == points


def test_matching_counts_places_and_words_are_compared_as_letters() -> None:
    assert use_points("2, 1,3", "2,1,4", kind="matching", task="8_1") == 2
    assert use_points("2,1", "2,1,4", kind="matching", task="8_1") == 0
    assert use_points("«Однако».", "однако,впрочем", kind="text", task="1") == 1
    assert use_points("впрочем нет", "однако,впрочем", kind="text", task="1") == 0


def test_questions_over_two_texts_are_compared_by_words() -> None:
    assert best_f1("в городе Рязани", ["Рязани"]) == pytest.approx(0.5)
    assert best_f1("The Ryazan!", ["ryazan"]) == 1 == best_match("The Ryazan!", ["Moscow", "ryazan"])
    assert best_f1("", ["Рязани"]) == 0 == best_match("в Рязани", ["Рязани"])


def test_rouge_of_russian_is_by_lemmas() -> None:
    found = rouge_of_lemmas("Кошки пили молоко", "кошка пьёт молоко.", n=1, unicode_punctuation=False)
    assert found.f1 == 1
    assert rouge_of_lemmas("«Кошка» пьёт", "кошка пьёт", n=1, unicode_punctuation=True).f1 == 1
    assert rouge_of_lemmas("«Кошка» пьёт", "кошка пьёт", n=1, unicode_punctuation=False).f1 == 0.5
    assert lemmas("Мама пьёт чай, да.", unicode_punctuation=False) == ["мама", "пить", "чай", "да"]
    two = rouge("a b c d".split(), "a b d".split(), n=2)
    assert (two.precision, two.recall) == (pytest.approx(1 / 3), 0.5) and two.f1 == pytest.approx(0.4)
    assert rouge(["a"], ["a"], n=2).f1 == 0


def test_rouge_agrees_with_rouge_score() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer")

    class Words:
        def tokenize(self, text: str) -> list[str]:
            return text.split()

    rng = np.random.default_rng(0)
    theirs = scorer.RougeScorer(["rouge1", "rouge2"], tokenizer=Words())
    for _ in range(50):
        a, b = (" ".join(rng.choice(list("абвгд"), rng.integers(1, 12))) for _ in range(2))
        for n in (1, 2):
            found, expected = rouge(a.split(), b.split(), n=n), theirs.score(b, a)[f"rouge{n}"]
            assert (found.precision, found.recall, found.f1) == pytest.approx(tuple(expected))


def test_a_copy_cut_in_half_is_perfect_only_by_the_papers_rule() -> None:
    source = "Мария купила красную книгу вечером на рынке."
    half, and_more = source[: len(source) // 2], source + " А потом пошла домой."
    assert copied(half, source, over="copy", matching="difflib") == 1
    assert copied(half, source) == 0
    assert copied(and_more, source) == 0
    assert copied(f" {source}\n", source) == 1
    assert copied("", source) == copied("", source, over="copy") == 0


@given(st.text("абв", max_size=12), st.text("абв", max_size=12))
def test_matching_blocks_are_a_lower_bound_of_the_longest_common_subsequence(a: str, b: str) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert common_subsequence(a, b) == table[-1][-1] >= common_subsequence(a, b, matching="difflib")


def test_r_precision() -> None:
    assert r_precision([0.1, 0.9, 0.5, 0.4], [1, 3]) == 0.5
    assert r_precision([0.1, 0.9, 0.5, 0.4], [1, 2]) == 1
    assert r_precision([0.3, 0.2], []) == 0
    assert r_precision([0.5, 0.5], [1]) == 0, "ties go to the earlier place"


labels = st.lists(st.tuples(st.sampled_from("012"), st.sampled_from("012")), min_size=1, max_size=40)


@given(labels)
def test_label_metrics_follow_their_definitions(pairs: list[tuple[str, str]]) -> None:
    gold, found = (list(part) for part in zip(*pairs, strict=True))
    f1s = []
    for label in {*gold, *found}:
        hits = sum(g == label == f for g, f in pairs)
        f1s.append(2 * hits / (sum(g == label for g in gold) + sum(f == label for f in found)))
    assert f1_macro(gold, found) == pytest.approx(np.mean(f1s))
    a, b = (np.array([[x == label for label in "012"] for x in part], dtype=float) for part in (gold, found))
    covariance = [((x - x.mean(0)) * (y - y.mean(0))).sum() for x, y in ((a, b), (a, a), (b, b))]
    expected = covariance[0] / math.sqrt(covariance[1] * covariance[2]) if covariance[1] * covariance[2] > 1e-9 else 0
    assert matthews(gold, found) == pytest.approx(expected, abs=1e-9)


def test_the_majority_class_of_rucola() -> None:
    """Naming every sentence acceptable is right as often as they are, and worth no correlation."""
    gold = ["1"] * 6753 + ["0"] * 3247
    assert accuracy(gold, ["1"] * 10_000) == 0.6753
    assert matthews(gold, ["1"] * 10_000) == 0


def test_groups_weigh_the_same_whatever_their_size() -> None:
    value, stderr = stratified_mean([[1.0] * 9 + [0.0], [0.0, 1.0]])
    assert value == pytest.approx(0.7)
    assert stderr == pytest.approx(math.sqrt(0.1**2 + 0.5**2) / 2)


def test_letters_of_a_script() -> None:
    assert script_share("Привет, world 12", "Cyrillic") == pytest.approx(6 / 11)
    assert script_share("Привет, world 12", "Latin") == pytest.approx(5 / 11)
    assert script_share("12 …", "Latin") is None
