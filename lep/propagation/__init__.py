"""Base is to adapted as instruct is to result: carrying trained tables of a new vocabulary into an instruct model.

In: the tables of three models, in memory or on disk, and the operator T. Out: the tables of the fourth, which are
computed as they are read, and diagnostics. The rules (swap, overlap, conversion, delta) are pure functions of one table
each, one file a rule. Assumed: base and instruct are
siblings, so the first V rows of their tables are the same tokens; the instruct model may have more.
"""

# V base vocabulary, U new vocabulary, D hidden

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from lep.embeddings import Embeddings
from lep.propagation.gram import untrained_in_either
from lep.propagation.kept_rows import carry_rows
from lep.shards import BLOCK_ROWS, Table, take
from lep.vocabulary import SubtokenOperator

Rule = Callable[[Table, Table, Table, SubtokenOperator], tuple[Table, dict]]  # adapted, base, instruct, T


def propagate(
    rule: Rule,
    adapted: Embeddings[Table],
    base: Embeddings[Table],
    instruct: Embeddings[Table],
    operator: SubtokenOperator,
    *,
    kept_rows: Sequence[tuple[int, int]] = (),
) -> tuple[Embeddings[Table], dict]:
    """The instruct model's tables on the new vocabulary, in the instruct model's dtype, and diagnostics by table.

    The fits are made here; rows of the result are computed as they are read, and what comes in must stay until then.
    Input and output go through the rule separately, once when tied. Rows of special tokens come from the instruct
    model: `kept_rows` names (new id, instruct id) pairs, also beyond the U ids of the adapted vocabulary; specials of T
    that it does not name take the row that T gives them. ValueError where shapes, ties or ids do not fit.
    """
    _check(adapted, base, instruct, operator, kept_rows)
    result, diagnostics = {}, {}
    kept = len(set(np.flatnonzero(operator.special).tolist()) | {new for new, _ in kept_rows})
    for side in ("input",) if adapted.output is None else ("input", "output"):
        tables = [getattr(embeddings, side) for embeddings in (adapted, base, instruct)]
        moved, facts = rule(tables[0], tables[1], tables[2], operator)
        result[side] = carry_rows(moved, tables[2], operator, kept_rows)
        diagnostics[side] = facts | drift(tables[1], tables[2], operator) | {"kept_rows": kept}
    return Embeddings(**result), diagnostics


def drift(base: Table, instruct: Table, operator: SubtokenOperator) -> dict:
    """How far the tune moved: `|I - B| / |B|` (Frobenius) on the base's trained tokens, and how many are untrained."""
    untrained = untrained_in_either(base, instruct, operator)
    trained = np.flatnonzero(~untrained)
    dtype = torch.promote_types(torch.promote_types(base.dtype, instruct.dtype), torch.float32)
    change = before = 0.0
    for start in range(0, len(trained), BLOCK_ROWS):
        rows = trained[start : start + BLOCK_ROWS]
        old, new = take(base, rows).to(dtype), take(instruct, rows).to(dtype)
        # Lengths of rows are sums of a few thousand squares: fine in float32; the rows themselves are added in float64.
        change += (new - old).norm(dim=1).double().square().sum().item()
        before += old.norm(dim=1).double().square().sum().item()
    return {"relative_drift": (change / before) ** 0.5, "untrained_rows": int(untrained.sum())}


def check_family(models: Mapping[str, Embeddings[Table]]) -> None:
    """ValueError unless the tables of all models, by name, have one hidden size, and all are tied or none is."""
    if len({embeddings.tied for embeddings in models.values()}) > 1:
        tied = [name for name, embeddings in models.items() if embeddings.tied]
        raise ValueError(
            f"propagation: only {tied} have tied tables. Use models of one family, all tied or all untied."
        )
    sizes = {name: embeddings.input.shape[1] for name, embeddings in models.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"propagation: hidden sizes differ: {sizes}. Use models of one family.")


def _check(
    adapted: Embeddings[Table],
    base: Embeddings[Table],
    instruct: Embeddings[Table],
    operator: SubtokenOperator,
    kept_rows: Sequence[tuple[int, int]],
) -> None:
    models = {"adapted": adapted, "base": base, "instruct": instruct}
    check_family(models)
    new, old = operator.weights.shape  # type: ignore[misc]
    for name, needed in (("adapted", new), ("base", old), ("instruct", old)):
        rows = models[name].input.shape[0]
        if rows < needed:
            raise ValueError(
                f"propagation: the {name} tables have {rows} rows, but their tokenizer has {needed} ids. "
                "Give tables and tokenizer of one model."
            )
    wrong = [pair for pair in kept_rows if not 0 <= pair[1] < instruct.input.shape[0] or pair[0] < 0]
    if wrong:
        raise ValueError(
            f"propagation: kept row {wrong[0]} (new id, instruct id) lies outside the instruct model's "
            f"{instruct.input.shape[0]} rows. Give the instruct model's own tokenizer."
        )
