"""What the propagated model speaks with: the adapted vocabulary and the instruct model's chat.

In: fast tokenizers. Out: the result's tokenizer, what it takes from the instruct model, the id that ends a turn; the
text of a chat.
Assumed: the adapted tokenizer was made from the base's, and base and instruct agree on every ordinary token.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime

from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from lep.vocabulary import read_vocabulary, remap_post_processor, tokenizer_json

ROLES = ("bos", "eos", "pad", "unk")
# What day it is in a chat, for templates that write the date: what is asked today is learnt and scored tomorrow. It is
# the day that the template of LLaMa 3.1 falls back on.
TODAY = datetime(2024, 7, 26)
_CLOCK = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")


def chat_text(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Mapping[str, str]], *, open_answer: bool = False
) -> str:
    """Messages in the tokenizer's chat format, the same every day; `open_answer` begins the assistant's turn after."""
    # In the template's text: transformers hands no function to a template but its own clock.
    template = _CLOCK.sub(lambda call: repr(TODAY.strftime(call[2])), tokenizer.get_chat_template())
    text = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=open_answer,
    )
    return str(text)


def check_siblings(base: PreTrainedTokenizerFast, instruct: PreTrainedTokenizerFast) -> None:
    """ValueError unless base and instruct give every ordinary token the same id: only then do their rows pair up.

    Special tokens may differ: tunes add markers and rename reserved ones.
    """
    ours, theirs = read_vocabulary(base).tokens, read_vocabulary(instruct).tokens
    length = max(len(ours), len(theirs))
    ours, theirs = ours + (None,) * (length - len(ours)), theirs + (None,) * (length - len(theirs))
    # A token that the tune made special, or a reserved id it put to use, is no disagreement about text.
    wrong = [i for i in range(length) if ours[i] != theirs[i] and ours[i] is not None and theirs[i] is not None]
    only = [i for i in range(length) if ours[i] is None and theirs[i] is not None]
    if wrong or only:
        first = (wrong + only)[0]
        raise ValueError(
            f"model.base and model.instruct: their tokenizers differ in {len(wrong) + len(only)} ordinary tokens, "
            f"first at id {first} ({ours[first]!r} against {theirs[first]!r}). "
            "Give an instruct model tuned from this base."
        )


def result_tokenizer(
    adapted: PreTrainedTokenizerFast, instruct: PreTrainedTokenizerFast
) -> tuple[PreTrainedTokenizerFast, list[tuple[int, int]]]:
    """The adapted tokenizer made to chat like the instruct model, and (new id, instruct id) of what it had to add.

    Tokens that only the instruct model has (chat markers) are appended behind the highest id, with the same matching
    rules; ids below it that no token has (dropped scripts leave some) stay free, as other tokens keep theirs. Template,
    bos, eos, pad, unk and what is put around a text (the post-processor, with the new ids) are the instruct model's;
    a role it leaves empty stays the adapted tokenizer's.
    """
    tokenizer = copy.deepcopy(adapted)
    known = tokenizer.get_vocab()
    missing = [(i, token) for i, token in sorted(instruct.added_tokens_decoder.items()) if token.content not in known]
    first_free = max(known.values()) + 1
    if missing and first_free > len(known):
        _give_ids_(tokenizer, {token.content: first_free + k for k, (_, token) in enumerate(missing)})
    tokenizer.add_tokens([token for _, token in missing])  # type: ignore[arg-type]
    ids = tokenizer.get_vocab()
    added = [(ids[token.content], i) for i, token in missing]
    if [new for new, _ in added] != list(range(first_free, first_free + len(added))):
        raise ValueError(
            f"tokenizer: {first_free} ids of which {first_free - len(known)} are unused, so that tokens of the "
            "instruct model would land on ids in use. Give a tokenizer without gaps in its ids."
        )
    for role in ROLES:
        content = getattr(instruct, f"{role}_token")
        if content is not None:
            setattr(tokenizer, f"{role}_token", content)
    _put_marks_around_(tokenizer, instruct)
    tokenizer.chat_template = instruct.chat_template
    tokenizer.model_max_length = instruct.model_max_length
    return tokenizer, added


def _give_ids_(tokenizer: PreTrainedTokenizerFast, ids: dict[str, int]) -> None:
    """Puts tokens into the model, so that they have these ids once added: the library would count to number them.

    A Unigram model numbers its pieces itself and is left alone: its ids have no gaps.
    """
    spec = tokenizer_json(tokenizer)
    if spec["model"]["type"] == "BPE":
        spec["model"]["vocab"] |= ids
        tokenizer.backend_tokenizer.model = Tokenizer.from_str(json.dumps(spec)).model


def _put_marks_around_(tokenizer: PreTrainedTokenizerFast, instruct: PreTrainedTokenizerFast) -> None:
    """The instruct model's post-processor, which names tokens by id, in the ids of this tokenizer."""
    skeleton = Tokenizer(BPE())
    if instruct.backend_tokenizer.post_processor is not None:
        skeleton.post_processor = instruct.backend_tokenizer.post_processor
    spec = json.loads(skeleton.to_str())
    remap_post_processor(spec["post_processor"], tokenizer.get_vocab())
    tokenizer.backend_tokenizer.post_processor = Tokenizer.from_str(json.dumps(spec)).post_processor


def special_pairs(tokenizer: PreTrainedTokenizerFast, instruct: PreTrainedTokenizerFast) -> list[tuple[int, int]]:
    """(new id, instruct id) of every special token that both have by content: the rows propagation must keep."""
    theirs = {content: i for i, content in read_vocabulary(instruct).specials.items()}
    ours = read_vocabulary(tokenizer).specials
    return [(i, theirs[content]) for i, content in sorted(ours.items()) if content in theirs]


def end_of_turn(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The special token that the chat template writes after an answer; None if there is none, or no template."""
    if not tokenizer.chat_template:
        return None
    answer = "zqx"  # letters that no template writes by itself
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    text = chat_text(tokenizer, turns)
    specials = read_vocabulary(tokenizer).specials
    ids = tokenizer.encode(text[text.rindex(answer) + len(answer) :], add_special_tokens=False)
    return next((i for i in ids if i in specials), None)
