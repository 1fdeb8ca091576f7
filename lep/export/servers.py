"""What vLLM and llama.cpp need of a model directory, and the remedy where it lacks something.

In: the tokenizer and the number of rows. Out: a verdict a server. Nothing here is refused: a model that one server
cannot read may be meant for another.
"""

from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from lep.chat import end_of_turn
from lep.export.sentencepiece_file import FILE, compared
from lep.vocabulary import alphabet_of, components, tokenizer_json

# llama.cpp has the pre-tokenizers built in, by name. What each of these families splits text by: its regular
# expressions, whether it takes digits one by one, and whether a word that is a token needs no merges (`ignore_merges`).
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = "(byte-level)"  # the expression that ByteLevel applies by itself
KNOWN = {
    ((CONTRACTIONS + WORDS + r"\p{N}{1,3}" + REST,), True): "llama-bpe",
    ((CONTRACTIONS + WORDS + r"\p{N}{1,3}" + REST,), False): "smaug-bpe",
    ((CONTRACTIONS + WORDS + r"\p{N}" + REST,), False): "qwen2",
    ((r"\p{N}|" + WORDS.removesuffix("|") + REST,), False): "ufakzeka",
    (("(digits)", GPT2), False): "smollm",
    ((GPT2,), False): "gpt-2",
}
# It stops at the model's eos and at these. It does not read the list of generation_config.json.
STOPS = {*"</s> <|end|> <|end_of_text|> <|endoftext|> <|eom_id|> <|eot_id|> <|im_end|> <end_of_turn>".split()}
CONVERT = (
    "python -c 'import convert_hf_to_gguf as c; from conversion.base import TextModel as T; "
    'T.get_vocab_base_pre = lambda *_: "{name}"; c.main()\' DIR'
)


@dataclass(frozen=True)
class Verdict:
    """Whether a server takes the model as it is, what was found, and what to do where not."""

    ready: bool
    found: str
    remedy: str = ""


def served_by(
    tokenizer: PreTrainedTokenizerFast, *, sentencepiece: bytes | None, rows: int, tokens: int, tied: bool
) -> dict[str, dict[str, Any]]:
    """The verdicts on vLLM and llama.cpp as plain values; `sentencepiece` is the tokenizer.model beside it."""
    llama_cpp = _llama_cpp(tokenizer, sentencepiece, rows, tokens)
    return {"vllm": asdict(_vllm(rows, tokens, tied)), "llama.cpp": asdict(llama_cpp)}


def pre_tokenizer_class(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """llama.cpp's name for how a byte-level tokenizer splits text; None where it is no family known here."""
    spec, parts = tokenizer_json(tokenizer), []
    for step in components(spec["pre_tokenizer"]):
        if step["type"] == "Split":
            parts.append(next(iter(step["pattern"].values())))
        elif step["type"] == "Digits" and step["individual_digits"]:
            parts.append("(digits)")
        elif step["type"] == "ByteLevel" and step["use_regex"]:
            parts.append(GPT2)
    return KNOWN.get((tuple(parts), bool(spec["model"].get("ignore_merges"))))


def _vllm(rows: int, tokens: int, tied: bool) -> Verdict:
    return Verdict(True, f"{rows} rows = vocab_size, ids below {tokens}, {'tied' if tied else 'untied'} tables")


def _llama_cpp(tokenizer: PreTrainedTokenizerFast, sentencepiece: bytes | None, rows: int, tokens: int) -> Verdict:
    spec = tokenizer_json(tokenizer)
    kind, alphabet = spec["model"]["type"], alphabet_of(spec)
    if kind == "Unigram":
        return Verdict(
            False,
            f"a Unigram vocabulary in {'byte glyphs' if alphabet == 'byte_level' else 'metaspaces'}",
            "convert_hf_to_gguf.py has no way for it, and llama.cpp's own Unigram spells nothing in bytes. Where a "
            "GGUF file is wanted, train with tokenizer=bpe.",
        )
    stop = _stop(tokenizer)
    if alphabet == "byte_level":
        name = pre_tokenizer_class(tokenizer)
        found = "a byte-level BPE that splits text like " + (name or "none of " + ", ".join(KNOWN.values()))
        return Verdict(False, f"{found}; {rows} rows for ids below {tokens}", _named(name) + stop)
    if sentencepiece is None:
        return Verdict(
            False,
            f"a metaspace BPE without an unknown token, which {FILE} must have",
            "Give the original tokenizer an unk_token, or serve with vLLM.",
        )
    return Verdict(not stop, f"a metaspace BPE; {compared(sentencepiece, tokenizer)}", stop.strip())


def _named(name: str | None) -> str:
    remedy = (
        "The vocabulary is new, so convert_hf_to_gguf.py does not know its check sum, or takes it for another's. Run "
        f"it in its folder as `{CONVERT.format(name=name or 'NAME')}`."
    )
    if name is None:
        remedy += " NAME is the family of the original model in get_vocab_base_pre of conversion/base.py."
    return remedy


def _stop(tokenizer: PreTrainedTokenizerFast) -> str:
    """What to tell llama.cpp where a turn ends with a token that it would not stop at."""
    end = end_of_turn(tokenizer)
    if end is None or end == tokenizer.eos_token_id or tokenizer.convert_ids_to_tokens(end) in STOPS:
        return ""
    return f" It does not stop where a turn ends: give it --override-kv tokenizer.ggml.eot_token_id=int:{end}."
