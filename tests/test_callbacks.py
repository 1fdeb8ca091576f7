"""Where turns end, as the judge sees it."""

import pytest
import torch
from pico_models import pico_model, pico_tokenizer

from lep import callbacks
from lep.benchmark.scoring import render_chat

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
