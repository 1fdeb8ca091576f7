"""Pico models and tokenizers, built in code: a byte-level BPE and a Unigram with a metaspace over the same text."""

import random
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "Мария купила красную книгу вечером на рынке потом она пошла в парк Tom bought apples and went home".split()
SPECIALS = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def _sentences(count: int, *, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 20))) + "." for _ in range(count)]


@pytest.fixture(scope="session")
def sentences() -> Callable[..., list[str]]:
    return _sentences


def _fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def bpe() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=alphabet, special_tokens=SPECIALS, show_progress=False
    )
    backend.train_from_iterator(_sentences(60), trainer)
    return _fast(backend)


@pytest.fixture(scope="session")
def unigram() -> PreTrainedTokenizerFast:
    pieces = [(token, 0.0) for token in [*SPECIALS, "<unk>"]] + [("▁", -4.0)]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [("▁" + word, -5.0) for word in dict.fromkeys(WORDS)] + [(word, -6.0) for word in dict.fromkeys(WORDS)]
    backend = Tokenizer(models.Unigram(list(dict(pieces).items()), unk_id=len(SPECIALS), byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=True)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(SPECIALS)
    return _fast(backend)


def _pico_model(rows: int, *, seed: int = 0) -> LlamaForCausalLM:
    """An untrained model whose answers vary: large weights, so that logits are far apart."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def pico_model() -> Callable[..., LlamaForCausalLM]:
    return _pico_model


@pytest.fixture(scope="session")
def model(bpe: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Fits the byte-level tokenizer; its last 9 output rows are no token."""
    return _pico_model(len(bpe) + 9)
