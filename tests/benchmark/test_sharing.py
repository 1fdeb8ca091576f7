"""What many rows begin with is read once: every way of sharing against one text at a time, no cache, whole logits."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pico_models import FAMILIES, pico_model
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from lep.benchmark import scoring
from lep.benchmark.scoring import (
    Branch,
    Sampling,
    branch_logprobs,
    generate,
    option_scores,
    render_plain,
    render_turns,
    sequence_logprobs,
)


def slow(model: PreTrainedModel, ids: list[int], first: int, known: int) -> np.ndarray:
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0, :, :known].double().log_softmax(-1)
    return np.array([float(logprobs[t - 1, ids[t]]) for t in range(first, len(ids))])


def random_branches(seed: int, vocabulary: int, *, shared: int) -> list[Branch]:
    """Stems with `shared` ids in common and rests of their own; tails of one token, of several, nested and repeated."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[int]:
        return rng.integers(3, vocabulary, rng.integers(low, high)).tolist()

    common = [1, *rng.integers(3, vocabulary, shared).tolist()]
    branches = []
    for kind in range(12):
        stem, tail = common + ids(1, 40), ids(2, 6)
        tails = ([ids(1, 2) for _ in range(4)], [ids(1, 5) for _ in range(3)], [tail, tail[:1], tail], [tail])[kind % 4]
        branches.append(Branch(stem, tails))
    return branches


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared", [0, 50])
def test_branches_agree_with_a_slow_loop(
    family: str, shared: int, bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also past the sliding window of Gemma (16 here), with few rows a batch."""
    monkeypatch.setattr(scoring, "_ROWS_AT_ONCE", 5)
    model = pico_model(family, tied=False, vocab_size=len(bpe))
    branches = random_branches(0, len(bpe), shared=shared)
    for branch, found in zip(branches, branch_logprobs(model, bpe, branches), strict=True):
        for tail, scores in zip(branch.tails, found, strict=True):
            ids = [*branch.stem, *tail]
            assert scores == pytest.approx(slow(model, ids, len(branch.stem), len(bpe)), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_after_a_shared_beginning_is_that_of_each_prompt_alone(
    family: str, bpe: PreTrainedTokenizerFast, sentences: Callable[..., list[str]]
) -> None:
    model = pico_model(family, tied=False, vocab_size=len(bpe))
    prompts = ["Мария купила красную книгу вечером на рынке потом " + text for text in sentences(6)]
    prompts = [prompt[:120] for prompt in prompts]
    alone = [generate(model, bpe, [prompt], max_new_tokens=10)[0] for prompt in prompts]
    assert generate(model, bpe, prompts, max_new_tokens=10) == alone


def test_the_shared_beginning_is_read_once(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    forward = type(model.model).forward

    def counting(self: object, input_ids: torch.Tensor, **rest: object) -> object:
        read.append(input_ids.numel())
        return forward(self, input_ids=input_ids, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(model.model), "forward", counting)
    prompt = "Tom bought apples and went home. " * 5
    prompts = [prompt + name for name in ("Tom", "Maria", "apples", "home")]
    length = len(bpe(prompt)["input_ids"])
    option_scores(model, bpe, prompts, [[" home", " apples", " Tom went"]] * 4)
    assert sum(read) < 1.6 * length + 200 < 12 * length, "and not once for each of the twelve options"


@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("mode", ["full_string", "first_token"])
def test_option_scores_are_the_same_at_any_batch_size(
    rows: int,
    mode: scoring.Mode,
    model: LlamaForCausalLM,
    bpe: PreTrainedTokenizerFast,
    sentences: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts, options = sentences(40), [[" Tom", " Мария", " home"]] * 40
    expected = option_scores(model, bpe, prompts, options, mode=mode)
    monkeypatch.setattr(scoring, "_ROWS_AT_ONCE", rows)
    np.testing.assert_allclose(option_scores(model, bpe, prompts, options, mode=mode), expected, atol=1e-4)


def test_first_tokens_are_those_with_visible_text(
    pico_model: Callable[..., LlamaForCausalLM], bpe: PreTrainedTokenizerFast, unigram: PreTrainedTokenizerFast
) -> None:
    """` 1` is a bare space and a digit in both; the digit is scored, after prompt and space, for every option."""
    for tokenizer in (bpe, unigram):
        model = pico_model(len(tokenizer))
        stem = [1, *tokenizer("Tom went", add_special_tokens=False)["input_ids"]]
        space, one = tokenizer(" 1", add_special_tokens=False)["input_ids"][-2:]
        two = tokenizer(" 2", add_special_tokens=False)["input_ids"][-1]
        found = option_scores(model, tokenizer, ["Tom went"], [[" 1", " 2"]], mode="first_token")[0]
        expected = [slow(model, [*stem, space, digit], len(stem) + 1, len(tokenizer))[0] for digit in (one, two)]
        assert found == pytest.approx(expected, abs=1e-4)
        assert found[0] != found[1]


def test_first_tokens_that_are_whole_words_keep_their_space(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast
) -> None:
    first = [bpe(option)["input_ids"][0] for option in (" home", " apples")]
    stem = [1, *bpe("Tom went")["input_ids"]]
    expected = [slow(model, [*stem, token], len(stem), len(bpe))[0] for token in first]
    found = option_scores(model, bpe, ["Tom went"], [[" home", " apples"]], mode="first_token")[0]
    assert found == pytest.approx(expected, abs=1e-4)


def test_options_that_begin_with_one_token_are_refused(model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast) -> None:
    options = [[" home Tom", " home Maria"]]
    with pytest.raises(ValueError, match="begin with the same token.*mode=full_string"):
        option_scores(model, bpe, ["Tom went"], options, mode="first_token")
    assert len(option_scores(model, bpe, ["Tom went"], options)[0]) == 2


def test_drawing_at_a_low_temperature_is_greedy_and_the_seed_decides(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, sentences: Callable[..., list[str]]
) -> None:
    prompts = sentences(6)

    def write(of: list[str], sampling: Sampling | None) -> list[tuple[int, ...]]:
        return [found.ids for found in generate(model, bpe, of, max_new_tokens=8, sampling=sampling)]

    assert write(prompts, Sampling(temperature=1e-4)) == write(prompts, None)
    wild = Sampling(temperature=5.0, top_p=1.0)
    assert write(prompts, wild) == write(prompts, wild) != write(prompts, Sampling(5.0, 40, 1.0, seed=1))
    assert write(prompts[2:4], wild) == write(prompts, wild)[2:4], "a draw does not depend on the rest of the batch"


def test_draws_follow_the_distribution_cut_at_top_k_and_top_p() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    uniforms = (np.arange(1000) + 0.5) / 1000
    for sampling, kept in (
        (Sampling(1.0, 4, 1.0), [500, 300, 150, 50]),
        (Sampling(1.0, 2, 1.0), [625, 375, 0, 0]),
        (Sampling(1.0, 4, 0.7), [625, 375, 0, 0]),
    ):
        drawn = sampling.draw(probabilities.log().expand(1000, -1), uniforms)
        assert torch.bincount(drawn, minlength=4).tolist() == pytest.approx(kept, abs=1)


def test_an_open_turn_keeps_its_trailing_space(bpe: PreTrainedTokenizerFast) -> None:
    turns: list[scoring.Turn] = [
        ("user", "Привет"),
        ("assistant", "Ответ: 1"),
        ("user", "А?"),
        ("assistant", "Ответ: "),
    ]
    assert render_turns(bpe, turns).endswith("<|user|>\nА?<|end|>\n<|assistant|>\nОтвет: ")
    assert render_plain(turns) == "Привет\nОтвет: 1\n\nА?\nОтвет: "


def test_a_template_that_trims_or_drops_turns(bpe: PreTrainedTokenizerFast) -> None:
    trims = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer)
    trims.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
    turns: list[scoring.Turn] = [("user", " Tom "), ("assistant", "Ответ: ")]
    assert render_turns(trims, turns) == "[user]Tom[assistant]Ответ: "
    trims.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(ValueError, match="leaves out a turn that begins 'went'"):
        render_turns(trims, [("user", "Tom"), ("assistant", "went"), ("user", "Maria"), ("assistant", "Ответ:")])


def test_sequences_with_one_beginning_have_their_offsets(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, sentences: Callable[..., list[str]]
) -> None:
    texts = ["Tom bought apples and went home. Tom bought apples. " + text[:40] for text in sentences(5)]
    for text, found in zip(texts, sequence_logprobs(model, bpe, texts), strict=True):
        ids = [1, *bpe(text)["input_ids"]]
        assert found.logprobs == pytest.approx(slow(model, ids, 1, len(bpe)), abs=1e-4)
        assert len(found.starts) == len(ids) - 1
