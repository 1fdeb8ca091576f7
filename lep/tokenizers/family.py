"""A tokenizer family: what stays when the vocabulary changes, and how a new model is put in its place.

In: a base tokenizer and a new model (the `model` part of a tokenizer.json) with ids for the added tokens. Out: a
tokenizer with the base's normalizer, pre-tokenizer, decoder, special tokens, post-processor and chat template.
Models are checked first, since the tokenizers library panics on a merge whose parts are missing.
"""

import copy
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lep.vocabulary import GLYPHS, ROLES, Alphabet, alphabet_of, model_ids, remap_post_processor, tokenizer_json

BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# What a tokenizer says about itself beyond tokenizer.json; the rest belongs to classes we do not rebuild.
KEPT_SETTINGS = (
    "model_max_length",
    "padding_side",
    "truncation_side",
    "clean_up_tokenization_spaces",
    "model_input_names",
)


@dataclass(frozen=True)
class Family:
    """A base tokenizer laid open: its tokenizer.json, the alphabet of its pieces, its added tokens by id."""

    base: PreTrainedTokenizerFast
    spec: dict[str, Any]
    alphabet: Alphabet
    added: tuple[dict[str, Any], ...]

    @property
    def byte_pieces(self) -> tuple[str, ...]:
        """The 256 pieces without which some text could not be written."""
        return tuple(GLYPHS) if self.alphabet == "byte_level" else BYTE_PIECES

    @property
    def num_reserved(self) -> int:
        """Tokens that every vocabulary of this family holds: bytes and added tokens."""
        return len(self.byte_pieces) + len(self.added)

    @property
    def specials_first(self) -> bool:
        # A Unigram model must hold the unknown piece that metaspace families need, so theirs come first in any case.
        return self.alphabet == "metaspace" or any(token["id"] == 0 for token in self.added)

    def number_fitting(self, pieces: Sequence[str], size: int) -> int:
        """How many of the pieces, the first ones, go into a vocabulary of `size` ids.

        Bytes and added tokens, which it holds anyway, may be among them: Gemma adds runs of spaces and line ends.
        """
        held = {*self.byte_pieces, *(token["content"] for token in self.added)}
        new = np.cumsum([piece not in held for piece in pieces])
        return int(np.searchsorted(new, size - self.num_reserved, side="right"))

    def place(self, pieces: list[str]) -> tuple[dict[str, int], dict[str, int]]:
        """Ids for a new vocabulary, added tokens before or behind the pieces as the base has them.

        Returns the ids of the model's pieces, and those of the added tokens; the model holds the added tokens too
        when they come first, since its ids must start at 0.
        """
        contents = [token["content"] for token in self.added]
        if self.specials_first:
            # What a new vocabulary learnt and the added tokens have as well is there already.
            ids = {piece: i for i, piece in enumerate(dict.fromkeys([*contents, *pieces]))}
            return ids, {content: ids[content] for content in contents}
        return (
            {piece: i for i, piece in enumerate(pieces)},
            {content: len(pieces) + i for i, content in enumerate(contents)},
        )


def family_of(base: PreTrainedTokenizerFast) -> Family:
    """Reads the family of a base tokenizer; ValueError when it is neither byte-level nor metaspace."""
    spec = tokenizer_json(base)
    added = tuple(sorted(spec["added_tokens"], key=lambda token: token["id"]))
    return Family(base, spec, alphabet_of(spec), added)


def bpe_model(family: Family, vocab: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, Any]:
    """The model part of a BPE tokenizer.json with the family's settings, checked."""
    old = family.spec["model"] if family.spec["model"]["type"] == "BPE" else {}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": old.get("unk_token"),
        "continuing_subword_prefix": old.get("continuing_subword_prefix"),
        "end_of_word_suffix": old.get("end_of_word_suffix"),
        "fuse_unk": old.get("fuse_unk", family.alphabet == "metaspace"),
        "byte_fallback": family.alphabet == "metaspace",
        "ignore_merges": old.get("ignore_merges", False),
        "vocab": vocab,
        "merges": [list(pair) for pair in merges],
    }
    assert len(set(vocab.values())) == len(vocab), "two pieces share an id"
    assert all(a in vocab and b in vocab and a + b in vocab for a, b in merges), "a merge lacks a part or its product"
    return model


def require_bpe(family: Family, variant: str) -> None:
    """ValueError unless the base has merges to continue."""
    kind = family.spec["model"]["type"]
    if kind != "BPE":
        raise ValueError(
            f"tokenizer={variant} continues the merges of the base's vocabulary, but the base is a {kind} model. "
            "Use tokenizer=bpe or tokenizer=unigram, which replace the vocabulary."
        )


def require_room(family: Family, key: str, size: int) -> None:
    """ValueError when a size leaves no room beside the bytes and specials."""
    if size <= family.num_reserved:
        raise ValueError(
            f"{key}={size} leaves no room beside the {family.num_reserved} tokens that every vocabulary of this family "
            f"keeps ({len(family.byte_pieces)} bytes, {len(family.added)} special tokens). Raise {key}."
        )


def warn_if_short(key: str, asked: int, got: int) -> None:
    """Says so when the corpus did not hold enough for the vocabulary asked for."""
    if got < asked:
        warnings.warn(
            f"{key}={asked}, but the corpus gave {got} only: it has too few distinct words. "
            f"Give more text or lower {key}.",
            stacklevel=3,
        )


def assemble(family: Family, model: dict[str, Any], added_ids: dict[str, int]) -> PreTrainedTokenizerFast:
    """The base's tokenizer around another model: one mapping of ids for added tokens and post-processor alike."""
    spec = {key: copy.deepcopy(value) for key, value in family.spec.items() if key != "model"}
    spec |= {"model": model, "truncation": None, "padding": None}
    spec["added_tokens"] = [token | {"id": added_ids[token["content"]]} for token in family.added]
    spec["added_tokens"].sort(key=lambda token: token["id"])
    remap_post_processor(spec["post_processor"], model_ids(model) | added_ids)
    backend = Tokenizer.from_str(json.dumps(spec))
    assert {t.content: i for i, t in backend.get_added_tokens_decoder().items()} == added_ids, "an added token moved"
    return _wrap(backend, family.base)


def _wrap(backend: Tokenizer, base: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The Hugging Face face of a fast tokenizer, with the base's named tokens, settings and chat template."""
    settings = {name: getattr(base, name) for name in KEPT_SETTINGS}
    named = {f"{role}_token": getattr(base, f"{role}_token") for role in (*ROLES, "sep", "cls", "mask")}
    settings |= {name: token for name, token in named.items() if token is not None}
    if extra := [str(token) for token in base._extra_special_tokens]:
        settings["extra_special_tokens"] = extra
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **settings)
    tokenizer.chat_template = base.chat_template
    return tokenizer
