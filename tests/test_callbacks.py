"""Where turns end, as the judge sees it; what is in memory when it begins."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pico_models import identity_operator, pico_model, pico_tokenizer

from lep import callbacks
from lep.artifacts import Store
from lep.benchmark import asking
from lep.benchmark.minimal_pairs import MinimalPairs
from lep.benchmark.scoring import render_chat
from lep.callbacks import Candidate, Judge, PropagateAndBenchmark
from lep.embeddings import Embeddings, embeddings_of, open_embeddings
from lep.propagation.swap import swap
from lep.training import EmbeddingTraining, PackedData

PROBES = [("the cat sat", "on the mat"), ("Мария купила книгу", "и"), ("the", "Мария купила красную книгу")] * 2


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_states_at_ends_are_those_of_each_conversation_read_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = pico_tokenizer(300)
    model = pico_model(family, tied=False, vocab_size=len(tokenizer))
    monkeypatch.setattr(callbacks, "PROBES_AT_ONCE", 4)
    ends, others = callbacks.turn_end_states(model, tokenizer, PROBES)
    slow_ends, slow_others = [], []
    for prompt, answer in PROBES:
        opened = render_chat(tokenizer, prompt)
        ids = tokenizer(opened + answer, add_special_tokens=False, return_tensors="pt")["input_ids"]
        start = len(tokenizer(opened, add_special_tokens=False)["input_ids"])
        with torch.inference_mode():
            states = model.get_decoder()(input_ids=ids).last_hidden_state[0]
        slow_ends.append(states[-1])
        slow_others.append(states[start - 1 : -1])
    torch.testing.assert_close(ends, torch.stack(slow_ends), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(others, torch.cat(slow_others), atol=1e-5, rtol=1e-5)


def pico_judge(tmp_path: Path, *, tied: bool = True, repair: bool = True, **suites: MinimalPairs) -> Judge:
    tokenizer = pico_tokenizer(300)
    pico_model("llama", tied=tied, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return Judge(
        store=Store(tmp_path / "artifacts"),
        instruct_dir=tmp_path / "model",
        instruct_tokenizer=tokenizer,
        tokenizer=tokenizer,
        kept_rows=[],
        base=open_embeddings(tmp_path / "model"),
        operator=identity_operator(len(tokenizer)),
        held_out={"ru": ["Мария купила книгу.", "Том пошёл домой."]},
        context=64,
        key={"instruct": "pico"},
        suites=suites,
        repair=repair,
    )


@pytest.mark.parametrize("repair", [True, False])
def test_the_end_of_turn_is_repaired_unless_that_is_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repair: bool
) -> None:
    judge, looked = pico_judge(tmp_path, tied=False, repair=repair), []
    monkeypatch.setattr(callbacks, "ended_answers", lambda *_: looked.append(1) or PROBES)
    adapted = open_embeddings(tmp_path / "model").in_memory()
    model, _, diagnostics = judge.model_of(Candidate("swap", adapted, swap, {}))
    assert bool(looked) == repair
    if repair:
        assert diagnostics["end of turn"]["ends"] == len(PROBES)
    else:
        assert diagnostics["end of turn"] == {"changed": False, "unchanged_because": "repair_end_of_turn=false"}
        assert torch.equal(embeddings_of(model).output, adapted.output)


def test_what_a_killed_process_left_beside_an_export_is_cleared(tmp_path: Path) -> None:
    judge, left = pico_judge(tmp_path), tmp_path / "models" / ".swap.carried"
    left.mkdir(parents=True)
    (left / "embeddings.safetensors").write_bytes(b"half")
    adapted = open_embeddings(tmp_path / "model")
    found = judge.carry(Candidate("swap", adapted, swap, {}), export_dir=tmp_path / "models" / "swap")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["swap"]
    written = open_embeddings(tmp_path / "models" / "swap").in_memory()
    assert torch.equal(written.input[: found.diagnostics["export"]["rows"]], adapted.in_memory().input)


def test_judging_goes_on_at_the_item_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = pico_judge(tmp_path, minimal_pairs=MinimalPairs(limit=40))
    choose, asked = asking._choose, []

    def killed_after(number: int):
        def ask(model, tokenizer, queries):
            if len(asked) + len(queries) > number:
                raise KeyboardInterrupt
            asked.extend(query.key for query in queries)
            return choose(model, tokenizer, queries)

        return ask

    monkeypatch.setattr(asking, "_choose", killed_after(20))
    with pytest.raises(KeyboardInterrupt):
        judge.judge(Candidate("original", None, None, {}))
    before = len(asked)
    assert 0 < before < 40
    monkeypatch.setattr(asking, "_choose", killed_after(1000))
    judged = judge.judge(Candidate("original", None, None, {}))
    assert len(asked) == len({*asked}) == 40, "none was asked twice"
    assert not list((tmp_path / "artifacts" / "unfinished").glob("scores-*"))
    again = judge.judge(Candidate("original", None, None, {}))
    assert again.found.scores == judged.found.scores and len(asked) == 40
    bits = again.estimates["bits per byte/ru"]
    assert bits.value == pytest.approx(again.row.bits_per_byte["ru"].value) and bits.n == 2
    np.testing.assert_array_equal(bits.replicates, judged.estimates["bits per byte/ru"].replicates)


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
@pytest.mark.parametrize("tied", [False, True])
def test_nothing_of_training_is_in_memory_when_the_first_model_is_judged(tied: bool) -> None:
    """Weak references to the body, the tables, their gradients and the optimizer, and a search for its state."""
    published, judged, left = list[Embeddings](), list[Embeddings](), list[str]()
    watched = dict[str, weakref.ref]()

    class Watch(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            (optimizer,) = trainer.optimizers
            named = {
                "optimizer": optimizer,
                "body": pl_module.body,
                "scheduler": trainer.lr_scheduler_configs[0].scheduler,
            }
            state = {
                f"state {i} of {key}": value
                for i, of in enumerate(optimizer.state.values())
                for key, value in of.items()
            }
            named |= state | dict(pl_module.named_parameters())
            watched.update({name: weakref.ref(value) for name, value in named.items()})

    def judge(adapted: Embeddings) -> None:
        assert len(published) == 1
        judged.append(adapted)
        left.extend(name for name, found in watched.items() if found() is not None)

    module = EmbeddingTraining(
        pico_model("llama", tied=tied),
        Embeddings(torch.randn(41, 32), None if tied else torch.randn(41, 32)),
        learning_rate=0.01,
        warmup_steps=2,
    )
    callbacks = [Watch(), PropagateAndBenchmark(lambda tables, _: published.append(tables), judge)]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=4,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    blocks = np.arange(20 * 9).reshape(20, 9) % 41
    trainer.fit(module, PackedData(blocks, batch_size=4, seed=0))
    assert left == [] and {"body", "optimizer", "input.trained", "state 0 of exp_avg"} <= set(watched)
    assert len(judged) == 1 and judged[0].input is published[0].input and judged[0].tied == tied
    assert [row["step"] for row in module.history] == [1, 2, 3, 4]
