"""Rows that came out of propagation unlike any others: lengths that no training would have given them.

A row that is harmless in the tables it comes from can do harm once carried (arXiv 2601.00065). In: the tables before
and after. Out: how many rows are extreme, and which is the longest. Only lengths are looked at.
"""

import torch

from lep.shards import Table, row_norms

# Trained rows of one table differ in length by less than this; propagation moves a row by a few percent.
TIMES_MEDIAN, TIMES_BEFORE = 5.0, 2.0


def extreme_rows(result: Table, adapted: Table) -> dict:
    """Counts of rows that are extreme after propagation, and the id of the longest.

    `long_rows` are 5 times as long as the median row and were not so before; `rescaled_rows` are more than twice or
    less than half as long as before (rows that the instruct model keeps are compared alike). Takes result [>= U, D]
    and adapted [U, D]; rows of either that are next to nothing are left out.
    """
    after, before = row_norms(result), row_norms(adapted)
    shared = min(len(after), len(before))
    after, before = after[:shared], before[:shared]
    present = (after > 1e-3 * after.median()) & (before > 1e-3 * before.median())
    is_long = (after > TIMES_MEDIAN * after.median()) & (before <= TIMES_MEDIAN * before.median())
    ratio = after / before.clamp_min(torch.finfo(torch.float64).tiny)
    rescaled = present & ((ratio > TIMES_BEFORE) | (ratio < 1 / TIMES_BEFORE))
    return {
        "long_rows": int(is_long.sum()),
        "rescaled_rows": int(rescaled.sum()),
        "longest_over_median": (after.max() / after.median()).item(),
        "longest_row": int(after.argmax()),
    }
