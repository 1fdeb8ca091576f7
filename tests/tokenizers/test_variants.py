import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_tokenizers import (
    BILINGUAL,
    ENGLISH,
    MARKS,
    RUSSIAN,
    byte_level_bpe,
    metaspace_unigram,
    sentencepiece_bpe,
    wrap,
)
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from lep.tokenizers import bpe, extension, optimization, original, unigram
from lep.tokenizers.report import segmentations, unreachable_tokens, vocabulary_report
from lep.vocabulary import read_vocabulary, tokenizer_json

BASES = {
    "byte_level": byte_level_bpe,
    "ignore_merges": lambda: byte_level_bpe(ignore_merges=True),
    "hole": lambda: byte_level_bpe(hole=3),
    "metaspace": sentencepiece_bpe,
}
VARIANTS = ("original", "bpe", "unigram", "extension", "optimization")
CASES = [(base, variant) for base in BASES for variant in VARIANTS]
ANY_TEXT = st.text(max_size=30) | st.text(alphabet="Аня живёт é\u0301 12345\r\n\t<0xA>日😀", max_size=30)


@cache
def built(base: str, variant: str) -> PreTrainedTokenizerFast:
    tokenizer = BASES[base]()
    match variant:
        case "original":
            return original(tokenizer)
        case "bpe":
            return bpe(tokenizer, BILINGUAL, vocab_size=450)
        case "unigram":
            return unigram(tokenizer, BILINGUAL, vocab_size=500 if base == "metaspace" else 400)
        case "extension":
            return extension(tokenizer, BILINGUAL, new_tokens=60)
        case _:
            return optimization(tokenizer, BILINGUAL, keep=330, vocab_size=390)


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(("base", "variant"), CASES)
@given(text=ANY_TEXT)
@settings(max_examples=60, deadline=None)
def test_any_text_round_trips(base, variant, text):
    if base == "metaspace":  # the family's own loss: U+2581 is its space, and a leading space is its own
        text = text.replace("\u2581", "").lstrip(" ")
    tokenizer = built(base, variant)
    assert tokenizer.decode(ids_of(tokenizer, text), clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize(("base", "variant"), CASES)
def test_no_token_is_unreachable(base, variant):
    tokenizer = built(base, variant)
    vocabulary = read_vocabulary(tokenizer)
    assert [vocabulary.pieces[i] for i in unreachable_tokens(tokenizer, vocabulary)] == []


@pytest.mark.parametrize(
    ("variant", "size"), [("bpe", 450), ("unigram", None), ("optimization", 390), ("extension", None)]
)
@pytest.mark.parametrize("base", BASES)
def test_the_vocabulary_has_the_size_asked_for(base, variant, size):
    tokenizer = built(base, variant)
    size = (
        size
        or {"unigram": 500 if base == "metaspace" else 400}.get(variant)
        or len(read_vocabulary(BASES[base]())) + 60
    )
    assert len(read_vocabulary(tokenizer)) == size
    if base != "hole" or variant != "extension":
        assert len(tokenizer) == size == len(set(tokenizer.get_vocab().values()))


@pytest.mark.parametrize(("base", "variant"), CASES)
def test_marks_roles_template_and_post_processor_survive_saving(base, variant, tmp_path):
    tokenizer, old = built(base, variant), BASES[base]()
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    for role in ("bos", "eos", "pad", "unk"):
        assert getattr(loaded, f"{role}_token") == getattr(old, f"{role}_token")
    vocabulary, before = read_vocabulary(loaded), read_vocabulary(old)
    assert sorted(vocabulary.specials.values()) == sorted(before.specials.values())
    text = "Анна живёт в саду 2024<|end|> and Anna\n"
    assert loaded.encode(text) == tokenizer.encode(text) == [tokenizer.bos_token_id, *ids_of(tokenizer, text)]
    assert loaded.convert_tokens_to_ids("<|end|>") in loaded.encode(text)
    chat = [{"role": "user", "content": "Где Анна?"}]
    rendered = [t.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for t in (loaded, old)]
    assert rendered[0] == rendered[1] and rendered[0]
    assert loaded.decode(loaded.encode("Анна", add_special_tokens=True), skip_special_tokens=True).strip() == "Анна"


@pytest.mark.parametrize("base", BASES)
def test_extension_keeps_every_old_id_and_every_segmentation_without_target_words(base):
    old, new = BASES[base](), built(base, "extension")
    before, after = old.get_vocab(), new.get_vocab()
    assert before.items() <= after.items()
    assert min(after[token] for token in after.keys() - before.keys()) == len(read_vocabulary(old))
    for text in [*ENGLISH, "«Où?» — 12 345 ¿qué? 日本\t\n\n  x=1;", "Ελλάδα <|user|>ok"]:
        assert new.encode(text) == old.encode(text)


@pytest.mark.parametrize("base", BASES)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"], max_codepoint=0x3FF), max_size=20))
@settings(max_examples=40, deadline=None)
def test_extension_leaves_any_text_of_other_scripts_alone(base, text):
    assert built(base, "extension").encode(text) == BASES[base]().encode(text)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_every_variant_spends_fewer_tokens_on_the_target_language(base, variant):
    count = {t: sum(len(ids_of(t, text)) for text in RUSSIAN) for t in (BASES[base](), built(base, variant))}
    assert count[built(base, variant)] < count[BASES[base]()]


def gemma_like(*added: str, pieces: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer whose added tokens, none of them special, stand in the vocabulary, with some pieces more."""
    spec = tokenizer_json(sentencepiece_bpe())
    ids = {piece: len(spec["model"]["vocab"]) + i for i, piece in enumerate((*added, *pieces))}
    spec["model"]["vocab"] |= ids
    as_first = spec["added_tokens"][0]
    spec["added_tokens"] += [{**as_first, "id": ids[name], "content": name, "special": False} for name in added]
    return wrap(Tokenizer.from_str(json.dumps(spec)), unk_token="<unk>")


@pytest.mark.parametrize("learn", [bpe, unigram])
def test_added_tokens_that_are_learnt_as_well_take_no_room(learn):
    learnt = [piece for piece in built("metaspace", "bpe").get_vocab() if piece.startswith("▁") and len(piece) > 3]
    tokenizer = learn(gemma_like(*learnt), BILINGUAL, vocab_size=450)
    assert len(tokenizer) == len(read_vocabulary(tokenizer)) == 450 and {*learnt} <= tokenizer.get_vocab().keys()
    assert sorted(tokenizer.get_vocab().values()) == [*range(450)]


@pytest.mark.parametrize("learn", [bpe, unigram])
def test_numbers_in_names_of_tokens_and_in_other_digits_are_no_numbers_of_the_family(learn):
    """Gemma has tokens named <unused10> and years in Bengali digits; Latin ones it splits one by one."""
    base = gemma_like("<unused10>", pieces=("১৯", "▁১৯"))
    years = [*BILINGUAL, *(f"В {year} году было {year} книг" for year in (1234, 1235, 1236))] * 20
    learnt = learn(base, years, vocab_size=420)
    assert "<unused10>" in learnt.get_vocab() and vocabulary_report(learnt, {})["digits_per_token"] == 1
    assert learnt.tokenize("году 1234")[-3:] == ["2", "3", "4"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_numbers_are_split_as_the_family_splits_them(variant):
    def digits(base):
        vocabulary = read_vocabulary(built(base, variant))
        return max(len(t.strip()) for t in vocabulary.tokens if t and t.strip().isdigit())

    assert digits("metaspace") == 1 and digits("byte_level") <= 3
    assert ids_of(built("byte_level", variant), "1234567") == [
        i for part in ("123", "456", "7") for i in ids_of(built("byte_level", variant), part)
    ]


def test_unigram_keeps_a_frequent_word_that_is_part_of_no_other():
    words = ["живёт"] * 200 + [f"{a}{b}" for a in ("дом", "том", "кот", "сад") for b in ("а", "у", "ом", "е")] * 3
    tokenizer = unigram(byte_level_bpe(), [" " + " ".join(words)], vocab_size=285)
    assert segmentations(tokenizer, [" живёт"]) == [["·живёт"]]


def test_unigram_learns_runs_of_spaces():
    code = [f"{word}:\n        {word} = {word}" for word in "for while def class with".split()] * 20
    tokenizer = unigram(byte_level_bpe(), BILINGUAL + code, vocab_size=420)
    (shown,) = segmentations(tokenizer, [":\n        for"])
    assert shown[-2] == "·" * 7  # the eighth opens the word


def test_unigram_spells_out_a_text_that_looks_like_a_byte_piece():
    tokenizer = built("metaspace", "unigram")
    assert tokenizer.decode(ids_of(tokenizer, "<0x0A>")) == "<0x0A>"


@pytest.mark.parametrize("base", BASES)
def test_optimization_keeps_old_merges_in_order_and_whole_derivations(base):
    old, new = tokenizer_json(BASES[base]())["model"], tokenizer_json(built(base, "optimization"))["model"]
    marks = {token["content"] for token in tokenizer_json(BASES[base]())["added_tokens"]}
    survivors = [piece for piece in new["vocab"] if piece not in marks][: 330 - len(marks)]
    assert survivors == sorted(survivors, key=old["vocab"].__getitem__)
    kept = [[a, b] for a, b in old["merges"] if {a, b, a + b} <= set(survivors)]
    assert new["merges"][: len(kept)] == kept
    made = {a + b for a, b in kept}
    assert all(len(piece) == 1 or piece in made for piece in survivors if not piece.startswith("<0x"))


def test_facts_count_what_was_made():
    base, facts = byte_level_bpe(), {}
    grown = optimization(base, BILINGUAL, keep=330, vocab_size=390, facts=facts)
    assert facts["kept_tokens"] == 330 and facts["kept_tokens"] + facts["new_tokens"] == len(grown) == 390
    replaced = bpe(base, BILINGUAL, vocab_size=450, facts=facts)
    assert facts["merges"] == len(tokenizer_json(replaced)["model"]["merges"])
    unigram(base, BILINGUAL, vocab_size=400, facts=facts)
    assert facts["trained_pieces"] > facts["never_used_pieces"] >= 0


def test_impossible_sizes_are_refused_before_any_text_is_read():
    def unread():
        raise AssertionError("texts were read")
        yield ""

    base = byte_level_bpe()
    with pytest.raises(ValueError, match=r"tokenizer\.keep=200"):
        optimization(base, unread(), keep=200, vocab_size=500)
    with pytest.raises(ValueError, match=r"tokenizer\.vocab_size=300 is below tokenizer\.keep=400"):
        optimization(base, unread(), keep=400, vocab_size=300)
    with pytest.raises(ValueError, match=r"tokenizer\.new_tokens=0"):
        extension(base, unread(), new_tokens=0)
    for variant in (bpe, unigram):
        with pytest.raises(ValueError, match=r"tokenizer\.vocab_size=100"):
            variant(base, unread(), vocab_size=100)
    for variant in (
        lambda b, t: extension(b, t, new_tokens=9),
        lambda b, t: optimization(b, t, keep=400, vocab_size=500),
    ):
        with pytest.raises(ValueError, match="Unigram"):
            variant(metaspace_unigram(), unread())
    with pytest.raises(ValueError, match=r"tokenizer\.scripts"):
        extension(base, ["слово"], new_tokens=5, scripts=("Elvish",))


@pytest.mark.parametrize("variant", [bpe, unigram])
def test_a_corpus_too_small_for_the_vocabulary_is_said_so(variant):
    with pytest.warns(UserWarning, match="too few distinct words"):
        tokenizer = variant(byte_level_bpe(), RUSSIAN[:3], vocab_size=2000)
    assert 263 < len(tokenizer) < 2000


@pytest.mark.parametrize("base", [*BASES, "unigram_base"])
def test_replacing_also_works_on_a_replaced_vocabulary(base):
    start = metaspace_unigram() if base == "unigram_base" else built(base, "unigram")
    tokenizer = bpe(start, BILINGUAL, vocab_size=420)
    assert unreachable_tokens(tokenizer) == [] and len(tokenizer) == 420
    assert tokenizer.decode(ids_of(tokenizer, "Анна 日 x")) == "Анна 日 x"


def test_one_corpus_gives_one_vocabulary():
    for variant in (
        lambda: unigram(byte_level_bpe(), BILINGUAL, vocab_size=400),
        lambda: built("byte_level", "extension"),
    ):
        assert variant().backend_tokenizer.to_str() == variant().backend_tokenizer.to_str()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_report_counts_what_the_tokenizer_does(variant):
    tokenizer = built("byte_level", variant)
    report = vocabulary_report(tokenizer, {"a/tales.txt": {"ru": RUSSIAN[:9], "en": ENGLISH}, "b": {"ru": RUSSIAN[9:]}})
    assert json.loads(json.dumps(report)) == report
    tokens = sum(len(ids_of(tokenizer, text)) for text in RUSSIAN)
    russian = report["languages"]["ru"]
    assert russian["characters_per_token"] == pytest.approx(sum(map(len, RUSSIAN)) / tokens)
    assert russian["tokens_per_word"] == pytest.approx(tokens / sum(len(text.split()) for text in RUSSIAN))
    assert set(report["domains"]) == {"tales", "b"}
    assert sum(domain["tokens"] for domain in report["domains"].values()) == sum(
        language["tokens"] for language in report["languages"].values()
    )
    assert report["unicode_characters_lost"] == 0 and report["digits_per_token"] in (2, 3)
    assert report["size"] == len(tokenizer) and report["unreachable_tokens"] == 0 and 0 < report["share_used"] <= 1


def test_segmentations_print_spaces_bytes_and_marks():
    spaced, shown = segmentations(byte_level_bpe(), [" Ы日\n<s>", "日\n<s>"])
    assert "".join(spaced).startswith("·")
    assert shown == ["<E6>", "<97>", "<A5>", "↵", "<s>"]
    assert len(MARKS) == 6
