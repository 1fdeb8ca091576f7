import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pico_models import TEMPLATE, TEXT, pico_model, pico_tokenizer
from pico_tokenizers import byte_level_bpe, metaspace_unigram, sentencepiece_bpe, wrap
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from lep.chat import result_tokenizer
from lep.embeddings import Embeddings, embeddings_of, set_embeddings_
from lep.export import checks, export_model
from lep.export.files import agrees
from lep.export.ids import config_with_ids, generation_with_ids, id_map, ids_in
from lep.export.padding import pad_tables
from lep.export.progress import busy, bytes_progress
from lep.export.sentencepiece_file import sentencepiece_model
from lep.export.servers import pre_tokenizer_class, served_by
from lep.shards import in_memory
from lep.vocabulary import read_vocabulary

RECIPE = {"tokenizer": {"variant": "extension"}, "propagation": "delta", "язык": "русский"}


@pytest.fixture(scope="module")
def old():
    """It holds a word that the new vocabulary lacks."""
    return pico_tokenizer(320, text=("zzyzx " * 9, *TEXT))


@pytest.fixture(scope="module")
def tokenizer(old):
    """Its ids all differ from the old ones."""
    return result_tokenizer(pico_tokenizer(340, markers=()), old)[0]


@pytest.fixture
def instruct_dir(tmp_path, old):
    """An instruct model whose configs name tokens by the ids of the old vocabulary."""
    return write_instruct(tmp_path / "instruct", old)


def write_instruct(directory: Path, old, *, tied: bool = False, **generation) -> Path:
    model = pico_model("llama", tied=tied, vocab_size=len(old))
    model.config.pad_token_id = old.convert_tokens_to_ids("<|user|>")
    model.config.eos_token_id = old.convert_tokens_to_ids("<|end|>")
    model.save_pretrained(directory)
    old.save_pretrained(directory)
    ends = [2, old.convert_tokens_to_ids("<|end|>")]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "top_k": 7, **generation}))
    return directory


def new_tables(rows: int, *, tied: bool = False, seed: int = 5) -> Embeddings:
    return embeddings_of(pico_model("llama", tied=tied, vocab_size=rows, seed=seed))


def read(path: Path):
    return json.loads(path.read_text())


@pytest.fixture
def exported(instruct_dir, tokenizer, tmp_path):
    report = export_model(instruct_dir, new_tables(len(tokenizer)), tokenizer, tmp_path / "out", recipe=RECIPE)
    return tmp_path / "out", report


# Ids


def test_ids_in_every_file_name_the_same_tokens_as_before(exported, instruct_dir, old, tokenizer):
    out, _ = exported
    config, generation = read(out / "config.json"), read(out / "generation_config.json")
    for name in ("pad_token_id", "eos_token_id"):
        before, after = read(instruct_dir / "config.json")[name], config[name]
        assert before != after and old.convert_ids_to_tokens(before) == tokenizer.convert_ids_to_tokens(after)
    assert generation["eos_token_id"] == [2, tokenizer.convert_tokens_to_ids("<|end|>")]
    assert generation["top_k"] == 7
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == config["vocab_size"] == 384


def test_only_fields_that_hold_ids_are_changed(old, tokenizer):
    """Numbers that equal an id stay (`hidden_size`, `rope`), also inside the text model's part."""
    end, new = (one.convert_tokens_to_ids("<|end|>") for one in (old, tokenizer))
    text = {"eos_token_id": end, "hidden_size": end, "layers": [end]}
    config = {"text_config": text, "image_token_index": end, "width": end, "auto_map": {"x": "y"}}
    changed = config_with_ids(config, id_map(old, tokenizer), vocab_size=384)
    assert changed == {
        "text_config": text | {"eos_token_id": new, "vocab_size": 384},
        "image_token_index": new,
        "width": end,
    }
    assert config["text_config"] == text  # the given one is untouched
    assert set(ids_in(changed)) == {("eos_token_id", new), ("image_token_index", new)}


def test_generation_config_speaks_the_new_ids_and_drops_only_what_forbids_tokens_that_are_gone(old, tokenizer):
    ids = id_map(old, tokenizer)
    gone = next(i for i in range(len(old)) if i not in ids.ids)
    end, the = (old.convert_tokens_to_ids(token) for token in ("<|end|>", "the"))
    generation = {
        "eos_token_id": [2, end],
        "bos_token_id": -1,
        "suppress_tokens": [the, gone],
        "bad_words_ids": [[the, end], [gone]],
        "sequence_bias": [[[the], -3.0]],
        "forced_decoder_ids": [[1, end]],
        "temperature": 0.6,
        "_from_model_config": True,
    }
    changed, dropped = generation_with_ids(generation, ids, ends=[7], pad=0)
    assert changed == {
        "eos_token_id": [2, ids.ids[end], 7],
        "bos_token_id": None,
        "pad_token_id": 0,
        "suppress_tokens": [ids.ids[the]],
        "bad_words_ids": [[ids.ids[the], ids.ids[end]]],
        "sequence_bias": [[[ids.ids[the]], -3.0]],
        "forced_decoder_ids": [[1, ids.ids[end]]],
        "temperature": 0.6,
    }
    assert len(dropped) == 2 and "suppress_tokens: 1 of 2" in dropped[0]
    with pytest.raises(ValueError, match="which the new tokenizer lacks"):
        generation_with_ids({"eos_token_id": gone}, ids, ends=[], pad=None)


def test_remapping_there_and_back_is_the_identity(old, tokenizer):
    there, back = id_map(old, tokenizer), id_map(tokenizer, old)
    assert len(there.ids) > 300  # the shared tokens: specials, bytes, common words
    assert all(back(new, "x") == i for i, new in there.ids.items())
    same = id_map(old, old)
    assert same.ids == {i: i for i in range(len(old))}


# Padding


@pytest.mark.parametrize("tied", [True, False])
def test_padding_rows_never_win_and_are_as_unlikely_as_the_mean_logit(tied):
    tables = new_tables(100, tied=tied).map(torch.Tensor.double)
    padded = pad_tables(tables, 90, 64).map(in_memory)
    assert padded.input.shape == (128, 32) and padded.tied is tied
    assert torch.equal(padded.input[:90], tables.input[:90])
    head = padded.input if padded.output is None else padded.output
    generator = torch.Generator().manual_seed(0)
    # Whatever the state, also where every logit is negative and a row of zeros would win.
    states = torch.randn(500, 32, generator=generator, dtype=torch.float64) * 10
    states[:100] = -head[:90].mean(0) * torch.rand(100, 1, generator=generator, dtype=torch.float64) * 100
    logits = states @ head.T
    torch.testing.assert_close(logits[:, 90:], logits[:, :90].mean(1, keepdim=True).expand(-1, 38))
    assert (logits[:, 90:].amax(1) < logits[:, :90].amax(1)).all()
    assert (logits.softmax(1)[:, 90:] <= 1 / 90).all()


def test_a_row_of_zeros_would_win_where_all_logits_are_negative():
    """Why the padding is not zeros: states against which every trained row points away exist."""
    head = torch.rand(50, 8, dtype=torch.float64) + 0.1
    state = -torch.ones(8, dtype=torch.float64)
    assert (torch.cat([head, torch.zeros(1, 8)]) @ state).argmax() == 50


def test_in_bfloat16_padding_still_loses():
    tables = new_tables(1000).map(torch.Tensor.bfloat16)
    padded = pad_tables(tables, 1000, 64).map(in_memory)
    states = torch.randn(2000, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert padded.output is not None and int((states @ padded.output.T).argmax(1).max()) < 1000


def test_ids_that_stand_for_nothing_never_win_either():
    """As they begin, they are copies of a special token's row and tie with it: a text would not end."""
    tables = new_tables(100).map(torch.Tensor.double)
    assert tables.output is not None
    unused, end = [3, 50, 89], 7
    tables.output[unused] = tables.output[end].clone()
    padded = pad_tables(tables, 90, 64, unused=unused).map(in_memory)
    assert padded.output is not None and padded.output.shape == (128, 32)
    used = torch.ones(90, dtype=torch.bool)
    used[unused] = False
    assert torch.equal(padded.output[:90][used], tables.output[:90][used])
    states = torch.randn(500, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states[:100] = 5 * tables.output[end]
    logits = states @ padded.output.T
    assert (
        set(logits.argmax(1).tolist()).isdisjoint({*unused, *range(90, 128)}) and (logits[:100].argmax(1) == end).all()
    )
    torch.testing.assert_close(logits[:, unused], logits[:, :90][:, used].mean(1, keepdim=True).expand(-1, 3))
    again = pad_tables(padded, 90, 64, unused=unused).map(in_memory)
    torch.testing.assert_close(again.output, padded.output)


def test_a_multiple_of_one_adds_no_row_and_none_below_one_is_taken():
    tables = new_tables(90)
    assert pad_tables(tables, 90, 1) is tables
    with pytest.raises(ValueError, match="export_pad_to=0"):
        pad_tables(tables, 90, 0)
    with pytest.raises(ValueError, match="90 embedding rows, but the tokenizer has ids up to 94"):
        pad_tables(tables, 95, 1)


# The directory


def test_the_directory_decodes_like_the_model_in_memory_and_says_so(instruct_dir, tokenizer, tmp_path):
    tables = new_tables(len(tokenizer))
    model = AutoModelForCausalLM.from_pretrained(instruct_dir)
    set_embeddings_(model, tables)
    report = export_model(instruct_dir, tables, tokenizer, tmp_path / "out", recipe=RECIPE, reference=model)
    assert report["checks"]["decoding"] == "3 answers of 8 tokens, 3 equal token by token, 0 up to rounding"
    assert report["checks"]["end of turn"] == "generation stops at <|end|>"
    loaded, again = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    ids = again("Мария и the cat", return_tensors="pt")["input_ids"]
    assert torch.equal(loaded(input_ids=ids).logits[..., : len(tokenizer)], model(input_ids=ids).logits)


def test_a_penalty_in_the_generation_config_is_no_difference(instruct_dir, tokenizer, tmp_path):
    tables = new_tables(len(tokenizer))
    model = AutoModelForCausalLM.from_pretrained(instruct_dir)
    model.generation_config.repetition_penalty, model.generation_config.no_repeat_ngram_size = 9.0, 1
    set_embeddings_(model, tables)
    report = export_model(instruct_dir, tables, tokenizer, tmp_path / "out", recipe=RECIPE, reference=model)
    assert report["checks"]["decoding"].startswith("3 answers of 8 tokens, 3 equal")


def test_tables_that_are_no_numbers_are_not_published(instruct_dir, tokenizer, tmp_path):
    tables = new_tables(len(tokenizer))
    model = AutoModelForCausalLM.from_pretrained(instruct_dir)
    set_embeddings_(model, tables)
    tables.input[5:] = float("nan")
    with pytest.raises(ValueError, match="logits are no numbers.*Nothing was published"):
        export_model(instruct_dir, tables, tokenizer, tmp_path / "out", recipe=RECIPE, reference=model)
    assert not (tmp_path / "out").exists()


def test_a_chat_through_the_pipeline_stops_at_the_end_of_the_turn(tmp_path, old, tokenizer):
    source = write_instruct(tmp_path / "instruct", old, eos_token_id=2)  # itself it does not know where a turn ends
    end, tables = tokenizer.convert_tokens_to_ids("<|end|>"), new_tables(len(tokenizer))
    model = AutoModelForCausalLM.from_pretrained(source)
    turns = [{"role": "user", "content": "the cat"}]
    set_embeddings_(model, tables)
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 8}
    said = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    third = said[0, ids.shape[1] + 2]
    # The row of the third token said becomes the end's: the model now says the end there.
    assert tables.output is not None and third not in said[0, ids.shape[1] : ids.shape[1] + 2]
    tables.output[end], tables.output[third] = tables.output[third].clone(), 0.0
    export_model(source, tables, tokenizer, tmp_path / "out", recipe=RECIPE)
    chat = pipeline("text-generation", model=str(tmp_path / "out"), device="cpu")
    answer = chat(turns, do_sample=False, max_new_tokens=8, return_tensors=True)[0]["generated_token_ids"]
    assert answer[-1] == end and len(answer) == ids.shape[1] + 3
    text = chat(turns, do_sample=False, max_new_tokens=8)[0]["generated_text"][-1]
    assert text == {"role": "assistant", "content": tokenizer.decode(answer[ids.shape[1] : -1])}


def test_card_and_recipe_say_how_it_was_made_and_what_was_checked(exported, tokenizer):
    out, report = exported
    assert yaml.safe_load((out / "lep.yaml").read_text()) == RECIPE
    front, body = (out / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    assert yaml.safe_load(body.split("```yaml\n")[1].split("```")[0]) == RECIPE
    assert f"{len(tokenizer)} tokens, 384 rows" in body and 'pipeline("text-generation", model="out")' in body
    for check, seen in report["checks"].items():
        assert f"- {check}: {seen}" in body
    assert "llama.cpp: needs a hand" in body and 'lambda *_: "gpt-2"' in body


def test_what_the_instruct_model_needs_besides_comes_along_and_what_is_stale_stays(
    instruct_dir, tokenizer, old, tmp_path
):
    (instruct_dir / "LICENSE").write_text("free")
    (instruct_dir / "preprocessor_config.json").write_text("{}")
    (instruct_dir / "modeling_x.py").write_text("evil()")
    (instruct_dir / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<s>"}}))
    (instruct_dir / "vocab.json").write_text(json.dumps(old.get_vocab()))
    added = {"<|end|>": old.convert_tokens_to_ids("<|end|>")}
    (instruct_dir / "added_tokens.json").write_text(json.dumps(added))
    report = export_model(instruct_dir, new_tables(len(tokenizer)), tokenizer, tmp_path / "out", recipe=RECIPE)
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"LICENSE", "preprocessor_config.json", "special_tokens_map.json"} <= there
    assert not there & {"modeling_x.py", "vocab.json", "added_tokens.json"}
    assert report["left_out"] == ["vocab.json", "added_tokens.json"]
    # With the vocabulary as it was, nothing is stale.
    same = export_model(instruct_dir, new_tables(len(old)), old, tmp_path / "same", recipe=RECIPE)
    assert same["left_out"] == [] and read(tmp_path / "same" / "added_tokens.json") == added
    assert same["checks"]["slow tokenizer files"] == "vocab.json, added_tokens.json, special_tokens_map.json agree"


def test_slow_files_are_told_from_the_fast_tokenizer_entry_by_entry(old, tmp_path):
    model = json.loads(old.backend_tokenizer.to_str())["model"]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    for name, right, wrong in (
        ("merges.txt", "\n".join(lines) + "\n", "\n".join(lines[:-1])),
        ("vocab.json", json.dumps(model["vocab"]), json.dumps(model["vocab"] | {"the": 3})),
        ("added_tokens.json", json.dumps(old.get_added_vocab()), json.dumps({"<|end|>": 5})),
        ("special_tokens_map.json", json.dumps({"eos_token": "</s>"}), json.dumps({"eos_token": "<|end|>"})),
    ):
        path = tmp_path / name
        path.write_text(right)
        assert agrees(path, old), name
        path.write_text(wrong)
        assert not agrees(path, old), name


def test_shards_without_a_table_are_linked_and_those_of_the_source_stay(tmp_path, old, tokenizer):
    source = write_instruct(tmp_path / "instruct", old)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    tables = [name for name in tensors if "embed_tokens" in name or "lm_head" in name]
    parts = {"a.safetensors": tables, "b.safetensors": [name for name in tensors if name not in tables]}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, source / file, metadata={"format": "pt"})
    weight_map = {name: file for file, names in parts.items() for name in names}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    before = (source / "a.safetensors").read_bytes()
    export_model(source, new_tables(len(tokenizer)), tokenizer, tmp_path / "out", recipe=RECIPE)
    assert (tmp_path / "out" / "b.safetensors").samefile(source / "b.safetensors")
    assert (source / "a.safetensors").read_bytes() == before


def test_a_large_model_is_matched_by_name_and_shape_without_its_weights(instruct_dir, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "LOADED_BYTES", 1000)
    options = {"recipe": RECIPE, "reference": pico_model("llama", tied=False)}
    report = export_model(instruct_dir, new_tables(len(tokenizer)), tokenizer, tmp_path / "out", **options)
    assert report["checks"]["loading"] == "transformers finds every weight, by name and shape as LlamaForCausalLM"
    assert report["checks"]["decoding"].startswith("skipped, ")
    assert report["checks"]["end of turn"].startswith("<|end|> is an eos token, not tried")


# Refusals: nothing is published


def refused(tmp_path: Path, match: str, *arguments, **options) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=match):
        export_model(*arguments, tmp_path / "out", recipe=RECIPE, **options)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_another_model_in_memory_is_told_apart(instruct_dir, tokenizer, tmp_path):
    other = AutoModelForCausalLM.from_pretrained(instruct_dir)
    set_embeddings_(other, new_tables(len(tokenizer), seed=6))
    tables = new_tables(len(tokenizer))
    refused(tmp_path, "the directory writes", instruct_dir, tables, tokenizer, reference=other)


def test_a_checkpoint_that_is_not_whole_is_not_published(instruct_dir, tokenizer, tmp_path):
    tensors = load_file(instruct_dir / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, instruct_dir / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path, "does not find every weight", instruct_dir, new_tables(len(tokenizer)), tokenizer)
    (instruct_dir / "model.safetensors").write_bytes((instruct_dir / "model.safetensors").read_bytes()[:-8])
    refused(tmp_path, "no whole safetensors file", instruct_dir, new_tables(len(tokenizer)), tokenizer)


def test_a_chat_that_renders_otherwise_is_not_published(instruct_dir, tokenizer, tmp_path):
    from copy import deepcopy

    changed = deepcopy(tokenizer)
    changed.chat_template = changed.chat_template.replace("\n{{ m.content }}", " {{ m.content }}")
    refused(tmp_path, "the chat template writes", instruct_dir, new_tables(len(tokenizer)), changed)


def test_ids_that_the_new_vocabulary_lacks_are_refused(instruct_dir, tmp_path):
    bare = pico_tokenizer(340, markers=())
    refused(tmp_path, "new tokenizer lacks", instruct_dir, new_tables(340), bare)


def test_too_few_rows_are_refused(instruct_dir, tokenizer, tmp_path):
    refused(tmp_path, "303 embedding rows", instruct_dir, new_tables(303), tokenizer)


def test_a_tokenizer_that_transformers_reads_otherwise_is_not_published(tmp_path):
    """Qwen2's is rebuilt with a fixed way of splitting text, which this one does not have."""
    old = pico_tokenizer(300)
    pico_model("qwen2", tied=True, vocab_size=len(old)).save_pretrained(tmp_path / "instruct")
    old.save_pretrained(tmp_path / "instruct")
    tables = new_tables(len(old), tied=True)
    refused(tmp_path, "as Qwen2Tokenizer", tmp_path / "instruct", tables, old)


def test_a_vocabulary_that_cannot_be_read_back_is_known_before_training(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "llama"}))
    checks.check_reads_back(pico_tokenizer(300), tmp_path)
    config.write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ValueError, match="as Qwen2Tokenizer.*tokenizer=bpe"):
        checks.check_reads_back(pico_tokenizer(300), tmp_path)


def test_a_directory_that_is_there_is_replaced_whole_and_a_failure_leaves_it(
    instruct_dir, tokenizer, tmp_path, monkeypatch
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale").touch()
    tables = new_tables(len(tokenizer))
    with monkeypatch.context() as patch:
        patch.setattr("lep.export.model_card", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_model(instruct_dir, tables, tokenizer, tmp_path / "out", recipe=RECIPE)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stale"]
    export_model(instruct_dir, tables, tokenizer, tmp_path / "out", recipe=RECIPE)
    assert {path.name for path in tmp_path.iterdir()} == {"instruct", "out"}
    assert not (tmp_path / "out" / "stale").exists()
    shutil.rmtree(tmp_path / "instruct")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out") is not None  # links outlive what they were made from


# Servers


def test_the_pre_tokenizers_class_is_told_by_how_it_splits(tokenizer):
    assert pre_tokenizer_class(tokenizer) == "gpt-2"
    assert pre_tokenizer_class(pico_tokenizer(300, family="qwen2")) == "qwen2"
    from tokenizers import pre_tokenizers

    other = pico_tokenizer(300)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("x", "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    assert pre_tokenizer_class(other) is None
    verdict = served_by(other, sentencepiece=None, rows=384, tokens=303, tied=True)["llama.cpp"]
    assert not verdict["ready"] and "get_vocab_base_pre" in verdict["remedy"]


def test_servers_are_told_what_they_lack():
    def llama_cpp(tokenizer, model=None) -> dict:
        return served_by(tokenizer, sentencepiece=model, rows=512, tokens=460, tied=True)["llama.cpp"]

    # LLaMa-3 takes a word that is a token without merges; llama.cpp has one name for each way.
    assert '_: "llama-bpe";' in llama_cpp(byte_level_bpe(ignore_merges=True))["remedy"]
    assert '_: "smaug-bpe";' in llama_cpp(byte_level_bpe())["remedy"]
    assert "tokenizer=bpe" in llama_cpp(metaspace_unigram())["remedy"]
    bpe = sentencepiece_bpe()
    words = sum(piece[0] == "▁" and piece.strip("▁") != "" for piece in bpe.get_vocab())
    ready = llama_cpp(bpe, sentencepiece_model(bpe))
    assert ready["ready"] and f"cuts {words} of {words} words" in ready["found"]
    assert not llama_cpp(bpe)["ready"]


def test_llama_cpp_is_told_of_an_end_of_turn_that_it_does_not_know(old):
    def remedy(tokenizer) -> str:
        return served_by(tokenizer, sentencepiece=None, rows=512, tokens=460, tied=True)["llama.cpp"]["remedy"]

    assert "eot_token_id" not in remedy(old)  # <|end|> is one of those
    odd = pico_tokenizer(320, markers=("<|user|>", "<|assistant|>", "<|stop|>"))
    odd.chat_template = TEMPLATE.replace("<|end|>", "<|stop|>")
    assert f"tokenizer.ggml.eot_token_id=int:{odd.convert_tokens_to_ids('<|stop|>')}." in remedy(odd)


# tokenizer.model


def test_tokenizer_model_says_what_the_tokenizer_says():
    tokenizer = sentencepiece_bpe()
    theirs = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(tokenizer))
    assert [theirs.id_to_piece(i) for i in range(len(theirs))] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    specials = {i for i in range(len(theirs)) if theirs.is_control(i) or theirs.is_unknown(i)}
    assert specials == {*read_vocabulary(tokenizer).specials}
    assert {i for i in range(len(theirs)) if theirs.is_byte(i)} == read_vocabulary(tokenizer).byte_ids
    assert (theirs.unk_id(), theirs.bos_id(), theirs.eos_id(), theirs.pad_id()) == (
        tokenizer.unk_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )


@settings(deadline=None)
@given(st.text().filter(lambda text: not text.startswith(("▁", " "))))
def test_tokenizer_model_cuts_text_as_the_tokenizer_does(text):
    """But for a space in front, and for special tokens, which SentencePiece reads as text."""
    tokenizer = sentencepiece_bpe()
    assume(not any(mark in text for mark in tokenizer.all_special_tokens))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(tokenizer))
    for each in (text, f"Анна читает {text} новости, ёж 12"):
        assert theirs.encode(each) == tokenizer.encode(each, add_special_tokens=False)


def test_tokenizer_model_cuts_real_text_as_the_tokenizer_does(real, real_texts):
    tokenizer = real["mistral"]
    lines = [line for texts in real_texts.values() for text in texts[:20] for line in text.split("\n") if line]
    lines = [line for line in lines if line[0] != " "]
    theirs = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(tokenizer))
    assert theirs.encode(lines) == tokenizer(lines, add_special_tokens=False)["input_ids"]


def test_an_id_that_stands_for_nothing_is_an_unused_piece():
    spec = json.loads(sentencepiece_bpe().backend_tokenizer.to_str())
    last = max(spec["model"]["vocab"], key=spec["model"]["vocab"].__getitem__)
    spec["model"]["vocab"][last] += 2
    tokenizer = wrap(Tokenizer.from_str(json.dumps(spec)), unk_token="<unk>")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(tokenizer))
    hole = len(sentencepiece_bpe()) - 1
    assert [theirs.is_unused(i) for i in (hole - 1, hole, hole + 1, hole + 2)] == [False, True, True, False]
    assert theirs.id_to_piece(hole + 2) == last


def test_only_a_bpe_in_metaspaces_has_a_tokenizer_model(tmp_path):
    assert sentencepiece_model(byte_level_bpe()) is None and sentencepiece_model(metaspace_unigram()) is None
    bpe = sentencepiece_bpe()
    model = pico_model("mistral", tied=False, vocab_size=len(bpe))
    model.save_pretrained(tmp_path / "instruct")
    bpe.save_pretrained(tmp_path / "instruct")
    (tmp_path / "instruct" / "tokenizer.model").write_bytes(b"of another vocabulary")
    report = export_model(tmp_path / "instruct", embeddings_of(model), bpe, tmp_path / "out", recipe=RECIPE)
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == sentencepiece_model(bpe)
    assert report["left_out"] == [] and report["checks"]["slow tokenizer files"] == "tokenizer.model agrees"
    (tmp_path / "out" / "tokenizer.model").write_bytes(sentencepiece_model(sentencepiece_bpe(vocab_size=400)))
    assert not agrees(tmp_path / "out" / "tokenizer.model", bpe)


def test_progress_is_shown_on_a_terminal_and_nowhere_else(capsys, monkeypatch):
    def show() -> str:
        with bytes_progress("writing a model", 4 * 10**9) as advance:
            advance(3 * 10**9)
        with busy("fitting conversion"):
            pass
        return capsys.readouterr().err

    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    assert show() == ""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    shown = show()
    assert "writing a model" in shown and "3.0/4.0 GB" in shown and "fitting conversion" in shown
