"""What happens at the end of training: the trained tables are published, propagated by every rule, and benchmarked.

The work is in plain functions, which a run without training (`adapted=DIR`, or a cached artifact) calls directly; the
Lightning callback only says when.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lep.artifacts import Store
from lep.benchmark.asking import Journal, run_suite
from lep.benchmark.bits_per_byte import bits_per_byte, characters_per_token
from lep.benchmark.metrics import Estimate
from lep.benchmark.records import Record, SuiteResult, read_records, together, write_records
from lep.benchmark.scoring import end_tokens, generate, output_table, render_chat
from lep.calibration.adapter import merge_, merged_weights, read_adapter, write_adapter
from lep.chat import end_of_turn
from lep.checkpoints import load_model
from lep.embeddings import TABLES_FILE, Embeddings, embeddings_of, open_embeddings, open_tables, set_embeddings_
from lep.export import export_model
from lep.export.padding import pad_tables
from lep.export.progress import busy, bytes_progress
from lep.propagation import Rule, propagate
from lep.propagation.audit import extreme_rows
from lep.propagation.end_of_turn import margins, restore_end_of_turn
from lep.propagation.swap import swap
from lep.results import BITS, Row, Score
from lep.shards import Table
from lep.training import EmbeddingTraining
from lep.vocabulary import SubtokenOperator, read_vocabulary

# Conversations that show where a turn ends: of each language, and how long.
PROBES, PROBE_CHARACTERS, PROBE_TOKENS = 100, 300, 64
PROBES_AT_ONCE = 32
NOT_ASKED = "repair_end_of_turn=false"
NOT_REPAIRED = "no model was in memory to see where its answers end; repair_end_of_turn=true loads it"
Probe = tuple[str, str]  # what the user says, what the original instruct model answers


class Suite(Protocol):
    """A benchmark: scores by task and language, what else there is to say, and a record of every item."""

    def __call__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, progress: str | None = None
    ) -> Any: ...


@dataclass(frozen=True)
class Candidate:
    """A model to be judged: the instruct model's body with these tables; `rule` says how to carry them into it."""

    name: str
    tables: Embeddings[Table] | None  # None: the instruct model as it is
    rule: Rule | None
    key: dict[str, Any]  # what the tables and the rule were made from
    adapter: Path | None = None  # what a calibration changed, laid over the model


def calibrated_name(before: str, method: str) -> str:
    """How the table calls a model after it was calibrated."""
    return f"{before} + {method}"


@dataclass(frozen=True)
class Judged:
    """A row of the table with what stands behind it.

    estimates: by which models are compared where the mean of records is not what is compared. calibration: how the
    model was calibrated, if it was.
    """

    row: Row
    diagnostics: dict[str, Any]
    records: list[Record]
    estimates: dict[str, Estimate] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)

    @property
    def found(self) -> SuiteResult:
        """What all suites found."""
        return SuiteResult(self.row.scores, self.row.details, self.records, self.estimates)


@dataclass
class Judge:
    """Carries tables into the instruct model and benchmarks what comes out. One instruct model is in memory at a time.

    context: characters of a window for bits per byte. kept_rows: (new id, instruct id) of the rows that the instruct
    model keeps. repair: whether the row of the end-of-turn token is repaired. key: what all rows depend on (instruct
    model, suites, held-out texts).
    """

    store: Store
    instruct_dir: Path
    instruct_tokenizer: PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast
    kept_rows: Sequence[tuple[int, int]]
    base: Embeddings[Table]
    operator: SubtokenOperator
    suites: Mapping[str, Suite]
    held_out: Mapping[str, Sequence[str]]
    context: int
    key: Mapping[str, Any]
    repair: bool = True
    device: str = "cpu"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    pad_to: int = 1  # rows of an exported vocabulary are a multiple of this
    _reference: tuple[list[Probe], Tensor] | None = None

    def judge(self, candidate: Candidate, *, export_dir: Path | None = None) -> Judged:
        """The row of one model, from the store if it was judged before. Writes a model directory if asked."""
        inputs = {"judge": dict(self.key), "model": candidate.name, "made from": candidate.key}
        artifact = self.store.get_or_resume(
            "scores", candidate.name, inputs, lambda out, bench: self._judge_into(candidate, out, bench)
        )
        judged = read_judged(artifact.path)
        if export_dir is None:
            return judged
        return replace(judged, diagnostics=judged.diagnostics | {"export": self._export(candidate, export_dir)})

    def _judge_into(self, candidate: Candidate, out_dir: Path, bench: Path) -> None:
        started = time.monotonic()
        model, tokenizer, diagnostics = self.model_of(candidate)
        found = together(
            run_suite(suite, model, tokenizer, journal=Journal(bench / name), progress=f"{candidate.name}: {name}")
            for name, suite in self.suites.items()
        )
        texts = {
            language: bits_per_byte(model, tokenizer, texts, context=self.context)
            for language, texts in self.held_out.items()
        }
        bits = {language: of.score for language, of in texts.items()}
        characters = {language: characters_per_token(tokenizer, texts) for language, texts in self.held_out.items()}
        details = found.details | {"seconds": time.monotonic() - started}
        write_judged(
            out_dir,
            Judged(
                Row(candidate.name, found.scores, characters, bits, details),
                diagnostics,
                found.records,
                found.estimates | {f"{BITS}/{language}": of.estimate for language, of in texts.items()},
            ),
        )

    def original(self) -> PreTrainedModel:
        """The instruct model as it is."""
        return load_model(self.instruct_dir, device=self.device)

    def model_of(self, candidate: Candidate) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, dict[str, Any]]:
        """The instruct model with the candidate's tables in place, its tokenizer, and what propagation had to say."""
        model, tokenizer, diagnostics = self.original(), self.instruct_tokenizer, {}
        if candidate.tables is not None:
            tokenizer, diagnostics = self.tokenizer, self._carry_into_(model, candidate)
        if candidate.adapter is not None:
            merge_(model, read_adapter(candidate.adapter), stored=open_embeddings(self.instruct_dir).input.dtype)
        return model, tokenizer, diagnostics

    def _carry_into_(self, model: PreTrainedModel, candidate: Candidate) -> dict[str, Any]:
        assert candidate.tables is not None, "the instruct model as it is has nothing to propagate"
        found, diagnostics = self._propagate(candidate)
        tables = found.in_memory()
        diagnostics = audited(diagnostics, tables, candidate.tables)
        vocabulary = read_vocabulary(self.tokenizer)
        if vocabulary.unassigned:
            tables = pad_tables(tables, len(vocabulary), 1, unused=vocabulary.unassigned).in_memory()
        probes, reference = self._probes(model) if self.repair else ([], torch.empty(0))
        set_embeddings_(model, tables)
        if probes:
            stored = tables.input.dtype  # what an export keeps of the row
            diagnostics["end of turn"] = self._restore_end_of_turn(model, probes, reference, stored)
        elif not self.repair:
            diagnostics["end of turn"] = {"changed": False, "unchanged_because": NOT_ASKED}
        return diagnostics

    def carry(self, candidate: Candidate, *, export_dir: Path | None = None) -> Judged:
        """Propagates from files to files and judges nothing: no model is in memory, and no table whole.

        What needs a model is left out and said to be: scores, and the repair of the end-of-turn token.
        """
        with busy(f"fitting {candidate.name}"):
            tables, diagnostics = self._propagate(candidate)
        diagnostics["end of turn"] = {"changed": False, "unchanged_because": NOT_REPAIRED}
        if export_dir is None:
            return Judged(Row(candidate.name), diagnostics, [])
        export_dir.parent.mkdir(parents=True, exist_ok=True)
        folder = export_dir.with_name(f".{export_dir.name}.carried")
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        folder.mkdir()
        try:
            # Computed once and kept on disk: they are read for the audit, for the padding and for the checkpoint.
            with bytes_progress(f"computing {candidate.name}", tables.nbytes) as advance:
                tables.save(folder / TABLES_FILE, advance=advance)
            tables = open_tables(folder / TABLES_FILE)
            assert candidate.tables is not None, "only tables are carried"
            diagnostics = audited(diagnostics, tables, candidate.tables)
            recipe = {**self.recipe, "propagation": candidate.name}
            diagnostics["export"] = export_model(
                self.instruct_dir, tables, self.tokenizer, export_dir, recipe=recipe, pad_to=self.pad_to
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return Judged(Row(candidate.name), diagnostics, [])

    def _propagate(self, candidate: Candidate) -> tuple[Embeddings[Table], dict[str, Any]]:
        assert candidate.tables is not None, "the instruct model as it is has nothing to propagate"
        instruct = open_embeddings(self.instruct_dir)
        return propagate(
            candidate.rule or swap, candidate.tables, self.base, instruct, self.operator, kept_rows=self.kept_rows
        )

    def _probes(self, original: PreTrainedModel) -> tuple[list[Probe], Tensor]:
        """What the original instruct model answers to held-out text, where it ends its turn, and its margins there.

        Made once.
        """
        if self._reference is None:
            prompts = [opening(text) for texts in self.held_out.values() for text in texts[:PROBES]]
            probes = ended_answers(original, self.instruct_tokenizer, prompts)
            at_ends = turn_end_margins(original, self.instruct_tokenizer, probes) if probes else torch.empty(0)
            self._reference = probes, at_ends
        return self._reference

    def _restore_end_of_turn(
        self, model: PreTrainedModel, probes: Sequence[Probe], reference: Tensor, stored: torch.dtype
    ) -> dict[str, Any]:
        token = end_of_turn(self.tokenizer)
        assert token is not None, "there are no probes without it"
        ends, others = turn_end_states(model, self.tokenizer, probes)
        head = output_table(model).weight
        tied = head is model.get_input_embeddings().weight
        row, report = restore_end_of_turn(ends, others, head, token=token, original_margins=reference, tied=tied)
        with torch.no_grad():
            head[token] = row.to(stored).to(head)
        return report

    def _export(self, candidate: Candidate, out_dir: Path) -> dict[str, Any]:
        """Writes the model directory; gives what its checks saw."""
        model, tokenizer, _ = self.model_of(candidate)
        recipe = {**self.recipe, "propagation": candidate.name}
        return export_model(
            self.instruct_dir,
            embeddings_of(model),
            tokenizer,
            out_dir,
            body=merged_weights(model, read_adapter(candidate.adapter)) if candidate.adapter else {},
            recipe=recipe,
            pad_to=self.pad_to,
            reference=model,
        )

    def export_adapter(self, candidate: Candidate, out_dir: Path, *, base_dir: Path) -> None:
        """What a calibration changed as an adapter for the model that was calibrated, which lies in `base_dir`.

        Its tables are padded as those of an exported model are; the original's have the rows that they had.
        """
        assert candidate.adapter is not None, "nothing was calibrated"
        model, tokenizer, _ = self.model_of(replace(candidate, adapter=None))
        adapter = read_adapter(candidate.adapter)
        if candidate.tables is not None:
            vocabulary, tuned = read_vocabulary(tokenizer), adapter.tables(embeddings_of(model))
            padded = pad_tables(tuned, len(vocabulary), self.pad_to, unused=vocabulary.unassigned).in_memory()
            adapter = replace(
                adapter,
                input=None if adapter.input is None else padded.input,
                output=None if adapter.output is None else padded.output,
            )
        write_adapter(out_dir, adapter, model, base=str(base_dir.resolve()))


def audited(diagnostics: dict[str, Any], result: Embeddings[Table], adapted: Embeddings[Table]) -> dict[str, Any]:
    """The diagnostics of each table with the rows that came out extreme."""
    found = {"input": extreme_rows(result.input, adapted.input)}
    if result.output is not None and adapted.output is not None:
        found["output"] = extreme_rows(result.output, adapted.output)
    return diagnostics | {side: diagnostics[side] | facts for side, facts in found.items()}


def write_judged(directory: Path, judged: Judged) -> None:
    """What `read_judged` reads."""
    plain = {
        "row": asdict(judged.row),
        "diagnostics": judged.diagnostics,
        "estimates": {key: {"value": of.value, "n": of.n} for key, of in judged.estimates.items()},
    }
    (directory / "row.json").write_text(json.dumps(plain, ensure_ascii=False, indent=1), encoding="utf-8")
    write_records(directory / "records.jsonl", judged.records)
    save_file({key: of.replicates for key, of in judged.estimates.items()}, directory / "replicates.safetensors")


def read_judged(directory: Path) -> Judged:
    """What `Judge` left in the store."""
    found = json.loads((directory / "row.json").read_text(encoding="utf-8"))
    row = found["row"]
    row["scores"] = {key: Score(**score) for key, score in row["scores"].items()}
    row["bits_per_byte"] = {key: Score(**score) for key, score in row["bits_per_byte"].items()}
    replicates = load_file(directory / "replicates.safetensors")
    estimates = {key: Estimate(replicates=replicates[key], **of) for key, of in found["estimates"].items()}
    return Judged(Row(**row), found["diagnostics"], read_records(directory / "records.jsonl"), estimates)


def opening(text: str) -> str:
    """A text without its last line, as something to say to a chat model."""
    return (text.strip().rpartition("\n")[0] or text.strip())[:PROBE_CHARACTERS]


def ended_answers(original: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[Probe]:
    """(prompt, answer) pairs of the model's own, those only in which it ended its turn by itself."""
    turn = end_of_turn(tokenizer)
    if turn is None:
        return []
    rendered = [render_chat(tokenizer, prompt) for prompt in prompts]
    answers = generate(
        original, tokenizer, rendered, max_new_tokens=PROBE_TOKENS, stop_ids=end_tokens(tokenizer), chat=True
    )
    pairs = zip(prompts, answers, strict=True)
    return [(prompt, answer.text) for prompt, answer in pairs if answer.stopped == turn and answer.text.strip()]


def turn_end_margins(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, probes: Sequence[Probe]) -> Tensor:
    """How far the end-of-turn token stands above its best rival after each answer, in logits: float64 [N]."""
    token = end_of_turn(tokenizer)
    assert token is not None, "there are no probes without it"
    ends, _ = turn_end_states(model, tokenizer, probes)
    return margins(ends, output_table(model).weight, token)


@torch.inference_mode()
def turn_end_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, probes: Sequence[Probe]
) -> tuple[Tensor, Tensor]:
    """Last hidden states where the answers of (prompt, answer) pairs end [N, D], and inside the answers [M, D]."""
    opened = [render_chat(tokenizer, prompt) for prompt, _ in probes]
    whole = [text + answer for text, (_, answer) in zip(opened, probes, strict=True)]
    starts = [len(ids) for ids in tokenizer(opened, add_special_tokens=False)["input_ids"]]
    rows = [torch.tensor(ids) for ids in tokenizer(whole, add_special_tokens=False)["input_ids"]]
    ends, others = [], []
    for first in range(0, len(rows), PROBES_AT_ONCE):
        batch = rows[first : first + PROBES_AT_ONCE]
        ids = pad_sequence(batch, batch_first=True).to(model.device)  # what is read does not see what stands after it
        states_BLD = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.float().cpu()
        for states, row, start in zip(states_BLD, batch, starts[first:], strict=False):
            ends.append(states[len(row) - 1])
            others.append(states[start - 1 : len(row) - 1])
    return torch.stack(ends), torch.cat(others)


class PropagateAndBenchmark(pl.Callback):
    """At the end of training, on rank zero and from memory: publish the tables, then hand them to `judge`.

    Publishing comes first, so that a benchmark that fails costs no training; then what only training needed goes.
    """

    def __init__(
        self, publish: Callable[[Embeddings, list[dict[str, float]]], None], judge: Callable[[Embeddings], None]
    ):
        self._publish = publish
        self._judge = judge

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            assert isinstance(pl_module, EmbeddingTraining)
            adapted = pl_module.embeddings()
            self._publish(adapted, pl_module.history)
            pl_module.release()
            self._judge(adapted)
