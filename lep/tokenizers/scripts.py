"""Script policy: a vocabulary without the tokens of scripts that nobody asked for.

In: a family and names of Unicode scripts. Out: the BPE model without the tokens that only texts of those scripts could
use, with the ids of all others as they were. Single bytes stay, so every text can still be written; a text without a
letter of those scripts is segmented as before, since a token it is made of never held one.
"""

import sys
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import regex

from lep.tokenizers.family import Family, bpe_model
from lep.tokenizers.merges import derivation, whole_pieces
from lep.vocabulary import from_glyphs, merge_pairs

UNASSIGNED = ("Cn", "Co", "Cs")


def without_scripts(family: Family, scripts: Sequence[str]) -> dict[str, Any]:
    """The family's BPE model without the tokens of the scripts and their merges; ids are left free, not closed up.

    Added tokens and single bytes stay. So does a part that a surviving token is made of, whatever it spells.
    """
    model = family.spec["model"]
    added = {token["content"] for token in family.added}
    unwanted = {p for p in unwanted_pieces(family, scripts) if p not in added}
    if not unwanted:
        return model
    pairs = merge_pairs(model)
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(pairs)))}
    while True:
        vocab = {piece: i for piece, i in model["vocab"].items() if piece not in unwanted}
        merges = [(a, b) for a, b in pairs if not unwanted & {a, b, a + b}]
        remaining = bpe_model(family, vocab, merges)
        lost = _no_longer_whole(model, remaining)
        if not lost:
            return remaining
        unwanted.difference_update(*(derivation(piece, ranks) or () for piece in lost))


def _no_longer_whole(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Pieces of the smaller model that its merges do not give whole any more."""
    pieces = list(after["vocab"])
    then, now = whole_pieces(before, pieces), whole_pieces(after, pieces)
    return [piece for piece in pieces if piece in then and piece not in now]


def unwanted_pieces(family: Family, scripts: Sequence[str]) -> set[str]:
    """Pieces that hold a letter of the scripts, or end in the first bytes that only their letters begin with."""
    if not scripts:
        return set()
    pattern = letters_of(tuple(scripts))
    raw = set(family.byte_pieces)
    pieces = [piece for piece in family.spec["model"]["vocab"] if piece not in raw]
    if family.alphabet == "metaspace":
        return {piece for piece in pieces if pattern.search(piece)}
    openings = _own_openings(tuple(scripts))
    return {piece for piece in pieces if _spells(from_glyphs(piece), pattern, openings)}


def _spells(token: bytes, pattern: regex.Pattern[str], openings: frozenset[bytes]) -> bool:
    if token.isascii():
        return False
    return bool(pattern.search(token.decode(errors="ignore"))) or any(token[-n:] in openings for n in (1, 2, 3))


@lru_cache
def letters_of(scripts: tuple[str, ...]) -> regex.Pattern[str]:
    """A pattern for one letter of the scripts. ValueError for a name that is no Unicode script."""
    try:
        return regex.compile("[" + "".join(rf"\p{{Script={script}}}" for script in scripts) + "]")
    except regex.error as error:
        raise ValueError(
            f"tokenizer.drop_scripts={list(scripts)}: {error}. Give names of Unicode scripts, such as Han or Hangul."
        ) from error


@lru_cache
def _own_openings(scripts: tuple[str, ...]) -> frozenset[bytes]:
    """The first bytes of letters (one to three, never all) that begin no assigned character of another script."""
    pattern = letters_of(scripts)
    own, foreign = set[bytes](), set[bytes]()
    for character in _assigned():
        data = character.encode()
        (own if pattern.match(character) else foreign).update(data[:n] for n in range(1, len(data)))
    return frozenset(own - foreign)


def _assigned() -> Iterable[str]:
    characters = (chr(code) for code in range(0x80, sys.maxunicode + 1))
    return (character for character in characters if unicodedata.category(character) not in UNASSIGNED)
