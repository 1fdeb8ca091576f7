import json

import pytest
import torch
import yaml
from pico_models import FAMILIES, pico_model, pico_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from lep.chat import result_tokenizer
from lep.embeddings import Embeddings, embeddings_of, set_embeddings_
from lep.export import export_model

RECIPE = {"tokenizer": {"variant": "extension"}, "propagation": "delta", "язык": "русский"}


@pytest.fixture(scope="module")
def instruct_tokenizer():
    return pico_tokenizer(300)


@pytest.fixture(scope="module")
def tokenizer(instruct_tokenizer):
    return result_tokenizer(pico_tokenizer(340, markers=()), instruct_tokenizer)[0]


def instruct_model(tokenizer, family: str = "llama", *, tied: bool = False):
    """Ids in its configs are those of the old vocabulary."""
    model = pico_model(family, tied=tied, vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = [2, tokenizer.convert_tokens_to_ids("<|end|>")]
    model.generation_config.max_new_tokens = 8
    return model


def new_tables(rows: int, *, tied: bool = False, seed: int = 5) -> Embeddings:
    return embeddings_of(pico_model("llama", tied=tied, vocab_size=rows, seed=seed))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_loaded_back_decodes_like_the_model_in_memory(tmp_path, family, tied, instruct_tokenizer, tokenizer):
    instruct = instruct_model(instruct_tokenizer, family, tied=tied)
    tables = new_tables(len(tokenizer), tied=tied)
    export_model(
        instruct,
        tokenizer,
        tmp_path / "out",
        recipe=RECIPE,
        embeddings=tables,
        instruct_tokenizer=instruct_tokenizer,
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    read = AutoTokenizer.from_pretrained(tmp_path / "out")
    set_embeddings_(instruct, tables)
    ids = read("Мария и the cat", return_tensors="pt")["input_ids"]
    assert torch.equal(ids, tokenizer("Мария и the cat", return_tensors="pt")["input_ids"])
    assert torch.equal(loaded(input_ids=ids).logits, instruct(input_ids=ids).logits)
    ends = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    greedy = [model.generate(ids, attention_mask=mask, **ends) for model in (loaded, instruct)]
    assert torch.equal(*greedy)
    assert loaded.config.get_text_config().vocab_size == len(tokenizer)


def test_the_model_given_stays_as_it_is(tmp_path, instruct_tokenizer, tokenizer):
    instruct = instruct_model(instruct_tokenizer)
    before, ids = embeddings_of(instruct), torch.arange(9)[None]
    config, ends = instruct.config.to_dict(), list(instruct.generation_config.eos_token_id)
    logits = instruct(input_ids=ids).logits
    options = {"recipe": RECIPE, "instruct_tokenizer": instruct_tokenizer}
    export_model(instruct, tokenizer, tmp_path / "out", embeddings=new_tables(len(tokenizer)), **options)
    assert torch.equal(embeddings_of(instruct).input, before.input)
    assert torch.equal(instruct(input_ids=ids).logits, logits)
    assert instruct.config.to_dict() == config and instruct.generation_config.eos_token_id == ends


def test_ids_are_those_of_the_new_vocabulary(tmp_path, tokenizer):
    """An instruct vocabulary whose ids all differ from the new one's."""
    old = pico_tokenizer(320)
    instruct = instruct_model(old)
    instruct.config.pad_token_id = old.convert_tokens_to_ids("<|user|>")
    instruct.config.eos_token_id = old.convert_tokens_to_ids("<|end|>")
    instruct.save_pretrained(tmp_path / "instruct")
    old.save_pretrained(tmp_path / "instruct")
    tables = new_tables(len(tokenizer))
    export_model(tmp_path / "instruct", tokenizer, tmp_path / "out", recipe=RECIPE, embeddings=tables)
    config, generation = (
        json.loads((tmp_path / "out" / name).read_text()) for name in ("config.json", "generation_config.json")
    )
    assert config["vocab_size"] == len(tokenizer)
    assert config["pad_token_id"] == tokenizer.convert_tokens_to_ids("<|user|>")
    assert config["eos_token_id"] == tokenizer.convert_tokens_to_ids("<|end|>")
    assert generation["eos_token_id"] == [2, tokenizer.convert_tokens_to_ids("<|end|>")]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == len(tokenizer)


def test_a_chat_through_the_pipeline_stops_at_the_end_of_the_turn(tmp_path, instruct_tokenizer, tokenizer):
    instruct, end = instruct_model(instruct_tokenizer), tokenizer.convert_tokens_to_ids("<|end|>")
    instruct.generation_config.eos_token_id = 2  # the instruct model itself does not know where a turn ends
    tables = new_tables(len(tokenizer))
    turns = [{"role": "user", "content": "the cat"}]
    set_embeddings_(instruct, tables)
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    said = instruct.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=None, pad_token_id=0
    )
    third = said[0, ids.shape[1] + 2]
    # The row of the third token said becomes the end's: the model now says the end there.
    assert tables.output is not None and third not in said[0, ids.shape[1] : ids.shape[1] + 2]
    tables.output[end], tables.output[third] = tables.output[third].clone(), 0.0
    options = {"recipe": RECIPE, "instruct_tokenizer": instruct_tokenizer, "embeddings": tables}
    export_model(instruct, tokenizer, tmp_path / "out", **options)
    chat = pipeline("text-generation", model=str(tmp_path / "out"), device="cpu")
    answer = chat(turns, do_sample=False, max_new_tokens=8, return_tensors=True)[0]["generated_token_ids"]
    assert answer[-1] == end and len(answer) == ids.shape[1] + 3
    text = chat(turns, do_sample=False, max_new_tokens=8)[0]["generated_text"][-1]
    assert text == {"role": "assistant", "content": tokenizer.decode(answer[ids.shape[1] : -1])}


def test_card_and_recipe_say_how_it_was_made(tmp_path, instruct_tokenizer, tokenizer):
    export_model(
        instruct_model(instruct_tokenizer),
        tokenizer,
        tmp_path / "out",
        recipe=RECIPE,
        embeddings=new_tables(len(tokenizer)),
        instruct_tokenizer=instruct_tokenizer,
    )
    assert yaml.safe_load((tmp_path / "out" / "lep.yaml").read_text()) == RECIPE
    card = (tmp_path / "out" / "README.md").read_text()
    front, body = card.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    assert yaml.safe_load(body.split("```yaml\n")[1].split("```")[0]) == RECIPE
    assert f"{len(tokenizer)} tokens" in body and 'pipeline("text-generation", model="out")' in body
    assert (tmp_path / "out" / "chat_template.jinja").exists() and (tmp_path / "out" / "model.safetensors").exists()


def test_a_directory_that_is_there_is_replaced_whole_and_a_failure_leaves_it(
    tmp_path, instruct_tokenizer, tokenizer, monkeypatch
):
    instruct = instruct_model(instruct_tokenizer)
    options = {"embeddings": new_tables(len(tokenizer)), "instruct_tokenizer": instruct_tokenizer}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stale").touch()
    with monkeypatch.context() as patch:
        patch.setattr("lep.export.model_card", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_model(instruct, tokenizer, tmp_path / "out", recipe=RECIPE, **options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stale"]
    export_model(instruct, tokenizer, tmp_path / "out", recipe=RECIPE, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not (tmp_path / "out" / "stale").exists()


def test_what_cannot_be_exported_right_is_refused(tmp_path, instruct_tokenizer, tokenizer):
    instruct = instruct_model(instruct_tokenizer)
    with pytest.raises(ValueError, match="instruct_tokenizer"):
        export_model(instruct, tokenizer, tmp_path / "out", recipe=RECIPE)
    options = {"recipe": RECIPE, "instruct_tokenizer": instruct_tokenizer}
    with pytest.raises(ValueError, match="303 embedding rows"):
        export_model(instruct, tokenizer, tmp_path / "out", **options)
    instruct.config.eos_token_id = instruct_tokenizer.convert_tokens_to_ids("<|end|>")
    bare = pico_tokenizer(340, markers=())
    with pytest.raises(ValueError, match="new tokenizer lacks"):
        export_model(instruct, bare, tmp_path / "out", embeddings=new_tables(340), **options)
    assert not list(tmp_path.iterdir())
