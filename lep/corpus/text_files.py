"""Documents from files on disk: plain text, JSON Lines and Parquet; the first two also as .gz and .zst."""

import glob
import gzip
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import zstandard

from lep.corpus.documents import Document, record_document

JSON_LINES = (".jsonl", ".ndjson")
PLAIN = (".txt", ".text", ".md")
PARQUET = (".parquet",)
COMPRESSED = (".gz", ".zst")
# A plain file is one document, unless it is so long that holding it would cost memory: then it comes in parts that end
# at a line end.
LONGEST_DOCUMENT = 16_000_000  # characters


@dataclass(frozen=True)
class TextFiles:
    """The documents of all files that match `paths` (globs, `**`, `~`), in the order of their names.

    text_field, language_field: columns of JSON Lines and Parquet. language: of every document, where no field tells it;
    without either, the script tells it.
    """

    paths: tuple[str, ...]
    text_field: str = "text"
    language: str | None = None
    language_field: str | None = None
    key: str = "corpus.paths"  # what errors call `paths`

    def __post_init__(self) -> None:
        paths = (self.paths,) if isinstance(self.paths, (str, os.PathLike)) else self.paths
        object.__setattr__(self, "paths", tuple(str(path) for path in paths))
        if self.language and self.language_field:
            raise ValueError(
                f"corpus.language={self.language} and corpus.language_field={self.language_field} contradict each "
                "other; give one of them."
            )

    def files(self) -> list[Path]:
        """The files, each once. Raises ValueError for a pattern that matches none, and for a format nobody reads."""
        if not self.paths:
            raise ValueError(f"{self.key} is empty; give files or globs, such as {self.key}=[~/texts/**/*.jsonl.zst]")
        files = matching_files(self.paths, key=self.key)
        for path in files:
            _format(path)
        return files

    def documents(self) -> Iterator[Document]:
        for path in self.files():
            yield from self._documents_of(path)

    def fingerprint(self) -> dict:
        stats = [(str(path), path.stat()) for path in self.files()]
        files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        settings = {name: value for name, value in asdict(self).items() if name != "key"}
        return {"source": "text files", **settings, "paths": files}

    def _documents_of(self, path: Path) -> Iterator[Document]:
        try:
            if _format(path) in PLAIN:
                for text in _long_texts(path):
                    yield Document(text, self.language or "", str(path))
                return
            lines = _format(path) in JSON_LINES
            wanted = [name for name in (self.text_field, self.language_field) if name]
            records = (record for _, record in json_lines(path)) if lines else parquet_records(path, columns=wanted)
            for number, record in enumerate(records, 1):
                yield record_document(
                    record,
                    text_field=self.text_field,
                    language=self.language,
                    language_field=self.language_field,
                    source=str(path),
                    place=f"{path}, record {number}",
                )
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise ValueError(f"{path} cannot be read as UTF-8 text ({error}). Convert or remove it.") from error


def matching_files(patterns: Iterable[str], *, key: str = "corpus.paths") -> list[Path]:
    """The files that any of the globs matches, each once, by name. ValueError under `key` for one that matches none."""
    return sorted({path for pattern in patterns for path in _matches(pattern, key)})


def _matches(pattern: str, key: str) -> list[Path]:
    literal = Path(pattern).expanduser()
    if literal.is_file():
        return [literal.resolve()]
    found = [Path(name).resolve() for name in glob.glob(str(literal), recursive=True) if os.path.isfile(name)]
    if not found:
        hint = f"; it is a directory, say {literal}/**/*.jsonl" if literal.is_dir() else ""
        raise ValueError(f"{key}: no file matches {pattern!r}{hint} (looked from {Path.cwd()}).")
    return found


def _format(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in COMPRESSED
    known = (*JSON_LINES, *PLAIN) if packed else (*JSON_LINES, *PLAIN, *PARQUET)
    suffix = suffixes[-2] if packed and len(suffixes) > 1 else suffixes[-1] if suffixes else ""
    if suffix not in known:
        raise ValueError(
            f"corpus.paths: {path} has no known ending; known are {', '.join((*JSON_LINES, *PLAIN))}, each also with "
            f"{' or '.join(COMPRESSED)}, and {PARQUET[0]}."
        )
    return suffix


def open_text(path: Path) -> TextIO:
    """A text file for reading, unpacked by its ending, in UTF-8 with `\\n` for every line end."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix.lower() == ".zst":
        return zstandard.open(path, "rt", encoding="utf-8")  # type: ignore[return-value]
    return path.open(encoding="utf-8")


def _long_texts(path: Path) -> Iterator[str]:
    with open_text(path) as stream:
        while text := stream.read(LONGEST_DOCUMENT):
            yield text + stream.readline()


def parquet_records(path: Path, *, columns: Sequence[str] | None = None) -> Iterator[dict]:
    """The records of a Parquet file, streamed; of `columns`, those that it has. ValueError for a file that is none."""
    from pyarrow import ArrowException  # not needed for other files
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as table:
            there = table.schema_arrow.names
            wanted = there if columns is None else [name for name in there if name in columns]
            for batch in table.iter_batches(batch_size=1000, columns=wanted):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:  # the second where a page inside it is damaged
        raise ValueError(f"{path} cannot be read as Parquet ({error}). Write it anew or remove it.") from error


def json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """The records of a file of JSON Lines, each with the number of its line; empty lines are passed over."""
    with open_text(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.isspace():
                continue
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number} is not JSON ({error}). JSON Lines has one record a line."
                ) from None
