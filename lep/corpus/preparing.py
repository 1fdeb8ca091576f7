"""From any source to a prepared corpus: filtered, without repeats, with a part held out.

Comes in: a source. Goes out: a directory with `train/<language>-<number>.jsonl.zst`, `held_out/<language>.jsonl` and
`corpus.json`, whose counts account for every document read. The held-out part is decided after repeats are gone, so
that no near-duplicate of a held-out document is trained on (as far as MinHash sees it).
"""

import hashlib
import heapq
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast

import zstandard
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]: compiled, no stubs

from lep.corpus.documents import Document, Source
from lep.corpus.duplicates import Duplicates, signature
from lep.corpus.filters import CorpusFilters, clean, document_language
from lep.corpus.paragraphs import split_long_text
from lep.corpus.parallel import available_cores, batched, ordered_map
from lep.corpus.progress import document_progress
from lep.corpus.text_files import open_text

SUMMARY = "corpus.json"
BATCH_CHARACTERS = 1_000_000
SHARD_CHARACTERS = 500_000_000
NAMED_SOURCES = 1000  # counted by name; a corpus may have a file a document


@dataclass(frozen=True)
class HeldOut:
    """How much of every language is never trained on: `share` of its documents, at most `documents` of them."""

    documents: int = 200
    share: float = 0.05

    def __post_init__(self) -> None:
        if self.documents < 1:
            raise ValueError(f"corpus.held_out.documents={self.documents} must be at least 1: bits per byte need text.")
        if not 0 < self.share < 1:
            raise ValueError(f"corpus.held_out.share={self.share} must lie between 0 and 1, both excluded.")


class _Part(NamedTuple):
    """A document after the filters, or a part of a long one; `dropped` says why it goes no further."""

    text: str
    language: str
    source: str
    digest: bytes = b""
    sketch: RMinHash | None = None
    dropped: str | None = None


class _Filtered(NamedTuple):
    parts: list[_Part]
    num_documents: int
    characters: int
    dropped_characters: dict[str, int]


def prepare(
    source: Source,
    out_dir: Path,
    *,
    filters: CorpusFilters | None = None,
    held_out: HeldOut | None = None,
    seed: int = 0,
    processes: int | None = None,
) -> dict:
    """Write the prepared corpus of `source` into `out_dir`; returns the counts, which are also in `corpus.json`.

    The result depends on the documents, the filters and `seed` (which chooses the held-out ones), not on `processes`
    (all cores by default). Parts of a split document count as documents.
    Raises ValueError when nothing is left of a language that the filters name.
    """
    filters, held_out = filters or CorpusFilters(), held_out or HeldOut()
    counts, duplicates = _Counts(), Duplicates(filters.near_duplicates)
    split, started = _HeldOutSplit(held_out, seed), time.monotonic()
    batches = batched(source.documents(), weight=lambda document: len(document.text), limit=BATCH_CHARACTERS)
    with _Shards(out_dir / "train") as shards, document_progress("preparing the corpus") as advance:
        for batch in ordered_map(_filtering, (filters,), batches, processes=processes or available_cores()):
            counts.add(batch)
            for part in batch.parts:
                # A language has as many held-out documents as its size allows, and its size is known at the end: those
                # put aside for too long come back here to be trained on.
                for trained in split.offer(part) if counts.keeps(part, duplicates) else ():
                    shards.write(trained)
            advance(batch.num_documents)
        for part in split.close():
            shards.write(part)
    for language, parts in split.chosen.items():
        _write_held_out(out_dir / "held_out" / f"{language}.jsonl", parts)
    summary = {
        "documents_read": counts.read,
        "parts_read": counts.parts,
        "documents_dropped": dict(sorted(counts.dropped.items())),
        "characters_read": counts.characters,
        "characters_dropped": dict(counts.dropped_characters),
        "sources": dict(counts.sources),
        "languages": {name: _language_summary(shards.written[name], split.chosen[name]) for name in filters.languages},
        "filters": asdict(filters),
        "held_out": asdict(held_out),
        "seed": seed,
        "seconds": round(time.monotonic() - started, 3),
    }
    _require_text(summary)
    (out_dir / SUMMARY).write_text(json.dumps(summary, indent=1, ensure_ascii=False), encoding="utf-8")
    return summary


def _filtering(filters: CorpusFilters) -> Callable[[list[Document]], _Filtered]:
    """The work that needs no memory of other documents, and so may be done by many processes."""

    def filtered(documents: list[Document]) -> _Filtered:
        parts, characters, dropped = [], 0, Counter()
        for document in documents:
            cleaned = clean(document.text, filters)
            characters += cleaned.num_characters
            dropped.update(cleaned.dropped)
            language = document_language(cleaned, document.language, filters)
            if cleaned.dropped_share > filters.max_dropped_share:
                parts.append(_Part("", "", document.source, dropped="script"))
            elif not cleaned.text.strip():
                parts.append(_Part("", "", document.source, dropped="too short"))
            elif language is None:
                parts.append(_Part("", "", document.source, dropped="language"))
            else:
                limit = filters.split_long_documents or len(cleaned.text) + 1
                texts = split_long_text(cleaned.text, limit=limit)
                parts += [_part(text.strip("\n"), language, document.source, filters) for text in texts]
        return _Filtered(parts, len(documents), characters, dict(dropped))

    return filtered


def _part(text: str, language: str, source: str, filters: CorpusFilters) -> _Part:
    if len(text.strip()) < filters.min_characters:
        return _Part("", language, source, dropped="too short")
    sketch = signature(text) if filters.near_duplicates is not None else None
    return _Part(text, language, source, hashlib.blake2b(text.encode(), digest_size=16).digest(), sketch)


class _Counts:
    """What became of every document."""

    def __init__(self) -> None:
        self.read = 0
        self.parts = 0
        self.characters = 0
        self.dropped: Counter[str] = Counter()
        self.dropped_characters: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()

    def add(self, batch: _Filtered) -> None:
        self.read += batch.num_documents
        self.parts += len(batch.parts)
        self.characters += batch.characters
        self.dropped_characters.update(batch.dropped_characters)

    def keeps(self, part: _Part, duplicates: Duplicates) -> bool:
        reason = part.dropped or duplicates.reason(int.from_bytes(part.digest[:8]), part.sketch)
        if reason:
            self.dropped[reason] += 1
            return False
        known = part.source in self.sources or len(self.sources) < NAMED_SOURCES
        self.sources[part.source if known else "others"] += 1
        return True


class _HeldOutSplit:
    """The documents with the smallest seeded hash of their text, as many of each language as `HeldOut` allows.

    The choice depends on the set of documents and the seed, not on their order. Memory: `documents` texts a language.
    """

    def __init__(self, held_out: HeldOut, seed: int) -> None:
        self.chosen: dict[str, list[_Part]] = defaultdict(list)
        self._held_out = held_out
        self._key = str(seed).encode()
        self._heaps: dict[str, list[tuple[int, int, _Part]]] = defaultdict(list)
        self._seen: Counter[str] = Counter()

    def offer(self, part: _Part) -> Iterator[_Part]:
        """Put the document aside; gives the one that thereby goes to training, if any."""
        self._seen[part.language] += 1
        hashed = hashlib.blake2b(part.digest, digest_size=8, key=self._key).digest()
        # Negative, for the heap gives its smallest; the count parts equal hashes before texts are compared.
        entry = (-int.from_bytes(hashed), self._seen[part.language], part)
        heap = self._heaps[part.language]
        if len(heap) < self._held_out.documents:
            heapq.heappush(heap, entry)
        else:
            yield heapq.heappushpop(heap, entry)[2]

    def close(self) -> Iterator[_Part]:
        """Settle what is held out (in `chosen`, smallest hash first); gives what a small corpus cannot spare."""
        for language, heap in self._heaps.items():
            ordered = [part for _, _, part in sorted(heap, reverse=True)]
            spared = min(len(ordered), math.ceil(self._held_out.share * self._seen[language]))
            self.chosen[language] = ordered[:spared]
            yield from ordered[spared:]


class _Shards:
    """Training documents on disk, by language, in files of bounded size; `written` counts them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.written: dict[str, Counter[str]] = defaultdict(Counter)
        self._folder = folder
        self._streams: dict[str, tuple[str, IO[str]]] = {}

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *error: object) -> None:
        for _, stream in self._streams.values():
            stream.close()

    def write(self, part: _Part) -> None:
        counts = self.written[part.language]
        name = f"{part.language}-{counts['characters'] // SHARD_CHARACTERS:05d}.jsonl.zst"
        self._stream(part.language, name).write(_json_line(part))
        _count(counts, part)

    def _stream(self, language: str, name: str) -> IO[str]:
        current, stream = self._streams.get(language, ("", None))
        if stream is None or current != name:
            if stream is not None:
                stream.close()
            stream = cast(IO[str], zstandard.open(self._folder / name, "wt", encoding="utf-8", newline="\n"))
            self._streams[language] = (name, stream)
        return stream


def _count(counts: Counter[str], part: _Part) -> None:
    counts.update(documents=1, characters=len(part.text), bytes=len(part.text.encode()))


def _json_line(part: _Part) -> str:
    record = {"text": part.text, "language": part.language, "source": part.source}
    return json.dumps(record, ensure_ascii=False) + "\n"


def _write_held_out(path: Path, parts: list[_Part]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(map(_json_line, parts))


def _language_summary(trained: Counter[str], chosen: list[_Part]) -> dict[str, dict[str, int]]:
    spared: Counter[str] = Counter()
    for part in chosen:
        _count(spared, part)
    names = ("documents", "characters", "bytes")
    return {"train": {name: trained[name] for name in names}, "held_out": {name: spared[name] for name in names}}


def _require_text(summary: dict) -> None:
    told = f"Of {summary['documents_read']} documents read, dropped were: {summary['documents_dropped'] or 'none'}."
    for language, counted in summary["languages"].items():
        if not counted["held_out"]["documents"]:
            raise ValueError(
                f"corpus: no document of language {language!r} is left after filtering. {told} Give text of it, or "
                "take it out of corpus.filters.languages."
            )
        if not counted["train"]["documents"]:
            raise ValueError(
                f"corpus: language {language!r} has too few documents ({counted['held_out']['documents']}) for a "
                f"held-out part beside the training part. {told} Give more, or set corpus.filters.split_long_documents."
            )


class PreparedCorpus:
    """What `prepare` wrote. Training texts stream from disk; held-out texts are few and come as a list."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        summary = self.directory / SUMMARY
        if not summary.is_file():
            raise ValueError(
                f"{self.directory} is no prepared corpus: it has no {SUMMARY}. Run prepare() into it first."
            )
        self.counts: dict = json.loads(summary.read_text(encoding="utf-8"))

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.counts["languages"])

    def train_texts(self, language: str | None = None) -> "TrainTexts":
        """Texts to train on, of one language or of all one after the other; may be iterated again and again."""
        return TrainTexts(self.directory, self.languages if language is None else (self._known(language),))

    def held_out(self, language: str) -> list[str]:
        """Texts that were never trained on, by tokenizer or model; in random but fixed order."""
        return list(_texts(self.directory / "held_out" / f"{self._known(language)}.jsonl"))

    def all_held_out(self, characters: int | None = None) -> dict[str, list[str]]:
        """The held-out texts of every language; where they come to more than `characters`, the beginning of each."""
        found = {language: self.held_out(language) for language in self.languages}
        return found if characters is None else {language: openings(of, characters) for language, of in found.items()}

    def held_out_by_source(self) -> dict[str, dict[str, list[str]]]:
        """The held-out texts by source and language, sources in order of their names."""
        found: dict[str, dict[str, list[str]]] = {}
        for language in self.languages:
            for record in _records(self.directory / "held_out" / f"{language}.jsonl"):
                found.setdefault(record["source"], {}).setdefault(language, []).append(record["text"])
        return dict(sorted(found.items()))

    def _known(self, language: str) -> str:
        if language not in self.languages:
            raise ValueError(f"the corpus in {self.directory} has no language {language!r}; it has {self.languages}.")
        return language


def openings(texts: list[str], characters: int) -> list[str]:
    """The beginnings of the texts, alike in length and cut where a text may be, `characters` at most in all."""
    if sum(map(len, texts)) <= characters:
        return texts
    return [split_long_text(text, limit=max(1, characters // len(texts)))[0] for text in texts]


@dataclass(frozen=True)
class TrainTexts:
    """The training texts of some languages of a prepared corpus, read anew by every iteration."""

    directory: Path
    languages: tuple[str, ...]

    def __iter__(self) -> Iterator[str]:
        for language in self.languages:
            for shard in sorted((self.directory / "train").glob(f"{language}-[0-9]*.jsonl.zst")):
                yield from _texts(shard)


def _texts(path: Path) -> Iterator[str]:
    return (record["text"] for record in _records(path))


def _records(path: Path) -> Iterator[dict[str, str]]:
    with open_text(path) as stream:
        yield from map(json.loads, stream)
