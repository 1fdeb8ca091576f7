"""The laws of T, checked for every single token of a pair of vocabularies."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from lep.vocabulary import SubtokenOperator, Vocabulary, compose, read_vocabulary, subtoken_operator


def spelt(ids, vocabulary: Vocabulary) -> bytes:
    return b"".join(vocabulary.tokens[i] or b"" for i in ids)


def check_laws(new: PreTrainedTokenizerFast, old: PreTrainedTokenizerFast) -> SubtokenOperator:
    """Rows average and none is empty; a row spells its token; exact tokens are themselves; specials go by role."""
    operator = subtoken_operator(new, old)
    fresh, known = read_vocabulary(new), read_vocabulary(old)
    weights = operator.weights
    assert weights.shape == (len(fresh), len(known)) and weights.dtype == np.float32
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert np.diff(weights.indptr).min() >= 1
    for i, j in zip(*operator.shared, strict=True):
        assert fresh.tokens[i] == known.tokens[j] is not None
    held = {token for token in known.tokens if token is not None}
    assert operator.exact.tolist() == [token is not None and token in held for token in fresh.tokens]
    assert operator.special.tolist() == [token is None for token in fresh.tokens]
    composed = [i for i, token in enumerate(fresh.tokens) if token is not None and not operator.exact[i]]
    texts = [fresh.tokens[i] or b"" for i in composed]
    for i, text, row in zip(composed, texts, compose(texts, old, known), strict=True):
        assert spelt(row, known) == text
        begin, end = weights.indptr[i], weights.indptr[i + 1]
        assert dict(zip(weights.indices[begin:end], weights.data[begin:end], strict=True)) == pytest.approx(
            {j: row.count(j) / len(row) for j in row}
        )
    by_content = {content: j for j, content in known.specials.items()}
    for role, i in fresh.roles.items():
        if i in fresh.specials and fresh.specials[i] not in by_content and role in known.roles:
            assert operator.weights[[i]].indices.tolist() == [known.roles[role]]
    for i, content in fresh.specials.items():
        if content in by_content:
            assert operator.weights[[i]].indices.tolist() == [by_content[content]]
    counts = operator.summary()
    assert counts["exact"] + counts["composed"] + counts["special"] == counts["tokens"] == len(fresh)
    assert counts["distinct_old_rows"] == len(set(weights.indices.tolist()))
    return operator
