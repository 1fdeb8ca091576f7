"""Tables on disk: rows of a safetensors file read when asked for, and files rewritten with other tables in them.

In: a safetensors file, or a checkpoint directory of them. Out: `StoredTable`, of which nothing stays in memory, and new
files in which every other tensor's bytes are the old ones, never parsed. Assumed: little-endian, as the format is.
"""

# V vocabulary, D hidden, N rows asked for

import json
import math
import mmap
import os
import shutil
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lep.durable import flushing, replacing

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
METADATA = "__metadata__"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# Memory is given back each time when so many stretches of a file were touched: around a row the kernel may map as much
# as 2 MiB that it holds together.
STRETCH_BYTES, STRETCHES = 2 * 2**20, 32
BLOCK_ROWS = (
    1024  # 1,024 x 4,096 float32 is 16 MiB, which the allocator hands out again and again; 64 MiB are new pages
)
COPY_BYTES = 16 * 2**20


class Table(Protocol):
    """Rows on demand: a tensor [V, D] is one, and so is a table that lies on disk or is computed block by block."""

    @property
    def shape(self) -> torch.Size: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def __getitem__(self, rows: Any, /) -> Tensor: ...


@dataclass(frozen=True)
class ComputedTable:
    """A table whose rows are computed when asked for, by slice, and kept by nobody."""

    shape: torch.Size
    dtype: torch.dtype
    compute: Callable[[slice], Tensor]  # rows start:stop, [stop - start, D]

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(self.shape[0])
        return self.compute(slice(start, stop)).to(self.dtype)


def take(table: Table, rows: np.ndarray) -> Tensor:
    """The numbered rows [N, D] of a table that can be read in any order, on the CPU."""
    places = torch.from_numpy(np.asarray(rows, dtype=np.int64))
    if isinstance(table, Tensor):
        return table.detach()[places.to(table.device)].cpu()
    return table[places]


def blocks(table: Table, *, rows: int = BLOCK_ROWS) -> Iterator[Tensor]:
    """The table in blocks of rows, first to last."""
    for start in range(0, table.shape[0], rows):
        yield table[start : start + rows]


def row_norms(table: Table, *, rows: int | None = None) -> Tensor:
    """Lengths of the first `rows` rows (all without), [V] float64 from float32 sums (float64 of a float64 table)."""
    if isinstance(table, StoredTable):
        return table.row_norms[:rows]
    return _scan_norms(table, table.shape[0] if rows is None else rows)


def _scan_norms(table: Table, rows: int) -> Tensor:
    dtype = torch.promote_types(table.dtype, torch.float32)
    norms = [
        table[start : min(start + BLOCK_ROWS, rows)].detach().to("cpu", dtype).norm(dim=1).double()
        for start in range(0, rows, BLOCK_ROWS)
    ]
    return torch.cat(norms) if norms else torch.empty(0, dtype=torch.float64)


def in_memory(table: Table, *, advance: Callable[[int], None] = lambda rows: None) -> Tensor:
    """All rows of a table: itself if it is a tensor. `advance` is told the rows that are there."""
    if isinstance(table, Tensor):
        advance(len(table))
        return table
    whole = torch.empty(table.shape, dtype=table.dtype)
    start = 0
    for block in blocks(table):
        whole[start : start + len(block)] = block
        start += len(block)
        advance(len(block))
    return whole


@dataclass(frozen=True)
class Entry:
    """A tensor of a safetensors file: dtype as the format names it, shape, and where its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    start: int  # from the beginning of the file
    nbytes: int


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of a safetensors file in the order of their bytes, and its metadata. ValueError if it is none."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > os.fstat(file.fileno()).st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        metadata = header.pop(METADATA, {})
        entries = {
            name: Entry(
                item["dtype"],
                tuple(item["shape"]),
                8 + length + item["data_offsets"][0],
                item["data_offsets"][1] - item["data_offsets"][0],
            )
            for name, item in header.items()
        }
        end = max((entry.start + entry.nbytes for entry in entries.values()), default=8 + length)
        if end > path.stat().st_size:
            raise ValueError(f"it ends at byte {path.stat().st_size:,} of {end:,}")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}. Download or write it again.") from error
    return dict(sorted(entries.items(), key=lambda item: item[1].start)), metadata


class StoredTable:
    """Rows [V, D] of a tensor in a safetensors file, read when asked for: by slice, or by a tensor of row numbers.

    The file is mapped, and what was touched is given back to the system after each read: none of it stays in this
    process. ValueError where the tensor is no table of floats (quantised).
    """

    def __init__(self, path: Path, name: str) -> None:
        entry = read_header(path)[0].get(name)
        if entry is None:
            raise ValueError(f"{path} holds no tensor `{name}`. Is its index of another download?")
        if entry.dtype not in DTYPES or len(entry.shape) != 2:
            raise ValueError(
                f"{path}: `{name}` is {entry.dtype} of shape {entry.shape}; needed are two dimensions of floats of 16 "
                "bits or more. Give a checkpoint that is not quantised."
            )
        self.path, self.name = path, name
        self.dtype, self.shape = DTYPES[entry.dtype], torch.Size(entry.shape)
        if not entry.nbytes:
            self._map, self._rows = None, torch.empty(entry.shape, dtype=self.dtype)
            return
        aligned = entry.start - entry.start % mmap.ALLOCATIONGRANULARITY
        length = entry.start + entry.nbytes - aligned
        with path.open("rb") as file:  # torch takes memory only that could be written to; nobody does
            self._map = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=aligned)
        flat = torch.frombuffer(self._map, dtype=self.dtype, count=math.prod(entry.shape), offset=entry.start - aligned)
        self._rows = flat.view(entry.shape)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        if isinstance(rows, slice):
            chosen = np.arange(*rows.indices(self.shape[0]))
        else:
            chosen = rows.cpu().numpy()
        stretches = chosen * (self.shape[1] * self.dtype.itemsize) // STRETCH_BYTES
        turns = np.cumsum(np.diff(stretches, prepend=stretches[:1]) != 0) // STRETCHES
        result, start = torch.empty(len(chosen), self.shape[1], dtype=self.dtype), 0
        for some in np.split(chosen, np.flatnonzero(np.diff(turns)) + 1):
            torch.index_select(self._rows, 0, torch.from_numpy(some), out=result[start : start + len(some)])
            self._give_back()
            start += len(some)
        return result

    @cached_property
    def row_norms(self) -> Tensor:
        """Lengths of all rows, [V] float64: several ask for them, and the file does not change."""
        return _scan_norms(self, self.shape[0])

    def _give_back(self) -> None:
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def tensor_files(model_dir: Path) -> dict[str, Path]:
    """Tensor name -> file of a checkpoint directory, from the index of the shards or from the single file."""
    if (model_dir / INDEX_FILE).exists():
        weight_map = json.loads((model_dir / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
        files = {name: model_dir / file for name, file in weight_map.items()}
        missing = sorted({path.name for path in files.values() if not path.exists()})
        if missing:
            raise ValueError(
                f"{model_dir}: its index names {missing}, which are not there. Download the checkpoint whole."
            )
        return files
    if (model_dir / SINGLE_FILE).exists():
        return dict.fromkeys(read_header(model_dir / SINGLE_FILE)[0], model_dir / SINGLE_FILE)
    pickles = sorted(
        path.name for pattern in ("*.bin", "*.bin.index.json", "*.pt", "*.pth") for path in model_dir.glob(pattern)
    )
    if pickles:
        raise ValueError(
            f"{model_dir}: weights are pickles ({pickles[0]}), which can run code when opened. Convert them once: "
            "AutoModelForCausalLM.from_pretrained(dir).save_pretrained(new_dir) writes safetensors."
        )
    raise ValueError(
        f"{model_dir}: neither {SINGLE_FILE} nor {INDEX_FILE} is there. Give the directory of a checkpoint."
    )


def rewrite_checkpoint(
    source_dir: Path,
    out_dir: Path,
    replaced: Mapping[str, Table],
    *,
    dropped: Collection[str] = (),
    links: bool = True,
    advance: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """The safetensors files of a checkpoint, and their index, with other tables under the given names.

    Files without such a name are hard-linked, or copied where that cannot be or `links` is off; the others are written
    anew, in the dtypes they had. `advance` is told the bytes written. `out_dir` must be there; the index is written
    last. ValueError where the disk has too little room.
    """
    files, changed = tensor_files(source_dir), {*replaced, *dropped}
    rewritten = {files[name] for name in changed}
    need = sum(rewritten_bytes(path, replaced, dropped) for path in rewritten)
    if not links:
        need += sum(path.stat().st_size for path in {*files.values()} - rewritten)
    free = shutil.disk_usage(out_dir).free
    if need > free:
        raise ValueError(
            f"{out_dir}: {need:,} bytes are to be written, but the disk has {free:,} left. "
            "Free some, or write elsewhere."
        )
    for path in sorted({*files.values()}):
        target = out_dir / path.name
        if path not in rewritten:
            link_or_copy(path, target, links=links)
        elif read_header(path)[0].keys() - dropped:
            rewrite(path, target, replaced, dropped=dropped, advance=advance)
    if (source_dir / INDEX_FILE).exists():
        _rewrite_index(source_dir, out_dir, files, dropped)


def link_or_copy(source: Path, target: Path, *, links: bool = True) -> None:
    """The same file under a second name; a copy where file systems differ or have no links."""
    target.unlink(missing_ok=True)
    try:
        if links:
            os.link(source.resolve(), target)  # resolved: the hub's cache is made of symbolic links
            return
    except OSError:
        pass
    shutil.copyfile(source, target)


def rewritten_bytes(path: Path, replaced: Mapping[str, Table], dropped: Collection[str] = ()) -> int:
    """Bytes of tensors that the file will have once rewritten; its header comes to some kilobytes more."""
    entries, _ = read_header(path)
    return sum(
        _nbytes(entry.dtype, replaced[name].shape) if name in replaced else entry.nbytes
        for name, entry in entries.items()
        if name not in dropped
    )


def _nbytes(dtype: str, shape: torch.Size) -> int:
    return shape.numel() * DTYPES[dtype].itemsize


def rewrite(
    source: Path,
    target: Path,
    replaced: Mapping[str, Table],
    *,
    dropped: Collection[str] = (),
    advance: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """One safetensors file with other tables under the given names, in the dtypes they had; whole or not at all."""
    entries, metadata = read_header(source)
    entries = {name: entry for name, entry in entries.items() if name not in dropped}
    parts = {
        name: (entry.dtype, tuple(replaced[name].shape), _nbytes(entry.dtype, replaced[name].shape))
        if name in replaced
        else (entry.dtype, entry.shape, entry.nbytes)
        for name, entry in entries.items()
    }
    header = _header(parts, metadata)
    starts = dict(
        zip(parts, accumulate((nbytes for _, _, nbytes in parts.values()), initial=len(header)), strict=False)
    )
    with source.open("rb") as old, replacing(target) as partial, partial.open("wb") as new, flushing(new):
        new.write(header)
        # What is copied comes first: the disk takes it while the tables are computed.
        for name in sorted(parts, key=lambda name: name in replaced):
            new.seek(starts[name])
            if name in replaced:
                _write_table(new, replaced[name], DTYPES[entries[name].dtype], advance)
            else:
                _copy_bytes(old, new, entries[name], advance)


def write_file(
    path: Path, tables: Mapping[str, Table], *, advance: Callable[[int], None] = lambda nbytes: None
) -> None:
    """A safetensors file of these tables alone, in their dtypes; whole or not at all."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    parts = {
        name: (names[table.dtype], tuple(table.shape), _nbytes(names[table.dtype], table.shape))
        for name, table in tables.items()
    }
    with replacing(path) as partial, partial.open("wb") as file, flushing(file):
        file.write(_header(parts, {}))
        for table in tables.values():
            _write_table(file, table, table.dtype, advance)


def _header(parts: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a safetensors file: by name dtype, shape and bytes, in the order in which the data follow."""
    header: dict[str, Any] = {METADATA: metadata} if metadata else {}
    offset = 0
    for name, (dtype, shape, nbytes) in parts.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format keeps the data aligned
    return struct.pack("<Q", len(text)) + text


def _write_table(file: IO[bytes], table: Table, dtype: torch.dtype, advance: Callable[[int], None]) -> None:
    """One block goes to the file while the next is computed."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        writing, nbytes = None, 0
        for block in blocks(table):
            words = block.detach().cpu().to(dtype).contiguous().view(torch.uint8).numpy()
            if writing is not None:
                writing.result()
                advance(nbytes)
            writing, nbytes = pool.submit(file.write, words.data), words.nbytes
        if writing is not None:
            writing.result()
            advance(nbytes)


def _copy_bytes(old: IO[bytes], new: IO[bytes], entry: Entry, advance: Callable[[int], None]) -> None:
    old.seek(entry.start)
    left = entry.nbytes
    while left:
        chunk = old.read(min(COPY_BYTES, left))
        if not chunk:
            raise ValueError(f"{old.name} became shorter while it was copied. Start again.")
        new.write(chunk)
        advance(len(chunk))
        left -= len(chunk)


def _rewrite_index(source_dir: Path, out_dir: Path, files: Mapping[str, Path], dropped: Collection[str]) -> None:
    """`weight_map` without what was dropped; `total_size` in bytes, and `total_parameters` where it was told."""
    index = json.loads((source_dir / INDEX_FILE).read_text(encoding="utf-8"))
    index["weight_map"] = {name: path.name for name, path in files.items() if name not in dropped}
    shards = sorted({*index["weight_map"].values()})
    entries = [entry for shard in shards for entry in read_header(out_dir / shard)[0].values()]
    index["metadata"] = (index.get("metadata") or {}) | {"total_size": sum(entry.nbytes for entry in entries)}
    if "total_parameters" in index["metadata"]:
        index["metadata"]["total_parameters"] = sum(math.prod(entry.shape) for entry in entries)
    with replacing(out_dir / INDEX_FILE) as partial:
        partial.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
