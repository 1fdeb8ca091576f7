"""Initialisation of a new vocabulary's embeddings: tokens a second, beside the obvious loop, and memory.

Ours: T from the two tokenizers, then the rows `T E`, computed block by block from a table on disk, and the same written
to another file in bfloat16. The loop: for each token its text, `tokenizer.encode` of it with the old tokenizer, the
mean of those rows of a table in memory; a sample of tokens, as all would take long, with reading the table not counted
and nothing written. All are timed in turn, `--repeats` times in one run; the medians are shown. Seconds on the clock
grow with whatever else the machine does; seconds of the processor, of all threads, much less. The loop's rows are
compared with ours too: they differ where a token is no whole text (half a letter), where the loop averages the rows of
U+FFFD.

    python benchmarks/initialise.py NEW OLD      # directories, or tokenizer.json or tokenizer.json.gz files
"""

import argparse
import gzip
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from lep.memory import peak_memory_bytes
from lep.shards import ComputedTable, blocks, in_memory
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
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the tables go for the time being (4 GB)")
    arguments = parser.parse_args()
    new, old = load(arguments.new), load(arguments.old)
    rows = max(old.get_vocab().values()) + 1
    spent: dict[str, list[tuple[float, float]]] = {"loop": [], "T": [], "T E": [], "T E, written": []}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        (folder / "old").mkdir()
        Embeddings(random_table(rows, arguments.hidden)).save(folder / "old" / "embeddings.safetensors")
        table = open_embeddings(folder / "old").input
        peak, whole = 0, None
        for _ in range(arguments.repeats):
            with timed(spent["T"]):
                operator = subtoken_operator(new, old)
            begun = mean(table, operator)
            with timed(spent["T E"]):
                for _ in blocks(begun):
                    pass
            with timed(spent["T E, written"]):
                half = ComputedTable(begun.shape, torch.bfloat16, begun.__getitem__)
                Embeddings(half).save(folder / "embeddings.safetensors")
            peak = peak or peak_memory_bytes()  # before the loop's table is read
            whole = in_memory(table) if whole is None else whole
            ids = np.random.default_rng(0).choice(len(operator.exact), arguments.sample, replace=False).tolist()
            with timed(spent["loop"]):
                theirs = loop(new, old, whole, ids)
        mine = torch.cat([begun[i : i + 1] for i in ids])
        alike = torch.isclose(mine, theirs, rtol=1e-4, atol=1e-5).all(dim=1).double().mean().item()

    tokens = len(operator.exact)
    print(f"{tokens:,} new tokens onto {rows:,} old rows x {arguments.hidden:,}, {torch.get_num_threads()} threads")
    print(
        f"load average {os.getloadavg()[0]:.1f}, {arguments.repeats} repeats, peak memory of ours {peak / 1e9:.2f} GB"
    )
    clock, processor = ({way: statistics.median(each[k] for each in spent[way]) for way in spent} for k in (0, 1))
    lines = Lines(
        "way", "tokens", "seconds", "tokens a second", "times the loop", "processor seconds", "times the loop"
    )
    for way, parts in {"loop": ["loop"], "T and T E": ["T", "T E"], "the same, written": ["T", "T E, written"]}.items():
        number = arguments.sample if way == "loop" else tokens
        row = [way, f"{number:,}"]
        for seconds in (clock, processor):
            rate, slow = number / sum(seconds[part] for part in parts), arguments.sample / seconds["loop"]
            row += [f"{sum(seconds[part] for part in parts):.2f}", f"{rate:,.0f}", f"{rate / slow:.1f}"]
        lines.add_row(*(cell for k, cell in enumerate(row) if k != 6))  # one rate is enough
    Console(width=120).print(lines)
    print(f"of it T: {clock['T']:.2f} s, {processor['T']:.2f} s of the processor")
    print("on the clock: " + "; ".join(f"{way} {', '.join(f'{each[0]:.2f}' for each in spent[way])}" for way in spent))
    print(f"the same row as the loop for {100 * alike:.1f} % of the sample")


@contextmanager
def timed(spent: list[tuple[float, float]]) -> Iterator[None]:
    """Notes the seconds of the block: on the clock, and of the processor by all threads."""
    clock, processor = time.perf_counter(), time.process_time()
    yield
    spent.append((time.perf_counter() - clock, time.process_time() - processor))


if __name__ == "__main__":
    main()
