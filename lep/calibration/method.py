"""A way to calibrate, as an option of the group `calibration` names it."""

import re
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from lep.calibration.answering import SelfAnswers
from lep.calibration.conversations import Conversation, ConversationSource
from lep.calibration.tuning import Tuning


class CopySource(Protocol):
    """Where copy tasks come from; `exclude` are `fingerprints` of texts of which none may hold a sentence."""

    @property
    def count(self) -> int | None: ...

    def read(self, *, exclude: Container[int] = frozenset()) -> Iterator[Conversation]: ...

    def fingerprint(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Calibration:
    """A way to calibrate: what is learnt from, and how.

    answers: None learns the answers that stand in the instructions; otherwise the original model's own. copies: copy
    tasks beside them, or None. num_copies: how many, where their source leaves that open.
    """

    instructions: ConversationSource
    tuning: Tuning
    answers: SelfAnswers | None = None
    copies: CopySource | None = None
    num_copies: int | None = None

    def __post_init__(self) -> None:
        if self.copies is not None and self.copies.count is None:
            if self.num_copies is None or self.num_copies < 1:
                raise ValueError(
                    f"num_copies={self.num_copies} with instructions.copies.count=null makes no copy tasks. Give 1 or "
                    "more in one of them, or copies=null for none"
                )
            object.__setattr__(self, "copies", replace(self.copies, count=self.num_copies))  # type: ignore[type-var]


def _names(kind: type) -> str:
    return "|".join(found.name for found in fields(kind))


# Keys below a calibration as what stands there calls them, in no path and under no longer key.
_OWN_KEY = re.compile(
    rf"(?<![\w./-])(?:tuning\.(?:{_names(Tuning)})|answers\.(?:{_names(SelfAnswers)})|(?:num_)?copies(?==))"
)


@contextmanager
def named_in_full(name: str) -> Iterator[None]:
    """What a calibration of that name refuses under a key of its own (tuning.rank) is refused as a user types it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(_OWN_KEY.sub(rf"calibration.{name}.\g<0>", str(error))) from error
