"""Optimization: the old vocabulary cut to the tokens the corpus uses most, then extended (paper, section 3)."""

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from lep.tokenizers.family import Family, assemble, bpe_model, family_of, require_bpe, require_room, warn_if_short
from lep.tokenizers.merges import Merges, continue_merges, derivation
from lep.tokenizers.words import count_words, of_scripts, token_use
from lep.vocabulary import merge_pairs


def optimization(
    base: PreTrainedTokenizerFast,
    texts: Iterable[str],
    *,
    keep: int,
    vocab_size: int,
    scripts: Sequence[str] = ("Cyrillic",),
    facts: dict[str, Any] | None = None,
) -> PreTrainedTokenizerFast:
    """The `keep` old tokens most used, renumbered, and new merges of the target scripts up to `vocab_size`.

    `keep` counts every survivor: bytes, specials, and the parts that the merges of a survivor go through. Merges keep
    their order, so a survivor's own letters still give it. facts: filled with counts for the report.
    """
    family = family_of(base)
    require_bpe(family, "optimization")
    require_room(family, "tokenizer.keep", keep)
    if vocab_size < keep:
        raise ValueError(
            f"tokenizer.vocab_size={vocab_size} is below tokenizer.keep={keep}. Raise vocab_size or lower keep."
        )
    words = count_words(family, texts)
    pieces, merges = _cut(family, token_use(base, words), keep - len(family.added))
    vocab = {piece: i for i, piece in enumerate(pieces)}
    target = of_scripts(family, words, tuple(scripts))
    room = vocab_size - len(pieces) - len(family.added)
    fresh, learnt = continue_merges(bpe_model(family, vocab, merges), target, new_tokens=room) if room else ([], [])
    vocab, added_ids = family.place([*pieces, *fresh])
    model = bpe_model(family, vocab, [*merges, *learnt])
    tokenizer = assemble(family, model, added_ids)
    if facts is not None:
        facts |= {"kept_tokens": len(pieces) + len(family.added), "new_tokens": len(fresh)}
    warn_if_short("tokenizer.vocab_size", vocab_size, len(tokenizer))
    return tokenizer


def _cut(family: Family, use: dict[int, int], size: int) -> tuple[list[str], Merges]:
    """At most `size` old pieces in their old order, and the old merges that live among them.

    Taken in order of use, each with all it is made of; where that does not fit any more, the next that does.
    """
    ids, ranks = family.spec["model"]["vocab"], {}
    for rank, pair in enumerate(merge_pairs(family.spec["model"])):
        ranks.setdefault(pair, rank)
    added = {token["content"] for token in family.added}
    raw = set(family.byte_pieces)
    kept = {piece for piece in raw if piece in ids}
    for piece in sorted(ids.keys() - added, key=lambda piece: (-use.get(ids[piece], 0), ids[piece])):
        if len(kept) >= size:
            break
        made_of = derivation(piece, ranks) if piece not in kept else None
        if made_of is not None and len(kept) + len(made_of - kept) <= size:
            kept |= made_of
    merges = [(left, right) for left, right in ranks if left in kept and right in kept and left + right in kept]
    return sorted(kept, key=ids.__getitem__), merges
