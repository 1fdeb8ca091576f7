"""An adapter directory is what peft loads; merged, exported and adapted models give the same logits."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from pico_models import FAMILIES, pico_model, pico_tokenizer
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from tuned import fit, module, settings

from lep.calibration.adapter import merge_, merged_weights, read_adapter, write_adapter
from lep.embeddings import embeddings_of
from lep.export import export_model

IDS = torch.arange(24).reshape(2, 12) % 57 + 3


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tables", [[], ["output"], ["input", "output"]])
def test_peft_loads_what_was_tuned(tmp_path: Path, family: str, tied: bool, tables: list):
    model = pico_model(family, tied=tied)
    before, merged = copy.deepcopy(model), copy.deepcopy(model)
    found = module(settings(tables=tables, layers="first_and_last"), model)
    fit(found)
    write_adapter(tmp_path, found.tuned(), model, base="nowhere")
    merge_(merged, read_adapter(tmp_path))
    adapted = PeftModel.from_pretrained(before, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(adapted(IDS).logits, merged(IDS).logits, rtol=1e-5, atol=1e-5)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as stored:
        assert {*stored.keys()} == {
            name.replace(".default.", ".").replace(".modules_to_save.", ".").replace(".default", "")
            for name, parameter in adapted.named_parameters()
            if "lora_" in name or "modules_to_save" in name
        } | ({"base_model.model.lm_head.weight"} if tied and tables else set())


def test_what_is_read_is_what_was_written(tmp_path: Path):
    model = pico_model("llama", tied=False)
    found = module(settings(tables=["output"]), model)
    fit(found, 2)
    tuned = found.tuned()
    write_adapter(tmp_path, tuned, model, base="nowhere")
    again = read_adapter(tmp_path)
    assert again.input is None and again.output is not None and tuned.output is not None
    assert torch.equal(again.output, tuned.output) and (again.rank, again.alpha) == (tuned.rank, tuned.alpha)
    assert {*again.changes} == {*tuned.changes}
    assert all(torch.equal(again.change(name), tuned.change(name)) for name in tuned.changes)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path):
    deep = pico_model("llama", tied=False, num_hidden_layers=3)
    found = module(settings(tables=[]), deep)
    write_adapter(tmp_path, found.tuned(), deep, base="nowhere")
    with pytest.raises(ValueError, match=r"layers\.2\..*, which the model does not have"):
        merge_(pico_model("llama", tied=False), read_adapter(tmp_path))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("tied", [False, True])
def test_a_merged_export_and_the_adapter_on_its_base_speak_alike(tmp_path: Path, tied: bool):
    tokenizer = pico_tokenizer(300)
    instruct = pico_model("llama", tied=tied, vocab_size=len(tokenizer))
    instruct.config.eos_token_id = tokenizer.convert_tokens_to_ids("<|end|>")
    instruct.save_pretrained(tmp_path / "instruct")
    tokenizer.save_pretrained(tmp_path / "instruct")
    merged, model = copy.deepcopy(instruct), copy.deepcopy(instruct)
    found = module(settings(tables=["input", "output"]), model)
    fit(found)
    tuned = found.tuned()
    merge_(merged, tuned)
    out, base = tmp_path / "merged", tmp_path / "base"
    for directory, of, body in ((base, instruct, {}), (out, merged, merged_weights(merged, tuned))):
        report = export_model(
            tmp_path / "instruct", embeddings_of(of), tokenizer, directory, body=body, recipe={}, pad_to=1, reference=of
        )
        assert "up to rounding" in report["checks"]["decoding"]
    write_adapter(tmp_path / "adapter", tuned, instruct, base=str(base))
    with torch.no_grad():
        expected = merged(IDS).logits
        loaded = AutoModelForCausalLM.from_pretrained(out).eval()(IDS).logits
        adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()(IDS).logits
    torch.testing.assert_close(loaded, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(adapted, expected, rtol=1e-5, atol=1e-5)


def test_what_is_judged_in_float32_is_what_a_bfloat16_export_holds(tmp_path: Path):
    tokenizer = pico_tokenizer(300)
    instruct = pico_model("llama", tied=False, vocab_size=len(tokenizer)).bfloat16()
    instruct.config.eos_token_id = tokenizer.convert_tokens_to_ids("<|end|>")
    instruct.save_pretrained(tmp_path / "instruct")
    tokenizer.save_pretrained(tmp_path / "instruct")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "instruct", dtype=torch.float32).eval()
    found = module(settings(tables=["input", "output"]), copy.deepcopy(merged))
    fit(found)
    tuned = found.tuned()
    merge_(merged, tuned, stored=torch.bfloat16)
    out = tmp_path / "merged"
    body = merged_weights(merged, tuned)
    export_model(tmp_path / "instruct", embeddings_of(merged), tokenizer, out, body=body, recipe={}, reference=merged)
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits[..., : len(tokenizer)], merged(IDS).logits)


def test_weights_that_the_checkpoint_does_not_have_are_refused_and_nothing_is_published(tmp_path: Path):
    tokenizer = pico_tokenizer(300)
    instruct = pico_model("llama", tied=False, vocab_size=len(tokenizer))
    instruct.save_pretrained(tmp_path / "instruct")
    tokenizer.save_pretrained(tmp_path / "instruct")
    body = {"layers.9.mlp.up_proj.weight": torch.zeros(48, 32)}
    with pytest.raises(ValueError, match="layers.9.mlp.up_proj.weight"):
        export_model(tmp_path / "instruct", embeddings_of(instruct), tokenizer, tmp_path / "out", body=body, recipe={})
    assert not (tmp_path / "out").exists()
    assert json.loads((tmp_path / "instruct" / "config.json").read_text())["vocab_size"] == len(tokenizer)
