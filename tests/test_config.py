"""Every option of every group composes, resolves and fits the signature it names; what is impossible is refused."""

import inspect
import re
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file

from lep.calibration.method import named_in_full
from lep.config import (
    STAGES,
    build,
    calibrations,
    check,
    check_context,
    choices,
    planned_stages,
    run_name,
    write_once,
)
from lep.stages import make_plan

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
NOT_OF_RUNS = ("hydra", "hardware", "__pycache__")  # `hardware` is chosen for `lep plan` alone
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in NOT_OF_RUNS)
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


def composed(*overrides: str) -> DictConfig:
    needed = {
        "corpus=text_files": ["corpus.paths=[texts/*.txt]"],
        "corpus=paper": ["corpus.paths={habr: a, pikabu: b, fiction: c, news: d, education: e, science: f}"],
        "experiment=smollm2_ru": ["corpus.paths=[texts/*.txt]"],
        "instructions=files": ["instructions.paths=[chats/*.jsonl]", "instructions.texts=[texts/*.txt]"],
        "instructions=saiga_scored": ["instructions.texts=[texts/*.txt]"],
    }
    given = [value for override in overrides for value in needed.get(override, ())]
    with initialize_config_module("lep.conf", version_base="1.3"):
        return compose("config", overrides=[*given, *overrides])


@pytest.mark.parametrize("app", ["config", "benchmark_only"])
def test_no_group_hides_a_key(app: str):
    """KEY=VALUE chooses an option wherever a group has that name, so no plain key may be called like a group."""
    plain = {key for key, value in OmegaConf.load(CONF / f"{app}.yaml").items() if not isinstance(value, DictConfig)}
    assert not plain & {*GROUPS, *NOT_OF_RUNS}


def targets(node: object, key: str = ""):
    """Every (key, node) with a `_target_`, at any depth."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, value in node.items():
            yield from targets(value, f"{key}.{name}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from targets(value, f"{key}[{i}]")


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_resolves_and_binds(group: str, option: str):
    config = composed(f"{group}={option}")
    config = OmegaConf.to_container(config, resolve=True)
    assert isinstance(config, dict)
    bound = 0
    for key, node in targets(config):
        arguments = {name: value for name, value in node.items() if not name.startswith("_")}
        try:
            inspect.signature(get_object(node["_target_"])).bind_partial(**arguments)
        except TypeError as error:
            raise AssertionError(f"{key} does not fit {node['_target_']}: {error}") from error
        bound += 1
    assert bound >= 5  # corpus, tokenizer, init twice, trainer at the least


def test_every_group_is_in_the_wheel():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        "lep.conf." + ".".join(path.parent.relative_to(CONF).parts)
        for path in CONF.rglob("*.yaml")
        if path.parent != CONF
    }
    assert folders == {name for name in packages if name.startswith("lep.conf.")}
    code = {
        "lep." + ".".join(path.parent.relative_to(ROOT / "lep").parts) for path in (ROOT / "lep").rglob("*/__init__.py")
    }
    assert code == {name for name in packages if name.startswith("lep.") and not name.startswith("lep.conf")}


def test_help_names_every_option():
    text = (CONF / "hydra" / "help" / "lep.yaml").read_text()
    devices = [path.stem for path in (CONF / "device").glob("*.yaml")]
    missing = [option for option in [*devices, *(option for _, option in OPTIONS)] if option not in text]
    assert missing == []


def test_paper_sizes_follow_the_model():
    assert composed("model=llama3_8b", "tokenizer=optimization").tokenizer.vocab_size == 114_504
    assert composed("model=llama3_8b", "tokenizer=extension").tokenizer.new_tokens == 174_816 - 128_256
    assert composed("model=mistral_7b", "tokenizer=extension").tokenizer.new_tokens == 55_328 - 32_000
    assert composed("model=mistral_7b", "tokenizer=unigram").tokenizer.vocab_size == 32_000
    assert composed("model=qwen2_5_7b", "tokenizer=extension_unigram").tokenizer.unigram_size == 48_000


def jobs_of(study: str, *overrides: str) -> list[list[str]]:
    """What `lep -m experiment=STUDY` runs, as the sweeper splits it: the overrides of every job."""
    params = OmegaConf.load(CONF / "experiment" / f"{study}.yaml").hydra.sweeper.params
    given = [f"experiment={study}", *(f"{key}={values}" for key, values in params.items()), *overrides]
    (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(given), None)
    return batch


@pytest.mark.parametrize(
    ("study", "key", "values"),
    [
        ("tokenizer_variants", "tokenizer._target_", "original bpe unigram extension optimization"),
        ("learning_rates", "training.learning_rate", "2e-05 5e-05 0.0001 0.0002"),  # the paper's four
        ("initialisations", "init.input._target_", "mean random"),
        ("propagation_rules", "propagation", "swap overlap conversion delta"),
        ("seeds", "seed", "0 1 2"),
    ],
)
def test_a_study_is_one_command_whose_runs_compose_and_differ_in_one_thing(study: str, key: str, values: str):
    configs = [composed(*job) for job in jobs_of(study)]
    found = [OmegaConf.select(config, key) for config in configs]
    named = [next(iter(value)) if isinstance(value, DictConfig) else str(value) for value in found]
    assert all(name.endswith(value) for name, value in zip(named, values.split(), strict=True))
    for config in configs:
        check(config)
        assert config.study == study and config.model.name == "tiny"
    assert len({run_name(job) for job in jobs_of(study)}) == len(configs)
    # What is said on the command line comes beside the study's own, or in its place.
    assert len(jobs_of(study, "seed=5,6", "model=smollm2_135m")) == (2 if key == "seed" else 2 * len(configs))


@pytest.mark.parametrize(
    ("launcher", "plugin"),
    [
        ("processes", "JoblibLauncher"),
        ("slurm", "SlurmLauncher"),
        ("submitit_local", "LocalLauncher"),
        ("ray", "RayLauncher"),
    ],
)
def test_every_launcher_composes_with_the_keys_of_its_plugin(launcher: str, plugin: str):
    with initialize_config_module("lep.conf", version_base="1.3"):
        found = compose("config", overrides=[f"hydra/launcher={launcher}"], return_hydra_config=True).hydra.launcher
    assert get_object(found._target_).__name__ == plugin


def test_several_options_of_a_group_at_once():
    assert set(composed("logger=[csv,wandb]").logger) == {"csv", "wandb"}
    assert set(composed("propagation=[swap,delta]").propagation) == {"swap", "delta"}
    assert list(composed().propagation) == ["swap", "overlap", "conversion", "delta"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.instruct=null"], "model.instruct"),
        (["stages=[corpus,dance]"], "dance"),
        (["export=[conversion]", "propagation=swap"], "export=conversion"),
        (["export=[original]"], "export=original writes what calibrations made"),
        (["export=[original]", "calibration=instruct"], "export=original writes what calibrations made"),
        (["export=[original]", "calibration=self", "calibration.on=[original,delta]"], "export=original writes"),
        (["training.rows=new", "tokenizer=bpe"], "training.rows=new"),
        (["stages=[corpus,training]"], "stages=['corpus', 'training'] are not stages in a row"),
        (["stages=[tokenizer,corpus]"], "not stages in a row"),
        (["stages=[]"], "not stages in a row"),
        (["stages=[propagation]", "model.instruct=null"], "model.instruct"),
        (["training.warmup_steps=1500"], "training.warmup_steps=1500"),
        (["tokenizer=optimization", "tokenizer.keep=100"], "tokenizer.keep=100"),
        (["tokenizer=optimization", "tokenizer.vocab_size=300"], "tokenizer.vocab_size=300"),
        (["trainer=ddp"], "trainer.devices=auto needs one process a device"),
        (["trainer=fsdp", "trainer.devices=1"], "lep.training.ShardedBody'} needs one process a device"),
        (["trainer=gpu", "trainer.devices=4"], "trainer.devices=4 needs .* torchrun --nproc-per-node=N"),
        (["trainer=gpu", "trainer.devices=[0,1]"], "trainer.devices=[0, 1] needs one process"),
        (["measured_characters=0"], "measured_characters=0"),
        (["during_training.every_steps=0"], "during_training.every_steps=0"),
        (["export_pad_to=0"], "export_pad_to=0"),
        (["repair_end_of_turn=maybe"], "repair_end_of_turn=maybe"),
        (["calibration=self", "calibration.on=[dance]"], "calibration.on=['dance']"),
        (["calibration=[self,instruct]", "propagation=swap"], "calibration.on=['conversion']"),
        (["calibration=self", "calibration.on=[]"], "calibration.on=[]"),
        (["calibration=[self,instruct]", "calibration.on=[original]"], "calibration=self with calibration.on"),
    ],
)
def test_impossible_combinations_are_refused(overrides: list[str], message: str):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        check(composed(*overrides))


def test_a_body_in_shards_is_validated_without_inference_mode():
    """Lightning takes inference mode over NCCL and not over gloo; in it FSDP of one GPU fails ("Inference tensors")."""
    here = {"accelerator": "cpu", "devices": 1, "strategy": "auto"}
    trainers = [build(composed(f"trainer={name}").trainer, **here) for name in ("cpu", "fsdp")]
    assert [trainer.validate_loop.inference_mode for trainer in trainers] == [True, False]


@pytest.mark.parametrize("trainer", ["cpu", "ddp", "fsdp"])
def test_devices_are_as_many_as_the_processes_that_were_started(monkeypatch: pytest.MonkeyPatch, trainer: str):
    monkeypatch.setenv("LOCAL_RANK", "0")
    config = composed(f"trainer={trainer}", "training.batch_size=6")
    check(config)
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    if trainer == "cpu":
        with pytest.raises(ValueError, match=r"trainer.devices=1, but 2 processes .* Use trainer=ddp or trainer=fsdp"):
            check(config)
        config = composed("trainer.devices=2", "training.batch_size=6")
    with pytest.raises(ValueError, match=r"A step of 6 blocks .* shared evenly by 4 processes"):
        check(config)
    config.training.batch_size = 8
    check(config)
    with run_of(RunMode.MULTIRUN), pytest.raises(ValueError, match=r"4 processes of one torchrun.*tasks_per_node=N"):
        check(config)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")  # a job of the sweep with processes of its own
    with run_of(RunMode.MULTIRUN):
        check(config)


@pytest.mark.parametrize("overrides", [["trainer=ddp"], ["trainer=fsdp"], ["trainer.devices=2"]])
def test_a_sweep_starts_no_processes_by_running_itself_again(overrides: list[str]):
    with run_of(RunMode.MULTIRUN), pytest.raises(ValueError, match=r"a sweep \(-m\).* once a run.*tasks_per_node=N"):
        check(composed(*overrides))
    with run_of(RunMode.MULTIRUN):
        check(composed())


@contextmanager
def run_of(mode: RunMode) -> Iterator[None]:
    """As within Hydra's own main: what it says of the run."""
    with initialize_config_module("lep.conf", version_base="1.3"):
        config = compose("config", return_hydra_config=True)
    config.hydra.mode = mode
    HydraConfig.instance().set_config(config)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = None


def test_a_possible_combination_is_not():
    check(composed())
    check(composed("export=[original]", "calibration=[self,instruct]", "calibration.on=[original,delta]"))
    for stages in ("[corpus]", "[corpus,tokenizer]", "[tokenizer]", "[tokenizer,training]"):
        check(composed(f"stages={stages}", "model.instruct=null"))


def test_calibrations_are_asked_for_by_name_and_need_peft(monkeypatch: pytest.MonkeyPatch):
    assert calibrations(composed()) == {}
    both = composed("calibration=[self,instruct_copy]", "calibration.on=[original,swap]")
    assert list(calibrations(both)) == ["self", "instruct_copy"]
    assert calibrations(composed("calibration=self", "stages=[propagation]")) == {}
    check(both)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check(composed())
    with pytest.raises(ValueError, match=r"calibration=self,instruct_copy needs peft.*lep\[calibration\]"):
        check(both)


def test_calibrations_have_the_settings_of_the_paper():
    """Section on calibration; the tiny pair has batches of its own."""
    own = composed("calibration=[self,instruct,instruct_copy]", "model=mistral_7b").calibration
    tunings = {name: own[name].tuning for name in ("self", "instruct", "instruct_copy")}
    chosen = (
        "rank",
        "alpha",
        "layers",
        "tables",
        "learning_rate",
        "weight_decay",
        "batch_size",
        "epochs",
        "block_size",
    )
    found = {name: [tuning[key] for key in chosen] for name, tuning in tunings.items()}
    assert found["self"] == [8, 1, "first_and_last", ["input", "output"], 2.5e-5, 0.1, 64, 1, 8096]
    assert found["instruct"] == [32, 16, "all", ["output"], 5e-5, 0.05, 128, 1, 4096] == found["instruct_copy"]
    assert own.instruct.copies is None
    built = build(own.self)
    assert list(built.answers.filters.scripts) == ["Cyrillic", "Latin"] and not built.answers.rates


def test_copies_are_as_many_as_the_paper_has_unless_said_otherwise(tmp_path: Path):
    (tmp_path / "chats.jsonl").touch()
    files = ["instructions=files", f"instructions.paths=[{tmp_path}/chats.jsonl]", f"instructions.texts=[{tmp_path}/*]"]
    named = ["calibration=[self,instruct_copy]", *files]
    for overrides, expected in ((named, [10_000, 2_000]), ([*named, "instructions.copies.count=20"], [20, 20])):
        calibration = composed(*overrides).calibration
        assert [build(calibration[name]).copies.count for name in ("self", "instruct_copy")] == expected


@pytest.mark.parametrize("number", ["null", "0"])
def test_a_number_of_copies_that_makes_none_is_told_by_its_name(tmp_path: Path, number: str):
    files = ["instructions=files", f"instructions.paths=[{tmp_path}/*]", f"instructions.texts=[{tmp_path}/*]"]
    calibration = composed("calibration=self", *files, f"calibration.self.num_copies={number}").calibration
    with pytest.raises(ValueError, match=r"num_copies=(None|0) with instructions\.copies\.count=null"):
        build(calibration.self)


def test_what_is_named_freely_is_set_without_a_plus():
    files = "benchmark.darumeru.files={rucola: {test: [a.csv], prompt: [b.csv]}}"
    assert composed("benchmark=darumeru", files).benchmark.darumeru.files.rucola.test == ["a.csv"]
    chats = ["instructions=files", "instructions.paths=[x]", "instructions.texts=[x]", "instructions/fields=sharegpt"]
    freely = ["instructions.source.keep={score: {minimum: 8}}", "instructions.fields.roles={model: assistant}"]
    found = composed("calibration=instruct", *chats, *freely).instructions
    assert found.source.keep.score.minimum == 8 and found.source.fields.roles.model == "assistant"


def test_the_micro_world_is_asked_nothing_that_the_benchmark_of_the_run_asks():
    config = composed("calibration=self", "benchmark.micro.items_per_task=300", "benchmark.micro.seed=5")
    built = build(config.calibration.self)
    for source in (built.instructions, built.copies):
        assert (source.benchmark_items, source.benchmark_seed) == (300, 5)
    built = build(composed("calibration=self", "benchmark=none").calibration.self)
    assert (built.instructions.benchmark_items, built.instructions.benchmark_seed) == (200, 0)


def test_earlier_stages_are_implied():
    assert planned_stages(composed("stages=[tokenizer]")) == ("corpus", "tokenizer")
    assert planned_stages(composed("stages=[corpus]")) == ("corpus",)
    assert planned_stages(composed()) == STAGES


def test_tokenizers_to_compare_with_are_named_freely():
    assert composed("compare_tokenizers={llama3: here, qwen: there}").compare_tokenizers == {
        "llama3": "here",
        "qwen": "there",
    }


def test_a_typo_in_a_key_is_an_error():
    with pytest.raises(Exception, match="stepps"):
        composed("training.stepps=3")


def test_a_block_longer_than_the_context_is_refused():
    check_context(256, 256)
    with pytest.raises(ValueError, match="training.block_size=257 is longer than the 256"):
        check_context(257, 256)


def test_build_refuses_targets_from_elsewhere_at_any_depth():
    with pytest.raises(ValueError, match="os.system"):
        build({"_target_": "lep.corpus.HeldOut", "documents": {"_target_": "os.system", "command": "true"}})


def test_run_names_hold_what_changes_the_run_and_fit_a_folder():
    assert run_name([]) == "default"
    assert run_name(["seed=1", "tokenizer=bpe"]) == run_name(["tokenizer=bpe", "seed=1"]) == "seed=1,tokenizer=bpe"
    assert run_name(["output_dir=/tmp/a", "experiment=gates", "hydra.job.chdir=true"]) == "default"
    assert run_name(["study=x", "experiment=gates"]) == "gates"  # beside another experiment of that study
    assert run_name(["benchmark=micro", "experiment=paper/one", "seed=1"]) == "one,benchmark=micro,seed=1"
    one, other = run_name(["model.base=/a/b/model"]), run_name(["model.base=/c/model"])
    assert one != other and "/" not in one + other
    long = [run_name([f"key{i}=привет{i}" for i in range(count)]) for count in (40, 41)]
    assert long[0] != long[1] and all(len(name.encode()) <= 160 for name in long)


def test_a_record_names_its_experiment_if_there_is_one():
    chosen = {"model": "tiny", "hydra/launcher": "basic", "experiment": None}
    assert choices(chosen) == {"model": "tiny"}
    assert choices(chosen | {"experiment": "paper/one"}) == {"model": "tiny", "experiment": "paper/one"}


def test_a_folder_with_another_config_is_refused_once_begun(tmp_path: Path):
    path = tmp_path / "config.yaml"
    write_once(path, OmegaConf.create({"seed": 0, "output_dir": "a"}))
    write_once(path, OmegaConf.create({"seed": 1, "output_dir": "a"}))  # nothing was done yet
    (tmp_path / "result.json").write_text("{}")
    write_once(path, OmegaConf.create({"seed": 1, "output_dir": "elsewhere"}))
    with pytest.raises(ValueError, match="differing: seed"):
        write_once(path, OmegaConf.create({"seed": 2, "output_dir": "a"}))


def test_a_variant_may_have_a_learning_rate_of_its_own() -> None:
    model = composed("tokenizer=unigram").model.adaptation
    assert composed("tokenizer=unigram").training.learning_rate == model.learning_rate_of.unigram
    assert composed("tokenizer=bpe").training.learning_rate == model.learning_rate
    other = composed("tokenizer=unigram", "model=smollm2_135m")
    assert other.training.learning_rate == other.model.adaptation.learning_rate


def test_what_a_target_says_of_its_arguments_is_said_in_its_own_words() -> None:
    node = OmegaConf.create({"_target_": "lep.calibration.conversations.MicroWorldChats", "count": 0})
    with pytest.raises(ValueError, match=r"^instructions.source.count=0 asks nothing. Give 1 or more.$"):
        build(node)


@pytest.mark.parametrize(
    "override",
    [
        "calibration.self.answers.filters.ngram=0",
        "calibration.self.answers.filters.scripts=[Martian]",
        "calibration.self.answers.filters.max_repeated_share=2",
        "calibration.self.answers.max_new_tokens=0",
        "calibration.self.answers.questions=0",
        "calibration.self.answers.engine=abacus",
        "calibration.self.answers.rating.threshold=9",
        "calibration.self.answers.rating.model=/no/answers.engine",
        "calibration.self.tuning.rank=0",
        "calibration.instruct_copy.tuning.layers=some",
        "calibration.instruct_copy.tuning.modules=[nope]",
        "instructions.copies.count=0",
        "instructions.source.count=0",
    ],
)
def test_what_a_calibration_refuses_is_named_as_it_is_typed(tmp_path: Path, override: str):
    key, _, value = override.partition("=")
    config = composed("calibration=[self,instruct_copy]", f"artifacts_dir={tmp_path}", override)
    with pytest.raises(ValueError, match=f"^{re.escape(key)}={re.escape(value.strip('[]'))} "):
        make_plan(config)


def test_only_keys_below_a_calibration_are_completed():
    with pytest.raises(
        ValueError, match=r"^calibration\.x\.num_copies=0 in a/tuning\.rank, not tuning\.fork: give copies\.count$"
    ):
        with named_in_full("x"):
            raise ValueError("num_copies=0 in a/tuning.rank, not tuning.fork: give copies.count")


def test_what_suites_read_is_looked_for_before_any_work(tmp_path: Path):
    """With the plan, as a run makes it first of all; not after hours of training."""
    asked = ["benchmark=darumeru", "benchmark.darumeru.source=stand_in", f"artifacts_dir={tmp_path}/artifacts"]
    for override, message in (
        ("benchmark.darumeru.limit=0", r"benchmark\.darumeru\.limit=0 is out of range"),
        ("benchmark.darumeru.protocol=2024", r"benchmark\.darumeru\.protocol=2024 is unknown"),
        (f"benchmark.darumeru.source={tmp_path}/none", r"benchmark\.darumeru\.source=.*/none is no directory"),
        (f"benchmark.darumeru.prompts={tmp_path}/none.yaml", r"benchmark\.darumeru\.prompts=.*/none.yaml is no file"),
    ):
        with pytest.raises(ValueError, match=message):
            make_plan(composed(*asked, override))
    plan = make_plan(composed(*asked))
    assert list(plan.suites) == ["darumeru"] and plan.asked["darumeru"]["protocol"]["name"] == "corrected"
    assert make_plan(composed(*asked, "stages=[propagation]")).suites == {}


def test_weights_that_no_run_can_use_are_told_before_any_work(tmp_path: Path):
    tiny = ROOT / "lep" / "assets" / "tiny"
    for name in ("base", "instruct"):
        shutil.copytree(tiny / name, tmp_path / name)
    asked = [f"model.base={tmp_path}/base", f"model.instruct={tmp_path}/instruct", f"artifacts_dir={tmp_path}/a"]
    assert make_plan(composed(*asked)).instruct_dir == tmp_path / "instruct"
    (weights,) = (tmp_path / "instruct").glob("*.safetensors")
    tables = {name: table for name, table in load_file(weights).items() if re.search("embed_tokens|lm_head", name)}
    save_file({name: table[:, ::2].contiguous() for name, table in tables.items()}, weights)
    with pytest.raises(ValueError, match="hidden sizes differ.*'model.instruct'"):
        make_plan(composed(*asked))
    weights.unlink()
    (tmp_path / "instruct" / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(ValueError, match=f"{tmp_path}/instruct: weights are pickles"):
        make_plan(composed(*asked))
    assert make_plan(composed(*asked, "stages=[tokenizer]")).instruct_dir is None
