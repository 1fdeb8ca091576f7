"""The fast, batched primitives against the slow and obvious: one text at a time, no cache, the whole logits."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from lep.benchmark import scoring
from lep.benchmark.scoring import (
    end_tokens,
    generate,
    option_scores,
    render_chat,
    sequence_logprobs,
    target_logprobs,
    tokens_before,
)
from lep.chat import end_of_turn


def slow_logits(model: LlamaForCausalLM, ids: list[int], known: int) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return logits[:, :known]


def slow_total(model: LlamaForCausalLM, ids: list[int], first: int, known: int) -> float:
    logprobs = slow_logits(model, ids, known).log_softmax(-1)
    return sum(float(logprobs[t - 1, ids[t]]) for t in range(first, len(ids)))


def slow_greedy(model: LlamaForCausalLM, ids: list[int], known: int, steps: int, stops: set[int]) -> list[int]:
    written: list[int] = []
    while len(written) < steps and not (written and written[-1] in stops):
        written.append(int(slow_logits(model, ids + written, known)[-1].argmax()))
    return written


def test_sequence_logprobs_agree_with_a_slow_loop(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, sentences: Callable[..., list[str]]
) -> None:
    texts = sentences(12)
    for text, found in zip(texts, sequence_logprobs(model, bpe, texts), strict=True):
        ids = [1, *bpe(text, add_special_tokens=False)["input_ids"]]
        assert found.total == pytest.approx(slow_total(model, ids, 1, len(bpe)), abs=1e-3)
        assert len(found.logprobs) == len(found.starts) == len(ids) - 1
        assert found.starts[0] == 0 and (np.diff(found.starts) >= 0).all()


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_scores_do_not_depend_on_the_batch(
    model: LlamaForCausalLM,
    bpe: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    sentences: Callable[..., list[str]],
) -> None:
    texts = sentences(20)
    expected = [row.total for row in sequence_logprobs(model, bpe, texts)]
    monkeypatch.setattr(scoring, "_ROWS_AT_ONCE", rows)
    monkeypatch.setattr(scoring, "_LOGITS_AT_ONCE", 1000)
    assert [row.total for row in sequence_logprobs(model, bpe, texts)] == pytest.approx(expected, abs=1e-4)


def test_rows_beyond_the_tokenizer_get_no_probability(
    bpe: PreTrainedTokenizerFast, sentences: Callable[..., list[str]], pico_model: Callable[..., LlamaForCausalLM]
) -> None:
    model = pico_model(len(bpe) + 9)
    before = [row.total for row in sequence_logprobs(model, bpe, sentences(4))]
    answers = generate(model, bpe, sentences(4), max_new_tokens=6)
    with torch.no_grad():
        model.lm_head.weight[len(bpe) :] = 100 * model.lm_head.weight[:9]
    assert [row.total for row in sequence_logprobs(model, bpe, sentences(4))] == pytest.approx(before)
    assert generate(model, bpe, sentences(4), max_new_tokens=6) == answers


def test_a_tokenizer_larger_than_the_model_is_refused(
    bpe: PreTrainedTokenizerFast, pico_model: Callable[..., LlamaForCausalLM]
) -> None:
    with pytest.raises(ValueError, match=f"largest id is {len(bpe) - 1} but the model has {len(bpe) - 1} output rows"):
        sequence_logprobs(pico_model(len(bpe) - 1), bpe, ["Tom"])


def test_option_scores_agree_with_a_slow_loop(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, sentences: Callable[..., list[str]]
) -> None:
    prompts = [render_chat(bpe, text) for text in sentences(5)]
    options = [sentences(2 + i % 3, seed=i) for i in range(5)]
    found = option_scores(model, bpe, prompts, options, chat=True)
    for prompt, of, scores in zip(prompts, options, found, strict=True):
        first = len(bpe(prompt, add_special_tokens=False)["input_ids"])
        joined = [bpe(prompt + option, add_special_tokens=False)["input_ids"] for option in of]
        assert scores == pytest.approx([slow_total(model, ids, first, len(bpe)) for ids in joined], abs=1e-3)


def test_an_option_that_merges_with_the_prompt_is_scored_from_the_same_point(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast
) -> None:
    """`Tom hom` + `e` ends in one token, `Tom hom` + ` on` does not: both are scored from the `h` on."""
    prompt, options = "Tom hom", ["e", " on"]
    joined = [[1, *bpe(prompt + option)["input_ids"]] for option in options]
    first = 1 + len(bpe("Tom")["input_ids"])
    assert joined[0][:first] == joined[1][:first] and joined[0][first] != joined[1][first]
    scores = option_scores(model, bpe, [prompt], [options])[0]
    assert scores == pytest.approx([slow_total(model, ids, first, len(bpe)) for ids in joined], abs=1e-3)


def test_options_alone_are_scored_as_texts(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, sentences: Callable[..., list[str]]
) -> None:
    texts = sentences(3)
    totals = [row.total for row in sequence_logprobs(model, bpe, texts)]
    assert option_scores(model, bpe, [""], [texts])[0] == pytest.approx(totals, abs=1e-4)


@pytest.mark.parametrize("tokens", [8192, 64])
def test_generation_is_that_of_a_slow_loop(
    model: LlamaForCausalLM,
    bpe: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    tokens: int,
    sentences: Callable[..., list[str]],
) -> None:
    """Left padding, positions, cache and rows that leave early change nothing. Many ids stop, so rows end apart."""
    monkeypatch.setattr(scoring, "_TOKENS_AT_ONCE", tokens)
    prompts, stops = sentences(8), set(range(2, 340, 11))
    for prompt, found in zip(
        prompts, generate(model, bpe, prompts, max_new_tokens=12, stop_ids=frozenset(stops)), strict=True
    ):
        ids = [1, *bpe(prompt)["input_ids"]]
        written = slow_greedy(model, ids, len(bpe), 12, stops)
        stopped = written[-1] in stops
        assert found.ids == tuple(written[:-1] if stopped else written)
        assert found.stopped == (written[-1] if stopped else None)
        assert found.text == bpe.decode(list(found.ids))
        assert found.ended == ("end token" if stopped else "budget")


def test_a_budget_in_characters_ends_with_the_token_that_reaches_it(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, sentences: Callable[..., list[str]]
) -> None:
    prompts, budgets = sentences(5), [1, 4, 9, 16, 20]
    endless = generate(model, bpe, prompts, max_new_tokens=80)
    for found, whole, budget in zip(
        generate(model, bpe, prompts, max_new_characters=budgets), endless, budgets, strict=True
    ):
        assert found.ids == whole.ids[: len(found.ids)]
        assert len(found.ids) <= 4 * budget
        starts = b"".join(scoring.read_vocabulary(bpe).tokens[i] or b"?" for i in found.ids)
        characters = sum(byte & 0xC0 != 0x80 for byte in starts)
        assert characters >= budget or len(found.ids) == 4 * budget
    with pytest.raises(ValueError, match="needs a budget"):
        generate(model, bpe, prompts)


def test_the_stop_character_cuts_the_text_and_keeps_the_ids(
    bpe: PreTrainedTokenizerFast, model: LlamaForCausalLM, sentences: Callable[..., list[str]]
) -> None:
    free = generate(model, bpe, sentences(8), max_new_tokens=20)
    letter = next(c for c in free[0].text[2:] if c.isascii())
    for whole, cut in zip(
        free, generate(model, bpe, sentences(8), max_new_tokens=20, stop_character=letter), strict=True
    ):
        assert cut.text == whole.text.split(letter)[0]
        assert cut.ids == whole.ids[: len(cut.ids)]
        assert cut.ended == ("stop character" if letter in whole.text else "budget")


def test_tokens_before_a_character_counts_the_token_that_brings_text_with_it(bpe: PreTrainedTokenizerFast) -> None:
    ids = bpe("Tom went home.\nTom", add_special_tokens=False)["input_ids"]
    newline = bpe("\n", add_special_tokens=False)["input_ids"][0]
    assert tokens_before(bpe, ids, "\n") == ids.index(newline)
    assert tokens_before(bpe, ids[: ids.index(newline)], "\n") == ids.index(newline)
    with_text = bpe(" home", add_special_tokens=False)["input_ids"]
    assert len(with_text) == 1
    assert tokens_before(bpe, with_text, "m") == 1, "a token that holds text before the stop counts"
    assert tokens_before(bpe, with_text, " ") == 0
    assert tokens_before(bpe, [], "\n") == 0


def test_exactly_one_bos(bpe: PreTrainedTokenizerFast) -> None:
    assert scoring._ids(bpe, ["Tom", "<s>Tom"]) == [[1, *bpe("Tom")["input_ids"]]] * 2
    assert scoring._ids(bpe, ["Tom"], chat=True) == [bpe("Tom")["input_ids"]], "the template decides in a chat"
    with pytest.raises(AssertionError, match="two BOS"):
        scoring._ids(bpe, ["<s><s>Tom"], chat=True)


def test_the_chat_ends_with_an_open_answer_and_knows_its_end_token(bpe: PreTrainedTokenizerFast) -> None:
    assert render_chat(bpe, "Привет") == "<|user|>\nПривет<|end|>\n<|assistant|>\n"
    assert end_of_turn(bpe) == bpe.convert_tokens_to_ids("<|end|>")
    assert end_tokens(bpe) == frozenset(range(6))


def test_a_tokenizer_without_a_template_cannot_chat(bpe: PreTrainedTokenizerFast) -> None:
    plain = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer)
    with pytest.raises(ValueError, match="no chat template"):
        render_chat(plain, "Привет")


def test_a_model_that_caps_its_logits_is_scored_with_the_cap(bpe: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(bpe),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.5,
        initializer_range=0.4,
    )
    model = Gemma2ForCausalLM(config).eval()
    ids = [1, *bpe("Tom went home.")["input_ids"]]
    found = target_logprobs(model, bpe, [ids], [1])[0].sum()
    assert found == pytest.approx(slow_total(model, ids, 1, len(bpe)), abs=1e-3)  # pyright: ignore


def test_every_module_is_left_in_the_mode_it_was_in(
    bpe: PreTrainedTokenizerFast, pico_model: Callable[..., LlamaForCausalLM]
) -> None:
    model = pico_model(len(bpe))
    model.model.layers[0].train()
    modes = [module.training for module in model.modules()]
    generate(model, bpe, ["Tom"], max_new_tokens=1)
    sequence_logprobs(model, bpe, ["Tom"])
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_prompt_that_fills_the_model_is_refused(model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        ValueError, match="a prompt of 301 tokens leaves no room to answer: the model has 256 positions"
    ):
        generate(model, bpe, ["щ" * 150], max_new_tokens=2)
    found = generate(model, bpe, ["щ" * 125], max_new_tokens=20)[0]
    assert len(found.ids) == 5, "251 of the 256 positions are taken"
