"""Likelihoods and answers of a causal language model: what every benchmark is made of.

In: a model and its tokenizer in memory, on any device, and texts. Out: numbers and texts in the order of the input.
Assumed: the model is causal and its output rows are the tokenizer's ids, perhaps followed by padding rows, which get no
probability. Texts are batched by length, and what many begin with (the examples of a few-shot prompt, the question
before its options) is read once, so batches and sharing change the speed and not the result.
"""

# B rows of a batch, L positions, P positions of a shared beginning, V output rows, D hidden, N scored tokens

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lep.chat import chat_text
from lep.vocabulary import read_vocabulary

# Chunks of logits stay below 2^26 float32 numbers (256 MB), whatever the vocabulary.
_LOGITS_AT_ONCE = 2**26
# A batch of short texts is bound by these two; beyond them a batch only costs memory.
_TOKENS_AT_ONCE = 8192
_ROWS_AT_ONCE = 256
# A beginning that is shared by fewer tokens than this is read with every row: a second pass would cost more.
_SHARED_AT_LEAST = 16
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


Turn = tuple[Literal["system", "user", "assistant"], str]
# Letters that no template writes by itself; they keep it from trimming what stands before them.
_OPEN = "zqxopenzqx"


def render_chat(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """The prompt as one user turn in the tokenizer's chat format, with the assistant's turn opened after it.

    The text is the template's own: whether it begins with BOS is the template's decision, as in `pipeline`.
    """
    _check_template(tokenizer)
    turns = [{"role": "user", "content": prompt}]
    return chat_text(tokenizer, turns, open_answer=True)


def render_turns(tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn]) -> str:
    """Turns in the tokenizer's chat format, the last of them the assistant's and left open for the model to go on.

    What the open turn holds ends the text, its trailing space included (templates trim it). ValueError if the template
    leaves out any of the turns.
    """
    _check_template(tokenizer)
    assert turns and turns[-1][0] == "assistant", "the assistant's turn is the one left open"
    texts = [content for _, content in turns]
    messages = [{"role": role, "content": content} for role, content in turns]
    messages[-1]["content"] += _OPEN
    rendered = chat_text(tokenizer, messages)
    rendered = rendered[: max(0, rendered.rfind(_OPEN))]
    place = 0
    for text in texts:
        found = rendered.find(text.strip(), place)
        if found < 0 or not rendered.endswith(texts[-1].lstrip()):
            raise ValueError(
                f"the chat template leaves out a turn that begins {text[:40]!r}: it knows other roles, or rewrites "
                "what is said. Use the template of the model's tokenizer, or ask in plain text."
            )
        place = found + len(text.strip())
    return rendered


def takes_system(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the chat format has a turn of the system; some templates refuse it."""
    try:
        render_turns(tokenizer, [("system", "zqx"), ("user", "a"), ("assistant", "")])
    except (TemplateError, ValueError):
        return False
    return True


def render_plain(turns: Sequence[Turn]) -> str:
    """Turns for a model that knows no chat: a newline after what the user says, an empty line after each answer."""
    assert turns and turns[-1][0] == "assistant", "the assistant's turn is the one left open"
    ends = {"system": "\n", "user": "\n", "assistant": "\n\n"}
    return "".join(content + ends[role] for role, content in turns[:-1] if content) + turns[-1][1]


def _check_template(tokenizer: PreTrainedTokenizerFast) -> None:
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template, so it cannot ask an instruct model. "
            "Use the tokenizer of an instruct model, or copy its chat_template."
        )


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


Mode = Literal["full_string", "first_token"]


class SameFirstToken(ValueError):
    """Options that their first tokens do not tell apart, as in a vocabulary that cuts their letters to bytes."""


def option_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    options: Sequence[Sequence[str]],
    *,
    mode: Mode = "full_string",
    chat: bool = False,
    progress: str | None = None,
) -> list[np.ndarray]:
    """Log-probability of each option as the continuation of its prompt: one array [options] a prompt, in nats.

    mode: "full_string" sums over the option's tokens, which compares across vocabularies. "first_token" (Darumeru's
    rule) takes the first of them with visible text; a bare space that stands alone before it joins the prompt. For the
    rest see `option_logprobs`.
    """
    rows = option_logprobs(model, tokenizer, prompts, options, mode=mode, chat=chat, progress=progress)
    return [np.array([tokens.sum() for tokens in of]) for of in rows]


def option_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    options: Sequence[Sequence[str]],
    *,
    mode: Mode = "full_string",
    chat: bool = False,
    progress: str | None = None,
) -> list[list[np.ndarray]]:
    """Log-probabilities (nats) of the tokens of each option after its prompt: arrays [N], one an option, by prompt.

    Prompt and option are tokenised as one text, so an option brings its leading space with it. The scored tokens begin
    where the prompt's own tokens and those of any of its options first differ, so that all the options of a prompt are
    scored from the same point of the text.
    chat: the prompts come from `render_chat`, which decided about BOS; otherwise exactly one BOS precedes them.

    SameFirstToken if two options of a prompt begin with the same token under "first_token".
    """
    branches = _option_branches(tokenizer, prompts, options, chat=chat)
    if mode == "first_token":
        branches = _first_tokens(tokenizer, branches, options)
    elif mode != "full_string":
        raise ValueError(f"mode={mode!r} is unknown. Use 'full_string' or 'first_token'.")
    return branch_logprobs(model, tokenizer, branches, progress=progress)


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
    branches = [Branch(ids[:first], (ids[first:],)) for ids, first in zip(sequences, firsts, strict=True)]
    return [tails[0] for tails in branch_logprobs(model, tokenizer, branches, progress=progress)]


@dataclass(frozen=True)
class Branch:
    """Token ids that begin alike: `stem`, then one of the `tails`. The tails are what is scored."""

    stem: Sequence[int]
    tails: Sequence[Sequence[int]]


def branch_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    branches: Sequence[Branch],
    *,
    progress: str | None = None,
) -> list[list[np.ndarray]]:
    """Log-probability of every token of every tail, given all that stands before it: float64 arrays [N].

    What all the stems begin with is read once; so is the rest of a stem, where its tails are worth a second pass.
    """
    assert all(len(branch.stem) for branch in branches), "the first token of a sequence cannot be scored"
    scores = [[np.zeros(0)] * len(branch.tails) for branch in branches]
    if not branches:
        return scores
    with _evaluating(model), _bar(progress, len(branches)) as bar:
        reader = _Reader.of(model, tokenizer, [branch.stem for branch in branches])
        straight, forks, broad = _sorted_out(branches, reader)
        paths = [path for i in straight for path in _paths(i, branches[i])]
        for batch in _batches([len(path.ids) - reader.shared for path in paths]):
            chosen = [paths[i] for i in batch]
            for path, found in zip(chosen, _score_paths(reader, chosen), strict=True):
                for (_, _, tail), row in zip(path.targets, found, strict=True):
                    scores[path.branch][tail] = row
            bar.update(sum(path.targets[0][2] == 0 for path in chosen))
        for batch in _batches([len(branches[i].tails) * _width_of(branches[i]) for i in forks]):
            chosen = [forks[i] for i in batch]
            for i, found in zip(chosen, _score_forks(reader, [branches[i] for i in chosen]), strict=True):
                scores[i] = found
            bar.update(len(batch))
        for i in broad:
            alone = [Branch(branches[i].stem, (tail,)) for tail in branches[i].tails]
            scores[i] = [rows[0] for rows in branch_logprobs(model, tokenizer, alone)]
            bar.update(1)
    return scores


def _sorted_out(branches: Sequence[Branch], reader: "_Reader") -> tuple[list[int], list[int], list[int]]:
    """Which branches are read straight through, tail by tail; which fork; and which fork too broadly for a cache.

    Those last are read one by one, their stem being the beginning that all of their tails share.
    """
    worth = [i for i, branch in enumerate(branches) if reader.shares and _worth_forking(branch, reader.shared)]
    broad = [i for i in worth if len(branches[i].tails) * _width_of(branches[i]) > _TOKENS_AT_ONCE]
    forks = sorted(set(worth) - set(broad))
    if not reader.pads_inside(max((_width_of(branches[i]) for i in forks), default=0)):
        forks = []
    return sorted(set(range(len(branches))) - set(forks) - set(broad)), forks, broad


@dataclass(frozen=True)
class _Path:
    """One row to read. targets: (first position, ids, number of the tail) of what is scored along it."""

    branch: int
    ids: Sequence[int]
    targets: Sequence[tuple[int, Sequence[int], int]]


def _paths(number: int, branch: Branch) -> list[_Path]:
    """A row for each tail, and one for all where every tail's inputs begin the longest (options of one token do)."""
    stem, inputs = list(branch.stem), [list(tail[:-1]) for tail in branch.tails]
    targets = [(len(stem), tail, k) for k, tail in enumerate(branch.tails)]
    longest = max(inputs, key=len)
    if all(longest[: len(row)] == row for row in inputs):
        return [_Path(number, stem + longest, targets)]
    return [_Path(number, stem + row, [target]) for row, target in zip(inputs, targets, strict=True)]


def _worth_forking(branch: Branch, shared: int) -> bool:
    """Whether reading the rest of the stem once saves more than a second pass costs."""
    rows = len(_paths(0, branch))
    return (rows - 1) * (len(branch.stem) - shared) >= _SHARED_AT_LEAST * rows


def _width_of(branch: Branch) -> int:
    """Positions from the beginning of the stem to the end of the longest tail."""
    return len(branch.stem) + max(map(len, branch.tails))


def _score_paths(reader: "_Reader", paths: Sequence[_Path]) -> list[list[np.ndarray]]:
    ids = _pad([path.ids[reader.shared :] for path in paths], side="right")
    features_BLD = reader.read(ids)  # padding stands on the right of causal positions: none that is scored sees it
    rows, columns, targets = [], [], []
    for row, path in enumerate(paths):
        for first, tail, _ in path.targets:
            rows += [row] * len(tail)
            columns += range(first - 1 - reader.shared, first - 1 - reader.shared + len(tail))
            targets += tail
    flat = reader.logprobs(features_BLD[torch.tensor(rows), torch.tensor(columns)], targets)
    parts = iter(np.split(flat, np.cumsum([len(tail) for path in paths for _, tail, _ in path.targets])[:-1]))
    return [[next(parts) for _ in path.targets] for path in paths]


def _score_forks(reader: "_Reader", branches: Sequence[Branch]) -> list[list[np.ndarray]]:
    """Read the stems, then every tail after the cache of its stem."""
    stems = [branch.stem[reader.shared :] for branch in branches]
    owners = np.repeat(np.arange(len(branches)), [len(branch.tails) for branch in branches])
    tails = [tail for branch in branches for tail in branch.tails]
    cache, mask_BP = reader.cache(len(stems)), reader.mask(stems)
    last_BD = reader.read(_pad(stems, side="left"), mask_BP, cache)[:, -1]
    cache.batch_select_indices(torch.from_numpy(owners).to(last_BD.device))
    first = reader.logprobs(last_BD[torch.from_numpy(owners)], [tail[0] for tail in tails])
    inputs = _pad([tail[:-1] or [0] for tail in tails], side="right")
    mask = torch.cat([mask_BP[torch.from_numpy(owners)], torch.ones_like(inputs)], dim=1)
    features = reader.read(inputs, mask, cache)
    counts = [len(tail) - 1 for tail in tails]
    rows = np.repeat(np.arange(len(tails)), counts)
    columns = np.concatenate([np.arange(count) for count in counts])
    rest = reader.logprobs(
        features[torch.from_numpy(rows), torch.from_numpy(columns)], [t for tail in tails for t in tail[1:]]
    )
    parts = iter(zip(first, np.split(rest, np.cumsum(counts)[:-1]), strict=True))
    return [[np.concatenate([[one], others]) for _, (one, others) in zip(b.tails, parts)] for b in branches]  # noqa: B905


def _option_branches(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], options: Sequence[Sequence[str]], *, chat: bool
) -> list[Branch]:
    """Prompt and options as ids, the tails from the first token on that not all of them and the prompt share."""
    alone = _ids(tokenizer, prompts, chat=chat)
    owners = [prompt for prompt, of in zip(prompts, options, strict=True) for _ in of]
    texts = [prompt + option for prompt, option in zip(owners, (o for of in options for o in of), strict=True)]
    joined = _ids(tokenizer, texts, chat=chat)
    if not all(alone):  # an option that follows nothing: without BOS, EOS stands before it
        alone = [ids or [prefix_id(tokenizer)] for ids in alone]
        joined = [row if prompt else [prefix_id(tokenizer), *row] for prompt, row in zip(owners, joined, strict=True)]
    rows_left = iter(joined)
    branches = []
    for ids, of in zip(alone, options, strict=True):
        rows = [next(rows_left) for _ in of]
        first = min(_common_prefix(ids, row) for row in rows)
        branches.append(Branch(rows[0][:first], [row[first:] for row in rows]))
    return branches


def _first_tokens(
    tokenizer: PreTrainedTokenizerFast, branches: Sequence[Branch], options: Sequence[Sequence[str]]
) -> list[Branch]:
    """The branches cut after each option's first token with visible text; a bare space before it joins the stem."""
    tokens = read_vocabulary(tokenizer).tokens

    def blanks(tail: Sequence[int]) -> tuple[int, ...]:
        count = next((k for k, i in enumerate(tail) if (tokens[i] or b"special").strip()), len(tail) - 1)
        return tuple(tail[:count])

    cut = []
    for branch, of in zip(branches, options, strict=True):
        spaces = max(map(blanks, branch.tails), key=len)
        firsts = [
            # An option whose space is part of its token cannot follow a bare space: it is taken without its own.
            tail[len(spaces)] if blanks(tail) == spaces else _ids(tokenizer, [option.lstrip()], chat=True)[0][0]
            for tail, option in zip(branch.tails, of, strict=True)
        ]
        if len(set(firsts)) < len(firsts):
            raise SameFirstToken(
                f"mode=first_token cannot tell the options {list(of)} apart: two of them begin with the same token of "
                "this tokenizer. Use mode=full_string."
            )
        cut.append(Branch([*branch.stem, *spaces], [[first] for first in firsts]))
    return cut


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn instead of taken greedily. The draw of a prompt depends on its text and the seed alone."""

    temperature: float = 0.1
    top_k: int = 40
    top_p: float = 0.9
    seed: int = 0

    def draw(self, logits_BV: Tensor, uniform_B: np.ndarray) -> Tensor:
        """One token a row, by inverting the cumulative distribution at `uniform_B` (in 0..1)."""
        scaled, ids = (logits_BV.float() / self.temperature).topk(min(self.top_k, logits_BV.shape[1]))
        cumulative = scaled.softmax(-1).cumsum(-1)
        kept = torch.roll(cumulative, 1, dims=1)
        kept[:, 0] = 0  # a token is kept while those above it hold less than top_p
        share = torch.where(kept < self.top_p, cumulative, torch.zeros_like(cumulative)).amax(1, keepdim=True)
        place = (cumulative < share * torch.from_numpy(uniform_B).to(cumulative)[:, None]).sum(1, keepdim=True)
        return ids.gather(1, place)[:, 0]

    def uniforms(self, prompt: Sequence[int]) -> np.random.Generator:
        return np.random.default_rng([self.seed, *prompt])


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    max_new_tokens: int | None = None,
    max_new_characters: Sequence[int] | None = None,
    stop_ids: Sequence[int] | frozenset[int] = (),
    stop_character: str | None = None,
    sampling: Sampling | None = None,
    chat: bool = False,
    progress: str | None = None,
    stepped: Callable[[int], None] | None = None,
) -> list[Generation]:
    """What the model writes after each prompt, until an end token, the stop character or the budget.

    Greedily, unless `sampling` says how to draw.

    max_new_characters: one budget a prompt; writing ends with the token that reaches it, so every vocabulary gets the
    same text length, where a budget in tokens favours long tokens. stop_character: one ASCII character (say newline);
    the text is cut in characters before it, as a token may hold it beside text that belongs to the answer.
    chat: see `option_scores`. stepped: told the step when a batch has its next tokens, 1 for those after the prompts.
    """
    if max_new_tokens is None and max_new_characters is None:
        raise ValueError("generate needs a budget: give max_new_tokens, max_new_characters or both.")
    assert stop_character is None or (len(stop_character) == 1 and stop_character.isascii())
    rows = _ids(tokenizer, prompts, chat=chat)
    budgets = _budgets(model, rows, max_new_tokens, max_new_characters)
    stops = _Stops.of(tokenizer, stop_ids, stop_character)
    written: list[list[int]] = [[] for _ in rows]
    if not rows:
        return []
    with _evaluating(model), _bar(progress, len(rows)) as bar:
        reader = _Reader.of(model, tokenizer, rows)
        if not reader.pads_inside(max(map(len, rows)) + int(budgets.tokens.max())):
            reader = reader.alone()
        for batch in _batches([len(row) for row in rows]):
            produced = _generate_batch(reader, [rows[i] for i in batch], budgets.take(batch), stops, sampling, stepped)
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
    reader: "_Reader",
    prompts: Sequence[list[int]],
    budgets: _Budgets,
    stops: _Stops,
    sampling: Sampling | None,
    stepped: Callable[[int], None] | None,
) -> list[list[int]]:
    """Ids written after each prompt, the end token included. Left padding; finished rows leave the batch."""
    produced: list[list[int]] = [[] for _ in prompts]
    rests = [row[reader.shared :] for row in prompts]
    active = np.arange(len(prompts))
    used = np.zeros(len(prompts), dtype=np.int64)
    ids, mask, cache = _pad(rests, side="left"), reader.mask(rests), reader.cache(len(rests))
    draws = [sampling.uniforms(row) for row in prompts] if sampling else []
    for step in range(1, int(budgets.tokens.max()) + 1):
        logits = reader.logits(reader.read(ids, mask, cache)[:, -1])
        if sampling:
            chosen = sampling.draw(logits, np.array([draws[row].random() for row in active]))
        else:
            chosen = logits.argmax(-1)
        tokens = chosen.cpu().numpy()
        for row, token in zip(active, tokens.tolist(), strict=True):
            produced[row].append(token)
        if stepped:
            stepped(step)
        used[active] += stops.characters[tokens]
        over = (used[active] >= budgets.characters[active]) | (step >= budgets.tokens[active])
        going = np.flatnonzero(~(stops.end[tokens] | stops.holds_stop[tokens] | over))
        if not len(going):
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        ids = chosen[:, None]
        if len(going) < len(active):
            keep = torch.from_numpy(going).to(chosen.device)
            cache.batch_select_indices(keep)
            ids, mask, active = ids[keep], mask[keep.to(mask.device)], active[going]
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


class _Beginning(DynamicCache):
    """The cache of one row of ids, which any number of rows can be read after. They see it and leave it as it is."""

    filled = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.filled:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer, rows = self.layers[layer_idx], len(key_states)
        assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
        keys, values = layer.keys, layer.values
        keys, values = (states.expand(rows, -1, -1, -1) for states in (keys, values))
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


@dataclass(frozen=True)
class _Reader:
    """A model that reads rows of ids after a shared beginning of `shared` ids (none: 0).

    body: features of all positions. head: logits of chosen features, so that logits never exist whole. unknown: output
    rows that are no token. shares: whether its cache can be copied (that of attention can, a recurrent state may not).
    """

    model: PreTrainedModel
    body: Callable[..., Tensor]
    head: Callable[[Tensor], Tensor]
    unknown: Tensor | None
    shares: bool
    beginning: _Beginning | None
    shared: int

    @staticmethod
    def of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[int]]) -> "_Reader":
        """The reader of rows, with what they all begin with already read (but for a last id that every row keeps)."""
        body, head = _body_and_head(model, rows[0])
        kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
        shares = kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
        shared, beginning = _shared(rows) if shares and len(rows) > 1 else 0, None
        if shared:
            beginning = _Beginning(config=model.config)
            body(torch.tensor([list(rows[0][:shared])], device=model.device), past_key_values=beginning, use_cache=True)
            beginning.filled = True
        return _Reader(model, body, head, _unknown_rows(model, tokenizer), shares, beginning, shared)

    def pads_inside(self, width: int) -> bool:
        """Whether rows of that many positions may be padded between the beginning and their own ids.

        A sliding window counts the places of padding too, so it must not be reached by then.
        """
        layers = DynamicCache(config=self.model.config).layers
        windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
        return self.shares and (not self.shared or width <= min(windows, default=width))

    def alone(self) -> "_Reader":
        """The same reader with nothing shared."""
        return replace(self, beginning=None, shared=0)

    def read(self, ids_BL: Tensor, mask_BP: Tensor | None = None, cache: DynamicCache | None = None) -> Tensor:
        """Features [B, L, D] of the ids after the beginning; or, with a mask [B, P] of all there is, after a cache."""
        device, length = self.model.device, ids_BL.shape[1]
        if cache is None and self.beginning is None:
            return self.body(ids_BL.to(device), use_cache=False)
        if mask_BP is None:
            positions = (self.shared + torch.arange(length)).expand(len(ids_BL), -1)
        else:
            positions = (mask_BP.cumsum(1)[:, -length:] - 1).clamp(min=0)
            # Without padding no mask is needed, and attention is faster without one.
            mask_BP = mask_BP.to(device) if not bool(mask_BP.all()) else None
        return self.body(
            ids_BL.to(device),
            attention_mask=mask_BP,
            position_ids=positions.to(device),
            past_key_values=self.beginning if cache is None else cache,
            use_cache=True,
        )

    def cache(self, rows: int) -> DynamicCache:
        """A cache of its own for that many rows, holding the beginning."""
        cache = DynamicCache(config=self.model.config)
        if self.beginning is not None:
            cache.layers = copy.deepcopy(self.beginning.layers)
            cache.batch_select_indices(torch.zeros(rows, dtype=torch.long, device=self.model.device))
        return cache

    def mask(self, rests: Sequence[Sequence[int]]) -> Tensor:
        """What is no padding [B, P]: the beginning, and the rests of the rows padded on the left."""
        lengths = torch.tensor([len(row) for row in rests])
        width = int(lengths.max())
        padded = (torch.arange(width) >= width - lengths[:, None]).long()
        return torch.cat([torch.ones(len(rests), self.shared, dtype=torch.long), padded], dim=1)

    def logits(self, features_ND: Tensor) -> Tensor:
        return _masked(self.head(features_ND).float(), self.unknown)

    def logprobs(self, features_ND: Tensor, targets: Sequence[int]) -> np.ndarray:
        """Log-probability of each target, its logits made and thrown away chunk by chunk. Float64 [N]."""
        wanted = torch.tensor(targets, dtype=torch.long, device=features_ND.device)
        parts = []
        chunk = max(1, _LOGITS_AT_ONCE // _width(self.head, features_ND))
        for features, ids in zip(features_ND.split(chunk), wanted.split(chunk), strict=True):
            logits = self.logits(features)
            parts.append(logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1))
        return torch.cat(parts).double().cpu().numpy() if parts else np.zeros(0)


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """How many ids all rows begin with, one of each left over; 0 where it is not worth a pass."""
    first, last = min(map(list, rows)), max(map(list, rows))  # what these two share, all between them share
    same = next((k for k, (x, y) in enumerate(zip(first, last, strict=False)) if x != y), len(first))
    count = min(same, min(map(len, rows)) - 1)
    return count if count >= _SHARED_AT_LEAST else 0


def _body_and_head(
    model: PreTrainedModel, ids: Sequence[int]
) -> tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]:
    """The model as features of all positions, and logits of chosen features.

    A model that changes its logits after the output table (a soft cap, a scale) is left in one piece.
    """

    def hidden(ids: Tensor, **reading: Any) -> Tensor:
        return model.base_model(input_ids=ids, **reading).last_hidden_state

    def logits(ids: Tensor, **reading: Any) -> Tensor:
        return model(input_ids=ids, **reading).logits

    head = output_table(model)
    probe = torch.tensor([list(ids[:8])], device=model.device)
    if torch.allclose(head(hidden(probe, use_cache=False)), logits(probe, use_cache=False), rtol=1e-5, atol=1e-5):
        return hidden, head
    return logits, nn.Identity()


def output_table(model: PreTrainedModel) -> nn.Linear:
    """The head of a model, from features to logits."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear), f"{type(model).__name__} has no output table to score tokens with"
    return head


def _width(head: Callable[[Tensor], Tensor], features_ND: Tensor) -> int:
    return head.weight.shape[0] if isinstance(head, nn.Linear) else features_ND.shape[1]


def _masked(logits: Tensor, unknown: Tensor | None) -> Tensor:
    return logits if unknown is None else logits.masked_fill(unknown, -torch.inf)


def _unknown_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Tensor | None:
    """Which output rows [V] are no token of the tokenizer (padding rows, holes); None if every row is one."""
    rows = output_table(model).weight.shape[0]
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
