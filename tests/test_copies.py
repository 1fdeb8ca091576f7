"""Nothing that is to be copied stands in the text that the embeddings are trained or judged on."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from lep.calibrator import COPIES_FILE
from lep.corpus import PreparedCorpus
from lep.stages import Plan, make_copies, make_corpus, make_plan, seen_texts

SENTENCES = [
    f"On morning {i} the old teacher of our school walked slowly into the garden {i}. Then it rained on all {i} of "
    f"them until the evening came. Afterwards he wrote a long letter to a friend in town {i}."
    for i in range(120)
]


def planned(folder: Path, *overrides: str) -> Plan:
    with initialize_config_module("lep.conf", version_base="1.3"):
        return make_plan(compose("config", overrides=[f"artifacts_dir={folder}/artifacts", *overrides]))


def letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def answers(directory: Path) -> list[str]:
    lines = (directory / COPIES_FILE).read_text().splitlines()
    return [json.loads(line)["messages"][-1]["content"] for line in lines]


def told_sentences(text: str) -> Iterator[str]:
    """Those long enough to tell."""
    return (part for part in re.split(r"(?<=[.!?…])\s+", text) if len(letters(part)) >= 30)


def stands_in(sentence: str, texts: str) -> bool:
    """Whether a sentence begins in the texts where another has ended, or a line or an announcement."""
    return re.search(rf"(?:^|[.!?…:]\s){re.escape(sentence)}", texts, re.MULTILINE) is not None


@pytest.fixture(scope="module")
def micro_world(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planned(tmp_path_factory.mktemp("micro"), "calibration=[self,instruct,instruct_copy]")


def test_the_embedded_default_copies_what_was_neither_trained_nor_judged_on(micro_world: Plan):
    corpus = make_corpus(micro_world)
    copies = make_copies(micro_world, corpus)
    assert list(copies) == ["self", "instruct_copy"]  # instruct has none
    facts = copies["self"].facts
    assert facts == {"count": 1000, "apart from": "held-out texts and those of the embedding training"}
    found = answers(copies["self"].path)
    assert len(found) == 1000 and sum(bool(re.search("[а-я]", text)) for text in found) == 500
    texts = list(seen_texts(PreparedCorpus(corpus.path), trained=True))
    whole, seen = {letters(text) for text in texts}, "\n".join(texts)
    for text in found:
        assert not any(sentence in seen and stands_in(sentence, seen) for sentence in told_sentences(text)), text
        assert letters(text) not in whole


def test_the_world_has_copies_that_were_seen(micro_world: Plan):
    """The law above can fail: drawn freely, some of them are."""
    corpus = make_corpus(micro_world)
    seen = "\n".join(PreparedCorpus(corpus.path).train_texts())
    drawn = [task.turns[1].content for task in micro_world.calibrations["self"].copies.read()]
    known = [any(sentence in seen and stands_in(sentence, seen) for sentence in told_sentences(text)) for text in drawn]
    assert 0 < sum(known) < 100


def of_files(folder: Path, *overrides: str) -> Plan:
    (folder / "chats.jsonl").touch()
    return planned(
        folder,
        "corpus=text_files",
        f"corpus.paths=[{folder}/corpus.jsonl]",
        "~corpus.filters.languages.ru",
        "calibration=instruct_copy",
        "instructions=files",
        f"instructions.paths=[{folder}/chats.jsonl]",
        "instructions.copies.characters=[40,160]",
        *overrides,
    )


def write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_of_own_texts_those_of_the_corpus_are_left_out(tmp_path: Path):
    write(tmp_path / "corpus.jsonl", SENTENCES[:80])
    write(tmp_path / "texts.jsonl", [text.upper().replace(". ", ".\n") for text in SENTENCES[60:]])
    plan = of_files(tmp_path, f"instructions.texts=[{tmp_path}/texts.jsonl]", "instructions.copies.count=30")
    (copies,) = make_copies(plan, make_corpus(plan)).values()
    mine, theirs = " ".join(map(letters, SENTENCES[80:])), " ".join(map(letters, SENTENCES[:80]))
    found = [letters(text) for text in answers(copies.path)]
    assert len(found) == 30 and all(text in mine and text not in theirs for text in found)


def test_a_corpus_has_nothing_to_copy_of_its_own_and_says_so_before_any_training(tmp_path: Path):
    write(tmp_path / "corpus.jsonl", SENTENCES)
    plan = of_files(tmp_path, f"instructions.texts=[{tmp_path}/corpus.jsonl]", "instructions.copies.count=30")
    told = r"fit: none, but 30 are wanted; \d+ others hold a sentence of .* Give other texts .* in instructions\.texts"
    with pytest.raises(ValueError, match=told):
        make_copies(plan, make_corpus(plan))


def test_what_given_tables_were_trained_on_is_said_not_to_be_known(tmp_path: Path):
    write(tmp_path / "corpus.jsonl", SENTENCES)
    plan = of_files(tmp_path, f"instructions.texts=[{tmp_path}/corpus.jsonl]", "instructions.copies.count=30")
    given: DictConfig = plan.config
    given.adapted = "tables"
    corpus = make_corpus(plan)
    (copies,) = make_copies(plan, corpus).values()
    assert copies.facts["count"] == 30 and "were trained on is not known" in copies.facts["apart from"]
    judged = " ".join(map(letters, seen_texts(PreparedCorpus(corpus.path), trained=False)))
    assert judged and not any(letters(text) in judged for text in answers(copies.path))
