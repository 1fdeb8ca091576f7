"""Is the directory what it should be? Asked of the files as a stranger will load them, before they are published.

In: a staged model directory, the instruct model it came from, the tokenizer that was meant; the model in memory where
there is one. Out: what was seen, a line a check. Any failure is a ValueError that says what to do.
"""

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from lep.chat import end_of_turn
from lep.export.files import SLOW_FILES, agrees
from lep.export.ids import IdMap, ids_in
from lep.shards import read_header, tensor_files

LOADED_BYTES = (
    4 * 2**30
)  # weights up to this size are loaded and decoded with; larger ones are matched by name and shape
ANSWERS, NEW_TOKENS = 3, 8  # few, as bfloat16 is slow on many CPUs
# A matrix product over other rows may round otherwise: two tokens this near (as a share of the largest logit) may swap.
NEAR = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}
TEXTS = (
    "The capital of France is",
    "Мама мыла раму, а папа",
    "1 + 1 = 2\n12 + 30 =",
    "  def f(x):\n\treturn [x] ",
    "Ёж, ещё, naïve, 中文, 🦔\u00a0e\u0301",
)
TURNS = ([], [{"role": "assistant", "content": "zqx"}, {"role": "user", "content": "Ещё?"}])


def check_reads_back(tokenizer: PreTrainedTokenizerFast, instruct_dir: Path) -> None:
    """That transformers reads a vocabulary back as it is from beside the instruct model's config.

    What would fail when a model is exported fails here, before anything is trained. ValueError, as there.
    """
    with TemporaryDirectory() as place:
        tokenizer.save_pretrained(place)
        shutil.copy(instruct_dir / "config.json", place)
        _tokenizer_is(AutoTokenizer.from_pretrained(place), tokenizer)


def check_directory(
    directory: Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    instruct_tokenizer: PreTrainedTokenizerFast,
    ids: IdMap,
    source_configs: dict[str, dict[str, Any]],
    reference: PreTrainedModel | None,
) -> dict[str, str]:
    """Every check in turn: {name: what was seen}. ValueError at the first that fails.

    source_configs: config.json and generation_config.json of the instruct model, by file name. reference: the model in
    memory that the directory should decode like.
    """
    loaded = AutoTokenizer.from_pretrained(directory)
    seen = {
        "weights": _weights_are_whole(directory),
        "tokenizer": _tokenizer_is(loaded, tokenizer),
        "slow tokenizer files": _slow_files_agree(directory, tokenizer),
        "ids": _ids_are(directory, source_configs, ids),
        "chat template": _chats_alike(loaded, instruct_tokenizer),
    }
    nbytes = sum(path.stat().st_size for path in {*tensor_files(directory).values()})
    small = nbytes <= LOADED_BYTES
    dtype = "auto" if reference is None else reference.dtype  # so that both compute alike
    model, seen["loading"] = _load(directory, dtype, small=small)
    if not small:
        large = f"{nbytes / 2**30:.1f} GiB of weights are above the {LOADED_BYTES / 2**30:.0f} GiB that are loaded"
        return seen | {"decoding": f"skipped, {large}", "end of turn": f"{_end_is_named(directory, loaded)}; {large}"}
    if reference is None:
        seen["decoding"] = "skipped, there was no model in memory to compare with"
    else:
        model.to(reference.device)  # type: ignore[arg-type]
        seen["decoding"] = _decodes_like(model, reference, loaded)
    return seen | {"end of turn": _stops(model, loaded)}


def _fail(what: str, remedy: str) -> ValueError:
    return ValueError(f"export: {what}. {remedy} Nothing was published.")


def _weights_are_whole(directory: Path) -> str:
    """Every safetensors file as long as its header says, every tensor of the index in its file, and no other."""
    named = tensor_files(directory)
    stored = {name: path for path in directory.glob("*.safetensors") for name in read_header(path)[0]}
    if stored != named:
        odd = sorted(name for name in {*stored, *named} if stored.get(name) != named.get(name))
        raise _fail(
            f"its index and files differ in {len(odd)} tensors, first {odd[0]}", "Download the instruct model again."
        )
    files = len({*named.values()})
    return f"{len(named)} tensors in {files} file{'s' if files > 1 else ''}, all whole"


def _tokenizer_is(loaded: PreTrainedTokenizerFast, meant: PreTrainedTokenizerFast) -> str:
    """Loaded back, it has the same ids and roles and cuts text alike, specials and all."""
    texts = [*TEXTS, "".join(meant.added_tokens_encoder)]
    same = (
        loaded.get_vocab() == meant.get_vocab()
        and [loaded(text)["input_ids"] for text in texts] == [meant(text)["input_ids"] for text in texts]
        and all(getattr(loaded, role) == getattr(meant, role) for role in ("bos_token", "eos_token", "pad_token"))
    )
    if not same:
        raise _fail(
            "the tokenizer that is loaded from the directory is not the one that was saved",
            f"transformers reads the tokenizer of this model_type as {type(loaded).__name__}, which may have "
            "steps of its own: Qwen2 splits text and merges in one fixed way, so give it tokenizer=bpe, extension or "
            "optimization.",
        )
    return f"{len(loaded)} tokens, {len(texts)} texts cut as before saving"


def _slow_files_agree(directory: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    found = [name for name in SLOW_FILES if (directory / name).exists()]
    wrong = [name for name in found if not agrees(directory / name, tokenizer)]
    if wrong:
        raise _fail(f"{wrong} say other than tokenizer.json", "Delete them from the instruct model's directory.")
    if not found:
        return "none; tokenizer.json is the only source"
    return f"{', '.join(found)} {'agrees' if len(found) == 1 else 'agree'}"


def _ids_are(directory: Path, source_configs: dict[str, dict[str, Any]], ids: IdMap) -> str:
    """Every id in the configs has a row, and is one that the instruct model's configs name, or ends a turn."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    count = 0
    named = {ids.ids.get(old) for source in source_configs.values() for _, old in ids_in(source)}
    for name in source_configs:
        for field, i in ids_in(json.loads((directory / name).read_text(encoding="utf-8"))):
            count += 1
            if not 0 <= i < text["vocab_size"]:
                raise _fail(
                    f"{name}: {field}={i} has no row of {text['vocab_size']}", "Give the tables' own tokenizer."
                )
            if i not in named and field not in ("eos_token_id", "pad_token_id"):
                raise _fail(f"{name}: {field}={i} is no token that the instruct model names", "Please report this.")
    shapes = {
        read_header(path)[0][name].shape[0]
        for name, path in tensor_files(directory).items()
        if name.endswith(("embed_tokens.weight", "lm_head.weight"))
    }
    if shapes != {text["vocab_size"]}:
        raise _fail(f"the tables have {sorted(shapes)} rows, vocab_size is {text['vocab_size']}", "Please report this.")
    return f"{count} ids within {text['vocab_size']} rows"


def _chats_alike(loaded: PreTrainedTokenizerFast, instruct: PreTrainedTokenizerFast) -> str:
    """The template writes the instruct model's text, and its markers are single special tokens in both."""
    if not instruct.chat_template:
        return "none"
    count = 0
    for text, rest, opened in product(TEXTS, TURNS, (True, False)):
        turns = [{"role": "user", "content": text}, *rest]
        ours, theirs = (
            str(one.apply_chat_template(turns, tokenize=False, add_generation_prompt=opened))
            for one in (loaded, instruct)
        )
        if ours != theirs:
            raise _fail(
                f"the chat template writes {ours!r}, the instruct model's {theirs!r}",
                "Give the result the instruct model's template and role tokens (`lep.chat.result_tokenizer`).",
            )
        if (marks := _markers(loaded, ours)) != (marked := _markers(instruct, theirs)):
            raise _fail(
                f"the markers in {ours!r} are {marks}, in the instruct model {marked}",
                "Give the result the instruct model's special tokens (`lep.chat.result_tokenizer`).",
            )
        count += 1
    return f"{count} conversations render as the instruct model's"


def _markers(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    added = tokenizer.added_tokens_decoder
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [added[i].content for i in ids if i in added and added[i].special]


def _load(directory: Path, dtype: torch.dtype | str, *, small: bool) -> tuple[PreTrainedModel, str]:
    """The model, or without memory its tensors matched with the architecture by name and shape (device meta)."""
    place: dict[str, Any] = {} if small else {"device_map": "meta"}
    model, info = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]
        directory, dtype=dtype, use_safetensors=True, output_loading_info=True, **place
    )
    odd = {key: sorted(map(str, info[key])) for key in ("missing_keys", "mismatched_keys") if info[key]}
    if odd:
        raise _fail(f"transformers does not find every weight: {odd}", "Download the instruct model again.")
    how = "loads in transformers" if small else "transformers finds every weight, by name and shape"
    return model.eval(), f"{how} as {type(model).__name__}"


@torch.inference_mode()
def _decodes_like(model: PreTrainedModel, reference: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """What the reference writes greedily is, token by token, what the directory's model would write next.

    Two tokens within rounding of each other count as one.
    """
    prompts, near = _prompts(tokenizer)[:ANSWERS], 0
    for text in prompts:
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
        theirs = _likeliest(reference, ids)
        logits = model(input_ids=torch.cat([ids[0], theirs])[None]).logits[0, ids.shape[1] - 1 : -1].float()
        if not bool(logits.isfinite().all()):
            raise _fail(f"after {text!r} the directory's logits are no numbers", "Look for NaN in the tables given.")
        ours = logits.argmax(dim=1)
        gaps = (logits.amax(dim=1) - logits.gather(1, theirs[:, None])[:, 0]) / logits.abs().amax(dim=1)
        if not bool((gaps <= NEAR.get(reference.dtype, 2e-2)).all()):
            raise _fail(
                f"after {text!r} the directory writes {tokenizer.decode(ours)!r}, the model in memory "
                f"{tokenizer.decode(theirs)!r}",
                "Export the tables and the tokenizer of that model.",
            )
        near += int((ours != theirs).any())
    equal = len(prompts) - near
    return f"{len(prompts)} answers of {NEW_TOKENS} tokens, {equal} equal token by token, {near} up to rounding"


def _prompts(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    if not tokenizer.chat_template:
        return list(TEXTS)
    turns = [[{"role": "user", "content": text}] for text in TEXTS]
    return [str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)) for turn in turns]


def _likeliest(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """The new tokens alone, the likeliest each time, whatever penalties the model's generation config has."""
    read = ids
    for _ in range(NEW_TOKENS):
        read = torch.cat([read, model(input_ids=read).logits[:, -1:].argmax(dim=-1)], dim=1)
    return read[0, ids.shape[1] :]


def _generated(model: PreTrainedModel, ids: torch.Tensor, allowed: Callable) -> torch.Tensor:
    """The new tokens alone, of those allowed, until it stops by itself."""
    written = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=1,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=0,
        prefix_allowed_tokens_fn=allowed,
    )
    return written[0, ids.shape[1] :]  # type: ignore[index]


def _end_is_named(directory: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """The token that ends a turn is among those at which generation is told to stop."""
    token = end_of_turn(tokenizer)
    named = json.loads((directory / "generation_config.json").read_text(encoding="utf-8")).get("eos_token_id")
    if token is not None and token not in (named if isinstance(named, list) else [named]):
        raise _fail(f"eos_token_id={named} lacks {tokenizer.convert_ids_to_tokens(token)!r}", "Please report this.")
    return f"{tokenizer.convert_ids_to_tokens(token)} is an eos token, not tried" if token is not None else "none"


@torch.inference_mode()
def _stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """Made to write the token that ends a turn, generation ends there, told nothing but the directory's configs."""
    token = end_of_turn(tokenizer)
    if token is None:
        return "the chat template names no token that ends a turn" if tokenizer.chat_template else "no chat template"
    ids = tokenizer(_prompts(tokenizer)[0], add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
    written = _generated(model, ids, allowed=lambda batch, so_far: [token])
    if written.tolist() != [token]:
        raise _fail(
            f"generation goes on after {tokenizer.convert_ids_to_tokens(token)!r}",
            "Put that token into eos_token_id of the instruct model's generation_config.json.",
        )
    return f"generation stops at {tokenizer.convert_ids_to_tokens(token)}"
