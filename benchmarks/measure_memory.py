"""Resident memory of ``measure`` on a series in Pythia's layout, made here at random.

    python benchmarks/measure_memory.py --dtype float32

Two checkpoints of the 160M shape (GPT-NeoX, three safetensors shards and their index) are measured
in a process of its own; another one only imports. Peak resident memory is Linux's ``VmHWM``, which
counts the pages of mapped files too.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from lit_gamma.series import measure

WIDTH, HIDDEN, VOCAB, LAYERS, HEADS = 768, 3072, 50304, 12, 12
SHARDS = 3


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "gpt_neox.embed_in.weight", (VOCAB, WIDTH)
    for i in range(LAYERS):
        layer = f"gpt_neox.layers.{i}"
        linear = {
            "attention.query_key_value": (3 * WIDTH, WIDTH),
            "attention.dense": (WIDTH, WIDTH),
            "mlp.dense_h_to_4h": (HIDDEN, WIDTH),
            "mlp.dense_4h_to_h": (WIDTH, HIDDEN),
        }
        for name, shape in linear.items():
            yield f"{layer}.{name}.weight", shape
            yield f"{layer}.{name}.bias", shape[:1]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{norm}.weight", (WIDTH,)
            yield f"{layer}.{norm}.bias", (WIDTH,)
    yield "embed_out.weight", (VOCAB, WIDTH)


def write_checkpoint(folder: Path, dtype: torch.dtype) -> int:
    """Writes one in shards of about the same size; returns its bytes."""
    folder.mkdir(parents=True)
    named = list(shapes())
    index, written, per_shard = {}, 0, -(-len(named) // SHARDS)
    for k in range(SHARDS):
        shard = f"model-{k + 1:05}-of-{SHARDS:05}.safetensors"
        part = named[k * per_shard : (k + 1) * per_shard]
        tensors = {name: (torch.randn(shape) * 0.02).to(dtype) for name, shape in part}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, shard)
        written += (folder / shard).stat().st_size
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = {"model_type": "gpt_neox", "hidden_size": WIDTH, "num_attention_heads": HEADS}
    (folder / "config.json").write_text(json.dumps(config))
    return written


def peak(*arguments: str) -> tuple[int, float]:
    """Peak resident bytes and seconds of this script with other arguments."""
    start = time.perf_counter()
    command = [sys.executable, __file__, *arguments]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(printed.split()[-1]) * 1024, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        if args.child:
            measure(*args.child)
        print(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        for step in (0, 1000):
            size = write_checkpoint(Path(folder, f"series/step{step}"), getattr(torch, args.dtype))
        bare, _ = peak("--child")
        used, seconds = peak("--child", str(Path(folder, "series")), str(Path(folder, "record")))
    print("| checkpoint | MiB | imports alone, MiB | above them, MiB | ÷ checkpoint | seconds |")
    print("|---|---|---|---|---|---|")
    sizes = " | ".join(f"{bytes_ / 2**20:.0f}" for bytes_ in (size, bare, used - bare))
    print(f"| 160M, {args.dtype} | {sizes} | {(used - bare) / size:.2f} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
