import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lep.assets.microworld import Item
from lep.benchmark import scoring
from lep.benchmark.micro import run_micro, summarise
from lep.benchmark.records import STOPS, Record, SuiteResult, compare, read_records, samples, write_records
from lep.benchmark.scoring import end_tokens, generate, option_scores, render_chat
from lep.chat import end_of_turn


def record(task: str, right: bool, *, prompt: str = "p") -> Record:
    return Record(task, "ru", prompt, "a", "e", right)


@pytest.fixture(scope="module")
def items(sentences: Callable[..., list[str]]) -> list[Item]:
    texts = [text[:16] for text in sentences(8)]
    return [
        *(Item("copying", "ru", f"Повтори: {text}", text) for text in texts[:3]),
        Item("facts ranked, seen", "en", "Who?", "Tom.", ("Tom.", "Maria.", "apples.", "home.")),
        Item("questions", "en", "Where is Tom?", "Tom went home."),
        Item("agreement", "ru", "", texts[6], (texts[6], texts[7])),
        Item("agreement", "ru", "", texts[7], (texts[7], texts[6])),
        Item("agreement", "ru", "", texts[7], (texts[7], texts[7])),
    ]


def test_every_item_is_asked_once_and_in_order(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, items: list[Item]
) -> None:
    found = run_micro(model, bpe, items)
    assert [(r.task, r.language, r.expected) for r in found.records] == [(i.task, i.language, i.answer) for i in items]
    assert list(found.scores) == ["copying/ru", "facts ranked, seen/en", "questions/en", "agreement/ru"]
    assert [score.n for score in found.scores.values()] == [3, 1, 1, 3]
    for key in ("copying/ru", "questions/en"):
        assert sum(found.details[key]["stopped"].values()) == pytest.approx(1)
        assert list(found.details[key]["stopped"]) == list(STOPS)
    assert 0 <= found.details["copying/ru"]["length_ratio"] <= 1
    assert found.records[0].prompt == render_chat(bpe, items[0].prompt)


def test_a_base_model_is_asked_in_the_lines_it_was_trained_on(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, items: list[Item]
) -> None:
    """Without a template: one BOS, the question, and its answer as the line that follows."""
    base = copy.deepcopy(bpe)
    base.chat_template = None
    found = run_micro(model, base, items)
    assert list(found.scores) == ["copying/ru", "facts ranked, seen/en", "questions/en", "agreement/ru"]
    assert [r.prompt for r in found.records[:3]] == [f"{item.prompt}\n" for item in items[:3]]
    line = generate(model, base, ["Where is Tom?\n"], max_new_tokens=8, stop_character="\n")[0].text
    assert found.records[4].answer.startswith(line)
    expected = option_scores(model, base, ["Who?\n"], [items[3].options])[0]
    assert found.records[3].option_scores == pytest.approx(expected.tolist(), abs=1e-4)


def test_of_a_pair_and_its_mirror_image_one_is_right_and_a_tie_is_wrong(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, items: list[Item]
) -> None:
    pair, mirrored, tie = run_micro(model, bpe, items).records[-3:]
    assert pair.right != mirrored.right
    assert not tie.right
    assert pair.option_scores == pytest.approx(mirrored.option_scores[::-1], abs=1e-4)


def test_a_model_is_right_on_what_it_would_say_and_stops_as_it_would_stop(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast
) -> None:
    """Its own greedy answer is taken for the right one: content is right whatever ends it."""
    answer = generate(model, bpe, [render_chat(bpe, "Tom?")], max_new_tokens=8, chat=True, stop_ids=end_tokens(bpe))[0]
    line = answer.text.split("\n")[0]
    found = run_micro(model, bpe, [Item("questions", "en", "Tom?", line)]).records[0]
    assert found.answer.startswith(line) and found.stop in STOPS


@pytest.mark.parametrize(("last", "stop"), [("<|end|>", "end of turn"), ("</s>", "other end token"), ("\n", "newline")])
def test_content_and_stopping_are_judged_apart(
    bpe: PreTrainedTokenizerFast,
    pico_model: Callable[..., LlamaForCausalLM],
    monkeypatch: pytest.MonkeyPatch,
    last: str,
    stop: str,
) -> None:
    """A model made to write `Tom.` and then one of the three ends: always right, differently stopped."""
    script = [*bpe("Tom.")["input_ids"], *bpe(last)["input_ids"]]
    model, written = pico_model(len(bpe)), iter(script)

    def logits(_: object, features: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([next(written)] * len(features)), len(bpe)).float()

    monkeypatch.setattr(scoring._Reader, "logits", logits)
    found = run_micro(model, bpe, [Item("questions", "en", "Who?", "Tom.")])
    assert found.records[0].answer == "Tom." and found.records[0].right
    assert found.records[0].stop == stop
    assert found.details["questions/en"]["stopped"][stop] == 1
    assert end_of_turn(bpe) == 5


def test_a_model_that_never_stops_is_cut_by_its_budget_in_characters(
    bpe: PreTrainedTokenizerFast, pico_model: Callable[..., LlamaForCausalLM]
) -> None:
    model = pico_model(len(bpe))
    token = bpe("o")["input_ids"][0]
    model.lm_head.register_forward_hook(
        lambda module, inputs, output: output.index_fill_(-1, torch.tensor([token]), 9.0)
    )
    found = run_micro(model, bpe, [Item("questions", "en", "Who?", "Tom.")]).records[0]
    assert found.answer == "o" * (2 * len("Tom.") + 16) and found.stop == "never" and not found.right


def test_records_come_back_from_their_file(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, items: list[Item], tmp_path: Path
) -> None:
    found = run_micro(model, bpe, items)
    write_records(tmp_path / "answers" / "swap.jsonl", found.records)
    back = read_records(tmp_path / "answers" / "swap.jsonl")
    assert back == found.records
    assert summarise(back).scores["copying/ru"] == found.scores["copying/ru"]


def test_comparisons_are_of_every_pair_but_the_baselines() -> None:
    good = [record("questions", True, prompt=str(i)) for i in range(40)]
    bad = [replace(r, value=i % 2 == 0) for i, r in enumerate(good)]
    models = {"original": good, "swap": bad, "delta": good, "overlap": good}
    found = compare({name: summarise(of) for name, of in models.items()}, baselines=("original",))
    assert [(c["a"], c["b"]) for c in found] == [("swap", "delta"), ("swap", "overlap"), ("delta", "overlap")]
    first, _, last = found
    assert first["task"] == "questions/ru" and first["difference"] == -0.5 and first["high"] < 0 and first["n"] == 40
    assert (last["difference"], last["low"], last["high"]) == (0, 0, 0)
    with pytest.raises(AssertionError, match="same items"):
        compare({"swap": summarise(good), "delta": summarise([record("questions", True)] * 40)})


def test_one_item_has_no_standard_error() -> None:
    score = summarise([record("questions", True)]).scores["questions/ru"]
    assert score.value == 1 and math.isnan(score.stderr) and score.n == 1


def test_samples_hold_what_each_model_said_to_the_first_items_of_a_task() -> None:
    asked = [record("questions", True, prompt="1"), record("questions", True, prompt="2"), record("copying", True)]
    found = samples({"original": asked, "swap": [replace(r, value=False, answer="b") for r in asked]})
    assert [(s["task"], s["prompt"]) for s in found] == [("questions", "1"), ("copying", "p")]
    assert found[0]["answers"] == [
        {"model": "original", "answer": "a", "right": True},
        {"model": "swap", "answer": "b", "right": False},
    ]


def test_a_continued_text_is_shown_and_not_judged() -> None:
    text = replace(record("continuation", False), expected="")
    assert samples({"swap": [text]})[0]["answers"] == [{"model": "swap", "answer": "a", "right": None}]
    assert compare({name: SuiteResult({}, {}, [text]) for name in ("swap", "delta")}) == []
