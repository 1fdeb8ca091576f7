"""The command line as a person uses it, in its own process: one run, one sweep, one run that is killed and goes on."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from own_process import run_lep
from wandb_offline import read_offline_run

from lep.embeddings import read_embeddings
from lep.paper import paper_tables
from lep.results import read_result
from lep.study import read_study

SMALL = (
    "training.steps=12",
    "training.warmup_steps=2",
    "training.log_every_steps=1",
    "training.validate_every_steps=6",
    "corpus.source.num_documents=1500",
    "corpus.held_out.documents=10",
    "benchmark.micro.items_per_task=2",
    "study=test",
)


WATCHED = ("during_training.every_steps=4", "during_training.limit=2")


def lep(folder: Path, *overrides: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_lep(folder, command(*overrides)[3:], environment(), check=check)


def command(*overrides: str) -> list[str]:
    flags = [override for override in overrides if override.startswith("-")]
    return [sys.executable, "-m", "lep", *flags, *SMALL, *(override for override in overrides if override not in flags)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "140"}


def run_dir(folder: Path) -> Path:
    (found,) = (path.parent for path in (folder / "runs" / "test").glob("*/result.json"))
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("run")
    done = lep(folder, "logger=[csv,wandb]", "export=[conversion]", *WATCHED)
    return folder, done.stdout


def test_one_run_leaves_everything(finished: tuple[Path, str]):
    folder, printed = finished
    here = run_dir(folder)
    result = read_result(here / "result.json")
    assert [row.name for row in result.rows] == ["original", "no training", "swap", "overlap", "conversion", "delta"]
    assert {"questions/ru", "copying/ru", "translation/ru", "questions/en"} <= set(result.rows[0].scores)
    assert result.row("swap").characters_per_token["ru"] > 1.3 * result.row("original").characters_per_token["ru"]
    assert result.row("swap").bits_per_byte["ru"].value < result.row("no training").bits_per_byte["ru"].value
    assert result.tokenizer["after"]["unreachable_tokens"] == 0
    for name in ("config.yaml", "metrics.csv", "report.html", "answers/swap.jsonl", "models/conversion/config.json"):
        assert (here / name).is_file(), name
    assert not (here / "checkpoints").exists()
    for words in ("original", "conversion", "report.html", "next", "tables    artifacts/adapted/tiny-extension-"):
        assert words in printed


def test_the_benchmark_is_a_curve_over_the_steps(finished: tuple[Path, str]):
    folder, _ = finished
    with (run_dir(folder) / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["benchmark/minimal pairs/ru"]]
    assert [int(row["step"]) for row in rows] == [4, 8, 12]
    assert all(0 <= float(row["benchmark/minimal pairs/ru"]) <= 1 for row in rows)
    curve = read_result(run_dir(folder) / "result.json").training["curve"]
    assert [row["step"] for row in curve if "benchmark/minimal pairs/ru" in row] == [4, 8, 12]


def test_weights_and_biases_holds_it_all_offline(finished: tuple[Path, str]):
    folder, _ = finished
    run = read_offline_run(run_dir(folder))
    assert (run.group, run.job_type, run.exit_code) == ("test", "adapt", 0)
    assert {"model:tiny", "tokenizer:extension", "init:mean"} <= set(run.tags)
    assert run.config["training"]["steps"] == 12 and run.config["choices"]["tokenizer"] == "extension"
    assert sum("train/loss" in step for step in run.history) >= 12
    assert sum("benchmark/minimal pairs/ru" in step for step in run.history) == 3
    logged = {key for step in run.history for key in step}
    assert {"benchmark", "propagation", "answers", "segmentation"} <= set(run.tables())
    assert {"plots/score/ru_table", "plots/bits_per_byte/en_table"} <= set(run.tables()) and "report" in logged
    assert not any(key.startswith("swap/") for key in logged), "a score of a model is no curve"


def test_weights_and_biases_compares_runs_at_a_glance(finished: tuple[Path, str]):
    folder, _ = finished
    summary = read_offline_run(run_dir(folder)).summary
    result = read_result(run_dir(folder) / "result.json")
    best = result.row(summary["best/model"])
    assert summary["best/bits_per_byte/ru"] == best.bits_per_byte["ru"].value
    assert summary["characters_per_token/ru"] == pytest.approx(best.characters_per_token["ru"], rel=0.1)
    assert summary["tokens_per_second"] == result.training["tokens_per_second"]
    assert summary["scores"]["swap"]["copying/ru"] == result.row("swap").scores["copying/ru"].value


def test_weights_and_biases_knows_what_was_made_from_what(finished: tuple[Path, str]):
    """Tokenizer and tables are used by the run that goes on from them; the model is named, not copied."""
    folder, _ = finished
    run = read_offline_run(run_dir(folder))
    assert "tokenizer.json" in run.artifacts["tiny-extension-tokenizer"]
    assert "embeddings.safetensors" in run.artifacts["tiny-extension-adapted"]
    assert "model.safetensors" in run.artifacts["tiny-extension-conversion"]
    assert run.used == {"tiny-extension-tokenizer", "tiny-extension-adapted"}


def test_offline_runs_are_such_that_wandb_sync_takes_them(finished: tuple[Path, str]):
    folder, _ = finished
    (offline,) = (run_dir(folder) / "wandb").glob("offline-run-*")
    sync = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(offline)]
    said = subprocess.run(sync, cwd=folder, env=environment(), capture_output=True, text=True, check=True)
    assert offline.name in said.stdout + said.stderr


def test_a_second_launch_returns_at_once_with_the_same_record(finished: tuple[Path, str]):
    folder, _ = finished
    record = run_dir(folder) / "result.json"
    before = record.stat().st_mtime_ns
    again = lep(folder, "logger=[csv,wandb]", "export=[conversion]", *WATCHED)
    assert record.stat().st_mtime_ns == before
    assert "is done already" in again.stdout


def test_adapted_tables_go_into_another_instruct_model_without_training(finished: tuple[Path, str]):
    folder, _ = finished
    (adapted,) = (folder / "artifacts" / "adapted").glob("tiny-extension-*")
    given = (f"adapted={adapted}", "model.instruct=package:lep.assets/tiny/instruct_far", "logger=[wandb]", "study=far")
    lep(folder, *given)
    (record,) = (folder / "runs" / "far").glob("*/result.json")
    result = read_result(record)
    assert [row.name for row in result.rows] == ["original", "swap", "overlap", "conversion", "delta"]
    assert result.training == {}
    # At Weights & Biases it starts from the tables that the run which trained them logged.
    logged, before = read_offline_run(record.parent), read_offline_run(run_dir(folder))
    assert logged.job_type == "propagate" and logged.used == {"tiny-extension-adapted"}
    assert logged.digests["tiny-extension-adapted"] == before.digests["tiny-extension-adapted"]


CALIBRATED = (
    "propagation=[conversion]",
    "calibration=[self,instruct]",
    "calibration.on=[original,conversion]",
    "instructions.source.count=40",
    "instructions.copies.count=8",
    "model.calibration.batch_size=2",
    "model.calibration.blocks_at_once=1",
    "model.calibration.max_new_tokens=32",
    "export=[original,conversion]",
    "logger=[csv,wandb]",
    "study=calibrated",
)


def test_calibrations_are_rows_artifacts_and_models_of_their_own(finished: tuple[Path, str]):
    folder, _ = finished
    printed = lep(folder, *CALIBRATED).stdout
    (record,) = (folder / "runs" / "calibrated").glob("*/result.json")
    result = read_result(record)
    names = [
        "original",
        "original + instruct",
        "no training",
        "conversion",
        "conversion + self",
        "conversion + instruct",
    ]
    assert [row.name for row in result.rows] == names
    assert list(result.calibration) == [name for name in names if "+" in name]
    counts = result.calibration["conversion + self"]["answers"]
    told_apart = ("asked", "questions too long", "left out", "seconds")
    reasons = {key: value for key, value in counts.items() if key not in told_apart}
    assert counts["asked"] == 40 == sum(reasons.values()) and counts["kept"] > 20
    logged = read_offline_run(record.parent)
    named = {f"conversion + self/answers/{key}": count for key, count in {"asked": 40, **reasons}.items()}
    (table,) = record.parent.rglob(Path(logged.tables()["learnt from"]).name)
    assert {
        f"{row}/answers/{key}": count for row, key, count in json.loads(table.read_text())["data"]
    }.items() >= named.items()
    with (record.parent / "metrics.csv").open() as stream:
        (found,) = {row["conversion + self/answers/kept"] for row in csv.DictReader(stream)} - {""}
    assert float(found) == reasons["kept"]
    for gain in result.calibration["conversion + instruct"]["gains"]:
        assert gain["low"] <= gain["difference"] <= gain["high"]
        assert gain["difference"] == pytest.approx(gain["after"] - gain["before"])
    assert "conversion + self, Russian, all tasks" in printed
    models = record.parent / "models"
    for name in ("conversion", "conversion+self", "conversion+instruct", "original+instruct"):
        assert (models / name / "config.json").is_file()
    for name in ("conversion+self-adapter", "original+instruct-adapter"):
        assert (models / name / "adapter_config.json").is_file()
    assert not (models / "original").exists()  # it lies where it was
    # A result that is lost is made again from the store: nothing is asked or tuned, and it says the same.
    made = {path: path.stat().st_mtime_ns for path in (folder / "artifacts").glob("[at]*/*/manifest.json")}
    assert {path.parts[-3] for path in made} >= {"answers", "tuned"}
    record.unlink()
    lep(folder, *CALIBRATED)
    assert read_result(record).calibration == result.calibration and read_result(record).rows == result.rows
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert not list((folder / "artifacts" / "unfinished").iterdir())


def test_tables_go_from_files_to_files_into_any_number_of_siblings(finished: tuple[Path, str]):
    """No benchmark, no repair: each sibling gets its own tables, from one set of trained ones."""
    folder, _ = finished
    (adapted,) = (folder / "artifacts" / "adapted").glob("tiny-extension-*")
    siblings = ("instruct", "instruct_far")
    models = ",".join(f"package:lep.assets/tiny/{sibling}" for sibling in siblings)
    flags = ["-m", f"adapted={adapted}", f"model.instruct={models}", "benchmark=none", "export=[conversion,delta]"]
    options = ["repair_end_of_turn=false", "study=files", "corpus.source.num_documents=1500"]
    options += ["corpus.held_out.documents=10"]
    done = subprocess.run(
        [sys.executable, "-m", "lep", *flags, *options],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    words = " ".join(done.stdout.split())
    assert "GB of memory" in words and "GB of disk" in words
    assert "conversion: the end-of-turn token was not repaired" in words
    records = sorted((folder / "runs" / "files").glob("*/result.json"))
    assert len(records) == len(siblings)
    for record in records:
        result = read_result(record)
        assert result.rows == [] and set(result.propagation) == {"conversion", "delta"}
        assert {"long_rows", "held_out_r2"} <= set(result.propagation["conversion"]["output"])
        written = read_embeddings(record.parent / "models" / "conversion")
        assert written.input.shape[0] >= read_embeddings(adapted).input.shape[0]
        assert not list((record.parent / "models").glob(".carried*"))
    one, other = (read_embeddings(record.parent / "models" / "delta").input for record in records)
    assert not torch.equal(one, other)


def test_a_mistake_is_one_clear_line_before_any_work(tmp_path: Path):
    refused = lep(tmp_path, "training.block_size=4096", check=False)
    assert refused.returncode != 0
    assert "training.block_size=4096 is longer than the 256 positions" in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "artifacts").exists()


def test_the_tokenizer_stage_alone_compares_vocabularies(tmp_path: Path):
    """A directory with nothing but a tokenizer serves as the base, and beside it."""
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    tiny = Path(__file__).parents[1] / "lep" / "assets" / "tiny" / "base"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tokenizer / name).write_bytes((tiny / name).read_bytes())
    done = lep(tmp_path, "stages=[tokenizer]", f"model.base={tokenizer}", f"compare_tokenizers={{same: {tokenizer}}}")
    for words in ("characters a token", "same", "Rows of T", "tokens that no text gives"):
        assert words in done.stdout
    found = read_result(run_dir(tmp_path) / "result.json").tokenizer
    assert found["others"]["same"] == found["before"] != found["after"]
    assert found["change"]["kept_ids"] == found["before"]["size"] == found["operator"]["old_tokens"]
    assert found["made"]["new_tokens"] == found["operator"]["tokens"] - found["operator"]["old_tokens"]
    assert [set(example["tokens"]) for example in found["examples"]] == [{"before", "after", "same"}] * 2
    assert not (tmp_path / "artifacts" / "adapted").exists()


def test_the_corpus_alone_makes_nothing_else(tmp_path: Path):
    lep(tmp_path, "stages=[corpus]", "model.base=no/such/model")
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["corpus"]


def test_a_sweep_over_variants_shares_what_it_can(tmp_path: Path):
    lep(tmp_path, "-m", "tokenizer=bpe,unigram,extension,optimization", "propagation=[swap]")
    results = [read_result(path) for path in sorted((tmp_path / "runs" / "test").glob("*/result.json"))]
    assert {result.choices["tokenizer"] for result in results} == {"bpe", "unigram", "extension", "optimization"}
    assert len(list((tmp_path / "artifacts" / "corpus").glob("microworld-*"))) == 1
    originals = [result.row("original").scores for result in results]
    assert all(scores == originals[0] for scores in originals)
    for result in results:
        assert result.tokenizer["after"]["unreachable_tokens"] == 0


def test_rows_of_the_paper_run_in_miniature(tmp_path: Path):
    """Table 2, which judges base models: one as it is, and one with another vocabulary; then both in the report."""
    rows = ("table2_llama3_8b_original", "table2_llama3_8b_bpe")
    experiments = "experiment=" + ",".join(f"paper/{row}" for row in rows)
    miniature = ("model=tiny", "corpus=microworld", "instructions=microworld", "benchmark=micro", "trainer=cpu")
    lep(tmp_path, "-m", experiments, *miniature, "training.steps=3")
    study = read_study([tmp_path / "runs"])
    by_row = {group.first.choices["experiment"]: group for group in study.groups}
    original, bpe = (by_row[f"paper/{row}"] for row in rows)
    assert [line.model for line in original.lines] == ["original"]
    assert [line.model for line in bpe.lines] == ["original", "no training", "swap"]
    assert original.lines[0].estimates["copying/ru"] == bpe.lines[0].estimates["copying/ru"]
    assert (
        bpe.lines[2].estimates["characters a token/ru"].mean > original.lines[0].estimates["characters a token/ru"].mean
    )
    assert not study.unfinished
    tables, notes = paper_tables(study)
    assert [line[0].text for line in tables[0].lines if line[2].text == "ours, 1 seed"] == list(rows)
    assert "model is tiny, not llama3_8b: table2_llama3_8b_bpe, table2_llama3_8b_original" in notes


def losses(folder: Path) -> dict[str, str]:
    (metrics,) = (folder / "runs" / "test").glob("*/metrics.csv")
    with metrics.open() as stream:
        return {row["step"]: row["train/loss"] for row in csv.DictReader(stream) if row.get("train/loss")}


def test_a_killed_run_goes_on_to_the_same_curve(tmp_path: Path):
    """SIGKILL in the middle of training; the relaunch leaves the curve and the scores of an undisturbed run."""
    extra = ("training.checkpoint_every_steps=5", "training.steps=40", "propagation=[swap]", "logger=[wandb]")
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    calm.mkdir(), killed.mkdir()
    lep(calm, *extra)
    process = subprocess.Popen(command(*extra), cwd=killed, env=environment(), stdout=subprocess.DEVNULL)
    while not list((killed / "runs").glob("test/*/checkpoints/*/last.ckpt")):
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((killed / "runs" / "test").glob("*/result.json"))
    assert not list((killed / "artifacts" / "adapted").glob("tiny-*"))
    lep(killed, *extra)
    assert losses(killed) == losses(calm)
    one, other = (json.loads((run_dir(folder) / "result.json").read_text())["rows"] for folder in (calm, killed))
    for left, right in zip(one, other, strict=True):
        assert left["scores"] == right["scores"] and left["bits_per_byte"] == right["bits_per_byte"]
    # Before and after the kill one run of Weights & Biases, in two files that belong together.
    offline = [path.name for path in killed.glob("runs/test/*/wandb/offline-run-*")]
    assert len(offline) == 2 and len({name.rpartition("-")[2] for name in offline}) == 1
    (other,) = calm.glob("runs/test/*/wandb/offline-run-*")
    assert other.name.rpartition("-")[2] not in offline[0]


# A run whose every stage is there, shared by the tests of several processes.
WHOLE = (
    "training.steps=20",
    "propagation=[swap]",
    "calibration=instruct",
    "calibration.on=[swap]",
    "instructions.source.count=40",
    "instructions.copies.count=8",
    "model.calibration.batch_size=2",
    "model.calibration.blocks_at_once=1",
    "during_training.every_steps=10",
    "during_training.limit=3",
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    lep(folder, *WHOLE)
    return folder


def assert_same_run(several: Path, alone: Path) -> None:
    """The curve over twenty steps with the benchmark on its way, and what the leader found when the others had left."""
    found, expected = (read_result(run_dir(folder) / "result.json") for folder in (several, alone))
    assert [row.name for row in found.rows] == ["original", "no training", "swap", "swap + instruct"]
    for row, other in zip(found.rows, expected.rows, strict=True):
        assert row.scores == other.scores
        for language, bits in row.bits_per_byte.items():
            assert bits.value == pytest.approx(other.bits_per_byte[language].value, rel=1e-4)
    assert sum("train/loss" in row for row in found.training["curve"]) == 20
    for row, other in zip(found.training["curve"], expected.training["curve"], strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"train/tokens_per_second"}:
            assert row[name] == pytest.approx(other[name], rel=1e-5)
    assert sum("benchmark/minimal pairs/ru" in row for row in found.training["curve"]) == 2


def test_two_processes_of_torchrun_run_as_one(alone: Path, tmp_path: Path):
    """Half of every step each, and the leader does the rest alone: also tunes, on one device."""
    started = command(*WHOLE, "trainer=ddp", "trainer.accelerator=cpu")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *started[1:]]
    done = subprocess.run(torchrun, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.count("seed 0") == 1  # one process speaks for both
    assert_same_run(tmp_path, alone)


def test_the_tasks_of_a_submitit_job_run_as_one(alone: Path, tmp_path: Path):
    """The frozen body in shards, in a sweep whose launcher starts two processes for a run."""
    launcher = ("hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=4")
    lep(tmp_path, "-m", *WHOLE, "trainer=fsdp", "trainer.accelerator=cpu", *launcher)
    assert_same_run(tmp_path, alone)


def test_a_sweep_over_several_devices_is_refused_with_the_remedy(tmp_path: Path):
    refused = lep(tmp_path, "-m", "trainer.devices=2", "seed=0,1", check=False)
    assert refused.returncode != 0 and "Traceback" not in refused.stderr
    assert "trainer.devices=2 with a sweep (-m)" in refused.stderr and "torchrun" in refused.stderr
    assert not (tmp_path / "artifacts").exists()
