"""The stages of a run: what each is made from (its key), and how it is made when the store does not have it.

Comes in: a composed config. Goes out: artifacts. Keys follow from configs and file contents alone, so the whole plan,
with what is cached, is known before any work.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from omegaconf import DictConfig
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import CSVLogger, Logger
from transformers import PreTrainedTokenizerFast

from lep import checkpoints, processes
from lep.artifacts import KEY_LENGTH, Artifact, Store, artifact_key
from lep.benchmark.asking import Ranks, run_suite
from lep.benchmark.records import compare, gains, samples, write_records
from lep.benchmark.scoring import prefix_id
from lep.calibration.copying import Fingerprints, write_fingerprints
from lep.calibration.method import Calibration, CopySource, named_in_full
from lep.calibration.tuning import Tuning
from lep.calibrator import COPIES_FILE, Calibrator, find_inputs
from lep.callbacks import Candidate, Judge, Judged, PropagateAndBenchmark
from lep.chat import check_siblings, result_tokenizer, special_pairs
from lep.config import (
    build,
    calibrations,
    check_context,
    own_share_of_step,
    plain,
    planned_stages,
    trained_rows,
    variant_name,
)
from lep.corpus import PackedBlocks, PreparedCorpus, pack, prepare, reading_progress
from lep.embeddings import TABLES_FILE, Embeddings, open_embeddings, read_embeddings, set_embeddings_, written_bytes
from lep.export.progress import busy, rows_progress
from lep.memory import SMALL_MODEL_BYTES, peak_memory_bytes, propagation_bytes
from lep.propagation import check_family
from lep.propagation.gram import CHUNK_ROWS
from lep.propagation.swap import swap
from lep.results import ORIGINAL, UNTRAINED, Result, environment
from lep.shards import Table, tensor_files
from lep.tokenizers.report import compare_vocabularies, vocabulary_change
from lep.training import (
    BenchmarkWhileTraining,
    Disband,
    EmbeddingTraining,
    LastCheckpoint,
    PackedData,
    TrainingProgress,
    held_out_windows,
)
from lep.training.module import STATE_KEY
from lep.vocabulary import SubtokenOperator, kept_ids, read_vocabulary, subtoken_operator

HeldOutTexts = Mapping[str, list[str]]

# Characters of a window when bits per byte are measured: fits the 256 positions of the tiny pair in any vocabulary.
BITS_CONTEXT = 240
OPERATOR_FILE = "operator.safetensors"
SEEN_FILE = "fingerprints.npy"
HISTORY_FILE = "history.json"
TRAINED = "trained"  # what the leader tells the other processes of the tables, or the key of those to be trained


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
    base: Path | None  # None where only the corpus is asked for
    instruct_dir: Path | None
    base_fingerprint: dict[str, str]
    instruct_fingerprint: dict[str, str] | None
    adapted_fingerprint: dict[str, str] | None
    compared: Mapping[str, Path]  # tokenizers to compare with, by name
    stages: Mapping[str, Stage]
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    suites: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)  # what each suite reads from files, as far as it can tell

    @property
    def base_dir(self) -> Path:
        assert self.base is not None, "no stage that needs a model was planned"
        return self.base

    def cached(self, stage: str) -> bool:
        found = self.stages[stage]
        return self.store.peek(found.kind, found.name, found.inputs)

    def make(self, stage: str, build_into: Callable[[Path], dict | None]) -> Artifact:
        found = self.stages[stage]
        return self.store.get_or_build(found.kind, found.name, found.inputs, build_into)


def make_plan(config: DictConfig) -> Plan:
    """Find the models and name every stage by what it is made from. Errors of the config show here, before any work."""
    planned = planned_stages(config)
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
    store = Store(Path(config.artifacts_dir))
    if "tokenizer" not in planned:
        return Plan(config, store, None, None, {}, None, None, {}, {"corpus": corpus})
    find = checkpoints.resolve if "training" in planned else checkpoints.resolve_tokenizer
    base_dir = find(config.model.base, config.model.base_revision, key="model.base")
    instruct_dir = None
    if config.model.instruct and "propagation" in planned:
        instruct_dir = checkpoints.resolve(config.model.instruct, config.model.instruct_revision, key="model.instruct")
        check_siblings(
            checkpoints.load_tokenizer(base_dir, key="model.base"),
            checkpoints.load_tokenizer(instruct_dir, key="model.instruct"),
        )
    if "training" in planned:
        check_context(config.training.block_size, checkpoints.context_length(base_dir))
        # Weights that cannot be read, or do not fit each other, are told now, not after training.
        used = {"adapted": checkpoints.resolve_adapted(config.adapted)} if config.adapted else {}
        used |= {"model.base": base_dir} | ({"model.instruct": instruct_dir} if instruct_dir else {})
        check_family({name: open_embeddings(directory) for name, directory in used.items()})
    compared = {
        str(name): checkpoints.resolve_tokenizer(reference, None, key=f"compare_tokenizers.{name}")
        for name, reference in (config.compare_tokenizers or {}).items()
    }
    base = checkpoints.fingerprint(base_dir)
    base_tokenizer = tokenizer_files(base)
    named = f"{config.model.name}-{variant_name(config)}"
    tokenizer = Stage(
        "tokenizer", named, {"base": base_tokenizer, "variant": plain(config.tokenizer), "corpus": corpus.key}
    )
    adapted_dir = checkpoints.fingerprint(checkpoints.resolve_adapted(config.adapted)) if config.adapted else None
    made = {"adapted": adapted_dir} if adapted_dir else {"tokenizer": tokenizer.key}
    operator = Stage("operator", named, {"base": base_tokenizer, **made})
    compared_files = {name: tokenizer_files(checkpoints.fingerprint(path)) for name, path in compared.items()}
    vocabularies = Stage(
        "vocabularies", named, {"operator": operator.key, "corpus": corpus.key, "compared": compared_files}
    )
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
            "measured": config.measured_characters,
            "trainer": {key: value for key, value in plain(config.trainer).items() if key != "enable_progress_bar"},
        },
    )
    stages = {stage.kind: stage for stage in (corpus, tokenizer, operator, vocabularies, packed, adapted)}
    instruct = checkpoints.fingerprint(instruct_dir) if instruct_dir else None
    calibrated = dict[str, Calibration]()
    for name, node in calibrations(config).items():
        with named_in_full(name):
            calibrated[name] = build(node)
            if instruct_dir:
                find_inputs(calibrated[name], instruct_dir)
    suites = {str(name): build(node) for name, node in config.benchmark.items()} if "benchmark" in planned else {}
    # Records and prompts that are missing or broken are told now; others are other scores.
    asked = {name: suite.fingerprint() if hasattr(suite, "fingerprint") else None for name, suite in suites.items()}
    return Plan(
        config,
        store,
        base_dir,
        instruct_dir,
        base,
        instruct,
        adapted_dir,
        compared,
        stages,
        calibrated,
        suites,
        asked,
    )


def tokenizer_files(fingerprint: Mapping[str, str]) -> dict[str, str]:
    """Of a directory's fingerprint, what its tokenizer is read from."""
    return {name: digest for name, digest in fingerprint.items() if "token" in name or name.endswith(".model")}


def make_corpus(plan: Plan) -> Artifact:
    config = plan.config.corpus
    return plan.make(
        "corpus",
        lambda out: prepare(
            build(config.source), out, filters=build(config.filters), held_out=build(config.held_out), seed=0
        ),
    )


def make_copies(plan: Plan, corpus: Artifact) -> dict[str, Artifact]:
    """The copy tasks of each calibration that has any; nothing in them was judged or trained on.

    What tables that are given were trained on nobody knows, and the facts say so. ValueError where the texts hold too
    few others: that is told now, not after training.
    """
    found = {name: method.copies for name, method in plan.calibrations.items() if method.copies is not None}
    if not found:
        return {}
    prepared, known = PreparedCorpus(corpus.path), plan.config.adapted is None
    seen = plan.store.get_or_build(
        "seen",
        plan.config.corpus.name,
        {"corpus": corpus.key, "trained on": known},
        lambda out: {"fingerprints": write_fingerprints(out / SEEN_FILE, seen_texts(prepared, trained=known))},
    )
    apart_from = "held-out texts and those of the embedding training"
    if not known:
        apart_from = "held-out texts alone: the tables were given, and what they were trained on is not known"

    def into(out: Path, copies: CopySource) -> dict[str, Any]:
        tasks = [{"messages": task.messages()} for task in copies.read(exclude=Fingerprints(seen.path / SEEN_FILE))]
        lines = (json.dumps(task, ensure_ascii=False) + "\n" for task in tasks)
        (out / COPIES_FILE).write_text("".join(lines), encoding="utf-8")
        return {"count": len(tasks), "apart from": apart_from}

    return {
        name: plan.store.get_or_build(
            "copies", name, {"copies": copies.fingerprint(), "seen": seen.key}, partial(into, copies=copies)
        )
        for name, copies in found.items()
    }


def seen_texts(prepared: PreparedCorpus, *, trained: bool) -> Iterator[str]:
    """Every text of a corpus that models are judged on and, where it was, trained on."""
    yield from chain.from_iterable(prepared.all_held_out().values())
    if trained:
        yield from prepared.train_texts()


def make_tokenizer(plan: Plan, corpus: Artifact) -> Artifact:
    """The variant's tokenizer, trained on the training text alone."""

    def into(out: Path) -> dict[str, Any]:
        base = checkpoints.load_tokenizer(plan.base_dir, key="model.base")
        variant, facts = build(plan.config.tokenizer), dict[str, Any]()
        if variant_name(plan.config) == "original":
            tokenizer = variant(base)
        else:
            prepared = PreparedCorpus(corpus.path)
            documents = sum(counted["train"]["documents"] for counted in prepared.counts["languages"].values())
            name = variant_name(plan.config)
            with reading_progress(
                prepared.train_texts(), total=documents, reading=f"{name}: reading", then=f"{name}: learning the tokens"
            ) as texts:
                tokenizer = variant(base, texts, facts=facts)
        tokenizer.save_pretrained(out)
        return facts

    return plan.make("tokenizer", into)


def make_operator(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> SubtokenOperator:
    def into(out: Path) -> dict[str, Any]:
        base = checkpoints.load_tokenizer(plan.base_dir, key="model.base")
        with busy(f"spelling {len(tokenizer):,} tokens in old ones"):
            operator = subtoken_operator(tokenizer, base)
        operator.save(out / OPERATOR_FILE)
        return operator.summary()

    return SubtokenOperator.load(plan.make("operator", into).path / OPERATOR_FILE)


def describe_vocabularies(
    plan: Plan, corpus: Artifact, tokenizer: PreTrainedTokenizerFast, operator: SubtokenOperator
) -> dict[str, Any]:
    """What the new vocabulary does to held-out text, beside the old one and those it is compared with."""

    def into(out: Path) -> dict[str, Any]:
        base = checkpoints.load_tokenizer(plan.base_dir, key="model.base")
        others = {
            name: checkpoints.load_tokenizer(path, key=f"compare_tokenizers.{name}")
            for name, path in plan.compared.items()
        }
        texts = PreparedCorpus(corpus.path).held_out_by_source()
        return {
            **compare_vocabularies({"before": base, "after": tokenizer} | others, texts),
            "change": vocabulary_change(base, tokenizer),
            "operator": operator.summary(),
        }

    made = {} if plan.config.adapted else make_tokenizer(plan, corpus).facts
    return {**plan.make("vocabularies", into).facts, "made": made}


def make_packed(plan: Plan, corpus: Artifact, tokenizer_dir: Path) -> PackedBlocks:
    training = plan.config.training
    artifact = plan.make(
        "packed",
        lambda out: pack(
            corpus.path, tokenizer_dir, out, block_size=training.block_size, mixture=plain(training.mixture)
        ),
    )
    return PackedBlocks(artifact.path)


def initialise(config: DictConfig, base: Embeddings[Table], operator: SubtokenOperator) -> Embeddings[Table]:
    """The new tables before training, each by its own rule, in float32; read row by row if the rule can."""
    generator = torch.Generator().manual_seed(config.seed)
    on_input, on_output = build(config.init.input), build(config.init.output)
    if base.tied and plain(config.init.input) != plain(config.init.output):
        raise ValueError(
            f"init.input={config.init.input._target_} and init.output={config.init.output._target_} differ, but the "
            "model ties its tables. Give both the same rule"
        )
    with busy("initialising"):
        return base.map(
            lambda table: on_input(table, operator, generator=generator),
            lambda table: on_output(table, operator, generator=generator),
        )


def compute_rows(tables: Embeddings[Table]) -> Embeddings:
    """The initialised tables in memory, with a bar while their rows are computed."""
    with rows_progress("initialising", (1 if tables.tied else 2) * tables.input.shape[0]) as advance:
        return tables.in_memory(advance=advance)


@dataclass(frozen=True)
class Adaptation:
    """What training starts from: the new tables as initialised, their tokenizer, packed text, held-out texts."""

    initial: Embeddings[Table]
    tokenizer: PreTrainedTokenizerFast
    blocks: PackedBlocks
    held_out: HeldOutTexts


def train(
    plan: Plan,
    run_dir: Path,
    start: Adaptation,
    loggers: list[Logger],
    evaluate: Callable[[Embeddings], None],
    *,
    watch: Sequence[Callback] = (),
) -> list[dict[str, float]]:
    """Train the tables, or take them from the store; `evaluate` gets them at the end. Gives the training curve.

    watch: what else is called back while they train.
    """
    if not processes.is_leader():
        # The leader holds the store's lock and judges; the others only train beside it.
        word = processes.word_of_leader()
        if word not in (TRAINED, processes.FAILED):
            fit_tables(plan, run_dir, start, [], [], key=word)
        raise processes.LeaderGoesOn
    stage = plan.stages["adapted"]
    with plan.store.open(stage.kind, stage.name, stage.inputs) as slot:
        processes.word_of_leader(TRAINED if slot.ready else stage.key)
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

        judging = PropagateAndBenchmark(publish, evaluate)
        history = fit_tables(plan, run_dir, start, loggers, [*watch, judging], key=stage.key)
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        return history


def fit_tables(
    plan: Plan, run_dir: Path, start: Adaptation, loggers: list[Logger], callbacks: list[Callback], *, key: str
) -> list[dict[str, float]]:
    """Train from the start, or from the checkpoint that a killed run left. Gives the training curve.

    key: the leader's, of what is trained. Other processes may name it otherwise, as large files of their machine are
    known by their times of change; the checkpoint has one place all the same.
    """
    config = plan.config
    module, data = make_training(plan, start)
    # Under the key: a checkpoint of other text or another base is not gone on with.
    kept = run_dir / "checkpoints" / key[:KEY_LENGTH]
    checkpoint = LastCheckpoint(kept, every_n_steps=config.training.checkpoint_every_steps)
    progress = [TrainingProgress()] if config.trainer.enable_progress_bar else []
    callbacks = [checkpoint, *progress, Disband(), *callbacks]
    callbacks += make_watcher(plan, start.tokenizer)
    trainer = make_trainer(config, loggers, callbacks)
    if checkpoint.path is None:
        trainer.validate(module, data, verbose=False)  # bits per byte of the initialised tables
    else:
        state = torch.load(checkpoint.path, map_location="cpu", weights_only=True)
        log_again(loggers, state[STATE_KEY]["history"], whole=False)
    trainer.fit(module, data, ckpt_path=checkpoint.path)
    return module.history


def make_watcher(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> list[Callback]:
    """What benchmarks the base model with the tables as they stand in training, if the config asks for it."""
    settings = plan.config.during_training
    if settings.every_steps is None:
        return []
    suites = [build({**plain(node), **_limited(node, settings.limit)}) for node in settings.suites.values()]

    def judge(tables: Embeddings) -> dict[str, float]:
        model = checkpoints.load_model(plan.base_dir, device=device_of(plan.config))
        set_embeddings_(model, tables)
        scores: dict[str, float] = {}
        for suite in suites:
            found = run_suite(suite, model, tokenizer, ranks=Ranks.current())
            scores |= {key: score.value for key, score in found.scores.items()}
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


def log_again(loggers: list[Logger], history: list[dict[str, float]], *, whole: bool = True) -> None:
    """Give a curve that was recorded before to loggers whose files begin anew: all, or CSV alone if it goes on."""
    anew = [logger for logger in loggers if whole or isinstance(logger, CSVLogger)]
    for row in history:
        for logger in anew:
            logger.log_metrics({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))


def make_training(plan: Plan, start: Adaptation) -> tuple[EmbeddingTraining, PackedData]:
    """The module that moves the tables, and its data."""
    settings, tokenizer = plan.config.training, start.tokenizer
    rows = trained_rows(plan.config)
    vocabulary = read_vocabulary(tokenizer)
    specials = vocabulary.specials if settings.freeze_special_tokens else ()
    # Under Extension new tokens may have the ids of dropped ones, with old tokens between them.
    kept = kept_ids(read_vocabulary(checkpoints.load_tokenizer(plan.base_dir, key="model.base")), vocabulary)
    first_new = min(set(range(len(vocabulary))) - kept, default=len(vocabulary))
    frozen = sorted(row for row in kept | {*specials} if row >= first_new) if rows == "new" else sorted(specials)
    torch.manual_seed(plan.config.seed)
    module = EmbeddingTraining(
        checkpoints.load_model(plan.base_dir),
        compute_rows(start.initial),
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        betas=tuple(settings.betas),
        final_learning_rate=settings.final_learning_rate,
        rows=rows,
        body_dtype=settings.body_dtype,
        first_new_row=first_new if rows == "new" else None,
        frozen_rows=frozen,
    )
    windows = {
        language: held_out_windows(
            texts,
            tokenizer,
            length=settings.block_size,
            overlap=settings.block_size // 4,
            start_id=prefix_id(tokenizer),
        )
        for language, texts in start.held_out.items()
    }
    batch_size, _ = own_share_of_step(plan.config)
    return module, PackedData(start.blocks, batch_size=batch_size, seed=plan.config.seed, held_out=windows)


def make_trainer(config: DictConfig, loggers: list[Logger], callbacks: list[Any]) -> Trainer:
    """Lightning's trainer for a number of optimizer steps, in as many processes as were started."""
    _, accumulate = own_share_of_step(config)
    group: dict[str, Any] = {}
    if processes.started():
        here = processes.count_here()
        group = {"devices": here, "num_nodes": processes.count() // here, "plugins": [TorchElasticEnvironment()]}
    return build_trainer(
        config,
        loggers,
        callbacks,
        max_steps=config.training.steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=config.training.gradient_clip,
        log_every_n_steps=config.training.log_every_steps,
        val_check_interval=config.training.validate_every_steps * accumulate,
        check_val_every_n_epoch=None,
        **group,
    )


def build_trainer(config: DictConfig, loggers: list[Logger], callbacks: list[Any], **settings: Any) -> Trainer:
    """What all training has in common: it ends at a number of steps, not of epochs."""
    return build(
        config.trainer,
        max_epochs=-1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        logger=loggers,
        callbacks=callbacks,
        **settings,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Propagation and benchmark.


def make_judge(
    plan: Plan,
    base: Embeddings[Table],
    operator: SubtokenOperator,
    tokenizer: PreTrainedTokenizerFast,
    held_out: HeldOutTexts,
) -> Judge:
    """What carries tables into the instruct model and benchmarks them."""
    assert plan.instruct_dir is not None, "checked before any work"
    config = plan.config
    instruct_tokenizer = checkpoints.load_tokenizer(plan.instruct_dir, key="model.instruct")
    chatting, _ = result_tokenizer(tokenizer, instruct_tokenizer)
    return Judge(
        store=plan.store,
        instruct_dir=plan.instruct_dir,
        instruct_tokenizer=instruct_tokenizer,
        tokenizer=chatting,
        kept_rows=special_pairs(chatting, instruct_tokenizer),
        base=base,
        operator=operator,
        suites=dict(plan.suites),
        held_out=held_out,
        context=BITS_CONTEXT,
        repair=config.repair_end_of_turn is not False,
        key={
            "instruct": plan.instruct_fingerprint,
            "suites": {name: [plain(config.benchmark[name]), asked] for name, asked in plan.asked.items()},
            "held_out": plan.stages["corpus"].key,
            "measured": config.measured_characters,
            "repair": config.repair_end_of_turn is not False,
            "context": BITS_CONTEXT,
            "device": torch.device(device_of(config)).type,  # which decides the precision
        },
        device=device_of(config),
        recipe=plain(config),
        pad_to=config.export_pad_to,
    )


def make_calibrator(judge: Judge, plan: Plan, loggers: list[Logger], copies: Mapping[str, Artifact]) -> Calibrator:
    """What tunes the judge's models after propagation. This process tunes alone, on one device."""
    config = plan.config

    def make_trainer(tuning: Tuning, steps: int, row: str, checkpoint: LastCheckpoint) -> Trainer:
        return build_trainer(
            config,
            loggers,
            [checkpoint, *([TrainingProgress(row)] if config.trainer.enable_progress_bar else [])],
            max_steps=steps,
            accumulate_grad_batches=tuning.accumulate,
            devices=1,
            strategy="auto",
            gradient_clip_val=tuning.gradient_clip,
            log_every_n_steps=tuning.log_every_steps,
            limit_val_batches=0,
        )

    return Calibrator(
        judge,
        plan.calibrations,
        on=tuple(config.calibration.on),
        seed=config.seed,
        make_trainer=make_trainer,
        log_again=lambda curve, whole: log_again(loggers, curve, whole=whole),
        copies=copies,
        key={"accelerator": config.trainer.accelerator, "precision": config.trainer.precision},
    )


def judge_all(
    judge: Judge,
    plan: Plan,
    run_dir: Path,
    *,
    initial: Embeddings[Table],
    adapted: Embeddings[Table],
    calibrator: Calibrator,
) -> Iterator[Judged]:
    """The untouched instruct model, the tables before training, the adapted tables by every rule; those that are
    calibrated, each before it and after.

    Where no model is to be in memory (`from_files`), only the tables are carried: by the rules that are exported, by
    all if none is.
    """
    config = plan.config
    made_from = {"base": plan.base_fingerprint, "operator": plan.stages["operator"].key}
    started_from = {**made_from, "init": plain(config.init), "seed": config.seed}
    tables = {"directory": plan.adapted_fingerprint} if config.adapted else {"adapted": plan.stages["adapted"].key}
    streamed = from_files(plan)
    export_dirs = {name: run_dir / "models" / str(name) for name in config.export}
    if not streamed:
        original = Candidate(ORIGINAL, None, None, {})
        yield from judge_and_calibrate(judge, calibrator, original, export_dir=export_dirs.get(ORIGINAL))
    if not streamed and not config.adapted:
        yield judge.judge(Candidate(UNTRAINED, initial, swap, started_from))
    for name, node in config.propagation.items():
        export_dir = export_dirs.get(name)
        candidate = Candidate(str(name), adapted, build(node), {**made_from, **tables, "rule": plain(node)})
        if not streamed:
            yield from judge_and_calibrate(judge, calibrator, candidate, export_dir=export_dir)
        elif export_dir is not None or not config.export:
            yield judge.carry(candidate, export_dir=export_dir)


def judge_and_calibrate(
    judge: Judge, calibrator: Calibrator, candidate: Candidate, *, export_dir: Path | None = None
) -> Iterator[Judged]:
    """A model, and what calibrations make of it. Exports hold the calibrated model merged, and its adapter alone.

    The original is not written again: it lies where it was, and the adapters of its calibrations are for that.
    """
    base_dir = judge.instruct_dir if candidate.tables is None else export_dir
    yield judge.judge(candidate, export_dir=None if candidate.tables is None else export_dir)
    for calibrated, said in calibrator.calibrated(candidate):
        out_dir = export_dir and export_dir.with_name(calibrated.name.replace(" ", ""))
        judged = judge.judge(calibrated, export_dir=out_dir)
        if out_dir and base_dir:
            judge.export_adapter(calibrated, out_dir.with_name(f"{out_dir.name}-adapter"), base_dir=base_dir)
        yield replace(judged, calibration=said)


def from_files(plan: Plan) -> bool:
    """Whether tables go from files to files and no instruct model is loaded.

    A benchmark and a calibration need the model, and so does the repair of the end-of-turn token
    (`repair_end_of_turn`: true, false, or auto, which repairs where the weights are at most `SMALL_MODEL_BYTES`).
    """
    config = plan.config
    if plan.instruct_dir is None or plan.calibrations or (config.benchmark and "benchmark" in planned_stages(config)):
        return False
    if config.repair_end_of_turn != "auto":
        return not config.repair_end_of_turn
    return sum(path.stat().st_size for path in {*tensor_files(plan.instruct_dir).values()}) > SMALL_MODEL_BYTES


def needs(plan: Plan) -> tuple[int, int] | None:
    """(bytes of memory, bytes of disk) that carrying tables takes, known before it starts; None where models load."""
    config = plan.config
    if plan.instruct_dir is None or not config.adapted or not from_files(plan):
        return None
    rows, hidden = open_embeddings(checkpoints.resolve_adapted(config.adapted)).input.shape
    memory = propagation_bytes(hidden, chunk_rows=CHUNK_ROWS)
    instruct = open_embeddings(plan.instruct_dir)
    table_bytes = (1 if instruct.tied else 2) * rows * hidden * instruct.input.dtype.itemsize
    each = written_bytes(plan.instruct_dir, rows)
    # One rule's tables lie on disk beside its model while that is written.
    return memory, len(config.export) * each + (table_bytes if config.export else 0)


def collect(
    plan: Plan,
    run_dir: Path,
    chosen: dict[str, str],
    judged: list[Judged],
    history: list[dict[str, float]],
    corpus: Artifact,
    vocabularies: dict[str, Any],
    seconds: dict[str, float],
) -> Result:
    """Everything the run found, as one record; answers are written beside it, one file a model."""
    for found in (found for found in judged if found.records):
        write_records(run_dir / "answers" / f"{found.row.name}.jsonl", found.records)
    config = plan.config
    return Result(
        study=config.study,
        run=run_dir.name,
        choices=chosen,
        seed=config.seed,
        rows=[found.row for found in judged if found.row.scores or found.row.bits_per_byte],
        corpus=corpus.facts,
        tokenizer=vocabularies,
        training=describe_training(history, config),
        propagation={f.row.name: f.diagnostics for f in judged if f.diagnostics and not f.calibration},
        comparisons=compare(
            {found.row.name: found.found for found in judged if not found.calibration},
            baselines=(ORIGINAL, UNTRAINED),
        ),
        calibration=describe_calibrations(judged),
        samples=samples({found.row.name: found.records for found in judged}),
        environment=environment(device=str(config.trainer.accelerator)),
        artifacts={kind: {"name": stage.name, "key": stage.key} for kind, stage in plan.stages.items()},
        timings={**seconds, "peak_memory_bytes": peak_memory_bytes()},
    )


def describe_calibrations(judged: list[Judged]) -> dict[str, Any]:
    """Of each calibrated model how it was tuned, what it gained, and how it differs from its other calibrations."""
    models = {found.row.name: found.found for found in judged}
    described: dict[str, Any] = {}
    for found in (found for found in judged if found.calibration):
        before, exported = found.calibration["before"], found.diagnostics.get("export")
        others = [row for row, other in described.items() if other["before"] == before]
        apart = compare({name: models[name] for name in (found.row.name, *others)})
        described[found.row.name] = {
            **found.calibration,
            "gains": gains(models[before], found.found, models[ORIGINAL]),
            "against": [difference for difference in apart if difference["a"] == found.row.name],
            **({"export": exported} if exported else {}),
        }
    return described


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
