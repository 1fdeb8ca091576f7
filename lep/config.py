"""From a composed config to plain arguments: names of runs, checks before any work, and the one place that builds.

Hydra and OmegaConf are known here and in `run` alone. `build` is the only call of `instantiate` in the project.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

# What a `_target_` may start with. A guard against mistakes and borrowed configs, not a sandbox.
ALLOWED_TARGETS = ("lep.", "pytorch_lightning.")

STAGES = ("corpus", "tokenizer", "training", "propagation", "benchmark")

# Overrides that say where things lie or which run this belongs to, not what is run.
UNNAMED = ("study", "experiment", "output_dir", "artifacts_dir", "hydra", "trainer", "logger", "export")


def build(node: DictConfig | ListConfig | Mapping[str, Any], **arguments: Any) -> Any:
    """Build what a config node names, after checking every `_target_` in it. ValueError on one that is not allowed."""
    for target in _targets(node):
        if not target.startswith(ALLOWED_TARGETS):
            raise ValueError(
                f"_target_={target} is not allowed: a target starts with one of {', '.join(ALLOWED_TARGETS)}"
            )
    return instantiate(node, _convert_="all", **arguments)


def _targets(node: Any) -> Iterator[str]:
    """Every `_target_` in a node, at any depth."""
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=True)
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "_target_":
                yield str(value)
            else:
                yield from _targets(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _targets(value)


def plain(node: Any) -> Any:
    """A node as resolved dicts and lists: what keys of artifacts and `config.yaml` are made of."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def run_name(overrides: list[str]) -> str:
    """A run's folder, from the overrides that change what is run: `tokenizer=bpe,seed=1`; `default` without any.

    Values that a folder's name cannot hold (paths, lists) become their last word and six digits of their hash.
    """
    parts = []
    for override in sorted(overrides):
        key, _, value = override.lstrip("+~").partition("=")
        if key.partition(".")[0].partition("/")[0] in UNNAMED:
            continue
        if not re.fullmatch(r"[\w.+-]+", value):
            digest = hashlib.sha256(value.encode()).hexdigest()[:6]
            words = re.findall(r"\w+", value)
            value = f"{words[-1] if words else ''}-{digest}"
        parts.append(f"{key}={value}")
    return ",".join(parts) or "default"


def choices(chosen: Mapping[str, Any]) -> dict[str, str]:
    """The option of every config group, as the report names a run by it."""
    groups = ("model", "corpus", "tokenizer", "init", "training", "trainer", "propagation", "benchmark")
    return {group: str(chosen[group]) for group in groups if group in chosen}


def check(config: DictConfig) -> None:
    """Refuse impossible combinations before any work. Each error names the key, the value, the limit and the remedy."""
    unknown = [stage for stage in config.stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"stages holds {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    if list(config.stages) != list(STAGES[: len(config.stages)]) or not config.stages:
        raise ValueError(
            f"stages={list(config.stages)} skips a stage that a later one needs. Leave out the last ones only: "
            f"stages=[{','.join(STAGES[: max(1, len(config.stages))])}]"
        )
    if "propagation" in config.stages and not config.model.instruct:
        raise ValueError(
            "model.instruct is empty, but the stage `propagation` needs an instruct model to carry the tables into. "
            "Give model.instruct=DIR, or leave the stage out: stages=[corpus,tokenizer,training]"
        )
    unknown_exports = [name for name in config.export if name not in config.propagation]
    if unknown_exports:
        raise ValueError(
            f"export={unknown_exports[0]} is not among the propagations of this run ({', '.join(config.propagation)}). "
            "Choose one of them, or add it: propagation=all"
        )
    if config.training.rows == "new" and _option(config.tokenizer) != "extension" and config.adapted is None:
        raise ValueError(
            f"training.rows=new trains the rows that Extension adds, but tokenizer={_option(config.tokenizer)} renews "
            "the whole vocabulary. Use training.rows=all, or tokenizer=extension"
        )


def _option(tokenizer: DictConfig) -> str:
    """The variant's name, from the function that makes it."""
    return str(tokenizer._target_).rpartition(".")[2]


def check_context(block_size: int, context: int) -> None:
    """ValueError if the model cannot read a block of that many tokens."""
    if block_size > context:
        raise ValueError(
            f"training.block_size={block_size} is longer than the {context} positions of the model. "
            f"Set training.block_size to at most {context}"
        )


def write_once(path: Path, config: DictConfig) -> None:
    """Leave the resolved config in the run's folder; a folder that holds another config is refused.

    Places (`output_dir`, `artifacts_dir`), loggers and what is exported may differ: they do not change the result.
    """
    now = {key: value for key, value in plain(config).items() if key not in ("output_dir", "artifacts_dir", "logger")}
    text = OmegaConf.to_yaml(OmegaConf.create(now))
    begun = (path.parent / "result.json").exists() or (path.parent / "checkpoints" / "last.ckpt").exists()
    if begun and path.exists() and path.read_text(encoding="utf-8") != text:
        before = plain(OmegaConf.create(path.read_text(encoding="utf-8")))
        differing = sorted(_differences(before, now))
        raise ValueError(
            f"{path.parent} holds a run with another config (differing: {', '.join(differing[:5])}). "
            "Choose another folder with study=NAME, or delete that one"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _differences(before: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in {*before, *now}:
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    elif before != now:
        yield key


OmegaConf.register_new_resolver("lep.run_name", lambda overrides: run_name(list(overrides)), replace=True)
