"""The small files of a model directory: what is written anew, what comes along, what has to stay behind.

In: the instruct model's directory and the result's tokenizer. Out: tokenizer files that say one thing, licences and
processors beside them. A file that describes the old vocabulary (`tokenizer.model`, `vocab.json`, ...) would make other
programs read other tokens, so it comes along only where it agrees with tokenizer.json and was not written anew.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import sentencepiece
from transformers import PreTrainedTokenizerFast

from lep.export.sentencepiece_file import FILE
from lep.vocabulary import merge_pairs, model_ids, tokenizer_json

# What a server or a reader needs besides weights, configs and tokenizer.
COMPANIONS = ("*processor*.json", "LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")
# Where a tokenizer was loaded from says nothing about it.
TRANSIENT = ("is_local", "local_files_only", "backend", "auto_map")


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, out_dir: Path, *, sentencepiece_model: bytes | None) -> None:
    """tokenizer.json, its config and the chat template, in names that transformers 4 and 5 both know.

    Beside them tokenizer.model, where SentencePiece has such a vocabulary.
    """
    tokenizer.save_pretrained(out_dir)
    for name in SLOW_FILES:  # classes of old models write theirs along
        (out_dir / name).unlink(missing_ok=True)
    if sentencepiece_model is not None:
        (out_dir / FILE).write_bytes(sentencepiece_model)
    path = out_dir / "tokenizer_config.json"
    settings = {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if k not in TRANSIENT}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # version 4 knows no TokenizersBackend
    extra = settings.get("extra_special_tokens")
    if isinstance(extra, list):  # version 4 takes a list under the older name only
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def copy_companions(source: Path, out_dir: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[list[str], list[str]]:
    """Copies what comes along; gives the names of the files copied and of those left behind as stale."""
    wanted = sorted({path for pattern in COMPANIONS for path in source.glob(pattern) if path.is_file()})
    slow = [source / name for name in SLOW_FILES if (source / name).is_file() and not (out_dir / name).exists()]
    stale = [path for path in slow if not agrees(path, tokenizer)]
    for path in (copied := wanted + [path for path in slow if path not in stale]):
        shutil.copyfile(path, out_dir / path.name)  # follows the links of the hub's cache
    return [path.name for path in copied], [path.name for path in stale]


def agrees(path: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a file of a slow tokenizer says the same about every token as the fast tokenizer."""
    return SLOW_FILES[path.name](path, tokenizer)


def _vocab_agrees(path: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
    model = model_ids(tokenizer_json(tokenizer)["model"])
    added = tokenizer.get_added_vocab()
    ids = json.loads(path.read_text(encoding="utf-8"))
    return ids | added == model | added


def _merges_agree(path: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
    model = tokenizer_json(tokenizer)["model"]
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line and not line.startswith("#version")]
    return model["type"] == "BPE" and [tuple(line.split(" ", 1)) for line in lines] == merge_pairs(model)


def _added_tokens_agree(path: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
    known = tokenizer.get_vocab()
    return all(known.get(content) == i for content, i in json.loads(path.read_text(encoding="utf-8")).items())


def _roles_agree(path: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
    def content(token: str | dict) -> str:
        return token["content"] if isinstance(token, dict) else token

    found = json.loads(path.read_text(encoding="utf-8"))
    named = {role: content(token) for role, token in found.items() if not isinstance(token, list)}
    listed = [content(token) for tokens in found.values() if isinstance(tokens, list) for token in tokens]
    return set(listed) <= set(tokenizer.get_vocab()) and all(
        getattr(tokenizer, role, None) == token for role, token in named.items()
    )


def _pieces_agree(path: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
    proto = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = {proto.id_to_piece(i): i for i in range(len(proto)) if not proto.is_unused(i)}
    added = tokenizer.get_added_vocab()
    return pieces | added == model_ids(tokenizer_json(tokenizer)["model"]) | added


SLOW_FILES: dict[str, Callable[[Path, PreTrainedTokenizerFast], bool]] = {
    FILE: _pieces_agree,
    "vocab.json": _vocab_agrees,
    "merges.txt": _merges_agree,
    "added_tokens.json": _added_tokens_agree,
    "special_tokens_map.json": _roles_agree,
}
