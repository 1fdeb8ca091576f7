import json
import random
import re
from pathlib import Path

import pytest
import yaml

from lep.calibration import ChatFiles, MessageFields
from lep.calibration import from_texts as builder

TEXT = (
    "The old teacher Anna walked slowly through the garden. She carried a basket of apples for the school. "
    "Nobody in the village had seen her there before. Would she stay until evening?"
)
PASSAGE = builder.Passage(TEXT)
WORDS = yaml.safe_load((Path(builder.__file__).parent / "from_texts.yaml").read_text(encoding="utf-8"))
ENGLISH = {**WORDS["en"], "strange": ["winter", "bridge"]}


def asked(kind: str, times: int = 40) -> list[tuple[dict, str]]:
    return [made for seed in range(times) if (made := builder.TASKS[kind](PASSAGE, random.Random(seed), ENGLISH))]


def test_answers_are_right_by_a_second_way_of_finding_them():
    sentences = [part if part.endswith("?") else f"{part}." for part in re.split(r"\.\s", TEXT)]
    words = re.findall(r"\w+", TEXT)
    assert asked("first sentence")[0] == ({}, sentences[0]) and asked("last sentence")[0] == ({}, sentences[-1])
    assert asked("number of sentences")[0] == ({}, "4")
    ordinals = {slots["number"]: answer for slots, answer in asked("numbered sentence")}
    assert ordinals == dict(zip(["first", "second", "third", "fourth"], sentences, strict=True))
    for slots, answer in asked("missing word"):
        assert slots["gap"].replace(builder.GAP, answer) in sentences
    for slots, answer in asked("next word"):
        assert words[words.index(slots["word"]) + 1] == answer and f"{slots['word']} {answer}" in TEXT
    for slots, answer in asked("word before"):
        assert words[words.index(slots["word"]) - 1] == answer and f"{answer} {slots['word']}" in TEXT
    for slots, answer in asked("contains"):
        assert answer == ("Yes." if slots["word"] in words else "No.")
    assert {answer for _, answer in asked("contains")} == {"Yes.", "No."}
    for slots, answer in asked("sentence with word"):
        assert [slots["word"] in re.findall(r"\w+", s) for s in sentences] == [s == answer for s in sentences]
    for slots, answer in asked("order"):
        assert answer == min(slots["word"], slots["other"], key=words.index)
    assert {slots["word"] == answer for slots, answer in asked("order")} == {True, False}
    assert asked("names")[0] == ({}, "Anna")
    for slots, answer in asked("continuation"):
        assert f"{slots['gap'].removesuffix('…')} {answer}" in sentences


@pytest.mark.parametrize(
    "text",
    [
        "Only one sentence stands here alone.",
        "Mr. Smith came late yesterday. Nobody had waited for him.",  # where does a sentence end?
        "He came to the house. He came to the house.",
        "A heading without a stop\nThe text goes on here. And it ends here now.",
        '"Come in, please! she said aloud. Then everybody came in.',
        "- Come in, please! - she said aloud. Then everybody came in.",
        "She waited for an hour there.. — Come in, please! Then everybody came in.",
        "They stood up and left. (Applause.) Then everybody came in.",
        "The file lvm2 was there before. Then everybody came in.",
        "Нажмите кнопку Cancel два раза. Потом ничего не произойдёт.",
        "one begins with a small letter. Then everybody came in.",
    ],
)
def test_text_whose_sentences_are_in_doubt_makes_no_passage(text: str):
    assert builder.passage_of(text) is None


def test_wrapped_lines_make_one_passage():
    assert builder.passage_of(TEXT.replace(" the ", "\n the ")) == PASSAGE


def test_wordings_are_whole_in_both_languages():
    for language in ("ru", "en"):
        words = WORDS[language]
        assert set(words) == {"yes", "no", "ordinals", "frames", *builder.TASKS}
        assert len(words["ordinals"]) == builder.MOST_SENTENCES
        assert all(frame.count("{text}") == 1 == frame.count("{question}") for frame in words["frames"])
        for kind in builder.TASKS:
            slots = {frozenset(re.findall(r"{(\w+)}", question)) for question in words[kind]}
            assert len(slots) == 1 and len(set(words[kind])) == len(words[kind])
            assert {slot for made in asked(kind) for slot in made[0]} == set(*slots)


def test_the_command_writes_chats_that_the_reader_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    texts = {
        "a": "Старый учитель вышел в сад {} раз подряд. Потом начался сильный дождь и пошёл снег. "
        "Все ушли домой рано. Никто не знал, почему так вышло.",
        "b": "The old teacher went to the garden {} times running. Then it rained for days and days. "
        "Everybody left early. Nobody could tell the reason.",
    }
    for name, text in texts.items():
        lines = [json.dumps({"text": text.format(number)}) for number in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    out = tmp_path / "deep" / "chats.jsonl"

    def run(*arguments: str) -> str:
        given = ["from_texts", "--texts", f"{tmp_path}/?.jsonl", "--out", str(out), "--records", "20", *arguments]
        monkeypatch.setattr("sys.argv", given)
        builder.main()
        return out.read_text(encoding="utf-8")

    written = run()
    records = [json.loads(line) for line in written.splitlines()]
    assert [record["language"] for record in records].count("ru") == 10 and len(records) == 20
    read = list(ChatFiles((str(out),), fields=MessageFields()).read())
    assert [chat.messages() for chat in read] == [record["messages"] for record in records]
    assert all(chat.num_answers == len(record["tasks"]) for chat, record in zip(read, records, strict=True))
    assert run() == written and run("--seed", "1") != written
    assert "20 chats" in capsys.readouterr().err
    without = [json.loads(line)["language"] for line in run("--exclude", f"{tmp_path}/a.jsonl").splitlines()]
    assert without == ["en"] * 20
    with pytest.raises(SystemExit, match="error: the texts hold too few passages"):
        run("--records", "1000")
    with pytest.raises(SystemExit, match="error: corpus.paths: no file matches"):
        run("--texts", f"{tmp_path}/none")
