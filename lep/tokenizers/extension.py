"""Extension: the old vocabulary whole, with new merges of the target script behind its own (paper, section 3)."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerFast

from lep.tokenizers.family import assemble, bpe_model, family_of, require_bpe, warn_if_short
from lep.tokenizers.merges import continue_merges
from lep.tokenizers.words import count_words, of_scripts
from lep.vocabulary import merge_pairs


def extension(
    base: PreTrainedTokenizerFast, texts: Iterable[str], *, new_tokens: int, scripts: Sequence[str] = ("Cyrillic",)
) -> PreTrainedTokenizerFast:
    """The base's vocabulary with `new_tokens` more, learnt as a continuation of its merges.

    Every old token keeps its id, new ids follow the highest old one, and a text without words of the target scripts is
    segmented as before: new merges join only pieces that spell letters of those scripts (exact for scripts that own
    their UTF-8 lead bytes, as Cyrillic, Greek, Armenian, Hebrew and Arabic do).
    """
    family = family_of(base)
    require_bpe(family, "extension")
    if new_tokens < 1:
        raise ValueError(f"tokenizer.new_tokens={new_tokens} adds nothing. Give 1 or more, or use tokenizer=original.")
    words = of_scripts(family, count_words(family, texts), tuple(scripts))
    old = family.spec["model"]
    pieces, merges = continue_merges(old, words, new_tokens=new_tokens)
    added_ids = {token["content"]: token["id"] for token in family.added}
    # The added tokens stand in the model too: the library numbers those it does not find there by the vocabulary's
    # size, which falls among the new ids.
    vocab = old["vocab"] | added_ids
    first = max(vocab.values()) + 1
    vocab |= {piece: first + i for i, piece in enumerate(pieces)}
    model = bpe_model(family, vocab, merge_pairs(old) + merges)
    warn_if_short("tokenizer.new_tokens", new_tokens, len(pieces))
    return assemble(family, model, added_ids)
