"""Initialisation of a new vocabulary's embeddings: tokens a second, beside the obvious loop, and memory.

Ours: T from the two tokenizers, then the rows `T E`, computed block by block from a table on disk and written to
another file. The loop: for each token its text, `tokenizer.encode` of it with the old tokenizer, the mean of those rows
of a table in memory; a sample of tokens, as all would take long, with reading the table not counted. Both are timed in
one run. The loop's rows are compared with ours too: they differ where a token is no whole text (half a letter), where
the loop averages the rows of U+FFFD.

    python benchmarks/initialise.py NEW OLD      # directories, or tokenizer.json or tokenizer.json.gz files
"""

import argparse
import gzip
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table as Lines
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lep.embeddings import Embeddings, open_embeddings
from lep.initialization.mean import mean
from lep.shards import ComputedTable, in_memory
from lep.vocabulary import subtoken_operator


def load(path: Path) -> PreTrainedTokenizerFast:
    if path.is_dir() and (path / "tokenizer.json.gz").exists():
        path = path / "tokenizer.json.gz"
    if path.is_dir():
        return AutoTokenizer.from_pretrained(path)
    text = gzip.open(path, "rt", encoding="utf-8").read() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text))


def random_table(rows: int, hidden: int) -> ComputedTable:
    def compute(block: slice) -> Tensor:
        generator = torch.Generator().manual_seed(block.start)
        return torch.randn(block.stop - block.start, hidden, generator=generator)

    return ComputedTable(torch.Size((rows, hidden)), torch.bfloat16, compute)


def loop(new: PreTrainedTokenizerFast, old: PreTrainedTokenizerFast, table: Tensor, ids: list[int]) -> Tensor:
    """The obvious way."""
    rows = []
    for i in ids:
        pieces = old.encode(new.decode([i]), add_special_tokens=False)
        rows.append(table[pieces].float().mean(dim=0))
    return torch.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new", type=Path)
    parser.add_argument("old", type=Path)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--sample", type=int, default=2000, help="tokens that the loop is timed on")
    parser.add_argument("--folder", type=Path, help="where the tables go for the time being (4 GB)")
    arguments = parser.parse_args()
    new, old = load(arguments.new), load(arguments.old)
    rows = max(old.get_vocab().values()) + 1
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        (folder / "old").mkdir()
        Embeddings(random_table(rows, arguments.hidden)).save(folder / "old" / "embeddings.safetensors")

        started = time.perf_counter()
        operator = subtoken_operator(new, old)
        built = time.perf_counter() - started
        table = open_embeddings(folder / "old").input
        begun = mean(table, operator)
        Embeddings(ComputedTable(begun.shape, torch.bfloat16, begun.__getitem__)).save(
            folder / "embeddings.safetensors"
        )
        ours = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        ids = np.random.default_rng(0).choice(len(operator.exact), arguments.sample, replace=False).tolist()
        whole = in_memory(table)
        started = time.perf_counter()
        theirs = loop(new, old, whole, ids)
        slow = time.perf_counter() - started
        mine = torch.cat([begun[i : i + 1] for i in ids])
        alike = torch.isclose(mine, theirs, rtol=1e-4, atol=1e-5).all(dim=1).double().mean().item()

    tokens = len(operator.exact)
    lines = Lines("way", "tokens", "seconds", "tokens a second", "of it building T", "peak memory")
    lines.add_row("loop", f"{len(ids):,}", f"{slow:.1f}", f"{len(ids) / slow:,.0f}", "", "")
    lines.add_row(
        "T E", f"{tokens:,}", f"{ours:.1f}", f"{tokens / ours:,.0f}", f"{built:.1f} s", f"{peak / 1e9:.2f} GB"
    )
    print(f"{tokens:,} new tokens onto {rows:,} old rows x {arguments.hidden:,}, {torch.get_num_threads()} threads")
    Console(width=120).print(lines)
    print(f"{tokens / ours / (len(ids) / slow):.1f} times as fast; the same row for {100 * alike:.1f} % of the sample")


if __name__ == "__main__":
    main()
