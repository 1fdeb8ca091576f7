"""Write a small set of real instructions from plain text: questions about passages, and copies of them.

    python -m lep.calibration.from_texts --texts FILES --out FILE.jsonl [--records N] [--seed N] [--exclude FILES]

Every answer can be read off its passage and is right by construction: a sentence by its number, the word that is
missing, what follows what, whether a word is there, the passage again. Languages share the records evenly; a chat asks
up to three questions about one passage. For tuning a model to follow instructions, and for trying calibration where
there are no instructions at hand; it teaches no knowledge.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lep.calibration.conversations import Conversation, Turn
from lep.calibration.copying import choose_passages, fingerprints, is_known, read_wordings
from lep.corpus.filters import CorpusFilters
from lep.corpus.text_files import TextFiles
from lep.durable import replacing

CHARACTERS = (120, 700)
COPIES = 0.2  # share of the chats that ask for the passage itself
MOST_SENTENCES = 8
GAP = "____"

_SENTENCE = re.compile(r"(?<=[.!?…])\s+")
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
# Where letters meet digits, what a word is would be a matter of taste.
_MIXED = re.compile(r"[^\W\d_][\d_]|[\d_][^\W\d_]")
_PLAIN = re.compile(r"[\w\s.,;:!?…\"'«»“”„()—–-]+")
# Ends as a sentence does and not as an abbreviation might: after a word of four letters, or with another mark.
_WHOLE = re.compile(r"[\"'«“„(—–-]*\s*[^\W\d_a-zа-яё].*(?:[^\W\d_]{4}[\"'»”)]*\.|[!?…][\"'»”)]*)", re.DOTALL)
_CYRILLIC, _LATIN = re.compile(r"[а-яё]", re.IGNORECASE), re.compile(r"[a-z]", re.IGNORECASE)
# Direct speech and asides begin and end sentences inside of others.
_SPEECH = re.compile(r"--|(?:^|\s)-\s|[.!?…:,]\s*[—–]|^[—–]|[.!?…][\"'»”)]+\s")
_HEADING = re.compile(r"[^.!?…:;,\s]\s*\n\s*[^\W\d_a-zа-яё]")


@dataclass(frozen=True)
class Passage:
    """Whole sentences that follow each other, in one line."""

    text: str

    @cached_property
    def sentences(self) -> list[str]:
        return _SENTENCE.split(self.text)

    @cached_property
    def words(self) -> list[str]:
        return _WORD.findall(self.text)

    @cached_property
    def counts(self) -> Counter[str]:
        return Counter(word.casefold() for word in self.words)

    def once(self) -> list[str]:
        """Words of four letters and more that stand in the text once, in order."""
        return [word for word in self.words if len(word) >= 4 and self.counts[word.casefold()] == 1]


def passage_of(text: str) -> Passage | None:
    """The text as a passage, or None if one cannot tell for sure where its sentences begin and end."""
    if any(doubt.search(text) for doubt in (_HEADING, _MIXED, _SPEECH)) or not _PLAIN.fullmatch(text):
        return None
    if text.count('"') % 2 or any(text.count(left) != text.count(right) for left, right in ("«»", "“”", "()")):
        return None
    if _CYRILLIC.search(text) and _LATIN.search(text):
        return None
    passage = Passage(" ".join(text.split()))
    sentences = passage.sentences
    sure = all(_WHOLE.fullmatch(sentence) and len(_WORD.findall(sentence)) >= 3 for sentence in sentences)
    different = len(set(sentences)) == len(sentences)
    return passage if sure and different and 2 <= len(sentences) <= MOST_SENTENCES else None


Slots = Mapping[str, str]
# What is asked about and the answer, or None where the passage does not allow the question.
Task = Callable[[Passage, random.Random, Mapping[str, Any]], tuple[Slots, str] | None]


def _first_sentence(passage: Passage, rng: random.Random, words: Mapping[str, Any]) -> tuple[Slots, str]:
    return {}, passage.sentences[0]


def _last_sentence(passage: Passage, rng: random.Random, words: Mapping[str, Any]) -> tuple[Slots, str]:
    return {}, passage.sentences[-1]


def _numbered_sentence(passage: Passage, rng: random.Random, words: Mapping[str, Any]) -> tuple[Slots, str]:
    number = rng.randrange(len(passage.sentences))
    return {"number": words["ordinals"][number]}, passage.sentences[number]


def _number_of_sentences(passage: Passage, rng: random.Random, words: Mapping[str, Any]) -> tuple[Slots, str]:
    return {}, str(len(passage.sentences))


def _missing_word(passage: Passage, rng: random.Random, words: Mapping[str, Any]) -> tuple[Slots, str] | None:
    if not passage.once():
        return None
    word = rng.choice(passage.once())
    return {"gap": _whole_word(word).sub(GAP, _sentence_with(passage, word))}, word


def _next_word(passage: Passage, rng: random.Random, words: Mapping[str, Any]) -> tuple[Slots, str] | None:
    return _neighbour(passage, rng, 1)


def _word_before(passage: Passage, rng: random.Random, words: Mapping[str, Any]) -> tuple[Slots, str] | None:
    return _neighbour(passage, rng, -1)


def _neighbour(passage: Passage, rng: random.Random, step: int) -> tuple[Slots, str] | None:
    """A word and the one beside it in the same sentence, with nothing but a blank between them."""
    once = set(passage.once())
    pairs = [
        (left, right)
        for left, between, right in re.findall(rf"(?=(?<![\w'’-])({_WORD.pattern})( )({_WORD.pattern}))", passage.text)
        if (left if step > 0 else right) in once and left in passage.words
    ]
    if not pairs:
        return None
    left, right = rng.choice(pairs)
    return ({"word": left}, right) if step > 0 else ({"word": right}, left)


def _contains(passage: Passage, rng: random.Random, words: Mapping[str, Any]) -> tuple[Slots, str] | None:
    absent = [word for word in words["strange"] if word.casefold() not in passage.counts]
    if not passage.once() or not absent:
        return None
    if rng.random() < 0.5:
        return {"word": rng.choice(passage.once())}, words["yes"]
    return {"word": rng.choice(absent)}, words["no"]


def _sentence_with_word(passage: Passage, rng: random.Random, words: Mapping[str, Any]) -> tuple[Slots, str] | None:
    if not passage.once():
        return None
    word = rng.choice(passage.once())
    return {"word": word}, _sentence_with(passage, word)


def _order(passage: Passage, rng: random.Random, words: Mapping[str, Any]) -> tuple[Slots, str] | None:
    once = passage.once()
    if len(once) < 2:
        return None
    first, second = sorted(rng.sample(range(len(once)), 2))
    shown = [once[first], once[second]]
    rng.shuffle(shown)
    return {"word": shown[0], "other": shown[1]}, once[first]


def _names(passage: Passage, rng: random.Random, words: Mapping[str, Any]) -> tuple[Slots, str] | None:
    inside = [word for sentence in passage.sentences for word in _WORD.findall(sentence)[1:]]
    names = [word for word in inside if word[0].isupper()]
    # Direct speech begins sentences inside sentences.
    if not 1 <= len(names) <= 6 or any(mark in passage.text for mark in '"«»“”„—–:'):
        return None
    return {}, ", ".join(names)


def _continuation(passage: Passage, rng: random.Random, words: Mapping[str, Any]) -> tuple[Slots, str] | None:
    long = [sentence for sentence in passage.sentences if sentence.count(" ") >= 7]
    if not long:
        return None
    parts = rng.choice(long).split(" ")
    cut = rng.randint(3, len(parts) - 3)
    return {"gap": " ".join(parts[:cut]) + "…"}, " ".join(parts[cut:])


TASKS: dict[str, Task] = {
    "first sentence": _first_sentence,
    "last sentence": _last_sentence,
    "numbered sentence": _numbered_sentence,
    "number of sentences": _number_of_sentences,
    "missing word": _missing_word,
    "next word": _next_word,
    "word before": _word_before,
    "contains": _contains,
    "sentence with word": _sentence_with_word,
    "order": _order,
    "names": _names,
    "continuation": _continuation,
}


def _whole_word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w'’-]){re.escape(word)}(?![\w-])")


def _sentence_with(passage: Passage, word: str) -> str:
    return next(sentence for sentence in passage.sentences if word in _WORD.findall(sentence))


def chat(
    passage: Passage, rng: random.Random, words: Mapping[str, Any], copies: Sequence[str]
) -> tuple[Conversation, tuple[str, ...]]:
    """One to three questions of different kinds on a passage, or a request to repeat it; and the kinds."""
    if rng.random() < COPIES:
        request = rng.choice(copies).replace("{text}", passage.text)
        return Conversation.exchange(request, passage.text), ("copy",)
    turns, kinds, wanted = list[Turn](), list[str](), rng.choice((1, 1, 2, 3))
    for kind in rng.sample(list(TASKS), len(TASKS)):
        made = TASKS[kind](passage, rng, words)
        if made is None or len(kinds) == wanted:
            continue
        slots, answer = made
        question = rng.choice(words[kind])
        for name, value in slots.items():
            question = question.replace(f"{{{name}}}", value)
        if not turns:
            frame = rng.choice(words["frames"])
            question = frame.replace("{question}", question).replace("{text}", passage.text)
        turns += [Turn("user", question), Turn("assistant", answer)]
        kinds.append(kind)
    return Conversation(tuple(turns)), tuple(kinds)


def chats(texts: TextFiles, *, records: int, seed: int, exclude: TextFiles | None = None) -> list[dict[str, Any]]:
    """Chat records with `messages`, `language` and `tasks`, in random but fixed order."""
    words = yaml.safe_load((files("lep.calibration") / "from_texts.yaml").read_text(encoding="utf-8"))
    copies = read_wordings()
    known = fingerprints(document.text for document in exclude.documents()) if exclude else set[int]()
    chosen = choose_passages(
        texts.documents(),
        count=records,
        characters=CHARACTERS,
        seed=seed,
        filters=CorpusFilters(),
        languages=words,
        accept=lambda text: passage_of(text) is not None and not is_known(text, known),
        turned_down="hold no sentences to ask about, or one of the texts of --exclude",
        remedy="Give more or other text, or ask for fewer",
    )
    found: list[dict[str, Any]] = []
    for language, ranked in chosen.items():
        passages = [(rank, passage) for rank, text in ranked if (passage := passage_of(text))]
        # Words of other passages: what is asked for and not there looks as if it might be.
        strange = sorted({word for _, passage in passages for word in passage.once() if word.islower()})
        for rank, passage in passages:
            rng = random.Random(rank)
            known_words = {**words[language], "strange": rng.sample(strange, min(50, len(strange)))}
            conversation, kinds = chat(passage, rng, known_words, copies[language])
            found.append({"messages": conversation.messages(), "language": language, "tasks": list(kinds)})
    random.Random(seed).shuffle(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", nargs="+", required=True, help="text files, JSON Lines or Parquet; globs")
    parser.add_argument("--out", type=Path, required=True, help="the JSON Lines file to write")
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text-field", default="text", help="the field of the text in JSON Lines and Parquet")
    parser.add_argument("--exclude", nargs="+", default=[], help="files of texts of which no sentence may be used")
    given = parser.parse_args()
    try:
        exclude = TextFiles(tuple(given.exclude), text_field=given.text_field) if given.exclude else None
        texts = TextFiles(tuple(given.texts), text_field=given.text_field)
        records = chats(texts, records=given.records, seed=given.seed, exclude=exclude)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    with replacing(given.out) as staging:
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        staging.write_text("".join(lines), encoding="utf-8")
    languages = Counter(record["language"] for record in records)
    kinds = Counter(kind for record in records for kind in record["tasks"])
    console = Console(stderr=True)
    console.print(f"{len(records)} chats ({', '.join(f'{n} {name}' for name, n in languages.items())}) in {given.out}:")
    console.print(", ".join(f"{n} {kind}" for kind, n in kinds.most_common()))
    console.print(f"Use it with instructions=files instructions.paths=[{given.out}]", markup=False)


if __name__ == "__main__":
    main()
