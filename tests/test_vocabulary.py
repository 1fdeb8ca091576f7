import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_laws import check_laws, spelt
from pico_tokenizers import byte_level_bpe, metaspace_unigram, sentencepiece_bpe, wrap
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lep.shards import blocks
from lep.vocabulary import SubtokenOperator, compose, from_glyphs, read_vocabulary, subtoken_operator, to_glyphs

PICO = {
    "byte_level": byte_level_bpe,
    "ignore_merges": lambda: byte_level_bpe(ignore_merges=True),
    "hole": lambda: byte_level_bpe(hole=3),
    "metaspace": sentencepiece_bpe,
    "unigram": metaspace_unigram,
}
PAIRS = [(new, old) for new in PICO for old in PICO]


@pytest.mark.parametrize(("new", "old"), PAIRS)
def test_rows_sum_to_one_and_spell_their_token(new, old):
    check_laws(PICO[new](), PICO[old]())


@pytest.mark.parametrize("name", PICO)
def test_identical_vocabularies_give_the_identity(name):
    weights = subtoken_operator(PICO[name](), PICO[name]()).weights
    assert np.array_equal(weights.indices, np.arange(weights.shape[0])) and np.all(weights.data == 1)


@given(data=st.binary(max_size=40))
@settings(max_examples=60, deadline=None)
def test_glyphs_are_a_bijection_with_bytes(data):
    assert from_glyphs(to_glyphs(data)) == data


def test_a_piece_with_a_foreign_character_stands_for_its_own_text():
    pieces = ["a", "я", "日本", "Ð", "Ġa", "a\u2581"]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found = read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend)).tokens
    assert (
        found
        == tuple(map(from_glyphs, pieces))
        == (b"a", "я".encode(), "日本".encode(), b"\xd0", b" a", b"a\xe2\x96\x81")
    )


@pytest.mark.parametrize("name", PICO)
@given(texts=st.lists(st.one_of(st.binary(max_size=12), st.text(max_size=8).map(str.encode)), max_size=6))
@settings(max_examples=40, deadline=None)
def test_any_bytes_are_composed_exactly(name, texts):
    tokenizer = PICO[name]()
    vocabulary = read_vocabulary(tokenizer)
    assert [spelt(row, vocabulary) for row in compose(texts, tokenizer, vocabulary)] == texts


@pytest.mark.parametrize("name", PICO)
@given(text=st.text(alphabet="аяё—xA 1\n\t\u2581\u0301日😀", max_size=20))
@settings(max_examples=40, deadline=None)
def test_the_tokens_of_a_text_have_its_bytes(name, text):
    tokenizer = PICO[name]()
    vocabulary = read_vocabulary(tokenizer)
    got = spelt(tokenizer.encode(text, add_special_tokens=False), vocabulary)
    if vocabulary.alphabet == "metaspace":  # the family opens a text with a space, and knows U+2581 as a space
        text = text.replace("\u2581", " ")
        text = text if text.startswith(" ") or not text else " " + text
    assert got == text.encode()


def test_half_letters_and_byte_pieces_are_told_apart():
    vocabulary = read_vocabulary(sentencepiece_bpe())
    ids = sentencepiece_bpe().get_vocab()
    assert vocabulary.tokens[ids["<0x0A>"]] == b"\n" and vocabulary.tokens[ids["<0xD0>"]] == b"\xd0"
    assert vocabulary.tokens[ids["<0x61>"]] == vocabulary.tokens[ids["a"]] == b"a"
    assert vocabulary.ids_of_bytes[b"a"] == ids["a"] and ids["<0x61>"] in vocabulary.byte_ids
    assert vocabulary.tokens[ids["▁the"]] == b" the"
    assert read_vocabulary(byte_level_bpe()).tokens[byte_level_bpe().get_vocab()["Ð"]] == b"\xd0"


def test_a_byte_piece_maps_to_the_byte_and_a_letter_to_the_letter():
    bytes_to_text = subtoken_operator(byte_level_bpe(), sentencepiece_bpe())
    new, old = byte_level_bpe().get_vocab(), sentencepiece_bpe().get_vocab()
    rows = dict(zip(*bytes_to_text.shared, strict=True))
    assert rows[new["a"]] == old["a"] and rows[new["Ð"]] == old["<0xD0>"] and rows[new["Ċ"]] == old["<0x0A>"]
    back = dict(zip(*subtoken_operator(sentencepiece_bpe(), byte_level_bpe()).shared, strict=True))
    assert back[old["<0x61>"]] == back[old["a"]] == new["a"]


def test_sub_tokens_stop_where_the_old_pre_tokenizer_stops():
    ids = compose([b"2024", "Анна, 12345".encode()], byte_level_bpe())
    tokenizer = byte_level_bpe()
    assert ids == [
        tokenizer.encode("2024", add_special_tokens=False),
        tokenizer.encode("Анна, 12345", add_special_tokens=False),
    ]


def test_specials_map_by_content_then_by_role():
    old = byte_level_bpe()
    backend = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    new = wrap(backend, bos_token="<|begin|>", eos_token="</s>", unk_token="<what>")
    operator = subtoken_operator(new, old)
    row = {token: operator.weights[[i]].indices.tolist() for token, i in new.get_vocab().items()}
    assert row["</s>"] == [old.eos_token_id] and row["<|begin|>"] == [old.bos_token_id]
    parts = compose([b"<what>"], old)[0]
    assert sorted(row["<what>"]) == sorted(set(parts))  # no old unk: its own letters
    assert operator.special[new.bos_token_id] and not operator.special[new.get_vocab()["a"]]


def test_unflagged_marks_count_as_special_and_holes_as_unassigned():
    vocabulary = read_vocabulary(byte_level_bpe(hole=3))
    assert "<tool>" in vocabulary.specials.values() and len(vocabulary.unassigned) == 3
    assert "<tool>" in read_vocabulary(byte_level_bpe()).specials.values()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_apply_is_the_dense_product_in_any_blocks(dtype):
    operator = subtoken_operator(sentencepiece_bpe(), byte_level_bpe())
    rows, columns = operator.weights.shape
    table = torch.randn(columns + 5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.from_numpy(operator.weights.toarray()).double() @ table[:columns].double()
    result = torch.cat(list(blocks(operator.apply(table), rows=64)))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="embedding table"):
        operator.apply(table[: columns - 1])


def test_saving_keeps_the_operator(tmp_path):
    operator = subtoken_operator(byte_level_bpe(), metaspace_unigram())
    operator.save(tmp_path / "operator.safetensors")
    loaded = SubtokenOperator.load(tmp_path / "operator.safetensors")
    assert (operator.weights != loaded.weights).nnz == 0
    assert np.array_equal(operator.exact, loaded.exact) and np.array_equal(operator.special, loaded.special)


def test_a_word_piece_tokenizer_is_refused():
    backend = Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}))
    with pytest.raises(ValueError, match="byte-level"):
        read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))
