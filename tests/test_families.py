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
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lep.chat import result_tokenizer, special_pairs
from lep.checkpoints import load_model, load_tokenizer
from lep.embeddings import embeddings_of, read_embeddings, set_embeddings_
from lep.export import export_model
from lep.initialization.mean import mean
from lep.memory import propagation_bytes, training_bytes
from lep.propagation import propagate
from lep.propagation.delta import delta
from lep.propagation.gram import CHUNK_ROWS
from lep.tokenizers import extension, unigram
from lep.training import EmbeddingTraining, PackedData
from lep.vocabulary import subtoken_operator

CONF = Path(__file__).parents[1] / "conf" / "model"
MODELS = sorted(path.stem for path in CONF.glob("*.yaml"))
# Architectures by name of config: what their config.json says beside `size`. The number of parameters that follows from
# it and from `size` must be the one that `size` states.
GEMMA3 = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}
QWEN3 = {"num_key_value_heads": 8, "head_dim": 128}
SHAPES = {
    "llama3_8b": ("llama", 32, 14336, {"num_attention_heads": 32, "num_key_value_heads": 8}),
    "llama3_2_1b": ("llama", 16, 8192, {"num_attention_heads": 32, "num_key_value_heads": 8}),
    "mistral_7b": ("mistral", 32, 14336, {"num_attention_heads": 32, "num_key_value_heads": 8}),
    "qwen2_5_0_5b": ("qwen2", 24, 4864, {"num_attention_heads": 14, "num_key_value_heads": 2}),
    "qwen2_5_1_5b": ("qwen2", 28, 8960, {"num_attention_heads": 12, "num_key_value_heads": 2}),
    "qwen2_5_3b": ("qwen2", 36, 11008, {"num_attention_heads": 16, "num_key_value_heads": 2}),
    "qwen2_5_7b": ("qwen2", 28, 18944, {"num_attention_heads": 28, "num_key_value_heads": 4}),
    "qwen2_5_32b": ("qwen2", 64, 27648, {"num_attention_heads": 40, "num_key_value_heads": 8}),
    "qwen3_0_6b": ("qwen3", 28, 3072, {"num_attention_heads": 16, **QWEN3}),
    "qwen3_4b": ("qwen3", 36, 9728, {"num_attention_heads": 32, **QWEN3}),
    "qwen3_8b": ("qwen3", 36, 12288, {"num_attention_heads": 32, **QWEN3}),
    "gemma3_270m": ("gemma3_text", 18, 2048, GEMMA3),
    "gemma3_1b": ("gemma3_text", 26, 6912, GEMMA3),
    "smollm2_135m": ("llama", 30, 1536, {"num_attention_heads": 9, "num_key_value_heads": 3}),
    "smollm2_360m": ("llama", 32, 2560, {"num_attention_heads": 15, "num_key_value_heads": 5}),
    "smollm2_1_7b": ("llama", 24, 8192, {"num_attention_heads": 32, "num_key_value_heads": 32}),
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


def test_every_model_but_the_embedded_has_a_shape_here():
    assert set(MODELS) == {*SHAPES, "tiny"}


@pytest.mark.parametrize("name", SHAPES)
def test_the_size_is_that_of_the_architecture(name: str):
    family, layers, inner, heads = SHAPES[name]
    size = composed(name).size
    made = CONFIG_MAPPING[family](
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        tie_word_embeddings=size.tied,
        num_hidden_layers=layers,
        intermediate_size=inner,
        pad_token_id=0,
        **heads,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    assert model.num_parameters() == size.parameters


def test_the_size_of_the_embedded_pair_is_its_own():
    config = composed("tiny")
    tables = read_embeddings(Path(__file__).parents[1] / "lep" / "assets" / "tiny" / "base")
    assert (config.size.vocabulary, config.size.hidden) == tuple(tables.input.shape)
    assert config.size.tied is tables.tied


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_is_named_and_its_pair_is_pinned_to_a_revision(name: str):
    config = composed(name)
    assert config.name == name
    assert re.fullmatch(r"[\w-]+/[\w.-]+", config.base) and re.fullmatch(r"[\w-]+/[\w.-]+", config.instruct)
    assert config.base != config.instruct and config.base_revision and config.instruct_revision
    adaptation = config.adaptation
    assert adaptation.kept_tokens < adaptation.optimized_size and adaptation.kept_tokens < config.size.vocabulary


@pytest.mark.parametrize("name", SHAPES)
def test_the_memory_that_a_config_names_is_what_its_size_comes_to(name: str):
    config = composed(name)
    size, adaptation = config.size, config.adaptation

    def training(rows: int, vocabulary: int) -> float:
        return training_bytes(
            size.parameters,
            vocabulary=size.vocabulary,
            hidden=size.hidden,
            tied=size.tied,
            new_vocabulary=vocabulary,
            trained_rows=rows,
            body_bytes=2,
        )

    expected = [
        training(adaptation.new_tokens, size.vocabulary + adaptation.new_tokens),
        training(adaptation.replacement_size, adaptation.replacement_size),
        propagation_bytes(size.hidden, chunk_rows=CHUNK_ROWS),
    ]
    (said,) = re.findall(r"# Memory: (.*)", (CONF / f"{name}.yaml").read_text())
    assert re.findall(r"([\d.]+) GB", said) == [f"{nbytes / 1e9:.1f}" for nbytes in expected]


# Memory


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", ["all", "new"])
def test_memory_of_training_is_what_parameters_gradients_and_moments_take(rows, tied):
    """Counted on a model in training, to the byte."""
    tokenizer = pico_tokenizer(300, markers=())
    model = pico_model("qwen3", tied=tied, vocab_size=len(tokenizer))
    parameters, new, hidden = model.num_parameters(), 350, 32
    tables = embeddings_of(pico_model("llama", tied=tied, vocab_size=new))
    module = EmbeddingTraining(
        model, tables, learning_rate=1e-3, warmup_steps=1, rows=rows, first_new_row=300, body_dtype="bfloat16"
    )
    trainer = fit(module, blocks_of(tokenizer), 3)
    held = sum(p.numel() * p.element_size() for p in module.parameters())
    held += sum(p.numel() * 4 for p in module.parameters() if p.requires_grad)
    moments = [v for state in trainer.optimizers[0].state.values() for v in state.values() if v.ndim]
    held += sum(v.numel() * v.element_size() for v in moments)
    told = training_bytes(
        parameters,
        vocabulary=300,
        hidden=hidden,
        tied=tied,
        new_vocabulary=new,
        trained_rows=new if rows == "all" else new - 300,
        body_bytes=2,
    )
    stub = 32 * 2 * 1  # the one row that stands where the body's own table was
    assert held - told == stub
