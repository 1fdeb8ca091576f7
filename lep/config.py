"""From a composed config to plain arguments: names of runs, checks before any work, and the one place that builds.

Hydra and OmegaConf are known here and in `run` alone. `build` is the only call of `instantiate` in the project.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from lep import processes
from lep.durable import replacing

# What a `_target_` may start with. A guard against mistakes and borrowed configs, not a sandbox.
ALLOWED_TARGETS = ("lep.", "pytorch_lightning.", "optuna.")

STAGES = ("corpus", "tokenizer", "training", "propagation", "calibration", "benchmark")

# Overrides that say where things lie or which run this belongs to, not what is run.
UNNAMED = ("study", "experiment", "output_dir", "artifacts_dir", "hydra", "logger")
NUM_BYTES = 256
LONGEST_NAME = 160  # bytes; file systems stop at 255


def build(node: DictConfig | ListConfig | Mapping[str, Any], **arguments: Any) -> Any:
    """Build what a config node names, after checking every `_target_` in it. ValueError on one that is not allowed."""
    for target in _targets(node):
        if not target.startswith(ALLOWED_TARGETS):
            raise ValueError(
                f"_target_={target} is not allowed: a target starts with one of {', '.join(ALLOWED_TARGETS)}"
            )
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        # Hydra wraps what a target says of its arguments in text of its own.
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


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
    parts, renamed = [], any(override.startswith("study=") for override in overrides)
    for override in sorted(overrides):
        key, _, value = override.lstrip("+~").partition("=")
        if key == "experiment" and ("/" in value or renamed):  # one of several that share a study
            parts.insert(0, value.rpartition("/")[2])
        if key.partition(".")[0].partition("/")[0] in UNNAMED:
            continue
        if not re.fullmatch(r"[\w.+-]+", value):
            digest = hashlib.sha256(value.encode()).hexdigest()[:6]
            words = re.findall(r"\w+", value)
            value = f"{words[-1] if words else ''}-{digest}"
        parts.append(f"{key}={value}")
    name = ",".join(parts) or "default"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    kept = name.encode()[: LONGEST_NAME - 9].decode(errors="ignore")
    return f"{kept}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def choices(chosen: Mapping[str, Any]) -> dict[str, str]:
    """The option of every config group, as the report names a run by it, and the experiment if there is one."""
    groups = ("model", "corpus", "tokenizer", "init", "training", "trainer", "propagation", "calibration", "benchmark")
    return {group: str(chosen[group]) for group in (*groups, "experiment") if chosen.get(group) is not None}


def check(config: DictConfig) -> None:
    """Refuse impossible combinations before any work. Each error names the key, the value, the limit and the remedy."""
    unknown = [stage for stage in config.stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"stages holds {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    first = STAGES.index(config.stages[0]) if config.stages else 0
    if list(config.stages) != list(STAGES[first : first + len(config.stages)]) or not config.stages:
        raise ValueError(
            f"stages={list(config.stages)} are not stages in a row. Name them in order and without gaps, as in "
            f"stages=[{','.join(STAGES[first : first + max(1, len(config.stages))])}]; what they need of those before "
            "is made, or taken from the store"
        )
    if "propagation" in planned_stages(config) and not config.model.instruct:
        raise ValueError(
            "model.instruct is empty, but the stage `propagation` needs an instruct model to carry the tables into. "
            "Give model.instruct=DIR, or leave the stage out: stages=[corpus,tokenizer,training]"
        )
    if config.repair_end_of_turn not in ("auto", True, False):
        raise ValueError(f"repair_end_of_turn={config.repair_end_of_turn} is unknown; give auto, true or false")
    training = config.training
    if training.warmup_steps >= training.steps:
        raise ValueError(
            f"training.warmup_steps={training.warmup_steps} leaves nothing of training.steps={training.steps}. "
            "Lower the first or raise the second"
        )
    if config.measured_characters < 1:
        raise ValueError(
            f"measured_characters={config.measured_characters} leaves no held-out text to measure bits per byte on. "
            "Give 1 or more; 60_000 is the usual"
        )
    every = config.during_training.every_steps
    if every is not None and every < 1:
        raise ValueError(f"during_training.every_steps={every} is below 1. Give a number of steps, or null")
    _check_sizes(config)
    _check_processes(config)
    unknown_exports = [name for name in config.export if name not in ("original", *config.propagation)]
    if unknown_exports:
        raise ValueError(
            f"export={unknown_exports[0]} is not among the propagations of this run ({', '.join(config.propagation)}). "
            "Choose one of them, or add it: propagation=all"
        )
    _check_calibration(config)
    _check_search(config)
    if config.export_pad_to < 1:
        raise ValueError(
            f"export_pad_to={config.export_pad_to} is no size. Give 1 for no padding, or a multiple such as 64"
        )
    if config.training.rows == "new" and variant_name(config) != "extension" and config.adapted is None:
        raise ValueError(
            f"training.rows=new trains the rows that Extension adds, but tokenizer={variant_name(config)} renews "
            "the whole vocabulary. Use training.rows=all, or tokenizer=extension"
        )


def planned_stages(config: DictConfig) -> tuple[str, ...]:
    """The stages that are named, and those before them, which they need."""
    return STAGES[: STAGES.index(config.stages[-1]) + 1]


def calibrations(config: DictConfig) -> dict[str, DictConfig]:
    """The calibrations that are asked for, by name."""
    if "calibration" not in planned_stages(config):
        return {}
    return {str(name): node for name, node in config.calibration.items() if name != "on"}


def _check_processes(config: DictConfig) -> None:
    """A device is driven by a process, and what starts them is not Lightning: it would run the command line again."""
    devices, here = plain(config.trainer.get("devices", 1)), processes.count_here()
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if not processes.started():
        one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
        if one and config.trainer.get("strategy", "auto") == "auto":
            return
        asked = f"trainer.devices={devices}" if not one else f"trainer.strategy={plain(config.trainer.strategy)}"
        if sweep:
            raise ValueError(
                f"{asked} with a sweep (-m): Lightning would start the other processes by the same command, and each "
                "of them would run the whole sweep. Give every run its own: torchrun --nproc-per-node=N -m lep "
                "trainer=ddp, once a run; or lep -m hydra/launcher=slurm hydra.launcher.tasks_per_node=N; or let each "
                "train on one device: trainer=gpu"
            )
        raise ValueError(
            f"{asked} needs one process a device from the start, as one process holds the store's lock. Launch with: "
            "torchrun --nproc-per-node=N -m lep trainer=ddp"
        )
    if sweep and processes.under_torchrun() and processes.count() > 1:
        raise ValueError(
            f"A sweep (-m) in the {processes.count()} processes of one torchrun: they part when the first run is "
            "trained. Call torchrun once a run, or use lep -m hydra/launcher=slurm hydra.launcher.tasks_per_node=N, "
            "which starts processes for each"
        )
    if devices not in ("auto", here, str(here)):
        raise ValueError(
            f"trainer.devices={devices}, but {here} processes were started on this machine, one a device. Use "
            "trainer=ddp or trainer=fsdp, whose devices are as many as the processes"
        )
    own_share_of_step(config)


def own_share_of_step(config: DictConfig) -> tuple[int, int]:
    """(blocks at once, batches accumulated) of this process in a step. ValueError if it cannot be shared evenly."""
    accumulate = config.trainer.get("accumulate_grad_batches", 1)
    return processes.share_of_step(config.training.batch_size, accumulate, processes.count())


def _check_calibration(config: DictConfig) -> None:
    """Calibrations need models of this run to apply to, and peft."""
    named, on = calibrations(config), list(config.calibration.on)
    unknown = [name for name in on if name not in ("original", *config.propagation)]
    if named and (unknown or not on):
        raise ValueError(
            f"calibration.on={on} must name propagations of this run ({', '.join(config.propagation)}), or original. "
            "Name one of them, or add its rule: propagation=all"
        )
    idle = [name for name, node in named.items() if node.answers is not None and on == ["original"]]
    if idle:
        raise ValueError(
            f"calibration={','.join(idle)} with calibration.on={on} has nothing to do: its own answers teach the "
            "original nothing. Name a propagation in calibration.on, or use calibration=instruct"
        )
    if "original" in config.export and ("original" not in on or all(n.answers is not None for n in named.values())):
        raise ValueError(
            "export=original writes what calibrations made of the instruct model, and none applies to it. Name "
            "original in calibration.on with calibration=instruct or instruct_copy, or take it out of export"
        )
    if named and importlib.util.find_spec("peft") is None:
        raise ValueError(
            f"calibration={','.join(named)} needs peft, which is not installed: pip install 'lep[calibration]'"
        )


def _check_search(config: DictConfig) -> None:
    """A search needs training that it can watch, keys to set, and Optuna."""
    if config.search is None:
        return
    training = config.training
    if config.adapted or "training" not in planned_stages(config) or config.trainer.get("strategy", "auto") != "auto":
        raise ValueError(
            "search watches the training of one process, and here is none: leave adapted and trainer.strategy as they "
            "are, and give stages=[training] or later ones"
        )
    if training.validate_every_steps > training.steps:
        raise ValueError(
            f"training.validate_every_steps={training.validate_every_steps} leaves a search nothing to go by in "
            f"training.steps={training.steps}. Set it to at most that; a tenth of it lets a trial end early"
        )
    for name, node in config.search.space.items():
        if OmegaConf.select(config, node.key) is None:
            raise ValueError(
                f"search.space.{name}.key={node.key} is no value of this config. Give the full key of one, such as "
                "training.learning_rate"
            )
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("search needs Optuna, which is not installed: pip install 'lep[search]'")


def _check_sizes(config: DictConfig) -> None:
    """Optimization must keep every byte and leave room to extend."""
    keep, size = config.tokenizer.get("keep"), config.tokenizer.get("vocab_size")
    if keep is not None and keep < NUM_BYTES:
        raise ValueError(
            f"tokenizer.keep={keep} is below the {NUM_BYTES} single bytes that a vocabulary must keep, special tokens "
            "not counted. Raise it, or use tokenizer=extension"
        )
    if keep is not None and size < keep:
        raise ValueError(
            f"tokenizer.vocab_size={size} is below tokenizer.keep={keep}: Optimization cuts to the latter and extends "
            "to the former. Raise vocab_size or lower keep"
        )


def variant_name(config: DictConfig) -> str:
    """The tokenizer variant, from the function that makes it."""
    return _variant(config.tokenizer._target_)


def _variant(target: str) -> str:
    return target.rpartition(".")[2]


def trained_rows(config: DictConfig) -> Literal["all", "new"]:
    """Which rows move: `auto` is the new ones under Extension, whose old rows are right as they are, else all."""
    if config.training.rows == "auto":
        return "new" if variant_name(config) == "extension" else "all"
    return config.training.rows


def check_context(block_size: int, context: int) -> None:
    """ValueError if the model cannot read a block of that many tokens."""
    if block_size > context:
        raise ValueError(
            f"training.block_size={block_size} is longer than the {context} positions of the model. "
            f"Set training.block_size to at most {context}"
        )


def write_once(path: Path, config: DictConfig) -> None:
    """Leave the resolved config in the run's folder; a folder that holds another config is refused.

    Places (`output_dir`, `artifacts_dir`) and loggers may differ: they do not change the result.
    """
    now = {key: value for key, value in plain(config).items() if key not in ("output_dir", "artifacts_dir", "logger")}
    text = OmegaConf.to_yaml(OmegaConf.create(now))
    begun = (path.parent / "result.json").exists() or any(path.parent.glob("checkpoints/*/last.ckpt"))
    same = path.exists() and path.read_text(encoding="utf-8") == text
    if begun and path.exists() and not same:
        before = plain(OmegaConf.create(path.read_text(encoding="utf-8")))
        differing = sorted(_differences(before, now))
        raise ValueError(
            f"{path.parent} holds a run with another config (differing: {', '.join(differing[:5])}). "
            "Choose another folder with study=NAME, or delete that one"
        )
    if not same:
        with replacing(path) as staging:
            staging.write_text(text, encoding="utf-8")


def _differences(before: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in {*before, *now}:
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    elif before != now:
        yield key


OmegaConf.register_new_resolver("lep.variant", _variant, replace=True)
OmegaConf.register_new_resolver("lep.run_name", lambda overrides: run_name(list(overrides)), replace=True)
