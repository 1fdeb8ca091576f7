"""Every command that the README and docs show works: run here at small size, or composed and checked for the hub's."""

import csv
import gzip
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from torch.distributed.run import get_args_parser

from lep import benchmark_app, plan_app, report_app, run
from lep.artifacts import MANIFEST
from lep.assets.microworld import MicroWorldText
from lep.calibration import from_texts
from lep.config import check
from lep.run import HYDRA_VERSION_BASE

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PAIR = ROOT / "lep" / "assets" / "tiny"
# What is set where a config has the key, so that a run takes seconds.
SMALL = {
    "training.steps": 4,
    "training.warmup_steps": 1,
    "training.batch_size": 2,
    "training.block_size": 32,
    "training.validate_every_steps": 4,
    "corpus.source.num_documents": 1500,
    "corpus.held_out.documents": 5,
    "measured_characters": 500,
    "benchmark.micro.items_per_task": 2,
    "benchmark.darumeru.limit": 1,
    "benchmark.fair.max_characters": 400,
    "benchmark.fair.context": 60,
    "benchmark.fair.max_new_characters": 8,
    "benchmark.fair.timed_tokens": 2,
    "benchmark.continuation.count": 2,
    "instructions.source.count": 24,
    "instructions.source.limit": 12,
    "instructions.copies.count": 4,
    "calibration.self.answers.questions": 8,
    "instructions.copies.characters": [40, 60],
    "calibration.self.tuning.block_size": 128,
    "calibration.instruct.tuning.block_size": 128,
    "calibration.instruct_copy.tuning.block_size": 128,
}
SMALL_VOCABULARY = {"tokenizer.new_tokens": 40, "tokenizer.vocab_size": 700}  # of other texts than the micro-world
ONE_SEED = "seed=0"
ABSENT = object()


def commands(page: Path) -> list[str]:
    """The commands in its blocks of bash, a line each."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in (re.split(r"(?:^|\s)#", line)[0].strip() for line in lines) if line]


def write_configs(page: Path, place: Path) -> None:
    """Write the files that a page shows, each with its name in its first line."""
    shown = re.findall(r"```yaml\n(# (\S+/\S+\.yaml)\n.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for text, name in shown:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text, encoding="utf-8")


SHOWN = list(dict.fromkeys(command for page in PAGES for command in commands(page)))


def test_commands_are_found():
    assert len(SHOWN) > 30 and {shlex.split(command)[0] for command in SHOWN} == {
        "make", "source", "lep", "lep-benchmark", "lep-report", "python", "torchrun"
    }  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands take: texts, records, and a run of the default."""
    place = tmp_path_factory.mktemp("docs")
    documents = list(MicroWorldText(num_documents=3000, seed=5).documents())
    texts = {language: [d.text for d in documents if d.language == language] for language in ("ru", "en")}
    for folder, part in {"texts": slice(0, 800), "others": slice(800, None), "judged": slice(30, 40)}.items():
        (place / folder).mkdir()
        with gzip.open(place / folder / "both.jsonl.gz", "wt", encoding="utf-8") as out:
            for text in (*texts["ru"][part], *texts["en"][part]):
                out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    for language, name in {"ru": "kk", "en": "en"}.items():
        (place / "judged" / f"{name}.txt").write_text("\n\n".join(texts[language][-10:]), encoding="utf-8")
        for i, text in enumerate(texts[language][:200]):
            (place / "texts" / f"{name}{i}.txt").write_text(text, encoding="utf-8")
    for page in PAGES:
        write_configs(page, place)
    with (place / "chats.jsonl").open("w", encoding="utf-8") as out:
        for text in texts["ru"][1200:1230]:
            turns = [{"role": "user", "content": text[:60]}, {"role": "assistant", "content": text[60:100]}]
            out.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    for name in ("in_domain_dev.csv", "in_domain_train.csv"):
        with (place / name).open("w", encoding="utf-8", newline="") as out:
            rows = [(i, text[:40], i % 2, "", "book") for i, text in enumerate(texts["ru"][:20])]
            csv.writer(out).writerows([("id", "sentence", "acceptable", "error_type", "detailed_source"), *rows])
    return place


@pytest.fixture
def call(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls a main function with arguments, in the folder; gives what it printed."""
    monkeypatch.chdir(place)
    surroundings = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true", "COLUMNS": "140"}
    for key, value in surroundings.items():
        monkeypatch.setenv(key, value)

    def run_main(main: Callable[[], object], *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        try:
            status = main()
        except SystemExit as ended:
            status = ended.code
        printed = capsys.readouterr()
        assert not status, printed.out[-3000:] + printed.err[-3000:]
        return printed.out

    return run_main


@pytest.fixture
def adapted(place: Path, call: Callable[..., str]) -> Path:
    """Trained tables, of a run of the default."""
    found = [path.parent for path in (place / "artifacts" / "adapted").glob(f"*/{MANIFEST}")]
    if not found:
        call(run.main, *small(jobs([])[0][1], []))
        return next((place / "artifacts" / "adapted").glob(f"*/{MANIFEST}")).parent
    return found[0]


def filled_in(words: list[str], trained: Path) -> list[str]:
    """With places of models, tables and tokenizers instead of DIR."""
    known = {"adapted": trained, "model.base": PAIR / "base"}

    def fill(word: str) -> str:
        key = word.partition("=")[0]
        return re.sub(r"\bDIR\d?\b", str(known.get(key, PAIR / "instruct")), word)

    return [fill(word) for word in words]


def jobs(words: list[str]) -> list[tuple[list[str], DictConfig]]:
    """The overrides and the config of every run that `lep WORDS` starts."""
    overrides = [word for word in words if word not in ("-m", "--config-dir")]
    if "--config-dir" in words:
        place = overrides.pop(words.index("--config-dir"))
        overrides.append(f"hydra.searchpath=[file://{Path(place).absolute()}]")
    with initialize_config_module("lep.conf", version_base=HYDRA_VERSION_BASE):
        found = plan_app.sweep(overrides)
        return [(job, compose("config", overrides=job)) for job in found]


def is_here(config: DictConfig) -> bool:
    """Whether the model and the text of a run are on this machine."""
    model = str(config.model.base)
    source = str(config.corpus.source._target_)
    return (model.startswith("package:") or Path(model).is_dir()) and source.endswith(("MicroWorldText", "TextFiles"))


def small(config: DictConfig, given: list[str]) -> list[str]:
    """Overrides that make a run small, of what its config has and the command does not say."""
    sizes = SMALL | (SMALL_VOCABULARY if config.get("corpus", {}).get("paths") else {})
    said = {word.partition("=")[0] for word in given} - {"training.steps"}
    return [
        f"{key}={str(value).replace(' ', '')}"
        for key, value in sizes.items()
        if key not in said and OmegaConf.select(config, key, default=ABSENT) is not ABSENT
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", SHOWN)
def test_what_is_shown_works(
    command: str, adapted: Path, call: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *words = filled_in(shlex.split(command), adapted)
    if program == "torchrun":
        program, words = started_by_torchrun(words, monkeypatch)
    launcher = dict(word.removeprefix("hydra.launcher.").split("=", 1) for word in words if "hydra.launcher." in word)
    if "tasks_per_node" in launcher:
        as_first_process(int(launcher["tasks_per_node"]), int(launcher.get("nodes", 1)), monkeypatch)
    if program == "make":
        subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True)
    elif program == "source":
        assert words == [".venv/bin/activate"]
    elif program == "python":
        assert words[:2] == ["-m", "lep.calibration.from_texts"]
        call(from_texts.main, *words[2:], "--records", "12")
    elif program == "lep-report":
        assert "questions" in call(report_app.main, *words) or "--out" in words
    elif "--help" in words or "--cfg" in words or words[:1] == ["plan"]:
        main = {"lep": run.main, "lep-benchmark": benchmark_app.main}[program]
        assert len(call(main, *words).splitlines()) > 10
    elif program == "lep-benchmark":
        assert "result.json" in call(benchmark_app.main, *words, *small_benchmark(words))
    else:
        run_small(words, call)


def started_by_torchrun(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    """What torchrun starts; for training the surroundings of its first process too."""
    given = get_args_parser().parse_args(words)
    assert given.module
    if given.training_script == "lep.benchmark_app":
        return "lep-benchmark", given.training_script_args
    as_first_process(int(given.nproc_per_node), int(given.nnodes.rpartition(":")[2]), monkeypatch)
    return given.training_script, given.training_script_args


def as_first_process(here: int, nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    group = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": here * nodes, "LOCAL_WORLD_SIZE": here}
    for name, value in group.items():
        monkeypatch.setenv(name, str(value))


def small_benchmark(words: list[str]) -> list[str]:
    """Overrides that make a benchmark small, and take records of our own in place of the hub's."""
    with initialize_config_module("lep.conf", version_base=HYDRA_VERSION_BASE):
        config = compose("benchmark_only", overrides=[word for word in words if not word.startswith("model=")])
    darumeru = config.benchmark.darumeru
    own = ["benchmark.darumeru.source=stand_in"] if darumeru.source == "hub" and not darumeru.files else []
    return [*small(config, words), *own]


def run_small(words: list[str], call: Callable[..., str]) -> None:
    """Run what `lep WORDS` starts, a seed of each where an experiment names several; check what is not here."""
    runs = jobs(words)
    if not is_here(runs[0][1]):
        for _, config in runs:
            check(config)
        return
    named = any(word.startswith("experiment=") for word in words)
    arguments = [*words, *small(runs[0][1], words), *([ONE_SEED] if named else [])]
    printed = call(run.main, *arguments)
    saved = [line for line in printed.splitlines() if line.startswith("saved ")]
    assert len(saved) == len(jobs(arguments)), printed
    assert all("result.json" in line for line in saved)
