"""Trains on reasoning and plain text together, over γ and seeds, and compares token by token.

    python benchmarks/reasoning_and_text.py prontoqa.jsonl tinyshakespeare.txt --jobs 2

Every run is ``python -m lit_gamma fit --config configs/text.yaml`` on both texts in equal parts,
one thread each. The report is that of ``python -m lit_gamma compare``. Finished runs are kept, so
that the script can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from anchor_gamma import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reasoning", type=Path, help="JSONL with a field 'text'")
    parser.add_argument("text", type=Path)
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.5, 0.8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/reasoning_and_text"))
    args = parser.parse_args()
    sources = {
        "reasoning": {"data_files": str(args.reasoning), "field": "text", "weight": 1},
        "shakespeare": {"data_files": str(args.text), "weight": 1},
    }
    setting = [
        "--config=configs/text.yaml",
        f"--data.sources={json.dumps(sources)}",
        "--data.tokenizer=bpe:1024",
        "--data.context_length=256",
        "--data.batch_size=8",
        f"--trainer.max_steps={args.steps}",
        "--trainer.val_check_interval=500",
        "--trainer.limit_val_batches=20",
        "--trainer.callbacks.init_args.blocks=48",
    ]
    points = [(gamma, seed) for seed, gamma in product(args.seeds, args.gammas)]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = list(pool.map(lambda point: train(args.out, *point, *setting), points))
    report = args.out / "report.html"
    command = [sys.executable, "-m", "lit_gamma", "compare", *map(str, runs), f"--out={report}"]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
