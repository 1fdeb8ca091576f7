"""The stages of a run: what each is made from (its key), and how it is made when the store does not have it.

Comes in: a composed config. Goes out: artifacts. Keys follow from configs and file contents alone, so the whole plan,
with what is cached, is known before any work.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import CSVLogger, Logger
from transformers import PreTrainedTokenizerFast

from lep import checkpoints
from lep.artifacts import Artifact, Store, artifact_key
from lep.benchmark.asking import Ranks
from lep.benchmark.records import compare, samples, write_records
from lep.callbacks import ORIGINAL, UNTRAINED, Candidate, Judge, Judged, PropagateAndBenchmark
from lep.chat import check_siblings, result_tokenizer, special_pairs
from lep.config import build, check_context, plain, trained_rows, variant_name
from lep.corpus import PackedBlocks, PreparedCorpus, pack, prepare
from lep.embeddings import TABLES_FILE, Embeddings, read_embeddings, set_embeddings_
from lep.propagation.swap import swap
from lep.results import Result, environment
from lep.tokenizers.report import segmentations, vocabulary_report
from lep.training import (
    BenchmarkWhileTraining,
    EmbeddingTraining,
    LastCheckpoint,
    PackedData,
    TrainingProgress,
    held_out_windows,
)
from lep.training.module import STATE_KEY
from lep.vocabulary import SubtokenOperator, read_vocabulary, subtoken_operator

HeldOutTexts = Mapping[str, list[str]]

# Characters of a window when bits per byte are measured: fits the 256 positions of the tiny pair in any vocabulary.
BITS_CONTEXT = 240
OPERATOR_FILE = "operator.safetensors"
HISTORY_FILE = "history.json"


@dataclass(frozen=True)
class Stage:
    """An artifact to be: where it goes, what it is made from."""

    kind: str
    name: str
    inputs: dict[str, Any]

    @property
    def key(self) -> str:
        return artifact_key(self.kind, self.inputs)


@dataclass(frozen=True)
class Plan:
    """Everything that is known before any work: models, stages, keys."""

    config: DictConfig
    store: Store
    base_dir: Path
    instruct_dir: Path | None
    base_fingerprint: dict[str, str]
    instruct_fingerprint: dict[str, str] | None
    adapted_fingerprint: dict[str, str] | None
    stages: Mapping[str, Stage]

    def cached(self, stage: str) -> bool:
        found = self.stages[stage]
        return self.store.peek(found.kind, found.name, found.inputs)

    def make(self, stage: str, build_into: Callable[[Path], dict | None]) -> Artifact:
        found = self.stages[stage]
        return self.store.get_or_build(found.kind, found.name, found.inputs, build_into)


def make_plan(config: DictConfig) -> Plan:
    """Find the models and name every stage by what it is made from. Errors of the config show here, before any work."""
    base_dir = checkpoints.resolve(config.model.base, config.model.base_revision, key="model.base")
    instruct_dir = None
    if config.model.instruct and "propagation" in config.stages:
        instruct_dir = checkpoints.resolve(config.model.instruct, config.model.instruct_revision, key="model.instruct")
        check_siblings(
            checkpoints.load_tokenizer(base_dir, key="model.base"),
            checkpoints.load_tokenizer(instruct_dir, key="model.instruct"),
        )
    check_context(config.training.block_size, checkpoints.context_length(base_dir))
    base = checkpoints.fingerprint(base_dir)
    base_tokenizer = {name: digest for name, digest in base.items() if "token" in name or name.endswith(".model")}
    source = build(config.corpus.source)
    corpus = Stage(
        "corpus",
        config.corpus.name,
        {
            "source": source.fingerprint(),
            "filters": plain(config.corpus.filters),
            "held_out": plain(config.corpus.held_out),
        },
    )
    named = f"{config.model.name}-{variant_name(config)}"
    tokenizer = Stage(
        "tokenizer", named, {"base": base_tokenizer, "variant": plain(config.tokenizer), "corpus": corpus.key}
    )
    adapted_dir = checkpoints.fingerprint(checkpoints.resolve_adapted(config.adapted)) if config.adapted else None
    made = {"adapted": adapted_dir} if adapted_dir else {"tokenizer": tokenizer.key}
    operator = Stage("operator", named, {"base": base_tokenizer, **made})
    training = {key: value for key, value in plain(config.training).items() if key != "checkpoint_every_steps"}
    packed = Stage(
        "packed",
        named,
        {
            "corpus": corpus.key,
            **made,
            "block_size": config.training.block_size,
            "mixture": training["mixture"],
        },
    )
    adapted = Stage(
        "adapted",
        named,
        {
            "base": base,
            "packed": packed.key,
            "init": plain(config.init),
            "training": training | {"rows": trained_rows(config)},
            "seed": config.seed,
            "trainer": {key: value for key, value in plain(config.trainer).items() if key != "enable_progress_bar"},
        },
    )
    stages = {stage.kind: stage for stage in (corpus, tokenizer, operator, packed, adapted)}
    instruct = checkpoints.fingerprint(instruct_dir) if instruct_dir else None
    return Plan(config, Store(Path(config.artifacts_dir)), base_dir, instruct_dir, base, instruct, adapted_dir, stages)


def make_corpus(plan: Plan) -> Artifact:
    config = plan.config.corpus
    return plan.make(
        "corpus",
        lambda out: prepare(
            build(config.source), out, filters=build(config.filters), held_out=build(config.held_out), seed=0
        ),
    )


def make_tokenizer(plan: Plan, corpus: Artifact) -> Artifact:
    """The variant's tokenizer, trained on the training text alone."""

    def into(out: Path) -> dict[str, Any]:
        base = checkpoints.load_tokenizer(plan.base_dir, key="model.base")
        variant, texts = build(plan.config.tokenizer), PreparedCorpus(corpus.path).train_texts()
        tokenizer = variant(base) if variant_name(plan.config) == "original" else variant(base, texts)
        tokenizer.save_pretrained(out)
        return {}

    return plan.make("tokenizer", into)


def describe_vocabularies(
    before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast, held_out: HeldOutTexts
) -> dict[str, Any]:
    """Both vocabularies on the same held-out text, and the same sentence as each of them cuts it."""
    sentences = {language: texts[0].split("\n")[0][:160] for language, texts in held_out.items() if texts}
    return {
        "before": vocabulary_report(before, held_out),
        "after": vocabulary_report(after, held_out),
        "examples": [
            {"language": language, "before": segmentations(before, text), "after": segmentations(after, text)}
            for language, text in sentences.items()
        ],
    }


def make_operator(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> SubtokenOperator:
    def into(out: Path) -> dict[str, Any]:
        base = checkpoints.load_tokenizer(plan.base_dir, key="model.base")
        operator = subtoken_operator(tokenizer, base)
        operator.save(out / OPERATOR_FILE)
        return {
            "tokens": len(operator.exact),
            "exact": int(operator.exact.sum()),
            "special": int(operator.special.sum()),
            "distinct_old_rows": int(len(np.unique(operator.weights.indices))),
        }

    return SubtokenOperator.load(plan.make("operator", into).path / OPERATOR_FILE)


def make_packed(plan: Plan, corpus: Artifact, tokenizer_dir: Path) -> PackedBlocks:
    training = plan.config.training
    artifact = plan.make(
        "packed",
        lambda out: pack(
            corpus.path, tokenizer_dir, out, block_size=training.block_size, mixture=plain(training.mixture)
        ),
    )
    return PackedBlocks(artifact.path)


def initialise(config: DictConfig, base: Embeddings, operator: SubtokenOperator) -> Embeddings:
    """The new tables before training, each by its own rule, in float32."""
    generator = torch.Generator().manual_seed(config.seed)
    on_input, on_output = build(config.init.input), build(config.init.output)
    if base.tied and plain(config.init.input) != plain(config.init.output):
        raise ValueError(
            f"init.input={config.init.input._target_} and init.output={config.init.output._target_} differ, but the "
            "model ties its tables. Give both the same rule"
        )
    return base.map(
        lambda table: on_input(table, operator, generator=generator),
        lambda table: on_output(table, operator, generator=generator),
    )


@dataclass(frozen=True)
class Adaptation:
    """What training starts from: the new tables as initialised, their tokenizer, packed text, held-out texts."""

    initial: Embeddings
    tokenizer: PreTrainedTokenizerFast
    blocks: PackedBlocks
    held_out: HeldOutTexts


def train(
    plan: Plan, run_dir: Path, start: Adaptation, loggers: list[Logger], evaluate: Callable[[Embeddings], None]
) -> list[dict[str, float]]:
    """Train the tables, or take them from the store; `evaluate` gets them at the end. Gives the training curve."""
    if not is_leader():
        # The leader holds the store's lock and judges; the others only train beside it.
        if not plan.cached("adapted"):
            fit_tables(plan, run_dir, start, [], [])
        raise SystemExit(0)
    stage = plan.stages["adapted"]
    with plan.store.open(stage.kind, stage.name, stage.inputs) as slot:
        if slot.ready:
            history = json.loads((slot.path / HISTORY_FILE).read_text())
            log_again(loggers, history)
            shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
            evaluate(read_embeddings(slot.path))
            return history

        def publish(adapted: Embeddings, history: list[dict[str, float]]) -> None:
            adapted.save(slot.staging / TABLES_FILE)
            (slot.staging / HISTORY_FILE).write_text(json.dumps(history), encoding="utf-8")
            start.tokenizer.save_pretrained(slot.staging)
            slot.publish(steps=plan.config.training.steps)

        history = fit_tables(plan, run_dir, start, loggers, [PropagateAndBenchmark(publish, evaluate)])
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        return history


def is_leader() -> bool:
    """Whether this process is the only one, or the first of those that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def fit_tables(
    plan: Plan, run_dir: Path, start: Adaptation, loggers: list[Logger], callbacks: list[Callback]
) -> list[dict[str, float]]:
    """Train from the start, or from the checkpoint that a killed run left. Gives the training curve."""
    config = plan.config
    module, data = make_training(plan, start)
    checkpoint = LastCheckpoint(run_dir / "checkpoints", every_n_steps=config.training.checkpoint_every_steps)
    callbacks = [checkpoint, *([TrainingProgress()] if config.trainer.enable_progress_bar else []), *callbacks]
    callbacks += make_watcher(plan, start.tokenizer)
    trainer = make_trainer(config, loggers, callbacks)
    if checkpoint.path is None:
        trainer.validate(module, data, verbose=False)  # bits per byte of the initialised tables
    else:
        state = torch.load(checkpoint.path, map_location="cpu", weights_only=True)
        log_again([logger for logger in loggers if isinstance(logger, CSVLogger)], state[STATE_KEY]["history"])
    trainer.fit(module, data, ckpt_path=checkpoint.path)
    return module.history


def make_watcher(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> list[Callback]:
    """What benchmarks the base model with the tables as they stand in training, if the config asks for it."""
    settings = plan.config.during_training
    if settings.every_steps is None:
        return []
    suites = [build({**plain(node), **_limited(node, settings.limit)}) for node in settings.suites.values()]

    def judge(tables: Embeddings) -> dict[str, float]:
        model = checkpoints.load_model(plan.base_dir)
        set_embeddings_(model, tables)
        scores: dict[str, float] = {}
        for suite in suites:
            shared_out = {"ranks": Ranks.current()} if hasattr(suite, "fingerprint") else {}
            found = suite(model.to(device_of(plan.config)), tokenizer, **shared_out).scores  # type: ignore[arg-type]
            scores |= {key: score.value for key, score in found.items()}
        return scores

    return [BenchmarkWhileTraining(settings.every_steps, judge)]


def _limited(node: DictConfig, limit: int | None) -> dict[str, int]:
    """The suite's own name for how many items of a task it asks, with the limit."""
    return {key: limit for key in ("limit", "items_per_task") if key in node and limit is not None}


def device_of(config: DictConfig) -> str:
    """Where models are benchmarked."""
    if config.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def log_again(loggers: list[Logger], history: list[dict[str, float]]) -> None:
    """Give a curve that was recorded before to loggers whose files begin anew."""
    for row in history:
        for logger in loggers:
            logger.log_metrics({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))


def make_training(plan: Plan, start: Adaptation) -> tuple[EmbeddingTraining, PackedData]:
    """The module that moves the tables, and its data."""
    settings, tokenizer = plan.config.training, start.tokenizer
    rows = trained_rows(plan.config)
    base_size = len(read_vocabulary(checkpoints.load_tokenizer(plan.base_dir, key="model.base")))
    specials = sorted(read_vocabulary(tokenizer).specials) if settings.freeze_special_tokens else []
    torch.manual_seed(plan.config.seed)
    module = EmbeddingTraining(
        checkpoints.load_model(plan.base_dir),
        start.initial,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        betas=tuple(settings.betas),
        final_learning_rate=settings.final_learning_rate,
        rows=rows,
        body_dtype=settings.body_dtype,
        first_new_row=base_size if rows == "new" else None,
        frozen_rows=[row for row in specials if rows == "all" or row >= base_size],
    )
    before_text = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    windows = {
        language: held_out_windows(
            texts, tokenizer, length=settings.block_size, overlap=settings.block_size // 4, start_id=before_text
        )
        for language, texts in start.held_out.items()
    }
    return module, PackedData(start.blocks, batch_size=settings.batch_size, seed=plan.config.seed, held_out=windows)


def make_trainer(config: DictConfig, loggers: list[Logger], callbacks: list[Any]) -> Trainer:
    """Lightning's trainer for a number of optimizer steps."""
    return build(
        config.trainer,
        max_steps=config.training.steps,
        max_epochs=-1,
        gradient_clip_val=config.training.gradient_clip,
        log_every_n_steps=config.training.log_every_steps,
        val_check_interval=config.training.validate_every_steps * config.trainer.get("accumulate_grad_batches", 1),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        logger=loggers,
        callbacks=callbacks,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Propagation and benchmark.


def make_judge(
    plan: Plan, base: Embeddings, operator: SubtokenOperator, tokenizer: PreTrainedTokenizerFast, held_out: HeldOutTexts
) -> Judge:
    """What carries tables into the instruct model and benchmarks them."""
    assert plan.instruct_dir is not None, "checked before any work"
    config = plan.config
    instruct_tokenizer = checkpoints.load_tokenizer(plan.instruct_dir, key="model.instruct")
    chatting, _ = result_tokenizer(tokenizer, instruct_tokenizer)
    suites = {name: build(node) for name, node in config.benchmark.items()} if "benchmark" in config.stages else {}
    return Judge(
        store=plan.store,
        instruct_dir=plan.instruct_dir,
        instruct_tokenizer=instruct_tokenizer,
        tokenizer=chatting,
        kept_rows=special_pairs(chatting, instruct_tokenizer),
        base=base,
        operator=operator,
        suites=suites,
        held_out=held_out,
        context=BITS_CONTEXT,
        key={
            "instruct": plan.instruct_fingerprint,
            "suites": {name: plain(config.benchmark[name]) for name in suites},
            "held_out": plan.stages["corpus"].key,
            "context": BITS_CONTEXT,
        },
        device=device_of(config),
        recipe=plain(config),
    )


def judge_all(judge: Judge, plan: Plan, run_dir: Path, *, initial: Embeddings, adapted: Embeddings) -> Iterator[Judged]:
    """The untouched instruct model, the tables before training, and the adapted tables by every rule."""
    config = plan.config
    made_from = {"base": plan.base_fingerprint, "operator": plan.stages["operator"].key}
    started_from = {**made_from, "init": plain(config.init), "seed": config.seed}
    tables = {"directory": plan.adapted_fingerprint} if config.adapted else {"adapted": plan.stages["adapted"].key}
    yield judge.judge(Candidate(ORIGINAL, None, None, {}))
    if not config.adapted:
        yield judge.judge(Candidate(UNTRAINED, initial, swap, started_from))
    for name, node in config.propagation.items():
        export_dir = run_dir / "models" / str(name) if name in config.export else None
        candidate = Candidate(str(name), adapted, build(node), {**made_from, **tables, "rule": plain(node)})
        yield judge.judge(candidate, export_dir=export_dir)


def collect(
    plan: Plan,
    run_dir: Path,
    chosen: dict[str, str],
    judged: list[Judged],
    history: list[dict[str, float]],
    corpus: Artifact,
    tokenizer: PreTrainedTokenizerFast,
    held_out: HeldOutTexts,
    seconds: dict[str, float],
) -> Result:
    """Everything the run found, as one record; answers are written beside it, one file a model."""
    for found in judged:
        write_records(run_dir / "answers" / f"{found.row.name}.jsonl", found.records)
    base_tokenizer = checkpoints.load_tokenizer(plan.base_dir, key="model.base")
    config = plan.config
    return Result(
        study=config.study,
        run=run_dir.name,
        choices=chosen,
        seed=config.seed,
        rows=[found.row for found in judged],
        corpus=corpus.facts,
        tokenizer=describe_vocabularies(base_tokenizer, tokenizer, held_out),
        training=describe_training(history, config),
        propagation={found.row.name: found.diagnostics for found in judged if found.diagnostics},
        comparisons=compare({found.row.name: found.records for found in judged}, baselines=(ORIGINAL, UNTRAINED)),
        samples=samples({found.row.name: found.records for found in judged}),
        environment=environment(device=str(config.trainer.accelerator)),
        artifacts={kind: {"name": stage.name, "key": stage.key} for kind, stage in plan.stages.items()},
        timings={**seconds, "peak_memory_bytes": peak_memory_bytes()},
    )


def describe_training(history: list[dict[str, float]], config: DictConfig) -> dict[str, Any]:
    """The training curve as it was recorded, and the speed."""
    if not history:
        return {}
    rates = [row["train/tokens_per_second"] for row in history if "train/tokens_per_second" in row]
    return {
        "curve": history,
        "tokens": history[-1].get("train/tokens") or max(row.get("train/tokens", 0) for row in history),
        "tokens_per_second": float(np.median(rates)),
        "steps": config.training.steps,
    }


def peak_memory_bytes() -> int:
    """The most memory this process held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
