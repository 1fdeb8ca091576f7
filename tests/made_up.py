"""Results of runs that never were, as files in folders: what reports over runs are tested on."""

import json
import random
from pathlib import Path
from typing import Any

from lep.results import Result, Row, Score, write_result

TASKS = ("questions", "copying")
RULES = ("swap", "conversion", "delta")


def score(value: float, *, stderr: float = 0.02, n: int = 200) -> Score:
    return Score(value, stderr, n)


def row(name: str, value: float, *, n: int = 200, characters: float = 4.0, bits: float = 0.3, **details: Any) -> Row:
    scores = {f"{task}/{language}": score(value, n=n) for language in ("en", "ru") for task in TASKS}
    return Row(
        name,
        scores,
        {"ru": characters, "en": 3.5},
        {"ru": Score(bits, 0.01, 60), "en": Score(bits + 0.1, 0.01, 60)},
        details,
    )


def vocabulary(size: int, characters: float) -> dict[str, Any]:
    cost = {"characters_per_token": characters, "tokens_per_word": 6 / characters}
    return {"size": size, "unreachable_tokens": 0, "share_used": 0.98, "languages": {"ru": cost, "en": cost}}


def result(run: str, rows: list[Row], *, seed: int = 0, study: str = "study", **sections: Any) -> Result:
    sections.setdefault("environment", {"commit": "0123456789abcdef", "dirty": False})
    choices = sections.pop("choices", {"model": "tiny", "tokenizer": "extension"})
    return Result(study, run, choices, seed, rows, **sections)


def config(*, seed: int = 0, study: str = "study", items: int = 200, **settings: Any) -> dict[str, Any]:
    """What `lep` writes beside a result, as far as it tells runs apart."""
    micro = {"_target_": "lep.benchmark.micro.MicroBenchmark", "items_per_task": items}
    asked = {"benchmark": {"micro": micro}, "corpus": {"name": "microworld"}, "measured_characters": 60_000}
    return {"study": study, "seed": seed, **asked, **settings}


def write_run(folder: Path, found: Result, asked: dict[str, Any] | None) -> Path:
    """The folder of a finished run. JSON is YAML."""
    write_result(folder / "result.json", found)
    if asked is not None:
        (folder / "config.yaml").write_text(json.dumps(asked), encoding="utf-8")
    return folder


def write_study(root: Path, *, seeds: int = 3, variants: tuple[str, ...] = ("bpe", "extension", "unigram")) -> Path:
    """A study of some variants and seeds with everything that a report shows."""
    rng = random.Random(0)
    for number, variant in enumerate(variants):
        characters = 4.0 + 0.1 * number
        for seed in range(seeds):
            level = 0.6 + 0.12 * number + rng.gauss(0, 0.01)
            rows = [
                row("original", 0.99, characters=2.7, bits=0.22),
                row("no training", 0.1, characters=characters, bits=0.9),
            ]
            rows += [row(rule, level + 0.02 * i, characters=characters) for i, rule in enumerate(RULES)]
            steps = range(100, 600, 100)
            curve: list[dict[str, float]] = [
                {"step": step, "benchmark/agreement/ru": level - 20 / step} for step in steps
            ]
            curve += [{"step": step, "val/bits_per_byte/ru": 0.3 + 20 / step, "train/loss": 1.0} for step in steps]
            fit = {
                "held_out_r2": 0.98,
                "held_out_r2_of_change": 0.6 - 0.1 * number,
                "relative_drift": 0.04,
                "rows": 900,
            }
            gain = {"task": "all tasks/ru", "before": level, "after": level + 0.1, "difference": 0.1, "n": 1056}
            gain |= {"low": 0.08, "high": 0.12, "recovered": {"share": 0.4, "low": 0.3, "high": 0.5, "n": 1056}}
            found = result(
                f"seed={seed},tokenizer={variant}",
                rows,
                seed=seed,
                study=root.name,
                tokenizer={
                    "before": vocabulary(1100, 2.7),
                    "after": vocabulary(1500, characters),
                    "examples": [
                        {"language": "ru", "tokens": {"before": ["На", "дя"], "after": [f"Надя{'·' * number}"]}}
                    ],
                },
                training={"curve": curve},
                propagation={"conversion": {"input": fit, "output": fit}, "swap": {"input": {}, "output": {}}},
                calibration={"conversion + self": {"before": "conversion", "gains": [gain], "against": []}},
            )
            write_run(root / found.run, found, config(seed=seed, study=root.name, tokenizer={"_target_": variant}))
    return root
