"""The store that the runs share: what is costly to make is made once, under a key that says from what.

Comes in: a kind ("tokenizer", "packed", ...), a name for people, and the resolved inputs as JSON-able data. Goes out: a
directory `<root>/<kind>/<name>-<key>/` with `manifest.json` beside what the stage wrote. Assumed: one file system that
renames atomically and honours locks. A directory without a whole manifest was never published and is never used.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lep.durable import flush

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# Bump a kind when its stage starts to write something else from the same inputs. Renaming a variable is no reason.
VERSIONS = {
    "corpus": 1,
    "tokenizer": 1,
    "packed": 1,
    "operator": 1,
    "adapted": 1,
    "scores": 6,
    "answers": 3,
    "tuned": 2,
}
KEY_LENGTH = 12  # hex digits in a directory's name; the manifest holds all 64
NAME_LENGTH = 80  # characters of the human part; file systems stop at 255 bytes


def artifact_key(kind: str, inputs: dict) -> str:
    """Name of the content: SHA-256 over the canonical JSON of kind, version of the kind, and inputs. 64 hex digits."""
    named = {"kind": kind, "version": VERSIONS.get(kind, 1), "inputs": inputs}
    return hashlib.sha256(canonical_json(named).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """One spelling for equal values: keys sorted, no spaces. Raises ValueError on NaN and on what JSON cannot hold."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"an artifact is described by plain JSON (str, int, finite float, bool, None, list, dict): {error}. "
            "Turn paths into str and dataclasses into dict first."
        ) from None


@dataclass(frozen=True)
class Artifact:
    """A published directory. `cached`: it was there before; `facts`: what its maker said of it."""

    path: Path
    key: str
    cached: bool
    facts: dict


class Slot:
    """A place in the store while somebody looks at it or fills it. Made by `Store.open` only.

    `ready`: whole and usable at `path`, described by `facts`. Otherwise write into `staging`, then call `publish`.
    """

    def __init__(self, path: Path, key: str, facts: dict | None) -> None:
        self.path = path
        self.key = key
        self.facts = facts or {}
        self.ready = facts is not None
        self._staging: Path | None = None
        self._publish: Callable[[dict], Path] | None = None

    @property
    def staging(self) -> Path:
        assert self._staging is not None and not self.ready, "a ready slot has nothing to write"
        return self._staging

    def publish(self, **facts: Any) -> Path:
        """Make what lies in `staging` the artifact, whole or not at all; processes waiting for it go on at once."""
        assert self._publish is not None and not self.ready, "published twice, or found ready"
        self.facts = json.loads(canonical_json(facts))  # equal to what a later process reads back
        self.path = self._publish(self.facts)
        self.ready = True
        return self.path


class Store:
    """Content-addressed directories under `root`, safe against parallel jobs and against a kill at any moment."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).expanduser()

    def peek(self, kind: str, name: str, inputs: dict) -> bool:
        """Whether `get_or_build` would find the artifact whole. Takes no lock."""
        return self.find(kind, artifact_key(kind, inputs)) is not None

    def find(self, kind: str, key: str) -> Path | None:
        """The directory of an artifact by its key, if it is there whole."""
        found = _whole(self.root / kind, key)
        return found[0] if found else None

    def get_or_build(self, kind: str, name: str, inputs: dict, build: Callable[[Path], dict | None]) -> Artifact:
        """The artifact of these inputs, made by `build(directory) -> facts` if no process has made it yet.

        `name` is for people only: the same inputs under another name give the artifact that exists.
        """
        with self.open(kind, name, inputs) as slot:
            cached = slot.ready
            if not cached:
                slot.publish(**(build(slot.staging) or {}))
        return Artifact(slot.path, slot.key, cached, slot.facts)

    def get_or_resume(self, kind: str, name: str, inputs: dict, build: Callable[[Path, Path], dict | None]) -> Artifact:
        """Like `get_or_build`, for long work that keeps what it has done so far.

        build: gets the directory to fill and one for work in progress, which it finds as a killed process left it.
        """
        bench = self.root / "unfinished" / f"{kind}-{artifact_key(kind, inputs)[:KEY_LENGTH]}"
        artifact = self.get_or_build(kind, name, inputs, lambda out: build(out, _made(bench)))
        shutil.rmtree(bench, ignore_errors=True)
        return artifact

    @contextmanager
    def open(self, kind: str, name: str, inputs: dict) -> Iterator[Slot]:
        """The place of an artifact; not `ready` means that this process alone may fill it until the block is left.

        Leaving without `publish`, or by an exception, discards what was written.
        """
        folder, key = self.root / kind, artifact_key(kind, inputs)
        found = _whole(folder, key)
        if found is not None:
            yield Slot(found[0], key, found[1]["facts"])
            return
        lock = _locked(folder, key)
        staging = None
        try:
            found = _whole(folder, key)  # another process may have built it while this one waited
            slot = Slot(found[0], key, found[1]["facts"]) if found else Slot(_place(folder, name, key), key, None)
            if found is None:
                _sweep(folder, own=key)
                staging = Path(tempfile.mkdtemp(prefix=f"{key[:KEY_LENGTH]}.", dir=_made(folder / ".staging")))
                staging.chmod(0o755)  # mkdtemp makes it private; a published artifact is shared
                header = {"kind": kind, "name": name, "version": VERSIONS.get(kind, 1), "key": key, "inputs": inputs}
                started = time.time()

                def publish(facts: dict, source: Path = staging, target: Path = slot.path) -> Path:
                    manifest = header | {"seconds": round(time.time() - started, 3), "facts": facts}
                    _publish(source, target, manifest)
                    lock.release()
                    log.info("made %s/%s", kind, target.name)
                    return target

                slot._staging, slot._publish = staging, publish
            else:
                lock.release()
            yield slot
        finally:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
            lock.release()


def _publish(staging: Path, target: Path, manifest: dict) -> None:
    """Flush every file, write the manifest after all of them, and rename the directory into its place."""
    written = sorted(staging.rglob("*"))
    for path in written:
        flush(path)
    files = {str(path.relative_to(staging)): path.stat().st_size for path in written if path.is_file()}
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    manifest = manifest | {"created": created, "bytes": sum(files.values()), "files": files}
    with (staging / MANIFEST).open("w", encoding="utf-8") as stream:
        json.dump(manifest, stream, indent=1, ensure_ascii=False, allow_nan=False)
        stream.flush()
        os.fsync(stream.fileno())
    flush(staging)
    if target.exists():  # damaged, or the search for a whole one would have found it
        shutil.rmtree(target)
    os.replace(staging, target)
    flush(target.parent)


def _whole(folder: Path, key: str) -> tuple[Path, dict] | None:
    """Directory and manifest of a published artifact, if every file that the manifest names is there in its size."""
    for path in sorted(folder.glob(f"*-{key[:KEY_LENGTH]}")):
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            sizes = {name: (path / name).stat().st_size for name in manifest["files"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if manifest.get("key") == key and sizes == manifest["files"]:
            return path, manifest
    return None


def _place(folder: Path, name: str, key: str) -> Path:
    """`<folder>/<name>-<key12>`: human first, hash second, safe in every file system."""
    readable = re.sub(r"[^\w.+=,-]+", "-", name).strip("-.")[:NAME_LENGTH]
    if not readable:
        raise ValueError(f"an artifact's name needs a letter or a digit, got {name!r}")
    return folder / f"{readable}-{key[:KEY_LENGTH]}"


def _locked(folder: Path, key: str) -> FileLock:
    """The lock of a key, held. The system frees it when the holder dies, however it dies."""
    lock = FileLock(_made(folder / ".locks") / f"{key[:KEY_LENGTH]}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process to build %s in %s", key[:KEY_LENGTH], folder)
        lock.acquire()
    return lock


def _sweep(folder: Path, *, own: str) -> None:
    """Remove what killed processes left half-built: a staging directory whose lock is free has no owner.

    The lock of `own` is held by the caller, so that what is staged under it is nobody's work.
    """
    for stale in list((folder / ".staging").glob("*")):
        key = stale.name.partition(".")[0]
        if own.startswith(key):
            shutil.rmtree(stale, ignore_errors=True)
            continue
        lock = FileLock(folder / ".locks" / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue  # being built
        try:
            shutil.rmtree(stale, ignore_errors=True)
        finally:
            lock.release()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
