"""The base's own vocabulary, unchanged: the reference row of every comparison."""

from transformers import PreTrainedTokenizerFast


def original(base: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The base's tokenizer as it is."""
    return base
