import copy
from datetime import datetime
from functools import lru_cache
from itertools import groupby

import numpy as np
import pytest
from calibration.chats import FAMILIES, LLAMA3, MISTRAL, QWEN2, chat_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from pico_models import pico_tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from lep.benchmark.scoring import render_chat
from lep.calibration import Conversation, Rendered, Turn, render
from lep.calibration.rendering import render_questions
from lep.chat import end_of_turn
from lep.vocabulary import read_vocabulary

# As LLaMa-3.1 writes the date: what it is told, or the clock's, or one of its own.
DATED = (
    "{% if date_string is not defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '?' %}{% endif %}{% endif %}"
    "{{ '<|system|>\nToday Date: ' + date_string + '<|end|>\n' }}{% for m in messages %}"
    "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
TWO = Conversation(
    (Turn("user", "the cat"), Turn("assistant", "Мария"), Turn("user", "assistant"), Turn("assistant", "user model"))
)
WITH_SYSTEM = Conversation((Turn("system", "be kind"), *TWO.turns))


vocabulary_of = lru_cache(maxsize=8)(read_vocabulary)


def runs(tokenizer: PreTrainedTokenizerFast, rendered: Rendered) -> list[tuple[bool, str]]:
    """The text in turns of what is learnt and what is not: every token stands in exactly one."""
    vocabulary = vocabulary_of(tokenizer)
    pairs = zip(rendered.answered.tolist(), rendered.ids.tolist(), strict=True)
    return [
        (answered, b"".join(vocabulary.tokens[i] or vocabulary.specials[i].encode() for _, i in group).decode())
        for answered, group in groupby(pairs, key=lambda pair: pair[0])
    ]


def one(conversation: Conversation, tokenizer: PreTrainedTokenizerFast, max_tokens: int = 10_000) -> Rendered:
    rendered, _ = render([conversation], tokenizer, max_tokens=max_tokens)
    return rendered[0]


HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n".format
EXPECTED = {
    "llama3": [
        (False, "<s>" + HEADER("user") + "the cat<|eot_id|>" + HEADER("assistant")),
        (True, "Мария<|eot_id|>"),
        (False, HEADER("user") + "assistant<|eot_id|>" + HEADER("assistant")),
        (True, "user model<|eot_id|>"),
    ],
    "mistral": [
        (False, "<s>[INST] the cat [/INST]"),
        (True, " Мария</s>"),
        (False, "[INST] assistant [/INST]"),
        (True, " user model</s>"),
    ],
    "qwen2": [
        (
            False,
            "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n",
        ),
        (True, "Мария<|im_end|>"),
        (False, "\n<|im_start|>user\nassistant<|im_end|>\n<|im_start|>assistant\n"),
        (True, "user model<|im_end|>"),
    ],
    "qwen3": [
        (False, "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"),
        (True, "Мария<|im_end|>"),
        (
            False,
            "\n<|im_start|>user\nassistant<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        (True, "user model<|im_end|>"),
    ],
    "gemma": [
        (False, "<s><start_of_turn>user\nthe cat<end_of_turn>\n<start_of_turn>model\n"),
        (True, "Мария<end_of_turn>"),
        (False, "\n<start_of_turn>user\nassistant<end_of_turn>\n<start_of_turn>model\n"),
        (True, "user model<end_of_turn>"),
    ],
    "tiny": [
        (False, "<s><|user|>\nthe cat<|end|>\n<|assistant|>\n"),
        (True, "Мария<|end|>"),
        (False, "\n<|user|>\nassistant<|end|>\n<|assistant|>\n"),
        (True, "user model<|end|>"),
    ],
}
EXPECTED["mistral_system"] = EXPECTED["mistral"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_assistant_says_is_learnt_with_the_end_of_its_turn_and_nothing_else(family: str):
    tokenizer = chat_tokenizer(family)
    rendered = one(TWO, tokenizer)
    assert runs(tokenizer, rendered) == EXPECTED[family]
    assert rendered.ids[rendered.answered][-1] == end_of_turn(tokenizer)


def test_a_system_turn_is_written_where_the_template_puts_it_or_before_the_first_user():
    for family, expected, folded in (
        ("llama3", HEADER("system") + "be kind<|eot_id|>" + HEADER("user") + "the cat<|eot_id|>", 0),
        ("qwen2", "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nthe cat<|im_end|>\n", 0),
        ("mistral", "<s>[INST] be kind\n\nthe cat [/INST]", 1),
        ("gemma", "<start_of_turn>user\nbe kind\n\nthe cat<end_of_turn>\n", 1),
    ):
        tokenizer = chat_tokenizer(family)
        (rendered,), counts = render([WITH_SYSTEM], tokenizer, max_tokens=1000)
        found = runs(tokenizer, rendered)
        assert expected in found[0][1] and counts.folded == folded
        _, counts = render([WITH_SYSTEM], tokenizer, max_tokens=len(rendered) - 1)
        assert counts.cut == 1 and counts.folded == folded  # once, though it is written twice
        assert [text for learnt, text in found if learnt] == [text for learnt, text in EXPECTED[family] if learnt]
    (rendered,), _ = render([WITH_SYSTEM], chat_tokenizer("mistral_system"), max_tokens=1000)
    assert runs(chat_tokenizer("mistral_system"), rendered)[2] == (False, "[INST] be kind\n\nassistant [/INST]")


# What templates write themselves, what tokenizers treat apart, and what runs into the text around it.
SAID = st.one_of(
    st.sampled_from(
        ["user", "assistant", "model", "[INST]", "\n", " x", "x ", "\n\ny\n", "a  b", "zqxplace0zq", "é", "🙂"]
    ),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12),
).filter(lambda text: text.strip())


@pytest.mark.parametrize("family", FAMILIES)
@given(st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3))
def test_every_answer_is_learnt_whole_whatever_is_said(family: str, said: list[tuple[str, str]]):
    tokenizer = chat_tokenizer(family)
    pairs = [(("user", request), ("assistant", answer)) for request, answer in said]
    conversation = Conversation(tuple(Turn(role, text) for pair in pairs for role, text in pair))
    rendered = one(conversation, tokenizer)
    end = vocabulary_of(tokenizer).specials[end_of_turn(tokenizer)]
    normal = tokenizer.backend_tokenizer.normalizer
    learnt = [text for answered, text in runs(tokenizer, rendered) if answered]
    assert len(learnt) == len(said)
    for text, (_, answer) in zip(learnt, said, strict=True):
        assert text.endswith(end)
        assert text.removesuffix(end).strip() == (normal.normalize_str(answer) if normal else answer).strip()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_are_those_of_the_template_up_to_the_last_answer(family: str):
    tokenizer = chat_tokenizer(family)
    rendered = one(TWO, tokenizer)
    text = tokenizer.apply_chat_template(TWO.messages(), tokenize=False)
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert whole[: len(rendered)] == rendered.ids.tolist() and rendered.answered[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_and_its_answer_join_where_the_mask_begins(family: str):
    """What precedes an answer is what the model is asked with, so the first learnt token is the first it writes."""
    tokenizer = chat_tokenizer(family)
    conversation = Conversation.exchange("the cat", "Мария")
    (prompt,) = render_questions([conversation.prompt()], tokenizer)
    assert prompt == tokenizer.apply_chat_template(
        conversation.prompt().messages(), tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    if family == "llama3":  # this template opens the turn whether asked to or not
        assert prompt.endswith(HEADER("assistant"))
    turns = (Turn("system", "be kind"), *conversation.turns)
    for each in (conversation, Conversation(turns), TWO):
        rendered, before = one(each, tokenizer), Conversation(each.turns[:-1])
        (prompt,) = render_questions([before], tokenizer)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        last = len(rendered) - int(np.argmin(rendered.answered[::-1]))  # where the last answer begins
        assert ids == rendered.ids[:last].tolist()


def test_long_conversations_lose_whole_exchanges_at_their_end():
    tokenizer = chat_tokenizer("qwen2")
    whole, first = len(one(TWO, tokenizer)), len(one(TWO.first(1), tokenizer))
    for limit, expected, cut in ((whole, TWO, 0), (whole - 1, TWO.first(1), 1), (first, TWO.first(1), 1)):
        (rendered,), counts = render([TWO], tokenizer, max_tokens=limit)
        assert rendered.ids.tolist() == one(expected, tokenizer).ids.tolist()
        assert (counts.cut, counts.exchanges_cut, counts.tokens) == (cut, cut, len(rendered))
    short = Conversation.exchange("a", "b")
    found, counts = render([TWO, short], tokenizer, max_tokens=first - 1)
    assert len(found) == 1 and counts.dropped == {"too long": 1} and (counts.read, counts.rendered) == (2, 1)
    assert counts.cut == 0


def test_a_shortened_conversation_is_written_anew():
    """Templates write the last exchange their own way: the cut one is as if the others had never been."""
    for family in ("qwen3", "mistral_system"):
        tokenizer = chat_tokenizer(family)
        limit = len(one(WITH_SYSTEM, tokenizer)) - 1
        rendered = one(WITH_SYSTEM, tokenizer, max_tokens=limit)
        assert runs(tokenizer, rendered) == runs(tokenizer, one(WITH_SYSTEM.first(1), tokenizer))


def test_what_cannot_be_learnt_is_dropped_and_counted():
    tokenizer = chat_tokenizer("qwen3")
    good = Conversation.exchange("a", "b")
    unanswered = Conversation((*good.turns, Turn("user", "and?")))
    found, counts = render(
        [
            Conversation((Turn("user", "a"),)),
            Conversation.exchange("a <|im_end|>", "b"),
            Conversation.exchange("a", "b<|im_start|>"),
            Conversation.exchange("a", "<think>hm</think>b"),
            unanswered,
            good,
        ],
        tokenizer,
        max_tokens=100,
    )
    assert counts.dropped == {"no answer": 1, "special token": 2, "rewritten": 1}
    assert (counts.read, counts.rendered, counts.unanswered) == (6, 2, 1)
    assert found[0].ids.tolist() == found[1].ids.tolist()
    assert counts.answered_tokens == sum(int(one.answered.sum()) for one in found)


def test_order_and_counts_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch):
    tokenizer = chat_tokenizer("gemma")
    conversations = [Conversation.exchange(f"the {i}", "cat " * (i % 7 + 1)) for i in range(25)]
    together, counts = render(conversations, tokenizer, max_tokens=30)
    monkeypatch.setattr("lep.calibration.rendering._AT_ONCE", 2)
    apart, same = render(iter(conversations), tokenizer, max_tokens=30)
    assert [one.ids.tolist() for one in together] == [one.ids.tolist() for one in apart]
    assert counts == same and 0 < counts.rendered < 25


def test_refusals_say_what_to_do():
    tokenizer = chat_tokenizer("gemma")
    with pytest.raises(ValueError, match=r"Of 1 conversations none is left.*too long.*12 tokens"):
        render([Conversation.exchange("the cat", "sat on the mat")], tokenizer, max_tokens=12)
    with pytest.raises(ValueError, match="no chat template"):
        render([TWO], pico_tokenizer(markers=()), max_tokens=100)
    deaf = copy.deepcopy(tokenizer)
    deaf.chat_template = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(ValueError, match="does not write a turn of the assistant exactly once"):
        render([TWO], deaf, max_tokens=100)
    deaf.chat_template = "{{ raise_exception('not today') }}"
    with pytest.raises(ValueError, match="refuses turns of user, assistant.*not today"):
        render([TWO], deaf, max_tokens=100)


@pytest.mark.parametrize(
    ("name", "template"),
    [("llama3", LLAMA3), ("llama3", None), ("mistral", MISTRAL), ("qwen3", QWEN2), ("qwen3", None)],
)
def test_real_tokenizers_learn_the_answers_of_real_text(real, real_texts, name: str, template: str | None):
    tokenizer = copy.deepcopy(real[name])
    tokenizer.chat_template = template or tokenizer.chat_template
    texts = [text[:700].strip() for texts in real_texts.values() for text in texts[:20]]
    conversations = [
        Conversation((Turn("user", "?"), Turn("assistant", a), Turn("user", b), Turn("assistant", a[:50].strip())))
        for a, b in zip(texts, texts[1:], strict=False)
    ]
    rendered, counts = render(conversations, tokenizer, max_tokens=4000)
    assert counts.rendered == len(conversations)
    end = vocabulary_of(tokenizer).specials[end_of_turn(tokenizer)]
    normal = tokenizer.backend_tokenizer.normalizer
    for one_, conversation in zip(rendered, conversations, strict=True):
        learnt = [text for answered, text in runs(tokenizer, one_) if answered]
        answers = [turn.content for turn in conversation.turns if turn.role == "assistant"]
        if name == "qwen3":
            answers = [normal.normalize_str(answer) for answer in answers]
        assert [text.strip() for text in learnt] == [answer + end for answer in answers]


def test_a_date_in_the_template_is_the_same_on_every_day(monkeypatch: pytest.MonkeyPatch):
    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Later":
            return cls(2031, 1, 2)

    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    tokenizer = copy.deepcopy(pico_tokenizer(300))
    tokenizer.chat_template = DATED
    assert "02 Jan 2031" in tokenizer.apply_chat_template(TWO.messages(), tokenize=False)  # the clock is asked
    (question,), learnt = render_questions([TWO.prompt()], tokenizer), one(TWO, tokenizer)
    opening = "<|system|>\nToday Date: 26 Jul 2024<|end|>\n<|user|>\nthe cat<|end|>\n<|assistant|>\n"
    assert question == opening == render_chat(tokenizer, "the cat") == runs(tokenizer, learnt)[0][1]
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|end|>")
