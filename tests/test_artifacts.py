"""Laws of the store: one build a key, whole or nothing, whatever kills the builder."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lep.artifacts import MANIFEST, Store, artifact_key

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def write_one(directory: Path) -> dict:
    (directory / "deep").mkdir()
    (directory / "deep" / "data.bin").write_bytes(b"x" * 100)
    return {"rows": 3}


@given(st.dictionaries(st.text(), JSON, max_size=4))
@settings(max_examples=30, deadline=None)
def test_key_depends_on_content_and_not_on_spelling(inputs: dict) -> None:
    reordered = dict(reversed(inputs.items()))
    assert artifact_key("packed", inputs) == artifact_key("packed", json.loads(json.dumps(reordered)))
    assert artifact_key("packed", inputs) != artifact_key("tokenizer", inputs)
    assert artifact_key("packed", inputs) != artifact_key("packed", {**inputs, "one more": 1})


def test_inputs_that_json_cannot_spell_are_refused() -> None:
    for value in (float("nan"), Path("/tmp"), {1, 2}):
        with pytest.raises(ValueError, match="plain JSON"):
            artifact_key("packed", {"value": value})


def test_second_asking_builds_nothing_and_reads_the_same_facts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.peek("packed", "tiny", {"seed": 1})
    first = store.get_or_build("packed", "tiny", {"seed": 1}, write_one)
    assert store.peek("packed", "tiny", {"seed": 1})
    second = Store(tmp_path).get_or_build("packed", "tiny", {"seed": 1}, lambda _: pytest.fail("built twice"))
    assert (first.cached, second.cached) == (False, True)
    assert (first.path, first.key, first.facts) == (second.path, second.key, second.facts)
    assert (second.path / "deep" / "data.bin").read_bytes() == b"x" * 100
    assert not store.peek("packed", "tiny", {"seed": 2})


def test_same_inputs_under_another_name_are_the_same_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.get_or_build("packed", "tiny (Russian)", {}, write_one)
    assert first.path.name == f"tiny-Russian-{first.key[:12]}"
    assert store.get_or_build("packed", "другое", {}, write_one).path == first.path


def test_manifest_tells_inputs_in_clear(tmp_path: Path) -> None:
    path = Store(tmp_path).get_or_build("packed", "tiny", {"seed": 7}, write_one).path
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["inputs"] == {"seed": 7} and manifest["facts"] == {"rows": 3}
    assert manifest["files"] == {"deep/data.bin": 100} and manifest["bytes"] == 100


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(directory: Path) -> dict:
        write_one(directory)
        raise RuntimeError("out of disk")

    with pytest.raises(RuntimeError, match="out of disk"):
        store.get_or_build("packed", "tiny", {}, fail)
    assert not store.peek("packed", "tiny", {})
    assert list((tmp_path / "packed" / ".staging").iterdir()) == []
    assert not store.get_or_build("packed", "tiny", {}, write_one).cached


@pytest.mark.parametrize("damage", ["manifest gone", "manifest cut", "file gone", "file cut"])
def test_damaged_artifact_is_built_again(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    path = store.get_or_build("packed", "tiny", {}, write_one).path
    victim = path / (MANIFEST if damage.startswith("manifest") else "deep/data.bin")
    if damage.endswith("gone"):
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-5])
    assert not store.peek("packed", "tiny", {})
    assert not store.get_or_build("packed", "tiny", {}, write_one).cached
    assert store.peek("packed", "tiny", {})


def test_parallel_jobs_build_once(tmp_path: Path) -> None:
    built = []

    def slow(directory: Path) -> dict:
        built.append(1)
        time.sleep(0.2)
        return write_one(directory)

    found = []
    jobs = [
        threading.Thread(target=lambda: found.append(Store(tmp_path).get_or_build("packed", "tiny", {}, slow)))
        for _ in range(4)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(built) == 1 and len({artifact.path for artifact in found}) == 1
    assert sorted(artifact.cached for artifact in found) == [False, True, True, True]


def test_publishing_frees_the_lock_inside_the_block(tmp_path: Path) -> None:
    with Store(tmp_path).open("packed", "tiny", {}) as slot:
        write_one(slot.staging)
        slot.publish(rows=1)
        assert slot.ready and slot.facts == {"rows": 1}
        assert Store(tmp_path).get_or_build("packed", "tiny", {}, lambda _: pytest.fail("built twice")).cached


BUILDER = """
import sys, time
from pathlib import Path
from lep.artifacts import Store
import lep.artifacts

def build(directory):
    for number in range(50):
        (directory / f"part{number}").write_bytes(b"x" * 1000)
        if number == 25:
            wait("building")
    return {"rows": 50}

def wait(at):
    if sys.argv[2] == at:
        print("now", flush=True)
        time.sleep(60)

replace = lep.artifacts.os.replace
lep.artifacts.os.replace = lambda *paths: (wait("before the rename"), replace(*paths), wait("after the rename"))
print(Store(Path(sys.argv[1])).get_or_build("packed", "tiny", {"seed": int(sys.argv[3])}, build).cached, flush=True)
"""


def start_builder(root: Path, *, stop_at: str, seed: int) -> subprocess.Popen:
    command = [sys.executable, "-c", BUILDER, str(root), stop_at, str(seed)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill(process: subprocess.Popen) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("stop_at", ["building", "before the rename", "after the rename"])
def test_killed_builder_never_leaves_half_an_artifact(tmp_path: Path, stop_at: str) -> None:
    process = start_builder(tmp_path, stop_at=stop_at, seed=1)
    assert process.stdout is not None and process.stdout.readline() == "now\n"
    kill(process)
    store, published = Store(tmp_path), stop_at == "after the rename"
    assert store.peek("packed", "tiny", {"seed": 1}) == published
    # Another key cleans up what the dead process left, while the owner of a live lock is left alone.
    alive = start_builder(tmp_path, stop_at="building", seed=2)
    try:
        assert alive.stdout is not None and alive.stdout.readline() == "now\n"
        store.get_or_build("packed", "tiny", {"seed": 3}, write_one)
        staged = [path.name for path in (tmp_path / "packed" / ".staging").iterdir()]
        assert [name.partition(".")[0] for name in staged] == [artifact_key("packed", {"seed": 2})[:12]]
    finally:
        kill(alive)
    again = store.get_or_build("packed", "tiny", {"seed": 1}, write_one)
    assert again.cached == published and store.peek("packed", "tiny", {"seed": 1})
    assert not list(tmp_path.rglob("*.part*"))
