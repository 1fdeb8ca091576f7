import json
from pathlib import Path

import pytest
import torch
from pico_models import FAMILIES, pico_model
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from lep.embeddings import Embeddings, embeddings_of, find_tables, read_embeddings, set_embeddings_, untrained_rows

EVERY_FAMILY = [(family, tied) for family in FAMILIES for tied in (True, False)]


def assert_same(ours: Embeddings, theirs: Embeddings) -> None:
    assert ours.tied == theirs.tied
    assert_close(ours.input, theirs.input, rtol=0, atol=0)
    if ours.output is not None:
        assert_close(ours.output, theirs.output, rtol=0, atol=0)


def rewrite(directory: Path, **change) -> None:
    """Replaces config fields of a saved model."""
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | change))


@pytest.mark.parametrize(("family", "tied"), EVERY_FAMILY)
def test_tables_read_from_files_are_those_of_the_model(tmp_path, family, tied):
    model = pico_model(family, tied=tied).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    found = read_embeddings(tmp_path)
    assert found.tied is tied and found.input.dtype is torch.bfloat16
    assert_same(found, embeddings_of(model))


def test_tables_are_found_across_shards(tmp_path):
    model = pico_model("llama", tied=False)
    model.save_pretrained(tmp_path, max_shard_size="12KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    places = find_tables(tmp_path)
    assert places.output is not None and places.input[0] != places.output[0]
    assert_same(read_embeddings(tmp_path), embeddings_of(model))


def test_a_missing_shard_is_named(tmp_path):
    pico_model("llama", tied=False).save_pretrained(tmp_path, max_shard_size="12KB")
    find_tables(tmp_path).input[0].unlink()
    with pytest.raises(ValueError, match="not there"):
        read_embeddings(tmp_path)


def test_a_head_stored_though_tied_is_the_input(tmp_path):
    pico_model("llama", tied=True).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": table.clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    assert read_embeddings(tmp_path).tied
    save_file(tensors | {"lm_head.weight": table + 1}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="tie_word_embeddings is true, yet"):
        read_embeddings(tmp_path)


def test_an_untied_model_without_a_head_is_refused(tmp_path):
    pico_model("llama", tied=True).save_pretrained(tmp_path)
    rewrite(tmp_path, tie_word_embeddings=False)
    with pytest.raises(ValueError, match="no `lm_head.weight`"):
        read_embeddings(tmp_path)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_language_part_of_a_multimodal_checkpoint_is_found(tmp_path, prefix):
    table, other = torch.randn(7, 8), torch.randn(3, 8)
    names = {f"{prefix}embed_tokens.weight": table, "model.audio_tower.embed_tokens.weight": other}
    save_file(names, tmp_path / "model.safetensors")
    text = {"model_type": "gemma3_text", "vocab_size": 7, "hidden_size": 8}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"model_type": "siglip_vision_model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same(read_embeddings(tmp_path), Embeddings(table))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["transformer.wte.weight"], "no tensor is named"),
        (["a.embed_tokens.weight", "b.embed_tokens.weight"], "several tensors"),
        (["model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"], "has a bias"),
    ],
)
def test_tables_that_cannot_be_told_are_refused(tmp_path, names, message):
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        read_embeddings(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickled_weights_are_refused_with_the_remedy(tmp_path, name):
    (tmp_path / name).write_bytes(b"never opened")
    with pytest.raises(ValueError, match="save_pretrained"):
        read_embeddings(tmp_path)


def test_quantised_tables_are_refused():
    with pytest.raises(ValueError, match="quantised"):
        Embeddings(torch.zeros(3, 2, dtype=torch.int8))


@pytest.mark.parametrize("tied", [True, False])
def test_saved_tables_come_back_also_from_their_directory(tmp_path, tied):
    tables = Embeddings(torch.randn(5, 3).bfloat16(), None if tied else torch.randn(5, 3).bfloat16())
    tables.save(tmp_path / "embeddings.safetensors")
    assert_same(Embeddings.load(tmp_path / "embeddings.safetensors"), tables)
    assert_same(read_embeddings(tmp_path), tables)
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings.safetensors"]


@pytest.mark.parametrize(("family", "tied"), EVERY_FAMILY)
@pytest.mark.parametrize("rows", [23, 97])
def test_a_model_takes_tables_of_another_size_and_changes_nothing_else(tmp_path, family, tied, rows):
    model = pico_model(family, tied=tied)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tables = embeddings_of(pico_model(family, tied=tied, vocab_size=rows, seed=1))
    set_embeddings_(model, tables)
    assert model.config.get_text_config().vocab_size == rows
    assert_same(embeddings_of(model), tables)
    others = [name for name in before if "embed_tokens.weight" not in name and "lm_head" not in name]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in others)
    ids = torch.arange(rows)[None]
    logits = model(input_ids=ids, labels=ids).logits
    assert logits.shape[-1] == rows
    model.save_pretrained(tmp_path)
    assert_same(read_embeddings(tmp_path), tables)
    assert_close(AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=ids).logits, logits, rtol=0, atol=0)


def test_its_own_tables_put_back_leave_the_logits_as_they_were():
    for family, tied in EVERY_FAMILY:
        model, ids = pico_model(family, tied=tied), torch.arange(20)[None]
        before = model(input_ids=ids).logits
        set_embeddings_(model, embeddings_of(model))
        assert torch.equal(model(input_ids=ids).logits, before)


def test_ties_hold_through_training_and_every_row_gets_a_gradient():
    model = pico_model("gemma3_text", tied=True)  # its pad id, 0, would get none
    set_embeddings_(model, embeddings_of(model))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model = pico_model("gemma3_text", tied=False)
    set_embeddings_(model, embeddings_of(model))
    ids = torch.arange(60)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    assert (model.get_input_embeddings().weight.grad.norm(dim=1)[:59] > 0).all()


def test_dtype_and_gradient_flags_are_the_models_unless_asked():
    model = pico_model("llama", tied=False).to(torch.bfloat16).requires_grad_(False)
    set_embeddings_(model, Embeddings(torch.randn(9, 32), torch.randn(9, 32)))
    assert embeddings_of(model).input.dtype is torch.bfloat16
    assert not model.get_input_embeddings().weight.requires_grad
    set_embeddings_(model, Embeddings(torch.randn(9, 32), torch.randn(9, 32)), dtype=torch.float32)
    assert embeddings_of(model).output.dtype is torch.float32


def test_tables_of_a_model_are_a_copy_and_so_are_those_it_is_given():
    model = pico_model("llama", tied=True)
    snapshot, given = embeddings_of(model), Embeddings(torch.ones(60, 32))
    set_embeddings_(model, given)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    assert (given.input == 1).all() and snapshot.input.any()


def test_tables_that_do_not_fit_are_refused():
    model = pico_model("llama", tied=True)
    with pytest.raises(ValueError, match="tied, the given ones untied"):
        set_embeddings_(model, Embeddings(torch.zeros(9, 32), torch.zeros(9, 32)))
    with pytest.raises(ValueError, match="hidden size 16, the model 32"):
        set_embeddings_(model, Embeddings(torch.zeros(9, 16)))


def test_map_gives_each_table_its_own_function_and_keeps_ties():
    table = torch.ones(2, 2)
    assert Embeddings(table).map(lambda t: t + 1, lambda t: t - 1).tied
    both = Embeddings(table, table).map(lambda t: t + 1, lambda t: t - 1)
    assert both.output is not None and (both.input == 2).all() and (both.output == 0).all()


def test_untrained_rows_are_those_near_zero_and_the_short_ones_of_one_length():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.empty(500, 1).uniform_(0.7, 1.6, generator=generator)
    table = torch.randn(500, 4096, generator=generator) * lengths
    assert not untrained_rows(table).any()
    table[10:20] = 1e-5 * torch.randn(10, 4096, generator=generator)
    table[30] = 0
    table[40:60] = 0.2 * torch.randn(20, 4096, generator=generator)
    expected = torch.zeros(500, dtype=torch.bool)
    expected[[*range(10, 20), 30, *range(40, 60)]] = True
    assert torch.equal(untrained_rows(table), expected)
    assert torch.equal(untrained_rows(table.bfloat16()), expected)
