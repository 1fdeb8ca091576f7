"""The first steps on real models, where LEP_TEST_MODELS names a folder with one directory a model."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lep.chat import result_tokenizer
from lep.checkpoints import load_model, load_tokenizer
from lep.embeddings import embeddings_of, read_embeddings, set_embeddings_
from lep.export import export_model
from lep.initialization.mean import mean
from lep.shards import in_memory
from lep.tokenizers import extension
from lep.vocabulary import subtoken_operator

FOLDER = os.environ.get("LEP_TEST_MODELS")
MODELS = sorted(path.parent for path in Path(FOLDER).glob("*/config.json")) if FOLDER else []
ENGLISH = "The committee met on Tuesday to discuss the budget, and nobody objected."
RUSSIAN = ["Мария купила красную книгу, потом она пошла в парк и читала её до вечера."] * 4

pytestmark = [
    pytest.mark.skipif(not MODELS, reason="LEP_TEST_MODELS names no folder of models"),
    pytest.mark.parametrize("model_dir", MODELS, ids=lambda path: path.name),
]


@torch.inference_mode()
def logits(model, tokenizer, text: str = ENGLISH) -> torch.Tensor:
    return model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"], use_cache=False).logits[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_vocabulary_into_itself_gives_the_same_logits_bit_for_bit(model_dir: Path, dtype: torch.dtype):
    tokenizer = load_tokenizer(model_dir, key="model")
    operator = subtoken_operator(tokenizer, tokenizer)
    rows, tables = len(operator.exact), read_embeddings(model_dir).in_memory()
    assert np.array_equal(operator.weights.indices, np.arange(rows)) and (operator.weights.data == 1).all()
    model = load_model(model_dir).to(dtype)
    before = logits(model, tokenizer)
    set_embeddings_(model, tables.map(lambda table: mean(table, operator)).in_memory())
    assert torch.equal(logits(model, tokenizer), before[:, :rows])


def test_extension_without_training_leaves_english_as_it_is(model_dir: Path):
    tokenizer = load_tokenizer(model_dir, key="model")
    longer = extension(tokenizer, RUSSIAN, new_tokens=4)
    operator = subtoken_operator(longer, tokenizer)
    assert longer(ENGLISH)["input_ids"] == tokenizer(ENGLISH)["input_ids"]
    assert len(longer(RUSSIAN[0])["input_ids"]) < len(tokenizer(RUSSIAN[0])["input_ids"])
    model = load_model(model_dir)
    before = logits(model, tokenizer)
    tables = embeddings_of(model).map(lambda table: mean(table, operator)).in_memory()
    set_embeddings_(model, tables)
    after = logits(model, longer)[:, : before.shape[1]]
    # One unit in the last place of the largest logit: the product may be split otherwise over more rows.
    assert (after.float() - before.float()).abs().max() <= 2.0**-7 * before.float().abs().max()
    assert torch.equal(after.argmax(1), before.argmax(1))


def test_a_real_model_with_an_extended_vocabulary_is_exported_and_checked(model_dir: Path, tmp_path: Path):
    tokenizer = load_tokenizer(model_dir, key="model")
    longer = extension(tokenizer, RUSSIAN, new_tokens=4)
    operator = subtoken_operator(longer, tokenizer)
    chatting, _ = result_tokenizer(longer, tokenizer)
    model = load_model(model_dir)
    tables = embeddings_of(model).map(lambda table: in_memory(mean(table, operator)).to(table.dtype))
    set_embeddings_(model, tables)
    report = export_model(model_dir, tables, chatting, tmp_path / "out", recipe={}, reference=model)
    assert report["rows"] % 64 == 0 and report["servers"]["vllm"]["ready"]
    assert report["checks"]["decoding"].startswith("3 answers of 8 tokens")
    if tokenizer.chat_template:
        assert report["checks"]["end of turn"].startswith("generation stops at ")
