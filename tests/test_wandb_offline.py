"""What is logged to Weights & Biases without an account lies in the run's file, whole."""

import json
import struct
import zlib
from pathlib import Path

import pytest
import wandb
from pytorch_lightning.loggers import WandbLogger
from wandb_offline import BLOCK_BYTES, FILE_HEADER, log_records, read_offline_run


def framed(records: list[bytes]) -> bytes:
    """The log of these records, written piece by piece."""
    data = bytearray(FILE_HEADER)
    for record in records:
        rest, first = record, True
        while first or rest:
            room = BLOCK_BYTES - len(data) % BLOCK_BYTES
            if room < 7:
                data += bytes(room)
                continue
            piece, rest = rest[: room - 7], rest[room - 7 :]
            kind = (1 if not rest else 2) if first else (4 if not rest else 3)
            data += struct.pack("<IHB", zlib.crc32(bytes([kind]) + piece), len(piece), kind) + piece
            first = False
    return bytes(data)


def test_records_are_put_together_across_blocks() -> None:
    # The third leaves six bytes of the first block, too few for a header.
    small = [b"", b"a" * 100]
    used = len(framed(small))
    records = [*small, b"b" * (BLOCK_BYTES - used - 7 - 6), b"c", b"d" * 100_000, b"e"]
    assert list(log_records(framed(records))) == records


def test_cut_or_damaged_log_is_noticed() -> None:
    data = framed([b"a" * 100, b"b" * 40_000])
    for damaged in (data[:-1], data[:BLOCK_BYTES], data[:50] + b"x" + data[51:], b"x" + data[1:]):
        with pytest.raises(AssertionError):
            list(log_records(damaged))


def test_what_the_logger_gets_offline_is_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = wandb.Settings(x_disable_stats=True, x_disable_meta=True, console="off")
    logger = WandbLogger(
        project="lep", group="a study", name="a run", save_dir=tmp_path / "run", offline=True, settings=settings
    )
    logger.log_hyperparams({"seed": 7, "model": {"base": "tiny"}})
    for step in range(3):
        logger.log_metrics({"train/loss": 1.0 / (step + 1)}, step=step)
    scores = [["swap", 0.5], ["delta", 0.75]]
    logger.log_table("benchmark", columns=["row", "questions/ru"], data=scores)
    logger.experiment.summary["drift"] = {"input": 0.25}
    trained = tmp_path / "embeddings.safetensors"
    trained.write_bytes(b"tables")
    artifact = wandb.Artifact("adapted", type="embeddings")
    artifact.add_file(str(trained))
    logger.experiment.log_artifact(artifact)
    logger.experiment.finish()
    wandb.teardown()

    found = read_offline_run(tmp_path / "run")
    assert (found.project, found.group, found.exit_code) == ("lep", "a study", 0)
    assert found.config["seed"] == 7 and found.config["model"] == {"base": "tiny"}
    assert [step["train/loss"] for step in found.history if "train/loss" in step] == [1.0, 1 / 2, 1 / 3]
    assert found.summary["drift"] == {"input": 0.25}
    assert found.artifacts["adapted"] == ["embeddings.safetensors"]
    (table,) = (tmp_path / "run").rglob(Path(found.tables()["benchmark"]).name)
    assert json.loads(table.read_text())["data"] == scores
