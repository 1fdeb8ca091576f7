"""Our scoring of RuCoLA beside a plain slow loop and lm-evaluation-harness: same items, model and machine, in one run.

    python benchmarks/evaluation.py --model DIR --rucola in_domain_train.csv --items 500

Prints (1) the largest difference to a loop that scores one option at a time without batching or caching, (2) accuracy,
MCC and their mean with 95 % intervals by shots and reading, with items a second, (3) items a second of the harness.
Speeds are by the clock and, in brackets, by the processor time spent: on a busy machine only the latter compares.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lep import checkpoints
from lep.benchmark.darumeru import PLAIN_SHOTS, Darumeru
from lep.benchmark.darumeru.sources import StandIn, WithFiles, read_rows
from lep.benchmark.lm_eval import RUCOLA, LmEval, write_rucola_task
from lep.benchmark.metrics import accuracy, matthews
from lep.benchmark.scoring import option_scores

OPTIONS = [" 0", " 1"]


def now() -> np.ndarray:
    """Seconds by the clock, and of processor time."""
    return np.array([time.perf_counter(), time.process_time()])


def rate(n: int, seconds: np.ndarray) -> str:
    return f"{n / seconds[0]:.2f} ({n / seconds[1]:.2f})"


def suite(path: Path, **settings: object) -> Darumeru:
    files = {"rucola": {"test": [str(path)], "prompt": [str(path)]}}
    return Darumeru("stand_in", files=files, tasks=["rucola"], chat=False, **settings)  # type: ignore[arg-type]


@torch.inference_mode()
def slow_scores(model, tokenizer, prompts: list[str]) -> np.ndarray:
    """One option at a time, its tokens from the whole logits: nothing is batched, cached or shared."""
    found = []
    for prompt in prompts:
        for option in OPTIONS:
            start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            alone = start + tokenizer(prompt, add_special_tokens=False)["input_ids"]
            ids = start + tokenizer(prompt + option, add_special_tokens=False)["input_ids"]
            assert ids[: len(alone)] == alone, "the option joins the prompt's last token; choose another prompt"
            logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            found.append(sum(float(logprobs[t - 1, ids[t]]) for t in range(len(alone), len(ids))))
    return np.array(found).reshape(-1, len(OPTIONS))


def prompts_of(path: Path, model, tokenizer, shots: int, count: int) -> list[str]:
    from lep.benchmark.darumeru import task_items
    from lep.benchmark.darumeru.tasks import TASKS

    of = suite(path, shots=shots)
    task = next(task for task in TASKS if task.name == "rucola")
    files = {"rucola": {"test": [str(path)], "prompt": [str(path)]}}
    items, examples = task_items(task, WithFiles(StandIn(), files), of._prompts()) or ([], {})
    return of._dialogue(tokenizer, of._protocol()).queries(task, items[:count], examples, model).prompts


def agreement(path: Path, model, tokenizer, count: int) -> None:
    prompts = prompts_of(path, model, tokenizer, 0, count)
    started = now()
    fast = np.array(option_scores(model, tokenizer, prompts, [OPTIONS] * len(prompts)))
    between = now()
    slow = slow_scores(model, tokenizer, prompts)
    ended = now()
    print(
        f"slow loop, {len(prompts)} prompts: largest difference {np.abs(fast - slow).max():.2e} nats, choices that "
        f"differ: {int((fast.argmax(1) != slow.argmax(1)).sum())}; {rate(len(prompts), between - started)} against "
        f"{rate(len(prompts), ended - between)} items/s",
        flush=True,
    )


def table(path: Path, model, tokenizer, items: int, shots: int, reading: str) -> None:
    started = now()
    found = suite(path, shots=shots, reading=reading, limit=items)(model, tokenizer)
    seconds = now() - started
    score, about = found.scores["rucola/ru"], found.details["darumeru"]["tasks"]["rucola"]
    share = float(np.mean([record.value for record in found.records]))
    error = 1.96 * (share * (1 - share) / score.n) ** 0.5
    print(
        f"{shots}-shot {reading:12} accuracy {share:.3f} ±{error:.3f}  MCC {about['metrics']['mcc']:+.3f}  "
        f"mean {score.value:.3f} ±{1.96 * score.stderr:.3f}  n={score.n}  {rate(score.n, seconds)} items/s",
        flush=True,
    )


def harness(path: Path, model, tokenizer, items: int, shots: int) -> None:
    """The same items and examples through both, one after the other."""
    rows = read_rows(path)
    # Theirs shows examples in the order of the rows, ours the first one last, as Darumeru does; ours asks about no row
    # that may serve as an example.
    examples = rows[29 : 29 + PLAIN_SHOTS]
    shown = examples[:shots][::-1]
    tested = [row for row in rows if row not in examples][:items]
    with tempfile.TemporaryDirectory() as folder:
        test = Path(folder) / "test.csv"
        with test.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(tested)
        ours = Darumeru(
            "stand_in",
            files={"rucola": {"test": [str(test)], "prompt": [str(path)]}},
            tasks=["rucola"],
            chat=False,
            shots=shots,
        )
        wording = ours._prompts()["rucola"]
        tasks = Path(folder) / "tasks"
        write_rucola_task(tasks, test=tested, examples=shown, wording=wording, bos=tokenizer.bos_token)
        started = now()
        mine = ours(model, tokenizer)
        between = now()
        theirs = LmEval([RUCOLA], include_path=str(tasks), batch_size=8)(model, tokenizer)
        ended = now()
    same = sum(a.value == b.value for a, b in zip(mine.records, theirs.records, strict=True))
    n = len(mine.records)
    print(
        f"{shots}-shot, {n} items: ours {rate(n, between - started)} items/s, lm-evaluation-harness "
        f"{rate(n, ended - between)} items/s; same choice on {same} of {n}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, action="append")
    parser.add_argument("--rucola", type=Path, required=True, help="a CSV file of RuCoLA")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--slow-items", type=int, default=200)
    parser.add_argument("--harness-items", type=int, default=64)
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 5])
    arguments = parser.parse_args()
    gold = [row["acceptable"] for row in read_rows(arguments.rucola)]
    print(f"majority class on {len(gold)} items: accuracy {accuracy(gold, ['1'] * len(gold)):.4f}, ", end="")
    print(f"MCC {matthews(gold, ['1'] * len(gold)):.4f}; {torch.get_num_threads()} threads", flush=True)
    for directory in arguments.model:
        tokenizer = checkpoints.load_tokenizer(directory, key="--model")
        model = checkpoints.load_model(directory, dtype=torch.float32)
        print(f"\n{directory.name}", flush=True)
        if arguments.harness_items:
            for shots in arguments.shots:
                harness(arguments.rucola, model, tokenizer, arguments.harness_items, shots)
        if arguments.slow_items:
            agreement(arguments.rucola, model, tokenizer, arguments.slow_items)
        for shots in arguments.shots if arguments.items else ():
            for reading in ("first_token", "full_string"):
                table(arguments.rucola, model, tokenizer, arguments.items, shots, reading)


if __name__ == "__main__":
    main()
