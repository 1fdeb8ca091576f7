"""Rows of no token, which no text and no decoding ever reaches: fillers up to a round size, ids that stand for nothing.

In: tables of U tokens. Out: tables of the next multiple. A row of zeros would not do: its logit is 0, which wins where
all others are negative. The mean of the output rows cannot win: its logit is the mean of all logits, which is below
the largest unless all are equal, whatever the hidden state. Sampled at temperature 1, such a row is drawn with
probability at most 1 / U (the exponential of a mean is at most the mean of the exponentials), in practice far less.
All this up to rounding the mean m to the table's type: in bfloat16 that moves a logit by at most 2^-9 sum_d |h_d m_d|.
"""

# U tokens, D hidden

from collections.abc import Collection

import torch
from torch import Tensor

from lep.embeddings import Embeddings
from lep.shards import ComputedTable, Table, blocks

PAD_TO = 64  # the granularity of vLLM's own padding; tensor-parallel degrees divide it, and GPUs multiply it faster


def padded_size(tokens: int, multiple: int) -> int:
    """The smallest multiple that holds so many tokens. ValueError for a multiple below 1."""
    if multiple < 1:
        raise ValueError(f"export_pad_to={multiple} is no size. Give 1 for no padding, or a multiple such as {PAD_TO}.")
    return -(-tokens // multiple) * multiple


def pad_tables(
    tables: Embeddings[Table], tokens: int, multiple: int, *, unused: Collection[int] = ()
) -> Embeddings[Table]:
    """Tables of `padded_size(tokens, multiple)` rows: those of the tokens, then mean rows.

    Ids among the tokens' that stand for nothing (`unused`) get the mean of the others too: what lay there, such as a
    copy of the row that ends a text, could win. Rows beyond the tokens that the tables have already (an old padding)
    give way. ValueError where tokens lack rows.
    """
    rows = tables.input.shape[0]
    if rows < tokens:
        raise ValueError(
            f"export: {rows} embedding rows, but the tokenizer has ids up to {tokens - 1}. Give its own tables."
        )
    size = padded_size(tokens, multiple)
    if rows == size == tokens and not unused:
        return tables
    used = torch.ones(tokens, dtype=torch.bool)
    used[list(unused)] = False
    return tables.map(lambda table: _padded(table, used, size))


def _padded(table: Table, used: Tensor, size: int) -> Table:
    mean, tokens = _mean(table, used).to(table.dtype), len(used)

    def compute(rows: slice) -> Tensor:
        here = slice(min(rows.start, tokens), min(rows.stop, tokens))
        own = torch.where(used[here, None], table[here].detach().cpu(), mean)
        return torch.cat([own, mean.expand(rows.stop - rows.start - len(own), -1)])

    return ComputedTable(torch.Size((size, table.shape[1])), table.dtype, compute)


def _mean(table: Table, used: Tensor) -> Tensor:
    """Of the marked rows (all beyond the marks are left out), float64 [D] on the CPU."""
    total, start = torch.zeros(table.shape[1], dtype=torch.float64), 0
    for block in blocks(table):
        marks = used[start : start + len(block)]
        total += block[: len(marks)][marks.to(block.device)].detach().cpu().double().sum(dim=0)
        start += len(block)
    return total / used.sum()
