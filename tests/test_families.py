"""A family needs no code: every architecture goes the whole way, and every model's config says what the model is."""

import copy
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_module
from pico_models import FAMILIES, TEXT, pico_model, pico_tokenizer
from pico_tokenizers import sentencepiece_bpe
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from lep.chat import result_tokenizer, special_pairs
from lep.checkpoints import load_model, load_tokenizer, shape_config
from lep.cost import Shape
from lep.embeddings import embeddings_of, read_embeddings, set_embeddings_
from lep.export import export_model
from lep.initialization.mean import mean
from lep.propagation import propagate
from lep.propagation.delta import delta
from lep.tokenizers import extension, unigram
from lep.training import EmbeddingTraining, PackedData
from lep.vocabulary import subtoken_operator

CONF = Path(__file__).parents[1] / "conf" / "model"
MODELS = sorted(path.stem for path in CONF.glob("*.yaml"))
# Parameters of the published models, which must follow from the shape that stands with each.
PARAMETERS = {
    "llama3_8b": 8_030_261_248,
    "llama3_2_1b": 1_235_814_400,
    "mistral_7b": 7_241_732_096,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_7b": 7_615_616_512,
    "qwen2_5_32b": 32_763_876_352,
    "qwen3_0_6b": 596_049_920,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
}


def blocks_of(tokenizer, length: int = 17) -> np.ndarray:
    ids = [i for text in TEXT * 40 for i in tokenizer(text)["input_ids"]]
    return np.array(ids[: len(ids) // length * length]).reshape(-1, length)


def fit(module: EmbeddingTraining, blocks: np.ndarray, steps: int) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
    )
    module.train()  # Lightning warns of modules in eval mode; the module itself puts the body there
    trainer.fit(module, PackedData(blocks, batch_size=4, seed=0))
    return trainer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_goes_the_whole_way(family: str, tied: bool, tmp_path: Path):
    """Tables read, T, initialised, trained, propagated, exported, loaded, chatting: by config alone."""
    base_tokenizer = pico_tokenizer(300, markers=(), family=family)
    instruct_tokenizer = pico_tokenizer(300, family=family)
    base_dir, instruct_dir = tmp_path / "base", tmp_path / "instruct"
    base = pico_model(family, tied=tied, vocab_size=len(base_tokenizer))
    base.save_pretrained(base_dir)
    base_tokenizer.save_pretrained(base_dir)
    tuned = pico_model(family, tied=tied, vocab_size=len(instruct_tokenizer), seed=1)
    tuned.save_pretrained(instruct_dir)
    instruct_tokenizer.save_pretrained(instruct_dir)

    base_tokenizer = load_tokenizer(base_dir, key="base")
    adapted_tokenizer = extension(base_tokenizer, TEXT * 3, new_tokens=20)
    operator = subtoken_operator(adapted_tokenizer, base_tokenizer)
    tables = read_embeddings(base_dir)
    assert tables.tied is tied
    initial = tables.map(lambda table: mean(table, operator)).in_memory()

    # What is trained is the model's own loss, scaled embeddings and all, and only the tables move.
    whole = load_model(base_dir)
    set_embeddings_(whole, initial)
    blocks = blocks_of(adapted_tokenizer)
    batch = torch.from_numpy(blocks[:4])
    module = EmbeddingTraining(load_model(base_dir), initial, learning_rate=3e-2, warmup_steps=1)
    torch.testing.assert_close(module.loss(batch[:, :-1], batch[:, 1:]), whole(batch, labels=batch).loss)
    fit(module, blocks, 12)
    assert module.history[-1]["train/loss"] < module.history[0]["train/loss"] - 0.2
    adapted = module.embeddings()

    chatting, _ = result_tokenizer(adapted_tokenizer, instruct_tokenizer)
    kept = special_pairs(chatting, instruct_tokenizer)
    result, _ = propagate(delta, adapted, tables, read_embeddings(instruct_dir), operator, kept_rows=kept)
    result = result.in_memory()
    model = load_model(instruct_dir)
    set_embeddings_(model, result)
    report = export_model(instruct_dir, result, chatting, tmp_path / "out", recipe={}, pad_to=8, reference=model)
    assert report["checks"]["decoding"].startswith("3 answers of 8 tokens, 3 equal")
    assert report["checks"]["end of turn"] == "generation stops at <|end|>"

    loaded, tokenizer = (auto.from_pretrained(tmp_path / "out") for auto in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": TEXT[1]}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    assert len(ids[0]) < len(instruct_tokenizer.encode(TEXT[1])), "the new vocabulary is in use"
    ours, theirs = loaded(input_ids=ids).logits, model(input_ids=ids).logits
    assert torch.equal(ours[..., : theirs.shape[-1]], theirs) and ours.shape[-1] % 8 == 0
    body = {
        name: tensor
        for name, tensor in tuned.state_dict().items()
        if "embed_tokens" not in name and "lm_head" not in name
    }
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in body.items())


def test_scaled_embeddings_train_as_the_rows_that_are_stored():
    """The gradient at a stored row of Gemma 3 is the model's own: sqrt(D) times that at what the body sees."""
    model = pico_model("gemma3_text", tied=True)
    batch = 1 + torch.arange(24).reshape(2, 12)  # without the padding id, whose gradient the model itself stops
    tables = embeddings_of(model)
    whole = pico_model("gemma3_text", tied=True)
    whole(batch, labels=batch).loss.backward()
    module = EmbeddingTraining(model, tables, learning_rate=0.1)
    module.loss(batch[:, :-1], batch[:, 1:]).backward()
    torch.testing.assert_close(module.input.trained.grad, whole.get_input_embeddings().weight.grad)


def test_an_embedding_that_does_more_than_scale_is_refused():
    class Shifted(torch.nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) + 1

    model = pico_model("llama", tied=True)
    model.set_input_embeddings(Shifted(60, 32))
    model.tie_weights()
    with pytest.raises(ValueError, match="changes its embeddings or logits"):
        EmbeddingTraining(model, embeddings_of(model), learning_rate=0.1)


def test_a_line_end_that_is_an_added_token_may_be_learnt_again():
    """Gemma adds line ends and tabs as tokens; a new vocabulary of text with lines finds them as pieces too."""
    base = copy.deepcopy(sentencepiece_bpe())
    base.add_tokens([AddedToken("\n", special=False, normalized=False)])
    texts = [f"{text}\n{text}\n" for text in TEXT] * 9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a short text gives a short vocabulary
        fresh = unigram(base, texts, vocab_size=440)
    assert sorted(fresh.get_vocab().values()) == list(range(len(fresh)))
    assert [token for token in fresh.get_vocab() if token == "\n"] == ["\n"]
    assert fresh.decode(fresh.encode(texts[0]), skip_special_tokens=True).strip() == texts[0].strip()


# The configs


def composed(model: str):
    with initialize_config_module("lep.conf", version_base="1.3"):
        return compose("config", overrides=[f"model={model}"]).model


def test_every_model_but_the_embedded_is_here():
    assert set(MODELS) == {*PARAMETERS, "tiny"}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_shape_is_that_of_the_published_model(name: str):
    config = shape_config(composed(name).shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() == PARAMETERS[name] == Shape.of(config).parameters()


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_model_is_named_and_its_pair_is_pinned_to_a_revision(name: str):
    config = composed(name)
    assert config.name == name
    assert re.fullmatch(r"[\w-]+/[\w.-]+", config.base) and re.fullmatch(r"[\w-]+/[\w.-]+", config.instruct)
    assert config.base != config.instruct and config.base_revision and config.instruct_revision
    adaptation = config.adaptation
    assert adaptation.kept_tokens < adaptation.optimized_size and adaptation.kept_tokens < config.shape.vocab_size
