"""tokenizer.model: a BPE vocabulary in metaspaces as SentencePiece keeps it, which llama.cpp's converter reads first.

In: the fast tokenizer. Out: the bytes of the file. tokenizer.json ranks pairs; SentencePiece scores pieces and joins
any two neighbours that make one, best score first. A piece scores here by the first pair that makes it, so that both
join in one order; they part where a piece could also be made of two that no pair names.
"""

from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import PreTrainedTokenizerFast

from lep.vocabulary import MARK, Vocabulary, alphabet_of, merge_pairs, read_vocabulary, tokenizer_json

FILE = "tokenizer.model"
pb: Any = sentencepiece_model_pb2  # whose classes are made as it is imported
Kind = pb.ModelProto.SentencePiece


def sentencepiece_model(tokenizer: PreTrainedTokenizerFast) -> bytes | None:
    """The file for this vocabulary; None where SentencePiece has none: no metaspace BPE, or no unknown token.

    Special tokens are control pieces, an id that stands for nothing is an unused one, so that ids stay what they are.
    """
    spec = tokenizer_json(tokenizer)
    unk = tokenizer.unk_token_id
    if spec["model"]["type"] != "BPE" or alphabet_of(spec) != "metaspace" or not isinstance(unk, int):
        return None
    vocabulary, model = read_vocabulary(tokenizer), pb.ModelProto()
    scores = _scores(spec["model"])
    for i, piece in enumerate(vocabulary.pieces):
        kind = _kind(vocabulary, i, unk)
        model.pieces.add(piece=piece or f"[PAD{i}]", score=scores.get(piece or "", 0.0), type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.vocab_size = pb.TrainerSpec.BPE, len(vocabulary)
    trainer.byte_fallback = bool(vocabulary.byte_ids)
    trainer.unk_id, trainer.unk_piece = unk, vocabulary.pieces[unk] or ""
    for role in ("bos", "eos", "pad"):
        i = vocabulary.roles.get(role, -1)
        setattr(trainer, f"{role}_id", i)
        if i >= 0:
            setattr(trainer, f"{role}_piece", vocabulary.pieces[i])
    normalizer.name, normalizer.escape_whitespaces, normalizer.remove_extra_whitespaces = "identity", True, False
    normalizer.add_dummy_prefix = _marks_the_start(tokenizer)
    return model.SerializeToString()


def _scores(model: dict[str, Any]) -> dict[str, float]:
    """The higher, the earlier a piece is joined; what no pair makes comes last."""
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(merge_pairs(model)):
        scores.setdefault(left + right, -float(rank))
    return dict.fromkeys(model["vocab"], -float(len(model["merges"]))) | scores


def _kind(vocabulary: Vocabulary, i: int, unk: int) -> int:
    if i == unk:
        return Kind.UNKNOWN
    if i in vocabulary.specials:
        return Kind.CONTROL
    if i in vocabulary.unassigned:
        return Kind.UNUSED
    return Kind.BYTE if i in vocabulary.byte_ids else Kind.NORMAL


def _marks_the_start(tokenizer: PreTrainedTokenizerFast) -> bool:
    return tokenizer.tokenize("a")[0].startswith(MARK)


def compared(model: bytes, tokenizer: PreTrainedTokenizerFast) -> str:
    """In words: how SentencePiece, and llama.cpp with it, cuts text with this file where the tokenizer cuts it so."""
    pieces = [piece for piece in read_vocabulary(tokenizer).pieces if piece and piece[0] == MARK and piece.strip(MARK)]
    words = [piece.lstrip(MARK).replace(MARK, " ") for piece in pieces]
    ours = tokenizer([*words, " a"], add_special_tokens=False)["input_ids"]
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model).encode([*words, " a"])
    *alike, alike_in_front = (one == other for one, other in zip(ours, theirs, strict=True))  # type: ignore[arg-type]
    said = f"{FILE} cuts {sum(alike):,} of {len(words):,} words of the vocabulary as tokenizer.json does"
    return said if alike_in_front else f"{said}; before a text that begins with a space it puts one more"
