"""What a vocabulary does to text: characters a token, what it can and cannot spell, and segmentations to look at."""

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from lep.corpus.parallel import batched
from lep.tokenizers.family import Family, family_of
from lep.tokenizers.scripts import UNASSIGNED
from lep.tokenizers.words import training_pre_tokenizer
from lep.vocabulary import MARK, Vocabulary, compose, kept_ids, read_vocabulary

Texts = Mapping[str, Mapping[str, Iterable[str]]]  # source -> language -> texts
TEXTS_AT_ONCE = 64
MOST_DOMAINS = 12  # a table of sources that is still read; the smaller ones are put together
CHARACTERS_AT_ONCE = 256  # of all Unicode in one text, when it is asked what comes back


def compare_vocabularies(tokenizers: Mapping[str, PreTrainedTokenizerFast], texts: Texts) -> dict[str, Any]:
    """A report of each vocabulary on the same texts, and one sentence of each language as each of them cuts it.

    `tokenizers` holds "before" and "after", and others by their names, which come back under "others".
    """
    reports = {name: vocabulary_report(tokenizer, texts) for name, tokenizer in tokenizers.items()}
    sentences: dict[str, str] = {}
    for by_language in texts.values():
        for language, some in by_language.items():
            sentences.setdefault(language, next((line[:160] for text in some if (line := _first_line(text))), ""))
    cuts = {name: segmentations(tokenizer, list(sentences.values())) for name, tokenizer in tokenizers.items()}
    return {
        "before": reports.pop("before"),
        "after": reports.pop("after"),
        "others": reports,
        "examples": [
            {"language": language, "tokens": {name: cuts[name][i] for name in cuts}}
            for i, language in enumerate(sentences)
        ],
    }


def _first_line(text: str) -> str:
    """The first line of running text: a title says little about a vocabulary."""
    lines = [" ".join(line.split()) for line in text.split("\n")]
    return next((line for line in lines if len(line) > 60), lines[0])


def vocabulary_report(tokenizer: PreTrainedTokenizerFast, texts: Texts) -> dict[str, Any]:
    """Facts of a vocabulary as JSON: its size, its cost on the texts by language and by domain, and what it guarantees.

    A word is what stands between white space. A pre-token is what the pre-tokenizer never lets a token reach beyond:
    characters a pre-token is the most characters a token that any vocabulary can have with it. `share_used` is the part
    of the ordinary tokens that occur in the texts. Domains are the sources of the texts.
    """
    vocabulary, family = read_vocabulary(tokenizer), family_of(tokenizer)
    use = np.zeros(len(vocabulary), dtype=np.int64)
    counts = {
        (source, language): _count(tokenizer, _pre_tokens(family), some, use)
        for source, by_language in texts.items()
        for language, some in by_language.items()
    }
    ordinary = np.array([token is not None for token in vocabulary.tokens])
    unreachable = unreachable_tokens(tokenizer, vocabulary)
    return {
        "size": len(vocabulary),
        "specials": len(vocabulary.specials),
        "unassigned": len(vocabulary.unassigned),
        "unreachable_tokens": len(unreachable),
        "unreachable_examples": [vocabulary.pieces[i] for i in unreachable[:20]],
        "share_used": float((use[ordinary] > 0).mean()),
        "unicode_characters_lost": len(lost_characters(tokenizer, vocabulary)),
        "digits_per_token": digits_per_token(vocabulary),
        "languages": {name: _averages(total) for name, total in _totals(counts, by=1).items()},
        "domains": {name: _averages(total) for name, total in _totals(counts, by=0).items()},
    }


def _count(
    tokenizer: PreTrainedTokenizerFast, pre_tokens: Tokenizer, texts: Iterable[str], use: np.ndarray
) -> Counter[str]:
    """Characters, words, tokens and pre-tokens of the texts; adds the use of each id to `use` in place."""
    counts: Counter[str] = Counter()
    for batch in batched(texts, weight=lambda _: 1, limit=TEXTS_AT_ONCE):
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        split = pre_tokens.encode_batch_fast(batch, add_special_tokens=False)
        for text, encoding, parts in zip(batch, encoded, split, strict=True):
            ids = np.array(encoding.ids, dtype=np.int64)
            use += np.bincount(ids, minlength=len(use))
            counts["characters"] += len(text)
            counts["words"] += len(text.split())
            counts["tokens"] += len(ids)
            counts["pre_tokens"] += len(parts.ids)
    return counts


def _pre_tokens(family: Family) -> Tokenizer:
    """A tokenizer that gives one id for every pre-token, as fast as the library splits."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    if family.base.backend_tokenizer.normalizer is not None:
        tokenizer.normalizer = family.base.backend_tokenizer.normalizer
    tokenizer.pre_tokenizer = training_pre_tokenizer(family)
    return tokenizer


def _totals(counts: Mapping[tuple[str, str], Counter[str]], *, by: int) -> dict[str, Counter[str]]:
    """The counts put together by language, or by source: the largest ones by their short names, the others as one."""
    totals: dict[str, Counter[str]] = {}
    for key, count in counts.items():
        totals.setdefault(key[by], Counter()).update(count)
    if by == 1:
        return totals
    largest = sorted(totals, key=lambda name: -totals[name]["characters"])[:MOST_DOMAINS]
    short = {name: Path(name).name.partition(".")[0] for name in largest}
    named: dict[str, Counter[str]] = {}
    for name, total in totals.items():
        clear = name in short and list(short.values()).count(short[name]) == 1
        label = short[name] if clear else name if name in short else "other sources"
        named.setdefault(label, Counter()).update(total)
    return named


def _averages(counts: Counter[str]) -> dict[str, float]:
    tokens, words, pre_tokens = (max(counts[name], 1) for name in ("tokens", "words", "pre_tokens"))
    return {
        "characters_per_token": counts["characters"] / tokens,
        "tokens_per_word": counts["tokens"] / words,
        "pre_tokens_per_word": counts["pre_tokens"] / words,
        "characters_per_pre_token": counts["characters"] / pre_tokens,
        "characters": counts["characters"],
        "tokens": counts["tokens"],
    }


def lost_characters(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary | None = None) -> list[str]:
    """Assigned Unicode characters that the tokens of a text with them do not spell again, byte for byte.

    What the family's own normalizer makes of a text counts as the text; the metaspace, which a family with that mark
    reads as a space, is left out.
    """
    vocabulary = vocabulary or read_vocabulary(tokenizer)
    skipped = MARK if vocabulary.alphabet == "metaspace" else ""
    everything = (c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) not in UNASSIGNED)
    characters = (c for c in everything if c not in skipped)
    # Neighbours may merge with each other and hide nothing: a text is lost as soon as one of its characters is.
    runs = batched(characters, weight=len, limit=CHARACTERS_AT_ONCE)
    suspects = lost_texts(tokenizer, ["".join(run) for run in runs], vocabulary)
    return lost_texts(tokenizer, [character for text in suspects for character in text], vocabulary)


def lost_texts(tokenizer: PreTrainedTokenizerFast, texts: list[str], vocabulary: Vocabulary | None = None) -> list[str]:
    """Those of the texts whose tokens spell another text, beyond what the family's normalizer does to it.

    A metaspace family opens a text with a space or takes the one it has, so the first space does not count there.
    """
    vocabulary = vocabulary or read_vocabulary(tokenizer)
    backend, opening = tokenizer.backend_tokenizer, b" " if vocabulary.alphabet == "metaspace" else b""
    normalizer = backend.normalizer if vocabulary.alphabet == "byte_level" else None
    rows = backend.encode_batch_fast(texts, add_special_tokens=False)
    lost = []
    for text, row in zip(texts, rows, strict=True):
        spelt = b"".join(vocabulary.tokens[i] or (vocabulary.pieces[i] or "").encode() for i in row.ids)
        expected = (text if normalizer is None else normalizer.normalize_str(text)).encode()
        if spelt.removeprefix(opening) != expected.removeprefix(opening):
            lost.append(text)
    return lost


def digits_per_token(vocabulary: Vocabulary) -> int:
    """The longest number that is one token: 1 where numbers are split into digits, 3 where they go by threes."""
    numbers = (token.strip() for token in vocabulary.tokens if token is not None)
    return max((len(number) for number in numbers if number.isdigit()), default=0)


def vocabulary_change(before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast) -> dict[str, int]:
    """How many tokens of the old vocabulary the new one holds, and how many of them under the same id."""
    old, new = read_vocabulary(before), read_vocabulary(after)
    same = [i for i in kept_ids(old, new) if old.pieces[i] is not None]
    return {
        "old_tokens": len(old.ids_of_pieces),
        "kept_tokens": len(old.ids_of_pieces.keys() & new.ids_of_pieces.keys()),
        "kept_ids": len(same),
    }


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


def segmentations(tokenizer: PreTrainedTokenizerFast, sentences: list[str]) -> list[list[str]]:
    """Each sentence's tokens, printable: a leading space as "·", a line end as "↵", bytes that are no text as <D0>."""
    vocabulary = read_vocabulary(tokenizer)
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(sentences, add_special_tokens=False)
    return [[_printable(vocabulary.tokens[i], vocabulary.specials.get(i, "")) for i in e.ids] for e in encoded]


def _printable(token: bytes | None, special: str) -> str:
    if token is None:
        return special
    text = token.decode(errors="surrogateescape").replace(" ", "·").replace("\n", "↵").replace("\t", "→")
    return "".join(f"<{ord(c) - 0xDC00:02X}>" if "\udc80" <= c <= "\udcff" else c for c in text)
