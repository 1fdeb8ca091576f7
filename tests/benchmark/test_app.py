"""`lep-benchmark` on model directories: several suites, two models, a kill in the middle, ranks that share items."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lep import benchmark_app
from lep.benchmark.asking import Journal
from lep.results import read_result

STAND_IN = ["benchmark.darumeru.source=stand_in", "benchmark.darumeru.chat=false", "benchmark.darumeru.shots=0"]


@pytest.fixture(scope="module")
def directory(
    tmp_path_factory: pytest.TempPathFactory, bpe: PreTrainedTokenizerFast, pico_model: Callable[..., LlamaForCausalLM]
) -> Path:
    folder = tmp_path_factory.mktemp("models") / "pico"
    pico_model(len(bpe)).save_pretrained(folder)
    bpe.save_pretrained(folder)
    return folder


def command(directory: Path, folder: Path, *overrides: str) -> list[str]:
    places = [f"output_dir={folder}/runs", f"artifacts_dir={folder}/artifacts", "device=cpu"]
    return [sys.executable, "-m", "lep.benchmark_app", f"model={directory}", *places, *overrides]


def answers(folder: Path) -> dict[str, object]:
    lines = [
        json.loads(line)
        for path in (folder / "artifacts" / "answers").glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    keyed = [line for line in lines if "key" in line and "value" in line]
    assert len({line["key"] for line in keyed}) == len(keyed), "no item was asked twice"
    return {line["key"]: line["value"] for line in keyed}


def test_a_killed_run_goes_on_at_the_item_where_it_stopped(directory: Path, tmp_path: Path) -> None:
    overrides = [*STAND_IN, "benchmark=darumeru", "benchmark.darumeru.tasks=[multiq,parus,ruopenbookqa,cp_para_ru]"]
    run = command(directory, tmp_path, *overrides)
    killed = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "artifacts" / "answers"
    while killed.poll() is None and sum(path.read_bytes().count(b"\n") for path in folder.glob("*")) < 10:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    before = answers(tmp_path)
    assert 0 < len(before) < 20 + 40 + 20 + 20
    assert not list(tmp_path.glob("runs/**/result.json"))
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    after = answers(tmp_path)
    assert "answers are there" in done.stdout and len(after) == 100
    assert {key: after[key] for key in before} == before
    result = read_result(next(tmp_path.glob("runs/benchmark/*/result.json")))
    assert {score.n for score in result.rows[0].scores.values()} == {20}
    assert "incomplete: Darumeru of pico; missing: rummlu" in done.stdout
    page = next(tmp_path.glob("runs/**/report.html")).read_text(encoding="utf-8")
    assert "Incomplete: Darumeru of pico; missing: rummlu" in page


def run_app(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["lep-benchmark", *arguments])
    benchmark_app.main()


@pytest.mark.filterwarnings("ignore")
def test_several_suites_and_a_second_model(
    directory: Path,
    tmp_path: Path,
    bpe: PreTrainedTokenizerFast,
    pico_model: Callable[..., LlamaForCausalLM],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other"
    pico_model(len(bpe), seed=1).save_pretrained(other)
    bpe.save_pretrained(other)
    fair = ["benchmark.fair.max_characters=500", "benchmark.fair.context=60", "benchmark.fair.max_new_characters=10"]
    fair += ["benchmark.fair.timed_tokens=2"]
    overrides = [*STAND_IN, "benchmark.darumeru.tasks=[parus]", "benchmark.minimal_pairs.limit=3", *fair]
    arguments = command(directory, tmp_path, "benchmark=[darumeru,fair,minimal_pairs]", f"against={other}", *overrides)
    run_app(monkeypatch, *arguments[3:])
    result = read_result(next(tmp_path.glob("runs/benchmark/*/result.json")))
    assert [row.name for row in result.rows] == ["pico", "other"]
    assert {"parus/ru", "own script/en", "minimal pairs/ru"} <= set(result.rows[0].scores)
    assert result.rows[0].bits_per_byte["en"].value > 0 and result.rows[0].details["speed/ru"]["tokens_per_second"] > 0
    text = result.rows[0].details["text/ru"]
    assert text["bits_per_character"] > text["bits_per_byte"] and text["tokens_per_word"] > 1
    compared = {found["task"] for found in result.comparisons}
    assert {"parus/ru", "agreement/ru"} <= compared
    assert "bits per byte/ru" in capsys.readouterr().out
    assert list(tmp_path.glob("runs/benchmark/*/report.html"))


def test_two_models_of_one_name_are_told_apart_within_the_run(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "elsewhere" / directory.name
    shutil.copytree(directory, other)
    overrides = [*STAND_IN, "benchmark=darumeru", "benchmark.darumeru.tasks=[parus]", "benchmark.darumeru.limit=2"]
    run_app(monkeypatch, *command(directory, tmp_path, f"against={other}", *overrides)[3:])
    (folder,) = tmp_path.glob("runs/benchmark/*/answers")
    assert {path.name for path in folder.iterdir()} == {"pico.jsonl", "pico (against).jsonl"}
    assert not list(other.parent.glob("*.jsonl"))


def test_models_prompts_and_protocols_have_answers_of_their_own(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*STAND_IN, "benchmark=darumeru", "benchmark.darumeru.tasks=[parus]", "benchmark.darumeru.limit=2"]
    for more in ([], ["benchmark.darumeru.protocol=paper2024"], ["benchmark.darumeru.shots=1"]):
        run_app(monkeypatch, *command(directory, tmp_path, *overrides, *more)[3:])
    assert len(list((tmp_path / "artifacts" / "answers").iterdir())) == 3
    run_app(monkeypatch, *command(directory, tmp_path, *overrides[:-1], "benchmark.darumeru.limit=3")[3:])
    assert len(list((tmp_path / "artifacts" / "answers").iterdir())) == 3, "more items join those that are there"
    with pytest.raises(ValueError, match="another protocol"):
        Journal(next((tmp_path / "artifacts" / "answers").iterdir()).with_suffix("").with_suffix(""), {"other": 1})


@pytest.mark.filterwarnings("ignore")
def test_mistakes_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([], "Give one: lep-benchmark model=DIR"),
        ([f"model={tmp_path}"], "is no model directory"),
        (["model=tiny", "benchmark.darumeru.protocol=2024"], "protocol=2024 is unknown"),
    ):
        with pytest.raises(SystemExit):
            run_app(monkeypatch, *arguments, f"output_dir={tmp_path}/runs", f"artifacts_dir={tmp_path}/artifacts")
        assert message in capsys.readouterr().err


def test_a_directory_is_no_option_of_the_group() -> None:
    given = ["model=tiny", "model=/some/dir", "benchmark=fair", "model=org/name"]
    assert benchmark_app.as_overrides(given) == [
        "model=tiny",
        "model_dir=/some/dir",
        "benchmark=fair",
        "model_dir=org/name",
    ]


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_share_the_items_and_find_what_one_finds(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*STAND_IN, "benchmark=[darumeru,minimal_pairs]", "benchmark.darumeru.tasks=[rcb]"]
    overrides += ["benchmark.minimal_pairs.limit=10"]
    alone = tmp_path / "alone"
    run_app(monkeypatch, *command(directory, alone, *overrides)[3:])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    together = command(directory, tmp_path / "together", *overrides)
    subprocess.run([*torchrun, *together[1:]], check=True, timeout=250, capture_output=True)
    one, two = (read_result(next((tmp_path / name).glob("runs/**/result.json"))) for name in ("alone", "together"))
    assert two.rows[0].scores == one.rows[0].scores
    assert [answers(tmp_path / name).keys() for name in ("alone", "together")][0] == answers(
        tmp_path / "together"
    ).keys()
    sizes = [len(path.read_text().splitlines()) for path in sorted((tmp_path / "together").glob("artifacts/answers/*"))]
    assert sizes == [11, 11, 6, 6], "half of the items each, after a line that says whose they are"


@pytest.mark.filterwarnings("ignore")
def test_more_tasks_join_the_answers_that_are_there(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["benchmark.darumeru.tasks=[rcb]", "benchmark.darumeru.limit=3"]
    more = ["benchmark.darumeru.tasks=[rcb,parus]", "benchmark.darumeru.limit=4"]
    for chosen, number in ((few, 3), (more, 4 + 2 * 4)):
        run_app(monkeypatch, *command(directory, tmp_path, *STAND_IN, "benchmark=darumeru", *chosen)[3:])
        (path,) = (tmp_path / "artifacts" / "answers").iterdir()
        assert len(path.read_text().splitlines()) == 1 + number, "each is asked once"
