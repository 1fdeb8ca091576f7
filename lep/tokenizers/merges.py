"""Continued BPE: new merges learnt on words that the old merges have already segmented.

In: a BPE model, counted words, a number of tokens. Out: new pieces and the merges that make them, to stand behind the
old ones. Every old token becomes one private character, so that the library's trainer learns over old tokens as if
they were letters; the pairs it finds are then spelt out again.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from lep.vocabulary import BYTE_PIECE, merge_pairs

Merges = list[tuple[str, str]]
FIRST_SYMBOL = 0x10000  # old tokens become the characters from here on: no surrogates, no separators
SEPARATOR = "\n"
MIN_COUNT = 2  # a pair seen once is no evidence of a word
COPIES_AT_ONCE = 4096  # a frequent word goes to the trainer in strings of this many copies


def merges_alone(model: dict[str, Any]) -> Tokenizer:
    """The BPE model with its merges only: no pre-tokenizer, no look-up of whole words."""
    spec = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None}
    spec |= {"pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model | {"ignore_merges": False}}
    return Tokenizer.from_str(json.dumps(spec))


def whole_pieces(model: dict[str, Any], pieces: Iterable[str]) -> set[str]:
    """Those of the pieces that the merges alone give as one token."""
    pieces = list(pieces)
    encoded = merges_alone(model).encode_batch_fast(pieces, add_special_tokens=False)
    return {piece for piece, e in zip(pieces, encoded, strict=True) if e.ids == [model["vocab"][piece]]}


def derivation(piece: str, ranks: dict[tuple[str, str], int]) -> set[str] | None:
    """A piece and all pieces its merges go through, single characters too; None if no merges give it whole.

    ranks: the place of every merge, the first to apply being the lowest.
    """
    symbols, made = list(piece), {piece, *piece}
    while len(symbols) > 1:
        pairs = [ranks.get(pair, len(ranks)) for pair in zip(symbols, symbols[1:], strict=False)]
        best = min(pairs)
        if best == len(ranks):
            return None
        at = pairs.index(best)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        made.add(symbols[at])
    return made


def continue_merges(model: dict[str, Any], words: Counter[str], *, new_tokens: int) -> tuple[list[str], Merges]:
    """At most `new_tokens` new pieces and the merges behind the old ones that make them, most frequent first.

    Two old segmentations can lead to one string, so the trainer is asked for more than needed until the distinct
    pieces suffice or the words are exhausted. Pieces that the joint merges would not give whole are dropped.
    """
    letters = _missing_letters(model, words)[:new_tokens]
    grown = _with_pieces(model, letters)
    segmented = _segment(grown, words)
    asked = new_tokens + new_tokens // 8 + 64
    while True:
        learnt = _learn(segmented, asked)
        pieces, merges = _reachable(grown, learnt, new_tokens - len(letters))
        if len(pieces) + len(letters) >= new_tokens or len(learnt) < asked:
            return letters + pieces, merges
        asked *= 2


def merges_to(model: dict[str, Any], wanted: Counter[str], *, new_tokens: int) -> tuple[list[str], Merges]:
    """At most `new_tokens` new pieces and the merges behind the old ones that make the wanted pieces whole.

    A wanted piece that stands in two parts needs one merge. Where all that are left stand in more, each is brought
    nearer by its most frequent pair, an intermediate piece. The least frequent wanted pieces are left out until the
    others and what they go through fit into `new_tokens`.
    """
    letters = _missing_letters(model, wanted)[:new_tokens]
    grown = _with_pieces(model, letters)
    missing = Counter({piece: count for piece, count in wanted.items() if piece not in grown["vocab"]})
    ranked = sorted(_segment(grown, missing), key=lambda entry: -entry[1])
    room = new_tokens - len(letters)
    while True:
        merges = _join(ranked)
        products = {left + right for left, right in merges} - grown["vocab"].keys()
        if len(products) <= room:
            pieces, merges = _reachable(grown, merges, room)
            return letters + pieces, merges
        ranked = ranked[: min(len(ranked) - 1, len(ranked) * room // len(products))]


def _join(segmented: list[tuple[list[str], int]]) -> Merges:
    """Merges over old pieces, in the order in which they apply, until every word is one piece."""
    alphabet = sorted({piece for pieces, _ in segmented for piece in pieces})
    symbols = {piece: chr(FIRST_SYMBOL + i) for i, piece in enumerate(alphabet)}
    spelling = {ord(symbol): piece for piece, symbol in symbols.items()}
    counts = {"".join(symbols[piece] for piece in pieces): count for pieces, count in segmented}
    rows = [(list(word), count) for word, count in counts.items()]
    merges: dict[tuple[str, str], None] = {}
    while rows:
        pairs: Counter[tuple[str, str]] = Counter()
        for row, count in rows:
            for pair in pairwise(row):
                pairs[pair] += count
        ready = {(row[0], row[1]) for row, _ in rows if len(row) == 2}
        chosen = ready or {max(pairwise(row), key=pairs.__getitem__) for row, _ in rows}
        merges |= dict.fromkeys(sorted(chosen, key=lambda pair: (-pairs[pair], pair)))
        rows = [(row, counts["".join(row)]) for row in _apply(list(merges), ["".join(row) for row, _ in rows])]
        rows = [(row, count) for row, count in rows if len(row) > 1]
    return [(left.translate(spelling), right.translate(spelling)) for left, right in merges]


def _apply(merges: Merges, words: list[str]) -> list[list[str]]:
    """The words as the merges leave them."""
    pieces = dict.fromkeys([*(letter for word in words for letter in word), *(a for pair in merges for a in pair)])
    pieces |= dict.fromkeys(left + right for left, right in merges)
    ids = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(ids, merges))
    encoded = tokenizer.encode_batch_fast(words, add_special_tokens=False)
    spelling = list(pieces)
    return [[spelling[i] for i in e.ids] for e in encoded]


def _missing_letters(model: dict[str, Any], words: Counter[str]) -> list[str]:
    """Letters of the words that the model can only spell in `<0x..>` pieces, which no merge may join."""
    if not model["byte_fallback"]:
        return []
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            counts[letter] += count
    total = sum(counts.values())
    # One letter in 100,000 earns a token; below that, bytes do.
    return [c for c, n in counts.most_common() if c not in model["vocab"] and n * 100_000 >= total]


def _with_pieces(model: dict[str, Any], pieces: list[str], merges: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
    first = max(model["vocab"].values()) + 1
    vocab = model["vocab"] | {piece: first + i for i, piece in enumerate(pieces)}
    return model | {"vocab": vocab, "merges": [*model["merges"], *map(list, merges)]}


def _segment(model: dict[str, Any], words: Counter[str]) -> list[tuple[list[str], int]]:
    """The words as old pieces with their counts; words of one piece or with raw bytes have nothing to merge."""
    spelling = {i: piece for piece, i in model["vocab"].items()}
    rest = [word for word in words if not (model["ignore_merges"] and word in model["vocab"])]
    encoded = merges_alone(model).encode_batch_fast(rest, add_special_tokens=False)
    segmented = (([spelling[i] for i in e.ids], words[word]) for word, e in zip(rest, encoded, strict=True))
    raw = {piece for piece in model["vocab"] if model["byte_fallback"] and BYTE_PIECE.fullmatch(piece)}
    return [(pieces, count) for pieces, count in segmented if len(pieces) > 1 and raw.isdisjoint(pieces)]


def _learn(segmented: list[tuple[list[str], int]], number: int) -> Merges:
    """Merges over old pieces, learnt by the library's trainer over one private character a piece."""
    alphabet = sorted({piece for pieces, _ in segmented for piece in pieces})
    symbols = {piece: chr(FIRST_SYMBOL + i) for i, piece in enumerate(alphabet)}
    spelling = {ord(symbol): piece for piece, symbol in symbols.items()}
    trainer = BpeTrainer(vocab_size=len(alphabet) + number, min_frequency=MIN_COUNT, show_progress=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(SEPARATOR)
    tokenizer.train_from_iterator(_repeated(segmented, symbols), trainer)
    learnt = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(left.translate(spelling), right.translate(spelling)) for left, right in learnt]


def _repeated(segmented: list[tuple[list[str], int]], symbols: dict[str, str]) -> Iterator[str]:
    """Each word as often as it was counted: the trainer takes text, not counts."""
    for pieces, count in segmented:
        word = "".join(symbols[piece] for piece in pieces) + SEPARATOR
        for start in range(0, count, COPIES_AT_ONCE):
            yield word * min(COPIES_AT_ONCE, count - start)


def _reachable(model: dict[str, Any], learnt: Merges, number: int) -> tuple[list[str], Merges]:
    """The first `number` pieces of the learnt merges, without those that the merges together do not give whole.

    A learnt pair may spell an old token, after which an old merge comes before the new one; what then never comes out
    of its own letters is dropped with all that was built on it, and later pieces move up.
    """
    old_merges, dropped = set(merge_pairs(model)), set()
    while True:
        pieces, merges = _select(model["vocab"], old_merges, learnt, number, dropped)
        if not pieces:
            return [], []
        grown = _with_pieces(model, pieces, merges)
        lost = set(pieces) - whole_pieces(grown, pieces)
        if not lost:
            return pieces, merges
        dropped |= lost


def _select(
    vocab: dict[str, int], old_merges: set[tuple[str, str]], learnt: Merges, number: int, dropped: set[str]
) -> tuple[list[str], Merges]:
    pieces: dict[str, None] = {}
    merges: dict[tuple[str, str], None] = {}
    for left, right in learnt:
        product = left + right
        has_parts = all(part in vocab or part in pieces for part in (left, right))
        if not has_parts or product in dropped or (left, right) in old_merges:
            continue
        if product not in vocab and product not in pieces:
            if len(pieces) == number:
                break
            pieces[product] = None
        merges[left, right] = None
    return list(pieces), list(merges)
