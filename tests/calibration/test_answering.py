"""The original model's own answers: greedy, each asked once however often the process dies, by either engine."""

import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pico_models import pico_model, pico_tokenizer

from lep.benchmark import asking
from lep.benchmark.asking import Journal
from lep.benchmark.scoring import end_tokens
from lep.calibration import answering
from lep.calibration.answering import (
    Rating,
    SelfAnswers,
    own_answers,
    questions_of,
    rate,
    read_answers,
    render_questions,
    vllm_answers,
    write_answers,
)
from lep.calibration.conversations import Conversation, Turn
from lep.calibration.filtering import Answered

REQUEST = "Rate {answer} to {question}, 1 to 5."


@pytest.fixture(scope="module")
def tokenizer():
    return pico_tokenizer(300)


@pytest.fixture(scope="module")
def model(tokenizer):
    return pico_model("llama", tied=False, vocab_size=len(tokenizer))


@pytest.fixture(scope="module")
def questions(tokenizer) -> list[Conversation]:
    conversations = [Conversation.exchange(f"the cat {i} sat", "on the mat") for i in range(40)]
    found, too_long = questions_of(conversations, tokenizer, max_tokens=100)
    assert too_long == 0
    return found


def test_only_what_is_said_before_the_first_answer_is_asked(tokenizer):
    turns = (Turn("system", "be kind"), Turn("user", "the cat"), Turn("assistant", "sat"), Turn("user", "and?"))
    (question,), _ = questions_of([Conversation(turns)], tokenizer, max_tokens=100)
    assert question.turns == turns[:2]
    expected = "<|system|>\nbe kind<|end|>\n<|user|>\nthe cat<|end|>\n<|assistant|>\n"
    assert render_questions([question], tokenizer) == [expected]


def test_questions_that_leave_no_room_are_counted(tokenizer):
    conversations = [Conversation.exchange("cat " * n, "sat") for n in (1, 50, 2)]
    found, too_long = questions_of(conversations, tokenizer, max_tokens=40)
    assert len(found) == 2 and too_long == 1
    assert len(questions_of(conversations, tokenizer, max_tokens=400, limit=2)[0]) == 2


def test_answers_are_greedy(model, tokenizer, questions):
    (found,) = own_answers(model, tokenizer, questions[:1], max_new_tokens=6, journal=Journal())
    ids = tokenizer(render_questions([questions[0]], tokenizer)[0], add_special_tokens=False, return_tensors="pt")[
        "input_ids"
    ]
    written: list[int] = []
    for _ in range(6):
        token = int(model(torch.cat([ids, torch.tensor([written], dtype=torch.long)], 1)).logits[0, -1].argmax())
        if token in end_tokens(tokenizer):
            break
        written.append(token)
    assert found.answer == tokenizer.decode(written)


def test_a_killed_process_asks_nothing_twice(tmp_path: Path, model, tokenizer, questions, monkeypatch):
    whole = own_answers(model, tokenizer, questions, max_new_tokens=4, journal=Journal())
    asked: list[str] = []
    real = asking.generate

    def generate(model, tokenizer, prompts, **how):
        if len(asked) >= 16:
            raise KeyboardInterrupt
        asked.extend(prompts)
        return real(model, tokenizer, prompts, **how)

    monkeypatch.setattr(asking, "generate", generate)
    with pytest.raises(KeyboardInterrupt):
        own_answers(model, tokenizer, questions, max_new_tokens=4, journal=Journal(tmp_path / "journal"))
    assert 0 < len(asked) < len(questions)
    before, asked[:] = [*asked], []
    monkeypatch.setattr(asking, "generate", lambda *a, **how: asked.extend(a[2]) or real(*a, **how))
    resumed = own_answers(model, tokenizer, questions, max_new_tokens=4, journal=Journal(tmp_path / "journal"))
    assert resumed == whole
    assert sorted(before + asked) == sorted(render_questions(questions, tokenizer))


def test_answers_come_back_from_their_file_as_they_were(tmp_path: Path, questions):
    answers = [
        Answered(questions[0], "сидел\nтам\u2028и\u2029тут\x85\r", "end token"),
        Answered(questions[1], "", "budget"),
    ]
    write_answers(tmp_path / "answers.jsonl", answers)
    assert read_answers(tmp_path / "answers.jsonl") == answers


def test_the_judge_gives_the_likeliest_digit(model, tokenizer, questions):
    answers = [Answered(question, "on the {question}", "end token") for question in questions[:3]]
    ratings = rate(model, tokenizer, answers, request=REQUEST, journal=Journal())
    for found, rating in zip(answers, ratings, strict=True):
        asked = f"Rate on the {{question}} to {found.question.turns[0].content}, 1 to 5."
        text = render_questions([Conversation((Turn("user", asked),))], tokenizer)[0]
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        digits = [tokenizer(digit, add_special_tokens=False)["input_ids"][0] for digit in "12345"]
        assert rating == 1 + int(model(ids).logits[0, -1, digits].argmax())


class FakeEngine:
    """What vLLM is asked for, and answers as it gives them."""

    asked: list[list[int]] = []
    started: list[tuple[weakref.ref, dict]] = []

    def __init__(self, **settings) -> None:
        self.itself = self  # as the real one, it goes by garbage collection alone
        FakeEngine.started.append((weakref.ref(self), settings))

    def generate(self, prompts, parameters):
        assert parameters.temperature == 0.0 and parameters.max_tokens == 4
        FakeEngine.asked += [prompt["prompt_token_ids"] for prompt in prompts]
        reasons = ("stop", "length")
        return [
            SimpleNamespace(outputs=[SimpleNamespace(text="мат", token_ids=(1, 2), finish_reason=reasons[i % 2])])
            for i in range(len(prompts))
        ]


def test_vllm_is_given_the_same_ids_and_resumes_too(tmp_path: Path, tokenizer, questions, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "vllm", SimpleNamespace(LLM=FakeEngine, SamplingParams=lambda **how: SimpleNamespace(**how))
    )
    monkeypatch.setattr(FakeEngine, "asked", [])
    monkeypatch.setattr(FakeEngine, "started", [])
    journal = Journal(tmp_path / "journal")
    found = vllm_answers(tmp_path, tokenizer, questions[:4], max_new_tokens=4, journal=journal)
    assert [one.ended for one in found] == ["end token", "budget"] * 2
    rendered = render_questions(questions[:4], tokenizer)
    assert FakeEngine.asked == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    again = vllm_answers(tmp_path, tokenizer, questions[:5], max_new_tokens=4, journal=Journal(tmp_path / "journal"))
    assert again[:4] == found and len(FakeEngine.asked) == 5
    for (engine, settings), rows in zip(FakeEngine.started, (FakeEngine.asked[:4], FakeEngine.asked[4:]), strict=True):
        assert settings == {"model": str(tmp_path), "seed": 0, "max_model_len": max(map(len, rows)) + 4}
        assert engine() is None  # its memory is free for what comes next


def test_vllm_answers_by_itself_only_where_models_run_on_a_gpu(monkeypatch):
    monkeypatch.setattr(answering, "vllm_is_here", lambda: True)
    uses = {
        engine: SelfAnswers(max_new_tokens=4, engine=engine).uses_vllm for engine in ("auto", "transformers", "vllm")
    }
    assert [uses["auto"](device) for device in ("cpu", "cuda:0")] == [False, True]
    assert [uses["transformers"](device) for device in ("cpu", "cuda:0")] == [False, False]
    assert [uses["vllm"](device) for device in ("cpu", "cuda:0")] == [True, True]
    monkeypatch.setattr(answering, "vllm_is_here", lambda: False)
    assert not uses["auto"]("cuda:0")


def test_settings_that_cannot_be_are_refused(monkeypatch):
    monkeypatch.setattr(answering, "vllm_is_here", lambda: False)
    with pytest.raises(ValueError, match=r"engine=vllm.*lep\[vllm\]"):
        SelfAnswers(max_new_tokens=4, engine="vllm")
    with pytest.raises(ValueError, match="threshold=6"):
        Rating(model=None, request=REQUEST, threshold=6)
    with pytest.raises(ValueError, match="must name"):
        Rating(model=None, request="Rate {answer}")
    assert not SelfAnswers(max_new_tokens=4, rating=Rating(model=None, request=REQUEST)).rates
