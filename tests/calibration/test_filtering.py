"""Which answers are kept, and that every one is accounted for."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lep.calibration.conversations import Conversation, Turn
from lep.calibration.filtering import (
    Answered,
    AnswerFilters,
    keep,
    keep_rated,
    main_script,
    repeated_share,
    script_share,
)

BOTH = ("Cyrillic", "Latin")


def answered(answer: str, *, ended: str = "end token", asked: str = "Где живёт Ольга?") -> Answered:
    return Answered(Conversation((Turn("user", asked),)), answer, ended)


@pytest.mark.parametrize(
    ("filters", "found", "reason"),
    [
        ({}, answered("Ольга живёт в Туле."), None),
        ({}, answered("Ольга живёт", ended="budget"), "did not stop"),
        ({}, answered("  \n"), "too short"),
        ({"min_characters": 5}, answered("Тула"), "too short"),
        ({"max_characters": 5}, answered("Ольга живёт"), "too long"),
        ({"max_characters": 11}, answered(" Ольга живёт "), None),
        ({}, answered("она живёт там где " * 5), "repeats itself"),
        ({}, answered("а" * 60), "repeats itself"),
        ({"max_repeated_share": None}, answered("а" * 60), None),
        ({"scripts": BOTH}, answered("Ольга живёт в 東京都新宿区"), "other script"),
        ({"scripts": BOTH}, answered("12 + 30 = 42"), None),
        ({"scripts": BOTH, "as_asked": True}, answered("Olga lives in Tula."), "not in the script it was asked in"),
        ({"scripts": BOTH, "as_asked": True}, answered("Olga lives in Tula.", asked="Where is Olga?"), None),
        ({"scripts": BOTH, "as_asked": True}, answered("42"), None),
    ],
)
def test_the_first_reason_that_holds(filters: dict, found: Answered, reason: str | None):
    assert AnswerFilters(**filters).reason(found) == reason


texts = st.text("аб aб\n東", max_size=40)


@given(st.lists(st.tuples(texts, st.sampled_from(["end token", "budget"]), st.integers(1, 5)), max_size=12))
def test_counts_by_reason_add_up_to_what_was_asked(drawn: list):
    answers = [answered(text, ended=ended) for text, ended, _ in drawn]
    filters = AnswerFilters(min_characters=2, max_characters=20, scripts=BOTH)
    passed, reasons = keep(answers, filters)
    assert sum(reasons.values()) == len(answers) and reasons["kept"] == len(passed)
    assert passed == [one for one in answers if not filters.reason(one)]
    ratings = [rating for one, (*_, rating) in zip(answers, drawn, strict=True) if not filters.reason(one)]
    kept, below = keep_rated(passed, ratings, threshold=4)
    counts = reasons | below
    assert sum(counts.values()) == len(answers) and counts["kept"] == len(kept)
    assert kept == [one for one, rating in zip(passed, ratings, strict=True) if rating >= 4]
    assert all(one.conversation.turns[-1].content == one.answer.strip() for one in kept)


def test_ratings_below_the_threshold_are_a_reason_of_their_own():
    kept, counts = keep_rated([answered("да"), answered("нет")], [3, 4], threshold=4)
    assert [one.answer for one in kept] == ["нет"] and counts == {"kept": 1, "rated below 4": 1}


def test_repeated_share_counts_phrases_that_stood_before():
    assert repeated_share("a b c d e", 2) == 0
    assert repeated_share("a b a b a b", 2) == pytest.approx(1 - 2 / 5)
    assert repeated_share("", 4) == 0


def test_scripts_are_told_by_letters_alone():
    assert script_share("Olga, 25 лет", BOTH) == 1
    assert script_share("東 a", BOTH) == 0.5
    assert main_script("Olga и Анна", BOTH) == "Cyrillic" and main_script("1 + 1", BOTH) is None


@pytest.mark.parametrize("changes", [{"ngram": 0}, {"as_asked": True}])
def test_impossible_filters_are_refused(changes: dict):
    with pytest.raises(ValueError, match="filters"):
        AnswerFilters(**changes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Вчера мы долго говорили о том, как правильно заваривать чай.", None),
        ("Марии нравится старый шкаф.", None),
        ("The capital of France is Paris, which lies on the river Seine.", None),
        ("Учора ми довго розмовляли про те, як правильно заварювати чай.", "other language"),
        ("Вчера дълго говорихме как правилно се прави чай.", "other language"),
        ("Gestern haben wir lange darüber gesprochen, wie man Tee kocht.", "other language"),
        ("Тула", None),  # which the detector would rather give to Mongolian
        ("Irina lives in Ryazan.", None),
        ("12 + 30 = 42", None),
    ],
)
def test_what_is_surely_in_another_language_is_dropped_and_what_is_unsure_is_not(text: str, reason: str | None):
    pytest.importorskip("lingua")
    assert AnswerFilters(languages=["ru", "en"]).reason(answered(text)) == reason
    assert AnswerFilters().reason(answered(text)) is None


def test_languages_are_known_by_their_codes_and_need_their_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lingua", None)
    AnswerFilters()
    with pytest.raises(ValueError, match=r"answers\.filters\.languages needs lingua.*lep\[languages\]"):
        AnswerFilters(languages=["ru"])
    monkeypatch.undo()
    pytest.importorskip("lingua")
    with pytest.raises(ValueError, match=r"answers\.filters\.languages=russian is no ISO 639-1 code"):
        AnswerFilters(languages=["en", "russian"])
