"""The real vocabularies and their variants at the paper's sizes: what each guarantees, and T between any two of them.

    python benchmarks/real_vocabularies.py llama3_8b=DIR mistral_7b=DIR qwen3_8b=DIR \\
        --russian ru_fiction.jsonl.gz ru_manuals.jsonl.gz --english en_manuals.jsonl.gz

Every NAME is a model of conf/model, whose committed sizes the variants have; its DIR holds tokenizer.json or
tokenizer.model. Every row is a process of its own, so that its peak memory is its own. One document in twelve is held
out, by the hash of its source. The laws of T (tests/operator_laws.py) are checked for every token of every pair: a row
that breaks one ends the script. Results are printed as Markdown.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from itertools import permutations
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from train_tokenizers import Texts

from lep.checkpoints import load_tokenizer
from lep.config import build
from lep.memory import peak_memory_bytes
from lep.tokenizers.report import vocabulary_change, vocabulary_report

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from operator_laws import check_laws  # noqa: E402

VARIANTS = ("original", "bpe", "unigram", "extension", "optimization", "extension_unigram")
Row = dict[str, Any]


def measure_variant(model: str, base_dir: Path, variant: str, paths: dict[str, list[Path]]) -> Row:
    """Build one variant as its config says; time and peak are those of building alone."""
    base = load_tokenizer(base_dir, key=model)
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        config = compose("config", overrides=[f"model={model}", f"tokenizer={variant}"])
    make, facts = build(config.tokenizer), dict[str, Any]()
    train = Texts([path for some in paths.values() for path in some], held_out=False)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a corpus too small for the size is seen in the table
        tokenizer = make(base) if variant == "original" else make(base, train, facts=facts)
    row: Row = {"seconds": time.perf_counter() - started, "peak": peak_memory_bytes(), "facts": facts}
    texts = {path.name: {language: Texts([path], held_out=True)} for language, some in paths.items() for path in some}
    row |= vocabulary_report(tokenizer, texts) | vocabulary_change(base, tokenizer)
    return row | {"operator": check_laws(tokenizer, base).summary()}


def measure_pair(new: Path, old: Path) -> Row:
    return {"operator": check_laws(load_tokenizer(new, key="new"), load_tokenizer(old, key="old")).summary()}


def in_a_process(job: dict[str, Any]) -> Row:
    """One row, from a process of its own."""
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def run_job(job: dict[str, Any]) -> Row:
    if "pair" in job:
        return measure_pair(*map(Path, job["pair"]))
    paths = {language: [Path(path) for path in some] for language, some in job["paths"].items()}
    return measure_variant(job["model"], Path(job["base"]), job["variant"], paths)


def variant_line(model: str, variant: str, row: Row, original: Row | None) -> list[str]:
    english = row["languages"].get("en", {}).get("characters_per_token")
    before = original["languages"].get("en", {}).get("characters_per_token") if original else None
    return [
        model,
        variant,
        f"{row['size']:,}",
        *(f"{domain['characters_per_token']:.3f}" for domain in row["domains"].values()),
        f"{100 * (english / before - 1):+.2f} %" if english and before else "",
        str(row["digits_per_token"]),
        f"{row['unreachable_tokens']:,}",
        str(row["unicode_characters_lost"]),
        f"{row['kept_ids']:,} of {row['old_tokens']:,}",
        f"{row['seconds']:.1f}",
        f"{row['peak'] / 1e9:.2f}",
    ]


def operator_line(new: str, old: str, counts: dict[str, int]) -> list[str]:
    kinds = [f"{counts[kind]:,}" for kind in ("tokens", "exact", "composed", "special")]
    return [new, old, *kinds, f"{counts['distinct_old_rows']:,} of {counts['old_tokens']:,}"]


def markdown(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizers", nargs="*", metavar="NAME=DIR", help="a model of conf/model and its tokenizer")
    parser.add_argument("--russian", nargs="+", default=[], help="JSON Lines with `text` and `source`, or .gz or .zst")
    parser.add_argument("--english", nargs="+", default=[], help="the same")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--pairs", action=argparse.BooleanOptionalAction, default=True, help="T between the originals")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)  # one row, as JSON
    given = parser.parse_args()
    if given.job:
        print(json.dumps(run_job(given.job)))
        return
    directories = dict(name.split("=", 1) for name in given.tokenizers)
    paths = {"ru": given.russian, "en": given.english}
    jobs = [
        {"model": model, "variant": variant, "base": directory, "paths": paths}
        for model, directory in directories.items()
        for variant in given.variants
    ]
    jobs += [{"pair": (directories[new], directories[old])} for new, old in permutations(directories, 2)] * given.pairs
    tables = measure_all(jobs, {directory: model for model, directory in directories.items()}, given)
    for table in tables:
        print(f"\n{table}")


def measure_all(jobs: list[dict[str, Any]], names: dict[str, str], given: argparse.Namespace) -> list[str]:
    """The two tables; every row is also printed when it is there, as it may be long until the next."""
    variants, operators, originals = list[list[str]](), list[list[str]](), dict[str, Row]()
    console = Console(stderr=True, soft_wrap=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(jobs))
        for job in jobs:
            new, old = map(names.__getitem__, job["pair"]) if "pair" in job else (job["variant"], job["model"])
            progress.update(bar, description=f"{new}, {old}")
            row = in_a_process(job)
            operators.append(operator_line(new, old, row["operator"]))
            if "variant" in job:
                if job["variant"] == "original":
                    originals[old] = row
                variants.append(variant_line(old, new, row, originals.get(old)))
                console.print(" | ".join(variants[-1]), json.dumps(row["facts"]), highlight=False)
            console.print(" | ".join(operators[-1]), highlight=False)
            progress.advance(bar)
    files = [Path(path).name.partition(".")[0] for path in given.russian + given.english]
    head = ["model", "variant", "tokens", *files, "English", "digits", "unreachable", "characters lost", "ids kept"]
    head += ["seconds", "peak, GB"]
    operator_head = ["new", "old", "tokens", "exact", "composed", "special", "old rows used"]
    return [markdown(head, variants), markdown(operator_head, operators)]


if __name__ == "__main__":
    main()
