"""The method's first steps on real weights, without training: what must not change, and what the mean is worth.

    python benchmarks/real_weights.py DIR... --russian ru.jsonl.gz --english en.jsonl.gz

Every DIR is a causal language model with a fast tokenizer. Four tables are made of its embeddings by the operator T:
- identity: the vocabulary into itself. The logits must be the same to the last bit.
- Extension: new Russian tokens behind the old. On English text the old tokens' logits must be the same to rounding.
- a new Russian Unigram vocabulary, its rows the mean of the old sub-tokens, or random: bits per byte of Russian books
  that the vocabulary was not trained on, an excerpt a book, compared book by book.
Texts are JSON lines with a `text`. No text is both trained on and measured.
"""

import argparse
import gzip
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lep.benchmark.bits_per_byte import bits_per_byte, characters_per_token
from lep.checkpoints import load_model, load_tokenizer
from lep.embeddings import Embeddings, embeddings_of, set_embeddings_
from lep.initialization.mean import mean
from lep.initialization.random import random
from lep.tokenizers.extension import extension
from lep.tokenizers.unigram import unigram
from lep.vocabulary import SubtokenOperator, subtoken_operator

TESTS = ("identity", "extension", "unigram")
CONTEXT = 1024  # characters of a window for bits per byte
Encoded = list[torch.Tensor]
Measured = tuple[float, float]  # value, standard error; 0 where there is none


def read_texts(path: Path) -> list[str]:
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as lines:
        return [json.loads(line)["text"] for line in lines]


def excerpts(texts: Sequence[str], characters: int) -> list[str]:
    """From the middle of each text, so that title pages and licences are no part of it; whole lines."""
    found = []
    for text in texts:
        start = text.find("\n", max(0, len(text) // 2 - characters // 2)) + 1
        found.append(text[start : start + characters].strip())
    return [text for text in found if len(text) > characters // 2]


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Encoded:
    return [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]


@torch.inference_mode()
def logits_of(model: PreTrainedModel, batches: Encoded) -> list[torch.Tensor]:
    return [model(input_ids=ids, use_cache=False).logits[0] for ids in batches]


def with_tables(model_dir: Path, tables: Embeddings, dtype: torch.dtype) -> PreTrainedModel:
    """The model with tables of another vocabulary, made from float32 ones in its own dtype first."""
    model = load_model(model_dir)
    set_embeddings_(model, tables)
    return model.to(dtype)


def initial(tables: Embeddings, operator: SubtokenOperator, rule=mean) -> Embeddings:
    return tables.map(lambda table: rule(table, operator, generator=torch.Generator().manual_seed(0))).in_memory()


def identity(
    model_dir: Path, tables: Embeddings, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> dict[str, Measured]:
    """How many logits differ in a single bit once every row has gone through T, in bfloat16 and in float32."""
    operator = subtoken_operator(tokenizer, tokenizer)
    rows = min(operator.weights.shape[0], tables.input.shape[0])
    found: dict[str, float] = {}
    batches = encode(tokenizer, texts)
    for dtype in (torch.bfloat16, torch.float32):
        before = logits_of(load_model(model_dir).to(dtype), batches)
        after = logits_of(with_tables(model_dir, initial(tables, operator), dtype), batches)
        differing = sum(int((a[:, :rows] != b[:, :rows]).sum()) for a, b in zip(before, after, strict=True))
        found[f"differing, {str(dtype).removeprefix('torch.')}"] = differing
    return plain(found | {"logits": sum(a.shape[0] * rows for a in before), "tokens": sum(b.numel() for b in batches)})


def extended(
    model_dir: Path,
    tables: Embeddings,
    tokenizer: PreTrainedTokenizerFast,
    learnt_from: Sequence[str],
    texts: Sequence[str],
    new_tokens: int,
) -> dict[str, Measured]:
    """The largest change of an old token's logit on text without new tokens, beside the rounding of bfloat16 itself."""
    longer = extension(tokenizer, learnt_from, new_tokens=new_tokens)
    operator = subtoken_operator(longer, tokenizer)
    old = operator.weights.shape[1]
    batches = encode(tokenizer, texts)
    assert all(torch.equal(a, b) for a, b in zip(batches, encode(longer, texts), strict=True)), "English came out new"
    found: dict[str, float] = {"new tokens": len(longer) - len(tokenizer), "tokens": sum(b.numel() for b in batches)}
    exact = logits_of(load_model(model_dir).float(), batches)
    for dtype in (torch.float32, torch.bfloat16):
        before = logits_of(load_model(model_dir).to(dtype), batches)
        after = logits_of(with_tables(model_dir, initial(tables, operator), dtype), batches)
        name = str(dtype).removeprefix("torch.")
        found[f"largest change, {name}"] = largest_difference(before, after, old)
        found[f"greedy token changed, {name}"] = sum(
            int((a[:, :old].argmax(1) != b[:, :old].argmax(1)).sum()) for a, b in zip(before, after, strict=True)
        )
    return plain(found | {"rounding of bfloat16 itself": largest_difference(exact, before, old)})


def plain(values: Mapping[str, float]) -> dict[str, Measured]:
    """Counts and extremes, which have no standard error."""
    return {name: (value, 0.0) for name, value in values.items()}


def largest_difference(before: list[torch.Tensor], after: list[torch.Tensor], rows: int) -> float:
    return max(
        float((a[:, :rows].float() - b[:, :rows].float()).abs().max()) for a, b in zip(before, after, strict=True)
    )


def replaced(
    model_dir: Path,
    tables: Embeddings,
    tokenizer: PreTrainedTokenizerFast,
    learnt_from: Sequence[str],
    texts: Sequence[str],
    vocab_size: int,
) -> dict[str, Measured]:
    """Bits per byte with its standard error over the texts: the original, a new Unigram by mean and at random."""
    started = time.monotonic()
    fresh = unigram(tokenizer, learnt_from, vocab_size=vocab_size)
    print(f"  Unigram of {len(fresh):,} tokens in {time.monotonic() - started:.0f} s", flush=True)
    operator = subtoken_operator(fresh, tokenizer)
    models = {
        "original": (tokenizer, lambda: load_model(model_dir, dtype=torch.float32)),
        "mean": (fresh, lambda: with_tables(model_dir, initial(tables, operator), torch.float32)),
        "random": (fresh, lambda: with_tables(model_dir, initial(tables, operator, random), torch.float32)),
    }
    bits = {}
    for name, (used, make) in models.items():
        model = make()
        bits[name] = np.array([bits_per_byte(model, used, [text], context=CONTEXT).score.value for text in texts])
        print(f"  {name}: {bits[name].mean():.3f} bits per byte", flush=True)
    found = {name: mean_and_stderr(values) for name, values in bits.items()}
    found["random - mean, paired"] = mean_and_stderr(bits["random"] - bits["mean"])
    found["characters a token, original"] = (characters_per_token(tokenizer, texts), 0.0)
    found["characters a token, Unigram"] = (characters_per_token(fresh, texts), 0.0)
    found["share of new rows kept from old ones"] = (float((operator.exact | operator.special).mean()), 0.0)
    return found


def mean_and_stderr(values: np.ndarray) -> Measured:
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--russian", type=Path, required=True, help="JSON lines of Russian books")
    parser.add_argument("--english", type=Path, required=True, help="JSON lines of English texts")
    parser.add_argument("--tests", nargs="+", choices=TESTS, default=TESTS, metavar="TEST", help=", ".join(TESTS))
    parser.add_argument("--held-out-every", type=int, default=3, help="every so many Russian books are measured on")
    parser.add_argument("--characters", type=int, default=1000, help="of an excerpt of a book")
    parser.add_argument("--english-texts", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=16000, help="of Extension")
    parser.add_argument("--vocab-size", type=int, default=32000, help="of the Unigram vocabulary")
    options = parser.parse_args()

    books = read_texts(options.russian)
    every = options.held_out_every
    learnt_from = [text for i, text in enumerate(books) if i % every]
    russian = excerpts(books[::every], options.characters)
    english = [t for t in excerpts(read_texts(options.english), 500) if t.isascii()][: options.english_texts]
    table = Table("model", "test", "value", "± s.e.", "n", title="Real weights, no training")

    def add(model_dir: Path, test: str, found: Mapping[str, Measured], n: int, unit: str) -> None:
        for name, (value, error) in found.items():
            shown = f"{error:.3f}" if error else ""
            print(f"  {test}: {name} {value:,.6g} {shown}", flush=True)
            table.add_row(model_dir.name, f"{test}: {name}", f"{value:,.6g}", shown, f"{n} {unit}")

    for model_dir in options.models:
        print(model_dir.name, flush=True)
        tokenizer = load_tokenizer(model_dir, key="DIR")
        tables = embeddings_of(load_model(model_dir))
        if "identity" in options.tests:
            add(model_dir, "identity", identity(model_dir, tables, tokenizer, english), len(english), "texts")
        if "extension" in options.tests:
            found = extended(model_dir, tables, tokenizer, learnt_from, english, options.new_tokens)
            add(model_dir, "Extension", found, len(english), "texts")
        if "unigram" in options.tests:
            found = replaced(model_dir, tables, tokenizer, learnt_from, russian, options.vocab_size)
            add(model_dir, "Unigram", found, len(russian), "books")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
