"""The two tables of a language model: one row a token on the way in, one row a token on the way out.

In: a checkpoint directory (safetensors, no model is built) or a model in memory. Out: `Embeddings`, and the way back
into a model, or into a copy of the checkpoint. Assumed: Llama-like names (`embed_tokens`, `lm_head`), with whatever
prefix multimodal models put before them; no bias on the head. Rows are raw weights: a model that scales its embeddings
(Gemma) does so on its own.
"""

# V vocabulary (rows beyond the tokenizer's ids may follow: padding), D hidden

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from typing_extensions import TypeVar

from lep.shards import (
    StoredTable,
    Table,
    blocks,
    in_memory,
    read_header,
    rewrite_checkpoint,
    rewritten_bytes,
    row_norms,
    tensor_files,
    write_file,
)

TABLES_FILE = "embeddings.safetensors"  # tables alone, without the rest of a model: what training leaves
INPUT_NAME = re.compile(r"(?:.*\.)?embed_tokens\.weight")
OUTPUT_NAME = re.compile(r"(?:.*\.)?lm_head\.weight")
# A row this much shorter than the median row was never moved away from zero.
ZERO_NORM = 1e-3
# Untrained random rows have almost one length (it varies by 1/sqrt(2 D), 1 % at D = 4,096), well below trained ones.
SHORT_NORM, SAME_NORM, SMALLEST_GROUP = 0.5, 0.02, 8


AnyTable = TypeVar("AnyTable", bound=Table, default=Tensor, covariant=True)


@dataclass(frozen=True)
class Embeddings(Generic[AnyTable]):
    """Input table [V, D] and output table [V, D]; `output` is None when the model ties it to the input.

    `Embeddings` are tensors; `Embeddings[Table]` may lie on disk or be computed row by row (`in_memory` reads them).
    """

    input: AnyTable
    output: AnyTable | None = None

    def __post_init__(self) -> None:
        for name, table in (("input", self.input), ("output", self.output)):
            if table is not None and (len(table.shape) != 2 or not table.dtype.is_floating_point):
                raise ValueError(
                    f"{name} embeddings: shape {tuple(table.shape)}, {table.dtype}; needed are two "
                    "dimensions of floats. Give a checkpoint that is not quantised."
                )
        if self.output is not None and self.output.shape != self.input.shape:
            raise ValueError(
                f"input embeddings {tuple(self.input.shape)} and output embeddings {tuple(self.output.shape)} differ "
                "in shape. Give tables of one model."
            )

    @property
    def tied(self) -> bool:
        return self.output is None

    def map(self, on_input: Callable[[Any], Any], on_output: Callable[[Any], Any] | None = None) -> "Embeddings[Any]":
        """New tables, each made from its own; `on_output` is `on_input` unless given. Tied tables stay one."""
        return Embeddings(on_input(self.input), None if self.output is None else (on_output or on_input)(self.output))

    def in_memory(self, *, advance: Callable[[int], None] = lambda rows: None) -> "Embeddings":
        """The tables as tensors. `advance` is told the rows, those of both tables."""
        return self.map(lambda table: in_memory(table, advance=advance))

    @property
    def nbytes(self) -> int:
        """Bytes of the tables, on disk as in memory."""
        tables = [self.input] if self.output is None else [self.input, self.output]
        return sum(table.shape.numel() * table.dtype.itemsize for table in tables)

    def save(self, path: Path, *, advance: Callable[[int], None] = lambda nbytes: None) -> None:
        """Writes one safetensors file, block of rows by block; whole or not at all. `advance` is told the bytes."""
        tables = {"input": self.input} if self.output is None else {"input": self.input, "output": self.output}
        write_file(path, tables, advance=advance)

    @classmethod
    def load(cls, path: Path) -> "Embeddings":
        """The tables of a file that `save` wrote, as tensors."""
        return open_tables(path).in_memory()


def open_tables(path: Path) -> Embeddings[StoredTable]:
    """The tables of a file of `Embeddings.save`, where they lie."""
    names = {*read_header(path)[0]}
    if "input" not in names or not names <= {"input", "output"}:
        raise ValueError(
            f"{path} holds {sorted(names)}, not `input` and `output` tables. Give a file of `Embeddings.save`."
        )
    return Embeddings(StoredTable(path, "input"), StoredTable(path, "output") if "output" in names else None)


@dataclass(frozen=True)
class TablePlaces:
    """Where the tables of a checkpoint lie: (file, tensor name) each; `output` is None where no head is stored."""

    input: tuple[Path, str]
    output: tuple[Path, str] | None


def open_embeddings(model_dir: Path) -> Embeddings[StoredTable]:
    """The tables of a checkpoint directory where they lie: rows are read when asked for, no model is built.

    A directory that holds `embeddings.safetensors` and no model (trained tables) is read as well. ValueError where the
    tables cannot be told, are tied in the config and yet differ, are quantised, or carry a bias.
    """
    model_dir = Path(model_dir)
    if (model_dir / TABLES_FILE).exists() and not (model_dir / "config.json").exists():
        return open_tables(model_dir / TABLES_FILE)
    places = find_tables(model_dir)
    tied = _tied_by_config(model_dir)
    table = StoredTable(*places.input)
    if places.output is None and not tied:
        raise ValueError(
            f"{model_dir}: no `lm_head.weight`, though tie_word_embeddings is false. "
            "Complete the checkpoint, or set tie_word_embeddings to true in its config.json."
        )
    output = None if places.output is None else StoredTable(*places.output)
    if tied and output is not None and not _equal(table, output):
        raise ValueError(
            f"{model_dir}: tie_word_embeddings is true, yet `{output.name}` differs from `{table.name}`. "
            "Set tie_word_embeddings to false in its config.json if the two tables are meant."
        )
    return Embeddings(table, None if tied else output)


def read_embeddings(model_dir: Path) -> Embeddings:
    """The tables of a checkpoint directory as tensors in its own dtype, under the rules of `open_embeddings`."""
    return open_embeddings(model_dir).in_memory()


def _equal(one: Table, other: Table) -> bool:
    return one.shape == other.shape and all(
        torch.equal(left, right) for left, right in zip(blocks(one), blocks(other), strict=True)
    )


def write_tables(
    source_dir: Path,
    out_dir: Path,
    embeddings: Embeddings[Table],
    *,
    body: Mapping[str, Table] | None = None,
    links: bool = True,
    advance: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """The safetensors files of a checkpoint with these tables in them, in the dtypes of the checkpoint's own.

    Only the files that hold a table are written, block of rows by block; the others become hard links to the source's
    (copies where the file system has none, or `links` is off), so neither is to be changed in place afterwards. `body`:
    other weights to replace, named as below what holds the input table ("layers.0.mlp.up_proj.weight"). A head
    that is stored though tied is left out. The configs, whose vocabulary size changes, are the caller's work, and
    `out_dir` is to be empty. `advance` is told the bytes written. ValueError where tables do not fit the checkpoint.
    """
    source_dir, out_dir = Path(source_dir), Path(out_dir)
    places, stored = find_tables(source_dir), open_embeddings(source_dir)
    _check_fit(stored.tied, stored.input.shape[1], embeddings)
    replaced: dict[str, Table] = {places.input[1]: embeddings.input, **_below(places, body or {}, source_dir)}
    dropped = []
    if embeddings.output is not None and places.output is not None:
        replaced[places.output[1]] = embeddings.output
    elif places.output is not None:
        dropped.append(places.output[1])
    rewrite_checkpoint(source_dir, out_dir, replaced, dropped=dropped, links=links, advance=advance)


def written_bytes(source_dir: Path, rows: int, *, body: Mapping[str, Table] | None = None) -> int:
    """Bytes of tensors that `write_tables` writes for tables of so many rows; linked files take nothing."""
    places = find_tables(Path(source_dir))
    found = [place for place in (places.input, places.output) if place is not None]
    replaced: dict[str, Table] = {
        name: torch.empty(rows, StoredTable(path, name).shape[1], device="meta") for path, name in found
    }
    replaced |= _below(places, body or {}, source_dir)
    files = tensor_files(Path(source_dir))
    return sum(rewritten_bytes(path, replaced) for path in {files[name] for name in replaced})


def _below(places: TablePlaces, body: Mapping[str, Table], source_dir: Path) -> dict[str, Table]:
    """The weights under their names in the checkpoint. ValueError where it lacks one, or has it in another shape."""
    prefix, files = places.input[1].removesuffix("embed_tokens.weight"), tensor_files(Path(source_dir))
    named = {prefix + name: weight for name, weight in body.items()}
    for name, weight in named.items():
        if name not in files or StoredTable(files[name], name).shape != weight.shape:
            raise ValueError(
                f"{source_dir}: no `{name}` of shape {tuple(weight.shape)}. Give the weights of this model."
            )
    return named


def _check_fit(tied: bool, hidden: int, embeddings: Embeddings[Table]) -> None:
    if embeddings.tied != tied:
        has, gets = ("tied", "untied") if tied else ("untied", "tied")
        raise ValueError(
            f"the model's tables are {has}, the given ones {gets}. Use tables of a model of the same family."
        )
    if embeddings.input.shape[1] != hidden:
        raise ValueError(
            f"embeddings have hidden size {embeddings.input.shape[1]}, the model {hidden}. "
            "Use tables of a model of the same size."
        )


def find_tables(model_dir: Path) -> TablePlaces:
    """Files and names of the tables among the shards of a checkpoint."""
    files = tensor_files(Path(model_dir))
    biases = [name for name in files if name.endswith("lm_head.bias")]
    if biases:
        raise ValueError(
            f"{model_dir}: the head has a bias (`{biases[0]}`), which no rule carries over. Use a model without."
        )
    input_name = _only_name(files, INPUT_NAME, model_dir)
    if input_name is None:
        raise ValueError(
            f"{model_dir}: no tensor is named `embed_tokens.weight`. Its {len(files)} tensors begin with "
            f"{sorted(files)[:3]}. Use a model of a Llama-like architecture in the transformers format."
        )
    output_name = _only_name(files, OUTPUT_NAME, model_dir)
    output = None if output_name is None else (files[output_name], output_name)
    return TablePlaces((files[input_name], input_name), output)


def _only_name(files: Mapping[str, Path], pattern: re.Pattern[str], model_dir: Path) -> str | None:
    """The one matching tensor; of several, the one of the language model."""
    names = [name for name in files if pattern.fullmatch(name)]
    if len(names) > 1:
        names = [name for name in names if re.search(r"(^|\.)(language_model|text_model)\.", name)] or names
    if len(names) > 1:
        raise ValueError(
            f"{model_dir}: several tensors may be the table: {sorted(names)}. Use a model with one language part."
        )
    return names[0] if names else None


def _tied_by_config(model_dir: Path) -> bool:
    if not (model_dir / "config.json").exists():
        raise ValueError(
            f"{model_dir}: no config.json, so nobody knows if the tables are tied. Give a whole checkpoint."
        )
    return bool(AutoConfig.from_pretrained(model_dir).tie_word_embeddings)


def embeddings_of(model: PreTrainedModel) -> Embeddings:
    """A copy of the model's tables as they are now, in their dtype and on their device."""
    table, head = _table_modules(model)
    output = None if head is None else head.weight.detach().clone()
    return Embeddings(table.weight.detach().clone(), output)


def set_embeddings_(model: PreTrainedModel, embeddings: Embeddings, *, dtype: torch.dtype | None = None) -> None:
    """Puts the tables into the model and gives it their vocabulary; ties and `requires_grad` stay as they are.

    The tables are cast to the dtype of the model's own, or to `dtype`, and moved to its device. They become new
    parameters: make optimizers afterwards. No other weight is touched. ValueError where hidden size or tying differ.
    """
    table, head = _table_modules(model)
    _check_fit(head is None, table.weight.shape[1], embeddings)
    rows = embeddings.input.shape[0]
    table.weight, table.num_embeddings = _parameter(embeddings.input, table.weight, dtype), rows
    # Only stops the gradient of one id, and that id is another token in the new vocabulary.
    table.padding_idx = None
    output: Any = model.get_output_embeddings()
    if embeddings.output is None:
        output.weight = table.weight
    else:
        output.weight = _parameter(embeddings.output, output.weight, dtype)
    output.out_features = rows
    _set_vocab_size_(model, rows)


def _table_modules(model: PreTrainedModel) -> tuple[Any, Any]:
    """Input module and output module of a model; the latter None when tied."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(table, nn.Embedding) or not isinstance(head, nn.Linear):
        raise ValueError(f"{type(model).__name__}: its embeddings are no plain tables. Use a causal language model.")
    if head.bias is not None:
        raise ValueError(
            f"{type(model).__name__}: the head has a bias, which no rule carries over. Use a model without."
        )
    return table, None if head.weight is table.weight else head


def _parameter(table: Tensor, old: Tensor, dtype: torch.dtype | None) -> nn.Parameter:
    fresh = table.detach().to(old.device, dtype or old.dtype, copy=True).contiguous()
    return nn.Parameter(fresh, requires_grad=old.requires_grad)


def _set_vocab_size_(model: PreTrainedModel, rows: int) -> None:
    """In the config, also where it nests the text model's, and in the modules that remember it."""
    text_config = model.config.get_text_config()
    old = text_config.vocab_size
    configs: tuple[PretrainedConfig, ...] = (model.config, text_config)
    for owner in (*configs, *model.modules()):
        if getattr(owner, "vocab_size", None) == old:
            owner.vocab_size = rows  # type: ignore[union-attr]


def untrained_rows(table: Table, *, rows: int | None = None) -> Tensor:
    """Marks the rows that training never reached, [V] bool: reserved tokens, padding. `rows`: only the first so many.

    Two signs, both from row lengths against the median: next to nothing (below 1/1,000); or short (below 1/2) and all
    of one length (within 2 %, most of the short rows, at least 8), as random rows are before training pulls them apart.
    Rows that hide among trained ones of the same length are not found.
    """
    norms = row_norms(table, rows=rows)
    median = norms.median()
    untrained = norms <= ZERO_NORM * median
    short = (norms < SHORT_NORM * median) & ~untrained
    if short.sum() >= SMALLEST_GROUP:
        alike = short & ((norms / norms[short].median() - 1).abs() < SAME_NORM)
        if alike.sum() >= max(SMALLEST_GROUP, int(short.sum()) / 2):
            untrained |= alike
    return untrained
