"""BPE: a new byte-pair vocabulary in place of the old one (paper, section 3)."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, models
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from lep.tokenizers.family import Family, assemble, bpe_model, family_of, require_room, warn_if_short
from lep.tokenizers.merges import MIN_COUNT
from lep.tokenizers.words import covering, training_pre_tokenizer
from lep.vocabulary import GLYPHS, MARK, merge_pairs


def bpe(
    base: PreTrainedTokenizerFast, texts: Iterable[str], *, vocab_size: int, facts: dict[str, Any] | None = None
) -> PreTrainedTokenizerFast:
    """A byte-pair vocabulary trained on the texts, in the base's alphabet and with its pre-tokenizer and specials.

    `vocab_size` counts every id: 256 bytes and the specials too. Byte-level bases read the texts once, metaspace
    bases twice (characters first: rare ones stay with the byte pieces). facts: filled with counts for the report.
    """
    family = family_of(base)
    require_room(family, "tokenizer.vocab_size", vocab_size)
    # Tokens that are added may be learnt as well, and take no room then: some more are trained.
    spare = sum(not token["special"] for token in family.added)
    pieces, merges = _train(family, texts, vocab_size - len(family.added) + spare)
    pieces = pieces[: family.number_fitting(pieces, vocab_size)]
    kept = {*pieces}
    merges = [(left, right) for left, right in merges if kept.issuperset((left, right, left + right))]
    vocab, added_ids = family.place(pieces)
    tokenizer = assemble(family, bpe_model(family, vocab, merges), added_ids)
    if facts is not None:
        facts["merges"] = len(merges)
    warn_if_short("tokenizer.vocab_size", vocab_size, len(tokenizer))
    return tokenizer


def _train(family: Family, texts: Iterable[str], size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces (bytes, letters, then merged ones by rank) and merges of a vocabulary of at most `size` pieces."""
    if family.alphabet == "byte_level":
        options = {"vocab_size": size, "initial_alphabet": list(GLYPHS)}
    else:
        letters = frequent_characters(texts)
        options = {"vocab_size": size - 256, "initial_alphabet": letters, "limit_alphabet": len(letters)}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = training_pre_tokenizer(family)
    if family.base.backend_tokenizer.normalizer is not None:
        tokenizer.normalizer = family.base.backend_tokenizer.normalizer
    trainer = BpeTrainer(min_frequency=MIN_COUNT, show_progress=False, **options)
    tokenizer.train_from_iterator(texts, trainer)
    ranked = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    pieces = [piece for piece, _ in ranked]
    if family.alphabet == "metaspace":
        pieces = [*family.byte_pieces, *pieces]
    return pieces, merge_pairs(json.loads(tokenizer.to_str())["model"])


def frequent_characters(texts: Iterable[str]) -> list[str]:
    """The characters that earn a piece of their own, with the space mark, without control characters."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return covering({c: n for c, n in counts.items() if c.isprintable() and c not in (" ", MARK)}) + [MARK]
