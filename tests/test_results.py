"""Laws of the record: what is written is read back; a file is whole or absent."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lep import results
from lep.results import Result, Row, Score, environment, read_result, write_result

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text(max_size=8)
SCORES = st.dictionaries(NAMES, st.builds(Score, NUMBERS, NUMBERS, st.integers(0, 10**6)), max_size=3)
FREE = st.dictionaries(NAMES, NUMBERS | NAMES | st.none() | st.lists(st.integers(), max_size=3), max_size=3)
ROWS = st.builds(Row, NAMES, SCORES, st.dictionaries(NAMES, NUMBERS, max_size=2), SCORES, FREE)
RESULTS = st.builds(
    Result, NAMES, NAMES, st.dictionaries(NAMES, NAMES, max_size=3), st.integers(), st.lists(ROWS, max_size=3), FREE
)


@given(RESULTS)
@settings(max_examples=30, deadline=None)
def test_record_survives_the_file(tmp_path_factory: pytest.TempPathFactory, result: Result) -> None:
    path = tmp_path_factory.mktemp("run") / "deep" / "result.json"
    write_result(path, result)
    assert read_result(path) == result
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def pico(**sections: object) -> Result:
    return Result("study", "run", {}, 0, [Row("swap", {"copying/ru": Score(0.5, math.nan, 1)})], **sections)  # type: ignore[arg-type]


def test_what_is_not_finite_stays_readable_json(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(path, pico(training={"loss": float("inf")}))
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    found = read_result(path)
    assert math.isnan(found.rows[0].scores["copying/ru"].stderr) and found.training == {"loss": None}


def test_numbers_of_numpy_and_paths_become_plain(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(path, pico(training={"steps": np.int64(3), "r2": np.float32(0.5), "at": Path("/a"), "pair": (1, 2)}))
    assert read_result(path).training == {"steps": 3, "r2": 0.5, "at": "/a", "pair": [1, 2]}
    with pytest.raises(TypeError, match="ndarray"):
        write_result(path, pico(training={"table": np.zeros(3)}))


def test_interrupted_write_keeps_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_result(path, pico(timings={"training": 1.0}))

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_result(path, pico(timings={"training": 2.0}))
    assert read_result(path).timings == {"training": 1.0}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": 1}', '{"format": 99, "rows": []}', '{"format": 1, "rows": [{}]}']
)
def test_foreign_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="result.json is not a result"):
        read_result(path)


def test_missing_row_names_those_there_are() -> None:
    assert pico().row("swap").name == "swap"
    with pytest.raises(ValueError, match="no row 'delta'.*swap"):
        pico().row("delta")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_commit_is_that_of_the_tree_that_holds_the_code(tmp_path: Path) -> None:
    source = tmp_path / "results.py"
    source.write_bytes(Path(results.__file__).read_bytes())
    git(tmp_path, "init")
    (tmp_path / "other").write_text("1")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-m", "other")
    assert results._commit(tmp_path) == {"commit": None, "dirty": None}  # lies there, yet is no part of it
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "code")
    assert results._commit(tmp_path) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    source.write_text(source.read_text() + "\n")
    assert results._commit(tmp_path)["dirty"] is True


def test_environment_is_plain_and_names_versions(tmp_path: Path) -> None:
    found = environment(device="cpu")
    write_result(tmp_path / "result.json", pico(environment=found))
    assert found["packages"]["numpy"] == np.__version__ and found["device"] == "cpu"


def test_record_needs_no_torch() -> None:
    code = "import sys, lep.results, lep.artifacts; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
