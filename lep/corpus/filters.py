"""Which text is kept: Unicode normalisation, script filter, the language of a document.

The paper keeps Cyrillic and Latin and strips emoji and logograms. Comes in: a raw text. Goes out: the same text without
what is not kept, in normal form, and counts of everything that was dropped. Punctuation, digits, symbols and combining
marks belong to no script and stay.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import regex

# Classes of characters that are dropped. Kept letters are classed by script, everything else kept is class 0.
DROPPED: tuple[str, ...] = ("other scripts", "logograms", "emoji", "control")
NUM_CODES = 0x110000

# Pictures below U+2300 (the copyright and trade mark signs, arrows) are typography; from there on they are emoji.
_EMOJI = r"[\p{Emoji_Modifier}\p{Regional_Indicator}\ufe0e\ufe0f\u20e3\U000e0020-\U000e007f]"
_PICTOGRAPH = r"[\p{Extended_Pictographic}--[\u0000-\u22ff]]"
_LOGOGRAM = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}\p{Yi}\p{Egyptian_Hieroglyphs}\p{Cuneiform}"
    r"\u2e80-\u33ff\ufe30-\ufe4f]"  # the blocks of their punctuation and enclosed forms
)
# Control, format, private, unassigned; the replacement character stands for text that was lost already.
_CONTROL = r"[[\p{Cc}\p{Cf}\p{Co}\p{Cn}\ufffd]--[\t\n\U000e0020-\U000e007f]]"
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_BLANKS = re.compile(r"[^\S\n]+")
_LINE_EDGES = re.compile(r" ?\n ?")
_EMPTY_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class CorpusFilters:
    """What is kept of a corpus.

    languages: those wanted, each with its script; a document whose language no record tells is taken for the language
        whose script most of its letters are in (the first named, when two share a script).
    scripts: whose letters stay in the text; letters of others are stripped.
    max_dropped_share: a document that loses a larger share of its characters is dropped whole.
    min_characters: a document (or part) that is shorter when clean is dropped.
    tidy_whitespace: one blank for a run of blanks, none at the edges of lines, at most one empty line. For ragged
        books; it would ruin code.
    split_long_documents: characters; longer documents become parts that end at paragraphs, before anything else is
        decided. Each part is then a document of its own, so that parts of one book may be held out while others are
        trained on. Without it, a corpus of a few long documents has no held-out split to speak of.
    near_duplicates: Jaccard similarity of word 5-grams from which two documents count as the same; None keeps them.
    """

    languages: Mapping[str, str] = field(default_factory=lambda: {"ru": "Cyrillic", "en": "Latin"})
    scripts: tuple[str, ...] = ("Cyrillic", "Latin")
    normalization: Literal["NFC", "NFKC", "NFD", "NFKD"] = "NFC"
    max_dropped_share: float = 0.1
    min_characters: int = 1
    tidy_whitespace: bool = False
    split_long_documents: int | None = None
    near_duplicates: float | None = 0.8

    def __post_init__(self) -> None:
        object.__setattr__(self, "scripts", tuple(self.scripts))
        _check(bool(self.languages), "languages", self.languages, "name at least one language and its script")
        named = all(re.fullmatch(r"[\w-]+", language) for language in self.languages)
        _check(named, "languages", self.languages, "a language names files: letters, digits, - and _ only")
        for script in self.scripts:
            _check(_is_script(script), "scripts", script, "must be a script of Unicode, such as Cyrillic or Latin")
        for language, script in self.languages.items():
            _check(script in self.scripts, f"languages.{language}", script, f"must be one of scripts={self.scripts}")
        forms = ("NFC", "NFKC", "NFD", "NFKD")
        _check(self.normalization in forms, "normalization", self.normalization, f"must be one of {forms}")
        _check(0 <= self.max_dropped_share <= 1, "max_dropped_share", self.max_dropped_share, "must lie in 0..1")
        _check(self.min_characters >= 1, "min_characters", self.min_characters, "must be at least 1")
        limit, threshold = self.split_long_documents, self.near_duplicates
        _check(limit is None or limit >= 100, "split_long_documents", limit, "must be at least 100 characters, or null")
        _check(threshold is None or 0 < threshold <= 1, "near_duplicates", threshold, "must lie in 0..1, or be null")


def _check(holds: bool, key: str, value: object, limit: str) -> None:
    if not holds:
        raise ValueError(f"corpus.filters.{key}={value}: {limit}.")


@dataclass(frozen=True)
class Cleaned:
    """A text after the filters; `letters` by kept script, `dropped` characters by class, `num_characters` before."""

    text: str
    letters: dict[str, int]
    dropped: dict[str, int]
    num_characters: int

    @property
    def dropped_share(self) -> float:
        return sum(self.dropped.values()) / max(self.num_characters, 1)

    @property
    def script(self) -> str | None:
        """The script of most letters; None for a text without letters."""
        script = max(self.letters, key=lambda name: self.letters[name])
        return script if self.letters[script] else None


def clean(text: str, filters: CorpusFilters) -> Cleaned:
    """The text in normal form with `\\n` line ends, without characters of classes that are not kept."""
    table = character_classes(filters.scripts)
    text = unicodedata.normalize(filters.normalization, _LINE_END.sub("\n", text))
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    classes = table[codes]
    counts = np.bincount(classes, minlength=1 + len(filters.scripts) + len(DROPPED)).tolist()
    letters = dict(zip(filters.scripts, counts[1:], strict=False))
    dropped: dict[str, int] = dict(zip(DROPPED, counts[1 + len(filters.scripts) :], strict=True))
    if any(dropped.values()):
        kept = codes[classes <= len(filters.scripts)].tobytes().decode("utf-32-le")
        # Neighbours that meet now may compose.
        text = unicodedata.normalize(filters.normalization, kept)
    if filters.tidy_whitespace:
        text = _EMPTY_LINES.sub("\n\n", _LINE_EDGES.sub("\n", _BLANKS.sub(" ", text)))
    return Cleaned(text.strip("\n"), letters, dropped, len(codes))


@functools.lru_cache(maxsize=4)
def character_classes(scripts: tuple[str, ...]) -> np.ndarray:
    """Class of every code point, uint8 [0x110000]: 0 kept, 1.. the kept scripts in order, then `DROPPED` in order."""
    first = 1 + len(scripts)
    table = np.zeros(NUM_CODES, dtype=np.uint8)
    table[_codes(r"[^\p{Script=Common}\p{Script=Inherited}]")] = first + DROPPED.index("other scripts")
    for number, script in enumerate(scripts, 1):
        table[_codes(rf"\p{{Script={script}}}")] = number
    for pattern, dropped in (
        (_LOGOGRAM, "logograms"),
        (_EMOJI, "emoji"),
        (_PICTOGRAPH, "emoji"),
        (_CONTROL, "control"),
    ):
        table[_codes(pattern)] = first + DROPPED.index(dropped)
    table[0xD800:0xE000] = first + DROPPED.index("control")  # halves of surrogate pairs, as broken JSON has them
    return table


def _codes(pattern: str) -> np.ndarray:
    codes = _all_characters()
    text = codes.tobytes().decode("utf-32-le")
    spans = (codes[slice(*match.span())] for match in regex.finditer(f"(?V1){pattern}+", text))
    return np.concatenate(list(spans))


def _all_characters() -> np.ndarray:
    codes = np.arange(NUM_CODES, dtype="<u4")
    return codes[(codes < 0xD800) | (codes >= 0xE000)]


def _is_script(name: str) -> bool:
    try:
        regex.compile(rf"\p{{Script={name}}}")
    except regex.error:
        return False
    return True


def document_language(cleaned: Cleaned, named: str, filters: CorpusFilters) -> str | None:
    """The language named with the document, or the first whose script most letters are in; None if it is not wanted."""
    if named:
        return named if named in filters.languages else None
    fitting: Iterable[str] = (name for name, script in filters.languages.items() if script == cleaned.script)
    return next(iter(fitting), None)
