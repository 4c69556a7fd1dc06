"""The whole bill: the configs as they are shipped, and five models within one budget.

    python benchmarks/bill.py --data FILE

Every row is a run of ``python -m lit_gamma fit`` with everything on, pictures, probe and the
experiment's own callback included, in one thread. The share is the callbacks' own bill over the
time of training without it, as ``summary.json`` has it; what comes after the last step but on the
bill (the probe with truncated contexts, the last overview) is in it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

MODELS = {  # layers, heads, d_model; batch of 128 tokens each; steps
    "0.1M": (2, 2, 64, 16, 2000),
    "0.9M": (4, 4, 128, 16, 1000),
    "3.6M": (4, 4, 256, 16, 400),
    "12M": (6, 6, 384, 16, 200),
    "32M": (9, 8, 512, 16, 100),
}


def cases(data: str) -> dict[str, list[str]]:
    """Name of a row to its arguments."""
    text = ["--config", "configs/text.yaml", "--data.data_files", data]
    found = {
        "configs/anchor.yaml": ["--config", "configs/anchor.yaml"],
        "configs/everything.yaml": ["--config", "configs/everything.yaml"],
        "configs/text.yaml": text,
    }
    for name, (n_layers, n_heads, d_model, batch_size, steps) in MODELS.items():
        shape = {"n_layers": n_layers, "n_heads": n_heads, "d_model": d_model}
        arguments = [f"--model.transformer.{key}={value}" for key, value in shape.items()]
        arguments += [f"--data.batch_size={batch_size}", f"--trainer.max_steps={steps}"]
        found[f"text, {name}, {steps} steps"] = [*text, *arguments, "--overhead=0.05"]
    return found


def bill(arguments: list[str]) -> tuple[dict[str, Any], float, str]:
    """The summary of a run, its budget, and what it said of its plan."""
    with tempfile.TemporaryDirectory() as folder:
        where = f"--trainer.logger.init_args.save_dir={folder}"
        done = subprocess.run(
            [sys.executable, "-m", "lit_gamma", "fit", *arguments, where,
             "--trainer.enable_progress_bar=false"],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        (path,) = Path(folder).glob("*/*/summary.json")
        summary = json.loads(path.read_text())
        budget = yaml.safe_load(path.with_name("config.yaml").read_text())["overhead"]
    planned = re.search(r"recording will take about ([\d.]+%)", done.stderr)
    return summary, budget, planned[1] if planned else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a text file")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    args = parser.parse_args()
    data = str(Path(args.data).absolute())
    print("| run | ms per step | budget | planned | paid | dearest |\n|---|---|---|---|---|---|")
    for name, arguments in cases(data).items():
        if args.only not in name:
            continue
        summary, budget, planned = bill(arguments)
        shares = {c: cost["share_of_step"] for c, cost in summary["overhead"].items()}
        dearest = sorted(shares, key=lambda c: -shares[c])[:3]
        ms = 1e3 * summary["seconds"] / summary["steps"]
        said = ", ".join(f"{c} {shares[c]:.1%}" for c in dearest)
        paid = f"{budget:.0%} | {planned} | {sum(shares.values()):.1%}"
        print(f"| {name} | {ms:.0f} | {paid} | {said} |", flush=True)


if __name__ == "__main__":
    main()
