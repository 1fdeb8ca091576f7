"""How much memory training and propagation take, from the size of a model alone, and what this process has taken."""

import resource
import sys
from pathlib import Path

TRAINED_BYTES = 16  # float32 value, gradient and the two moments of AdamW


def training_bytes(
    parameters: int,
    *,
    vocabulary: int,
    hidden: int,
    tied: bool,
    new_vocabulary: int,
    trained_rows: int,
    body_bytes: int,
) -> int:
    """Bytes on the training device: frozen body, frozen rows, trained rows with their gradients and moments.

    parameters: of the base model, its tables of `vocabulary` rows included. body_bytes: of a frozen weight, 2 in
    bfloat16 and 4 in float32. Activations come on top: they grow with the tokens of a batch, not with the vocabulary.
    """
    tables = 1 if tied else 2
    body = parameters - tables * vocabulary * hidden
    frozen = tables * (new_vocabulary - trained_rows) * hidden
    return (body + frozen) * body_bytes + tables * trained_rows * hidden * TRAINED_BYTES


PROCESS_BYTES = 600 * 2**20  # Python, torch and transformers, before any work
GRAM_MATRICES = (
    9  # D x D in float64 at the height of a fit: two sums of seen and of unseen rows, factor, solution, room
)
CHUNKS = 10  # of rows in float64 at the height of a fit: base, instruct, their change, the old rows they are made of


def propagation_bytes(hidden: int, *, chunk_rows: int) -> int:
    """Resident bytes of propagation from files: it does not grow with the vocabulary, as no table is ever whole."""
    return PROCESS_BYTES + 8 * hidden * (GRAM_MATRICES * hidden + CHUNKS * chunk_rows)


def peak_memory_bytes() -> int:
    """The most memory this process has been resident with.

    Linux hands a process the `ru_maxrss` of the one that started it, so that a run begun from a large one (a sweep, a
    test) would be told that one's peak. The kernel's own account of the process has no such inheritance.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
