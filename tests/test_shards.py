"""Tables in files: read by row, written by block, and everything else as it was, byte for byte."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_models import FAMILIES, pico_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from lep.embeddings import (
    Embeddings,
    embeddings_of,
    open_embeddings,
    read_embeddings,
    set_embeddings_,
    write_tables,
    written_bytes,
)
from lep.shards import INDEX_FILE, SINGLE_FILE, ComputedTable, StoredTable, in_memory, read_header

ROWS, OTHER_ROWS = 60, 91


def checkpoint(directory: Path, *, tied: bool, family: str = "llama", shards: bool = False) -> None:
    model = pico_model(family, tied=tied, vocab_size=ROWS).to(torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="7KB" if shards else "1GB")


def new_tables(tied: bool, *, rows: int = OTHER_ROWS) -> Embeddings:
    return embeddings_of(pico_model("llama", tied=tied, vocab_size=rows, seed=1)).map(torch.Tensor.bfloat16)


def write(source: Path, tables: Embeddings, out: Path, **options) -> dict[str, torch.Tensor]:
    """All tensors of what was written."""
    out.mkdir()
    write_tables(source, out, tables, **options)
    return {name: tensor for path in out.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", [True, False])
@pytest.mark.parametrize("rows", [23, ROWS, 97])  # fewer, as many, more
def test_what_is_written_is_the_model_with_these_tables(tmp_path, family, tied, shards, rows):
    """Raw weights, also where the model scales its embeddings (Gemma): the same as putting them into the model."""
    checkpoint(tmp_path / "source", tied=tied, family=family, shards=shards)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.bfloat16)
    tables = new_tables(tied, rows=rows)
    write(tmp_path / "source", tables, tmp_path / "out")
    config = json.loads((tmp_path / "source/config.json").read_text())
    (tmp_path / "out/config.json").write_text(json.dumps(config | {"vocab_size": rows}))
    set_embeddings_(model, tables)
    ids = torch.arange(rows)[None]
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert_close(written(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=0)
    assert written.get_output_embeddings().weight.shape[0] == rows


@pytest.mark.parametrize("tied", [True, False])
def test_files_without_a_table_are_the_same_files_and_the_index_is_true(tmp_path, tied):
    checkpoint(tmp_path / "source", tied=tied, shards=True)
    write(tmp_path / "source", new_tables(tied), tmp_path / "out")
    index = json.loads((tmp_path / "out" / INDEX_FILE).read_text())
    before = json.loads((tmp_path / "source" / INDEX_FILE).read_text())
    assert index["weight_map"] == before["weight_map"]
    held = {name for name in before["weight_map"] if "embed_tokens" in name or "lm_head" in name}
    linked = {*before["weight_map"].values()} - {before["weight_map"][name] for name in held}
    assert linked
    for name in sorted({*before["weight_map"].values()}):
        assert (tmp_path / "out" / name).samefile(tmp_path / "source" / name) is (name in linked)
    tensors = [t for path in (tmp_path / "out").glob("*.safetensors") for t in load_file(path).values()]
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors)
    assert index["metadata"]["total_parameters"] == sum(t.numel() for t in tensors)


def test_other_tensors_are_copied_byte_for_byte_whatever_their_dtype(tmp_path):
    """Also those that no torch tensor is made of here: quantised, empty, of a dtype we do not know."""
    checkpoint(tmp_path / "source", tied=True)
    path = tmp_path / "source" / SINGLE_FILE
    others = {"a": torch.randint(0, 255, (7,), dtype=torch.uint8), "z": torch.ones(3).to(torch.float8_e4m3fn)}
    others |= {"b": torch.empty(0, 4), "m": torch.tensor(3.5, dtype=torch.float64)}
    save_file(load_file(path) | others, path, {"format": "pt", "who": "ü"})
    tables = new_tables(True)
    written = write(tmp_path / "source", tables, tmp_path / "out", links=False)
    before, after = read_header(path), read_header(tmp_path / "out" / SINGLE_FILE)
    assert after[1] == before[1] and list(after[0]) == list(before[0])
    for name, entry in before[0].items():
        if "embed_tokens" not in name:
            ours = after[0][name]
            assert (ours.dtype, ours.shape) == (entry.dtype, entry.shape)
            old, new = path.read_bytes(), (tmp_path / "out" / SINGLE_FILE).read_bytes()
            assert new[ours.start :][: ours.nbytes] == old[entry.start :][: entry.nbytes]
    assert torch.equal(written["model.embed_tokens.weight"], tables.input)


@pytest.mark.parametrize("shards", [True, False])
def test_a_head_stored_though_tied_is_left_out(tmp_path, shards):
    checkpoint(tmp_path / "source", tied=True, shards=shards)
    table = read_embeddings(tmp_path / "source").input
    head = {"lm_head.weight": table.clone()}
    if shards:  # in a file of its own, which then has nothing to hold
        save_file(head, tmp_path / "source/head.safetensors", {"format": "pt"})
        index = json.loads((tmp_path / "source" / INDEX_FILE).read_text())
        index["weight_map"]["lm_head.weight"] = "head.safetensors"
        (tmp_path / "source" / INDEX_FILE).write_text(json.dumps(index))
    else:
        path = tmp_path / "source" / SINGLE_FILE
        save_file(load_file(path) | head, path, {"format": "pt"})
    written = write(tmp_path / "source", new_tables(True), tmp_path / "out")
    assert "lm_head.weight" not in written and not (tmp_path / "out/head.safetensors").exists()
    (tmp_path / "out/config.json").write_bytes((tmp_path / "source/config.json").read_bytes())
    assert torch.equal(read_embeddings(tmp_path / "out").input, new_tables(True).input)


def test_tables_inside_a_multimodal_checkpoint_are_written_under_its_names(tmp_path):
    (tmp_path / "source").mkdir()
    prefix = "language_model.model."
    names = {f"{prefix}embed_tokens.weight": torch.randn(7, 8), "vision_tower.x": torch.randn(3, 5)}
    save_file(names, tmp_path / "source" / SINGLE_FILE)
    text = {"model_type": "gemma3_text", "vocab_size": 7, "hidden_size": 8}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"model_type": "siglip_vision_model"}}
    (tmp_path / "source/config.json").write_text(json.dumps(config))
    table = torch.randn(9, 8)
    written = write(tmp_path / "source", Embeddings(table), tmp_path / "out")
    assert torch.equal(written[f"{prefix}embed_tokens.weight"], table)
    assert torch.equal(written["vision_tower.x"], names["vision_tower.x"])


def test_tables_take_the_dtype_of_the_checkpoint_rounded_once(tmp_path):
    checkpoint(tmp_path / "source", tied=True)
    table = torch.randn(OTHER_ROWS, 32, dtype=torch.float64)
    computed = ComputedTable(table.shape, torch.float64, lambda rows: table[rows])
    written = write(tmp_path / "source", Embeddings(computed), tmp_path / "out")
    assert torch.equal(written["model.embed_tokens.weight"], table.bfloat16())


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (Embeddings(torch.zeros(9, 32)), "untied, the given ones tied"),
        (Embeddings(torch.zeros(9, 16), torch.zeros(9, 16)), "hidden size 16, the model 32"),
    ],
)
def test_tables_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, tables, message):
    checkpoint(tmp_path / "source", tied=False)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=message):
        write_tables(tmp_path / "source", tmp_path / "out", tables)
    assert not any((tmp_path / "out").iterdir())


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path):
    checkpoint(tmp_path / "source", tied=True)
    (tmp_path / "out").mkdir()
    huge = ComputedTable(torch.Size((10**12, 32)), torch.bfloat16, lambda rows: torch.zeros(0, 32))
    with pytest.raises(ValueError, match="bytes are to be written, but the disk has"):
        write_tables(tmp_path / "source", tmp_path / "out", Embeddings(huge))
    assert not any((tmp_path / "out").iterdir())


def test_a_kill_in_the_middle_leaves_no_file_under_its_name(tmp_path):
    checkpoint(tmp_path / "source", tied=True)

    def fail(rows: slice) -> torch.Tensor:
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        table = ComputedTable(torch.Size((OTHER_ROWS, 32)), torch.bfloat16, fail)
        write_tables(tmp_path / "source", tmp_path / "out", Embeddings(table))
    assert not (tmp_path / "out" / SINGLE_FILE).exists()


def test_every_byte_written_is_told(tmp_path):
    checkpoint(tmp_path / "source", tied=False)
    told = []
    written = write(tmp_path / "source", new_tables(False), tmp_path / "out", advance=told.append)
    assert sum(told) == sum(tensor.nbytes for tensor in written.values())


@pytest.mark.parametrize("tied", [True, False])
def test_every_byte_saved_is_told_and_known_before(tmp_path, tied):
    told, tables = [], new_tables(tied)
    tables.save(tmp_path / "tables.safetensors", advance=told.append)
    saved = load_file(tmp_path / "tables.safetensors")
    assert sum(told) == tables.nbytes == sum(tensor.nbytes for tensor in saved.values())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", [True, False])
def test_what_will_be_written_is_known_from_the_headers_alone(tmp_path, tied, shards):
    checkpoint(tmp_path / "source", tied=tied, shards=shards)
    told = []
    write(tmp_path / "source", new_tables(tied), tmp_path / "out", advance=told.append)
    assert written_bytes(tmp_path / "source", OTHER_ROWS) == sum(told)


@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    start=st.integers(0, 40),
    stop=st.integers(0, 40),
    rows=st.lists(st.integers(0, 36), max_size=50),
)
@settings(max_examples=40, deadline=None)
def test_a_stored_table_reads_as_the_tensor_does(tmp_path_factory, dtype, start, stop, rows):
    path = tmp_path_factory.mktemp("table") / "t.safetensors"
    table = torch.randn(37, 5).to(dtype)
    save_file({"first": torch.randn(3), "table": table}, path)
    stored = StoredTable(path, "table")
    assert stored.dtype is dtype and stored.shape == table.shape
    assert torch.equal(stored[start:stop], table[start:stop])
    chosen = torch.tensor(rows, dtype=torch.int64)
    assert torch.equal(stored[chosen], table[chosen])
    told = list[int]()
    assert torch.equal(in_memory(stored, advance=told.append), table) and sum(told) == len(table)


def test_reading_a_table_through_leaves_nothing_of_it_in_memory(tmp_path):
    """256 MB in a file; a process that reads it all, in blocks and in scattered rows, grows by far less."""
    save_file({"table": torch.zeros(2**15, 2**12, dtype=torch.bfloat16)}, tmp_path / "t.safetensors")
    code = """
import sys, torch
from pathlib import Path
from lep.memory import peak_memory_bytes
from lep.shards import StoredTable, blocks
table = StoredTable(Path(sys.argv[1]), "table")
table[:1]
before = peak_memory_bytes()
for block in blocks(table, rows=512):
    pass
for rows in torch.randperm(len(table._rows)).split(512):
    table[rows]
print(peak_memory_bytes() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "t.safetensors")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert int(done.stdout) < 128 * 2**20


def test_quantised_tables_are_refused(tmp_path):
    (tmp_path / "source").mkdir()
    checkpoint(tmp_path / "source", tied=True)
    path = tmp_path / "source" / SINGLE_FILE
    tensors = load_file(path)
    for quantised in (torch.int8, torch.float8_e4m3fn):
        save_file(tensors | {"model.embed_tokens.weight": torch.zeros(60, 32).to(quantised)}, path, {"format": "pt"})
        with pytest.raises(ValueError, match="not quantised"):
            open_embeddings(tmp_path / "source")


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "t.safetensors"
    save_file({"table": torch.zeros(9, 9)}, path)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-1], "garbage": b"\xff" * 50, "empty": b""}[damage])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        StoredTable(path, "table")


def test_a_header_is_read_as_the_library_reads_it(tmp_path):
    checkpoint(tmp_path, tied=False)
    entries, metadata = read_header(tmp_path / SINGLE_FILE)
    with safe_open(tmp_path / SINGLE_FILE, framework="pt") as file:
        assert metadata == file.metadata() and set(entries) == set(file.keys())
        assert all(entry.shape == tuple(file.get_slice(name).get_shape()) for name, entry in entries.items())
