"""How much memory propagation takes, from the size of a model alone, and what this process has taken."""

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")
SMALL_MODEL_BYTES = 2 * 2**30  # of weights: a model that any machine loads in seconds
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
    if STATUS.exists():
        # Sandboxes that stand in for a kernel do not all say it.
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
