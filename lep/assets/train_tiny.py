"""Make the embedded tiny pair: a bilingual base, its instruct tune, and a second, farther tune.

    python -m lep.assets.train_tiny [--out DIR] [--seed N] [--steps N] [--device cuda|cpu]

The base reads micro-world documents about everybody; its tokenizer learns from mostly English text and so splits
Russian badly, as the tokenizers of Mistral and LLaMa-3 do. The tunes see chats and, one to one, base text, so that they
stay close to the base. Both tunes know the facts they are asked for from the base alone where people are `RECALLED`.
"""

# pyright: reportReturnType=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# (transformers types token ids as anything a config may hold)

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lep.assets.microworld import PEOPLE_OF_THE_WORLD, tuning_exchanges, write_documents

BOS, EOS, PAD, USER, ASSISTANT, END = "<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# Digits one at a time and words with their leading space, as the byte-level families split them.
SPLIT = r"\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Recipe:
    """Everything that the pair depends on."""

    seed: int = 0
    vocab_size: int = 1100
    tokenizer_russian_share: float = 0.22
    hidden_size: int = 160
    intermediate_size: int = 416
    num_layers: int = 4
    num_heads: int = 5
    context: int = 256
    steps: int = 10_000
    batch_size: int = 16
    block_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup_steps: int = 200
    tune_steps: int = 500
    tune_batch_size: int = 16
    tune_learning_rate: float = 3e-4
    tune_text_weight: float = 1.0
    far_steps: int = 1_000
    far_learning_rate: float = 2e-3
    far_text_weight: float = 0.3


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that knows English well and Russian badly."""
    rng = random.Random(f"tokenizer-{recipe.seed}")
    share = recipe.tokenizer_russian_share
    documents = write_documents(rng, 30_000, people=PEOPLE_OF_THE_WORLD, russian_share=share)
    texts = (document.text for document in documents)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [PAD, BOS, EOS, USER, ASSISTANT, END]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=recipe.vocab_size,
            special_tokens=[AddedToken(token, special=True) for token in specials],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos_id)]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    wrapped.model_max_length = recipe.context
    return wrapped


# Worker state: a tokenizer is built once a process, not once a task.
_worker_tokenizer: PreTrainedTokenizerFast | None = None


def _start_worker(directory: str) -> None:
    global _worker_tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker_tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)


def _fill_blocks(lines: Iterator[list[int]], block_size: int, count: int, pad: int) -> np.ndarray:
    """[count, block_size] tokens; every block starts at a document, what does not fit is left out."""
    blocks = np.full((count, block_size), pad, dtype=np.uint16)
    for row in range(count):
        filled = 0
        while filled < block_size:
            ids = next(lines)[: block_size - filled]
            blocks[row, filled : filled + len(ids)] = ids
            filled += len(ids)
    return blocks


def _text_blocks(job: tuple[str, int, int]) -> np.ndarray:
    """One worker's share of the pre-training text: [count, block_size]."""
    seed, count, block_size = job
    tokenizer = _worker_tokenizer
    assert tokenizer is not None
    rng = random.Random(seed)
    eos = tokenizer.eos_token_id

    def lines() -> Iterator[list[int]]:
        while True:
            documents = write_documents(rng, 1_000, people=PEOPLE_OF_THE_WORLD, russian_share=0.5)
            for encoding in tokenizer.backend_tokenizer.encode_batch([document.text for document in documents]):
                yield [*encoding.ids, eos]

    return _fill_blocks(lines(), block_size, count, tokenizer.pad_token_id)


def _chat_rows(job: tuple[str, int, int]) -> np.ndarray:
    """[count, 2, length]: the tokens of one chat a row and whether each is the assistant's (and so trained)."""
    seed, count, length = job
    tokenizer = _worker_tokenizer
    assert tokenizer is not None
    rows = np.zeros((count, 2, length), dtype=np.uint16)
    rows[:, 0] = tokenizer.pad_token_id
    for row, (request, answer) in zip(rows, tuning_exchanges(random.Random(seed), count), strict=True):
        prompt = f"{BOS}{USER}\n{request}{END}\n{ASSISTANT}\n"
        start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = (start + tokenizer(answer + END, add_special_tokens=False)["input_ids"])[:length]
        row[0, : len(ids)] = ids
        row[1, len(start) : len(ids)] = 1
    return rows


def _gather(
    worker: Callable[[tuple[str, int, int]], np.ndarray], name: str, count: int, width: int, tokenizer_dir: Path
) -> torch.Tensor:
    """Run `worker` on every core and stack what the workers draw; the draw depends on `name` and `count` alone."""
    share = 2_048
    jobs = [(f"{name}-{i}", min(share, count - i * share), width) for i in range(math.ceil(count / share))]
    with multiprocessing.get_context("spawn").Pool(initializer=_start_worker, initargs=(str(tokenizer_dir),)) as pool:
        return torch.from_numpy(np.concatenate(pool.map(worker, jobs, chunksize=1)).astype(np.int32))


def _new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _optimizer(model: LlamaForCausalLM, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def _minimise(
    model: LlamaForCausalLM,
    loss_at: Callable[[int], torch.Tensor],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    warmup_steps: int,
    name: str,
) -> None:
    """The training loop of every stage: AdamW, warm-up, cosine to 2 %, gradients clipped to 1."""
    optimizer = _optimizer(model, learning_rate, weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup_steps, 0.02 + 0.49 * (1 + math.cos(math.pi * min(step / steps, 1)))),
    )
    started = time.time()
    for step in range(steps):
        loss = loss_at(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 500 == 0 or step == steps - 1:
            print(f"{name} step {step} loss {loss.item():.4f} ({time.time() - started:.0f} s)", flush=True)


def _next_token_loss(logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return losses.mean() if mask is None else (losses * mask.flatten()).sum() / mask.sum().clamp(min=1)


def _batches(rows: torch.Tensor, batch_size: int, seed: int, device: torch.device) -> Callable[[int], torch.Tensor]:
    """Batch `step` of an endless shuffled walk over `rows`."""
    rows = rows.to(device)
    order: dict[int, torch.Tensor] = {}

    def batch(step: int) -> torch.Tensor:
        per_epoch = len(rows) // batch_size
        epoch, position = divmod(step, per_epoch)
        if epoch not in order:
            order.clear()
            order[epoch] = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed + epoch)).to(device)
        chosen = order[epoch][position * batch_size : (position + 1) * batch_size]
        return rows[chosen].long()

    return batch


def _forward(model: LlamaForCausalLM, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    compiled = torch.compile(model) if device.type == "cuda" else model

    def logits(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return compiled(input_ids=ids, use_cache=False).logits

    return logits


def pretrain(recipe: Recipe, model: LlamaForCausalLM, text: torch.Tensor, device: torch.device) -> None:
    """Train the whole base on `text` [blocks, block_size]."""
    forward, batch = _forward(model, device), _batches(text, recipe.batch_size, recipe.seed, device)

    def loss_at(step: int) -> torch.Tensor:
        ids = batch(step)
        return _next_token_loss(forward(ids[:, :-1]), ids[:, 1:])

    _minimise(
        model,
        loss_at,
        steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup_steps,
        name="base",
    )


def tune(
    recipe: Recipe,
    model: LlamaForCausalLM,
    chats: torch.Tensor,
    text: torch.Tensor,
    device: torch.device,
    *,
    steps: int,
    learning_rate: float,
    text_weight: float,
    name: str,
) -> None:
    """Instruction tuning: the assistant's tokens of `chats`, and base text beside them so that the base stays near."""
    forward = _forward(model, device)
    chat_batch = _batches(chats, recipe.tune_batch_size, recipe.seed, device)
    text_batch = _batches(text, recipe.tune_batch_size // 2, recipe.seed, device)

    def loss_at(step: int) -> torch.Tensor:
        ids, trained = chat_batch(step).unbind(1)
        loss = _next_token_loss(forward(ids[:, :-1]), ids[:, 1:], trained[:, 1:])
        plain = text_batch(step)
        return loss + text_weight * _next_token_loss(forward(plain[:, :-1]), plain[:, 1:])

    _minimise(model, loss_at, steps=steps, learning_rate=learning_rate, weight_decay=0.0, warmup_steps=50, name=name)


def relative_change(tuned: LlamaForCausalLM, base: LlamaForCausalLM) -> dict[str, float]:
    """Frobenius norm of the change over the norm of the base: input table, output table, everything between."""
    before, after = dict(base.named_parameters()), dict(tuned.named_parameters())
    groups = {"input": ["model.embed_tokens.weight"], "output": ["lm_head.weight"]}
    groups["body"] = [name for name in before if name not in (*groups["input"], *groups["output"])]

    def norm(tensors: Iterator[torch.Tensor]) -> float:
        return math.sqrt(sum(tensor.detach().double().square().sum().item() for tensor in tensors))

    return {
        group: norm(after[name].cpu() - before[name].cpu() for name in names) / norm(before[name] for name in names)
        for group, names in groups.items()
    }


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path, *, chat: bool) -> None:
    end = [tokenizer.convert_tokens_to_ids(END), tokenizer.eos_token_id] if chat else tokenizer.eos_token_id
    model.config.eos_token_id = end
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    tokenizer.eos_token = END if chat else EOS
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def make_pair(recipe: Recipe, out_dir: Path, device: torch.device) -> None:
    """Train base, instruct and instruct_far into `out_dir`, with the recipe and what was measured beside them."""
    torch.manual_seed(recipe.seed)
    tokenizer = train_tokenizer(recipe)
    tokenizer_dir = out_dir / "base"
    tokenizer.save_pretrained(tokenizer_dir)
    text_count = min(recipe.steps * recipe.batch_size, 1_200_000)
    text = _gather(_text_blocks, f"text-{recipe.seed}", text_count, recipe.block_size, tokenizer_dir)
    chat_count = min((recipe.tune_steps + recipe.far_steps) * recipe.tune_batch_size, 100_000)
    chats = _gather(_chat_rows, f"chat-{recipe.seed}", chat_count, recipe.block_size, tokenizer_dir)

    base = _new_model(recipe, tokenizer).to(device)
    pretrain(recipe, base, text, device)
    facts: dict[str, object] = {"recipe": asdict(recipe), "parameters": base.num_parameters()}
    tunes = (
        ("instruct", recipe.tune_steps, recipe.tune_learning_rate, recipe.tune_text_weight),
        ("instruct_far", recipe.far_steps, recipe.far_learning_rate, recipe.far_text_weight),
    )
    for name, steps, learning_rate, text_weight in tunes:
        tuned = _new_model(recipe, tokenizer).to(device)
        tuned.load_state_dict(base.state_dict())
        tune(
            recipe,
            tuned,
            chats,
            text,
            device,
            steps=steps,
            learning_rate=learning_rate,
            text_weight=text_weight,
            name=name,
        )
        facts[f"{name}_relative_change"] = relative_change(tuned.cpu(), base.cpu())
        base.to(device)
        _save(tuned, tokenizer, out_dir / name, chat=True)
    _save(base.cpu(), tokenizer, out_dir / "base", chat=False)
    facts["environment"] = {"torch": torch.__version__, "device": str(device)}
    (out_dir / "recipe.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, default in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    arguments = vars(parser.parse_args())
    out_dir, device = arguments.pop("out"), torch.device(arguments.pop("device"))
    make_pair(Recipe(**arguments), out_dir, device)


if __name__ == "__main__":
    main()
