"""Time and peak memory of learning a vocabulary, beside what a user of the plain libraries would write.

    python benchmarks/train_tokenizers.py texts/*.jsonl.gz --base DIR --sizes 32000 128000

DIR holds the tokenizer of the base model, whose family the vocabularies of `lep` keep. Every vocabulary is learnt in a
process of its own, so that its peak is its own. One document in --parts is held out, by the hash of its source;
characters a token are of the held-out documents of the files whose name starts with --judged, with the standard error
over documents. A dozen books say little: `--parts 4 --folds 4` learns four times and judges on every book once.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import sentencepiece
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer, UnigramTrainer

from lep.benchmark.metrics import ratio_and_stderr
from lep.checkpoints import load_tokenizer
from lep.corpus import CorpusFilters
from lep.corpus.filters import clean
from lep.corpus.text_files import open_text
from lep.memory import peak_memory_bytes
from lep.tokenizers import bpe, unigram

Count = Callable[[str], int]  # tokens of a text
MEBIBYTE = 2**20


# As the corpus stage cleans ragged books: lines that wrap and indent cost every vocabulary the same tokens.
FILTERS = CorpusFilters(tidy_whitespace=True)


class Texts:
    """The texts to train on, or the held-out ones, cleaned, read anew by every iteration."""

    def __init__(self, paths: list[Path], *, held_out: bool, parts: int = 12, fold: int = 0) -> None:
        self.paths, self.held_out, self.parts, self.fold = paths, held_out, parts, fold

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            with open_text(path) as stream:
                for line in stream:
                    record = json.loads(line)
                    digest = hashlib.sha256(f"{path.name} {record['source']}".encode()).digest()
                    if (digest[0] % self.parts == self.fold) == self.held_out:
                        yield clean(record["text"], FILTERS).text


def lep_bpe(base: Path, texts: Texts, size: int) -> Count:
    tokenizer = bpe(load_tokenizer(base, key="--base"), texts, vocab_size=size)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def lep_unigram(base: Path, texts: Texts, size: int) -> Count:
    tokenizer = unigram(load_tokenizer(base, key="--base"), texts, vocab_size=size)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def tokenizers_bpe(base: Path, texts: Texts, size: int) -> Count:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return lambda text: len(tokenizer.encode(text).ids)


def tokenizers_unigram(base: Path, texts: Texts, size: int) -> Count:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = UnigramTrainer(vocab_size=size, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return lambda text: len(tokenizer.encode(text).ids)


def sentencepiece_unigram(base: Path, texts: Texts, size: int) -> Count:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.split("\n") if line.strip()),
        model_writer=model,
        model_type="unigram",
        vocab_size=size,
        byte_fallback=True,
        character_coverage=0.9995,
        num_threads=os.cpu_count() or 1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return lambda text: len(processor.encode(text))


WAYS = {
    "lep bpe": lep_bpe,
    "tokenizers BPE": tokenizers_bpe,
    "lep unigram": lep_unigram,
    "tokenizers Unigram": tokenizers_unigram,
    "sentencepiece Unigram": sentencepiece_unigram,
}


def measure(way: str, base: Path, paths: list[Path], size: int, judged: str, parts: int, fold: int) -> dict[str, Any]:
    """Train once in this process: seconds and peak of the training alone, (characters, tokens) of each document."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a corpus too small for the size is seen in the table
        count = WAYS[way](base, Texts(paths, held_out=False, parts=parts, fold=fold), size)
    seconds = time.perf_counter() - started
    peak = peak_memory_bytes()
    judged_paths = [path for path in paths if path.name.startswith(judged)]
    texts = Texts(judged_paths, held_out=True, parts=parts, fold=fold)
    return {"seconds": seconds, "peak": peak, "documents": [(len(text), count(text)) for text in texts]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, help="JSON Lines with `text` and `source`, plain, .gz or .zst")
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model's tokenizer")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32_000])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--judged", default="ru_fiction", help="files to judge on: how their names start")
    parser.add_argument("--parts", type=int, default=12, help="one document in so many is held out")
    parser.add_argument("--folds", type=int, default=1, help="how many of the parts are held out in turn")
    parser.add_argument("--alone", type=int, metavar="FOLD", help=argparse.SUPPRESS)  # one fold of one row, as JSON
    given = parser.parse_args()
    if not 1 <= given.folds <= given.parts or given.parts < 2:
        parser.error(f"--folds {given.folds} of --parts {given.parts}: give 2 parts or more, and 1 to as many folds")
    if given.alone is not None:
        way, size = given.ways[0], given.sizes[0]
        print(json.dumps(measure(way, given.base, given.paths, size, given.judged, given.parts, given.alone)))
        return
    table = Table("vocabulary", "tokens", "seconds", "peak memory, MiB", "characters a token", "held-out documents")
    console = Console()
    for size in given.sizes:
        for way in given.ways:
            found = []
            for fold in range(given.folds):
                with console.status(f"{way}, {size:,} tokens, fold {fold + 1} of {given.folds}"):
                    found.append(alone(way, size, fold, given))
            seconds, peak = mean(row["seconds"] for row in found), max(row["peak"] for row in found)
            characters, tokens = zip(*(document for row in found for document in row["documents"]), strict=True)
            ratio, error = ratio_and_stderr(characters, tokens)
            figures = (f"{seconds:.1f}", f"{peak / MEBIBYTE:,.0f}", f"{ratio:.3f} ± {error:.3f}", str(len(tokens)))
            table.add_row(way, f"{size:,}", *figures)
            console.print(f"{way}, {size:,}: {', '.join(figures)}", highlight=False)
    console.print(table)


def alone(way: str, size: int, fold: int, given: argparse.Namespace) -> dict[str, Any]:
    """One fold of one row, from a process of its own."""
    arguments = ["--alone", str(fold), "--parts", str(given.parts), "--base", str(given.base), "--sizes", str(size)]
    command = [sys.executable, __file__, *map(str, given.paths), *arguments, "--judged", given.judged, "--ways", way]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
