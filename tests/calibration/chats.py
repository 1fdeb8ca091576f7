"""Chat templates as the families write them, in their essentials, and pico tokenizers that carry them."""

import copy
from functools import cache
from pathlib import Path

from pico_models import pico_tokenizer
from pico_tokenizers import byte_level_bpe, sentencepiece_bpe
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import lep

# Trims, writes BOS itself, and, as shipped with LLaMa-3, opens the assistant's turn whether asked to or not.
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
# Knows no system; a space before each answer.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles') }}{% endif %}{% endfor %}"
)
# What the system says stands before the last thing the user says.
MISTRAL_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set s = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (s if loop.index0 >= turns | length - 2 else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
# ChatML with a system prompt of its own.
QWEN2 = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# ChatML that opens the last answer with an empty thought and cuts thoughts out of what is said.
QWEN3 = (
    "{% for m in messages %}{% set c = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ c + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# Trims, calls the assistant the model, refuses the system.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' "
    "+ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
FAMILIES = ("llama3", "mistral", "mistral_system", "qwen2", "qwen3", "gemma", "tiny")


@cache
def chat_tokenizer(family: str) -> PreTrainedTokenizerFast:
    if family == "tiny":
        return AutoTokenizer.from_pretrained(Path(lep.__file__).parent / "assets" / "tiny" / "instruct")
    if family.startswith("mistral"):
        return _with_template(sentencepiece_bpe(), MISTRAL if family == "mistral" else MISTRAL_SYSTEM)
    if family == "llama3":
        tokenizer = copy.deepcopy(byte_level_bpe())
        tokenizer.add_tokens(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], special_tokens=True)
        return _with_template(tokenizer, LLAMA3)
    if family == "gemma":
        return _with_template(pico_tokenizer(markers=("<start_of_turn>", "<end_of_turn>")), GEMMA)
    tokenizer = pico_tokenizer(markers=("<|im_start|>", "<|im_end|>"), family="qwen2")
    if family == "qwen3":
        tokenizer.add_tokens(["<think>", "</think>"])
    return _with_template(tokenizer, QWEN2 if family == "qwen2" else QWEN3)


def _with_template(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer
