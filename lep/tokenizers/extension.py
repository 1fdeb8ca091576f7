"""Extension: the old vocabulary whole, with new merges of the target script behind its own (paper, section 3).

The new tokens are learnt as merges from the counted words, or are the pieces of a Unigram vocabulary, which keep closer
to morphology, with the merges that make each. Tokens of scripts that nobody asked for can leave their ids to them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from lep.tokenizers.family import assemble, bpe_model, family_of, require_bpe, warn_if_short
from lep.tokenizers.merges import continue_merges, merges_to
from lep.tokenizers.scripts import without_scripts
from lep.tokenizers.unigram import piece_counts
from lep.tokenizers.words import count_words, of_scripts
from lep.vocabulary import merge_pairs


def extension(
    base: PreTrainedTokenizerFast,
    texts: Iterable[str],
    *,
    new_tokens: int,
    scripts: Sequence[str] = ("Cyrillic",),
    unigram_size: int | None = None,
    drop_scripts: Sequence[str] = (),
    facts: dict[str, Any] | None = None,
) -> PreTrainedTokenizerFast:
    """The base's vocabulary with at most `new_tokens` more, learnt as a continuation of its merges.

    Every old token keeps its id, and a text without words of the target scripts is segmented as before: new merges join
    only pieces that spell letters of those scripts (exact for scripts that own their UTF-8 lead bytes, as Cyrillic,
    Greek, Armenian, Hebrew and Arabic do). New ids follow the highest old one.

    drop_scripts: tokens of these Unicode scripts go, with their merges. New tokens take their ids first, in order;
    what is left over of them stands for nothing. Texts without a letter of these scripts are segmented as before.
    unigram_size: the new tokens are the pieces in the target scripts of a Unigram vocabulary of so many pieces, trained
    on all the words, and what their merges go through.
    facts: filled with counts for the report.
    """
    family = family_of(base)
    require_bpe(family, "extension")
    if new_tokens < 1:
        raise ValueError(f"tokenizer.new_tokens={new_tokens} adds nothing. Give 1 or more, or use tokenizer=original.")
    if both := set(scripts) & set(drop_scripts):
        raise ValueError(f"tokenizer.drop_scripts holds {sorted(both)}, which tokenizer.scripts extends. Take it out.")
    old, kept = family.spec["model"], without_scripts(family, drop_scripts)
    words = count_words(family, texts)
    target = of_scripts(family, piece_counts(family, words, unigram_size) if unigram_size else words, tuple(scripts))
    learn = merges_to if unigram_size else continue_merges
    pieces, merges = learn(kept, target, new_tokens=new_tokens)
    added_ids = {token["content"]: token["id"] for token in family.added}
    # The added tokens stand in the model too: the library numbers those it does not find there by the vocabulary's
    # size, which falls among the new ids.
    vocab = kept["vocab"] | added_ids
    vocab |= dict(zip(pieces, _new_ids(old["vocab"] | added_ids, vocab, len(pieces)), strict=True))
    model = bpe_model(family, vocab, merge_pairs(kept) + merges)
    if facts is not None:
        dropped = len(old["vocab"]) - len(kept["vocab"])
        facts |= {"new_tokens": len(pieces), "dropped_tokens": dropped, "unused_ids": max(0, dropped - len(pieces))}
        facts |= _wanted_facts(target, kept["vocab"], pieces) if unigram_size else {}
    # A Unigram vocabulary gives as many pieces as it has, which is no shortage of text.
    if not unigram_size:
        warn_if_short("tokenizer.new_tokens", new_tokens, len(pieces))
    return assemble(family, model, added_ids)


def _new_ids(before: dict[str, int], after: dict[str, int], number: int) -> list[int]:
    """Ids for new tokens: first those that dropped tokens had, then those behind the highest."""
    freed = sorted(before[piece] for piece in before.keys() - after.keys())
    first = max(before.values()) + 1
    return [*freed, *range(first, first + number)][:number]


def _wanted_facts(wanted: Counter[str], kept: dict[str, int], pieces: list[str]) -> dict[str, int]:
    """What became of the Unigram pieces: there already, added, or never whole; and what merges go through besides."""
    new = set(pieces)
    return {
        "unigram_pieces": len(wanted),
        "unigram_pieces_there_already": len(wanted.keys() & kept.keys()),
        "unigram_pieces_added": len(wanted.keys() & new),
        "unigram_pieces_left_out": len(wanted.keys() - kept.keys() - new),
        "intermediate_tokens": len(new - wanted.keys()),
    }
