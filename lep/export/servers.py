"""What vLLM and llama.cpp need of a model directory, and the remedy where it lacks something.

In: the tokenizer and the number of rows. Out: a verdict a server. Nothing here is refused: a model that one server
cannot read may be meant for another.
"""

from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from lep.vocabulary import alphabet_of, components, tokenizer_json

# llama.cpp has the pre-tokenizers built in, by name. What each of these families splits text by: its regular
# expressions, and whether it takes digits one by one.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = "(byte-level)"  # the expression that ByteLevel applies by itself
KNOWN = {
    (CONTRACTIONS + r"\p{N}{1,3}" + REST,): "llama-bpe",
    (CONTRACTIONS + r"\p{N}" + REST,): "qwen2",
    ("(digits)", GPT2): "smollm",
    (GPT2,): "gpt-2",
}


@dataclass(frozen=True)
class Verdict:
    """Whether a server takes the model as it is, what was found, and what to do where not."""

    ready: bool
    found: str
    remedy: str = ""


def served_by(tokenizer: PreTrainedTokenizerFast, *, rows: int, tokens: int, tied: bool) -> dict[str, dict[str, Any]]:
    """The verdicts on vLLM and llama.cpp as plain values."""
    return {"vllm": asdict(_vllm(rows, tokens, tied)), "llama.cpp": asdict(_llama_cpp(tokenizer, rows, tokens))}


def pre_tokenizer_class(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """llama.cpp's name for how a byte-level tokenizer splits text; None where it is no family known here."""
    parts = []
    for step in components(tokenizer_json(tokenizer)["pre_tokenizer"]):
        if step["type"] == "Split":
            parts.append(next(iter(step["pattern"].values())))
        elif step["type"] == "Digits" and step["individual_digits"]:
            parts.append("(digits)")
        elif step["type"] == "ByteLevel" and step["use_regex"]:
            parts.append(GPT2)
    return KNOWN.get(tuple(parts))


def _vllm(rows: int, tokens: int, tied: bool) -> Verdict:
    degrees = [degree for degree in (2, 4, 8, 16, 32, 64) if rows % degree == 0]
    found = f"{rows} rows = vocab_size, ids below {tokens}, {'tied' if tied else 'untied'} tables"
    if not degrees:
        return Verdict(
            False, f"{found}; {rows} is odd", "For several devices set export_pad_to=64, or the degree of parallelism."
        )
    return Verdict(True, f"{found}; divides among up to {degrees[-1]} devices")


def _llama_cpp(tokenizer: PreTrainedTokenizerFast, rows: int, tokens: int) -> Verdict:
    spec = tokenizer_json(tokenizer)
    kind, alphabet = spec["model"]["type"], alphabet_of(spec)
    if kind == "Unigram":
        return Verdict(
            False,
            f"a Unigram vocabulary in {'byte glyphs' if alphabet == 'byte_level' else 'metaspaces'}",
            "llama.cpp knows no such vocabulary for this architecture. Where a GGUF file is wanted, train with "
            "tokenizer=bpe, extension or optimization.",
        )
    if alphabet == "metaspace":
        return Verdict(
            False,
            "a metaspace BPE without tokenizer.model",
            "Where convert_hf_to_gguf.py takes it (Llama, Mistral), it gives all pieces one score, so that llama.cpp "
            "merges in another order. Compare `llama-tokenize` with tokenizer.json before use, and serve with vLLM "
            "where they differ.",
        )
    name = pre_tokenizer_class(tokenizer)
    if name is None:
        return Verdict(
            False,
            "a byte-level BPE whose pre-tokenizer is none of " + ", ".join(KNOWN.values()),
            "Find the pre-tokenizer of the original model's family in get_vocab_base_pre of convert_hf_to_gguf.py. The "
            "vocabulary is new, so its check sum is unknown there: add the `chkhsh` that the converter prints, with "
            "the family's name as `res`.",
        )
    return Verdict(
        False,
        f"a byte-level BPE that splits text like {name}; {rows} rows for ids below {tokens}",
        "The vocabulary is new, so convert_hf_to_gguf.py does not recognise its check sum: run it once, and add to "
        f'get_vocab_base_pre what it prints: if chkhsh == "...": res = "{name}". Nothing else needs a change.',
    )
