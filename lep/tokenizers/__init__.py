"""The tokenizer variants of the method: original, bpe, unigram, extension, optimization.

In: the base's fast tokenizer and a re-iterable stream of texts. Out: a fast tokenizer of the same family (alphabet,
pre-tokenizer, special tokens, post-processor, chat template) with another vocabulary. Texts stream; only the counts of
their distinct words are held. Families that mark spaces with U+2581 cannot keep a literal U+2581, nor the one leading
space that their own pre-tokenizer drops; byte-level families keep every text that their normalizer keeps.
"""

from lep.tokenizers.bpe import bpe
from lep.tokenizers.extension import extension
from lep.tokenizers.optimization import optimization
from lep.tokenizers.original import original
from lep.tokenizers.unigram import unigram

__all__ = ["bpe", "extension", "optimization", "original", "unigram"]
