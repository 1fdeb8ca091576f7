"""Documents in; filters, deduplication, held-out split, packed blocks out.

    source.documents() -> prepare() -> PreparedCorpus -> (a tokenizer is trained on it) -> pack() -> PackedBlocks

A source is anything with `documents()` and `fingerprint()`. Everything streams: what grows with the corpus on the way
is the memory of duplicates alone (see `lep.corpus.duplicates`).
"""

from lep.corpus.documents import Document, Source
from lep.corpus.filters import CorpusFilters
from lep.corpus.hub import Hub, HubDataset
from lep.corpus.packing import PackedBlocks, pack
from lep.corpus.preparing import HeldOut, PreparedCorpus, prepare
from lep.corpus.progress import reading_progress
from lep.corpus.text_files import TextFiles

__all__ = [
    "CorpusFilters",
    "Document",
    "HeldOut",
    "Hub",
    "HubDataset",
    "PackedBlocks",
    "PreparedCorpus",
    "Source",
    "TextFiles",
    "pack",
    "prepare",
    "reading_progress",
]
