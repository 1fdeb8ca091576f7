"""Answers and tuned weights are artifacts: made once, gone on with after a kill, new when their inputs change."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from peft import AutoPeftModelForCausalLM
from pico_models import identity_operator, pico_model, pico_tokenizer
from transformers import AutoModelForCausalLM

from lep import calibrator as calibrators
from lep.artifacts import Artifact, Store
from lep.calibration.adapter import read_adapter
from lep.calibration.answering import Rating, SelfAnswers
from lep.calibration.conversations import Conversation, MicroWorldChats
from lep.calibration.copying import CopyTasks, MicroWorldCopies
from lep.calibration.filtering import AnswerFilters
from lep.calibration.method import Calibration
from lep.calibration.tuning import Tuning
from lep.calibrator import Calibrator, find_inputs
from lep.callbacks import Candidate, Judge
from lep.corpus import TextFiles
from lep.embeddings import open_embeddings, read_embeddings
from lep.stages import judge_and_calibrate

pytestmark = pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode")
TUNING = Tuning(4, 8.0, "all", ["q_proj"], ["input", "output"], 1e-2, 0.1, 2, 64, epochs=2, checkpoint_every_steps=2)
KEEP_ALL = AnswerFilters(min_characters=0, max_repeated_share=None)


class Chats:
    """A source of conversations in memory."""

    def __init__(self, count: int = 40) -> None:
        self.count = count

    def read(self, dropped: Counter[str] | None = None, **_: Any) -> Iterator[Conversation]:
        if dropped is not None:
            dropped["of another kind"] += 1
        yield Conversation.exchange("the cat " * 100, "on the mat")
        yield from (Conversation.exchange(f"the cat {i} sat", f"on the mat {i % 7}") for i in range(self.count))

    def fingerprint(self) -> dict[str, Any]:
        return {"chats": self.count}


class Killed(Exception):
    pass


class KillAt(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


@pytest.fixture(scope="module")
def instruct_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory, tokenizer = tmp_path_factory.mktemp("instruct"), pico_tokenizer(300)
    eos = tokenizer.convert_tokens_to_ids("<|end|>")
    pico_model("llama", tied=False, vocab_size=len(tokenizer), eos_token_id=eos).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def calibrator(
    root: Path,
    instruct_dir: Path,
    kill_at: int | None = None,
    again: list[Any] | None = None,
    copies: Artifact | None = None,
    **method: Any,
) -> Calibrator:
    tokenizer = pico_tokenizer(300)
    judge = Judge(
        store=Store(root),
        instruct_dir=instruct_dir,
        instruct_tokenizer=tokenizer,
        tokenizer=tokenizer,
        kept_rows=[],
        base=open_embeddings(instruct_dir),
        operator=identity_operator(len(tokenizer)),
        suites={},
        held_out={},
        context=64,
        key={"instruct": "pico", "held_out": "none", "measured": 1, "repair": True},
    )

    def make_trainer(tuning: Tuning, steps: int, row: str, checkpoint: pl.Callback) -> pl.Trainer:
        return pl.Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            accumulate_grad_batches=tuning.accumulate,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            callbacks=[checkpoint, *([KillAt(kill_at)] if kill_at else [])],
        )

    how = Calibration(**{"instructions": Chats(), "tuning": TUNING} | method)
    logged = again.append if again is not None else lambda _: None
    return Calibrator(
        judge,
        {"how": how},
        ["original", "swap"],
        seed=0,
        make_trainer=make_trainer,
        log_again=lambda curve, whole: logged((whole, curve)),
        copies={"how": copies} if copies else {},
    )


def original() -> Candidate:
    return Candidate("original", None, None, {})


def curve(said: dict[str, Any]) -> list[dict[str, float]]:
    return [{key: row[key] for key in row if key != "train/tokens_per_second"} for row in said["curve"]]


def test_a_killed_calibration_goes_on_to_the_same_weights_and_is_then_done(tmp_path: Path, instruct_dir: Path):
    ((whole, said),) = calibrator(tmp_path / "whole", instruct_dir).calibrated(original())
    assert said["conversations"]["dropped"] == {"too long": 1} and said["left out"] == {"of another kind": 1}
    assert said["steps"] > 6 and whole.name == "original + how" and whole.adapter is not None
    with pytest.raises(Killed):
        list(calibrator(tmp_path / "killed", instruct_dir, kill_at=5).calibrated(original()))
    assert list((tmp_path / "killed" / "unfinished").glob("tuned-*/last.ckpt"))
    logged = list[Any]()
    ((resumed, again),) = calibrator(tmp_path / "killed", instruct_dir, again=logged).calibrated(original())
    assert curve(again) == curve(said) and resumed.adapter is not None
    ((finished, before),) = logged
    assert not finished and [row["step"] for row in before] == [row["step"] for row in again["curve"][: len(before)]]
    assert before[0]["original + how/train/loss"] == again["curve"][0]["train/loss"] and len(before) == 4
    ours, theirs = read_adapter(resumed.adapter), read_adapter(whole.adapter)
    assert ours.output is not None and theirs.output is not None and torch.equal(ours.output, theirs.output)
    assert all(torch.equal(ours.change(name), theirs.change(name)) for name in theirs.changes)
    assert not list((tmp_path / "killed" / "unfinished").iterdir())
    ((cached, _),) = calibrator(tmp_path / "killed", instruct_dir, kill_at=1, again=logged).calibrated(original())
    assert cached.adapter == resumed.adapter
    assert logged[1][0] and [row["step"] for row in logged[1][1]] == [row["step"] for row in again["curve"]]


def copies_of(root: Path, count: int) -> Artifact:
    def into(out: Path) -> dict[str, Any]:
        tasks = [{"messages": Conversation.exchange(f"again: dog {i}", f"dog {i}").messages()} for i in range(count)]
        (out / calibrators.COPIES_FILE).write_text("".join(json.dumps(task) + "\n" for task in tasks))
        return {"count": count}

    return Store(root).get_or_build("copies", "how", {"count": count}, into)


def test_copy_tasks_are_learnt_beside_the_rest(tmp_path: Path, instruct_dir: Path):
    ((_, without),) = calibrator(tmp_path, instruct_dir).calibrated(original())
    ((_, said),) = calibrator(tmp_path, instruct_dir, copies=copies_of(tmp_path, 3)).calibrated(original())
    assert said["conversations"]["rendered"] == without["conversations"]["rendered"] + 3
    assert said["copies"] == {"count": 3} and "copies" not in without


def test_other_instructions_and_settings_make_other_artifacts(tmp_path: Path, instruct_dir: Path):
    copies = [{"copies": copies_of(tmp_path, count)} for count in (3, 4)]
    changes = ({}, {"instructions": Chats(41)}, *copies, {"tuning": replace(TUNING, alpha=4.0)})
    made = {
        next(iter(calibrator(tmp_path, instruct_dir, **change).calibrated(original())))[0].adapter for change in changes
    }
    assert len(made) == len(changes)
    unseen = replace(TUNING, log_every_steps=3, checkpoint_every_steps=5)
    ((same, _),) = calibrator(tmp_path, instruct_dir, tuning=unseen, kill_at=1).calibrated(original())
    assert same.adapter in made


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_what_tuned_the_original_is_exported_merged_and_as_an_adapter_for_it(tmp_path: Path, instruct_dir: Path):
    ours = calibrator(tmp_path, instruct_dir)
    ours.judge.pad_to = 64
    out = tmp_path / "models" / "original"
    untouched, tuned = judge_and_calibrate(ours.judge, ours, original(), export_dir=out)
    assert (
        "export" not in untouched.diagnostics and "up to rounding" in tuned.diagnostics["export"]["checks"]["decoding"]
    )
    assert {path.name for path in out.parent.iterdir()} == {"original+how", "original+how-adapter"}
    merged = AutoModelForCausalLM.from_pretrained(out.with_name("original+how")).eval()
    adapted = AutoPeftModelForCausalLM.from_pretrained(out.with_name("original+how-adapter")).eval()
    before = AutoModelForCausalLM.from_pretrained(instruct_dir).eval()
    ids = torch.arange(24).reshape(2, 12) + 3
    with torch.no_grad():
        expected, rows = adapted(ids).logits, len(ours.judge.instruct_tokenizer)
        assert expected.shape[-1] == rows < merged.config.vocab_size
        torch.testing.assert_close(merged(ids).logits[..., :rows], expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(before(ids).logits, expected, atol=1e-2)


def test_models_that_are_not_named_are_left_alone(tmp_path: Path, instruct_dir: Path):
    assert list(calibrator(tmp_path, instruct_dir).calibrated(replace(original(), name="delta"))) == []


def test_own_answers_are_asked_once_and_only_a_propagated_model_learns_them(
    tmp_path: Path, instruct_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[int] = []
    real = calibrators.own_answers

    def counting(model: Any, tokenizer: Any, questions: Any, **how: Any) -> Any:
        asked.append(len(questions))
        found = real(model, tokenizer, questions, **how)
        return [replace(one, answer=one.answer.strip() or "x", ended="end token") for one in found]

    monkeypatch.setattr(calibrators, "own_answers", counting)
    answers = SelfAnswers(max_new_tokens=4, questions=30, filters=KEEP_ALL)
    tables = read_embeddings(instruct_dir)
    carried = Candidate("swap", tables, None, {"tables": "own"})
    ours = calibrator(tmp_path, instruct_dir, answers=answers)
    assert list(ours.calibrated(original())) == []
    ((_, said),) = ours.calibrated(carried)
    stricter = replace(answers, filters=replace(KEEP_ALL, min_characters=2))
    ((_, fewer),) = calibrator(tmp_path, instruct_dir, answers=stricter).calibrated(carried)
    assert asked == [29] and said["answers"]["questions too long"] == 1
    assert said["answers"]["left out"] == {"of another kind": 1}
    assert said["answers"]["asked"] == said["answers"]["kept"] + said["answers"].get("too short", 0) == 29
    assert fewer["answers"]["kept"] <= said["answers"]["kept"]
    stored = next((tmp_path / "answers").glob("*/answers.jsonl")).read_text().splitlines()
    assert len(stored) == 29 and json.loads(stored[0])["messages"][0]["content"] == "the cat 0 sat"


def test_only_answers_that_pass_the_filters_are_rated(
    tmp_path: Path, instruct_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    rated: list[Any] = []
    real = calibrators.own_answers

    def some_long(model: Any, tokenizer: Any, questions: Any, **how: Any) -> Any:
        found = real(model, tokenizer, questions, **how)
        return [replace(one, answer=f"no {i}" * (1 + i % 3), ended="end token") for i, one in enumerate(found)]

    def rate(model: Any, tokenizer: Any, answers: Any, **how: Any) -> list[int]:
        rated.extend(answers)
        return [1 + i % 5 for i in range(len(answers))]

    monkeypatch.setattr(calibrators, "own_answers", some_long)
    monkeypatch.setattr(calibrators, "rate", rate)
    rating = Rating(str(instruct_dir), "{question} {answer}", threshold=3)
    settings = SelfAnswers(4, questions=30, filters=replace(KEEP_ALL, min_characters=6), rating=rating)
    carried = Candidate("swap", read_embeddings(instruct_dir), None, {"tables": "own"})
    ((_, said),) = calibrator(tmp_path, instruct_dir, answers=settings).calibrated(carried)
    assert said["answers"]["too short"] == 10 and len(rated) == 19  # every third is said once
    assert all(len(found.answer) >= 6 for found in rated)
    assert said["answers"]["ratings"] == {"1": 4, "2": 4, "3": 4, "4": 4, "5": 3}
    assert (said["answers"]["kept"], said["answers"]["rated below 3"]) == (11, 8)
    assert said["conversations"]["read"] == 11
    # Other filters let others through, which are rated anew; another threshold rates nothing again.
    looser = replace(settings, filters=KEEP_ALL)
    ((_, said),) = calibrator(tmp_path, instruct_dir, answers=looser).calibrated(carried)
    assert len(rated) == 19 + 29 and "too short" not in said["answers"]
    lower = replace(looser, rating=replace(rating, threshold=1))
    ((_, said),) = calibrator(tmp_path, instruct_dir, answers=lower).calibrated(carried)
    assert len(rated) == 19 + 29 and said["answers"]["kept"] == 29


def test_no_answer_left_is_an_error_that_says_why(tmp_path: Path, instruct_dir: Path):
    answers = SelfAnswers(max_new_tokens=1, questions=3, filters=AnswerFilters(min_characters=1000))
    carried = Candidate("swap", read_embeddings(instruct_dir), None, {})
    told = r"none of 2 answers .* Loosen calibration\.how\.answers\.filters or lower calibration\.how\.answers\.rating"
    with pytest.raises(ValueError, match=told):
        list(calibrator(tmp_path, instruct_dir, answers=answers).calibrated(carried))


def test_what_a_calibration_needs_is_looked_for_before_any_work(instruct_dir: Path):
    find_inputs(Calibration(Chats(), TUNING), instruct_dir)
    with pytest.raises(ValueError, match=r"tuning.modules=nope is no linear map .* down_proj, gate_proj, k_proj"):
        find_inputs(Calibration(Chats(), replace(TUNING, modules=["nope"])), instruct_dir)
    rating = Rating("/nowhere", "{question} {answer}")
    with pytest.raises(ValueError, match=r"answers.rating.model=/nowhere is no model directory"):
        find_inputs(Calibration(Chats(), TUNING, SelfAnswers(4, rating=rating)), instruct_dir)
    texts = CopyTasks(TextFiles(("/nowhere/*.txt",), key="instructions.texts"), 3, (5, 9))
    with pytest.raises(ValueError, match=r"instructions.texts: no file matches"):
        find_inputs(Calibration(Chats(), TUNING, copies=texts), instruct_dir)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(TUNING, learning_rate=-1), "tuning.learning_rate=-1"),
        (lambda: replace(TUNING, block_size=0), "tuning.block_size=0"),
        (lambda: SelfAnswers(0), "answers.max_new_tokens=0"),
        (lambda: SelfAnswers(8, questions=0), "answers.questions=0"),
        (lambda: AnswerFilters(min_script_share=2), "answers.filters.min_script_share=2"),
        (lambda: AnswerFilters(scripts=["Martian"]), "answers.filters.scripts=Martian"),
        (lambda: CopyTasks(TextFiles(("x",)), 3, (5, 2)), r"instructions.copies.characters=\[5, 2\]"),
        (lambda: MicroWorldChats(0), "instructions.source.count=0"),
        (lambda: MicroWorldCopies(0), "instructions.copies.count=0"),
    ],
)
def test_impossible_settings_are_refused_when_they_are_read(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()
