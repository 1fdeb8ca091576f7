"""Likelihoods and answers of a causal language model: what every benchmark is made of.

In: a model and its tokenizer in memory, on any device, and texts. Out: numbers and texts in the order of the input.
Assumed: the model is causal and its output rows are the tokenizer's ids, perhaps followed by padding rows, which get no
probability. Texts are batched by length, so the batch size changes the speed and not the result.
"""

# B rows of a batch, L positions, V output rows, D hidden, N scored tokens

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from lep.vocabulary import read_vocabulary

# Chunks of logits stay below 2^26 float32 numbers (256 MB), whatever the vocabulary.
_LOGITS_AT_ONCE = 2**26
# A batch of short texts is bound by these two; beyond them a batch only costs memory.
_TOKENS_AT_ONCE = 8192
_ROWS_AT_ONCE = 256
# Bytes that begin a character in UTF-8: all but 0x80..0xBF.
_STARTING_BYTES = bytes(byte for byte in range(256) if byte & 0xC0 != 0x80)
# UTF-8 spends at most four bytes on a character and a token holds at least one byte.
_TOKENS_PER_CHARACTER = 4
_UNLIMITED = 2**40


@dataclass(frozen=True)
class Generation:
    """What a model wrote after a prompt.

    text: without the end token, cut before the stop character. ids: every token written but the end token.
    stopped: the end token that ended it, or None. ended: what ended it.
    """

    text: str
    ids: tuple[int, ...]
    stopped: int | None
    ended: Literal["end token", "stop character", "budget"]


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities (nats) of a text's tokens and where each starts in the text, in characters. Both [N]."""

    logprobs: np.ndarray
    starts: np.ndarray

    @property
    def total(self) -> float:
        return float(self.logprobs.sum())


def render_chat(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """The prompt as one user turn in the tokenizer's chat format, with the assistant's turn opened after it.

    The text is the template's own: whether it begins with BOS is the template's decision, as in `pipeline`.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template, so it cannot ask an instruct model. "
            "Use the tokenizer of an instruct model, or copy its chat_template."
        )
    turns = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def end_tokens(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """Every special token of the tokenizer: none of them belongs to an answer, so each ends it."""
    return frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)


def sequence_logprobs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, progress: str | None = None
) -> list[TokenScores]:
    """Log-probability of every token of every text, given BOS (EOS where there is no BOS), which is not counted."""
    prefix = prefix_id(tokenizer)
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    scores = target_logprobs(
        model, tokenizer, [[prefix, *ids] for ids in encoded["input_ids"]], [1] * len(texts), progress=progress
    )
    starts = [np.array([start for start, _ in row], dtype=np.int64) for row in encoded["offset_mapping"]]
    return [TokenScores(row, start) for row, start in zip(scores, starts, strict=True)]


def option_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    options: Sequence[Sequence[str]],
    *,
    mode: Literal["full_string"] = "full_string",
    chat: bool = False,
    progress: str | None = None,
) -> list[np.ndarray]:
    """Log-probability of each option as the continuation of its prompt: one array [options] a prompt, in nats.

    Prompt and option are tokenised as one text. The scored tokens begin where the prompt's own tokens and those of any
    of its options first differ, so that all the options of a prompt are scored from the same point of the text.
    chat: the prompts come from `render_chat`, which decided about BOS; otherwise exactly one BOS precedes them.
    """
    if mode != "full_string":
        raise ValueError(f"mode={mode!r} is unknown. Use 'full_string'.")
    alone = _ids(tokenizer, prompts, chat=chat)
    joined = [_ids(tokenizer, [prompt + o for o in of], chat=chat) for prompt, of in zip(prompts, options, strict=True)]
    firsts = [min(_common_prefix(ids, row) for row in rows) for ids, rows in zip(alone, joined, strict=True)]
    counts = [len(rows) for rows in joined]
    scores = target_logprobs(
        model,
        tokenizer,
        [row for rows in joined for row in rows],
        np.repeat(firsts, counts).tolist(),
        progress=progress,
    )
    totals = np.array([row.sum() for row in scores])
    return np.split(totals, np.cumsum(counts)[:-1])


def target_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    sequences: Sequence[Sequence[int]],
    firsts: Sequence[int],
    *,
    progress: str | None = None,
) -> list[np.ndarray]:
    """Log-probability of `ids[first:]` given what precedes each, for every sequence of ids: float64 arrays [N].

    firsts: at least 1, as the first token has nothing before it.
    """
    assert all(first >= 1 for first in firsts), "the first token of a sequence cannot be scored"
    if not sequences:
        return []
    scores: list[np.ndarray] = [np.zeros(0)] * len(sequences)
    lengths = [len(row) for row in sequences]
    unknown = _unknown_rows(model, tokenizer)
    with _evaluating(model), _bar(progress, len(sequences)) as bar:
        body, head = _body_and_head(model, sequences)
        for batch in _batches(lengths):
            ids = _pad([sequences[i][:-1] for i in batch], side="right").to(model.device)
            counts = [lengths[i] - firsts[i] for i in batch]
            rows = np.repeat(np.arange(len(batch)), counts)
            columns = np.concatenate([np.arange(firsts[i] - 1, lengths[i] - 1) for i in batch])
            targets = torch.tensor([t for i in batch for t in sequences[i][firsts[i] :]], dtype=torch.long)
            # Padding stands on the right of causal positions: no scored position sees it, so no mask is needed.
            features_ND = body(ids)[torch.from_numpy(rows), torch.from_numpy(columns)]
            flat = _logprobs(features_ND, targets.to(model.device), head, unknown)
            for i, part in zip(batch, np.split(flat, np.cumsum(counts)[:-1]), strict=True):
                scores[i] = part
            bar.update(len(batch))
    return scores


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    max_new_tokens: int | None = None,
    max_new_characters: Sequence[int] | None = None,
    stop_ids: Sequence[int] | frozenset[int] = (),
    stop_character: str | None = None,
    chat: bool = False,
    progress: str | None = None,
) -> list[Generation]:
    """What the model writes greedily after each prompt, until an end token, the stop character or the budget.

    max_new_characters: one budget a prompt; writing ends with the token that reaches it, so every vocabulary gets the
    same text length, where a budget in tokens favours long tokens. stop_character: one ASCII character (say newline);
    the text is cut in characters before it, as a token may hold it beside text that belongs to the answer.
    chat: see `option_scores`.
    """
    if max_new_tokens is None and max_new_characters is None:
        raise ValueError("generate needs a budget: give max_new_tokens, max_new_characters or both.")
    assert stop_character is None or (len(stop_character) == 1 and stop_character.isascii())
    rows = _ids(tokenizer, prompts, chat=chat)
    budgets = _budgets(model, rows, max_new_tokens, max_new_characters)
    stops = _Stops.of(tokenizer, stop_ids, stop_character)
    unknown = _unknown_rows(model, tokenizer)
    written: list[list[int]] = [[] for _ in rows]
    with _evaluating(model), _bar(progress, len(rows)) as bar:
        for batch in _batches([len(row) for row in rows]):
            produced = _generate_batch(model, [rows[i] for i in batch], budgets.take(batch), stops, unknown)
            for i, ids in zip(batch, produced, strict=True):
                written[i] = ids
            bar.update(len(batch))
    return _generations(tokenizer, written, stops)


def tokens_before(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], character: str) -> int:
    """How many of the tokens hold text that stands before the first such character; all of them if it is absent."""
    for count in range(1, len(ids) + 1):
        text = _decode(tokenizer, [ids[:count]])[0]
        if character in text:
            before = text[: text.index(character)]
            return count if before != _decode(tokenizer, [ids[: count - 1]])[0] else count - 1
    return len(ids)


@dataclass(frozen=True)
class _Budgets:
    """How much each row may write. Both int64 [B]."""

    tokens: np.ndarray
    characters: np.ndarray

    def take(self, rows: Sequence[int]) -> "_Budgets":
        return _Budgets(self.tokens[rows], self.characters[rows])


def _budgets(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | None,
    max_new_characters: Sequence[int] | None,
) -> _Budgets:
    """The budgets asked for, and never more tokens than the model has positions after the prompt."""
    limit = getattr(model.config, "max_position_embeddings", None) or _UNLIMITED
    lengths = np.array([len(row) for row in prompts], dtype=np.int64)
    if len(lengths) and lengths.max() >= limit:
        raise ValueError(
            f"a prompt of {lengths.max()} tokens leaves no room to answer: the model has {limit} positions. Shorten it."
        )
    tokens = np.full(len(prompts), max_new_tokens or _UNLIMITED)
    characters = np.asarray([_UNLIMITED] * len(prompts) if max_new_characters is None else max_new_characters)
    assert len(characters) == len(prompts), "one character budget a prompt"
    return _Budgets(np.minimum.reduce([tokens, characters * _TOKENS_PER_CHARACTER, limit - lengths]), characters)


@dataclass(frozen=True)
class _Stops:
    """What ends writing, by token id: end tokens, tokens with the stop character. characters: of each token [V]."""

    end: np.ndarray
    holds_stop: np.ndarray
    characters: np.ndarray
    character: str | None

    @staticmethod
    def of(
        tokenizer: PreTrainedTokenizerFast, stop_ids: Sequence[int] | frozenset[int], character: str | None
    ) -> "_Stops":
        tokens = read_vocabulary(tokenizer).tokens
        end = np.zeros(len(tokens), dtype=bool)
        end[list(stop_ids)] = True
        holds = [character is not None and token is not None and character.encode() in token for token in tokens]
        # A character is counted where it begins: at any byte that does not continue one. A special token counts as one.
        counts = [1 if token is None else len(token) - len(token.translate(None, _STARTING_BYTES)) for token in tokens]
        return _Stops(end, np.array(holds, dtype=bool), np.array(counts, dtype=np.int64), character)


def _generate_batch(
    model: PreTrainedModel, prompts: Sequence[list[int]], budgets: _Budgets, stops: _Stops, unknown: Tensor | None
) -> list[list[int]]:
    """Ids written after each prompt, the end token included. Left padding; finished rows leave the batch."""
    produced: list[list[int]] = [[] for _ in prompts]
    lengths = torch.tensor([len(row) for row in prompts])
    width = int(lengths.max())
    active = np.arange(len(prompts))
    used = np.zeros(len(prompts), dtype=np.int64)
    ids = _pad(prompts, side="left").to(model.device)
    mask = (torch.arange(width) >= width - lengths[:, None]).long().to(model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    for step in range(1, int(budgets.tokens.max()) + 1):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        chosen = _masked(logits, unknown).argmax(-1)
        tokens = chosen.cpu().numpy()
        for row, token in zip(active, tokens.tolist(), strict=True):
            produced[row].append(token)
        used[active] += stops.characters[tokens]
        over = (used[active] >= budgets.characters[active]) | (step >= budgets.tokens[active])
        going = np.flatnonzero(~(stops.end[tokens] | stops.holds_stop[tokens] | over))
        if not len(going):
            break
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        ids = chosen[:, None]
        if len(going) < len(active):
            keep = torch.from_numpy(going).to(model.device)
            cache.batch_select_indices(keep)
            ids, mask, positions, active = ids[keep], mask[keep], positions[keep], active[going]
    return produced


def _generations(tokenizer: PreTrainedTokenizerFast, written: list[list[int]], stops: _Stops) -> list[Generation]:
    stopped = [row[-1] if row and stops.end[row[-1]] else None for row in written]
    kept = [row if end is None else row[:-1] for row, end in zip(written, stopped, strict=True)]
    generations = []
    for row, end, text in zip(kept, stopped, _decode(tokenizer, kept), strict=True):
        cut = stops.character is not None and stops.character in text
        ended = "end token" if end is not None else "stop character" if cut else "budget"
        generations.append(Generation(text.split(stops.character)[0] if cut else text, tuple(row), end, ended))
    return generations


def _ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, chat: bool = False) -> list[list[int]]:
    """Ids of the texts with exactly one BOS: the template's own in a chat (or none), else put in front where absent."""
    if not texts:
        return []
    bos = tokenizer.bos_token_id
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    if not chat and bos is not None:
        rows = [row if row[:1] == [bos] else [bos, *row] for row in rows]
    for row, text in zip(rows, texts, strict=True):
        assert bos is None or row[:2] != [bos, bos], f"two BOS tokens open {text[:60]!r}"
    return rows


def prefix_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """What stands before a text: BOS, or EOS where there is no BOS (as in lm-evaluation-harness)."""
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if prefix is None:
        raise ValueError(
            "the tokenizer has neither BOS nor EOS, so a text's first token has nothing to follow. Set one."
        )
    assert isinstance(prefix, int)
    return prefix


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix, kept below b's length so that at least one token of b is scored."""
    same = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return min(same, len(b) - 1)


def _decode(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[int]]) -> list[str]:
    # Special tokens stay visible: a stray one inside an answer must not pass for a right answer.
    return tokenizer.batch_decode(
        [list(row) for row in rows], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def _pad(rows: Sequence[Sequence[int]], *, side: Literal["left", "right"]) -> Tensor:
    """Ids [B, L], filled up with 0: what a filled place holds is never seen."""
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for row, place in zip(rows, padded, strict=True):
        start = len(place) - len(row) if side == "left" else 0
        place[start : start + len(row)] = torch.tensor(row)
    return padded


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in batches of like length, the longest first: what does not fit in memory fails at once."""
    batch: list[int] = []
    for i in np.argsort(lengths, kind="stable")[::-1].tolist():
        if len(batch) == _ROWS_AT_ONCE or (batch and lengths[batch[0]] * (len(batch) + 1) > _TOKENS_AT_ONCE):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _body_and_head(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]]
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The model as features of all positions, and logits of chosen features, so that logits never exist whole.

    A model that changes its logits after the output table (a soft cap, a scale) is left in one piece.
    """

    def hidden(ids: Tensor) -> Tensor:
        return model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    def logits(ids: Tensor) -> Tensor:
        return model(input_ids=ids, use_cache=False).logits

    head = _output_table(model)
    probe = torch.tensor([list(sequences[0][:8])], device=model.device)
    if torch.allclose(head(hidden(probe)), logits(probe), rtol=1e-5, atol=1e-5):
        return hidden, head
    return logits, nn.Identity()


def _output_table(model: PreTrainedModel) -> nn.Linear:
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear), f"{type(model).__name__} has no output table to score tokens with"
    return head


def _logprobs(
    features_ND: Tensor, targets_N: Tensor, head: Callable[[Tensor], Tensor], unknown: Tensor | None
) -> np.ndarray:
    """Log-probability of each target, its logits made and thrown away chunk by chunk. Float32 sums, float64 result."""
    rows = max(1, _LOGITS_AT_ONCE // _width(head, features_ND))
    parts = []
    for features, targets in zip(features_ND.split(rows), targets_N.split(rows), strict=True):
        logits = _masked(head(features).float(), unknown)
        parts.append(logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1))
    return torch.cat(parts).double().cpu().numpy()


def _width(head: Callable[[Tensor], Tensor], features_ND: Tensor) -> int:
    return head.weight.shape[0] if isinstance(head, nn.Linear) else features_ND.shape[1]


def _masked(logits: Tensor, unknown: Tensor | None) -> Tensor:
    return logits if unknown is None else logits.masked_fill(unknown, -torch.inf)


def _unknown_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Tensor | None:
    """Which output rows [V] are no token of the tokenizer (padding rows, holes); None if every row is one."""
    rows = _output_table(model).weight.shape[0]
    known = np.fromiter(tokenizer.get_vocab().values(), dtype=np.int64)
    if known.max() >= rows:
        raise ValueError(
            f"the tokenizer's largest id is {known.max()} but the model has {rows} output rows. "
            "They are not of one model: load both from the same directory."
        )
    unknown = torch.ones(rows, dtype=torch.bool)
    unknown[known] = False
    return unknown.to(model.device) if unknown.any() else None


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """No dropout and no gradients inside; every module is in its former mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _bar(description: str | None, total: int) -> tqdm:
    """A bar with items a second, which shows itself only when the work takes longer than two seconds."""
    return tqdm(total=total, desc=description, unit="item", delay=2, leave=False, disable=description is None)
