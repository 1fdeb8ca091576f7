"""The laws of T, checked for every single token of a pair of vocabularies."""

import numpy as np
from scipy.sparse import csr_array
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
    _check_composed(operator, fresh, known, old)
    by_content = {content: j for j, content in known.specials.items()}
    for role, i in fresh.roles.items():
        if i in fresh.specials and fresh.specials[i] not in by_content and role in known.roles:
            assert weights[[i]].indices.tolist() == [known.roles[role]]
    for i, content in fresh.specials.items():
        if content in by_content:
            assert weights[[i]].indices.tolist() == [by_content[content]]
    counts = operator.summary()
    assert counts["exact"] + counts["composed"] + counts["special"] == counts["tokens"] == len(fresh)
    assert counts["distinct_old_rows"] == len(set(weights.indices.tolist()))
    return operator


def _check_composed(
    operator: SubtokenOperator, fresh: Vocabulary, known: Vocabulary, old: PreTrainedTokenizerFast
) -> None:
    """The other rows spell their token and give each of its K sub-tokens 1 / K."""
    composed = np.flatnonzero(~operator.exact & ~operator.special)
    if not len(composed):
        return
    texts = [fresh.tokens[i] or b"" for i in composed]
    rows = compose(texts, old, known)
    assert [text for text, row in zip(texts, rows, strict=True) if spelt(row, known) != text] == []
    entries = [(k, j, 1 / len(row)) for k, row in enumerate(rows) for j in row]
    places, ids, shares = (np.array(part) for part in zip(*entries, strict=True))
    expected = csr_array((shares, (places, ids)), shape=(len(rows), len(known)))
    assert abs(operator.weights[composed] - expected).max() < 1e-6
