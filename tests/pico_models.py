"""Pico models and tokenizers built in code: five architectures, hidden size 32, two layers, tied or not."""

import numpy as np
import torch
from scipy.sparse import csr_array
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lep.vocabulary import SubtokenOperator

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
EXTRAS = {"qwen3": {"head_dim": 16}, "gemma3_text": {"head_dim": 16, "sliding_window": 16}}
TEXT = (
    "the cat sat on the mat and the dog sat on the log",
    "Мария купила красную книгу вечером на рынке",
    "потом она пошла в парк и там читала книгу",
)
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def pico_model(family: str, *, tied: bool, vocab_size: int = 60, seed: int = 0, **config: object) -> PreTrainedModel:
    """A model of one architecture with random weights, ids of the special tokens being 0, 1 and 2 (pad, bos, eos)."""
    torch.manual_seed(seed)
    fields = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,
    }
    made = CONFIG_MAPPING[family](**(fields | EXTRAS.get(family, {}) | config))
    return AutoModelForCausalLM.from_config(made).eval()


def pico_tokenizer(
    vocab_size: int = 300,
    *,
    markers: tuple[str, ...] = ("<|user|>", "<|assistant|>", "<|end|>"),
    text: tuple[str, ...] = TEXT,
    family: str = "",
) -> PreTrainedTokenizerFast:
    """A byte-level BPE; `markers` are special tokens, appended to the ordinary ones; a chat template if it has them.

    That of `qwen2` is made in the one way in which transformers reads every tokenizer of Qwen2.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pad = "<|endoftext|>" if family == "qwen2" else "<pad>"
    if family == "qwen2":
        split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.normalizer, backend.pre_tokenizer = normalizers.NFC(), pre_tokenizers.Sequence([split, level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[pad, "<s>", "</s>"],
        show_progress=False,
    )
    backend.train_from_iterator(text, trainer)
    backend.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in markers])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token=pad,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE if "<|end|>" in markers else None
    return tokenizer


def random_operator(
    new: int, old: int, *, shared: int | None = None, specials: int = 0, seed: int = 0
) -> SubtokenOperator:
    """T with `specials` special ids first in both vocabularies, then shared tokens of equal id, then composed ones."""
    rng = np.random.default_rng(seed)
    same = min(new, old) if shared is None else shared
    rows = [[i] for i in range(same)] + [rng.integers(specials, old, rng.integers(2, 5)) for _ in range(new - same)]
    lengths = np.array([len(row) for row in rows])
    weights = csr_array(
        (
            np.repeat(1 / lengths, lengths).astype(np.float32),
            (np.repeat(np.arange(new), lengths), np.concatenate(rows)),
        ),
        shape=(new, old),
    )
    weights.sum_duplicates()
    ids = np.arange(new)
    return SubtokenOperator(weights, exact=(ids >= specials) & (ids < same), special=ids < specials)


def identity_operator(size: int, *, specials: int = 0) -> SubtokenOperator:
    """T between a vocabulary and itself."""
    return random_operator(size, size, specials=specials)
