"""What a run costs, foretold from shapes and settings alone: floating point operations, memory by kind, disk.

In: the shape of a model, sizes of vocabularies, a batch. Out: FLOPs and bytes; no file, device or config is looked at.
Every formula stands in docs/cost.md with its reason; tests hold them against counted operations and measured memory.
FLOPs are those of matrix products (two for each multiplication and addition), attention is counted over the whole
square of a block. Assumed: the Llama-like layers of `FAMILIES`, no checkpointing of activations.
"""

# U vocabulary, R trained rows of a table, D hidden, N tokens at once, L block length

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

WIDE = 4  # bytes of a float32: trained tables, their gradients and moments, the statistics of norms
MOMENTS = 2  # that AdamW keeps of a trained number, in float32
# Measured on an H100 (benchmarks/train.py): from which hidden size on a GPU is held up by products and no longer by
# memory, and what starting the kernels of one layer takes, there and back, with two norms.
WIDE_ENOUGH, LAYER_SECONDS = 2400, 0.0029
SLIDING = "sliding_attention"  # what transformers calls a layer that looks back over a window
# What parts a family's layers from Llama's: biases of the query, key and value maps; norms of every head's queries and
# keys; norms before and behind both halves of a layer.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"biases": True},
    "qwen3": {"head_norms": True},
    "gemma3_text": {"head_norms": True, "norms": 4},
}
# In float32 the low-rank factors of maps that read the same numbers keep them once; in bfloat16 each casts its own.
# What `o_proj` reads is kept by the attention.
INPUTS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "before attention"),
    **dict.fromkeys(("gate_proj", "up_proj"), "before the inner maps"),
    "down_proj": "inner",
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a causal language model.

    vocabulary: rows of its tables. tables: 1 where they are tied, else 2. window: positions that `windowed` of the
    layers look back at most.
    """

    vocabulary: int
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    tables: int
    biases: bool = False
    head_norms: bool = False
    norms: int = 2  # over the hidden size, in a layer
    window: int = 0
    windowed: int = 0

    @classmethod
    def of(cls, config: Any) -> Shape:
        """The shape that a model's config (its text part) tells. ValueError for a family whose layers are not known."""
        if config.model_type not in FAMILIES:
            raise ValueError(
                f"model_type={config.model_type} is a family whose cost nobody worked out; known are "
                f"{', '.join(FAMILIES)}. Plan with the nearest of them: model=NAME, or model.shape={{...}}"
            )
        heads, layers = config.num_attention_heads, config.num_hidden_layers
        window = getattr(config, "sliding_window", None) or 0
        kinds = getattr(config, "layer_types", None) or [SLIDING if window else ""] * layers
        return cls(
            vocabulary=config.vocab_size,
            hidden=config.hidden_size,
            layers=layers,
            intermediate=config.intermediate_size,
            heads=heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            tables=1 if config.tie_word_embeddings else 2,
            window=window,
            windowed=list(kinds).count(SLIDING),
            **FAMILIES[config.model_type],
        )

    @property
    def maps(self) -> dict[str, tuple[int, int]]:
        """The linear maps of a layer: width of what comes in, width of what goes out."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def products(self) -> int:
        """Weights that a token is multiplied by on its way through the body: those of the linear maps."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.maps.values())

    @property
    def body(self) -> int:
        """Parameters without the tables."""
        small = self.norms * self.hidden
        if self.biases:
            small += (self.heads + 2 * self.kv_heads) * self.head_dim
        if self.head_norms:
            small += 2 * self.head_dim
        return self.products + self.layers * small + self.hidden

    def parameters(self, vocabulary: int | None = None) -> int:
        """All parameters, with tables of its own or of another vocabulary."""
        rows = self.vocabulary if vocabulary is None else vocabulary
        return self.body + self.tables * rows * self.hidden


@dataclass(frozen=True)
class Trained:
    """Rows that move of the tables of a vocabulary of so many tokens. input: 0 where the tables are tied."""

    vocabulary: int
    output: int
    input: int = 0

    @property
    def rows(self) -> int:
        return self.input + self.output


@dataclass(frozen=True)
class Batch:
    """What one device reads at once: blocks of so many tokens, of which all but the last are read to guess the next.

    width: bytes of a number in the body, 2 for bfloat16 and 4 for float32. chunk: positions whose logits are there at
    once. accumulate: batches of a step. learnt: positions that count and so have logits, where that is not all of them.
    """

    blocks: int
    block_size: int
    width: int
    chunk: int
    accumulate: int = 1
    learnt: int | None = None

    @property
    def length(self) -> int:
        return self.block_size - 1

    @property
    def tokens(self) -> int:
        return self.blocks * self.length


@dataclass(frozen=True)
class Lora:
    """Low-rank factors beside some maps of some layers."""

    rank: int
    modules: Collection[str]
    layers: int

    def parameters(self, shape: Shape) -> int:
        """Numbers in the factors."""
        return self.layers * self.rank * sum(sum(sizes) for name, sizes in shape.maps.items() if name in self.modules)

    def saved_bytes(self, shape: Shape, batch: Batch) -> int:
        """What the factors keep for their gradients: the inputs of their maps in float32, and the products between."""
        inputs = {name: shape.maps[name][0] for name in shape.maps if name in self.modules}
        between = self.rank * len(inputs)
        if batch.width == WIDE:
            inputs = {INPUTS[name]: width for name, width in inputs.items() if name in INPUTS}
        return self.layers * batch.tokens * WIDE * (sum(inputs.values()) + between)


@dataclass(frozen=True)
class Memory:
    """Bytes by kind, at the moment when they come to the most."""

    weights: int = 0  # frozen: the body, and rows that do not move
    tables: int = 0  # trained rows and other trained numbers
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    process: int = 0  # the program itself, where it shares the device's memory

    @property
    def total(self) -> int:
        return sum(getattr(self, kind.name) for kind in fields(self))

    def __add__(self, other: Memory) -> Memory:
        return Memory(*(getattr(self, kind.name) + getattr(other, kind.name) for kind in fields(self)))


# ---------------------------------------------------------------------------------------------------------------------
# Floating point operations.


def forward_flops(shape: Shape, *, vocabulary: int, tokens: int, length: int, learnt: int | None = None) -> int:
    """Of reading `tokens` in pieces of `length`, with the logits of every one or of so many."""
    attention = 4 * length * shape.layers * shape.heads * shape.head_dim
    logits = 2 * vocabulary * shape.hidden * (tokens if learnt is None else learnt)
    return tokens * (2 * shape.products + attention) + logits


def training_flops(
    shape: Shape, trained: Trained, *, tokens: int, length: int, learnt: int | None = None, lora: Lora | None = None
) -> int:
    """Of reading and of the way back: to the input of every map, to the trained rows of the output table, to LoRA.

    The way back through attention is five products to the two of the way there, as the scores are computed again.
    Frozen weights have no gradient, which is a third of what training a whole model takes. learnt: tokens that count,
    the only ones with logits; None is all of them.
    """
    back = 2 * shape.products + 10 * length * shape.layers * shape.heads * shape.head_dim
    back_from_logits = 2 * (trained.vocabulary + trained.output) * shape.hidden
    low_rank = 6 * lora.parameters(shape) if lora else 0
    there = forward_flops(shape, vocabulary=trained.vocabulary, tokens=tokens, length=length, learnt=learnt)
    return there + tokens * (back + low_rank) + back_from_logits * (tokens if learnt is None else learnt)


def fit_flops(shape: Shape, *, fitted_rows: int, new_vocabulary: int) -> int:
    """Of a propagation by a fitted map: both Gram matrices, two solutions by Cholesky's factors, and the map applied.

    In float64 on the CPU, but for the last part. Of one Gram matrix only half is multiplied out.
    """
    hidden = shape.hidden
    gram, solved = 3 * fitted_rows * hidden**2, 2 * (hidden**3 // 3 + 2 * hidden**3) + 2 * hidden**3
    return shape.tables * (gram + solved + 2 * new_vocabulary * hidden**2)


# ---------------------------------------------------------------------------------------------------------------------
# Memory.


def saved_bytes(shape: Shape, batch: Batch, *, masked: bool = False) -> int:
    """Activations that are kept for the way back, where weights want no gradient and the states do.

    A linear map keeps nothing: the gradient at its input needs the weight alone. Kept are, of each layer, what its
    norms read in float32, queries, keys, values and result of the attention, and three vectors of the inner size. A
    layer that reads through a mask (a window no longer than the block; all layers where `masked`) keeps the mask, and
    keys and values for every head.
    """
    heads = shape.heads + shape.kv_heads
    norms = shape.norms * (shape.hidden + 1)
    if shape.head_norms:
        norms += heads * (shape.head_dim + 1)
    attention = 2 * heads * shape.head_dim * batch.width + shape.heads * WIDE
    layer = norms * WIDE + attention + 3 * shape.intermediate * batch.width
    last = (shape.hidden + 1) * WIDE + shape.hidden * batch.width
    saved = batch.tokens * (shape.layers * layer + last) + 2 * batch.length * shape.head_dim * batch.width
    repeated = 2 * (shape.heads - shape.kv_heads) * shape.head_dim
    through_mask = shape.layers if masked else shape.windowed if shape.window <= batch.length else 0
    return saved + through_mask * batch.tokens * (batch.length + repeated) * batch.width


def training_memory(
    shape: Shape, trained: Trained, batch: Batch, *, lora: Lora | None = None, replicas: int = 1, shards: int = 1
) -> Memory:
    """On one device in training, at the higher of two moments: the last chunk of the loss, the first layer of the way
    back.

    The gradients of a step are let go only when those of the next are about to be summed, so the loss works out the
    output table's while the old ones are still there. replicas: devices that train alike, for whose sum another copy of
    the gradients is kept. shards: devices among which the frozen body lies, two layers of it whole at a time.
    """
    moving = trained.rows * shape.hidden + (lora.parameters(shape) if lora else 0)
    frozen_rows = (shape.tables * trained.vocabulary - trained.rows) * shape.hidden
    body = shape.body if shards == 1 else -(-shape.body // shards) + 2 * shape.products // shape.layers
    gradients = WIDE * moving
    fixed = Memory(
        weights=(body + frozen_rows) * batch.width,
        tables=WIDE * moving,
        gradients=gradients if replicas > 1 else 0,
        optimizer=MOMENTS * WIDE * moving,
        activations=saved_bytes(shape, batch, masked=lora is not None)
        + (lora.saved_bytes(shape, batch) if lora else 0),
    )
    of_output = WIDE * trained.output * shape.hidden
    loss = Memory(gradients=gradients + of_output, logits=loss_bytes(shape, trained, batch))
    kept = gradients if batch.accumulate > 1 else of_output
    # Gradients of three inner vectors, less what was kept of the norms behind them and is let go by then.
    inner = 3 * shape.intermediate * batch.width - shape.norms // 2 * shape.hidden * WIDE
    back = Memory(gradients=kept, activations=batch.tokens * inner)
    return fixed + max(loss, back, key=lambda moment: moment.total)


def loss_bytes(shape: Shape, trained: Trained, batch: Batch) -> int:
    """What the loss in chunks needs beside its result: twice the logits of a chunk in float32, the gradient at the
    states, and under bfloat16 a copy of the trained rows of the output table. States that are learnt take the place of
    all of them."""
    learnt = batch.tokens if batch.learnt is None else batch.learnt
    chunk = min(batch.chunk, learnt) * trained.vocabulary * 2 * WIDE
    states = (2 * learnt - batch.tokens) * shape.hidden * batch.width
    return chunk + states + (trained.output * shape.hidden * batch.width if batch.width < WIDE else 0)


def reading_memory(shape: Shape, *, vocabulary: int, width: int, tokens: int, logits: int) -> Memory:
    """Of a model that only reads, `tokens` at once, with `logits` of them in float32 and their logarithms."""
    inner = (3 * shape.intermediate + 4 * shape.hidden) * width
    return Memory(weights=shape.parameters(vocabulary) * width, activations=tokens * inner, logits=2 * WIDE * logits)


# ---------------------------------------------------------------------------------------------------------------------
# Disk and time.


def tables_bytes(shape: Shape, rows: int, width: int = WIDE) -> int:
    """Of the tables with so many rows each, on disk as in memory."""
    return shape.tables * rows * shape.hidden * width


def checkpoint_bytes(shape: Shape, trained: Trained) -> int:
    """Of the one checkpoint of a training run: trained rows and their moments."""
    return WIDE * trained.rows * shape.hidden * (1 + MOMENTS)


def packed_bytes(tokens: int, *, vocabulary: int, block_size: int) -> int:
    """Of packed text: its tokens in two bytes where their ids fit, else in four, and the start of every block."""
    return tokens * (2 if vocabulary <= 2**16 else 4) + 8 * -(-tokens // block_size)


def reached(shape: Shape, efficiency: float) -> float:
    """The share of a GPU's operations a second that a model of this width reaches, where a wide one reaches
    `efficiency`."""
    return efficiency * min(1.0, shape.hidden / WIDE_ENOUGH)


def launch_hours(shape: Shape, batches: int) -> float:
    """The least that so many batches of training take on a GPU, however few tokens they have."""
    return batches * shape.layers * shape.norms / 2 * LAYER_SECONDS / 3600


def hours(flops: int, *, flops_a_second: float, efficiency: float, devices: int = 1) -> float:
    """How long that takes on devices that reach a share `efficiency` of their `flops_a_second`."""
    return flops / (flops_a_second * efficiency * devices) / 3600
