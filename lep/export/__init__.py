"""A propagated model as a directory that transformers, vLLM and llama.cpp can be given.

In: the instruct model's directory, the result's tokenizer and tables. Out: a directory like the instruct model's with
ids of the new vocabulary everywhere, `lep.yaml` and a model card. No model is built to write it: JSON becomes JSON,
tables are written block by block, shards without a table are linked. It is checked before it is published, and appears
whole or not at all.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lep.chat import end_of_turn
from lep.checkpoints import load_tokenizer
from lep.embeddings import Embeddings, write_tables, written_bytes
from lep.export.card import CARD_FILE, RECIPE_FILE, as_yaml, model_card
from lep.export.checks import check_directory
from lep.export.files import copy_companions, write_tokenizer
from lep.export.ids import config_with_ids, generation_with_ids, id_map
from lep.export.padding import PAD_TO, pad_tables
from lep.export.progress import bytes_progress
from lep.export.sentencepiece_file import sentencepiece_model
from lep.export.servers import served_by
from lep.shards import Table
from lep.vocabulary import read_vocabulary

CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"


def export_model(
    instruct_dir: Path,
    tables: Embeddings[Table],
    tokenizer: PreTrainedTokenizerFast,
    out_dir: Path,
    *,
    recipe: Mapping[str, Any],
    body: Mapping[str, Table] | None = None,
    pad_to: int = PAD_TO,
    reference: PreTrainedModel | None = None,
) -> dict[str, Any]:
    """Writes, checks and publishes the directory; one that is there already is replaced. Gives what was found.

    Ids in the instruct model's configs become those that `tokenizer` gives the same tokens. Generation stops at every
    eos of the instruct model, the tokenizer's own, and the end of a turn of the chat template. The vocabulary is padded
    to a multiple of `pad_to`. `body`: weights of the layers that differ from the instruct model's, by name below its
    body ("layers.0.self_attn.q_proj.weight"). `recipe`: plain values (what JSON can say), kept in lep.yaml and in the
    card. `reference` is the same model in memory, for the comparison of what both decode. ValueError where something
    does not fit or a check fails: nothing is published then.

    The report holds `checks` and `servers` by name, `left_out` (entries and files that could not come along), `rows`.
    """
    instruct_tokenizer = load_tokenizer(instruct_dir, key="model.instruct")
    vocabulary = read_vocabulary(tokenizer)
    tokens = len(vocabulary)
    padded = pad_tables(tables, tokens, pad_to, unused=vocabulary.unassigned)
    rows = padded.input.shape[0]
    ids = id_map(instruct_tokenizer, tokenizer)
    sources = {name: _read(instruct_dir / name) for name in (CONFIG_FILE, GENERATION_FILE)}
    ends = [end for end in (tokenizer.eos_token_id, end_of_turn(tokenizer)) if isinstance(end, int)]
    config = config_with_ids(sources[CONFIG_FILE], ids, vocab_size=rows)
    named = sources[GENERATION_FILE] or {k: v for k, v in sources[CONFIG_FILE].items() if k in GENERATION_ROLES}
    pad = tokenizer.pad_token_id
    assert pad is None or isinstance(pad, int)
    generation, left_out = generation_with_ids(named, ids, ends=ends, pad=pad)

    staging = out_dir.with_name(f".{out_dir.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        with bytes_progress(f"writing {out_dir.name}", written_bytes(instruct_dir, rows, body=body)) as advance:
            write_tables(instruct_dir, staging, padded, body=body, advance=advance)
        _write(staging / CONFIG_FILE, config)
        _write(staging / GENERATION_FILE, generation)
        pieces = sentencepiece_model(tokenizer)
        write_tokenizer(tokenizer, staging, sentencepiece_model=pieces)
        _, stale = copy_companions(instruct_dir, staging, tokenizer)
        (staging / RECIPE_FILE).write_text(as_yaml(recipe), encoding="utf-8")
        checks = check_directory(
            staging,
            tokenizer,
            instruct_tokenizer=instruct_tokenizer,
            ids=ids,
            source_configs=sources,
            reference=reference,
        )
        servers = served_by(tokenizer, sentencepiece=pieces, rows=rows, tokens=tokens, tied=tables.tied)
        report = {"rows": rows, "checks": checks, "servers": servers, "left_out": [*left_out, *stale]}
        facts = {
            "architecture": (config.get("architectures") or [config.get("model_type")])[0],
            "tokens": len(tokenizer),
            "rows": rows,
            "tied": tables.tied,
            "dtype": str(config.get("dtype") or config.get("torch_dtype")),
            "chats": bool(tokenizer.chat_template),
        }
        (staging / CARD_FILE).write_text(model_card(out_dir.name, facts, recipe, report), encoding="utf-8")
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _put_in_place(staging, out_dir)
    return report


# Of a model without generation_config.json, what generation takes from its config.
GENERATION_ROLES = ("bos_token_id", "eos_token_id", "pad_token_id")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _put_in_place(staging: Path, out_dir: Path) -> None:
    """A directory cannot replace one that has files, so an old one steps aside first."""
    old = out_dir.with_name(f".{out_dir.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out_dir.exists():
        out_dir.rename(old)
    staging.rename(out_dir)
    shutil.rmtree(old, ignore_errors=True)
