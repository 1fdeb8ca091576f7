"""After propagation: models tuned by what the group `calibration` names, each step an artifact of its own.

In: a candidate of `callbacks.Judge`. Out: the same candidate with an adapter laid over it, to be judged like any other.
The original model's answers and the ratings of them are made once, whatever is tuned on them; what is left half-done
by a killed process lies in the store's folder `unfinished` under the key of what it was to be, and is gone on with.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from transformers import PreTrainedTokenizerFast

from lep import checkpoints
from lep.artifacts import Artifact
from lep.benchmark.asking import Journal
from lep.calibration.adapter import write_adapter
from lep.calibration.answering import (
    Rating,
    SelfAnswers,
    own_answers,
    questions_of,
    rate,
    read_answers,
    vllm_answers,
    write_answers,
)
from lep.calibration.conversations import ChatFiles, Conversation, ConversationSource
from lep.calibration.filtering import Answered, keep, keep_rated
from lep.calibration.method import Calibration, named_in_full
from lep.calibration.packing import pack
from lep.calibration.rendering import render
from lep.calibration.tuning import InstructionTuning, Tuning, TuningData, check_modules
from lep.callbacks import Candidate, Judge, calibrated_name
from lep.shards import tensor_files
from lep.training import LastCheckpoint
from lep.training.module import STATE_KEY

COPIES_FILE, ANSWERS_FILE = "copies.jsonl", "answers.jsonl"
RATINGS_FILE, HISTORY_FILE = "ratings.json", "history.json"
Read = Callable[[Counter[str]], Iterator[Conversation]]  # what a source leaves out is counted there, by reason
LogAgain = Callable[[list[dict[str, float]], bool], None]  # the curve, and whether it was recorded whole
MakeTrainer = Callable[[Tuning, int, str, LastCheckpoint], pl.Trainer]


def find_inputs(method: Calibration, instruct_dir: Path) -> None:
    """ValueError, before any work, where files or the model that rates are missing, or LoRA has nowhere to go."""
    method.instructions.fingerprint()
    if method.copies is not None:
        method.copies.fingerprint()
    if method.answers is not None and method.answers.rates:
        _rating_model(method.answers.rating)
    weights = [name.removesuffix(".weight") for name in tensor_files(instruct_dir) if ".layers." in name]
    check_modules(method.tuning, [name for name in weights if not name.endswith(("norm", ".bias"))])


def _rating_model(rating: Rating | None) -> Path:
    assert rating is not None and rating.model is not None, "somebody rates"
    return checkpoints.resolve(rating.model, rating.revision, key="answers.rating.model")


@dataclass
class Calibrator:
    """Tunes candidates of a judge.

    methods: by name. on: names of the candidates they apply to. key: what the tuned weights depend on beside data,
    model and tuning (seed, trainer). make_trainer: of a tuning, its steps, the row's name and its checkpoint.
    log_again: gives loggers a curve that an earlier process recorded, whole or up to where it was killed. copies: the
    copy tasks (`COPIES_FILE`) of each method that has any.
    """

    judge: Judge
    methods: Mapping[str, Calibration]
    on: Sequence[str]
    seed: int
    make_trainer: MakeTrainer
    log_again: LogAgain
    copies: Mapping[str, Artifact] = field(default_factory=dict)
    key: Mapping[str, Any] = field(default_factory=dict)

    def calibrated(self, candidate: Candidate) -> Iterator[tuple[Candidate, dict[str, Any]]]:
        """The candidate tuned by every method that applies to it, with what is to be said of each.

        The original model has nothing to learn from its own answers, so it is left out there.
        """
        for name, method in self.methods.items() if candidate.name in self.on else ():
            if candidate.tables is not None or method.answers is None:
                with named_in_full(name):
                    found = self._calibrated(candidate, name, method)
                yield found

    def _calibrated(self, candidate: Candidate, name: str, method: Calibration) -> tuple[Candidate, dict[str, Any]]:
        row = calibrated_name(candidate.name, name)
        read, learnt_from, counts = self._conversations(name, method)
        inputs = {**self._made_from(candidate, method), "learnt from": learnt_from}
        artifact = self.judge.store.get_or_resume(
            "tuned", row, inputs, lambda out, bench: self._tune_into(out, bench, candidate, row, method.tuning, read)
        )
        key = {"before": candidate.key, "tuned": artifact.key}
        curve = json.loads((artifact.path / HISTORY_FILE).read_text(encoding="utf-8"))
        if artifact.cached:
            self.log_again(_named(curve, row), True)
        said = {"before": candidate.name, "by": name, **counts, **artifact.facts, "curve": curve}
        return replace(candidate, name=row, key=key, adapter=artifact.path), said

    def _made_from(self, candidate: Candidate, method: Calibration) -> dict[str, Any]:
        tuning = asdict(method.tuning)
        for unseen in ("log_every_steps", "checkpoint_every_steps"):
            del tuning[unseen]
        # On held-out texts the end-of-turn token of a propagated model is repaired.
        judged = {name: self.judge.key[name] for name in ("instruct", "held_out", "measured", "repair")}
        return {**judged, **self.key, "before": candidate.key, "tuning": tuning, "seed": self.seed}

    # What is learnt from

    def _conversations(self, name: str, method: Calibration) -> tuple[Read, Any, dict[str, Any]]:
        """How to read them, what they are made from (for a key), and the counts of what was kept of the answers."""
        copies = self.copies.get(name)
        made_from: dict[str, Any] = {"copies": copies and copies.key}
        said = {} if copies is None else {"copies": copies.facts}

        def read_copies() -> Iterable[Conversation]:
            return () if copies is None else ChatFiles([str(copies.path / COPIES_FILE)]).read()

        if method.answers is None:
            made_from["instructions"] = method.instructions.fingerprint()
            return lambda dropped: chain(method.instructions.read(dropped), read_copies()), made_from, said
        kept, answers_key, counts = self._own_answers(method.instructions, method.answers)
        made_from["answers"] = answers_key
        own = [found.conversation for found in kept]
        return lambda _: chain(own, read_copies()), made_from, said | {"answers": counts}

    def _own_answers(
        self, instructions: ConversationSource, settings: SelfAnswers
    ) -> tuple[list[Answered], dict[str, Any], dict[str, Any]]:
        inputs = {
            "instruct": self.judge.key["instruct"],
            "instructions": instructions.fingerprint(),
            "questions": settings.questions,
            "max_new_tokens": settings.max_new_tokens,
            "engine": "vllm" if settings.uses_vllm(self.judge.device) else "transformers",
            "device": self.judge.device.split(":")[0],  # near ties fall otherwise in another precision
        }
        artifact = self.judge.store.get_or_resume(
            "answers", "original", inputs, lambda out, bench: self._ask_into(out, bench, instructions, settings)
        )
        answers = read_answers(artifact.path / ANSWERS_FILE)
        kept, reasons = keep(answers, settings.filters)
        made_from: dict[str, Any] = {"answers": artifact.key, "filters": asdict(settings.filters)}
        facts = artifact.facts
        if kept and settings.rating is not None and settings.rates:
            rated = self._rate(kept, made_from, settings.rating)
            ratings = json.loads((rated.path / RATINGS_FILE).read_text(encoding="utf-8"))
            kept, below = keep_rated(kept, ratings, threshold=settings.rating.threshold)
            made_from |= {"rated": rated.key, "threshold": settings.rating.threshold}
            reasons, facts = reasons | below, facts | rated.facts
        if not kept:
            raise ValueError(
                f"calibration: none of {len(answers)} answers of the original model was kept ({reasons}). Loosen "
                "answers.filters or lower answers.rating.threshold; raise answers.max_new_tokens if they did not stop"
            )
        return kept, made_from, facts | reasons

    def _ask_into(
        self, out: Path, bench: Path, instructions: ConversationSource, settings: SelfAnswers
    ) -> dict[str, Any]:
        tokenizer, directory = self.judge.instruct_tokenizer, self.judge.instruct_dir
        room = checkpoints.context_length(directory) - settings.max_new_tokens
        if room < 1:
            raise ValueError(
                f"answers.max_new_tokens={settings.max_new_tokens} leaves no room for a question in the model's "
                f"{checkpoints.context_length(directory)} positions. Lower it"
            )
        dropped = Counter[str]()
        conversations = instructions.read(dropped)
        questions, too_long = questions_of(conversations, tokenizer, max_tokens=room, limit=settings.questions)
        started = time.monotonic()
        journal = Journal(bench / "journal")
        how: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "journal": journal}
        if settings.uses_vllm(self.judge.device):
            answers = vllm_answers(directory, tokenizer, questions, **how)
        else:
            answers = own_answers(self.judge.original(), tokenizer, questions, progress="original: own answers", **how)
        write_answers(out / ANSWERS_FILE, answers)
        seconds = time.monotonic() - started
        return {"left out": dict(dropped), "asked": len(questions), "questions too long": too_long, "seconds": seconds}

    def _rate(self, answers: Sequence[Answered], made_from: Mapping[str, Any], rating: Rating) -> Artifact:
        """Ratings of the answers that passed the filters, in their order."""
        directory = _rating_model(rating)
        inputs = {**made_from, "judge": checkpoints.fingerprint(directory), "request": rating.request}

        def into(out: Path, bench: Path) -> dict[str, Any]:
            tokenizer = checkpoints.load_tokenizer(directory, key="answers.rating.model")
            model = checkpoints.load_model(directory, device=self.judge.device)
            journal = Journal(bench / "journal")
            found = rate(model, tokenizer, answers, request=rating.request, journal=journal, progress="rating answers")
            (out / RATINGS_FILE).write_text(json.dumps(found), encoding="utf-8")
            return {"ratings": {str(value): found.count(value) for value in sorted({*found})}}

        return self.judge.store.get_or_resume("ratings", "original", inputs, into)

    # Tuning

    def _tune_into(
        self,
        out: Path,
        bench: Path,
        candidate: Candidate,
        row: str,
        tuning: Tuning,
        read: Read,
    ) -> dict[str, Any]:
        started = time.monotonic()
        model, tokenizer, _ = self.judge.model_of(candidate)
        block_size = min(tuning.block_size, checkpoints.context_length(self.judge.instruct_dir))
        left_out = Counter[str]()
        rendered, counts = render(read(left_out), tokenizer, max_tokens=block_size)
        blocks = pack(rendered, block_size, _pad_id(tokenizer))
        steps = tuning.steps(len(blocks))
        torch.manual_seed(self.seed)
        module = InstructionTuning(model, tuning, steps=steps)
        module.logged_as = _prefix(row)
        if steps:
            checkpoint = LastCheckpoint(bench, every_n_steps=tuning.checkpoint_every_steps)
            data = TuningData(blocks, batch_size=tuning.blocks_at_once, seed=self.seed)
            if checkpoint.path is not None:
                state = torch.load(checkpoint.path, map_location="cpu", weights_only=True)
                self.log_again(_named(state[STATE_KEY]["history"], row), False)
            self.make_trainer(tuning, steps, row, checkpoint).fit(module, data, ckpt_path=checkpoint.path)
        write_adapter(out, module.tuned(), model, base=str(self.judge.instruct_dir))
        (out / HISTORY_FILE).write_text(json.dumps(module.history), encoding="utf-8")
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        if steps:
            module.release()  # what comes next loads a model of its own
        return {
            "left out": dict(left_out),
            "conversations": counts.facts(),
            "blocks": len(blocks),
            "block_size": block_size,
            "filled": blocks.filled,
            "steps": steps,
            "trained_parameters": trained,
            "seconds": time.monotonic() - started,
        }


def _prefix(row: str) -> str:
    """What the loggers' names of a row's curve begin with."""
    return f"{row}/"


def _named(history: list[dict[str, float]], row: str) -> list[dict[str, float]]:
    """A recorded curve under the names that the loggers know it by."""
    return [{name if name == "step" else _prefix(row) + name: value for name, value in at.items()} for at in history]


def _pad_id(tokenizer: PreTrainedTokenizerFast) -> int:
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(i, int)), 0)
