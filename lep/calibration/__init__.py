"""Calibration after propagation: instruction data, the original model's own answers, and tuning on either.

source.read() -> Conversation -> render() -> Rendered -> pack() -> InstructionBlocks -> InstructionTuning -> Tuned
Data: conversations, copying, rendering, packing. Answers: answering, filtering. Weights: tuning, adapter; method.py is
what an option of the config group builds.
"""

from lep.calibration.conversations import ChatFiles, Conversation, ExchangeFields, HubChats, MessageFields, Turn
from lep.calibration.copying import CopyTasks, copy_tasks, fingerprints
from lep.calibration.packing import InstructionBatches, InstructionBlocks, attention_masks, pack
from lep.calibration.rendering import Rendered, render

__all__ = [
    "ChatFiles",
    "Conversation",
    "CopyTasks",
    "ExchangeFields",
    "HubChats",
    "InstructionBatches",
    "InstructionBlocks",
    "MessageFields",
    "Rendered",
    "Turn",
    "attention_masks",
    "copy_tasks",
    "fingerprints",
    "pack",
    "render",
]
