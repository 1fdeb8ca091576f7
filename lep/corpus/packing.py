"""From a prepared corpus and a tokenizer to blocks of tokens that training reads from a memory map.

On disk, by language: `<language>.bin`, the tokens of all documents one after the other ([bos] text [eos]), and
`<language>.starts.npy`, where the blocks begin. Every block begins at a document or a paragraph (training samples of
the paper): a paragraph that the end of a block cuts begins the next block again, so that nothing is lost; a paragraph
longer than a block may also be entered at a line, a sentence or a word.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lep.corpus.paragraphs import admissible_starts, paragraph_levels
from lep.corpus.parallel import available_cores, batched, ordered_map
from lep.corpus.preparing import PreparedCorpus
from lep.corpus.progress import document_progress

SUMMARY = "packed.json"
BATCH_CHARACTERS = 500_000


class _Encoded(NamedTuple):
    """A batch of documents as tokens [N] and the positions [K] among them where a block may begin."""

    language: str
    tokens: np.ndarray
    starts: np.ndarray
    num_documents: int
    characters: int
    bytes: int


def pack(
    corpus_dir: Path,
    tokenizer_dir: Path,
    out_dir: Path,
    *,
    block_size: int,
    processes: int | None = None,
    mixture: Mapping[str, float] | None = None,
) -> dict:
    """Write the packed blocks of a corpus into `out_dir`; returns sizes and rates, which are also in `packed.json`.

    block_size: tokens. processes: all cores by default; the result does not depend on it. mixture: share of the blocks
    by language; the language that falls short of its share is gone through again, so that no text is left out. By
    default every block counts once.
    """
    if block_size < 2:
        raise ValueError(f"block_size={block_size} must be at least 2: a token predicts the next.")
    corpus = PreparedCorpus(corpus_dir)
    languages = _mixed_languages(corpus, mixture)
    encoding, dtype = _encoding_arguments(tokenizer_dir, block_size)
    out_dir.mkdir(parents=True, exist_ok=True)
    files, started = {language: _TokenFiles(out_dir, language, dtype) for language in languages}, time.monotonic()
    batches = _language_batches(corpus, languages)
    with document_progress("packing tokens") as advance:
        for batch in ordered_map(_encoding, encoding, batches, processes=processes or available_cores()):
            files[batch.language].write(batch)
            advance(batch.num_documents)
    packed = {language: written.finish(block_size) for language, written in files.items()}
    seconds = max(time.monotonic() - started, 1e-9)
    summary = {
        "block_size": block_size,
        "dtype": dtype,
        "languages": packed,
        "mixture": _shares(mixture) if mixture else None,
        "passes": _passes(packed, mixture),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(sum(counts["tokens"] for counts in packed.values()) / seconds),
    }
    (out_dir / SUMMARY).write_text(json.dumps(summary, indent=1, ensure_ascii=False), encoding="utf-8")
    return summary


def _mixed_languages(corpus: PreparedCorpus, mixture: Mapping[str, float] | None) -> tuple[str, ...]:
    if mixture is None:
        return corpus.languages
    for language, weight in mixture.items():
        if language not in corpus.languages:
            raise ValueError(f"training.mixture.{language}: the corpus has no such language, only {corpus.languages}.")
        if not weight > 0:
            raise ValueError(f"training.mixture.{language}={weight} must be above 0; or leave the language out.")
    return tuple(mixture)


def _encoding_arguments(tokenizer_dir: Path, block_size: int) -> tuple[tuple, str]:
    from transformers import AutoTokenizer  # slow to import, and worker processes do without

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_dir))
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer in {tokenizer_dir} has no eos token, which parts documents. Set its eos_token."
        )
    largest = max(tokenizer.get_vocab().values())
    dtype = "uint16" if largest < 2**16 else "uint32"
    serialized = tokenizer.backend_tokenizer.to_str()
    return (serialized, tokenizer.bos_token_id, tokenizer.eos_token_id, dtype, block_size), dtype


def _encoding(
    serialized: str, bos: int | None, eos: int, dtype: str, block_size: int
) -> Callable[[tuple[str, list[str]]], _Encoded]:
    """What a process does to a batch of texts of a language."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(serialized)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # "</s>" in a text is four characters, not the end of the document
    before, after = ([] if bos is None else [bos]), [eos]

    def encoded(batch: tuple[str, list[str]]) -> _Encoded:
        language, texts = batch
        pieces, starts, length = [], [], 0
        for text, encoding in zip(texts, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            tokens = np.array([*before, *encoding.ids, *after], dtype=dtype)
            offsets = np.fromiter((start for start, _ in encoding.offsets), np.int64, len(encoding.ids))
            pieces.append(tokens)
            starts.append(length + _document_starts(text, offsets, len(before), len(tokens), block_size))
            length += len(tokens)
        sizes = sum(map(len, texts)), sum(len(text.encode()) for text in texts)
        return _Encoded(language, np.concatenate(pieces), np.concatenate(starts), len(texts), *sizes)

    return encoded


def _document_starts(text: str, offsets: np.ndarray, shift: int, length: int, block_size: int) -> np.ndarray:
    """Tokens of a document where a block may begin, the first of all included; no gap above `block_size`.

    offsets: the character at which each token of the text begins; `shift` tokens come before them.
    """
    if not len(offsets):
        return np.zeros(1, dtype=np.int64)

    def in_tokens(level: Callable[[], np.ndarray]) -> np.ndarray:
        characters = level()
        found = np.minimum(np.searchsorted(offsets, characters, side="left"), len(offsets) - 1)
        # A token that reaches across the start belongs to what follows it too.
        straddling = (offsets[found] > characters) & (found > 0)
        return np.unique(found - straddling) + shift

    levels = [lambda level=level: in_tokens(level) for level in paragraph_levels(text)]
    return admissible_starts(levels, length, limit=block_size)


class _TokenFiles:
    """Tokens of one language on their way to disk, and beside them the places where a block may begin."""

    def __init__(self, folder: Path, language: str, dtype: str) -> None:
        self._language, self._dtype = language, dtype
        self._tokens, self._starts = folder / f"{language}.bin", folder / f"{language}.starts.npy"
        self._paragraphs = folder / f"{language}.paragraphs"  # int64, gone when the blocks are settled
        self._counts = dict.fromkeys(("tokens", "documents", "characters", "bytes"), 0)
        for path in (self._tokens, self._paragraphs):
            path.unlink(missing_ok=True)

    def write(self, batch: _Encoded) -> None:
        counts = self._counts
        with self._tokens.open("ab") as tokens, self._paragraphs.open("ab") as paragraphs:
            batch.tokens.tofile(tokens)
            (batch.starts + counts["tokens"]).tofile(paragraphs)
        sizes = len(batch.tokens), batch.num_documents, batch.characters, batch.bytes
        self._counts = {name: count + size for (name, count), size in zip(counts.items(), sizes, strict=True)}

    def finish(self, block_size: int) -> dict:
        """Settle the blocks; returns the counts of the language."""
        num_tokens = self._counts["tokens"]
        if num_tokens < block_size:
            raise ValueError(
                f"language {self._language!r} has {num_tokens} tokens to train on, less than one block of "
                f"training.block_size={block_size}. Give more text, or a smaller block."
            )
        starts = block_starts(np.memmap(self._paragraphs, mode="r", dtype=np.int64), num_tokens, block_size=block_size)
        np.save(self._starts, starts)
        self._paragraphs.unlink()
        # The last block reads on into the first document again: every token is in a block, and every block is full.
        beginning = np.memmap(self._tokens, mode="r", dtype=self._dtype)[:block_size].tobytes()
        with self._tokens.open("ab") as tokens:
            tokens.write(beginning)
        repeated = 1 - num_tokens / (len(starts) * block_size)
        return {**self._counts, "blocks": len(starts), "repeated_share": round(repeated, 4)}


def _language_batches(corpus: PreparedCorpus, languages: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    for language in languages:
        for texts in batched(corpus.train_texts(language), weight=len, limit=BATCH_CHARACTERS):
            yield language, texts


def block_starts(paragraphs: np.ndarray, num_tokens: int, *, block_size: int) -> np.ndarray:
    """Starts [blocks] such that blocks cover all tokens, each beginning at a paragraph, as late as nothing is lost.

    paragraphs: sorted positions where a block may begin, the first 0, no gap above `block_size`. int64.
    """
    starts = [0]
    while starts[-1] + block_size < num_tokens:
        following = int(paragraphs[np.searchsorted(paragraphs, starts[-1] + block_size, side="right") - 1])
        assert following > starts[-1], "a gap between paragraphs is longer than a block"
        starts.append(following)
    return np.array(starts, dtype=np.int64)


def _shares(mixture: Mapping[str, float]) -> dict[str, float]:
    total = sum(mixture.values())
    return {language: weight / total for language, weight in mixture.items()}


def _passes(packed: Mapping[str, Mapping[str, Any]], mixture: Mapping[str, float] | None) -> dict[str, float]:
    """How often an epoch goes through each language: once, or more for those that fall short of their share."""
    if mixture is None:
        return dict.fromkeys(packed, 1.0)
    shares = _shares(mixture)
    epoch = max(counts["blocks"] / shares[language] for language, counts in packed.items())
    return {language: epoch * shares[language] / counts["blocks"] for language, counts in packed.items()}


class PackedBlocks:
    """The blocks of an epoch as a sequence: `blocks[i]` is int64 [block_size]. Shuffle the indices, not the blocks.

    Read from memory maps that open on first use, one set a process, so that workers of a DataLoader may share it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        summary = self.directory / SUMMARY
        if not summary.is_file():
            raise ValueError(f"{self.directory} has no packed text: it has no {SUMMARY}. Run pack() into it first.")
        self.summary: dict = json.loads(summary.read_text(encoding="utf-8"))
        self.block_size: int = self.summary["block_size"]
        counts = [counted["blocks"] for counted in self.summary["languages"].values()]
        slots = [round(n * passes) for n, passes in zip(counts, self.summary["passes"].values(), strict=True)]
        self._ends = np.cumsum(slots)
        self._maps: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.summary["languages"])

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text that a token of an epoch stands for, so that throughput can be told in bytes."""
        weights = np.diff(self._ends, prepend=0) / self._ends[-1]
        counts = self.summary["languages"].values()
        return float(sum(w * counted["bytes"] / counted["tokens"] for w, counted in zip(weights, counts, strict=True)))

    def language(self, index: int) -> str:
        """The language of a block."""
        return self.languages[int(np.searchsorted(self._ends, index, side="right"))]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        tokens, starts = self._memory_maps(self.languages[number])
        first = int(self._ends[number - 1]) if number else 0
        start = starts[(index - first) % len(starts)]
        return tokens[start : start + self.block_size].astype(np.int64)

    def _memory_maps(self, language: str) -> tuple[np.ndarray, np.ndarray]:
        if language not in self._maps:
            tokens = np.memmap(self.directory / f"{language}.bin", mode="r", dtype=self.summary["dtype"])
            self._maps[language] = tokens, np.load(self.directory / f"{language}.starts.npy", mmap_mode="r")
        return self._maps[language]

    def __getstate__(self) -> dict:
        # A pickled memory map would be the whole file.
        return self.__dict__ | {"_maps": {}}
