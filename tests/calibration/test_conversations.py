import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from pyarrow.parquet import write_table

from lep.assets.microworld import benchmark_items
from lep.calibration import ChatFiles, Conversation, ExchangeFields, HubChats, MessageFields, Turn
from lep.calibration.conversations import MicroWorldChats
from lep.calibration.copying import MicroWorldCopies
from lep.corpus import HubDataset

CHAT = Conversation((Turn("system", "be kind"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")))
MESSAGES = {"messages": CHAT.messages()}


def write(path: Path, *records: object) -> Path:
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return path


def test_a_conversation_knows_its_parts():
    assert CHAT.num_answers == 1 and CHAT.first(1).turns == CHAT.turns[:3]
    assert CHAT.prompt().turns == CHAT.turns[:2] and CHAT.first(1).prompt() == CHAT.prompt()
    assert CHAT.answered("d").turns[-1] == Turn("assistant", "d") and CHAT.answered("d").num_answers == 2
    assert CHAT.prompt().prompt() == CHAT.prompt()


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([], "no turn of a user"),
        ([("system", "a")], "no turn of a user"),
        ([("assistant", "a")], "turn 1 is the assistant's where the user's belongs"),
        ([("system", "s"), ("user", "a"), ("user", "b")], "turn 3 is the user's where the assistant's belongs"),
        ([("user", "a"), ("system", "s")], "turn 2 is the system's"),
        ([("user", "a"), ("assistant", " \n")], r"turn 2 \(the assistant's\) is empty"),
    ],
)
def test_turns_out_of_order_are_refused(turns: list, problem: str):
    with pytest.raises(ValueError, match=problem):
        Conversation(tuple(Turn(*turn) for turn in turns))


def test_every_kind_of_file_gives_the_same_conversations(tmp_path: Path):
    lines = json.dumps(MESSAGES) + "\n\n" + json.dumps(MESSAGES)
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as packed:
        packed.write(lines)
    with zstandard.open(tmp_path / "c.ndjson.zst", "wt") as packed:
        packed.write(lines)
    (tmp_path / "d.json").write_text(json.dumps([MESSAGES, MESSAGES]))
    write_table(pa.Table.from_pylist([MESSAGES, MESSAGES]), tmp_path / "e.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert list(ChatFiles((str(path),)).read()) == [CHAT, CHAT]
    source = ChatFiles((f"{tmp_path}/*.jsonl*", f"{tmp_path}/a.jsonl", f"{tmp_path}/[c-e].*"))
    assert list(source.read()) == [CHAT] * 10 == list(source.read())
    assert len(list(ChatFiles((f"{tmp_path}/*",), limit=3).read())) == 3


def test_fields_are_mapped(tmp_path: Path):
    shared = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    fields = MessageFields("conversations", "from", "value")
    assert fields.conversation(shared) == Conversation.exchange("a", "b")
    named = MessageFields(roles={"model": "assistant", "human": "system"})
    turns = [{"role": "human", "content": "s"}, {"role": "user", "content": "a"}, {"role": "model", "content": "b"}]
    assert [turn.role for turn in named.conversation({"messages": turns}).turns] == ["system", "user", "assistant"]
    alpaca = ExchangeFields(system="prompt")
    record = {"instruction": "a", "input": "x", "output": "b", "prompt": "s"}
    assert alpaca.conversation(record).turns == (Turn("system", "s"), Turn("user", "a\n\nx"), Turn("assistant", "b"))
    for without in ({"instruction": "a", "input": " ", "output": "b"}, {"instruction": "a", "output": "b"}):
        assert alpaca.conversation(without) == Conversation.exchange("a", "b")


def test_records_are_kept_by_what_their_fields_say(tmp_path: Path):
    path = write(
        tmp_path / "a.jsonl",
        {**MESSAGES, "score": 8, "bad": False},
        {**MESSAGES, "score": 7.9, "bad": False},
        {**MESSAGES, "score": None, "bad": False},
        {**MESSAGES, "score": 10, "bad": True},
    )
    keep = {"score": {"minimum": 8}, "bad": {"equals": False}}
    dropped = Counter[str]()
    assert list(ChatFiles((str(path),), keep=keep).read(dropped)) == [CHAT]
    assert dropped == {"keep.score": 2, "keep.bad": 1}
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: instructions.source.keep names the field 'stars'"):
        list(ChatFiles((str(path),), keep={"stars": {"minimum": 1}}).read())
    for rule in ({"maximum": 1}, {}, {"minimum": 1, "equals": 2}, 3):
        with pytest.raises(ValueError, match="keep.score=.* is no rule"):
            ChatFiles((str(path),), keep={"score": rule})


@pytest.mark.parametrize(
    ("record", "fields", "problem"),
    [
        ({"text": "a"}, MessageFields(), r"the field 'messages' is missing; there is \['text'\]"),
        ({"messages": "a"}, MessageFields(), "the field 'messages' is a str, not a list"),
        ({"messages": [{"role": "user"}]}, MessageFields(), "the field 'content' of message 1 is missing"),
        ({"messages": [{"role": "tool", "content": "a"}]}, MessageFields(), r"'tool', which.*roles=\{tool: user\}"),
        ({"messages": [{"role": "gpt", "content": "a"}]}, MessageFields(), "turn 1 is the assistant's"),
        (
            {"instruction": "a", "output": 3},
            ExchangeFields(),
            "a int, not text.*instructions.fields.output",
        ),
        (["a"], ExchangeFields(), "'instruction' is missing; there is list"),
    ],
)
def test_a_bad_record_is_named_or_dropped(tmp_path: Path, record: object, fields, problem: str):
    path = write(tmp_path / "a.jsonl", record)
    with pytest.raises(ValueError, match=rf"a.jsonl, line 1: .*{problem}.*instructions.source.broken=drop"):
        list(ChatFiles((str(path),), fields=fields).read())
    dropped = Counter[str]()
    assert list(ChatFiles((str(path),), fields=fields, broken="drop").read(dropped)) == []
    assert dropped == {"broken": 1}


def test_files_nobody_can_read_are_refused(tmp_path: Path):
    for name, text, problem in (
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("b.json", "{", "is not JSON"),
        ("c.json", "{}", "holds a dict, not a list"),
        ("d.jsonl.gz", "no gzip", "cannot be read"),
        ("e.txt", "hi", "no known ending"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name}.*{problem}"):
            list(ChatFiles((str(tmp_path / name),)).read())
    with pytest.raises(ValueError, match="instructions.paths: no file matches"):
        ChatFiles((f"{tmp_path}/none*",)).files()
    with pytest.raises(ValueError, match="instructions.paths is empty"):
        ChatFiles(()).files()
    for wrong in ({"broken": "ignore"}, {"limit": 0}):
        with pytest.raises(ValueError, match=f"instructions.source.{next(iter(wrong))}="):
            ChatFiles(("a.jsonl",), **wrong)


def test_a_data_set_of_the_hub_is_read_as_saiga_is(tmp_path: Path):
    def record(score: int, bad: bool, first: str = "user") -> dict:
        turns = [{"role": first, "content": "a"}, {"role": "bot", "content": "b"}]
        return {"messages": turns, "opus_score": score, "is_bad_by_regex": bad}

    write(tmp_path / "train.jsonl", record(9, False), record(9, True), record(5, False), record(9, False, "bot"))
    keep = {"opus_score": {"minimum": 8}, "is_bad_by_regex": {"equals": False}}
    source, dropped = HubChats(HubDataset(str(tmp_path)), keep=keep, broken="drop"), Counter[str]()
    assert list(source.read(dropped)) == [Conversation.exchange("a", "b")]
    assert dropped == {"keep.opus_score": 1, "keep.is_bad_by_regex": 1, "broken": 1}


def test_fingerprints_change_with_what_is_read(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", MESSAGES)
    made = [
        ChatFiles((str(path),)),
        ChatFiles((str(path),), fields=ExchangeFields()),
        ChatFiles((str(path),), keep={"score": {"minimum": 8}}),
        ChatFiles((str(path),), limit=1),
        HubChats(HubDataset("a/b")),
        HubChats(HubDataset("a/c")),
        MicroWorldChats(5),
        MicroWorldChats(5, seed=1),
        MicroWorldCopies(5),
        MicroWorldCopies(5, seed=1),
    ]
    prints = [json.dumps(source.fingerprint()) for source in made]
    assert len(set(prints)) == len(prints)
    before = ChatFiles((str(path),)).fingerprint()
    assert before == ChatFiles((str(path),)).fingerprint()
    write(path, MESSAGES, MESSAGES)
    assert before != ChatFiles((str(path),)).fingerprint()


@pytest.mark.parametrize("benchmark_seed", [0, 3])
def test_the_micro_world_asks_nothing_that_its_benchmark_asks(benchmark_seed: int):
    items = benchmark_items(seed=benchmark_seed, items_per_task=200)
    chats = list(MicroWorldChats(3000, benchmark_seed=benchmark_seed).read())
    copies = list(MicroWorldCopies(1000, benchmark_seed=benchmark_seed).read())
    assert len(chats) == 3000 and len(copies) == 1000
    asked = {item.prompt for item in items if item.prompt and not item.task.startswith("facts")}
    recalled = {item.prompt for item in items if item.task.endswith("recalled")}
    told = {chat.turns[0].content for chat in chats + copies}
    assert not told & asked and not told & recalled
    # Without the exclusion there would be some.
    free = {chat.turns[0].content for chat in MicroWorldChats(3000, benchmark_items=0).read()}
    assert free & asked if benchmark_seed == 0 else True
    assert not any(chat.turns[0].content.startswith(("Repeat:", "Повтори:")) for chat in chats)
    assert all(chat.turns[0].content.endswith(f": {chat.turns[1].content}") for chat in copies)
    assert chats == list(MicroWorldChats(3000, benchmark_seed=benchmark_seed).read())
    assert chats[:50] != list(MicroWorldChats(50, seed=1, benchmark_seed=benchmark_seed).read())
