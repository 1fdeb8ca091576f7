"""Minimal pairs and the fair measures, against what they are made of."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lep.benchmark.asking import Journal
from lep.benchmark.bits_per_byte import bits_per_byte
from lep.benchmark.darumeru.sources import make_source
from lep.benchmark.fair import Fair, read_texts, text_measures
from lep.benchmark.minimal_pairs import MinimalPairs
from lep.benchmark.records import compare
from lep.benchmark.scoring import option_scores, render_chat, sequence_logprobs
from lep.results import Score


def test_minimal_pairs_of_a_file_are_those_whose_good_sentence_is_likelier(
    tmp_path: Path, model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, sentences: Callable[..., list[str]]
) -> None:
    texts = sentences(24)
    rows = [
        {"UID": f"kind {i % 2}", "sentence_good": a, "sentence_bad": b}
        for i, (a, b) in enumerate(zip(texts[::2], texts[1::2], strict=True))
    ]
    rows.append({"UID": "kind 0", "sentence_good": texts[0], "sentence_bad": texts[0]})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = MinimalPairs(str(tmp_path / "pairs.jsonl"))(model, bpe)
    totals = [row.total for row in sequence_logprobs(model, bpe, texts)]
    expected = [a > b for a, b in zip(totals[::2], totals[1::2], strict=True)] + [False]
    assert [record.right for record in found.records] == expected, "a tie is wrong"
    assert found.scores["minimal pairs/ru"].value == pytest.approx(sum(expected) / 13)
    assert (found.scores["kind 0/ru"].n, found.scores["kind 1/ru"].n) == (7, 6)
    assert len(MinimalPairs(str(tmp_path / "pairs.jsonl"), limit=2)(model, bpe).records) == 4
    assert compare({"a": found, "b": found})[0]["difference"] == 0
    with pytest.raises(ValueError, match="no column source; it has UID, sentence_good, sentence_bad"):
        MinimalPairs(str(tmp_path / "pairs.jsonl"), good="source")(model, bpe)


def test_an_option_after_nothing_needs_no_bos(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, sentences: Callable[..., list[str]]
) -> None:
    """A tokenizer without BOS puts EOS before a text, as `sequence_logprobs` does."""
    plain = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer, eos_token="</s>")
    texts = sentences(3)
    totals = [row.total for row in sequence_logprobs(model, plain, texts)]
    assert option_scores(model, plain, [""], [texts])[0] == pytest.approx(totals, abs=1e-4)


def test_measures_of_texts_count_in_units_of_their_own(bpe: PreTrainedTokenizerFast) -> None:
    texts = ["Мария купила", "Tom went home"]
    found = text_measures(bpe, texts, Score(2.0, 0.1, 2))
    size, tokens = sum(len(text.encode()) for text in texts), sum(map(len, bpe(texts)["input_ids"]))
    assert found["bits_per_character"] == pytest.approx(2.0 * size / 25)
    assert found["tokens_per_word"] == pytest.approx(tokens / 5)
    assert found["characters_per_token"] == pytest.approx(25 / tokens)


def test_the_fair_suite_reads_texts_and_writes_in_a_script(
    tmp_path: Path, model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "ru.txt").write_text("Мария купила книгу.\n\nПотом пошла в парк.\n", encoding="utf-8")
    (tmp_path / "en.jsonl").write_text('{"text": "Tom went home."}\n', encoding="utf-8")
    assert read_texts(tmp_path / "ru.txt") == ["Мария купила книгу.", "Потом пошла в парк."]
    suite = Fair(
        {"ru": ["Мария", "Том"]},
        texts={"ru": str(tmp_path / "ru.txt"), "en": str(tmp_path / "en.jsonl")},
        context=20,
        max_characters=30,
        max_new_characters=8,
        timed_tokens=None,
        requests={"ru": ["Кто там?"]},
    )
    found = suite(model, bpe)
    ru = ["Мария купила книгу.", "Потом пошла"]
    assert found.details["text/ru"]["bits_per_byte"] == pytest.approx(
        bits_per_byte(model, bpe, ru, context=20).score.value
    )
    assert found.details["text/ru"]["characters"] == 30 and found.details["text/en"]["texts"] == 1
    assert "speed/ru" not in found.details
    assert found.scores["own script/ru"].n == 2 and found.scores["own script in a chat/ru"].n == 1
    assert found.records[-1].prompt == render_chat(bpe, "Кто там?")
    plain = copy.deepcopy(bpe)
    plain.chat_template = None
    assert "own script in a chat/ru" not in suite(model, plain).scores
    shares = [
        sum("а" <= c.lower() <= "я" for c in r.answer) / max(1, sum(map(str.isalpha, r.answer))) for r in found.records
    ]
    assert [record.value for record in found.records] == pytest.approx(shares)
    with pytest.raises(ValueError, match="texts.ru=.* holds no text"):
        (tmp_path / "ru.txt").write_text("\n\n")
        suite(model, bpe)


def test_files_of_a_suite_may_lie_in_ones_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="ru.txt is not there"):
        Fair({}, texts={"ru": "~/ru.txt"}).fingerprint()
    (tmp_path / "ru.txt").write_text("Мария купила книгу.")
    assert read_texts(Path("~/ru.txt")) == ["Мария купила книгу."]
    (tmp_path / "pairs.csv").write_text("sentence_good,sentence_bad\na,b\n")
    assert MinimalPairs("~/pairs.csv", phenomenon=None)._pairs() == [("pairs", "a", "b")]
    (tmp_path / "own" / "data" / "rucola").mkdir(parents=True)
    (tmp_path / "own" / "data" / "rucola" / "test.jsonl").write_text('{"sentence": "a"}\n')
    assert make_source("~/own", None, {}).rows("rucola", "test") == [{"sentence": "a"}]


def test_suites_whose_names_begin_alike_keep_journals_of_their_own(tmp_path: Path) -> None:
    for name in ("fair_kk", "fair", "fair[0]"):
        Journal(tmp_path / name, {"suite": name}).add({"answer": name})
    for name in ("fair", "fair_kk", "fair[0]"):
        assert Journal(tmp_path / name, {"suite": name}).known == {"answer": name}
