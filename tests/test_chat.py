import json

import pytest
from pico_models import TEMPLATE, pico_tokenizer
from tokenizers import AddedToken, Tokenizer, processors

from lep.chat import check_siblings, end_of_turn, result_tokenizer, special_pairs
from lep.vocabulary import read_vocabulary, tokenizer_json

MARKERS = ("<|user|>", "<|assistant|>", "<|end|>")
TURNS = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "Мария"}]


@pytest.fixture(scope="module")
def base():
    return pico_tokenizer(300, markers=())


@pytest.fixture(scope="module")
def instruct():
    return pico_tokenizer(300, markers=MARKERS)


@pytest.fixture(scope="module")
def adapted():
    """Another vocabulary, larger than the instruct model's, without its markers."""
    return pico_tokenizer(340, markers=())


def test_markers_that_only_the_instruct_model_has_are_appended(adapted, instruct):
    size = len(adapted)
    tokenizer, added = result_tokenizer(adapted, instruct)
    assert added == [(size + i, instruct.convert_tokens_to_ids(marker)) for i, marker in enumerate(MARKERS)]
    assert len(adapted) == size and adapted.chat_template is None  # the one given is not touched
    assert tokenizer.chat_template == TEMPLATE and tokenizer.eos_token == instruct.eos_token
    assert tokenizer.encode("<|end|>") == [size + 2]
    assert tokenizer.encode("кошка и cat") == adapted.encode("кошка и cat")


@pytest.mark.parametrize("gaps", [1, 2, 7])
def test_ids_that_no_token_has_stay_free(instruct, gaps, tmp_path):
    """As where a dropped script left more ids than new tokens took."""
    adapted = pico_tokenizer(340, markers=())
    spec = tokenizer_json(adapted)
    order = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].__getitem__)
    spec["model"]["vocab"] = {piece: i if i < 50 else i + gaps for i, piece in enumerate(order)}
    adapted = type(adapted)(tokenizer_object=Tokenizer.from_str(json.dumps(spec)))
    free, last = read_vocabulary(adapted).unassigned, max(adapted.get_vocab().values())
    assert len(free) == gaps
    tokenizer, added = result_tokenizer(adapted, instruct)
    assert [new for new, _ in added] == [last + 1 + i for i in range(len(MARKERS))]
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, type(tokenizer).from_pretrained(tmp_path)):
        assert read_vocabulary(one).unassigned == free
        assert one.get_vocab() == adapted.get_vocab() | {marker: last + 1 + i for i, marker in enumerate(MARKERS)}
        assert one.encode("<|end|>") == [last + 3] and one.encode("кошка и cat") == adapted.encode("кошка и cat")


def test_the_result_chats_in_the_same_words_as_the_instruct_model(adapted, instruct, tmp_path):
    tokenizer, _ = result_tokenizer(adapted, instruct)
    text = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert text == instruct.apply_chat_template(TURNS, tokenize=False)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again.encode(text) == tokenizer.encode(text) and again.chat_template == TEMPLATE


def test_a_tokenizer_that_has_every_marker_gets_none(instruct):
    tokenizer, added = result_tokenizer(instruct, instruct)
    assert added == [] and tokenizer.get_vocab() == instruct.get_vocab()


def test_added_tokens_keep_how_they_match(adapted):
    instruct = pico_tokenizer(300)
    instruct.add_tokens([AddedToken("<think>", special=False, rstrip=True, normalized=False)])
    tokenizer, _ = result_tokenizer(adapted, instruct)
    token = tokenizer.added_tokens_decoder[tokenizer.convert_tokens_to_ids("<think>")]
    assert (token.special, token.rstrip, token.normalized) == (False, True, False)


def test_the_instruct_models_eos_becomes_the_results(adapted):
    instruct = pico_tokenizer(300)
    instruct.eos_token = "<|end|>"
    tokenizer, _ = result_tokenizer(adapted, instruct)
    assert tokenizer.eos_token == "<|end|>" and tokenizer.eos_token_id == len(adapted) + 2


def test_special_pairs_name_every_special_both_have(adapted, instruct):
    tokenizer, added = result_tokenizer(adapted, instruct)
    assert special_pairs(tokenizer, instruct) == [(0, 0), (1, 1), (2, 2), *added]
    assert special_pairs(adapted, instruct) == [(0, 0), (1, 1), (2, 2)]


def test_siblings_agree_on_ordinary_tokens_and_may_differ_in_markers(base, instruct, adapted):
    check_siblings(base, instruct)
    check_siblings(instruct, base)
    with pytest.raises(ValueError, match="ordinary tokens"):
        check_siblings(base, adapted)
    with pytest.raises(ValueError, match="ordinary tokens"):
        check_siblings(base, pico_tokenizer(300, markers=(), text=("an other text, all over another",)))


def test_the_end_of_a_turn_is_read_off_the_template(base, instruct):
    assert end_of_turn(instruct) == instruct.convert_tokens_to_ids("<|end|>")
    assert end_of_turn(base) is None
    plain = pico_tokenizer(300, markers=())
    plain.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert end_of_turn(plain) is None
    plain.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    assert end_of_turn(plain) == plain.eos_token_id


def test_what_stands_around_a_text_is_the_instruct_models_in_the_new_ids(adapted):
    """The base adds nothing; this tune begins every text with its own marker, whose id is another here."""
    instruct = pico_tokenizer(300)
    start = instruct.convert_tokens_to_ids("<|user|>")
    instruct.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|user|> $A", pair="<|user|> $A $B", special_tokens=[("<|user|>", start)]
    )
    tokenizer, added = result_tokenizer(adapted, instruct)
    assert dict(added) != {} and tokenizer.convert_tokens_to_ids("<|user|>") != start
    assert tokenizer.tokenize("the cat", add_special_tokens=True)[0] == "<|user|>"
    assert tokenizer("the cat")["input_ids"][1:] == adapted("the cat", add_special_tokens=False)["input_ids"]
    assert adapted("the cat")["input_ids"] == adapted("the cat", add_special_tokens=False)["input_ids"]


def test_a_tune_that_puts_nothing_around_a_text_takes_the_bases_marks_away(instruct):
    adapted = pico_tokenizer(340, markers=())
    adapted.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer, _ = result_tokenizer(adapted, instruct)
    assert adapted("the cat")["input_ids"][0] == 1
    assert tokenizer("the cat")["input_ids"] == adapted("the cat")["input_ids"][1:]
