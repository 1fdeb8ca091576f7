"""What a tuning may move and what not; that it learns what it says; that a killed one goes on bit for bit."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pico_models import FAMILIES, pico_model
from torch.nn import functional
from tuned import VOCABULARY, blocks, fit, module, settings

from lep.calibration.adapter import merge_
from lep.calibration.packing import InstructionBlocks
from lep.calibration.tuning import InstructionTuning, StepBatches, Tuning
from lep.training.loss import IGNORED, chunked_cross_entropy


def ids() -> torch.Tensor:
    return torch.arange(24).reshape(2, 12) % (VOCABULARY - 3) + 3


@pytest.mark.parametrize("changes", [{"learning_rate": 0.0}, {"epochs": 0}])
@pytest.mark.parametrize("tied", [False, True])
def test_no_learning_rate_or_no_steps_changes_nothing_to_the_last_bit(changes: dict, tied: bool):
    model = pico_model("llama", tied=tied)
    before = copy.deepcopy(model)
    tuning = settings(**changes)
    steps = tuning.steps(len(blocks()))
    found = module(tuning, model, steps=steps)
    if steps:
        fit(found, steps)
    after = copy.deepcopy(before)
    merge_(after, found.tuned())
    assert {k: v.tolist() for k, v in after.state_dict().items()} == {
        k: v.tolist() for k, v in before.state_dict().items()
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tables", [[], ["output"], ["input", "output"]])
@pytest.mark.parametrize("layers", ["all", "first_and_last"])
def test_only_what_is_named_moves(tied: bool, tables: list, layers: str):
    model = pico_model("llama", tied=tied, num_hidden_layers=3)
    before = copy.deepcopy(model)
    found = module(settings(tables=tables, layers=layers), model)
    frozen = {name: value.clone() for name, value in found.named_parameters() if not value.requires_grad}
    fit(found)
    for name, parameter in found.named_parameters():
        if name in frozen:
            assert parameter.grad is None and torch.equal(parameter, frozen[name]), name
    after = copy.deepcopy(before)
    merge_(after, found.tuned())
    moved = {name for name, value in after.named_parameters() if not torch.equal(value, before.get_parameter(name))}
    inside = (0, 1, 2) if layers == "all" else (0, 2)
    expected = {f"model.layers.{i}.{m}.weight" for i in inside for m in ("self_attn.q_proj", "mlp.down_proj")}
    if "input" in tables or (tied and tables):
        expected.add("model.embed_tokens.weight")
    if "output" in tables and not tied:
        expected.add("lm_head.weight")
    assert moved == expected
    assert (after.get_output_embeddings().weight is after.get_input_embeddings().weight) == tied
    assert found.history[-1]["train/loss"] < found.history[0]["train/loss"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_the_merged_model_is_the_tuned_one(family: str, tied: bool):
    model = pico_model(family, tied=tied)
    merged = copy.deepcopy(model)
    found = module(settings(), model)
    fit(found)
    merge_(merged, found.tuned())
    with torch.no_grad():
        states = found.hidden(ids())
        ours = states @ found.output.whole().T
        torch.testing.assert_close(merged(ids()).logits, ours, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(ours, pico_model(family, tied=tied)(ids()).logits, atol=1e-2)


def test_the_loss_is_that_of_the_answers_of_each_conversation_read_alone():
    model = pico_model("llama", tied=False)
    found = module(settings(batch_size=4, blocks_at_once=4), copy.deepcopy(model))
    packed = blocks()
    (batch, *_) = StepBatches(packed, batch_size=4, seed=3)
    found.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    loss = found.training_step(batch, 0)
    nats, tokens = 0.0, 0
    for index in StepBatches(packed, batch_size=4, seed=3).order()[:4]:
        for number in packed.layout[int(index)]:
            one = packed.rendered[number]
            row = torch.from_numpy(one.ids).long()
            labels = row.where(torch.from_numpy(one.answered), IGNORED)
            logits = model(row[None]).logits[0]
            nats += functional.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORED, reduction="sum").item()
            tokens += int((labels[1:] != IGNORED).sum())
    assert loss.item() == pytest.approx(nats / tokens, rel=1e-5)


def test_logits_are_made_of_answers_alone(monkeypatch: pytest.MonkeyPatch):
    made = list[int]()

    def counting(hidden: torch.Tensor, *tables, **how) -> torch.Tensor:
        made.append(len(hidden))
        return chunked_cross_entropy(hidden, *tables, **how)

    monkeypatch.setattr("lep.calibration.tuning.chunked_cross_entropy", counting)
    found = module(settings(batch_size=4, blocks_at_once=4, epochs=1), steps=1)
    fit(found, 1)
    (batch, *_) = StepBatches(blocks(), batch_size=4, seed=3)
    assert made == [int((batch["labels"] != IGNORED).sum())] and made[0] < batch["labels"].numel() / 2


def test_accumulated_batches_with_unequal_answers_equal_one_large_batch():
    found = []
    for at_once in (4, 2, 1):
        tuned = module(settings(batch_size=4, blocks_at_once=at_once, epochs=2))
        fit(tuned, 5)
        found.append(tuned)
    for other in found[1:]:
        torch.testing.assert_close(other.output.whole(), found[0].output.whole(), rtol=1e-4, atol=1e-5)
        losses = [[row["train/loss"] for row in one.history] for one in (other, found[0])]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_what_is_trained_is_float32_over_a_bfloat16_body():
    model = pico_model("llama", tied=False).to(torch.bfloat16)
    found = module(settings(body_dtype="bfloat16", tables=["output"]), model)
    fit(found, 3)
    trained = {p.dtype for p in found.parameters() if p.requires_grad}
    frozen = {p.dtype for p in found.parameters() if not p.requires_grad}
    assert trained == {torch.float32} and frozen == {torch.bfloat16}


def test_checkpoints_hold_what_is_trained_and_nothing_else(tmp_path: Path):
    found = module(settings(tables=["output"]))
    fit(found, checkpoints=tmp_path)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {*saved} == {name for name, parameter in found.named_parameters() if parameter.requires_grad}
    assert len(saved) == 2 * 2 * 2 + 1  # two factors of two maps in two layers, and the head


class Killed(Exception):
    pass


class KillAt(pl.Callback):
    def __init__(self, batch: int) -> None:
        self.left = batch

    def on_train_batch_start(self, *_) -> None:
        if not self.left:
            raise Killed
        self.left -= 1


@pytest.mark.parametrize(("at_once", "killed_at"), [(2, 4), (2, 7), (1, 9), (1, 12)])
@pytest.mark.parametrize("tied", [False, True])
def test_a_killed_tuning_goes_on_bit_for_bit(tmp_path: Path, at_once: int, killed_at: int, tied: bool):
    goes_on(tmp_path, settings(blocks_at_once=at_once), killed_at, tied=tied)


@pytest.mark.parametrize("count", [5, 6, 7, 9])  # at step 3, a checkpoint: the epoch ends with one of 5 or 6
@pytest.mark.parametrize("at_once", [1, 2])
def test_one_that_is_killed_about_a_smaller_step_does_too(tmp_path: Path, at_once: int, count: int):
    packed = replace(blocks(60), layout=blocks(60).layout[:count])
    epochs, more = divmod(8, -(-count // 2))
    batches = epochs * -(-count // at_once) + more * 2 // at_once
    for killed_at in range(3 * 2 // at_once, batches):  # the first checkpoint is at step 3
        folder = tmp_path / str(killed_at)
        goes_on(folder, settings(blocks_at_once=at_once, epochs=3), killed_at, data=packed)


def goes_on(folder: Path, tuning: Tuning, killed_at: int, *, tied: bool = False, data: InstructionBlocks | None = None):
    """Kills a tuning at a batch, resumes it, and compares with an undisturbed one."""

    def fresh() -> InstructionTuning:
        return module(tuning, pico_model("llama", tied=tied))

    whole = fresh()
    fit(whole, data=data)
    with pytest.raises(Killed):
        fit(fresh(), checkpoints=folder, callbacks=(KillAt(killed_at),), data=data)
    resumed = fresh()
    fit(resumed, checkpoints=folder, resume=True, data=data)
    curves = [
        [{name: value for name, value in row.items() if name != "train/tokens_per_second"} for row in one.history]
        for one in (whole, resumed)
    ]
    assert curves[0] == curves[1]
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("count", "steps"), [(12, 3), (11, 3), (9, 3), (8, 2), (3, 1)])
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_an_epoch_learns_each_block_once_whether_they_fill_its_steps_or_not(count: int, steps: int, at_once: int):
    """Through Lightning's own loop: what the model reads between two steps of the optimizer."""
    tuning = settings(batch_size=4, blocks_at_once=at_once, epochs=2)
    assert tuning.steps(count) == 2 * steps and settings(epochs=0).steps(count) == 0
    packed = replace(blocks(60), layout=blocks(60).layout[:count])
    read, seen = [0], list[list[int]]([[]])

    class Reader(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: dict, *_) -> None:
            seen[-1] += [row.tolist() for row in batch["input_ids"]]

        def on_train_batch_end(self, trainer: pl.Trainer, *_) -> None:
            if trainer.global_step > read[-1]:
                read.append(trainer.global_step)
                seen.append([])

    fit(module(tuning), 2 * steps, data=packed, callbacks=(Reader(),))
    assert read[-1] == 2 * steps and [len(step) for step in seen[:-1]] == 2 * [
        *[4] * (count // 4),
        *([count % 4] if count % 4 else []),
    ]
    whole = sorted(packed[i][0].tolist() for i in range(count))
    assert sorted(sum(seen[:steps], [])) == whole == sorted(sum(seen[steps:], []))


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_the_gradient_of_the_last_smaller_step_is_that_of_its_answers(at_once: int):
    """Against each conversation read alone, in float64; LoRA's second factor (its first is zero) by the chain rule."""
    tuning = settings(batch_size=4, blocks_at_once=at_once, epochs=1, learning_rate=0.0, weight_decay=0.0)
    packed = replace(blocks(60), layout=blocks(60).layout[:11])
    model = pico_model("llama", tied=False)
    plain = copy.deepcopy(model).double()
    found, gradients = module(tuning, model), list[dict[str, torch.Tensor]]()

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
            named = module.named_parameters()
            gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    fit(found, 3, data=packed, callbacks=(Watch(),))
    nats, tokens = torch.zeros((), dtype=torch.float64), 0
    for index in StepBatches(packed, batch_size=4, seed=3).order()[8:]:
        for number in packed.layout[int(index)]:
            one = packed.rendered[number]
            row = torch.from_numpy(one.ids).long()
            labels = row.where(torch.from_numpy(one.answered), IGNORED)[1:]
            nats = nats + functional.cross_entropy(plain(row[None]).logits[0, :-1], labels, reduction="sum")
            tokens += int((labels != IGNORED).sum())
    loss = nats / tokens
    loss.backward()
    (last,) = gradients[2:]
    expected = {"input.trained": plain.get_input_embeddings().weight.grad, "output.trained": plain.lm_head.weight.grad}
    for name in (name for name in last if "lora_B" in name):
        inside = name.removeprefix("body.").removesuffix(".lora_B.default.weight")
        first = found.body.get_submodule(inside).lora_A.default.weight.double()
        changed = plain.get_decoder().get_submodule(inside).weight.grad
        expected[name] = tuning.alpha / tuning.rank * changed @ first.T
    assert len(expected) == 2 + 2 * 2
    for name, gradient in expected.items():
        torch.testing.assert_close(last[name].double(), gradient, rtol=1e-4, atol=1e-6)
    assert found.history[-1]["train/loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_fewer_blocks_than_a_step_has_are_one_smaller_step():
    found = module(settings(batch_size=64, blocks_at_once=4), steps=2)
    fit(found, settings(batch_size=64).steps(len(blocks())))
    assert [row["step"] for row in found.history] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "tuning.rank=0"),
        ({"layers": "some"}, "tuning.layers=some"),
        ({"modules": []}, "tuning.modules"),
        ({"tables": ["head"]}, "tuning.tables"),
        ({"warmup_share": 1.0}, "tuning.warmup_share=1.0"),
        ({"batch_size": 3, "blocks_at_once": 2}, "multiple of blocks_at_once=2"),
    ],
)
def test_impossible_settings_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_a_map_that_the_model_does_not_have_is_refused_with_those_it_has():
    with pytest.raises(ValueError, match="tuning.modules=wqkv is no linear map.*q_proj"):
        module(settings(modules=["wqkv"]))
