"""LLaMa-3, Qwen3 and Mistral themselves: the laws of T and the guarantees of the variants, for every single token.

The variants are smaller than the paper's, and the large vocabularies stand in some of the cases only, so that all is
done in a minute. benchmarks/real_vocabularies.py holds every pair and every variant to the same, at the paper's sizes.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_laws import check_laws
from transformers import PreTrainedTokenizerFast

from lep.tokenizers import bpe, extension, optimization, unigram
from lep.tokenizers.report import (
    digits_per_token,
    lost_characters,
    lost_texts,
    unreachable_tokens,
    vocabulary_change,
    vocabulary_report,
)
from lep.tokenizers.scripts import letters_of
from lep.vocabulary import kept_ids, read_vocabulary

DROPPED = ("Han", "Hangul", "Hiragana", "Katakana", "Arabic", "Thai")
VARIANTS = {
    "mistral": ("bpe", "unigram", "extension", "optimization", "dropping"),
    "llama3": ("unigram", "optimization"),
    "qwen3": ("dropping",),
}
CASES = [(base, variant) for base in VARIANTS for variant in VARIANTS[base]]
PAIRS = [("llama3", "mistral"), ("mistral", "qwen3"), ("mistral", "mistral")]  # new, old
Built = Callable[[str, str], PreTrainedTokenizerFast]


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """Vocabularies of 150,000 tokens are read once, not once a law."""
    remembered = cache(read_vocabulary)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("lep.vocabulary", "lep.tokenizers.report", "operator_laws", __name__):
            patch.setattr(f"{module}.read_vocabulary", remembered)
        yield


@pytest.fixture(scope="session")
def built(real, real_texts) -> Built:
    texts = [text for name in real_texts for text in real_texts[name][::6]]

    @cache
    def build(base: str, variant: str) -> PreTrainedTokenizerFast:
        tokenizer = real[base]
        match variant:
            case "bpe":
                return bpe(tokenizer, texts, vocab_size=6000)
            case "unigram":
                return unigram(tokenizer, texts, vocab_size=6000)
            case "extension":
                return extension(tokenizer, texts, new_tokens=3000)
            case "optimization":
                return optimization(tokenizer, texts, keep=8000, vocab_size=10_000)
            case _:
                return extension(tokenizer, texts, new_tokens=3000, unigram_size=3000, drop_scripts=DROPPED)

    return build


@pytest.fixture(scope="session")
def dead() -> Callable[[PreTrainedTokenizerFast], set[str | None]]:
    """The pieces of a vocabulary that no text gives."""

    @cache
    def find(tokenizer: PreTrainedTokenizerFast) -> set[str | None]:
        vocabulary = read_vocabulary(tokenizer)
        return {vocabulary.pieces[i] for i in unreachable_tokens(tokenizer, vocabulary)}

    return find


@pytest.fixture(scope="session")
def unseen(real_texts) -> dict[str, list[str]]:
    return {name: texts[1::6] for name, texts in real_texts.items()}


@pytest.mark.parametrize(("new", "old"), PAIRS)
def test_the_laws_of_t_between_real_vocabularies(real, new, old):
    operator = check_laws(real[new], real[old])
    if new == old:
        assert np.array_equal(operator.weights.indices, np.arange(operator.weights.shape[0]))
    else:  # glyphs taken for text would draw on some dozens of rows
        assert operator.summary()["distinct_old_rows"] > 0.5 * min(operator.weights.shape)


@pytest.mark.parametrize(("base", "variant"), CASES)
def test_the_laws_of_t_to_the_variants(real, built: Built, base, variant):
    check_laws(built(base, variant), real[base])


@pytest.mark.parametrize(("base", "variant"), CASES)
def test_every_token_is_reached_and_every_text_comes_back(real, built: Built, dead, unseen, base, variant):
    tokenizer = built(base, variant)
    vocabulary = read_vocabulary(tokenizer)
    assert dead(tokenizer) <= dead(real[base])  # no token of ours; Qwen's pre-tokenizer cuts some of its own
    assert variant in ("extension", "dropping") or not dead(tokenizer)
    assert lost_texts(tokenizer, [text for texts in unseen.values() for text in texts], vocabulary) == []
    assert lost_characters(tokenizer, vocabulary) == []


@pytest.mark.parametrize(("base", "variant"), CASES)
@given(text=st.text(max_size=30))
@settings(max_examples=30, deadline=None)
def test_any_text_comes_back(built: Built, base, variant, text):
    text = text.replace("\u2581", "")  # which metaspace families read as a space
    assert lost_texts(built(base, variant), [text]) == []


@pytest.mark.parametrize("base", VARIANTS)
def test_a_real_tokenizer_loses_nothing_itself(real, base):
    assert lost_characters(real[base]) == []


@pytest.mark.parametrize(("base", "variant"), CASES)
def test_numbers_are_split_as_the_family_splits_them(real, built: Built, base, variant):
    longest = {"llama3": 3, "qwen3": 1, "mistral": 1}[base]
    assert digits_per_token(read_vocabulary(real[base])) == longest
    assert digits_per_token(read_vocabulary(built(base, variant))) <= longest


@pytest.mark.parametrize("base", [base for base in VARIANTS if "extension" in VARIANTS[base]])
def test_extension_keeps_ids_and_english(real, built: Built, unseen, base):
    old, new = real[base], built(base, "extension")
    assert vocabulary_change(old, new)["kept_ids"] == len(read_vocabulary(old).ids_of_pieces)
    before, after = (
        vocabulary_report(t, {"en": {"en": unseen["en_manuals"]}, "ru": {"ru": unseen["ru_fiction"]}})["languages"]
        for t in (old, new)
    )
    assert after["en"]["characters_per_token"] == pytest.approx(before["en"]["characters_per_token"], rel=0.01)
    assert after["ru"]["characters_per_token"] > 1.05 * before["ru"]["characters_per_token"]
    assert after["ru"]["characters_per_token"] < after["ru"]["characters_per_pre_token"]


@pytest.mark.parametrize("base", [base for base in VARIANTS if "dropping" in VARIANTS[base]])
def test_dropped_scripts_are_gone_and_nothing_else(real, built: Built, unseen, base):
    old, new = read_vocabulary(real[base]), read_vocabulary(built(base, "dropping"))
    letters = letters_of(DROPPED)

    def foreign(token: bytes | None) -> bool:
        return token is not None and bool(letters.search(token.decode(errors="ignore")))

    assert not any(foreign(token) for i, token in enumerate(new.tokens) if i not in new.byte_ids)
    same, gone = kept_ids(old, new), old.ids_of_pieces.keys() - new.ids_of_pieces.keys()
    assert same >= {i for piece, i in old.ids_of_pieces.items() if piece not in gone}
    freed = sorted(old.ids_of_pieces[piece] for piece in gone)
    fresh = sorted(new.ids_of_pieces[piece] for piece in new.ids_of_pieces.keys() - old.ids_of_pieces.keys())
    expected = [*freed, *range(len(old), len(old) + len(fresh))][: len(fresh)]
    assert len(freed) > 1000 and fresh == expected  # freed ids first, in order
    english = unseen["en_manuals"]
    for text, ids in zip(english, built(base, "dropping")(english, add_special_tokens=False)["input_ids"], strict=True):
        if not letters.search(text) and not any("\u0400" <= c < "\u0530" for c in text):
            assert ids == real[base].encode(text, add_special_tokens=False)
