"""What a vocabulary does to text: characters a token, unreachable tokens, share used, and segmentations to look at."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from lep.vocabulary import Vocabulary, compose, read_vocabulary

TEXTS_AT_ONCE = 64


def vocabulary_report(
    tokenizer: PreTrainedTokenizerFast, texts_by_language: Mapping[str, Iterable[str]]
) -> dict[str, Any]:
    """Facts of a vocabulary as JSON: its size, its dead tokens, and its cost on the texts of each language.

    A word is what stands between white space. `share_used` is the part of the ordinary tokens that occur in the texts.
    """
    vocabulary = read_vocabulary(tokenizer)
    counts = np.zeros(len(vocabulary), dtype=np.int64)
    languages = {language: _cost(tokenizer, texts, counts) for language, texts in texts_by_language.items()}
    ordinary = np.array([token is not None for token in vocabulary.tokens])
    unreachable = unreachable_tokens(tokenizer, vocabulary)
    return {
        "size": len(vocabulary),
        "specials": len(vocabulary.specials),
        "unassigned": len(vocabulary.unassigned),
        "unreachable_tokens": len(unreachable),
        "unreachable_examples": [vocabulary.pieces[i] for i in unreachable[:20]],
        "share_used": float((counts[ordinary] > 0).mean()),
        "languages": languages,
    }


def _cost(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], counts: np.ndarray) -> dict[str, float]:
    """Characters a token and tokens a word of the texts; adds the use of each id to `counts` in place."""
    characters = words = tokens = 0
    for batch in _batches(texts):
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        for text, encoding in zip(batch, encoded, strict=True):
            ids = np.array(encoding.ids, dtype=np.int64)
            counts += np.bincount(ids, minlength=len(counts))
            characters, words, tokens = characters + len(text), words + len(text.split()), tokens + len(ids)
    return {
        "characters_per_token": characters / max(tokens, 1),
        "tokens_per_word": tokens / max(words, 1),
        "characters": characters,
        "tokens": tokens,
    }


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == TEXTS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def unreachable_tokens(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary | None = None) -> list[int]:
    """Ids of the ordinary tokens that no text gives: their own bytes come out as other tokens.

    A token that ends up in any segmentation is also what the model makes of its bytes alone (merges inside its span do
    not look outside; the best Unigram path is best in every part), so one batch answers for all. Single bytes are left
    out: some never stand in UTF-8, and all are there for safety.
    """
    vocabulary = vocabulary or read_vocabulary(tokenizer)
    ids = [i for i, token in enumerate(vocabulary.tokens) if token is not None and len(token) > 1]
    rows = compose([vocabulary.tokens[i] or b"" for i in ids], tokenizer, vocabulary)
    return [i for i, row in zip(ids, rows, strict=True) if row != [i]]


def segmentations(tokenizer: PreTrainedTokenizerFast, sentence: str) -> list[str]:
    """The sentence's tokens, printable: a leading space as "·", a line end as "↵", bytes that are no text as <D0>."""
    vocabulary = read_vocabulary(tokenizer)
    ids = tokenizer.backend_tokenizer.encode(sentence, add_special_tokens=False).ids
    return [_printable(vocabulary.tokens[i], vocabulary.specials.get(i, "")) for i in ids]


def _printable(token: bytes | None, special: str) -> str:
    if token is None:
        return special
    text = token.decode(errors="surrogateescape").replace(" ", "·").replace("\n", "↵").replace("\t", "→")
    return "".join(f"<{ord(c) - 0xDC00:02X}>" if "\udc80" <= c <= "\udcff" else c for c in text)
