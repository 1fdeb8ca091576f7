"""A way to calibrate, as an option of the group `calibration` names it."""

from dataclasses import dataclass

from lep.calibration.answering import SelfAnswers
from lep.calibration.conversations import ConversationSource
from lep.calibration.tuning import Tuning


@dataclass(frozen=True)
class Calibration:
    """A way to calibrate: what is learnt from, and how.

    answers: None learns the answers that stand in the instructions; otherwise the original model's own. copies: copy
    tasks beside them, or None.
    """

    instructions: ConversationSource
    tuning: Tuning
    answers: SelfAnswers | None = None
    copies: ConversationSource | None = None
