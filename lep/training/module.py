"""Continued pre-training of the embedding tables alone: the step between initialisation and propagation.

In: a causal language model whose every other weight stays as it is, and initialised tables for its new vocabulary.
Out: the trained tables (`EmbeddingTraining.embeddings`). Assumed: blocks of token ids of the new vocabulary, and a
head that is a plain matrix (no bias, scale or cap on the logits), which is tested before any training. A model that
scales its embeddings (Gemma) does so here too: what is trained are the rows as they are stored.
"""

# B batch, L block, U new vocabulary, D hidden

import gc
import math
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lep.embeddings import Embeddings, set_embeddings_
from lep.training.data import HeldOutBatch
from lep.training.loss import IGNORED, chunked_cross_entropy
from lep.training.tables import TrainedTable

# Keys of model configurations whose forward pass changes the logits after the head; 1 or None leaves them alone.
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
PRECISIONS = ("32-true", "bf16-mixed")
STATE_KEY = "embedding_training"
BodyDtype = Literal["auto", "float32", "bfloat16"]


class EmbeddingTraining(pl.LightningModule):
    """Trains the input and output embedding tables of a causal language model, everything else frozen.

    The model belongs to this module from here on: its body is frozen, and its own tables are let go, so that they
    take no memory; `set_embeddings_(model, module.embeddings())` makes it whole again. Tied tables
    (`embeddings.output` is None) are one table and stay so.

    learning_rate: peak, reached after `warmup_steps` optimizer steps, then a cosine down to `final_learning_rate` times
        the peak at the last step of the trainer.
    weight_decay, betas: of AdamW. 0.1 is the paper's; 0.9, 0.95 are the usual ones of language model pre-training.
    rows: "all" trains whole tables; "new" only the rows from `first_new_row` on (Extension: the rows that the old
        vocabulary did not have), with no gradient or optimizer memory for the others.
    frozen_rows: ids of tokens whose rows must not move (special tokens).
    body_dtype: of the frozen weights, set when training starts. "auto" is bfloat16 on an accelerator that has it, and
        float32 elsewhere (a CPU multiplies bfloat16 no faster). The tables train in float32 whatever it is.
    ignored_id: a token id that is never a target (padding within blocks).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        embeddings: Embeddings,
        *,
        learning_rate: float,
        warmup_steps: int = 100,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        final_learning_rate: float = 0.0,
        rows: Literal["all", "new"] = "all",
        first_new_row: int | None = None,
        frozen_rows: Sequence[int] = (),
        body_dtype: BodyDtype = "auto",
        chunk_size: int | None = None,
        ignored_id: int | None = None,
    ) -> None:
        super().__init__()
        _check_model(model)
        first_trained = _first_trained(embeddings, rows, first_new_row)
        _check_rows(frozen_rows, len(embeddings.input))
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.betas = betas
        self.final_learning_rate = final_learning_rate
        self.body_dtype: BodyDtype = body_dtype
        self.chunk_size = chunk_size
        self.ignored_id = ignored_id
        # A checkpoint holds the trained rows alone, so the frozen weights are rightly missing from it.
        self.strict_loading = False

        self._scale = _embedding_scale(model)
        self.body = _take_body(model, embeddings)
        table, head = embeddings.input, embeddings.output
        self.input = TrainedTable(table, first_trained=first_trained, frozen_rows=frozen_rows)
        self.output = (
            self.input if head is None else TrainedTable(head, first_trained=first_trained, frozen_rows=frozen_rows)
        )

        self.history: list[dict[str, float]] = []  # one row for each logged step and each validation
        self.latest: dict[str, float] = {}  # last value of every metric, for progress displays
        self.logged_as = ""  # what loggers see before the names of metrics, where a run trains more than one model
        self._tokens = 0  # trained on so far, on all devices
        self._loss_sum: Tensor | float = 0.0  # since the last log, of so many losses
        self._loss_count = 0
        self._total_steps = 0
        self._timed_tokens, self._timed_since, self._paused_at = 0, 0.0, 0.0
        self._bits: dict[str, Tensor] = {}
        self._bytes: dict[str, Tensor] = {}

    # The model

    def hidden(self, ids: Tensor, **reading: Any) -> Tensor:
        """Last hidden states [B, L, D] of the token ids [B, L], in the dtype of the body.

        reading: what else the body is told, such as position ids and a mask.
        """
        states = self.input(ids).to(self.body.dtype)
        if self._scale != 1:
            states = states * torch.tensor(self._scale, dtype=states.dtype)  # rounded as the model rounds it
        return self.body(inputs_embeds=states, use_cache=False, **reading).last_hidden_state

    def loss(
        self, inputs: Tensor, targets: Tensor, *, reduction: Literal["mean", "sum"] = "mean", **reading: Any
    ) -> Tensor:
        """Cross-entropy in nats of the targets [B, L] after the inputs [B, L]; -100 does not count."""
        hidden = self.hidden(inputs, **reading)
        return chunked_cross_entropy(
            hidden.flatten(0, 1),
            self.output.parts(),
            targets=targets.flatten(),
            chunk_size=self.chunk_size,
            reduction=reduction,
        )

    def embeddings(self) -> Embeddings:
        """The tables as they now stand: float32 copies on the CPU."""
        return Embeddings(self.input.whole(), None if self.output is self.input else self.output.whole())

    def release(self) -> None:
        """Let go of the model, its tables and the trainer's optimizer once training is over; the curve stays.

        Lightning holds them until `fit` returns, and what is done at the end of it may need their memory.
        """
        strategy = self.trainer.strategy
        strategy.optimizers, strategy.lr_scheduler_configs, strategy.model = [], [], None
        del self.body, self.input, self.output
        gc.collect()  # modules, hooks and optimizers refer to one another

    # Set-up

    def setup(self, stage: str) -> None:
        if self.trainer.precision not in PRECISIONS:
            raise ValueError(
                f"trainer.precision={self.trainer.precision} would train the tables in another type than float32, or "
                "with scaled gradients. Use 32-true with training.body_dtype=bfloat16 (leanest), or bf16-mixed."
            )
        dtype = _body_dtype(self.body_dtype, self.trainer.strategy.root_device)
        for parameter in self.parameters():
            # Parameters only: the buffers of rotary positions must stay float32.
            if not parameter.requires_grad and parameter.is_floating_point() and parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)

    def configure_optimizers(self) -> dict[str, Any]:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        fused = self.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(
            trained, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay, fused=fused
        )
        self._total_steps = total = int(self.trainer.estimated_stepping_batches)
        if total <= self.warmup_steps:
            raise ValueError(
                f"training.warmup_steps={self.warmup_steps} leaves nothing of the {total} steps of training. "
                "Lower it, or train longer."
            )
        scale = cosine_schedule(self.warmup_steps, total, final=self.final_learning_rate)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning refuses to clip for a fused optimizer under bf16-mixed for the sake of float16, which `setup` bars.
        if gradient_clip_val:
            if gradient_clip_algorithm not in (None, "norm"):
                raise ValueError(f"trainer.gradient_clip_algorithm={gradient_clip_algorithm}: only norm is supported.")
            nn.utils.clip_grad_norm_([p for p in self.parameters() if p.requires_grad], gradient_clip_val)

    def on_train_start(self) -> None:
        # Here and not earlier: Lightning warns about modules in eval mode that it finds before this hook.
        self.body.eval()
        self._timed_since = perf_counter()

    # Steps

    # Counts are kept in the steps and not in `on_train_batch_end`, which runs after checkpoints are saved.

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        targets = batch[:, 1:]
        if self.ignored_id is not None:
            targets = targets.masked_fill(targets == self.ignored_id, IGNORED)
        loss = self.loss(batch[:, :-1], targets)
        self._count(loss, targets.numel())
        return loss

    def _count(self, loss: Tensor, num_tokens: int, *, losses: int = 1) -> None:
        """Take a batch of this process into the loss curve; its loss is the sum of so many."""
        self._loss_sum = self._loss_sum + loss.detach()
        self._loss_count += losses
        num_tokens *= self.trainer.world_size
        self._tokens += num_tokens
        self._timed_tokens += num_tokens

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for table in self._tables():
            table.zero_frozen_gradient_()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        for table in self._tables():
            table.restore_frozen_rows_()
        step = self.trainer.global_step + 1
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if step == self._total_steps or (every and step % every == 0):
            self._log_training(step)

    def _log_training(self, step: int) -> None:
        """Log the mean loss and the speed since the last time. The only place that waits for the device."""
        loss = self._mean_loss_sum() / self._loss_count
        values = {
            "train/loss": loss,
            "train/learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
            "train/tokens": self._tokens,
            "train/tokens_per_second": self._timed_tokens / (perf_counter() - self._timed_since),
        }
        self._loss_sum, self._loss_count = 0.0, 0
        self._timed_tokens, self._timed_since = 0, perf_counter()
        self._record(step, values)
        # Straight to the loggers: `self.log` costs a little on every step, and this happens on few.
        for logger in self.trainer.loggers:
            logger.log_metrics({self.logged_as + name: value for name, value in values.items()}, step=step)

    def _mean_loss_sum(self) -> float:
        """The sum of losses since the last log, its mean over all processes. All of them must call."""
        if self.trainer.world_size == 1:
            return float(self._loss_sum)
        loss_sum = torch.tensor(float(self._loss_sum), dtype=torch.float64, device=self.device)
        return float(self.trainer.strategy.reduce(loss_sum, reduce_op="mean"))

    def on_validation_start(self) -> None:
        self._paused_at = perf_counter()

    def on_validation_end(self) -> None:
        self._timed_since += perf_counter() - self._paused_at

    def on_validation_epoch_start(self) -> None:
        self._bits, self._bytes = {}, {}

    def validation_step(self, batch: HeldOutBatch, batch_idx: int) -> None:
        bits = self.loss(batch.inputs, batch.targets, reduction="sum").double() / math.log(2)
        zero = torch.zeros_like(bits)
        self._bits[batch.language] = self._bits.get(batch.language, zero) + bits
        self._bytes[batch.language] = self._bytes.get(batch.language, zero) + batch.num_bytes.sum()

    def on_validation_epoch_end(self) -> None:
        """Log bits per byte of each language, and their plain mean."""
        if not self._bits:
            return
        totals = torch.stack([torch.stack(list(self._bits.values())), torch.stack(list(self._bytes.values()))])
        bits, num_bytes = self.trainer.strategy.reduce(totals, reduce_op="sum")
        rates = (bits / num_bytes).tolist()
        values = {f"val/bits_per_byte/{language}": rate for language, rate in zip(self._bits, rates, strict=True)}
        values["val/bits_per_byte"] = sum(rates) / len(rates)
        self.log_dict(values, sync_dist=True)  # equal on every rank already; Lightning warns unless told
        if not self.trainer.sanity_checking:
            self._record(self.trainer.global_step, values)

    def _record(self, step: int, values: Mapping[str, float]) -> None:
        self.latest.update(values)
        self.history.append({"step": step, **values})

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained rows alone, and the counts that the loss curve needs to go on unbroken."""
        trained = self._trained_names()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint[STATE_KEY] = {
            "history": self.history,
            "tokens": self._tokens,
            "loss_sum": self._mean_loss_sum(),
            "loss_count": self._loss_count,
            "accumulate": self.trainer.accumulate_grad_batches,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint, whatever the number of processes that made it.

        ValueError if its tables are not those that this run trains.
        """
        own = self.state_dict()
        for name in sorted(self._trained_names()):  # the same table is named first every time
            found = checkpoint["state_dict"].get(name)
            shape = None if found is None else tuple(found.shape)
            if shape != tuple(own[name].shape):
                raise ValueError(
                    f"The checkpoint holds {name} as {shape}, this run trains it as {tuple(own[name].shape)}: it was "
                    "made with another vocabulary, model or training.rows. Resume with the old ones or start anew."
                )
        state = checkpoint[STATE_KEY]
        self.history = list(state["history"])
        self._tokens = state["tokens"]
        own_batches, its_batches = self.trainer.accumulate_grad_batches, state["accumulate"]
        self._loss_sum = state["loss_sum"] * own_batches / its_batches
        self._loss_count = state["loss_count"] * own_batches // its_batches
        if own_batches != its_batches:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            rescale_batches_(progress, own_batches, its_batches)

    def _trained_names(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _tables(self) -> list[TrainedTable]:
        return [self.input] if self.output is self.input else [self.input, self.output]


def rescale_batches_(progress: Mapping[str, Any], own: int, its: int) -> None:
    """Have Lightning's count of batches, saved after a whole step of `its` batches, count `own` batches for each."""
    for counts in (progress["total"], progress["current"]):
        under_way = counts["ready"] - counts["completed"]  # the batch whose end saved the checkpoint
        ready = counts["ready"] * own // its
        counts.update(ready=ready, started=ready, processed=ready, completed=ready - under_way)


def cosine_schedule(warmup_steps: int, total_steps: int, *, final: float = 0.0) -> Any:
    """Learning rate at a step, as a share of the peak: a straight warm-up, then half a cosine down to `final`."""

    def scale(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return scale


def _body_dtype(name: BodyDtype, device: torch.device) -> torch.dtype:
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if name == "bfloat16" or (name == "auto" and has_bfloat16) else torch.float32


def _first_trained(embeddings: Embeddings, rows: str, first_new_row: int | None) -> int:
    if rows == "all":
        return 0
    if rows != "new":
        raise ValueError(f"training.rows={rows} is neither all nor new.")
    size = len(embeddings.input)
    if first_new_row is None or not 0 < first_new_row < size:
        raise ValueError(
            f"training.rows=new needs a vocabulary whose new tokens follow the old ones, as tokenizer=extension makes "
            f"it; here the first new row is {first_new_row} of {size}. Use training.rows=all."
        )
    return first_new_row


def _check_rows(rows: Sequence[int], size: int) -> None:
    outside = [row for row in rows if not 0 <= row < size]
    if outside:
        raise ValueError(f"frozen_rows={outside} are no ids of a vocabulary of {size} tokens.")


def _check_model(model: PreTrainedModel) -> None:
    """ValueError unless the model's logits are its output table times the body's states of its (scaled) input table."""
    config = model.config.get_text_config()
    changes = {key: value for key in LOGIT_CHANGES if (value := getattr(config, key, None)) not in (None, 1)}
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if getattr(head, "bias", None) is not None:
        changes["lm_head.bias"] = True
    if type(head) is not nn.Linear or not isinstance(table, nn.Embedding):
        changes["tables"] = f"{type(table).__name__}, {type(head).__name__}"
    if changes or not _head_is_plain(model):
        raise ValueError(
            f"The model {model.config.model_type} changes its embeddings or logits in ways that training them alone "
            f"does not know ({changes or 'a probe of 8 tokens gave other logits'}). Choose a model with plain tables."
        )


@torch.no_grad()
def _head_is_plain(model: PreTrainedModel) -> bool:
    """Whether the body on looked-up and scaled rows, times the output table, gives the logits of the model itself."""
    was_training = model.training
    model.eval()
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(table, nn.Embedding) and isinstance(head, nn.Linear)
    ids = torch.arange(min(8, table.num_embeddings), device=table.weight.device)[None]
    rows = table.weight[ids] * torch.tensor(_embedding_scale(model), dtype=table.weight.dtype)
    states = model.get_decoder()(inputs_embeds=rows, use_cache=False).last_hidden_state
    expected = model(ids, use_cache=False).logits
    model.train(was_training)
    return torch.allclose(states @ head.weight.T, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


def _embedding_scale(model: PreTrainedModel) -> float:
    """What the model's lookup multiplies a row by before the body sees it: sqrt(D) in Gemma 3, elsewhere 1."""
    return float(getattr(model.get_input_embeddings(), "embed_scale", 1.0))


def _take_body(model: PreTrainedModel, embeddings: Embeddings) -> PreTrainedModel:
    """The model without its head, frozen; tables of one row stand where its own were, which are let go."""
    set_embeddings_(model, embeddings.map(lambda table: table[:1]))
    model.requires_grad_(False)
    return model.get_decoder()
