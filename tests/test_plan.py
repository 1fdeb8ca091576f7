"""`lep plan`: every model and experiment is planned without a download, by figures that are those of the run itself."""

import json
import math
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from pico_models import pico_model, pico_tokenizer

from lep import checkpoints, plan_app
from lep.budget import Budget, Device, Row, make_budget
from lep.config import build
from lep.embeddings import Embeddings
from lep.memory import PROCESS_BYTES
from lep.run import HYDRA_VERSION_BASE

CONF = Path(__file__).parents[1] / "conf"
MODELS, TOKENIZERS, DEVICES, SWEEPS = (
    sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    for group in ("model", "tokenizer", "hardware", "experiment")
)
EXPERIMENTS = sorted(
    str(path.relative_to(CONF / "experiment").with_suffix(""))
    for path in (CONF / "experiment").rglob("*.yaml")
    if path.parent.name != "shared"
)
H100 = ("trainer=gpu", "hardware=h100")
DEVICE = Device("a device", "gpu", tflops=1000, memory_gb=80, efficiency=0.4)


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch):
    """Nothing may be fetched, and no CPU is timed."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a download of {args}")

    monkeypatch.setattr(checkpoints, "_download", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr(plan_app, "measure_flops", lambda: 1e11)


def planned(*arguments: str) -> Budget:
    """The plan of the one run that the arguments start."""
    (job,) = plan_app.plan(arguments, version_base=HYDRA_VERSION_BASE)
    return job.budget


def row(budget: Budget, stage: str) -> Row:
    (found,) = (row for row in budget.rows if row.stage == stage)
    return found


def test_every_model_is_planned_with_every_experiment():
    with initialize_config_module("lep.conf", version_base=HYDRA_VERSION_BASE):
        models = [compose("config", overrides=[f"model={model}"]).model for model in MODELS]
        experiments = [
            compose("config", overrides=[f"experiment={experiment}", *H100[:1]]) for experiment in EXPERIMENTS
        ]
    for model, config in product(models, experiments):
        config.model = model
        budget = make_budget(config, DEVICE)
        if "benchmark" in config.stages:
            assert row(budget, "benchmark").memory.weights >= 2 * budget.shape.products
        if not config.adapted:
            training = row(budget, "training")
            assert training.flops > 4 * budget.shape.products * training.tokens * 0.9
            assert training.memory.weights >= 2 * budget.shape.products


@pytest.mark.parametrize("experiment", SWEEPS)
def test_every_run_of_every_experiment_is_planned(experiment: str):
    jobs = plan_app.plan([f"experiment={experiment}"], version_base=HYDRA_VERSION_BASE)
    assert jobs and all(row(job.budget, "training").flops > 0 for job in jobs)


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_composes(device: str):
    budget = planned(f"hardware={device}")
    assert budget.device.memory > 1e9 and 0 < budget.device.efficiency <= 1
    assert budget.device.is_cpu is (device == "cpu")


def test_llama_3_8b_is_what_everybody_knows_of_it():
    """8.03 billion parameters, 16 GB in bfloat16, and four fifths of what training all of it takes a token."""
    budget = planned("model=llama3_8b", "tokenizer=extension", *H100)
    training = row(budget, "training")
    assert budget.shape.parameters() == 8_030_261_248 and budget.stored == 2
    memory = training.memory
    assert memory.weights == pytest.approx(16.06e9, rel=0.01)  # the tables of 46,560 new rows are counted apart
    new = 2 * 46_560 * 4096
    assert (memory.tables, memory.gradients, memory.optimizer) == (4 * new, 6 * new, 8 * new)
    assert memory.total < budget.device.memory and not budget.warnings
    assert training.tokens == 40_000 * 4 * 64 * 1024
    a_token = training.flops / training.tokens
    assert 4 * 6.98e9 < a_token < 0.75 * 6 * 8.03e9
    assert row(budget, "training").disk == 3 * 4 * new + 4 * 2 * (128_256 + 46_560) * 4096


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_the_vocabulary_is_that_of_the_variant(tokenizer: str):
    budget = planned("model=mistral_7b", f"tokenizer={tokenizer}", *H100)
    size = {"bpe": 32_000, "unigram": 32_000, "optimization": 32_000, "original": 32_000}.get(tokenizer, 55_328)
    assert row(budget, "tokenizer").what == f"{size:,} tokens"
    moving = 23_328 if tokenizer.startswith("extension") else size
    assert f"{moving:,} of {size:,} rows move" in row(budget, "training").what


@pytest.mark.parametrize("rows", ["all", "new"])
def test_the_rows_that_move_are_those_of_the_config(rows: str):
    budget = planned("model=llama3_8b", f"training.rows={rows}", *H100)
    moving = 46_560 if rows == "new" else 128_256 + 46_560
    assert row(budget, "training").memory.tables == 4 * 2 * moving * 4096


def test_tokens_are_steps_times_blocks_however_many_devices_share_them():
    sizes = (
        "training.steps=300",
        "training.batch_size=3",
        "training.block_size=48",
        "trainer.accumulate_grad_batches=8",
        "trainer.devices=2",
    )
    budget = planned(*sizes)
    assert budget.devices == 2 and row(budget, "training").tokens == 300 * 3 * 48 * 8
    several = planned(*sizes, "+trainer.num_nodes=4")
    assert several.devices == 8 and row(several, "training").tokens == row(budget, "training").tokens
    # Four times as many devices take a quarter of the time; what is measured on the way is shared too.
    assert several.hours(row(several, "training")) == pytest.approx(budget.hours(row(budget, "training")) / 4, rel=0.05)


def test_hours_are_operations_over_what_the_device_reaches():
    budget = planned("model=llama3_8b", *H100, "hardware.efficiency=0.5", "hardware.tflops=100")
    training = row(budget, "training")
    assert budget.hours(training) == pytest.approx(training.flops / (100e12 * 0.5) / 3600)
    assert budget.total_hours == pytest.approx(sum(budget.hours(row) or 0 for row in budget.rows))
    assert budget.hours(row(budget, "propagation")) is None  # on the CPU


# Tokens a second that an H100 trained, each by benchmarks/train.py (torch 2.11, two batches a step).
MEASURED = {
    "model=llama3_8b tokenizer=extension": 12_602,
    "model=llama3_8b tokenizer=bpe": 12_135,
    "model=qwen2_5_7b tokenizer=extension": 13_823,
    "model=gemma3_1b tokenizer=bpe": 23_899,
    "model=gemma3_1b tokenizer=bpe training.batch_size=16": 50_445,
    "model=qwen2_5_0_5b tokenizer=extension": 59_462,
    "model=qwen2_5_0_5b tokenizer=extension training.batch_size=16": 77_116,
    "model=gemma3_270m tokenizer=bpe training.batch_size=4": 42_566,
    "model=gemma3_270m tokenizer=bpe training.batch_size=32": 114_290,
    "model=smollm2_135m tokenizer=extension": 47_422,
    "model=smollm2_135m tokenizer=extension training.batch_size=64": 166_023,
}


@pytest.mark.parametrize("run", MEASURED)
def test_hours_are_those_that_were_measured_whatever_the_size_of_the_model(run: str):
    budget = planned(*run.split(), *H100, "trainer.accumulate_grad_batches=2", "measured_characters=0")
    training = row(budget, "training")
    assert training.tokens / budget.hours(training) / 3600 == pytest.approx(MEASURED[run], rel=0.3)


def test_more_blocks_at_once_are_proposed_where_a_gpu_would_wait():
    small = planned("model=smollm2_135m", *H100)
    (note,) = (note for note in small.notes if "over sooner" in note)
    assert "training.batch_size=32 trainer.accumulate_grad_batches=2" in note
    larger = planned("model=smollm2_135m", *H100, "training.batch_size=32", "trainer.accumulate_grad_batches=2")
    assert larger.hours(row(larger, "training")) < 0.5 * small.hours(row(small, "training"))
    assert row(larger, "training").tokens == row(small, "training").tokens
    told = f"{row(larger, 'training').memory.total / 1e9:.1f} GB"
    assert told in note
    for budget in (larger, planned("model=llama3_8b", *H100), planned("model=smollm2_135m")):
        assert not any("over sooner" in note for note in budget.notes)


def test_a_cpu_is_measured_and_has_the_tables_as_they_began_beside_those_that_move():
    budget = planned("model=llama3_2_1b", "hardware=cpu")
    assert budget.device.tflops == 0.1
    on_gpu = row(planned("model=llama3_2_1b", *H100, "training.body_dtype=float32"), "training").memory
    memory = row(budget, "training").memory
    assert memory.weights == on_gpu.weights
    assert memory.tables == 2 * on_gpu.tables and memory.process > PROCESS_BYTES and on_gpu.process == 0


def test_the_body_is_bfloat16_on_a_gpu_and_float32_on_a_cpu_unless_told():
    width = {}
    for device, dtype in product(("cpu", "h100"), ("auto", "float32", "bfloat16")):
        budget = planned("model=llama3_8b", f"hardware={device}", f"training.body_dtype={dtype}")
        width[device, dtype] = row(budget, "training").memory.weights
    assert width["cpu", "auto"] == width["cpu", "float32"] == 2 * width["h100", "auto"]
    assert width["h100", "bfloat16"] == width["cpu", "bfloat16"] == width["h100", "auto"]


def test_stages_that_are_not_asked_for_are_not_planned():
    assert [row.stage for row in planned("stages=[corpus]").rows] == ["corpus"]
    assert [row.stage for row in planned("stages=[tokenizer]").rows] == ["corpus", "tokenizer"]
    assert "benchmark" not in [row.stage for row in planned("stages=[propagation]").rows]


def test_propagation_fits_no_map_where_nothing_is_fitted():
    swapped, fitted = (planned("model=llama3_8b", f"propagation={rule}", *H100) for rule in ("swap", "conversion"))
    assert row(swapped, "propagation").flops < 1e-3 * row(fitted, "propagation").flops


def test_watching_costs_what_its_benchmarks_read():
    calm = row(planned("model=llama3_8b", *H100), "training").flops
    watched = row(planned("model=llama3_8b", *H100, "during_training.every_steps=100"), "training").flops
    more = row(planned("model=llama3_8b", *H100, "during_training.every_steps=50"), "training").flops
    assert more - calm == 2 * (watched - calm) > 0


def test_a_model_that_is_judged_on_the_way_lies_beside_the_one_that_trains():
    calm, watched = (
        row(planned("model=llama3_8b", *H100, "training.batch_size=1", *watching), "training").memory
        for watching in ((), ("during_training.every_steps=100",))
    )
    assert watched.weights == calm.weights + 2 * (8_030_261_248 + 2 * 46_560 * 4096)
    assert (watched.tables, watched.optimizer) == (calm.tables, calm.optimizer)


def test_a_suite_that_cannot_be_counted_is_told():
    budget = planned("benchmark=[lm_eval,darumeru]", "benchmark.lm_eval.tasks=[xnli_ru]")
    assert any("benchmark lm_eval is not counted" in note for note in budget.notes)
    limited = planned("benchmark=darumeru", "benchmark.darumeru.limit=10")
    assert row(limited, "benchmark").tokens < row(budget, "benchmark").tokens / 10


# Calibration


CALIBRATED = ("calibration=[self,instruct]", "calibration.on=[original,conversion]")


def test_calibrations_are_rows_of_their_own():
    budget = planned("model=mistral_7b", *CALIBRATED, *H100)
    own, instruct = row(budget, "calibration self"), row(budget, "calibration instruct")
    assert "of conversion" in own.what and "of original, conversion" in instruct.what
    assert row(budget, "benchmark").what.startswith("micro of 9 models")  # 6, and 3 that are calibrated
    # LoRA of rank 32 in every layer, and the output table whole.
    factors = 32 * 32 * sum(map(sum, budget.shape.maps.values()))
    assert instruct.memory.tables == 4 * (factors + 55_328 * 4096)
    assert own.memory.tables == 4 * (2 * 8 * sum(map(sum, budget.shape.maps.values())) + 2 * 55_328 * 4096)


def test_conversations_that_only_the_data_count_are_told_and_a_limit_counts_them():
    given = ("model=mistral_7b", "calibration=instruct", "instructions=saiga_scored", "instructions.texts=[a]", *H100)
    unknown = planned(*given)
    assert row(unknown, "calibration instruct").flops is None
    assert any("calibration=instruct learns from only their data know" in note for note in unknown.notes)
    counted = row(planned(*given, "instructions.source.limit=13000"), "calibration instruct")
    assert counted.tokens == pytest.approx(13_000 * 400, rel=0.1) and counted.flops > 0


# Text


def test_text_is_as_long_as_its_files(tmp_path: Path):
    (tmp_path / "a.txt").write_text("а" * 50_000)  # two bytes each
    budget = planned("corpus=text_files", f"corpus.paths=[{tmp_path}/*.txt]")
    assert row(budget, "corpus").what == "text_files, 0.1 MB of text"
    assert row(budget, "packing").tokens == int(100_000 / 1.8 / 3.5)
    missing = planned("corpus=text_files", f"corpus.paths=[{tmp_path}/*.jsonl]")
    assert row(missing, "packing").tokens is None and any("no file matches" in note for note in missing.notes)
    unset = planned("corpus=text_files")
    assert any("corpus.paths is not set" in note for note in unset.notes), unset.notes


def test_what_the_config_says_of_a_corpus_is_near_what_is_read():
    with initialize_config_module("lep.conf", version_base=HYDRA_VERSION_BASE):
        corpus = compose("config", overrides=["corpus.source.num_documents=2000"]).corpus
    sizes = [len(document.text.encode()) for document in build(corpus.source).documents()]
    assert corpus.document_bytes == pytest.approx(sum(sizes) / len(sizes), rel=0.05)


# Where the model's size is read


def write_config(directory: Path, **changes: object) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    config = pico_model("qwen3", tied=True).config.to_dict() | changes
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_a_directory_tells_its_own_size_and_context(tmp_path: Path):
    here = write_config(tmp_path / "model", hidden_size=48, max_position_embeddings=64)
    budget = planned("model=llama3_8b", f"model.base={here}", "training.block_size=64", *H100)
    assert budget.shape.hidden == 48 and budget.shape.tables == 1 and budget.source == str(here / "config.json")
    with pytest.raises(ValueError, match="training.block_size=65 is longer than the 64 positions"):
        planned("model=llama3_8b", f"model.base={here}", "training.block_size=65", *H100)


def test_the_cache_of_the_hub_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "models--meta-llama--Meta-Llama-3-8B"
    write_config(cache / "snapshots" / "abc", hidden_size=48)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    assert planned("model=llama3_8b", *H100, "training.block_size=64").shape.hidden == 48


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.base=org/other", "model.shape=null"], r"model\.base=org/other is not on this machine.*\+model\.shape"),
        (["model.base=./nowhere"], r"model\.base=\./nowhere is no model directory"),
        (["model.base=a/b/c"], r"model\.base=a/b/c is neither a directory here nor a name of the hub"),
        (["model.shape.model_type=dance"], r"model\.shape\.model_type=dance is no architecture"),
        (["model.shape.model_type=mixtral"], r"model_type=mixtral is a family"),
        (["--cfg"], r"lep plan has no flag --cfg"),
        (["hardware.efficiency=0"], r"hardware\.efficiency=0 must be above 0"),
        (["hardware.efficiency=35"], r"hardware\.efficiency=35 is a share"),
        (["adapted=./nowhere"], r"adapted=\./nowhere is no model directory"),
    ],
)
def test_mistakes_are_told(overrides: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        planned("model=llama3_8b", *H100, *overrides)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("hardware=abacus", "hardware/abacus"),
        ("modl=tiny", "'modl'"),
        ("training.stepps=3", "stepps"),
        ("model=a b", "a b"),
    ],
)
def test_mistakes_end_the_command_with_what_is_wrong(wrong: str, said: str, capsys: pytest.CaptureFixture[str]):
    assert plan_app.main([wrong], version_base=HYDRA_VERSION_BASE) == 2
    printed = capsys.readouterr()
    assert said in printed.err and "Traceback" not in printed.err and not printed.out


def test_what_the_run_itself_would_refuse_is_a_note():
    assert any("torchrun" in note for note in planned("trainer=ddp", "model=llama3_8b", "hardware=h100").notes)
    assert any("add trainer=gpu" in note for note in planned("model=llama3_8b", "hardware=h100").notes)
    assert planned("model=llama3_8b", *H100).notes == ()


# Trained tables that are given


def test_given_tables_are_carried_from_files_to_files(tmp_path: Path):
    tokenizer, model = pico_tokenizer(), pico_model("llama", tied=False, vocab_size=300)
    adapted, instruct = tmp_path / "adapted", tmp_path / "instruct"
    adapted.mkdir()
    Embeddings(torch.zeros(350, 32), torch.zeros(350, 32)).save(adapted / checkpoints.TABLES_FILE)
    tokenizer.save_pretrained(adapted)
    model.save_pretrained(instruct)
    given = (f"adapted={adapted}", f"model.base={instruct}", f"model.instruct={instruct}", "export=[conversion]")
    budget = planned(*given, "benchmark=none", "repair_end_of_turn=false")
    assert [row.stage for row in budget.rows] == ["corpus", "propagation", "export"]
    assert row(budget, "export").disk == 4 * (model.num_parameters() + 2 * (384 - 300) * 32)
    repaired = planned(*given, "benchmark=none")  # a small model is loaded to see where its answers end
    assert row(repaired, "propagation").host > row(budget, "propagation").host
    assert row(repaired, "benchmark").what.startswith("bits per byte of 5 models")
    judged = planned(*given)
    assert row(judged, "benchmark").what.startswith("micro of 5 models")  # none before training


def test_given_tables_that_are_not_here_are_counted_as_the_tokenizer_makes_them():
    budget = planned("model=llama3_8b", "adapted=org/adapted", "tokenizer=bpe", *H100)
    assert any("adapted=org/adapted is not on this machine" in note for note in budget.notes)
    assert row(budget, "benchmark").memory.weights == 2 * budget.shape.parameters(128_000)
    assert planned("adapted=package:lep.assets/tiny/base").notes == ()


def test_exports_of_calibrated_models_are_whole():
    plain, merged = (
        row(planned("model=llama3_8b", "export=[conversion]", *H100, *more), "export").disk
        for more in ((), ("calibration=[self,instruct]",))
    )
    assert merged == 3 * plain == 3 * 2 * (8_030_261_248 + 2 * (174_848 - 128_256) * 4096)


# What does not fit


def settings_of(remedy: str) -> list[str]:
    """What a remedy says, as overrides; a body in parts by the name that Lightning gives it."""
    words = [word for word in remedy.split() if "=" in word]
    return ["+trainer.strategy=fsdp" if word == "trainer=fsdp" else word for word in words]


@pytest.mark.parametrize(
    "given",
    [
        ("model=llama3_8b", "hardware=rtx4090"),
        ("model=llama3_8b", "hardware=h100", "training.body_dtype=float32", "training.batch_size=8"),
        ("model=llama3_8b", "hardware=h100", "training.batch_size=16"),
        ("model=qwen2_5_7b", "hardware=l40s", "training.batch_size=16", "training.block_size=4096"),
    ],
)
def test_what_is_proposed_where_it_does_not_fit_does_fit(given: tuple[str, ...]):
    budget = planned(*given, "trainer=gpu")
    (warning,) = (warning for warning in budget.warnings if warning.startswith("training"))
    before = row(budget, "training")
    remedies = warning.partition("It fits with ")[2].split("; or ")
    assert "=" in remedies[0]
    for remedy in remedies:
        after = planned(*given, "trainer=gpu", *settings_of(remedy))
        assert not [warning for warning in after.warnings if warning.startswith("training")], remedy
        if "block_size" not in remedy:
            assert row(after, "training").tokens == before.tokens  # a step keeps its size


def test_where_nothing_fits_the_memory_that_would_is_told():
    budget = planned("model=qwen2_5_32b", "trainer=gpu", "hardware=rtx4090", "hardware.memory_gb=2")
    (warning,) = (warning for warning in budget.warnings if warning.startswith("training"))
    wanted = row(budget, "training").memory.total
    assert warning.endswith(f"has 2.0 GB. It fits with a device with {wanted / 1e9:,.1f} GB")


def test_a_body_in_parts_takes_its_share():
    whole, parts = (
        planned("model=qwen2_5_32b", "hardware=h100", f"trainer={trainer}", "trainer.devices=8")
        for trainer in ("ddp", "fsdp")
    )
    weights = [row(budget, "training").memory.weights for budget in (whole, parts)]
    assert weights[1] < weights[0] / 4
    assert row(whole, "training").memory.tables == row(parts, "training").memory.tables


def test_summing_gradients_takes_another_copy_of_them():
    one, two = (planned("model=llama3_8b", *H100, f"trainer.devices={devices}") for devices in (1, 2))
    memory, other = (row(budget, "training").memory for budget in (one, two))
    assert other.gradients - memory.gradients == memory.tables


# What a process takes

FIT = """
import sys, warnings
import numpy as np, pytorch_lightning as pl, torch
from transformers import AutoConfig, AutoModelForCausalLM
from lep.embeddings import Embeddings
from lep.memory import peak_memory_bytes
from lep.training import EmbeddingTraining, PackedData

def fit(config, blocks, length):
    table = torch.randn(config.vocab_size, config.hidden_size)
    tables = Embeddings(table, torch.randn_like(table))  # held, as the run holds them
    module = EmbeddingTraining(AutoModelForCausalLM.from_config(config), tables, learning_rate=1e-3, warmup_steps=1)
    trainer = pl.Trainer(accelerator="cpu", max_steps=3, accumulate_grad_batches=2, gradient_clip_val=1.0, logger=False,
                         enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False)
    data = np.random.default_rng(0).integers(0, config.vocab_size, (6 * blocks, length))
    trainer.fit(module, PackedData(data, batch_size=blocks, seed=0))

config = AutoConfig.from_pretrained(sys.argv[1])
small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
fit(type(config)(**config.to_diff_dict() | small), 2, 9)  # Python and its libraries, at work
before = peak_memory_bytes()
fit(config, int(sys.argv[2]), int(sys.argv[3]))
print(peak_memory_bytes() - before)
"""


@pytest.mark.parametrize(("hidden", "layers", "blocks"), [(256, 8, 8), (512, 6, 8)])
def test_memory_of_a_process_that_trains_is_within_a_fifth_of_what_was_planned(tmp_path, hidden, layers, blocks):
    """The most that the kernel saw resident, without what the interpreter and its libraries take."""
    sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers, "vocab_size": 8000}
    config = pico_model("llama", tied=False, max_position_embeddings=256).config
    type(config)(**config.to_diff_dict() | sizes).save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FIT, str(tmp_path), str(blocks), "129"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    budget = planned(
        f"model.base={tmp_path}",
        "tokenizer=original",
        f"training.batch_size={blocks}",
        "training.block_size=129",
        "trainer.accumulate_grad_batches=2",
    )
    told = row(budget, "training").memory.total - PROCESS_BYTES
    assert told == pytest.approx(int(done.stdout), rel=0.2)


# Sweeps, and the command


def test_a_sweep_is_planned_run_by_run():
    jobs = plan_app.plan(["experiment=gates"], version_base=HYDRA_VERSION_BASE)
    assert len(jobs) == 12 and len({job.name for job in jobs}) == 12
    named = plan_app.plan(["-m", "experiment=gates", "seed=7"], version_base=HYDRA_VERSION_BASE)
    assert [job.config.seed for job in named] == [7] * 4  # what is given takes the place of what is swept
    swept = plan_app.plan(["model=llama3_8b,mistral_7b", "tokenizer=bpe"], version_base=HYDRA_VERSION_BASE)
    assert [job.config.model.name for job in swept] == ["llama3_8b", "mistral_7b"]


def test_a_folder_of_ones_own_options_is_planned_as_it_runs(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "hardware").mkdir()
    (tmp_path / "corpus" / "own.yaml").write_text("defaults: [text_files]\nname: own\n")
    (tmp_path / "hardware" / "mine.yaml").write_text("defaults: [h100]\nname: Mine\n")
    given = ["--config-dir", str(tmp_path), "corpus=own", f"corpus.paths=[{__file__}]", "seed=0,1", "hardware=mine"]
    jobs = plan_app.plan(given, version_base=HYDRA_VERSION_BASE)
    assert [(job.config.corpus.name, job.config.seed, job.budget.device.name) for job in jobs] == [
        ("own", 0, "Mine"),
        ("own", 1, "Mine"),
    ]
    assert not any("searchpath" in job.name for job in jobs)
    with pytest.raises(ValueError, match="--config-dir nowhere is no folder"):
        plan_app.plan(["--config-dir", "nowhere"], version_base=HYDRA_VERSION_BASE)


def test_every_number_is_shown_at_the_width_of_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr(plan_app.console, "width", 80)
    arguments = ["model=llama3_8b,mistral_7b", "tokenizer=extension", *H100, "export=[conversion]"]
    assert plan_app.main(arguments, version_base=HYDRA_VERSION_BASE) == 0
    printed = capsys.readouterr().out
    for words in ("8.03 G parameters, 16.1 GB", "NVIDIA H100", "10.5 G", "3.5e20", "optimizer", "2 runs", "all"):
        assert words in printed
    assert "…" not in printed


def test_the_documented_example_is_what_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch):
    page = (CONF.parent / "docs" / "cost.md").read_text(encoding="utf-8")
    command, told = re.search(r"```bash\nlep plan (.*)\n```\n\n```text\n(.*?)\n```", page, re.DOTALL).groups()
    monkeypatch.setattr(plan_app.console, "width", 100)
    assert plan_app.main(command.split(), version_base=HYDRA_VERSION_BASE) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.rstrip().splitlines()]
    assert printed == told.splitlines()


def test_the_command_runs_nothing(tmp_path: Path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    arguments = [sys.executable, "-m", "lep", "plan", "model=llama3_8b", "tokenizer=extension", *H100]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "training" in done.stdout and "hours" in done.stdout and not done.stderr
    assert list(tmp_path.iterdir()) == []


def test_numbers_read_as_people_write_them():
    assert [plan_app.quantity(n) for n in (None, 7, 1_234, 10_485_760_000)] == ["–", "7", "1.23 k", "10.5 G"]
    assert [plan_app.hours(n) for n in (None, 0.001, 0.5, 278.4)] == ["–", "<0.01", "0.5", "278"]
    assert plan_app.flops(3 * 10**20) == "3.0e20" and math.isclose(float(plan_app.flops(123)), 120)
