"""Dropping the tokens of a script: they are gone, and nothing else has changed."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_tokenizers import BILINGUAL, ENGLISH, RUSSIAN, byte_level_bpe, metaspace_unigram, sentencepiece_bpe
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lep.tokenizers import extension
from lep.tokenizers.family import bpe_model, family_of
from lep.tokenizers.merges import derivation
from lep.tokenizers.report import lost_characters, unreachable_tokens, vocabulary_change
from lep.tokenizers.scripts import letters_of, unwanted_pieces, without_scripts
from lep.vocabulary import read_vocabulary, subtoken_operator, to_glyphs

BASES = {
    "byte_level": byte_level_bpe,
    "ignore_merges": lambda: byte_level_bpe(ignore_merges=True),
    "hole": lambda: byte_level_bpe(hole=3),
    "metaspace": sentencepiece_bpe,
}


STEMS = "hund kat dom arb flor ter akv fajr vent nub mont river lag mar insul urb voj pont libr jar".split()
ESPERANTO = [
    " ".join(stem + ending for stem in STEMS) for ending in ("o", "oj", "on", "ojn", "a", "aj", "e", "eto")
] * 2


def without_cyrillic(base: PreTrainedTokenizerFast) -> Tokenizer:
    """The base's own tokenizer around the smaller model."""
    family = family_of(base)
    return Tokenizer.from_str(json.dumps(family.spec | {"model": without_scripts(family, ("Cyrillic",))}))


@pytest.mark.parametrize("base", BASES)
def test_letters_of_the_script_are_gone_and_ids_stay(base):
    family = family_of(BASES[base]())
    before, after = family.spec["model"], without_scripts(family, ("Cyrillic",))
    gone = before["vocab"].keys() - after["vocab"].keys()
    assert len(gone) > 20 and after["vocab"].items() <= before["vocab"].items()
    vocabulary = read_vocabulary(BASES[base]())
    letters = letters_of(("Cyrillic",))
    for i, token in enumerate(vocabulary.tokens):
        holds = token is not None and bool(letters.search(token.decode(errors="ignore")))
        assert not holds or vocabulary.pieces[i] in gone
    assert set(family.byte_pieces) <= after["vocab"].keys()
    assert all({a, b, a + b} <= after["vocab"].keys() for a, b in after["merges"])


@pytest.mark.parametrize("base", BASES)
@given(text=st.text(max_size=20) | st.text(alphabet="Anna's book é日😀 \n12.«»", max_size=20))
@settings(max_examples=60, deadline=None)
def test_texts_without_the_script_are_segmented_as_before(base, text):
    if not letters_of(("Cyrillic",)).search(text):
        old = BASES[base]()
        assert without_cyrillic(old).encode(text).ids == old.backend_tokenizer.encode(text).ids


def test_the_first_bytes_of_a_letter_go_where_no_other_script_shares_them():
    base = byte_level_bpe()
    family = family_of(base)
    model = family.spec["model"]
    for data in (b" \xd0", b"\xd0\xbf\xd1", b"x\xe2", b"\x80\x94", b"\xd0\xbf"):
        model["vocab"].setdefault(to_glyphs(data), 10_000 + len(model["vocab"]))
    gone = unwanted_pieces(family, ("Cyrillic",))
    # D0 and D1 open Cyrillic letters only, E2 and the end of a dash do not, and single bytes stay in any case.
    assert {to_glyphs(data) for data in (b" \xd0", b"\xd0\xbf\xd1", b"\xd0\xbf")} <= gone
    assert not {to_glyphs(data) for data in (b"x\xe2", b"\x80\x94", b"\xd0", b"\xd1")} & gone


def test_a_part_that_a_survivor_goes_through_is_kept():
    """U+2FA2F is no letter yet, but its first three bytes open nothing but Han letters."""
    family = family_of(byte_level_bpe())
    glyphs = to_glyphs("\U0002fa2f".encode())
    chain = [glyphs[:2], glyphs[:3], glyphs]
    merges = [(piece[:-1], piece[-1]) for piece in chain]
    vocab = {piece: i for i, piece in enumerate([*family.byte_pieces, *chain])}
    han = [to_glyphs("日".encode()[:2]), to_glyphs("日".encode())]
    vocab |= {piece: len(vocab) + i for i, piece in enumerate(han)}
    merges += [(piece[:-1], piece[-1]) for piece in han]
    changed = replace(family, spec=family.spec | {"model": bpe_model(family, vocab, merges)})
    assert unwanted_pieces(changed, ("Han",)) == {*chain[:2], *han}
    assert without_scripts(changed, ("Han",))["vocab"].keys() == {*family.byte_pieces, *chain}
    assert derivation(glyphs, {pair: i for i, pair in enumerate(merges)}) == {*glyphs, *chain}


@pytest.mark.parametrize("base", BASES)
def test_new_tokens_take_the_freed_ids_first(base):
    old = BASES[base]()
    freed = sorted(
        family_of(old).spec["model"]["vocab"][piece]
        for piece in family_of(old).spec["model"]["vocab"].keys()
        - without_scripts(family_of(old), ("Cyrillic",))["vocab"].keys()
    )
    for number in (5, len(freed) + 7):
        facts = {}
        new = extension(old, ESPERANTO, new_tokens=number, scripts=("Latin",), drop_scripts=("Cyrillic",), facts=facts)
        before, after = read_vocabulary(old), read_vocabulary(new)
        fresh = sorted(after.ids_of_pieces[p] for p in after.ids_of_pieces.keys() - before.ids_of_pieces.keys())
        assert fresh == [*freed, *range(len(before), len(before) + number)][: len(fresh)]
        unused = max(0, len(freed) - number)
        assert facts == {"new_tokens": len(fresh), "dropped_tokens": len(freed), "unused_ids": unused}
        # Ids behind the last token are none of the new vocabulary's.
        assert after.unassigned - before.unassigned == {i for i in freed[number:] if i < len(after)}
        assert vocabulary_change(old, new)["kept_ids"] == len(before.ids_of_pieces) - len(freed)
        assert unreachable_tokens(new) == [] and lost_characters(new) == []
        operator = subtoken_operator(new, old)
        assert operator.weights.shape[0] == len(after) and (operator.weights.sum(axis=1) > 0.99).all()
        for text in RUSSIAN[:3]:
            assert new.decode(new.encode(text, add_special_tokens=False)).strip() == text.strip()


def test_nonsense_is_refused_before_any_text_is_read():
    def unread():
        raise AssertionError("texts were read")
        yield ""

    with pytest.raises(ValueError, match=r"tokenizer\.drop_scripts.*Elvish"):
        extension(byte_level_bpe(), unread(), new_tokens=5, drop_scripts=("Elvish",))
    with pytest.raises(ValueError, match=r"tokenizer\.drop_scripts holds \['Cyrillic'\]"):
        extension(byte_level_bpe(), unread(), new_tokens=5, drop_scripts=("Cyrillic",))
    with pytest.raises(ValueError, match="Unigram"):
        extension(metaspace_unigram(), unread(), new_tokens=5, drop_scripts=("Han",))


@pytest.mark.parametrize("base", BASES)
def test_unigram_pieces_become_tokens_with_the_merges_that_make_them(base):
    facts = {}
    size = 500 if base == "metaspace" else 400
    old = BASES[base]()
    rare = [*BILINGUAL, "日"]  # spelt in raw bytes, which are no text by themselves
    new = extension(old, rare, new_tokens=200, unigram_size=size, facts=facts)
    assert unreachable_tokens(new) == [] and lost_characters(new) == []
    assert facts["unigram_pieces_added"] + facts["intermediate_tokens"] == facts["new_tokens"] > 0
    assert facts["unigram_pieces"] == sum(
        facts[f"unigram_pieces_{fate}"] for fate in ("added", "left_out", "there_already")
    )
    assert 0 < facts["unigram_pieces_added"] and facts["new_tokens"] <= 200
    pieces = read_vocabulary(new).pieces
    roomy = extension(old, BILINGUAL, new_tokens=2000, unigram_size=size, facts=facts)
    assert facts["unigram_pieces_left_out"] <= 0.05 * facts["unigram_pieces"]
    assert len(read_vocabulary(roomy)) > len(pieces)
    for text in ENGLISH:
        assert new.encode(text) == old.encode(text)
