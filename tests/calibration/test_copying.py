import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lep.assets.microworld import MicroWorldText
from lep.calibration import Conversation, CopyTasks, copy_tasks, fingerprints
from lep.calibration.copying import (
    Fingerprints,
    MicroWorldCopies,
    choose_passages,
    is_known,
    passages,
    read_wordings,
    write_fingerprints,
)
from lep.corpus import CorpusFilters, Document, TextFiles

RUSSIAN = [
    f"Утром номер {i} старый учитель вышел в сад и долго смотрел на деревья. Потом пошёл дождь, и все {i} ушли домой. "
    f"Вечером он писал письмо другу из города {i}.\n\nНа другой день {i} всё повторилось."
    for i in range(60)
]
ENGLISH = [
    f"On morning {i} the old teacher went into the garden and looked at the trees. Then it rained, and all {i} left. "
    f"In the evening he wrote to a friend in town {i}.\n\nThe next day {i} it all happened again."
    for i in range(60)
]
DOCUMENTS = [Document(text, "") for pair in zip(RUSSIAN, ENGLISH, strict=True) for text in pair]


def make(count: int = 20, documents=DOCUMENTS, **settings) -> list[Conversation]:
    return copy_tasks(
        documents, count=count, **{"characters": (40, 160), "seed": 0, "filters": CorpusFilters(), **settings}
    )


def answer(task: Conversation) -> str:
    return task.turns[1].content


def test_a_task_asks_for_a_passage_of_the_text_and_the_answer_is_that_passage():
    tasks = make()
    assert len(tasks) == 20 and len({answer(task) for task in tasks}) == 20
    for task in tasks:
        request, passage = task.turns[0].content, answer(task)
        assert 40 <= len(passage) <= 160 and passage in request
        assert any(passage in document.text for document in DOCUMENTS)
        assert passage[0].isupper() and passage[-1] == "."  # whole sentences
        (language,) = {"ru" if "а" in passage else "en"}
        assert request.replace(passage, "{text}") in read_wordings()[language]
    assert Counter("а" in answer(task) for task in tasks) == {True: 10, False: 10}
    wordings = {task.turns[0].content.replace(answer(task), "") for task in tasks}
    assert len(wordings) > 8


def test_the_choice_depends_on_the_texts_and_the_seed_alone():
    tasks = make()
    assert tasks == make() == make(documents=DOCUMENTS[::-1])
    assert tasks == make(documents=DOCUMENTS + DOCUMENTS)  # what comes twice is taken once
    assert tasks != make(seed=1)
    some = {answer(task) for task in make(count=8)}
    assert some <= {answer(task) for task in tasks}


def test_what_was_seen_is_left_out_however_it_was_wrapped():
    seen = RUSSIAN[:30] + ENGLISH[:55]
    wrapped = [text.upper().replace(" ", "\n ") for text in seen]
    tasks = make(count=8, exclude=fingerprints(wrapped))
    assert tasks and not any(answer(task) in text for task in tasks for text in seen)
    told = (
        r"few passages of 40 to 160 characters that fit: .*'en'.*'ru', but 300 are wanted; \d+ others hold a sentence"
    )
    with pytest.raises(ValueError, match=told):
        make(count=300, exclude=fingerprints(wrapped))
    assert is_known("Коротко.", fingerprints(["коротко"])) and not is_known(
        "Коротко и ясно.", fingerprints(["Коротко"])
    )


@given(st.lists(st.text("аbc .!\n", max_size=90), max_size=6), st.text("аbc .!\n", max_size=90))
def test_fingerprints_on_disk_know_what_those_in_memory_know(texts: list[str], other: str):
    with tempfile.TemporaryDirectory() as folder:
        count = write_fingerprints(Path(folder) / "f.npy", ["a text", *texts])
        stored, known = Fingerprints(Path(folder) / "f.npy"), fingerprints(["a text", *texts])
        assert len(known) <= count
        for text in (*texts, other, other.upper()):
            assert is_known(text, stored) == is_known(text, known)
        assert all(print_ in stored for print_ in known) and not any(print_ + 1 in stored for print_ in known)


def test_a_world_in_which_everything_was_seen_has_nothing_to_copy():
    class Everything:
        def __contains__(self, print_: object) -> bool:
            return True

    with pytest.raises(ValueError, match=r"instructions.copies.count=3: of 300 texts .* all but 0 hold a sentence"):
        list(MicroWorldCopies(3).read(exclude=Everything()))


def test_passages_cover_a_text_in_order_without_overlap():
    text = "\n\n".join(RUSSIAN[:10])
    found = list(passages(text, (30, 200)))
    place = 0
    for passage in found:
        place = text.index(passage, place) + len(passage)
    assert sum(map(len, found)) > 0.9 * len(text)
    lengths = [len(passage) for passage in found]
    assert min(lengths) >= 30 and max(lengths) <= 200 and max(lengths) - min(lengths) > 60
    assert list(passages("x" * 500, (30, 200))) == []  # nowhere to cut


def test_languages_without_wordings_are_not_asked_for():
    tasks = make(count=6, wordings={"en": ["Again: {text}"]})
    assert all(task.turns[0].content == f"Again: {answer(task)}" for task in tasks)
    named = [Document(text, "tt") for text in RUSSIAN]
    with pytest.raises(ValueError, match="too few passages.*none, but 6 are wanted"):
        make(count=6, documents=named)


def test_a_language_that_falls_short_leaves_its_part_to_the_others():
    tasks = make(count=30, documents=[Document(RUSSIAN[0], ""), *(Document(text, "") for text in ENGLISH)])
    russian = sum("а" in answer(task) for task in tasks)
    assert len(tasks) == 30 and 1 <= russian <= 3


def test_settings_and_wordings_that_cannot_be_are_refused(tmp_path: Path):
    for wrong in ({"characters": (0, 5)}, {"characters": (9, 5)}, {"count": 0}):
        with pytest.raises(ValueError, match=f"copies.{next(iter(wrong))}="):
            make(**wrong)
    for text, problem in (
        ("en: [no place]", "once"),
        ("en: ['{text} {text}']", "once"),
        ("en: []", "list of requests"),
        ("[a]", "list of requests"),
        ("a: [", "not YAML"),
    ):
        (tmp_path / "w.yaml").write_text(text)
        with pytest.raises(ValueError, match=problem):
            read_wordings(tmp_path / "w.yaml")
    with pytest.raises(ValueError, match="is no file"):
        read_wordings(tmp_path / "none.yaml")


def test_languages_and_scripts_are_those_of_the_corpus(tmp_path: Path):
    ukrainian = [Document(text.replace("ы", "и").replace("э", "е"), "") for text in RUSSIAN]
    filters = CorpusFilters(languages={"uk": "Cyrillic"}, scripts=("Cyrillic",))
    wordings = {"uk": ["Повтори: {text}"]}
    tasks = make(documents=ukrainian, filters=filters, wordings=wordings)
    assert len(tasks) == 20 and all(task.turns[0].content == f"Повтори: {answer(task)}" for task in tasks)
    with pytest.raises(ValueError, match="too few.*60 texts are of 'ru', in which nothing is asked"):
        make(documents=ukrainian, wordings=wordings)
    (tmp_path / "a.txt").write_text("\n\n".join(document.text for document in ukrainian))
    (tmp_path / "w.yaml").write_text("uk: ['Повтори: {text}']")
    given = {"wordings": str(tmp_path / "w.yaml")}
    source = CopyTasks(TextFiles((f"{tmp_path}/*.txt",)), 5, (40, 160), filters=filters, **given)
    assert len(list(source.read())) == 5
    other = CopyTasks(TextFiles((f"{tmp_path}/*.txt",)), 5, (40, 160), **given)
    assert source.fingerprint() != other.fingerprint()


def test_as_a_source_of_any_corpus(tmp_path: Path):
    (tmp_path / "a.txt").write_text("\n\n".join(ENGLISH))
    (tmp_path / "w.yaml").write_text("en: ['Again: {text}']")
    source = CopyTasks(TextFiles((f"{tmp_path}/*.txt",)), 5, (40, 160))
    assert len(list(source.read())) == 5 and list(source.read()) == list(source.read())
    other = CopyTasks(TextFiles((f"{tmp_path}/*.txt",)), 5, (40, 160), wordings=str(tmp_path / "w.yaml"))
    assert source.fingerprint() != other.fingerprint()
    assert {answer(task) for task in source.read()} == {answer(task) for task in other.read()}
    taken = fingerprints(answer(task) for task in source.read())
    assert not taken & fingerprints(answer(task) for task in source.read(exclude=taken))
    assert len(list(CopyTasks(MicroWorldText(300), 20, (40, 200)).read())) == 20


def test_passages_are_chosen_by_what_is_accepted():
    chosen = choose_passages(
        DOCUMENTS,
        count=7,
        characters=(40, 160),
        seed=0,
        filters=CorpusFilters(),
        languages={"ru", "en"},
        accept=lambda text: "garden" in text or "сад" in text,
        turned_down="have no garden",
        remedy="",
    )
    assert {name: len(found) for name, found in chosen.items()} == {"en": 3, "ru": 4}
    assert all(found == sorted(found) for found in chosen.values())
    assert all("garden" in text or "сад" in text for found in chosen.values() for _, text in found)
