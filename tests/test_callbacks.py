"""Where turns end, as the judge sees it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pico_models import identity_operator, pico_model, pico_tokenizer

from lep import callbacks
from lep.artifacts import Store
from lep.benchmark import asking
from lep.benchmark.minimal_pairs import MinimalPairs
from lep.benchmark.scoring import render_chat
from lep.callbacks import Candidate, Judge
from lep.embeddings import open_embeddings

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


def test_judging_goes_on_at_the_item_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = pico_tokenizer(300)
    pico_model("llama", tied=True, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    judge = Judge(
        store=Store(tmp_path / "artifacts"),
        instruct_dir=tmp_path / "model",
        instruct_tokenizer=tokenizer,
        tokenizer=tokenizer,
        kept_rows=[],
        base=open_embeddings(tmp_path / "model"),
        operator=identity_operator(len(tokenizer)),
        suites={"minimal_pairs": MinimalPairs(limit=40)},
        held_out={"ru": ["Мария купила книгу.", "Том пошёл домой."]},
        context=64,
        key={"instruct": "pico"},
    )
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
