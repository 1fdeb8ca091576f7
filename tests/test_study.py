"""Laws of a study: what is averaged and what never is, what an interval covers, when one model is best."""

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import config, result, row, write_run, write_study

from lep.results import Score
from lep.study import SeedMean, Study, best, curves, diagnostics, differing, read_study, seed_mean


def line(study: Study, model: str) -> list[SeedMean]:
    return [of.estimates["copying/ru"] for group in study.groups for of in group.lines if of.model == model]


def test_runs_that_differ_in_the_seed_alone_are_one(tmp_path: Path) -> None:
    for seed, value in enumerate((0.5, 0.6, 0.8)):
        found = result(f"seed={seed},tokenizer=bpe", [row("swap", value)], seed=seed)
        write_run(tmp_path / f"{seed}", found, config(seed=seed, tokenizer="bpe"))
    write_run(
        tmp_path / "deep" / "inside", result("tokenizer=unigram", [row("swap", 0.1)]), config(tokenizer="unigram")
    )
    study = read_study([tmp_path])
    assert [(group.label, len(group.runs)) for group in study.groups] == [
        ("tokenizer=bpe", 3),
        ("tokenizer=unigram", 1),
    ]
    first, other = line(study, "swap")
    assert first.values == (0.5, 0.6, 0.8) and first.mean == pytest.approx(1.9 / 3)
    assert other.values == (0.1,) and not study.unfinished and not study.notes


@pytest.mark.parametrize(
    "change",
    [
        {"items": 50},
        {"training": {"steps": 10}},
        {"corpus": {"name": "hub"}},
        {"benchmark": {"darumeru": {"protocol": "corrected"}}},
    ],
)
def test_a_difference_in_anything_else_is_never_averaged(tmp_path: Path, change: dict) -> None:
    write_run(tmp_path / "a", result("default", [row("swap", 0.5)]), config(seed=0))
    write_run(tmp_path / "b", result("default", [row("swap", 0.9)], seed=1), config(seed=1, **change))
    assert sorted(of.values for of in line(read_study([tmp_path]), "swap")) == [(0.5,), (0.9,)]


def test_runs_of_which_no_file_says_what_was_asked_stand_alone(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / str(seed), result("run", [row("swap", 0.5)], seed=seed), None)
    assert len(read_study([tmp_path]).groups) == 2
    for seed in (0, 1):
        (tmp_path / str(seed) / ".hydra").mkdir()
        (tmp_path / str(seed) / ".hydra" / "config.yaml").write_text(f"seed: {seed}\nbenchmark: {{fair: 1}}\n")
    assert len(read_study([tmp_path]).groups) == 1


def test_other_numbers_of_items_stand_in_lines_of_their_own(tmp_path: Path) -> None:
    """The same config, of which a data set on the hub has grown since."""
    for seed, n in enumerate((200, 200, 150)):
        write_run(tmp_path / str(seed), result("run", [row("swap", 0.5, n=n)], seed=seed), config(seed=seed))
    (group,) = read_study([tmp_path]).groups
    assert [(of.label, of.seeds) for of in group.lines] == [
        ("run (seeds 0, 1)", (0, 1)),
        ("run (seed 2)", (2,)),
    ]


def test_a_seed_counts_once(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_run(tmp_path / name, result("run", [row("swap", 0.5)]), config(study=name))
    study = read_study([tmp_path, tmp_path / "first"])
    assert study.runs == 1 and "second repeats seed 0" in study.notes[0]


def test_runs_that_are_not_done_are_named_with_their_error(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study", seeds=1, variants=("bpe",))
    for name in ("killed", "refused", "foreign"):
        (root / name).mkdir()
    (root / "killed" / "config.yaml").write_text("seed: 0\n")
    (root / "refused" / ".hydra").mkdir()
    (root / "refused" / "error.txt").write_text("steps=0 is none\n")
    (root / "left" / ".hydra").mkdir(parents=True)
    (root / "left" / "ended.txt").write_text("behind the others\n")
    (root / "foreign" / "result.json").write_text("{}")
    (root / "seed=0,tokenizer=bpe" / "wandb").mkdir()
    (root / "seed=0,tokenizer=bpe" / "wandb" / "config.yaml").write_text("not a run\n")
    study = read_study([root])
    assert study.runs == 1 and len(study.unfinished) == 4
    killed, refused, left, foreign = (
        next(s for s in study.unfinished if f"/{name}" in s) for name in ("killed", "refused", "left", "foreign")
    )
    assert left.endswith("was ended: behind the others")
    assert "no result.json" in killed and "failed: steps=0 is none" in refused and "not a result of lep" in foreign


def test_nothing_to_read_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished run"):
        read_study([tmp_path])
    with pytest.raises(ValueError, match="none is no folder"):
        read_study([tmp_path / "none"])


def test_code_that_changed_between_runs_and_suites_that_are_not_whole_are_told(tmp_path: Path) -> None:
    about = {"complete": False, "missing": ["use"], "limit": 10}
    for seed, commit in enumerate(("a" * 40, "b" * 40)):
        found = result("run", [row("swap", 0.5, darumeru=about)], seed=seed, environment={"commit": commit})
        write_run(tmp_path / str(seed), found, config(seed=seed))
    incomplete, commits = read_study([tmp_path]).notes
    assert "10 items a task; missing: use" in incomplete
    assert "2 commits" in commits and "aaaaaaaaaa: 1" in commits


def test_labels_say_what_is_not_shared_and_are_never_the_same(tmp_path: Path) -> None:
    for study in ("near", "far"):
        write_study(tmp_path / study, seeds=1, variants=("bpe", "unigram"))
        for path in (tmp_path / study).glob("*/config.yaml"):
            path.write_text(path.read_text().replace('"corpus"', f'"model": "{study}", "corpus"'))
    labels = [group.label for group in read_study([tmp_path]).groups]
    assert sorted(labels) == [
        "far/tokenizer=bpe",
        "far/tokenizer=unigram",
        "near/tokenizer=bpe",
        "near/tokenizer=unigram",
    ]
    overrides = tmp_path / "far" / "seed=0,tokenizer=bpe" / ".hydra" / "overrides.yaml"
    overrides.parent.mkdir()
    overrides.write_text("- experiment=paper/row\n- seed=0\n- hydra.job.chdir=false\n- model=[a,b]\n")
    labels = [group.label for group in read_study([tmp_path / "far"]).groups]
    assert labels == ["paper/row,model=[a,b]", "tokenizer=unigram"]


def test_what_differs_is_found_at_any_depth() -> None:
    nodes = [{"micro": {"items": 200, "seed": 0}}, {"micro": {"items": 50, "seed": 0}}, {"fair": {"context": 1}}]
    assert differing(nodes) == ["micro.items=200, micro.seed=0", "micro.items=50, micro.seed=0", "fair.context=1"]
    assert differing(nodes[:1] * 2) == ["", ""]


# Estimates


def test_with_one_seed_the_interval_is_that_over_items() -> None:
    found = seed_mean([Score(0.5, 0.03, 200)])
    assert found.half_width == found.over_items == pytest.approx(1.96 * 0.03, rel=1e-4) and found.over_seeds == 0


def test_where_the_seed_changes_nothing_more_seeds_narrow_nothing() -> None:
    one, many = seed_mean([Score(0.5, 0.03, 200)]), seed_mean([Score(0.5, 0.03, 200)] * 5)
    assert many.half_width == pytest.approx(one.half_width)


def test_over_seeds_the_interval_is_student_s() -> None:
    """t for two degrees of freedom at 97.5 % is 4.3027 (tables)."""
    found = seed_mean([Score(value, 0.0, 200) for value in (0.4, 0.5, 0.6)])
    assert found.half_width == found.over_seeds == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Seeds drawn around the truth, items shared by all seeds of an experiment: 95 of 100 intervals hold it."""
    rng = np.random.default_rng(0)
    for seeds, over_seeds, over_items in ((3, 0.03, 0.0), (3, 0.0, 0.03), (5, 0.02, 0.02), (3, 0.01, 0.03)):
        held = 0
        for _ in range(2000):
            shared = rng.normal(0, over_items)
            scores = [Score(0.5 + shared + rng.normal(0, over_seeds), over_items, 100) for _ in range(seeds)]
            found = seed_mean(scores)
            held += abs(found.mean - 0.5) <= found.half_width
        assert held / 2000 == pytest.approx(0.95, abs=0.035), (seeds, over_seeds, over_items, held)


def test_scores_over_other_items_have_no_mean() -> None:
    with pytest.raises(AssertionError, match="same items"):
        seed_mean([Score(0.5, 0.1, 10), Score(0.5, 0.1, 20)])


def wide(mean: float, half: float) -> SeedMean:
    return SeedMean(mean, 0.0, half, 100, (mean,))


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.integers(0, 9), st.tuples(st.floats(0, 1), st.floats(0, 0.3)), min_size=1, max_size=6),
    st.booleans(),
)
def test_the_best_stands_apart_from_every_other(found: dict[int, tuple[float, float]], least: bool) -> None:
    """Against the definition, pair by pair on the ends of the intervals."""
    winner = best({key: wide(*of) for key, of in found.items()}, least=least)

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] + a[1] < b[0] - b[1] if least else a[0] - a[1] > b[0] + b[1]

    winners = [
        key
        for key in found
        if len(found) > 1 and all(beats(found[key], other) for name, other in found.items() if name != key)
    ]
    near = any(
        abs(abs(a[0] - b[0]) - a[1] - b[1]) < 1e-12 for k, a in found.items() for m, b in found.items() if k != m
    )
    assert near or ([winner] if winner is not None else []) == winners


def test_an_interval_that_nobody_knows_lets_nobody_win() -> None:
    assert best({"a": wide(0.9, 0.01), "b": wide(0.1, 0.01)}) == "a"
    assert best({"a": wide(0.9, 0.01), "b": wide(0.1, math.nan)}) is None


# What a report draws


def test_curves_are_means_at_the_steps_that_all_seeds_have(tmp_path: Path) -> None:
    for seed, steps in enumerate(((1, 2, 3), (2, 3, 4))):
        curve = [{"step": step, "benchmark/a/ru": step + seed} for step in steps]
        write_run(
            tmp_path / str(seed),
            result("run", [row("swap", 0.5)], seed=seed, training={"curve": curve}),
            config(seed=seed),
        )
    (group,) = read_study([tmp_path]).groups
    assert curves(group) == {"benchmark/a/ru": [(2, 2.5), (3, 3.5)]}


def test_diagnostics_are_means_of_numbers(tmp_path: Path) -> None:
    for seed in (0, 1):
        fit = {"held_out_r2": 0.5 + 0.2 * seed, "changed": True, "unchanged_because": "x"}
        propagation = {"conversion": {"input": fit, "end of turn": {"won_before": 1.0}}}
        write_run(
            tmp_path / str(seed),
            result("run", [row("swap", 0.5)], seed=seed, propagation=propagation),
            config(seed=seed),
        )
    (group,) = read_study([tmp_path]).groups
    assert diagnostics(group) == {("conversion", "input"): {"held_out_r2": pytest.approx(0.6)}}


def test_the_order_of_folders_changes_nothing(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study")
    folders = sorted(path for path in root.iterdir())
    forward = read_study(folders)
    random.Random(1).shuffle(folders)
    shuffled = read_study(folders)
    # As text, since what has no interval is nan there, which equals nothing.
    assert {g.label: repr(g.lines) for g in forward.groups} == {g.label: repr(g.lines) for g in shuffled.groups}
    assert replace(forward, groups=[]) == replace(shuffled, groups=[])
