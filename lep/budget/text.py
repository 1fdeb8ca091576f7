"""Text: the corpus, the vocabulary that is learnt from it, and the packed blocks. Sizes of files tell its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from lep import cost
from lep.budget.forecast import BYTES_PER_CHARACTER, CHARACTERS_PER_TOKEN, Forecast, Row, gigabytes
from lep.config import plain
from lep.corpus import TextFiles
from lep.corpus.text_files import COMPRESSED, PARQUET

TEXT_PER_COMPRESSED = 3.6  # bytes of text in a byte of .gz, .zst and Parquet: 2.9 to 4.6 on books, speeches and manuals


def corpus_rows(forecast: Forecast) -> Iterator[Row]:
    text = corpus_bytes(forecast)
    name = forecast.config.corpus.name
    yield Row("corpus", f"{name}, {gigabytes(text)} of text", disk=text and int(text / TEXT_PER_COMPRESSED))


def tokenizer_rows(forecast: Forecast) -> Iterator[Row]:
    """Nothing where the tokenizer is given with trained tables."""
    if not forecast.config.adapted:
        yield Row("tokenizer", f"{forecast.trained.vocabulary:,} tokens")


def packing_row(forecast: Forecast) -> Row:
    block_size, text = forecast.config.training.block_size, corpus_bytes(forecast)
    tokens = text and int(text / BYTES_PER_CHARACTER / CHARACTERS_PER_TOKEN)
    disk = tokens and cost.packed_bytes(tokens, vocabulary=forecast.trained.vocabulary, block_size=block_size)
    return Row("packing", f"blocks of {block_size:,} tokens", tokens=tokens, disk=disk)


def corpus_bytes(forecast: Forecast) -> int | None:
    """Of the text in UTF-8, from what the config says of its documents or from its files; None if neither tells."""
    corpus = forecast.config.corpus
    documents = corpus.source.get("num_documents") or corpus.source.get("max_documents")
    if corpus.get("document_bytes") and documents:
        return documents * corpus.document_bytes
    if OmegaConf.is_missing(corpus, "paths"):
        forecast.notes.append("corpus.paths is not set, so that nothing tells how much text there is")
        return None
    if "paths" not in corpus:
        forecast.notes.append("how much text there is only its data know: give corpus.document_bytes, on average")
        return None
    try:
        files = TextFiles(plain(corpus.paths)).files()
    except ValueError as error:
        forecast.notes.append(str(error))
        return None
    return int(sum(path.stat().st_size * _text_share(path) for path in files))


def _text_share(path: Path) -> float:
    """Bytes of text for a byte of the file."""
    return TEXT_PER_COMPRESSED if path.suffix.lower() in (*COMPRESSED, *PARQUET) else 1.0
