"""A way to calibrate, as an option of the group `calibration` names it."""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from lep.calibration.answering import SelfAnswers
from lep.calibration.conversations import Conversation, ConversationSource
from lep.calibration.tuning import Tuning


class CopySource(Protocol):
    """Where copy tasks come from; `exclude` are `fingerprints` of texts of which none may hold a sentence."""

    def read(self, *, exclude: Container[int] = frozenset()) -> Iterator[Conversation]: ...

    def fingerprint(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Calibration:
    """A way to calibrate: what is learnt from, and how.

    answers: None learns the answers that stand in the instructions; otherwise the original model's own. copies: copy
    tasks beside them, or None.
    """

    instructions: ConversationSource
    tuning: Tuning
    answers: SelfAnswers | None = None
    copies: CopySource | None = None
