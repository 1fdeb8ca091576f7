"""Where a model lies: a local directory, a repository of the hub, or a directory inside this package.

Comes in: what `model.base` or `model.instruct` says. Goes out: a directory with config, tokenizer and safetensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lep.embeddings import TABLES_FILE

PACKAGE = "package:"
# Of an artifact: when it was made, and how training went, do not change what it holds.
NOT_CONTENT = ("manifest.json", "history.json")
# Weights as pickles are left on the hub: only safetensors are read.
WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
# Files up to this size are told apart by their content, larger ones by size and time of change.
HASHED_BYTES = 64 * 2**20


def resolve(reference: str, revision: str | None, *, key: str, weights: bool = True) -> Path:
    """The directory that `reference` names; a hub repository is downloaded. ValueError names `key` and the remedy."""
    return _directory(reference, key=key) or _download(reference, revision, key=key, weights=weights)


def _directory(reference: str, *, key: str) -> Path | None:
    """The model directory on this machine; None where the reference can only be a repository of the hub."""
    if reference.startswith(PACKAGE):
        package, _, inside = reference.removeprefix(PACKAGE).partition("/")
        path = Path(str(files(package).joinpath(inside)))
    else:
        path = Path(reference).expanduser()
    if (path / "config.json").is_file():
        return path
    if path.exists() or reference.startswith((PACKAGE, ".", "/", "~")):
        raise ValueError(f"{key}={reference} is no model directory: {path}/config.json is missing")
    return None


def find_config(reference: str, revision: str | None, *, key: str) -> tuple[PretrainedConfig, Path] | None:
    """The config of a model (its text part), and where it lies, without any download: also from the hub's cache.

    None where the model would have to be downloaded. ValueError where `reference` can be neither directory nor name.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    directory = _directory(reference, key=key)
    if directory is None:
        try:
            cached = try_to_load_from_cache(reference, "config.json", revision=revision)
        except HFValidationError as error:
            raise ValueError(f"{key}={reference} is neither a directory here nor a name of the hub: {error}") from error
        if not isinstance(cached, str):
            return None
        directory = Path(cached).parent
    return AutoConfig.from_pretrained(directory).get_text_config(), directory


def shape_config(shape: Mapping[str, Any]) -> PretrainedConfig:
    """A config from the few fields of a config.json that give a model its size (`model.shape`)."""
    fields = {str(name): value for name, value in shape.items()}
    kind = fields.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"model.shape.model_type={kind} is no architecture of transformers. Give that of config.json")
    # Ids beyond a small vocabulary would only be warned about.
    return CONFIG_MAPPING[kind](**{"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, **fields})


def resolve_tokenizer(reference: str, revision: str | None, *, key: str) -> Path:
    """The directory of a tokenizer: any that holds tokenizer.json or tokenizer.model; of a hub model no weights."""
    path = Path(reference).expanduser()
    if any((path / name).is_file() for name in TOKENIZER_FILES):
        return path
    if path.exists() and not (path / "config.json").is_file():
        raise ValueError(f"{key}={reference} holds no tokenizer: {' and '.join(TOKENIZER_FILES)} are missing")
    return resolve(reference, revision, key=key, weights=False)


def resolve_adapted(reference: str) -> Path:
    """The directory of trained tables and their tokenizer: one that a run published, or any model `resolve` finds."""
    path = Path(reference).expanduser()
    if not path.exists():
        path = resolve(reference, None, key="adapted")
    tables = (path / TABLES_FILE).is_file() or (path / "config.json").is_file()
    if not tables or not (path / "tokenizer.json").is_file():
        raise ValueError(
            f"adapted={reference} needs tokenizer.json beside {TABLES_FILE} or a model. Give artifacts/adapted/NAME "
            "of an earlier run, or a model"
        )
    return path


def _download(repository: str, revision: str | None, *, key: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = WANTED if weights else [pattern for pattern in WANTED if pattern != "*.safetensors"]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ValueError(
            f"{key}={repository} (revision {revision}) is neither a directory here nor to be had from the hub: "
            f"{error}. Give a local directory, {key}=DIR, or log in with `hf auth login` if the repository is gated"
        ) from error


def fingerprint(directory: Path) -> dict[str, str]:
    """What a model directory holds, so that a key changes when it does: digest, or size and time, by file."""
    return {
        path.name: _digest(path)
        for path in sorted(directory.iterdir())
        if path.name not in NOT_CONTENT and path.suffix in (".json", ".safetensors", ".model", ".jinja")
    }


def _digest(path: Path) -> str:
    stat = path.stat()
    if stat.st_size > HASHED_BYTES:
        return f"{stat.st_size} bytes, {stat.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def load_tokenizer(directory: Path, *, key: str) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a directory, also of one that holds nothing but a tokenizer.model of the Llama kind.

    ValueError if it has only a slow one.
    """
    # Without a config beside it AutoTokenizer forgets the space that SentencePiece puts before a text.
    lone = not any((directory / name).is_file() for name in ("config.json", "tokenizer_config.json", "tokenizer.json"))
    kind = LlamaTokenizer if lone and (directory / "tokenizer.model").is_file() else AutoTokenizer
    tokenizer = kind.from_pretrained(directory)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"{key}={directory} has no fast tokenizer (tokenizer.json), which every vocabulary here is read from"
        )
    return tokenizer


def load_model(directory: Path, *, device: str | None = None, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """A causal language model in eval mode, from safetensors alone.

    device: where it is to compute; None leaves it on the CPU as its files have it. With a device, a dtype of "auto" is
    that of the files on an accelerator and float32 on a CPU, as most CPUs emulate shorter numbers at a tenth of the
    speed or less.
    """
    if device is not None and dtype == "auto" and torch.device(device).type == "cpu":
        dtype = torch.float32
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, use_safetensors=True)
    return model.to(device).eval() if device else model.eval()  # type: ignore[arg-type]


def context_length(directory: Path) -> int:
    """How many positions the model can read."""
    config = AutoConfig.from_pretrained(directory)
    return int(config.get_text_config().max_position_embeddings)
