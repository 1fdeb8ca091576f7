"""Vocabulary algebra: what every token stands for in bytes, and the sparse operator T between two vocabularies.

In: fast tokenizers (byte-level BPE; SentencePiece-style BPE with byte fallback and the metaspace mark; Unigram over
either alphabet). Out: `Vocabulary` (id -> bytes or special) and `SubtokenOperator` (T of arXiv 2412.21140, section 3).
Assumed: nothing of the text pipeline. Tokens are compared in bytes and never decoded with replacement characters, so
halves of a letter, newlines, leading spaces and runs of spaces stay apart.
"""

# V base vocabulary, U new vocabulary, S shared tokens, D hidden

import copy
import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, pairwise, repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_array
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor
from torch.nn.functional import embedding_bag
from transformers import PreTrainedTokenizerFast

from lep.shards import ComputedTable, Table, take

Alphabet = Literal["byte_level", "metaspace"]
MARK = "\u2581"  # the metaspace, SentencePiece's visible space
ROLES = ("unk", "pad", "eos", "bos")  # in the order in which they stand in for an id that stands for nothing
TEXTS_AT_ONCE = 512  # lists of ids held at once: fewer than make the garbage collector look through everything
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_glyphs() -> str:
    """The 256 printable characters in which byte-level models spell bytes, indexed by byte (the GPT-2 alphabet)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    glyphs = {byte: chr(byte) for byte in shown} | {byte: chr(256 + rank) for rank, byte in enumerate(hidden)}
    return "".join(glyphs[byte] for byte in range(256))


GLYPHS = _byte_glyphs()
_TO_GLYPHS = {byte: glyph for byte, glyph in enumerate(GLYPHS)}
_FROM_GLYPHS = {ord(glyph): byte for byte, glyph in enumerate(GLYPHS)}
_FOREIGN = re.compile(f"[^{re.escape(GLYPHS)}]")
_CODES = np.array([ord(glyph) for glyph in GLYPHS], dtype="<u2")
_BYTE_OF_CODE = np.zeros(max(_FROM_GLYPHS) + 1, dtype=np.uint8)
_BYTE_OF_CODE[_CODES] = np.arange(256)


def to_glyphs(data: bytes) -> str:
    """Bytes spelt in the byte-level alphabet."""
    return data.decode("latin-1").translate(_TO_GLYPHS)


def from_glyphs(piece: str) -> bytes:
    """Bytes of a byte-level piece; a piece with a foreign character stands for its own text, as the decoder has it."""
    if _FOREIGN.search(piece):
        return piece.encode()
    return piece.translate(_FROM_GLYPHS).encode("latin-1")


def _all_to_glyphs(tokens: Sequence[bytes]) -> list[str]:
    """`to_glyphs` of every token, all bytes looked up at once."""
    glyphs = _CODES[np.frombuffer(b"".join(tokens), dtype=np.uint8)].tobytes().decode("utf-16-le")
    return [glyphs[start:end] for start, end in pairwise(accumulate(map(len, tokens), initial=0))]


def _all_from_glyphs(spellings: Sequence[str]) -> list[bytes]:
    """`from_glyphs` of every spelling, none of which has a foreign character; all glyphs looked up at once."""
    data = _BYTE_OF_CODE[np.frombuffer("".join(spellings).encode("utf-16-le"), dtype="<u2")].tobytes()
    return [data[start:end] for start, end in pairwise(accumulate(map(len, spellings), initial=0))]


@dataclass(frozen=True)
class Vocabulary:
    """What each id stands for: a special token, text or a part of a letter, or nothing. All tuples have length U."""

    pieces: tuple[str | None, ...]  # as the tokenizer spells them; None where no token has the id
    specials: dict[int, str]
    roles: dict[str, int]
    byte_ids: frozenset[int]  # `<0x0A>`-like pieces, which only fall in where no literal piece fits
    alphabet: Alphabet

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def tokens(self) -> tuple[bytes | None, ...]:
        """The bytes that each id stands for; None for special and for unassigned ids."""
        if self.alphabet == "byte_level":
            found = _all_from_glyphs([spelling or "" for spelling in self.spellings])
            return tuple(token or None for token in found)
        tokens = [piece.replace(MARK, " ").encode() if piece else None for piece in self.pieces]
        for i in self.byte_ids:
            tokens[i] = bytes([int((self.pieces[i] or "")[3:5], 16)])
        for i in self.specials:
            tokens[i] = None
        return tuple(tokens)

    @cached_property
    def spellings(self) -> tuple[str | None, ...]:
        """`tokens` in byte glyphs: vocabularies are compared in them, as most byte-level pieces are that already."""
        if self.alphabet == "metaspace":
            found = _all_to_glyphs([token or b"" for token in self.tokens])
            return tuple(spelling or None for spelling in found)
        spellings = [piece or None for piece in self.pieces]
        for i in self.specials:
            spellings[i] = None
        if _FOREIGN.search("".join(filter(None, spellings))):
            return tuple(spelling and to_glyphs(from_glyphs(spelling)) for spelling in spellings)
        return tuple(spellings)

    @cached_property
    def unassigned(self) -> frozenset[int]:
        """Ids that no text and no special token gives (holes, empty pieces)."""
        return frozenset(i for i, piece in enumerate(self.pieces) if not piece and i not in self.specials)

    @cached_property
    def ids_of_pieces(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces) if piece is not None}

    @cached_property
    def ids_of_spellings(self) -> dict[str, int]:
        """Id of each spelling; where a literal piece and a byte piece stand for the same, the literal one."""
        found = dict(zip(self.spellings, range(len(self)), strict=True))
        if self.byte_ids:
            found |= {spelling: i for i, spelling in enumerate(self.spellings) if i not in self.byte_ids}
        found.pop(None, None)
        return found  # type: ignore[return-value]

    @property
    def has_homographs(self) -> bool:
        """Whether several tokens stand for the same bytes."""
        return len(self.ids_of_spellings) < len(self) - len(self.specials) - len(self.unassigned)

    @cached_property
    def ids_of_bytes(self) -> dict[bytes, int]:
        """`ids_of_spellings` by bytes."""
        return {self.tokens[i]: i for i in self.ids_of_spellings.values()}  # type: ignore[misc]

    @cached_property
    def ids_of_single_bytes(self) -> dict[bytes, int]:
        """Ids of the tokens that spell one raw byte: `<0x0A>` pieces, or the byte-level glyphs."""
        if self.alphabet == "metaspace":
            return {self.tokens[i]: i for i in self.byte_ids}  # type: ignore[misc]
        return {from_glyphs(spelling): i for spelling, i in self.ids_of_spellings.items() if len(spelling) == 1}


def tokenizer_json(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The whole fast tokenizer as the contents of its tokenizer.json."""
    return json.loads(tokenizer.backend_tokenizer.to_str())


def components(node: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer, post-processor or decoder, its nested sequences laid flat."""
    if node is None:
        return []
    if node["type"] != "Sequence":
        return [node]
    nested = next(value for key, value in node.items() if key != "type")
    return [step for child in nested for step in components(child)]


def alphabet_of(spec: dict[str, Any]) -> Alphabet:
    """Whether the pieces of a tokenizer.json are spelt in byte glyphs or in text with metaspaces."""
    steps = [step for part in ("normalizer", "pre_tokenizer", "decoder") for step in components(spec[part])]
    if any(step["type"] == "ByteLevel" for step in steps):
        return "byte_level"
    if any(
        step["type"] == "Metaspace" or (step["type"] == "Replace" and MARK in json.dumps(step, ensure_ascii=False))
        for step in steps
    ):
        return "metaspace"
    kinds = sorted({step["type"] for step in steps})
    raise ValueError(
        f"tokenizer: its steps {kinds} spell pieces neither in byte-level glyphs nor with the metaspace {MARK!r}. "
        "Use a byte-level BPE, SentencePiece BPE or Unigram tokenizer."
    )


def model_ids(model: dict[str, Any]) -> dict[str, int]:
    """Piece -> id of the model part of a tokenizer.json (BPE or Unigram)."""
    if model["type"] == "Unigram":
        return {piece: i for i, (piece, _) in enumerate(model["vocab"])}
    if model["type"] != "BPE":
        raise ValueError(f"tokenizer: model {model['type']} is not supported. Use a BPE or Unigram tokenizer.")
    return model["vocab"]


def merge_pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Merges of a BPE model as pairs; tokenizer.json writes them as lists or, in old files, with a space between."""
    return [tuple(m.split(" ", 1)) if isinstance(m, str) else (m[0], m[1]) for m in model["merges"]]  # type: ignore[misc]


def remap_post_processor(node: dict[str, Any] | None, ids: Mapping[str, int]) -> None:
    """Puts new ids of the named tokens into a post-processor, in place (TemplateProcessing, Bert, Roberta)."""
    if node is None:
        return
    for child in node.get("processors", []):
        remap_post_processor(child, ids)
    for entry in node.get("special_tokens", {}).values():
        entry["ids"] = [ids[token] for token in entry["tokens"]]
    for side in ("sep", "cls"):
        if side in node:
            node[side] = [node[side][0], ids[node[side][0]]]


def _producible(model: dict[str, Any]) -> set[str]:
    """Pieces that the model itself can give on some text: what tells a mark beside the vocabulary from a word in it."""
    if model["type"] == "Unigram":
        return {piece for piece, score in model["vocab"] if score < 0}
    return {left + right for left, right in merge_pairs(model)} | {piece for piece in model["vocab"] if len(piece) == 1}


def read_vocabulary(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    """The bytes behind every id, or that it is special.

    Length is the highest id + 1. An added token is special when it is flagged so, or when the model can never produce
    it from text (`<think>`); its row is then a role's, not a word's.
    """
    alphabet, added = alphabet_of(_steps_json(tokenizer)), tokenizer.backend_tokenizer.get_added_tokens_decoder()
    pieces, unk, byte_fallback = _read_model(tokenizer)
    model = tokenizer.backend_tokenizer.model
    asked = any(not token.special and model.token_to_id(token.content) is not None for token in added.values())
    producible = _producible(tokenizer_json(tokenizer)["model"]) if asked else set()
    specials = {i: token.content for i, token in added.items() if token.special or token.content not in producible}
    has_byte_pieces = alphabet == "metaspace" and byte_fallback
    raw = [i for i, piece in enumerate(pieces) if piece and BYTE_PIECE.fullmatch(piece)] if has_byte_pieces else []
    pieces += [None] * (max(added, default=-1) + 1 - len(pieces))
    for i, token in added.items():
        pieces[i] = token.content
    if unk is not None:  # the model's own unknown piece stands for no text, flagged or not
        specials.setdefault(unk, pieces[unk] or "")
    byte_ids = frozenset(raw) - specials.keys()
    roles = {role: getattr(tokenizer, f"{role}_token_id") for role in ROLES}
    roles = {role: i for role, i in roles.items() if i is not None and 0 <= i < len(pieces)}
    return Vocabulary(tuple(pieces), specials, roles, byte_ids, alphabet)


def _read_model(tokenizer: PreTrainedTokenizerFast) -> tuple[list[str | None], int | None, bool]:
    """The model's pieces by id, the id of its unknown piece, and whether it spells unknown letters in byte pieces.

    Of a BPE model piece by piece: writing it out with its 280,000 merges takes longer than all the rest.
    """
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.model, BPE):
        model = tokenizer_json(tokenizer)["model"]
        return _by_id(model_ids(model)), model["unk_id"], model.get("byte_fallback", False)
    unk = None if backend.model.unk_token is None else backend.model.token_to_id(backend.model.unk_token)
    pieces = list(map(backend.model.id_to_token, range(backend.get_vocab_size(with_added_tokens=False))))
    if None in pieces:  # ids go further than there are pieces
        pieces = _by_id(backend.get_vocab(with_added_tokens=False))
    return pieces, unk, backend.model.byte_fallback


def _by_id(ids: Mapping[str, int]) -> list[str | None]:
    pieces: list[str | None] = [None] * (max(ids.values(), default=-1) + 1)
    for piece, i in ids.items():
        pieces[i] = piece
    return pieces


def kept_ids(before: Vocabulary, after: Vocabulary) -> set[int]:
    """Ids that stand in both vocabularies for the same token, or for nothing in both."""
    pairs = zip(before.pieces, after.pieces, strict=False)
    return {i for i, (old, new) in enumerate(pairs) if old == new}


@dataclass(frozen=True)
class SubtokenOperator:
    """The vocabulary transformation T: row u averages the base tokens that spell new token u (paper, section 3).

    `weights` is [U, V] float32 with rows that sum to one; `exact` marks the tokens both vocabularies hold byte for
    byte, `special` the ids that stand for no text.
    """

    weights: csr_array
    exact: np.ndarray
    special: np.ndarray

    @property
    def shared(self) -> tuple[np.ndarray, np.ndarray]:
        """(new ids [S], base ids [S]) of the tokens both vocabularies hold byte for byte, specials left out."""
        new_ids = np.flatnonzero(self.exact)
        return new_ids, self.weights.indices[self.weights.indptr[new_ids]].astype(np.int64)

    def apply(self, table: Table) -> ComputedTable:
        """`T E`: the rows of the new vocabulary, [U, D] float32, from a table [>= V, D] of any dtype.

        Rows are computed when asked for; only the base rows that they need are read and widened. Rows of the table
        beyond the tokenizer's vocabulary (padding) are not read.
        """
        rows, columns = self.weights.shape  # type: ignore[misc]
        if table.shape[0] < columns:
            raise ValueError(
                f"embedding table: {table.shape[0]} rows, but the tokenizer has ids up to {columns - 1}. "
                "Give the tokenizer and the model of one checkpoint."
            )

        def compute(block: slice) -> Tensor:
            return self.combine(lambda used: take(table, used), np.arange(block.start, block.stop))

        return ComputedTable(torch.Size((rows, table.shape[1])), torch.float32, compute)

    def combine(
        self, read: Callable[[np.ndarray], Tensor], rows: np.ndarray, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The given rows of `T E`, [N, D] in `dtype`: `read` gives the base rows [K, D] of K ids, in their order."""
        block = self.weights[rows]
        if (np.diff(block.indptr) == 1).all():  # one id weighs 1, and its row need only be widened
            return read(block.indices).to(dtype)
        used, position = np.unique(block.indices, return_inverse=True)
        return embedding_bag(
            torch.from_numpy(position),
            read(used).to(dtype),
            torch.from_numpy(block.indptr[:-1].astype(np.int64)),
            mode="sum",
            per_sample_weights=torch.from_numpy(block.data).to(dtype),
        )

    def summary(self) -> dict[str, int]:
        """How the new tokens come by their rows, as counts that add up to `tokens`, and the old rows they draw on."""
        tokens, exact, special = len(self.exact), int(self.exact.sum()), int(self.special.sum())
        return {
            "tokens": tokens,
            "exact": exact,
            "composed": tokens - exact - special,
            "special": special,
            "distinct_old_rows": len(np.unique(self.weights.indices)),
            "old_tokens": int(self.weights.shape[1]),  # type: ignore[index]
        }

    def save(self, path: Path) -> None:
        """Writes T as one safetensors file."""
        parts = {"data": self.weights.data, "indices": self.weights.indices, "indptr": self.weights.indptr}
        parts |= {"shape": np.array(self.weights.shape), "exact": self.exact, "special": self.special}
        save_file({name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}, path)

    @classmethod
    def load(cls, path: Path) -> "SubtokenOperator":
        parts = {name: part.numpy() for name, part in load_file(path).items()}
        rows, columns = parts["shape"].tolist()
        weights = csr_array((parts["data"], parts["indices"], parts["indptr"]), shape=(rows, columns))
        return cls(weights, parts["exact"], parts["special"])


def subtoken_operator(new: PreTrainedTokenizerFast, old: PreTrainedTokenizerFast) -> SubtokenOperator:
    """T from the old vocabulary to the new one, for all tokens at once.

    - A token that the old vocabulary holds byte for byte is that token.
    - A special token is the old special of the same content, else the old token of its role (bos, eos, pad, unk), else
      the old sub-tokens of its text: a mark is better begun at its own letters than at a stranger.
    - Any other token is the mean of the old sub-tokens of its bytes, split where the old pre-tokenizer splits them.
    - An id that stands for nothing is the same id where that stands for nothing in the old vocabulary too, else the
      old unk, pad, eos or bos, else id 0. No row is empty.
    """
    fresh, known = read_vocabulary(new), read_vocabulary(old)
    single = _same_tokens(fresh, known)
    exact = single >= 0
    for i, j in (_special_rows(fresh, known) | _unassigned_rows(fresh, known)).items():
        single[i] = j
    rest = np.flatnonzero(single < 0).tolist()
    texts = _all_from_glyphs([fresh.spellings[i] or to_glyphs(fresh.specials[i].encode()) for i in rest])
    several = (row or [_stand_in(known)] for row in _composed(texts, old, known))
    special = np.zeros(len(fresh), dtype=bool)
    special[[*fresh.specials, *fresh.unassigned]] = True
    return SubtokenOperator(_mean_rows(single, several, len(known)), exact, special)


def _mean_rows(single: np.ndarray, several: Iterable[list[int]], columns: int) -> csr_array:
    """[U, V] float32: row u is its one id or, where that is below 0, the next of the lists; ids come in `several`.

    A row puts 1 / K on each of its K ids; an id that comes twice weighs twice.
    """
    ids, counts = array("q"), array("q")
    for row in several:
        ids.extend(row)
        counts.append(len(row))
    lengths = np.ones(len(single), dtype=np.int64)
    lengths[single < 0] = counts
    indices = np.repeat(single, lengths)
    indices[indices < 0] = ids
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    data = np.repeat(1.0 / lengths, lengths).astype(np.float32)
    parts = (data, indices.astype(np.int32), indptr.astype(np.int32))
    weights = csr_array(parts, shape=(len(single), columns))
    weights.sum_duplicates()
    return weights


def _same_tokens(fresh: Vocabulary, known: Vocabulary) -> np.ndarray:
    """Old id [U] of the tokens equal in bytes, else -1: equally spelt first, then byte piece to byte, then literal."""
    found = map(known.ids_of_spellings.get, fresh.spellings, repeat(-1))  # type: ignore[arg-type]
    same = np.fromiter(found, dtype=np.int64, count=len(fresh))
    for i in fresh.byte_ids:
        same[i] = known.ids_of_single_bytes.get(fresh.tokens[i] or b"", int(same[i]))
    if fresh.alphabet == known.alphabet and known.has_homographs:
        twins = np.array([known.ids_of_pieces.get(piece, -1) for piece in fresh.pieces])  # type: ignore[arg-type]
        # Nearly all of these are the same already; the others are few.
        for i in np.flatnonzero((twins >= 0) & (same >= 0) & (twins != same)):
            if known.spellings[twins[i]] == fresh.spellings[i]:
                same[i] = twins[i]
    return same


def _special_rows(fresh: Vocabulary, known: Vocabulary) -> dict[int, int]:
    """New id -> old id for the specials that the old vocabulary has by content, or by role."""
    by_content = {content: i for i, content in known.specials.items()}
    by_role = {i: known.roles[role] for role, i in fresh.roles.items() if role in known.roles}
    rows = {i: by_content.get(content, by_role.get(i)) for i, content in fresh.specials.items()}
    return {i: j for i, j in rows.items() if j is not None}


def _unassigned_rows(fresh: Vocabulary, known: Vocabulary) -> dict[int, int]:
    return {i: i if i in known.unassigned else _stand_in(known) for i in fresh.unassigned}


def _stand_in(vocabulary: Vocabulary) -> int:
    return next((vocabulary.roles[role] for role in ROLES if role in vocabulary.roles), 0)


def compose(
    texts: list[bytes], tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary | None = None
) -> list[list[int]]:
    """Ids of the tokens that spell each byte string, in context: split where the pre-tokenizer splits text.

    Bytes that are not whole UTF-8 are spelt without the pre-tokenizer, in raw bytes where the alphabet is text.
    Concatenated, the bytes of the ids are the bytes given, whenever the vocabulary has all 256 bytes.
    """
    return list(_composed(texts, tokenizer, vocabulary or read_vocabulary(tokenizer)))


def _composed(texts: list[bytes], tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> Iterator[list[int]]:
    """The rows of `compose`, some at a time: 100,000 short lists cost the garbage collector more than making them."""
    if vocabulary.alphabet == "byte_level":
        return _compose_byte_level(texts, tokenizer, vocabulary)
    return iter(_compose_metaspace(texts, tokenizer, vocabulary))


def _compose_byte_level(
    texts: list[bytes], tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary
) -> Iterator[list[int]]:
    split, spelt = bare_tokenizer(tokenizer), [spelling or "" for spelling in vocabulary.spellings]
    marks = {*vocabulary.specials.values()}
    unsplit = cache(lambda merges_only: bare_tokenizer(tokenizer, pre_tokenizer=False, merges_only=merges_only))
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = texts[start : start + TEXTS_AT_ONCE]
        rows, glyphs = _encode(split, [text.decode(errors="ignore") for text in some]), _all_to_glyphs(some)
        wrong = [k for k, row in enumerate(rows) if "".join(map(spelt.__getitem__, row)) != glyphs[k]]
        if wrong:
            parts = [glyphs[k] for k in wrong]
            # Half letters are never a whole pre-token, so `ignore_merges` has no say in them.
            merges_only = any(part in vocabulary.ids_of_spellings or part in marks for part in parts)
            for k, row in zip(wrong, _encode(unsplit(merges_only), parts), strict=True):
                rows[k] = row
        yield from rows


def _compose_metaspace(
    texts: list[bytes], tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary
) -> list[list[int]]:
    """Lone bytes come through decoding as surrogates (`surrogateescape`) and become byte pieces; the rest is text."""
    spans = [re.findall(r"[\udc80-\udcff]|[^\udc80-\udcff]+", text.decode(errors="surrogateescape")) for text in texts]
    bare, keeps_spaces = bare_tokenizer(tokenizer), _pre_tokenizer_marks_spaces(tokenizer)
    flat = [span for row in spans for span in row if not "\udc80" <= span <= "\udcff"]
    encoded = iter(_encode(bare, flat if keeps_spaces else [span.replace(" ", MARK) for span in flat]))
    single = vocabulary.ids_of_single_bytes
    rows = [
        [
            j
            for span in row
            for j in (
                _raw(span.encode(errors="surrogateescape"), single) if "\udc80" <= span <= "\udcff" else next(encoded)
            )
        ]
        for row in spans
    ]
    # A literal U+2581 in the text looks like a space to the model: spell such a token in its raw bytes.
    return [
        row if _spells(row, text, vocabulary) else _raw(text, single) or row
        for row, text in zip(rows, texts, strict=True)
    ]


def _raw(data: bytes, single: dict[bytes, int]) -> list[int]:
    return [single[bytes([byte])] for byte in data if bytes([byte]) in single]


def _spells(ids: list[int], text: bytes, vocabulary: Vocabulary) -> bool:
    return b"".join(vocabulary.tokens[i] or b"" for i in ids) == text


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _steps_json(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """A tokenizer.json of normalizer, pre-tokenizer and decoder alone: a large model need not be written out for it."""
    skeleton, backend = Tokenizer(BPE()), tokenizer.backend_tokenizer
    for step in ("normalizer", "pre_tokenizer", "decoder"):
        if (found := getattr(backend, step)) is not None:
            setattr(skeleton, step, found)
    return json.loads(skeleton.to_str())


def _pre_tokenizer_marks_spaces(tokenizer: PreTrainedTokenizerFast) -> bool:
    return any(step["type"] == "Metaspace" for step in components(_steps_json(tokenizer)["pre_tokenizer"]))


def bare_tokenizer(
    tokenizer: PreTrainedTokenizerFast, *, pre_tokenizer: bool = True, merges_only: bool = False
) -> Tokenizer:
    """The model alone, with the pre-tokenizer or without: no normalizer, added tokens, template or leading space.

    `merges_only` also switches off `ignore_merges`, so that a piece comes out whole only where merges make it.
    """
    model = tokenizer.backend_tokenizer.model
    if merges_only and getattr(model, "ignore_merges", False):
        model = copy.deepcopy(model)
        model.ignore_merges = False
    bare = Tokenizer(model)  # shares the model, which may be large
    spec = _steps_json(tokenizer) | {"normalizer": None, "decoder": None}
    for step in components(spec["pre_tokenizer"]):
        if "prepend_scheme" in step:
            step["prepend_scheme"] = "never"
        if "add_prefix_space" in step:
            step["add_prefix_space"] = False
    if pre_tokenizer and spec["pre_tokenizer"] is not None:
        bare.pre_tokenizer = Tokenizer.from_str(json.dumps(spec)).pre_tokenizer
    return bare
