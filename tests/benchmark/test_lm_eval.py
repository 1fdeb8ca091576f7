"""The harness on a model in memory, offline, on a task of ours: the same answers as our scoring of whole options."""

import csv
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from unittest.mock import Mock

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lep.benchmark import lm_eval
from lep.benchmark.asking import Journal
from lep.benchmark.darumeru import Darumeru
from lep.benchmark.lm_eval import RUCOLA, LmEval, write_rucola_task
from lep.results import Score

absent = importlib.util.find_spec("lm_eval") is None


@pytest.mark.skipif(absent, reason="lm_eval is an optional extra")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shots", [0, 2])
def test_a_task_of_ours_runs_offline_and_agrees_with_full_string_scoring(
    shots: int,
    tmp_path: Path,
    bpe: PreTrainedTokenizerFast,
    pico_model: Callable[..., LlamaForCausalLM],
    sentences: Callable[..., list[str]],
) -> None:
    model = pico_model(len(bpe))
    model.config.max_position_embeddings = 2048
    rows = [{"id": i, "sentence": text, "acceptable": i % 2} for i, text in enumerate(sentences(60))]
    for name, of in (("test", rows[:20]), ("train", rows[20:])):
        with (tmp_path / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(of)
    files = {"rucola": {"test": [str(tmp_path / "test.csv")], "prompt": [str(tmp_path / "train.csv")]}}
    suite = Darumeru("stand_in", files=files, tasks=["rucola"], shots=shots, chat=False)
    write_rucola_task(
        tmp_path / "tasks",
        test=rows[:20],
        examples=rows[20 + 29 : 20 + 29 + shots][::-1],
        wording=suite._prompts()["rucola"],
        bos=bpe.bos_token,  # type: ignore[arg-type]
    )
    theirs = LmEval([RUCOLA], include_path=str(tmp_path / "tasks"), batch_size=4)(model, bpe)
    ours = suite(model, bpe)
    assert [record.value for record in theirs.records] == [record.value for record in ours.records]
    assert theirs.scores[f"{RUCOLA} acc/ru"].value == ours.details["darumeru"]["tasks"]["rucola"]["metrics"]["accuracy"]
    assert theirs.scores[f"{RUCOLA} acc/ru"].n == 20 and 0 < len({record.value for record in theirs.records})


def test_the_harness_that_is_not_installed_is_told_with_a_remedy(
    bpe: PreTrainedTokenizerFast, pico_model: Callable[..., LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'lep\[lm-eval\]'"):
        LmEval(["xnli_ru"])(pico_model(len(bpe)), bpe)
    monkeypatch.setattr(metadata, "version", lambda name: metadata.distribution("no such " + name).version)
    with pytest.raises(ValueError, match=r"pip install 'lep\[lm-eval\]'"):
        LmEval(["xnli_ru"]).fingerprint()
    with pytest.raises(ValueError, match="tasks is empty"):
        LmEval([]).fingerprint()


def test_other_files_of_ones_own_tasks_are_another_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "0.4")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tasks" / "data").mkdir(parents=True)
    (tmp_path / "tasks" / "data" / "test.csv").write_text("a")
    suite = LmEval(["mine"], include_path="~/tasks")
    before = suite.fingerprint()
    assert suite.fingerprint() == before and list(before["files"]) == ["data/test.csv"]
    (tmp_path / "tasks" / "data" / "test.csv").write_text("b")
    assert suite.fingerprint() != before
    with pytest.raises(ValueError, match="include_path=/none is no directory"):
        LmEval(["mine"], include_path="/none").fingerprint()


def test_the_harness_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "results": {"mine": {"alias": "mine", "acc,none": 0.5, "acc_stderr,none": 0.5, "sample": lambda: None}},
        "n-samples": {"mine": {"effective": 2}},
        "samples": {"mine": [{"doc_id": 1, "target": 0, "acc": 1.0}, {"doc_id": 0, "target": 1, "acc": 0.0}]},
    }
    asked: list[int | None] = []
    monkeypatch.setattr(lm_eval, "evaluate", lambda _, __, suite: asked.append(suite.limit) or found)
    suite, model, tokenizer = LmEval(["mine"], limit=2), Mock(), Mock()
    first = suite(model, tokenizer, journal=Journal(tmp_path / "lm_eval"))
    again = suite(model, tokenizer, journal=Journal(tmp_path / "lm_eval"))
    assert first == again == suite(model, tokenizer) and asked == [2, 2]
    assert first.scores == {"mine acc/ru": Score(0.5, 0.5, 2)}
    assert [(record.item, record.value) for record in first.records] == [("0", 0.0), ("1", 1.0)]
    replace(suite, limit=1)(model, tokenizer, journal=Journal(tmp_path / "lm_eval"))
    assert asked == [2, 2, 1]
