"""One remapping of ids: what names a token by number in one vocabulary names the same token in another.

In: two fast tokenizers, and files of a model directory as JSON. Out: the same JSON with ids of the other vocabulary.
Only fields that are known to hold ids are touched, never an integer that happens to equal one.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from lep.vocabulary import read_vocabulary

Json = dict[str, Any]
# Fields whose every id must live on: `eos_token_id`, `pad_token_id`, `image_token_index`, `stop_token_ids`, ...
ID_FIELD = re.compile(r"(?:\w+_)?token_(?:id|ids|index)")
# Lists of ids, and lists of entries with ids inside, that only forbid or bias tokens: what is gone needs neither.
SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
SPELT = ("bad_words_ids", "sequence_bias", "force_words_ids", "forced_decoder_ids")


@dataclass(frozen=True)
class IdMap:
    """Old id -> new id of the tokens that both vocabularies hold; `names` tell the old tokens to people."""

    ids: Mapping[int, int]
    names: Mapping[int, str]

    def __call__(self, old: int, field: str) -> int:
        """The new id. ValueError if the token is gone."""
        if old not in self.ids:
            raise ValueError(
                f"export: {field}={old} of the instruct model is {self.names.get(old)!r}, which the new tokenizer "
                "lacks. Use `lep.chat.result_tokenizer`, or correct that field in the instruct model's directory."
            )
        return self.ids[old]


def id_map(before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast) -> IdMap:
    """By what a token is: a special one by its content, any other by its bytes, however either vocabulary spells it."""
    ours, theirs = read_vocabulary(after), read_vocabulary(before)
    by_content = after.get_vocab() | {content: i for i, content in ours.specials.items()}
    found = {i: by_content.get(content) for i, content in theirs.specials.items()}
    found |= {i: ours.ids_of_bytes.get(token) for i, token in enumerate(theirs.tokens) if token is not None}
    names = {i: piece for i, piece in enumerate(theirs.pieces) if piece is not None}
    return IdMap({old: new for old, new in found.items() if new is not None}, names)


def config_with_ids(config: Json, ids: IdMap, *, vocab_size: int) -> Json:
    """config.json for the new vocabulary, in the text model's part too; code of the hub (`auto_map`) stays behind."""
    changed = _with_ids(config, ids, [])
    changed.pop("auto_map", None)
    text = config.get("text_config")
    if isinstance(text, dict):
        changed["text_config"] = _with_ids(text, ids, []) | {"vocab_size": vocab_size}
    if "vocab_size" in config or not isinstance(text, dict):
        changed["vocab_size"] = vocab_size
    return changed


def generation_with_ids(
    generation: Json, ids: IdMap, *, ends: Iterable[int], pad: int | None
) -> tuple[Json, list[str]]:
    """generation_config.json for the new vocabulary, and what had to be left out of it.

    Generation stops where it stopped before, and at `ends` besides. `pad` holds where no padding was named.
    """
    dropped: list[str] = []
    changed = _with_ids(generation, ids, dropped)
    changed.pop("_from_model_config", None)  # it says more now than the config does
    ends = dict.fromkeys([*_listed(changed.get("eos_token_id")), *ends])
    if ends:
        changed["eos_token_id"] = next(iter(ends)) if len(ends) == 1 else list(ends)
    if changed.get("pad_token_id") is None:
        changed["pad_token_id"] = pad if pad is not None else next(iter(ends), None)
    return changed, dropped


def ids_in(config: Json) -> Iterator[tuple[str, int]]:
    """(field, id) of every id that a config or generation config names, the text model's part included."""
    for field, value in config.items():
        if ID_FIELD.fullmatch(field) or field in SUPPRESSED:
            yield from ((field, one) for one in _listed(value))
        elif field in SPELT:
            yield from ((field, one) for entry in value or [] for one in _ids_of_entry(field, entry))
        elif field == "text_config" and isinstance(value, dict):
            yield from ids_in(value)


def _with_ids(config: Json, ids: IdMap, dropped: list[str]) -> Json:
    changed = dict(config)
    for field, value in config.items():
        if ID_FIELD.fullmatch(field):
            changed[field] = _each(value, lambda one, field=field: ids(one, field))
        elif field in SUPPRESSED and value is not None:
            changed[field] = [ids.ids[one] for one in value if one in ids.ids]
        elif field in SPELT and value:
            entries = [_entry_with_ids(field, entry, ids) for entry in value]
            changed[field] = [entry for entry in entries if entry is not None] or None
        if isinstance(value, list) and isinstance(changed[field], list | None):
            lost = len(value) - len(changed[field] or [])
            if lost:
                dropped.append(f"{field}: {lost} of {len(value)} entries, whose tokens are gone")
    return changed


def _each(value: Any, change: Callable[[int], int]) -> Any:
    """An id or a list of ids changed; a negative one means that there is no such token."""
    if isinstance(value, list):
        return [change(one) for one in value if one >= 0]
    if value is None or value < 0:
        return None
    return change(value)


def _entry_with_ids(field: str, entry: Any, ids: IdMap) -> Any:
    """[ids], [[ids], bias] or [position, id] in new ids; None if a token is gone."""
    if any(one not in ids.ids for one in _ids_of_entry(field, entry)):
        return None
    if field == "sequence_bias":
        return [[ids.ids[one] for one in entry[0]], entry[1]]
    if field == "forced_decoder_ids":
        return [entry[0], ids.ids[entry[1]]]
    return [ids.ids[one] for one in entry]


def _ids_of_entry(field: str, entry: Any) -> list[int]:
    if field == "sequence_bias":
        return list(entry[0])
    return [entry[1]] if field == "forced_decoder_ids" else list(entry)


def _listed(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else [one for one in value if one is not None]
