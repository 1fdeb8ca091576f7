"""A propagated model as a directory that transformers loads, generates and chats with.

In: the instruct model (in memory or as a directory), the result's tokenizer, tables to put in. Out: safetensors,
config and generation config with ids of the new vocabulary, tokenizer with the chat template, `lep.yaml`, model card.
The directory appears whole or not at all.
"""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from lep.chat import end_of_turn
from lep.embeddings import Embeddings, embeddings_of, set_embeddings_

RECIPE_FILE, CARD_FILE = "lep.yaml", "README.md"
# The fields that hold token ids, in the config (and its text part) and in the generation config.
ID_FIELDS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
)


def export_model(
    instruct: PreTrainedModel | Path,
    tokenizer: PreTrainedTokenizerFast,
    out_dir: Path,
    *,
    recipe: Mapping[str, Any],
    embeddings: Embeddings | None = None,
    instruct_tokenizer: PreTrainedTokenizerFast | None = None,
) -> None:
    """Writes the directory; one that is there already is replaced. The model given stays as it is.

    `embeddings` are put in place of the model's tables; without them the model must have its new tables already.
    Ids in its configs are those of `instruct_tokenizer`, read from the directory if the model is one, and become those
    of `tokenizer`. Generation stops at every eos of the instruct model, the tokenizer's own, and the end of a turn of
    the chat template. `recipe`: plain values (what JSON can say), kept in lep.yaml and in the card.
    """
    if isinstance(instruct, Path):
        instruct_tokenizer = instruct_tokenizer or AutoTokenizer.from_pretrained(instruct)
        instruct = AutoModelForCausalLM.from_pretrained(instruct, use_safetensors=True)
    if instruct_tokenizer is None:
        raise ValueError("export: a model in memory needs `instruct_tokenizer`, whose ids its configs hold. Give it.")
    model = _with_tables(instruct, embeddings)
    _check(model, tokenizer)
    for config in _configs(model):
        remap_ids_(config, instruct_tokenizer, tokenizer)
    _set_ends_(model, tokenizer)
    staging = out_dir.with_name(f".{out_dir.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    (staging / RECIPE_FILE).write_text(_yaml(recipe), encoding="utf-8")
    (staging / CARD_FILE).write_text(model_card(out_dir.name, model, tokenizer, recipe), encoding="utf-8")
    _put_in_place(staging, out_dir)


def _with_tables(model: PreTrainedModel, embeddings: Embeddings | None) -> PreTrainedModel:
    """A second model over the same weights, with tables and configs of its own to change."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    other = copy.deepcopy(model, shared)
    set_embeddings_(other, embeddings or embeddings_of(model))
    return other


def _check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = embeddings_of(model).input.shape[0]
    needed = max(tokenizer.get_vocab().values()) + 1
    if rows < needed:
        raise ValueError(
            f"export: {rows} embedding rows, but the tokenizer has ids up to {needed - 1}. Give its own tables."
        )


def _configs(model: PreTrainedModel) -> list[Any]:
    """The configs that hold token ids, each once."""
    found = [model.config, model.config.get_text_config(), model.generation_config]
    return list({id(config): config for config in found if config is not None}.values())


def remap_ids_(config: PretrainedConfig | Any, before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast) -> None:
    """Turns the token ids in a config into those that the other tokenizer gives the same tokens.

    Negative ids (no such token) become None. ValueError for an id whose token the other tokenizer lacks.
    """
    contents = {i: content for content, i in before.get_vocab().items()}
    known = after.get_vocab()

    def remapped(field: str, value: int) -> int | None:
        if value < 0:
            return None
        if contents.get(value) not in known:
            raise ValueError(
                f"export: {field}={value} of the instruct model is {contents.get(value)!r}, which the new tokenizer "
                "lacks. Use `lep.chat.result_tokenizer`, or correct that field in the instruct model's directory."
            )
        return known[contents[value]]

    for field in ID_FIELDS:
        value = getattr(config, field, None)
        if isinstance(value, int):
            setattr(config, field, remapped(field, value))
        elif isinstance(value, list):
            setattr(config, field, [remapped(field, one) for one in value if one >= 0])


def _set_ends_(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Generation stops where the instruct model stopped, at the tokenizer's eos, and where the chat ends a turn."""
    generation = model.generation_config
    assert generation is not None, "a model that generates has a generation config"
    own = generation.eos_token_id if generation.eos_token_id is not None else []
    ends = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, end_of_turn(tokenizer)]
    ends = list(dict.fromkeys(end for end in ends if isinstance(end, int)))
    generation.eos_token_id = ends[0] if len(ends) == 1 else ends or None
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [None])[0]


def _put_in_place(staging: Path, out_dir: Path) -> None:
    """A directory cannot replace one that has files, so an old one steps aside first."""
    old = out_dir.with_name(f".{out_dir.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out_dir.exists():
        out_dir.rename(old)
    staging.rename(out_dir)
    shutil.rmtree(old, ignore_errors=True)


def model_card(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, recipe: Mapping[str, Any]) -> str:
    """The README of a model directory: what it is, how to chat with it, and the recipe in full."""
    tables = embeddings_of(model)
    rows, dtype = tables.input.shape[0], str(tables.input.dtype).removeprefix("torch.")
    ties = "tied" if tables.tied else "apart"
    use = f'chat = pipeline("text-generation", model="{name}")\nchat([{{"role": "user", "content": "..."}}])'
    if not tokenizer.chat_template:
        use = f'write = pipeline("text-generation", model="{name}")\nwrite("...")'
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [lep, vocabulary-adaptation]
---
# {name}

An instruct model with a new vocabulary, made by Learned Embedding Propagation (arXiv 2412.21140): embeddings trained on
a base model, carried into its instruct tune. The layers between the tables are the instruct model's own.

- architecture: {type(model).__name__}
- vocabulary: {len(tokenizer)} tokens, {rows} rows, input and output tables {ties}
- weights: {dtype}

```python
from transformers import pipeline

{use}
```

The recipe (also in `{RECIPE_FILE}`):

```yaml
{_yaml(recipe)}```
"""


def _yaml(recipe: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
