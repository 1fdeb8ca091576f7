"""Hypothesis draws the same examples on every run of continuous integration; elsewhere it goes on exploring.

Real tokenizers and real text lie outside the repository, where there are any; tests that need them are skipped without.
"""

import gzip
import json
import os
import shutil
import sys
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import settings
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

settings.register_profile("repeatable", derandomize=True, database=None)
if os.environ.get("CI"):
    settings.load_profile("repeatable")

SHARED = Path(os.environ.get("LEP_SHARED", Path(__file__).parents[2] / "shared"))
REAL = ("llama3", "qwen3", "mistral")


@pytest.fixture(autouse=True)
def streams_stay_open() -> None:
    """Where Hydra sets up logging, absl's handler closes the stream it was made with, which may be pytest's own."""
    if absl := sys.modules.get("absl.logging"):
        absl.get_absl_handler().python_handler.stream = sys.__stderr__


class RealTokenizers(dict[str, PreTrainedTokenizerFast]):
    """The tokenizers of LLaMa-3, Qwen3 and Mistral-v0.1 by name, each read when it is first asked for."""

    def __init__(self, folder: Path, unpacked: Path) -> None:
        self.folder, self.unpacked = folder, unpacked

    def __missing__(self, name: str) -> PreTrainedTokenizerFast:
        self[name] = self._read(name)
        return self[name]

    def _read(self, name: str) -> PreTrainedTokenizerFast:
        if name == "mistral":
            return LlamaTokenizer.from_pretrained(str(self.folder / "mistral_v0.1"))
        (self.unpacked / name).mkdir()
        for path in (self.folder / name).glob("*.gz"):
            with gzip.open(path) as packed, open(self.unpacked / name / path.stem, "wb") as plain:
                shutil.copyfileobj(packed, plain)
        return PreTrainedTokenizerFast.from_pretrained(self.unpacked / name)


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> RealTokenizers:
    folder = SHARED / "tokenizers"
    if not folder.exists():
        pytest.skip(f"no real tokenizers at {folder}")
    return RealTokenizers(folder, tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="session")
def real_texts() -> dict[str, list[str]]:
    """Some Russian fiction and manuals, and English manuals: 20,000 characters at most of each document."""
    if not (SHARED / "data").exists():
        pytest.skip(f"no real text at {SHARED / 'data'}")
    found = {}
    for name, number in (("ru_fiction", 60), ("ru_manuals", 100), ("en_manuals", 100)):
        with gzip.open(SHARED / "data" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
            found[name] = [json.loads(line)["text"][:20_000] for line in islice(stream, number)]
    return found
