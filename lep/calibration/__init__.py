"""Instruction data for calibration: from conversations to packed blocks in which only answers are learnt.

source.read() -> Conversation -> render() -> Rendered -> pack() -> InstructionBlocks -> InstructionBatches
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
