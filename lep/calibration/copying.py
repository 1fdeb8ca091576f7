"""Copy tasks: "repeat this text", made from any text, as instruction data (the paper's section on calibration).

In: documents. Out: conversations whose answer is a passage of the request, word for word.
A passage is whole sentences or paragraphs of one document. Which passages are taken depends on their text and the seed
alone; those of which anything stands in `exclude` are not.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lep.assets.microworld import LANGUAGES, benchmark_items, copy_request, text_to_copy
from lep.calibration.conversations import Conversation
from lep.corpus.documents import Document, Source
from lep.corpus.filters import CorpusFilters, clean, document_language
from lep.corpus.paragraphs import paragraph_levels
from lep.corpus.progress import document_progress

# A sentence of fewer letters is no sign that a text was seen: "Thank you very much." is everywhere.
_TELLING = 30
# Where sentences end; and where they may begin, after a line of its own or a word that announces them ("Repeat: ...").
# By the first a sentence is known however it is wrapped, by the second whatever stands before it.
_SENTENCE_ENDS = (re.compile(r"(?<=[.!?…])\s+"), re.compile(r"(?<=[.!?…:])\s+|\n+"))
_NO_LETTER = re.compile(r"[\W_]+")

# What is said of passages that are left out.
_SEEN = "hold a sentence of the texts that the embeddings were trained or are judged on"
# Texts of the micro-world that are drawn at most for each that is wanted.
_DRAWS = 100

Wordings = Mapping[str, Sequence[str]]


def copy_tasks(
    documents: Iterable[Document],
    *,
    count: int,
    characters: tuple[int, int],
    seed: int,
    filters: CorpusFilters,
    wordings: Wordings | None = None,
    exclude: Container[int] = frozenset(),
) -> list[Conversation]:
    """`count` requests to repeat a passage, in as equal parts as may be of the languages that the documents are in.

    characters: the least and the most that a passage has. filters: those of the corpus, by which texts are cleaned and
    their languages told. wordings: language -> requests with `{text}` in them; by
    default those of `copying.yaml`. exclude: `fingerprints` of texts of which no passage may hold a sentence.

    Reads all documents, and remembers `count` passages of each language. ValueError if there are too few passages.
    """
    _check_count(count)
    _check_characters(characters)
    wordings = read_wordings() if wordings is None else wordings
    chosen = choose_passages(
        documents,
        count=count,
        characters=characters,
        seed=seed,
        filters=filters,
        languages=wordings,
        accept=lambda passage: not is_known(passage, exclude),
        turned_down=_SEEN,
        remedy="Give other texts than those of the corpus in instructions.texts, or ask for fewer or other passages: "
        "instructions.copies.count, instructions.copies.characters",
    )
    tasks = [_task(text, wordings[language], rank) for language, of in chosen.items() for rank, text in of]
    random.Random(seed).shuffle(tasks)
    return tasks


def _check_characters(characters: Sequence[int]) -> None:
    if len(characters) != 2 or not 0 < characters[0] <= characters[1]:
        raise ValueError(
            f"instructions.copies.characters={list(characters)} must be two lengths, the first above 0 and no larger."
        )


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(
            f"instructions.copies.count={count} must be at least 1; without copy tasks leave them out altogether."
        )


def _task(passage: str, wordings: Sequence[str], rank: int) -> Conversation:
    wording = random.Random(rank).choice(wordings)
    return Conversation.exchange(wording.replace("{text}", passage), passage)


def choose_passages(
    documents: Iterable[Document],
    *,
    count: int,
    characters: tuple[int, int],
    seed: int,
    filters: CorpusFilters,
    languages: Container[str],
    accept: Callable[[str], bool],
    turned_down: str,
    remedy: str,
) -> dict[str, list[tuple[int, str]]]:
    """`count` passages in as equal parts as may be of the languages found, as (rank, passage), smallest rank first.

    The rank is a seeded hash of the passage, so that the choice does not depend on the order of the documents. Those
    that `accept` turns down, and those that were taken already, are passed over. ValueError if there are too few; it
    says of how many what `turned_down` says, and the remedy.
    """
    heaps, taken, refused = defaultdict[str, list[tuple[int, str]]](list), set[int](), 0
    unasked = Counter[str]()
    # Wrapped and indented text is made even first, so that what is to be copied is words and not blanks.
    filters = replace(filters, tidy_whitespace=True)
    with document_progress("choosing passages") as advance:
        for document in documents:
            advance(1)
            cleaned = clean(document.text, filters)
            language = document_language(cleaned, document.language, filters)
            if language is None or language not in languages:
                unasked[language or "another language"] += 1
                continue
            heap = heaps[language]
            for passage in passages(cleaned.text, characters, seed=seed):
                rank = _hash(f"{seed}\n{passage}")
                if rank in taken or (len(heap) == count and -heap[0][0] <= rank):
                    continue
                if not accept(passage):
                    refused += 1
                    continue
                taken.add(rank)
                if len(heap) < count:
                    heapq.heappush(heap, (-rank, passage))
                else:
                    taken.discard(-heapq.heapreplace(heap, (-rank, passage))[0])
    ranked = {name: sorted((-rank, passage) for rank, passage in heap) for name, heap in sorted(heaps.items()) if heap}
    parts = _even_parts({name: len(found) for name, found in ranked.items()}, count)
    if sum(parts.values()) < count:
        there = ", ".join(f"{number} of {name!r}" for name, number in parts.items()) or "none"
        others = f"; {refused:,} others {turned_down}" if refused else ""
        others += "".join(f"; {n:,} texts are of {name!r}, in which nothing is asked" for name, n in unasked.items())
        raise ValueError(
            f"the texts hold too few passages of {characters[0]} to {characters[1]} characters that fit: {there}, but "
            f"{count} are wanted{others}. {remedy}"
        )
    return {name: found[: parts[name]] for name, found in ranked.items()}


def _even_parts(there: Mapping[str, int], count: int) -> dict[str, int]:
    """How many of each to take: as many of all, and where one falls short, more of the others."""
    parts = dict[str, int]()
    for left, name in zip(range(len(there), 0, -1), sorted(there, key=lambda name: (there[name], name)), strict=True):
        parts[name] = min(there[name], (count - sum(parts.values())) // left)
    return parts


def passages(text: str, characters: tuple[int, int], *, seed: int = 0) -> Iterator[str]:
    """Parts of a text that begin and end with a sentence, line or paragraph, of lengths drawn evenly between the two.

    They do not overlap; what fits no length is passed over.
    """
    least, most = characters
    rng = random.Random(_hash(f"{seed}\n{text}"))
    paragraph, line, sentence, _ = paragraph_levels(text)
    cuts = np.unique(np.concatenate([[0], paragraph(), line(), sentence(), [len(text)]]))
    place, last = 0, len(cuts) - 1
    while place < last:
        target = rng.randint(least, most)
        end = int(np.searchsorted(cuts, cuts[place] + target, side="right")) - 1
        passage = text[cuts[place] : cuts[max(end, place + 1)]].strip()
        if least <= len(passage) <= most:
            yield passage
        place = max(end, place + 1)


def fingerprints(texts: Iterable[str]) -> set[int]:
    """What tells a text when it comes again: its sentences' letters, and the letters of the whole.

    Case, marks and line ends do not count. About 100 bytes of memory a sentence.
    """
    return {print_ for text in texts for print_ in _prints(text)}


def _prints(text: str) -> Iterator[int]:
    folded = text.casefold()
    yield _hash(_NO_LETTER.sub("", folded))
    for part in {part for ends in _SENTENCE_ENDS for part in ends.split(folded)}:
        letters = _NO_LETTER.sub("", part)
        if len(letters) >= _TELLING:
            yield _hash(letters)


def write_fingerprints(path: Path, texts: Iterable[str]) -> int:
    """The fingerprints of any number of texts as a sorted .npy file, uint64; gives how many.

    8 bytes each, on disk and, while they are gathered, up to twice in memory.
    """
    with document_progress("noting what was seen") as advance:

        def watched() -> Iterator[str]:
            for text in texts:
                advance(1)
                yield text

        found = np.fromiter(chain.from_iterable(map(_prints, watched())), dtype=np.uint64)
    found.sort()
    np.save(path, found)
    return len(found)


class Fingerprints:
    """What `write_fingerprints` wrote, looked up where it lies on disk."""

    def __init__(self, path: Path) -> None:
        self._sorted = np.load(path, mmap_mode="r")

    def __contains__(self, print_: object) -> bool:
        place = np.searchsorted(self._sorted, np.uint64(print_))  # type: ignore[arg-type]
        return bool(place < len(self._sorted) and self._sorted[place] == print_)


def is_known(text: str, exclude: Container[int]) -> bool:
    """Whether anything in the text has one of these fingerprints."""
    return any(print_ in exclude for print_ in _prints(text))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def read_wordings(path: str | Path | None = None) -> dict[str, list[str]]:
    """Language -> requests, from a YAML file. ValueError for one that does not hold `{text}` exactly once."""
    source = files("lep.calibration") / "copying.yaml" if path is None else Path(path).expanduser()
    if not source.is_file():
        raise ValueError(
            f"instructions.copies.wordings={path} is no file. Give a YAML file of requests by language, or null."
        )
    try:
        read = yaml.safe_load(source.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"instructions.copies.wordings={path} is not YAML ({error}).") from None
    if not isinstance(read, dict) or not all(isinstance(requests, list) and requests for requests in read.values()):
        raise ValueError(f"instructions.copies.wordings={path} must map each language to a list of requests.")
    for language, requests in read.items():
        for request in requests:
            if not isinstance(request, str) or request.count("{text}") != 1:
                raise ValueError(
                    f"instructions.copies.wordings={path}: the request {request!r} of language {language!r} must "
                    "hold {text} once, where the text to repeat goes."
                )
    return read


@dataclass(frozen=True)
class CopyTasks:
    """Copy tasks as a source of conversations; for the settings see `copy_tasks`. wordings: a YAML file, or None.

    count: None leaves it to the calibration, which must say it before anything is read.
    """

    source: Source
    count: int | None
    characters: tuple[int, int]
    seed: int = 0
    wordings: str | None = None
    filters: CorpusFilters = field(default_factory=CorpusFilters)

    def __post_init__(self) -> None:
        if self.count is not None:
            _check_count(self.count)
        _check_characters(self.characters)

    def read(
        self, dropped: Counter[str] | None = None, *, exclude: Container[int] = frozenset()
    ) -> Iterator[Conversation]:
        assert self.count is not None, "the calibration says how many"
        least, most = self.characters
        wordings = read_wordings(self.wordings)
        yield from copy_tasks(
            self.source.documents(),
            count=self.count,
            characters=(least, most),
            seed=self.seed,
            filters=self.filters,
            wordings=wordings,
            exclude=exclude,
        )

    def fingerprint(self) -> dict[str, Any]:
        return {
            "source": "copy tasks",
            "texts": self.source.fingerprint(),
            "count": self.count,
            "characters": list(self.characters),
            "filters": asdict(self.filters),
            "seed": self.seed,
            "wordings": read_wordings(self.wordings),
        }


@dataclass(frozen=True)
class MicroWorldCopies:
    """Copy tasks of the micro-world in the words its tunes know; none is the micro benchmark's with that seed."""

    count: int
    seed: int = 0
    benchmark_seed: int = 0
    benchmark_items: int = 200

    def __post_init__(self) -> None:
        _check_count(self.count)

    def read(
        self, dropped: Counter[str] | None = None, *, exclude: Container[int] = frozenset()
    ) -> Iterator[Conversation]:
        items = benchmark_items(seed=self.benchmark_seed, items_per_task=self.benchmark_items)
        asked = {item.answer for item in items if item.task == "copying"}
        rng, given = random.Random(f"copies-{self.seed}"), 0
        for _ in range(_DRAWS * self.count):
            language = LANGUAGES[given % len(LANGUAGES)]
            text = text_to_copy(rng, language)
            if text not in asked and not is_known(text, exclude):
                given += 1
                yield Conversation.exchange(copy_request(text, language), text)
                if given == self.count:
                    return
        raise ValueError(
            f"instructions.copies.count={self.count}: of {_DRAWS * self.count} texts of the micro-world all but "
            f"{given} {_SEEN}, or are asked in the benchmark. Ask for fewer, or train on fewer documents "
            "(corpus.source.num_documents)"
        )

    def fingerprint(self) -> dict[str, Any]:
        return {"source": "microworld copies", **asdict(self)}
