"""What a corpus is made of, and what every source of it offers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Document:
    """One text. `language` may be empty: the script then tells it. `source`: where it came from, for the counts."""

    text: str
    language: str
    source: str = ""


class Source(Protocol):
    """Where documents come from. Iterating twice gives the same documents in the same order."""

    def documents(self) -> Iterator[Document]:
        """All documents, streamed."""
        ...

    def fingerprint(self) -> dict:
        """Plain JSON that changes when the documents may have changed; cheap, so that it can key what is built."""
        ...


def record_document(
    record: dict, *, text_field: str, language: str | None, language_field: str | None, source: str, place: str
) -> Document:
    """A document from a record of a table. Raises ValueError naming `place` when a field is missing or is no text."""
    text = _field(record, text_field, place, key="text_field")
    named = _field(record, language_field, place, key="language_field") if language_field else language
    return Document(text, named or "", source)


def _field(record: dict, name: str, place: str, *, key: str) -> str:
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, str):
        there = sorted(record) if isinstance(record, dict) else type(record).__name__
        what = "is missing" if value is None else f"is a {type(value).__name__}, not text"
        raise ValueError(f"{place}: the field {name!r} {what}; the record has {there}. Set corpus.{key}.")
    return value
