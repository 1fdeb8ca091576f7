import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lep.benchmark.bits_per_byte import _windows, bits_per_byte, characters_per_token, generation_speed
from lep.benchmark.scoring import generate, sequence_logprobs


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(min_value=0, max_value=9), min_size=1, max_size=60),
    context=st.integers(min_value=2, max_value=30),
)
def test_windows_score_every_token_once_with_at_most_their_context(widths: list[int], context: int) -> None:
    widths[-1] += 1
    starts = np.cumsum([0, *widths[:-1]])
    windows = _windows(starts, sum(widths), context)
    assert [t for _, first, end in windows for t in range(first, end)] == list(range(len(widths)))
    for begin, first, end in windows:
        assert begin <= first < end
        assert starts[end - 1] - starts[begin] < context
        assert begin == 0 or starts[first] >= starts[begin]


def test_a_text_within_the_context_costs_its_log_probability(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, sentences: Callable[..., list[str]]
) -> None:
    texts = sentences(6)
    bits = [-row.total / math.log(2) for row in sequence_logprobs(model, bpe, texts)]
    found = bits_per_byte(model, bpe, texts, context=500).score
    assert found.value == pytest.approx(sum(bits) / sum(len(text.encode()) for text in texts))
    assert found.n == 6 and found.stderr > 0


def test_later_windows_score_their_second_half_after_their_first(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, sentences: Callable[..., list[str]]
) -> None:
    """Against a slow loop over windows of 40 characters, one window at a time."""
    text = " ".join(sentences(3))
    encoded = bpe(text, return_offsets_mapping=True)
    ids, starts = encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]
    bits = 0.0
    for end in range(40, len(text) + 20, 20):
        scored = [t for t, s in enumerate(starts) if (s >= end - 20 or end == 40) and s < end]
        seen = [t for t, s in enumerate(starts) if end - 40 <= s < end]
        with torch.no_grad():
            logits = model(torch.tensor([[1, *(ids[t] for t in seen)]])).logits[0, :, : len(bpe)].log_softmax(-1)
        bits -= sum(float(logits[seen.index(t), ids[t]]) for t in scored) / math.log(2)
    assert bits_per_byte(model, bpe, [text], context=40).score.value == pytest.approx(
        bits / len(text.encode()), rel=1e-4
    )


def test_a_uniform_model_spends_the_same_on_every_token_of_any_vocabulary(
    bpe: PreTrainedTokenizerFast,
    unigram: PreTrainedTokenizerFast,
    sentences: Callable[..., list[str]],
    pico_model: Callable[..., LlamaForCausalLM],
) -> None:
    """log2 V bits a token: so bits per byte times bytes a token is log2 V, whatever the windows are."""
    texts = sentences(5)
    for tokenizer in (bpe, unigram):
        model = pico_model(len(tokenizer) + 5)
        with torch.no_grad():
            model.lm_head.weight.zero_()
        tokens = sum(len(tokenizer(text)["input_ids"]) for text in texts)
        expected = tokens * math.log2(len(tokenizer)) / sum(len(text.encode()) for text in texts)
        for context in (30, 31, 500):
            assert bits_per_byte(model, tokenizer, texts, context=context).score.value == pytest.approx(
                expected, rel=1e-5
            )
        assert characters_per_token(tokenizer, texts) == sum(map(len, texts)) / tokens


def test_a_context_longer_than_the_model_is_refused_with_the_one_that_fits(
    model: LlamaForCausalLM, bpe: PreTrainedTokenizerFast, sentences: Callable[..., list[str]]
) -> None:
    texts = ["щ" * 400, *sentences(2)]
    with pytest.raises(
        ValueError, match=r"context=300 characters .* the model's 256 positions. Set context to at most"
    ):
        bits_per_byte(model, bpe, texts, context=300)


def test_speed_counts_what_was_written(
    model: LlamaForCausalLM,
    bpe: PreTrainedTokenizerFast,
    sentences: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clock by which a step takes a second: one to read two prompts, then five to write five tokens after each."""
    monkeypatch.setattr("time.perf_counter", iter(range(100)).__next__)
    speed = generation_speed(model, bpe, sentences(2), max_new_tokens=6)
    written = generate(model, bpe, sentences(2), max_new_tokens=6)
    after_first = sum(len(w.text) - len(bpe.decode(w.ids[:1])) for w in written)
    assert speed["prompts"] == 2 and speed["seconds"] == 6 and speed["prefill_seconds"] == 1
    assert speed["prefill_characters_per_second"] == sum(map(len, sentences(2)))
    assert speed["tokens_per_second"] == 10 / 5 and speed["characters_per_second"] == after_first / 5
    with pytest.raises(ValueError, match="max_new_tokens=1"):
        generation_speed(model, bpe, sentences(2), max_new_tokens=1)


def test_speed_of_several_batches_tells_reading_from_writing(
    model: LlamaForCausalLM,
    bpe: PreTrainedTokenizerFast,
    sentences: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lep.benchmark.scoring._ROWS_AT_ONCE", 2)
    monkeypatch.setattr("time.perf_counter", iter(range(1000)).__next__)
    speed = generation_speed(model, bpe, sentences(5), max_new_tokens=4)
    assert speed["prefill_seconds"] == 3 and speed["seconds"] == 3 * 4
    assert speed["tokens_per_second"] == 5 * 3 / 9
