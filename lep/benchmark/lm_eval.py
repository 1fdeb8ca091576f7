"""The field's own judge: tasks of lm-evaluation-harness on the model in memory. An optional extra: `lep[lm-eval]`.

In: names of its tasks, or YAML files of one's own. Out: its metrics with its standard errors, in our record. Its way of
asking is not Darumeru's (a chat's examples, what an option is): compare its figures with its own only.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lep.benchmark.asking import Journal, Ranks
from lep.benchmark.records import Record, SuiteResult
from lep.results import Score

NO_HARNESS = "benchmark=lm_eval needs the harness: pip install 'lep[lm-eval]'"


@dataclass(frozen=True)
class LmEval:
    """The suite as a config names it.

    tasks: names. include_path: a directory with YAML tasks of one's own, taken instead of the harness's. shots, limit,
    batch_size: as in the harness. chat: whether to use the chat format. language: what the scores are filed under.
    """

    tasks: Sequence[str]
    include_path: str | None = None
    shots: int | None = None
    limit: int | None = None
    batch_size: int = 8
    chat: bool = False
    language: str = "ru"

    def __call__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        progress: str | None = None,
        journal: Journal | None = None,
        ranks: Ranks | None = None,
    ) -> SuiteResult:
        """Remembered whole: the harness does not go on in the middle, nor does it share items out."""
        found = (journal or Journal()).remember(f"limit {self.limit}", lambda: plain(evaluate(model, tokenizer, self)))
        scores, details = {}, {}
        for task, named in found["results"].items():
            n = found["n"].get(task, 0)
            details[f"lm_eval {task}"] = {name.removesuffix(",none"): value for name, value in named.items()}
            for name, value in named.items():
                metric, _, cut = name.partition(",")  # the harness's "filter": how an answer is cut out of a text
                stderr = named.get(f"{metric}_stderr,{cut}")
                if stderr is not None and -1 <= value <= 1:  # shares and correlations; others have no place in percent
                    label = metric if cut == "none" else f"{metric} ({cut})"
                    scores[f"{task} {label}/{self.language}"] = Score(float(value), float(stderr), n)
        records = [
            Record(task, self.language, "", "", target, value, item=item)
            for task, answers in found["answers"].items()
            for item, target, value in answers
        ]
        return SuiteResult(scores, details, records)

    def fingerprint(self) -> dict[str, Any]:
        """What answers depend on besides the model. ValueError where the harness, tasks or files are missing."""
        if not self.tasks:
            raise ValueError("benchmark.lm_eval.tasks is empty. Name tasks, e.g. benchmark.lm_eval.tasks=[xnli_ru]")
        settings = {key: value for key, value in asdict(self).items() if key != "include_path"}
        try:
            return {"harness": metadata.version("lm_eval"), **settings, "files": self._files()}
        except metadata.PackageNotFoundError as error:
            raise ValueError(NO_HARNESS) from error

    def _files(self) -> dict[str, str]:
        """Digests of one's own tasks and of all that lies beside them."""
        if self.include_path is None:
            return {}
        folder = Path(self.include_path).expanduser()
        if not folder.is_dir():
            raise ValueError(f"benchmark.lm_eval.include_path={self.include_path} is no directory. Give one with tasks")
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}


def plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of the harness's result what JSON can say: metrics, numbers of items, and what was right of each item."""
    return {
        "results": {
            task: {name: value for name, value in metrics.items() if isinstance(value, int | float)}
            for task, metrics in found["results"].items()
        },
        "n": {task: counted.get("effective", 0) for task, counted in found["n-samples"].items()},
        "answers": {
            task: [
                [str(sample["doc_id"]), str(sample["target"]), float(sample["acc"])]
                for sample in sorted(samples, key=lambda sample: sample["doc_id"])
                if "acc" in sample
            ]
            for task, samples in found["samples"].items()
        },
    }


def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, suite: LmEval) -> dict[str, Any]:
    """The harness's own result. The one place that knows it."""
    try:
        from lm_eval import simple_evaluate  # type: ignore[import-not-found]
        from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]
        from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(NO_HARNESS) from error
    own = suite.include_path and str(Path(suite.include_path).expanduser())
    manager = TaskManager(include_path=own, include_defaults=own is None)
    # Its decorators hide its signatures from type checkers.
    found: Any = simple_evaluate(  # pyright: ignore
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=suite.batch_size),  # pyright: ignore
        tasks=list(suite.tasks),  # pyright: ignore
        num_fewshot=suite.shots,  # pyright: ignore
        limit=suite.limit,
        task_manager=manager,  # pyright: ignore
        apply_chat_template=suite.chat,
        log_samples=True,
        bootstrap_iters=1000,
    )
    assert found is not None, "the harness hands its result to the first process alone"
    return found


RUCOLA = "lep_rucola"


def write_rucola_task(
    directory: Path,
    *,
    test: Sequence[Mapping[str, Any]],
    examples: Sequence[Mapping[str, Any]],
    wording: Mapping[str, str],
    bos: str | None,
) -> None:
    """RuCoLA as a task of the harness that asks in the words of our own suite, in plain text, all examples in order.

    test, examples: rows with `sentence` and `acceptable`. wording: `user` (with {sentence}) and `assistant`, as in the
    prompts file. bos: written before everything, as the harness leaves BOS to the tokenizer.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Other columns are left out: files whose columns differ in type cannot be splits of one data set.
    for name, rows in (("test", test), ("examples", examples or test[:1])):
        with (directory / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, ["sentence", "acceptable"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    asked = wording["user"].replace("{sentence}", "{{sentence}}")
    task = {
        "task": RUCOLA,
        "dataset_path": "csv",
        "dataset_kwargs": {
            "data_files": {"train": str(directory / "examples.csv"), "validation": str(directory / "test.csv")}
        },
        "validation_split": "validation",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": len(examples),
        "output_type": "multiple_choice",
        "description": bos or "",
        "doc_to_text": f"{asked}\n{wording['assistant']}",
        "doc_to_choice": ["0", "1"],
        "doc_to_target": "acceptable",
        "metric_list": [{"metric": "acc"}, {"metric": "mcc"}],
    }
    text = yaml.safe_dump(task, allow_unicode=True, sort_keys=False)
    (directory / f"{RUCOLA}.yaml").write_text(text, encoding="utf-8")
