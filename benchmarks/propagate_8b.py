"""Propagation at LLaMa-3-8B's shape, from checkpoint to checkpoint: time beside the bare matrix products, and memory.

Three checkpoints of the full shard layout are made in a temporary folder: shards with a table are filled where it lies,
the rest is holes; shards without a table are one file under three names. Each rule then runs in a process of its own:
read base, instruct and adapted, fit, write the fourth checkpoint. Bare is what the rule cannot do without, measured in
that process before and after on buffers that are ready (4,096 rows, scaled to the rows there are): for a fitted rule
and each table, the upper half of B^T B and B^T (I - B) in float64 over the rows of the fit, and A Q in float32 over the
new vocabulary. Swap and delta have no such products. Random rows: their values do not change the work.

    python benchmarks/propagate_8b.py                       # 128,256 x 4,096, some 20 minutes on two cores
    python benchmarks/propagate_8b.py --hidden 512 --layers 4   # a quick look
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table as Lines
from scipy.sparse import csr_array

from lep.embeddings import open_embeddings, write_tables
from lep.memory import peak_memory_bytes, propagation_bytes
from lep.propagation import propagate
from lep.propagation.conversion import conversion
from lep.propagation.delta import delta
from lep.propagation.gram import CHUNK_ROWS, add_symmetric_
from lep.propagation.overlap import overlap
from lep.propagation.swap import swap
from lep.shards import INDEX_FILE
from lep.vocabulary import SubtokenOperator

RULES = {
    "swap": swap,
    "delta": delta,
    "overlap": partial(overlap, ridge=1e-3),
    "conversion": partial(conversion, ridge=1e-3),
}
RESERVED = 256  # rows at the end of the old vocabulary that training never reached, as in LLaMa-3
OPERATOR = "operator.safetensors"


def shards_of(rows: int, arguments: argparse.Namespace) -> list[dict[str, tuple[int, ...]]]:
    """Names and shapes by shard: the input table leads the first, the head closes the last, layers fill the rest."""
    hidden, wide, few = arguments.hidden, int(3.5 * arguments.hidden), arguments.hidden // 4
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (few, hidden),
        "self_attn.v_proj": (few, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    # As in the release: 9 layers beside the input table, none beside the head but one.
    last, beside = arguments.layers - 1, max(1, arguments.layers * 9 // 32)
    places = [0 if k < beside else 3 if k == last else 1 if k < (beside + last) // 2 else 2 for k in range(last + 1)]
    shards: list[dict[str, tuple[int, ...]]] = [{"model.embed_tokens.weight": (rows, hidden)}, {}, {}, {}]
    for layer, place in enumerate(places):
        shards[place] |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}
    shards[3] |= {"model.norm.weight": (hidden,), "lm_head.weight": (rows, hidden)}
    return [shard for shard in shards if shard]


def make_checkpoint(
    directory: Path, rows: int, arguments: argparse.Namespace, *, seeds: tuple[int, ...], twin: Path | None
):
    directory.mkdir()
    shards = shards_of(rows, arguments)
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, file)
        total += sum(2 * int(np.prod(shape)) for shape in shard.values())
        if twin and not any("embed" in name or "head" in name for name in shard):
            os.link(twin / file, directory / file)
        else:
            write_shard(directory / file, shard, seeds)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX_FILE).write_text(json.dumps(index))
    config = {"model_type": "llama", "vocab_size": rows, "hidden_size": arguments.hidden, "tie_word_embeddings": False}
    (directory / "config.json").write_text(json.dumps(config))


def write_shard(path: Path, shard: dict[str, tuple[int, ...]], seeds: tuple[int, ...]) -> None:
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shard.items():
        stop = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
        for name, shape in shard.items():
            if "embed_tokens" in name or "lm_head" in name:
                file.seek(8 + len(text) + header[name]["data_offsets"][0])
                write_rows(file, shape, [seed + (100 if "lm_head" in name else 0) for seed in seeds])


def write_rows(file, shape: tuple[int, ...], seeds: list[int]) -> None:
    """Random rows of the first seed, a tenth of those of each further one added; the reserved rows nearly zero."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for start in range(0, shape[0], CHUNK_ROWS):
        size = (min(CHUNK_ROWS, shape[0] - start), shape[1])
        drawn = [torch.randn(size, generator=generator) * 0.01 for generator in generators]
        rows = drawn[0] + 0.1 * sum(drawn[1:], torch.zeros(()))
        rows[max(0, shape[0] - RESERVED - start) :] *= 1e-5
        file.write(rows.bfloat16().view(torch.int16).numpy().tobytes())


def make_operator(arguments: argparse.Namespace) -> SubtokenOperator:
    """Shared tokens spread over the old vocabulary; the others are 2 to 5 old tokens, few doing most of the work."""
    rng = np.random.default_rng(arguments.seed)
    trained = arguments.old - RESERVED
    shared = np.sort(rng.choice(trained, arguments.shared, replace=False))
    pieces = rng.integers(2, 6, arguments.new - arguments.shared)
    popular = rng.permutation(trained)
    composed = popular[(trained * rng.random(pieces.sum()) ** 3).astype(np.int64)]
    lengths = np.concatenate([np.ones(arguments.shared, dtype=np.int64), pieces])
    data = np.repeat(1 / lengths, lengths).astype(np.float32)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    weights = csr_array(
        (data, np.concatenate([shared, composed]).astype(np.int32), indptr), shape=(arguments.new, arguments.old)
    )
    weights.sum_duplicates()
    ids = np.arange(arguments.new)
    return SubtokenOperator(weights, exact=ids < arguments.shared, special=np.zeros(arguments.new, dtype=bool))


def bare_chunk_seconds(hidden: int, repeats: int) -> tuple[float, float]:
    """(float64 products of a chunk of the fit, float32 product of a chunk of the result), seconds each."""
    base, change = (torch.randn(CHUNK_ROWS, hidden, dtype=torch.float64) for _ in range(2))
    sums = [torch.zeros(hidden, hidden, dtype=torch.float64) for _ in range(2)]
    started = time.perf_counter()
    for _ in range(repeats):
        add_symmetric_(sums[0], base)
        sums[1].addmm_(base.T, change)
    fit = (time.perf_counter() - started) / repeats
    rows, mapping = base.float(), torch.randn(hidden, hidden)
    started = time.perf_counter()
    for _ in range(repeats):
        torch.addmm(rows, rows, mapping)
    return fit, (time.perf_counter() - started) / repeats


def measure(arguments: argparse.Namespace, folder: Path) -> dict:
    """One rule from start to end, in this process."""
    fitted = arguments.rule in ("overlap", "conversion")
    bare = [bare_chunk_seconds(arguments.hidden, arguments.repeats)] if fitted else []
    started = time.perf_counter()
    operator = SubtokenOperator.load(folder / OPERATOR)
    models = [open_embeddings(folder / name) for name in ("adapted", "base", "instruct")]
    tables, diagnostics = propagate(RULES[arguments.rule], *models, operator)
    fit_seconds = time.perf_counter() - started
    out = folder / "out"
    out.mkdir()
    write_tables(folder / "instruct", out, tables)
    seconds = time.perf_counter() - started
    peak = peak_memory_bytes()
    result = {"seconds": seconds, "fit_seconds": fit_seconds, "peak": peak, "diagnostics": diagnostics}
    if fitted:
        bare.append(bare_chunk_seconds(arguments.hidden, arguments.repeats))
        fit, apply = (sum(part) / len(bare) for part in zip(*bare, strict=True))
        rows = [facts["rows"] for facts in diagnostics.values()]
        result["bare"] = sum(fit * n + apply * arguments.new for n in rows) / CHUNK_ROWS
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--old", type=int, default=128_256, help="rows of base and instruct")
    parser.add_argument("--new", type=int, default=128_000, help="rows of the adapted tables")
    parser.add_argument("--shared", type=int, default=40_000, help="tokens that both vocabularies hold")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument(
        "--repeats", type=int, default=2, help="chunks of the bare products, before and after each rule"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the checkpoints go for the time being (34 GB apparent)")
    parser.add_argument("--rule", choices=list(RULES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rule:
        print(json.dumps(measure(arguments, arguments.folder)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        make_operator(arguments).save(folder / OPERATOR)
        make_checkpoint(folder / "base", arguments.old, arguments, seeds=(1,), twin=None)
        make_checkpoint(folder / "instruct", arguments.old, arguments, seeds=(1, 2), twin=folder / "base")
        make_checkpoint(folder / "adapted", arguments.new, arguments, seeds=(3,), twin=folder / "base")
        report(arguments, folder, {rule: run(rule, folder) for rule in arguments.rules})


def run(rule: str, folder: Path) -> dict:
    command = [sys.executable, __file__, *sys.argv[1:], "--rule", rule, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    subprocess.run(["rm", "-r", str(folder / "out")], check=True)
    found = json.loads(done.stdout)
    print(rule, json.dumps(found), file=sys.stderr)
    return found


def report(arguments: argparse.Namespace, folder: Path, found: dict[str, dict]) -> None:
    sizes = {(f.stat().st_ino): f.stat() for f in folder.rglob("*") if f.is_file()}
    apparent, real = sum(s.st_size for s in sizes.values()), sum(512 * s.st_blocks for s in sizes.values())
    lines = Lines(
        "rule",
        "seconds",
        "of it fitting",
        "bare products",
        "ratio",
        "peak memory",
        "foreseen",
        "rows of a fit",
        "R2 held out",
    )
    for rule, result in found.items():
        bare, facts = result.get("bare"), result["diagnostics"]["input"]
        lines.add_row(
            rule,
            f"{result['seconds']:.0f}",
            f"{result['fit_seconds']:.0f}",
            f"{bare:.0f}" if bare else "none",
            f"{result['seconds'] / bare:.2f}" if bare else "",
            f"{result['peak'] / 1e9:.2f} GB",
            f"{propagation_bytes(arguments.hidden, chunk_rows=CHUNK_ROWS) / 1e9:.2f} GB",
            f"{facts['rows']:,}" if bare else "",
            f"{facts['held_out_r2']:.3f}" if bare else "",
        )
    print(
        f"{arguments.old:,} and {arguments.new:,} rows x {arguments.hidden:,}, bfloat16, untied; "
        f"{torch.get_num_threads()} threads; disk {apparent / 1e9:.1f} GB apparent, {real / 1e9:.1f} GB real"
    )
    Console(width=120).print(lines)


if __name__ == "__main__":
    main()
