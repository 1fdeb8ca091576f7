"""The harness on a model in memory, offline, on a task of ours: the same answers as our scoring of whole options."""

import csv
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

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
    with pytest.raises(ValueError, match="tasks is empty"):
        LmEval([])(pico_model(len(bpe)), bpe)


def test_scores_of_filters_and_correlations_below_zero_are_kept(
    bpe: PreTrainedTokenizerFast, pico_model: Callable[..., LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = {
        "alias": "rucola",
        "mcc,none": -0.13,
        "mcc_stderr,none": 0.06,
        "exact_match,flexible-extract": 0.5,
        "exact_match_stderr,flexible-extract": 0.1,
        "perplexity,none": 30.0,
        "perplexity_stderr,none": 1.0,
        "bleu,none": 0.2,
        "bleu_stderr,none": "N/A",
    }
    told = {"results": {"rucola": metrics}, "n-samples": {"rucola": {"effective": 20}}, "samples": {}}
    monkeypatch.setattr("lep.benchmark.lm_eval.evaluate", lambda *_: told)
    found = LmEval(["rucola"])(pico_model(len(bpe)), bpe)
    assert found.scores == {
        "rucola mcc/ru": Score(-0.13, 0.06, 20),
        "rucola exact_match (flexible-extract)/ru": Score(0.5, 0.1, 20),
    }
    assert found.details["lm_eval rucola"]["perplexity"] == 30.0
