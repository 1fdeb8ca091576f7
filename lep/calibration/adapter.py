"""What a tuning moved, beside the model that it moved: low-rank factors and whole tables.

In: a module that was tuned, or an adapter directory of peft. Out: the same model with the changes in its own weights
(merged), or the directory, which peft loads onto the model as it was before. Files are read and written without peft.
"""

# V vocabulary, D hidden, R rank

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lep.durable import replacing
from lep.embeddings import Embeddings, embeddings_of, set_embeddings_

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # of every tensor, as peft wraps a model
TABLES = ("embed_tokens", "lm_head")


class LowRank(NamedTuple):
    """The factors of a change `second @ first`, before its scale: [R, in] and [out, R]."""

    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class Tuned:
    """Changes by module, named below the body ("layers.0.self_attn.q_proj"), and the tables that were trained whole."""

    changes: Mapping[str, LowRank]
    rank: int
    alpha: float
    input: Tensor | None = None
    output: Tensor | None = None
    tied: bool = False

    def change(self, name: str) -> Tensor:
        """What is added to the weight of a module: float32 [out, in] (LoRA: alpha / rank times the product)."""
        first, second = self.changes[name]
        return self.alpha / self.rank * (second.float() @ first.float())

    def tables(self, before: Embeddings) -> Embeddings:
        """The tables with those that were trained in the place of their own."""
        table = before.input if self.input is None else self.input
        return Embeddings(table, None if before.tied else before.output if self.output is None else self.output)


@torch.no_grad()
def merge_(model: PreTrainedModel, tuned: Tuned, *, stored: torch.dtype | None = None) -> None:
    """Puts the changes into the model's own weights, in its dtype. ValueError where they do not fit.

    stored: what an export will keep them in; they are rounded to it, so that what is judged is what is exported.
    """
    body = model.get_decoder()
    for name in tuned.changes:
        weight = _linear(body, name).weight
        weight.copy_((weight.float() + tuned.change(name).to(weight.device)).to(stored or weight.dtype))
    set_embeddings_(model, tuned.tables(embeddings_of(model)).map(lambda table: table.to(stored or table.dtype)))


def merged_weights(model: PreTrainedModel, tuned: Tuned) -> dict[str, Tensor]:
    """Of a model with the changes merged, the weights that differ from those before, by name below the body."""
    body = model.get_decoder()
    return {f"{name}.weight": _linear(body, name).weight.detach() for name in tuned.changes}


def _linear(body: nn.Module, name: str) -> nn.Linear:
    try:
        found = body.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"the adapter changes {name}, which the model does not have. Give its own model") from error
    assert isinstance(found, nn.Linear), f"{name} is no linear map"
    return found


def write_adapter(directory: Path, tuned: Tuned, model: PreTrainedModel, *, base: str) -> None:
    """An adapter directory as peft writes it, for `model` with its tables as they were before tuning.

    base: where that model lies; peft's own loaders look there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    body = _name_of(model, model.get_decoder())
    tensors = {}
    for name, (first, second) in tuned.changes.items():
        tensors |= {f"{body}{name}.lora_A.weight": first, f"{body}{name}.lora_B.weight": second}
    places = (model.get_input_embeddings(), model.get_output_embeddings())
    # Of a tied table peft reads both names.
    trained = (tuned.input, tuned.input.clone() if tuned.tied and tuned.input is not None else tuned.output)
    tables = {_name_of(model, at): table for at, table in zip(places, trained, strict=True) if table is not None}
    tensors |= {f"{name}weight": table for name, table in tables.items()}
    with replacing(directory / WEIGHTS_FILE) as staging:
        named = {PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(named, staging, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": tuned.rank,
        "lora_alpha": tuned.alpha,
        # One by one, so that no other layer gets any.
        "target_modules": [body + name for name in tuned.changes],
        "modules_to_save": [name.rstrip(".") for name in tables] or None,
        "ensure_weight_tying": bool(tuned.tied and tables),
    }
    with replacing(directory / CONFIG_FILE) as staging:
        staging.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_adapter(directory: Path) -> Tuned:
    """What `write_adapter` wrote."""
    config: dict[str, Any] = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(directory / WEIGHTS_FILE).items()}
    changes = {
        name[name.index("layers.") : -len(".lora_A.weight")]: LowRank(
            tensor, tensors[name.replace(".lora_A.", ".lora_B.")]
        )
        for name, tensor in tensors.items()
        if name.endswith(".lora_A.weight")
    }
    table, head = (
        next((tensor for name, tensor in tensors.items() if name.endswith(f"{end}.weight")), None) for end in TABLES
    )
    tied = config["ensure_weight_tying"]
    return Tuned(changes, config["r"], config["lora_alpha"], table, None if tied else head, tied=tied)


def _name_of(model: nn.Module, module: nn.Module | None) -> str:
    """How a part of the model is called in it, with the dot that follows."""
    return next(f"{name}." for name, found in model.named_modules() if found is module)
