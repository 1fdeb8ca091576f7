"""Continued pre-training that moves the embedding tables and nothing else."""

from lep.training.checkpoint import LastCheckpoint
from lep.training.data import HeldOutWindow, PackedData, held_out_windows
from lep.training.loss import chunked_cross_entropy
from lep.training.module import EmbeddingTraining
from lep.training.parallel import Disband, ShardedBody
from lep.training.progress import TrainingProgress
from lep.training.watching import BenchmarkWhileTraining, EndTraining, ReportHeldOut, measured

__all__ = [
    "BenchmarkWhileTraining",
    "Disband",
    "EmbeddingTraining",
    "EndTraining",
    "HeldOutWindow",
    "LastCheckpoint",
    "PackedData",
    "ReportHeldOut",
    "ShardedBody",
    "TrainingProgress",
    "chunked_cross_entropy",
    "held_out_windows",
    "measured",
]
