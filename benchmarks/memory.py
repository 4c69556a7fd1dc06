"""Resident memory of preparing and training on a large synthetic corpus.

    python benchmarks/memory.py --mib 1024 --tokenizer bytes

Each row is a process of its own: the imports alone, then ``configs/text.yaml``'s model trained on a
small corpus and on the large one. Peak resident memory is the kernel's (``ru_maxrss``).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lightning
import numpy as np

from lit_gamma import LanguageModel, TransformerConfig
from lit_gamma.data import Text


def write_corpus(path: Path, mib: int) -> None:
    """Words of a made-up vocabulary by Zipf's law, in documents of some 600 words."""
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(random.choice(letters, n)) for n in random.integers(2, 10, 20_000)])
    written = 0
    with open(path, "w") as file:
        while written < mib << 20:
            drawn = words[np.minimum(random.zipf(1.2, 600), len(words)) - 1]
            written += file.write(json.dumps({"text": " ".join(drawn)}) + "\n")


def train(corpus: Path, tokenizer: str, steps: int) -> None:
    data = Text(str(corpus), tokenizer=tokenizer, cache_dir=str(corpus.parent / "cache"))
    model = LanguageModel(TransformerConfig(data.vocab_size, data.context_length, 4, 4, 128))
    trainer = lightning.Trainer(
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=2,
    )
    trainer.fit(model, data)


def measured(*arguments: str) -> tuple[float, float]:
    """Peak resident MiB and seconds of this script with other arguments."""
    start = time.perf_counter()
    command = [sys.executable, __file__, *arguments]
    peak = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(peak.split()[-1]) / 1024, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--tokenizer", default="bytes")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        if args.child:
            train(Path(args.child), args.tokenizer, args.steps)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    with tempfile.TemporaryDirectory() as folder:
        print("| corpus | peak resident MiB | above the imports | seconds |\n|---|---|---|---|")
        bare, seconds = measured("--child", "")
        print(f"| none: the imports alone | {bare:.0f} | 0 | {seconds:.0f} |", flush=True)
        for mib in (8, args.mib):
            corpus = Path(folder, f"{mib}.jsonl")
            write_corpus(corpus, mib)
            settings = ["--tokenizer", args.tokenizer, "--steps", str(args.steps)]
            peak, seconds = measured("--child", str(corpus), *settings)
            print(f"| {mib} MiB | {peak:.0f} | {peak - bare:.0f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
