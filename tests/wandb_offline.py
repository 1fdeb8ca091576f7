"""Reads the `.wandb` file of an offline Weights & Biases run, as wandb 0.31 writes it and no longer reads it.

The file is a log in the framing of LevelDB: blocks of 32 KiB, in each of them pieces with a header of checksum (4
bytes), length (2) and type (1), little endian. A record is one piece, or a first, any number of middle and a last one.
Seven bytes that name the format come first, inside the first block. Every record is a protobuf message `Record`.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK_BYTES = 32768
PIECE_HEADER = struct.Struct("<IHB")
FILE_HEADER = b":W&B\xe1\xbe\x00"  # name, magic number, version
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What an offline run has logged. history: one dict a step. artifacts: by name, the paths of their files.

    used: names of the artifacts that the run uses, beside logging them. digests: of their contents, by name.
    """

    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    digests: dict[str, str] = field(default_factory=dict)
    project: str = ""
    group: str = ""
    job_type: str = ""
    run_id: str = ""
    tags: list[str] = field(default_factory=list)
    exit_code: int | None = None

    def tables(self) -> dict[str, str]:
        """Path of the file of every logged `wandb.Table`, relative to the run's `files` folder, by key."""
        logged = [item for step in self.history for item in step.items()]
        return {key: value["path"] for key, value in logged if _is_table(value)}


def read_offline_run(folder: Path) -> OfflineRun:
    """The run logged below `folder`, its own or one above that holds no other. Raises AssertionError if damaged.

    In the process that logged it call `wandb.teardown()` first: a service writes the file, and `finish()` does not wait
    until it has.
    """
    (path,) = folder.rglob("*.wandb")
    run = OfflineRun()
    for data in log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        _apply(record, run)
    return run


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of the log, put together from their pieces, every checksum verified."""
    assert data[: len(FILE_HEADER)] == FILE_HEADER, f"no file of wandb: it begins with {data[:7]!r}"
    position, pieces = len(FILE_HEADER), []
    while position + PIECE_HEADER.size <= len(data):
        if BLOCK_BYTES - position % BLOCK_BYTES < PIECE_HEADER.size:  # the rest of a block is padding
            position += BLOCK_BYTES - position % BLOCK_BYTES
            continue
        checksum, length, kind = PIECE_HEADER.unpack_from(data, position)
        position += PIECE_HEADER.size
        payload = data[position : position + length]
        assert len(payload) == length, "the last record is cut"
        assert zlib.crc32(bytes([kind]) + payload) == checksum, f"a record before byte {position + length} is damaged"
        assert bool(pieces) == (kind in (MIDDLE, LAST)), f"a piece of type {kind} is out of order"
        position += length
        pieces.append(payload)
        if kind in (WHOLE, LAST):
            yield b"".join(pieces)
            pieces = []
    assert not pieces, "the last record is cut"


def _apply(record: wandb_internal_pb2.Record, run: OfflineRun) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        run.project, run.group, run.job_type = record.run.project, record.run.run_group, record.run.job_type
        run.run_id, run.tags = record.run.run_id, list(record.run.tags)
        _update(run.config, record.run.config.update)
        _update(run.summary, record.run.summary.update)
    elif kind == "config":
        _update(run.config, record.config.update)
    elif kind == "history":
        step: dict[str, Any] = {}
        _update(step, record.history.item)
        run.history.append(step)
    elif kind == "summary":
        _update(run.summary, record.summary.update)
    elif kind == "artifact":
        _add_artifact(record.artifact, run)
    elif kind == "request" and record.request.HasField("log_artifact"):
        _add_artifact(record.request.log_artifact.artifact, run)
    elif kind == "exit":
        run.exit_code = record.exit.exit_code


def _add_artifact(artifact: wandb_internal_pb2.ArtifactRecord, run: OfflineRun) -> None:
    run.artifacts[artifact.name] = [entry.path for entry in artifact.manifest.contents]
    run.digests[artifact.name] = artifact.digest
    if artifact.use_after_commit:
        run.used.add(artifact.name)


def _update(values: dict[str, Any], items: Any) -> None:
    """Set every item by its key, or deep in `values` by its nested key."""
    for item in items:
        *folders, name = item.nested_key or [item.key]
        inner = values
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = json.loads(item.value_json)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and value.get("_type") == "table-file"
