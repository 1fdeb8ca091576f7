"""Unigram: a new Unigram vocabulary in place of the old one, closer to Russian morphology (paper, section 3).

SentencePiece takes its candidates from a suffix array over the distinct words, so a frequent word that is part of no
other word is no repeated substring and never a candidate: the commonest words are lost and the vocabulary comes out
too small. Here the candidates are substrings weighed by how often their words come, and SentencePiece starts there.
"""

import io
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizerFast

from lep.tokenizers.candidates import MAX_PIECE, candidates
from lep.tokenizers.family import Family, assemble, family_of, require_room, warn_if_short
from lep.tokenizers.report import unreachable_tokens
from lep.tokenizers.words import as_piece, as_text, count_words, covering, token_use
from lep.vocabulary import MARK, read_vocabulary

Scored = dict[str, float]  # piece as text -> log-probability
SEEDS_PER_PIECE = 4  # more candidates are slower to prune, and the text they leave is no shorter
MAX_WORDS = 2_000_000  # the most frequent distinct words train the vocabulary; the rest would only add hapaxes
UNKNOWN_PENALTY = 10.0  # below the least likely piece; SentencePiece's constant
PRINTABLE_ASCII = [chr(code) for code in range(0x21, 0x7F)]
# SentencePiece reads one word a line and drops pieces of several spaces: white space, and its own mark for it, train as
# private characters.
DISGUISE = {" ": "\ue000", "\n": "\ue001", "\t": "\ue002", "\r": "\ue003", MARK: "\ue004"}
TO_DISGUISE = str.maketrans(DISGUISE)
FROM_DISGUISE = str.maketrans({disguise: character for character, disguise in DISGUISE.items()})


def unigram(
    base: PreTrainedTokenizerFast, texts: Iterable[str], *, vocab_size: int, facts: dict[str, Any] | None = None
) -> PreTrainedTokenizerFast:
    """A Unigram vocabulary trained on the counted words of the base's pre-tokenizer, with the base's specials.

    `vocab_size` counts every id. Pieces never cut a letter; letters too rare for a piece are spelt in bytes, which are
    all there, so nothing is unknown. Byte-level bases get the pieces in byte glyphs and keep their pre-tokenizer.
    facts: filled with counts for the report.
    """
    family = family_of(base)
    require_room(family, "tokenizer.vocab_size", vocab_size)
    if family.alphabet == "metaspace" and not family.added:
        raise ValueError("tokenizer=unigram: the base has no special token, and a Unigram model needs an unknown one.")
    words = _as_texts(family, count_words(family, texts))
    size = vocab_size - family.num_reserved
    # Some pieces come out less likely than their parts and would never be used: train a few more and drop those.
    scored = train_pieces(words, size + size // 16 + 64)
    trial = _build(family, scored)
    names = read_vocabulary(trial).pieces
    dead = {names[i] for i in unreachable_tokens(trial)}
    alive = {piece: score for piece, score in scored.items() if as_piece(family, piece) not in dead}
    tokenizer = _build(family, _likeliest(family, alive, vocab_size))
    if facts is not None:
        facts |= {"trained_pieces": len(scored), "never_used_pieces": len(dead)}
    warn_if_short("tokenizer.vocab_size", vocab_size, len(tokenizer))
    return tokenizer


def piece_counts(family: Family, words: Counter[str], size: int) -> Counter[str]:
    """How often each piece of a Unigram vocabulary of that size comes in the words it is trained on.

    Raw bytes, which spell the rare letters, are no pieces of its own and are not counted.
    """
    tokenizer = _build(family, train_pieces(_as_texts(family, words), size))
    names, raw = read_vocabulary(tokenizer).pieces, {*family.byte_pieces}
    counts = token_use(tokenizer, words)
    return Counter({piece: count for i, count in counts.items() if (piece := names[i]) and piece not in raw})


def _as_texts(family: Family, words: Counter[str]) -> Counter[str]:
    texts: Counter[str] = Counter()
    for word, count in words.most_common(MAX_WORDS):
        texts[as_text(family, word)] += count
    return texts


def train_pieces(words: Mapping[str, int], size: int) -> Scored:
    """At most `size` pieces of the counted words with their log-probabilities, single letters among them."""
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    covered = frozenset(covering(letters))
    disguised = {w.translate(TO_DISGUISE): count for w, count in words.items() if covered.issuperset(w)}
    if not disguised:
        raise ValueError("corpus: no text to train a vocabulary on. Check corpus.paths.")
    seeds = candidates(disguised, number=SEEDS_PER_PIECE * size)
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seeds.tsv"
        path.write_text("".join(f"{seed}\t{weight}\n" for seed, weight in seeds), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(f"{word}\t{count}" for word, count in disguised.items()),
            model_writer=model,
            model_type="unigram",
            vocab_size=max(size, len(covered)) + 1,  # and its unknown piece
            hard_vocab_limit=False,
            input_format="tsv",
            seed_sentencepieces_file=str(path),
            max_sentencepiece_length=MAX_PIECE,
            character_coverage=1.0,  # rare letters are out already
            split_by_whitespace=False,
            split_by_unicode_script=False,
            split_by_number=False,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=os.cpu_count() or 1,
            minloglevel=2,
        )
    return _pieces_of(model.getvalue())


def _pieces_of(proto: bytes) -> Scored:
    trained = sentencepiece.SentencePieceProcessor(model_proto=proto)
    ids = [i for i in range(len(trained)) if not trained.is_unknown(i)]
    return {trained.id_to_piece(i).translate(FROM_DISGUISE): trained.get_score(i) for i in ids}


def _likeliest(family: Family, scored: Scored, vocab_size: int) -> Scored:
    """The pieces that fit into `vocab_size`: single letters first, since longer pieces fall back on them."""
    extra = 0 if family.alphabet == "byte_level" else sum(c not in scored for c in PRINTABLE_ASCII)
    order = sorted(scored, key=lambda piece: (len(piece) > 1, -scored[piece], piece))
    fitting = family.number_fitting([as_piece(family, piece) for piece in order], vocab_size - extra)
    return {piece: scored[piece] for piece in order[:fitting]}


def _build(family: Family, scored: Scored) -> PreTrainedTokenizerFast:
    """The tokenizer of scored pieces, with all 256 bytes below the least likely of them."""
    least = min(scored.values())
    pieces = {as_piece(family, piece): score for piece, score in scored.items()}
    if family.alphabet == "byte_level":
        raw = least - UNKNOWN_PENALTY
    else:
        # The library also finds `<0x0A>` where a text spells it out; six signs must be likelier than that byte.
        raw = 8 * least - UNKNOWN_PENALTY
        pieces |= {sign: least for sign in PRINTABLE_ASCII if sign not in pieces}
    byte_scores = {piece: pieces.pop(piece, raw) for piece in family.byte_pieces}
    scores = byte_scores | dict(sorted(pieces.items(), key=lambda entry: -entry[1]))
    vocab, added_ids = family.place(list(scores))
    return assemble(family, _unigram_model(family, vocab, scores), added_ids)


def _unigram_model(family: Family, vocab: dict[str, int], scores: dict[str, float]) -> dict[str, Any]:
    """The model part of a Unigram tokenizer.json; added tokens inside the model score 0, as SentencePiece has them."""
    in_order = sorted(vocab, key=vocab.__getitem__)
    unknown = None
    if family.alphabet == "metaspace":
        unknown = vocab[str(family.base.unk_token or family.added[0]["content"])]
    return {
        "type": "Unigram",
        "unk_id": unknown,
        "vocab": [[piece, scores.get(piece, 0.0)] for piece in in_order],
        "byte_fallback": family.alphabet == "metaspace",
    }
