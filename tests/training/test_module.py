import math
from pathlib import Path

import pytest
import torch
from pico import NEW, OLD, pico_blocks, pico_fit, pico_model, pico_module, pico_tables, pico_trainer
from torch.nn import functional
from transformers import LlamaForCausalLM

from lep.embeddings import set_embeddings_
from lep.training import EmbeddingTraining, PackedData
from lep.training.data import HeldOutWindow
from lep.training.module import cosine_schedule


def model_with_tables(*, tied: bool = False) -> LlamaForCausalLM:
    model = pico_model(tied=tied).eval()
    set_embeddings_(model, pico_tables(tied=tied))
    return model


def changed_rows(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    return (before != after).any(dim=1).nonzero().flatten().tolist()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", ["all", "new"])
def test_loss_is_that_of_the_whole_model(tied: bool, rows: str):
    model = model_with_tables(tied=tied)
    batch = torch.from_numpy(pico_blocks(4))
    expected = model(batch, labels=batch).loss
    module = pico_module(tied=tied, rows=rows, first_new_row=OLD).eval()
    torch.testing.assert_close(module.loss(batch[:, :-1], batch[:, 1:]), expected)


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_of_the_tables_are_those_of_the_whole_model(tied: bool):
    model = model_with_tables(tied=tied)
    batch = torch.from_numpy(pico_blocks(4))
    model(batch, labels=batch).loss.backward()
    module = pico_module(tied=tied).eval()
    module.loss(batch[:, :-1], batch[:, 1:]).backward()
    torch.testing.assert_close(module.input.trained.grad, model.get_input_embeddings().weight.grad)
    torch.testing.assert_close(module.output.trained.grad, model.get_output_embeddings().weight.grad)
    assert all(parameter.grad is None for parameter in module.body.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_training_moves_the_tables_and_not_one_other_tensor(tied: bool):
    original = pico_model(tied=tied).model.state_dict()
    before = pico_tables(tied=tied)
    module = pico_module(tied=tied)
    pico_fit(module)
    body = module.body.state_dict()
    assert all(torch.equal(body[name], value) for name, value in original.items() if "embed_tokens" not in name)
    after = module.embeddings()
    assert after.tied == tied
    assert changed_rows(before.input, after.input) == list(range(NEW))
    assert module.history[-1]["train/loss"] < module.history[0]["train/loss"]
    # The given tables themselves are still the initial ones: the untrained model is a row of the results.
    assert torch.equal(before.input, pico_tables(tied=tied).input)


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_alone_are_trained_with_no_memory_for_the_old(tied: bool):
    before = pico_tables(tied=tied)
    module = pico_module(tied=tied, rows="new", first_new_row=OLD)
    trainer = pico_fit(module)
    after = module.embeddings()
    assert changed_rows(before.input, after.input) == list(range(OLD, NEW))
    if before.output is not None and after.output is not None:
        assert changed_rows(before.output, after.output) == list(range(OLD, NEW))
    states = trainer.optimizers[0].state
    assert len(states) == (1 if tied else 2)
    assert all(state["exp_avg"].shape[0] == NEW - OLD for state in states.values())
    assert module.input.frozen.grad is None


@pytest.mark.parametrize("rows", ["all", "new"])
def test_frozen_rows_keep_their_values_to_the_last_bit(rows: str):
    before = pico_tables()
    module = pico_module(rows=rows, first_new_row=OLD, frozen_rows=[0, 33, 40], weight_decay=0.5)
    pico_fit(module)
    trained = set(range(NEW if rows == "all" else 0)) | set(range(OLD, NEW))
    assert changed_rows(before.input, module.embeddings().input) == sorted(trained - {0, 33, 40})


def test_tables_train_in_float32_over_a_bfloat16_body():
    before = pico_tables()
    module = pico_module(rows="new", first_new_row=OLD, body_dtype="bfloat16")
    pico_fit(module, 3)
    assert module.body.dtype == torch.bfloat16 and module.input.frozen.dtype == torch.bfloat16
    assert module.body.rotary_emb.inv_freq.dtype == torch.float32
    after = module.embeddings()
    assert after.input.dtype == torch.float32
    # Frozen rows come out as they were given, not as the body saw them.
    assert torch.equal(after.input[:OLD], before.input[:OLD])


def test_mixed_precision_trains_like_float32():
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        module = pico_module()
        pico_fit(module, 6, precision=precision)
        losses.append(module.history[-1]["train/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_precision_that_would_spoil_the_tables_is_refused():
    with pytest.raises(ValueError, match="trainer.precision=bf16-true"):
        pico_fit(pico_module(), precision="bf16-true")


def test_accumulated_batches_equal_one_large_batch():
    tables = []
    for batch_size, accumulate in ((8, 1), (4, 2)):
        module = pico_module()
        data = PackedData(pico_blocks(), batch_size=batch_size, seed=3)
        pico_fit(module, 5, data=data, accumulate_grad_batches=accumulate)
        tables.append(module.embeddings().input)
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-4, atol=1e-5)


def test_padding_is_never_a_target():
    batch = torch.from_numpy(pico_blocks(4))
    module = pico_module(ignored_id=5).eval()
    trainer = pico_trainer(1)
    module.trainer = trainer
    loss = module.training_step(batch, 0)
    expected = module.loss(batch[:, :-1], batch[:, 1:].masked_fill(batch[:, 1:] == 5, -100))
    assert (batch[:, 1:] == 5).any() and torch.equal(loss, expected)


def test_validation_is_the_mean_surprise_per_byte():
    windows = {
        "ru": [HeldOutWindow(block[:-1], block[1:], 13) for block in pico_blocks(5)],
        "en": [HeldOutWindow(block[:4], block[1:5], 3) for block in pico_blocks(2)],
    }
    module = pico_module()
    data = PackedData(pico_blocks(), batch_size=3, seed=0, held_out=windows)
    (values,) = pico_trainer(1).validate(module, data, verbose=False)
    model = model_with_tables()
    rates = {}
    for language, some in windows.items():
        nats = 0.0
        for window in some:
            logits = model(torch.from_numpy(window.inputs)[None]).logits[0]
            nats += functional.cross_entropy(logits, torch.from_numpy(window.targets), reduction="sum").item()
        rates[language] = nats / math.log(2) / sum(window.num_bytes for window in some)
        assert values[f"val/bits_per_byte/{language}"] == pytest.approx(rates[language], rel=1e-5)
    assert values["val/bits_per_byte"] == pytest.approx(sum(rates.values()) / 2, rel=1e-5)


def test_validation_during_training_leaves_the_loss_curve_alone():
    curves = []
    windows = [HeldOutWindow(block[:-1], block[1:], 9) for block in pico_blocks(3)]
    for held_out in ({}, {"ru": windows}):
        module = pico_module()
        data = PackedData(pico_blocks(), batch_size=4, seed=3, held_out=held_out)
        pico_fit(module, 8, data=data, val_check_interval=4, check_val_every_n_epoch=None)
        curves.append([row["train/loss"] for row in module.history if "train/loss" in row])
    assert curves[0] == curves[1]
    assert [row["step"] for row in module.history if "val/bits_per_byte/ru" in row] == [4, 8]


def test_learning_rate_warms_up_and_falls_to_its_end():
    scale = cosine_schedule(4, 20, final=0.1)
    rates = [scale(step) for step in range(21)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[20] == pytest.approx(0.1)
    assert all(a > b for a, b in zip(rates[4:], rates[5:], strict=False))


def test_loggers_get_loss_speed_and_rate_every_few_steps(tmp_path: Path):
    from pytorch_lightning.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="", version="")
    pico_fit(pico_module(), 6, logger=logger, log_every_n_steps=2)
    logger.save()
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    wanted = {"step", "train/loss", "train/learning_rate", "train/tokens", "train/tokens_per_second"}
    assert wanted <= set(header.split(","))
    steps = [row.split(",")[header.split(",").index("step")] for row in rows]
    assert steps == ["2", "4", "6"]


def test_the_model_is_whole_again_with_the_trained_tables():
    model = pico_model()
    module = EmbeddingTraining(model, pico_tables(), learning_rate=0.01, warmup_steps=2)
    pico_fit(module, 3)
    batch = torch.from_numpy(pico_blocks(2))
    ours = module.eval().loss(batch[:, :-1], batch[:, 1:])
    set_embeddings_(model, module.embeddings())
    torch.testing.assert_close(model.eval()(batch, labels=batch).loss, ours)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": "new"}, "training.rows=new needs"),
        ({"rows": "new", "first_new_row": NEW}, "training.rows=new needs"),
        ({"rows": "some"}, "training.rows=some"),
        ({"frozen_rows": [NEW]}, "frozen_rows"),
    ],
)
def test_impossible_rows_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        pico_module(**settings)


def test_warm_up_longer_than_training_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=12"):
        pico_fit(pico_module(warmup_steps=12), 12)


def test_a_model_that_changes_its_logits_is_refused():
    class Scaled(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 2
            return out

    from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

    sizes = {"vocab_size": OLD, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    for model in (
        Scaled(pico_model().config),
        CohereForCausalLM(CohereConfig(**sizes, **heads, tie_word_embeddings=True)),
        Gemma2ForCausalLM(Gemma2Config(**sizes, **heads)),
    ):
        with pytest.raises(ValueError, match="changes its embeddings or logits"):
            EmbeddingTraining(model, pico_tables(), learning_rate=0.01)
