"""How well a model predicts text and how fast it writes it, in units that do not know its vocabulary.

In: a model, its tokenizer, whole texts. Out: bits per UTF-8 byte, characters a token, characters a second. The same
texts, cut at the same characters, are scored for every tokenizer; tokens are only the way there.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lep.benchmark.metrics import Estimate, ratio_and_stderr, ratio_estimate
from lep.benchmark.scoring import generate, prefix_id, target_logprobs
from lep.results import BITS, Score


@dataclass(frozen=True)
class TextBits:
    """Bits that a model needs for each of some texts, and the UTF-8 bytes of each."""

    bits: Sequence[float]
    sizes: Sequence[int]

    @property
    def score(self) -> Score:
        """Bits per byte of all texts, with its standard error over them (n = number of texts)."""
        return Score(*ratio_and_stderr(self.bits, self.sizes), len(self.sizes))

    @property
    def estimate(self) -> Estimate:
        """The same, to be compared with another model's on the same texts."""
        return ratio_estimate(self.bits, self.sizes, name=BITS)


def bits_per_byte(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    context: int,
    progress: str | None = None,
) -> TextBits:
    """Bits the model needs for the texts, and their bytes; empty texts are left out.

    context: characters in a window. Windows advance by half of it: the first scores all it holds, each later one its
    second half with the first half as context, so every character is scored once. A token belongs where it starts.
    Each window is conditioned on BOS, which is not counted; bytes are those of the text as given.
    """
    if context < 2 or not any(texts):
        raise ValueError(f"bits_per_byte needs text and a context of at least 2 characters, got {context}.")
    texts = [text for text in texts if text]
    prefix, windows, firsts, owners = prefix_id(tokenizer), [], [], []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for owner, (ids, offsets) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
        starts = np.array([start for start, _ in offsets])
        for begin, first, end in _windows(starts, len(texts[owner]), context):
            windows.append([prefix, *ids[begin:end]])
            firsts.append(1 + first - begin)
            owners.append(owner)
    _check_context(model, windows, context)
    scores = target_logprobs(model, tokenizer, windows, firsts, progress=progress)
    bits = np.zeros(len(texts))
    np.add.at(bits, owners, [-row.sum() / math.log(2) for row in scores])
    return TextBits(bits.tolist(), [len(text.encode()) for text in texts])


def characters_per_token(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """Characters of the texts over their tokens, special tokens not counted."""
    tokens = sum(map(len, tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]))
    return sum(map(len, texts)) / tokens


def generation_speed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], *, max_new_tokens: int
) -> dict[str, float]:
    """How fast the model continues the prompts, all in one go and never stopping, so that models do equal work.

    Reading the prompts (until their first token) and writing the rest are timed apart, after one run that warms up.
    """
    if max_new_tokens < 2:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} leaves nothing to time after the first token. Give at least 2."
        )
    generate(model, tokenizer, prompts, max_new_tokens=2)
    steps, times = [0], [time.perf_counter()]

    def stepped(step: int) -> None:
        steps.append(step)
        times.append(time.perf_counter())

    written = generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens, stepped=stepped)
    seconds, reading = np.diff(times), np.array(steps[1:]) == 1
    prefill_s, writing_s = seconds[reading].sum().item(), seconds[~reading].sum().item()
    first = tokenizer.batch_decode([[*w.ids[:1]] for w in written], clean_up_tokenization_spaces=False)
    return {
        "characters_per_second": sum(len(w.text) - len(f) for w, f in zip(written, first, strict=True)) / writing_s,
        "tokens_per_second": sum(len(w.ids) - 1 for w in written) / writing_s,
        "prefill_characters_per_second": sum(map(len, prompts)) / prefill_s,
        "prefill_seconds": prefill_s,
        "seconds": prefill_s + writing_s,
        "prompts": float(len(prompts)),
    }


def _windows(starts: np.ndarray, characters: int, context: int) -> list[tuple[int, int, int]]:
    """Token ranges (begin, first scored, end) of a text's windows; the scored ranges are the text, each token once."""
    stride = max(1, context // 2)
    ends = [context, *range(context + stride, characters + stride, stride)] if characters > context else [characters]
    windows, first = [], 0
    for end in ends:
        begin = int(np.searchsorted(starts, end - context)) if end > context else 0
        last = int(np.searchsorted(starts, end)) if end < characters else len(starts)
        if last > first:
            windows.append((min(begin, first), first, last))
        first = last
    return windows


def _check_context(model: PreTrainedModel, windows: Sequence[Sequence[int]], context: int) -> None:
    longest, limit = max(map(len, windows)), getattr(model.config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ValueError(
            f"a window of context={context} characters takes up to {longest} tokens, more than the model's {limit} "
            f"positions. Set context to at most {context * limit // longest} (the same for every tokenizer compared)."
        )
