"""Counted words: what the family's pre-tokenizer makes of a corpus, in the family's own alphabet.

In: a stream of texts. Out: a Counter of pre-tokens (byte glyphs, or text with metaspaces). Texts are cut at single
spaces first and each distinct cut is pre-tokenized once, which gives the same words several times faster.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from tokenizers import Regex, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import PreTrainedTokenizerFast

from lep.tokenizers.family import Family
from lep.vocabulary import MARK, bare_tokenizer, components, from_glyphs, model_ids, to_glyphs

# A space between two words opens a pre-token in every family, so a text may be cut there.
WORD_BOUNDARY = re.compile(r"(?<=\S)(?= \S)")
LINE_CONTROLS = r"[\n\r\t]"
COVERAGE = 0.9999  # share of characters with a piece of their own; the others cost up to four byte tokens


def training_pre_tokenizer(family: Family) -> PreTokenizer:
    """The family's pre-tokenizer, with SentencePiece's training-time splits where it splits nothing itself.

    SentencePiece models split words, numbers and signs only while they train, and leave line ends and tabs to the
    byte pieces unless the base has a piece for them.
    """
    own = family.base.backend_tokenizer.pre_tokenizer
    if family.alphabet == "byte_level":
        assert own is not None
        return own
    pieces = model_ids(family.spec["model"]).keys() - set(family.byte_pieces)
    # As Latin digits go: Gemma splits these one by one, and has years in Bengali ones, and tokens named <unused10>.
    words = pieces - {token["content"] for token in family.added}
    longest = max((len(run) for word in words for run in re.findall("[0-9]+", word)), default=1)
    space = f"{MARK}?" if any(re.match(f"{MARK}[0-9]", word) for word in words) else ""
    kinds = [
        rf"{MARK}+(?={MARK}[^{MARK}])",  # the spaces before the one that opens a word
        rf"{MARK}?\p{{L}}[\p{{L}}\p{{M}}]*",
        rf"{space}\p{{N}}{{1,{longest}}}",
        rf"{MARK}?[^\p{{L}}\p{{N}}\s{MARK}]+",
        rf"{MARK}+",
        r"\s+",
    ]
    steps = [] if "\n" in pieces else [pre_tokenizers.Split(Regex(LINE_CONTROLS), "removed")]
    steps += [] if own is None else [own]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.Split(Regex("|".join(kinds)), "isolated")])


def count_words(family: Family, texts: Iterable[str]) -> Counter[str]:
    """Pre-tokens of the corpus and how often each comes, in the family's alphabet."""
    cuts: Counter[str] = Counter()
    for text in texts:
        cuts.update(WORD_BOUNDARY.split(text))
    split = training_pre_tokenizer(family).pre_tokenize_str
    normalizer = family.base.backend_tokenizer.normalizer
    normalize = normalizer.normalize_str if normalizer is not None else str
    # A normalizer that puts a mark before every text would double the one that the cut's own space becomes.
    prepends = any(step["type"] == "Prepend" for step in components(family.spec["normalizer"]))
    words: Counter[str] = Counter()
    for cut, count in cuts.items():
        for word, _ in split(normalize(cut.removeprefix(" ") if prepends else cut)):
            words[word] += count
    return words


def of_scripts(family: Family, words: Counter[str], scripts: tuple[str, ...]) -> Counter[str]:
    """The words whose letters are all of the given Unicode scripts, signs around them cut off."""
    letters = "".join(rf"\p{{{script}}}" for script in scripts)
    try:
        pattern = Regex(rf" ?(?<!\p{{L}})[{letters}]+(?!\p{{L}})")
    except Exception as error:
        raise ValueError(
            f"tokenizer.scripts={list(scripts)}: {error}. Give names of Unicode scripts, such as Cyrillic."
        ) from error
    split = pre_tokenizers.Split(pattern, "removed", invert=True).pre_tokenize_str
    chosen: Counter[str] = Counter()
    for word, count in words.items():
        for text, _ in split(as_text(family, word)):
            chosen[as_piece(family, text)] += count
    return chosen


def token_use(tokenizer: PreTrainedTokenizerFast, words: Counter[str]) -> dict[int, int]:
    """How often each token comes in the counted words."""
    counts: Counter[int] = Counter()
    encoded = bare_tokenizer(tokenizer, pre_tokenizer=False).encode_batch_fast(list(words), add_special_tokens=False)
    for encoding, count in zip(encoded, words.values(), strict=True):
        for i in encoding.ids:
            counts[i] += count
    return counts


def as_text(family: Family, word: str) -> str:
    """A pre-token as the text it stands for; pre-tokens never cut a letter."""
    return from_glyphs(word).decode() if family.alphabet == "byte_level" else word.replace(MARK, " ")


def as_piece(family: Family, text: str) -> str:
    """Text spelt in the family's alphabet."""
    return to_glyphs(text.encode()) if family.alphabet == "byte_level" else text.replace(" ", MARK)


def covering(counts: Mapping[str, int]) -> list[str]:
    """The most frequent characters that together make `COVERAGE` of all; the rest is left to bytes."""
    limit, reached, kept = COVERAGE * sum(counts.values()), 0, []
    for character, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])):
        if reached >= limit:
            break
        reached += count
        kept.append(character)
    return kept
