import os

# Huge pages for large tensors (PyTorch on Linux; it looks once, at its first tensor): each chunk of a table is fresh
# memory, and 4 KiB pages cost a fit on the CPU a quarter of its time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
