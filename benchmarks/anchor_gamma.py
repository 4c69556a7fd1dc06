"""Trains the default experiment over γ and seeds and prints what became of the unseen pair.

    python benchmarks/anchor_gamma.py --jobs 2

Every run is ``python -m lit_gamma fit --config configs/anchor.yaml`` with all its callbacks, one
thread each. Finished runs are kept, so that the script can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pandas as pd

from lit_gamma import trajectory


def train(out: Path, gamma: float, seed: int, *arguments: str) -> Path:
    """Fits in a process of its own, unless that run has finished before; returns its directory."""
    run_dir = out / f"gamma{gamma}" / f"seed{seed}"
    summary = run_dir / "summary.json"
    if not (summary.exists() and json.loads(summary.read_text())["status"] == "finished"):
        command = [sys.executable, "-m", "lit_gamma", "fit", *arguments]
        command += [f"--model.gamma={gamma}", f"--seed_everything={seed}"]
        command += [f"--trainer.logger.init_args.save_dir={out}"]
        command += [f"--trainer.logger.init_args.name=gamma{gamma}"]
        command += [f"--trainer.logger.init_args.version=seed{seed}"]
        command += ["--trainer.enable_progress_bar=false"]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return run_dir


def measured(run_dir: Path) -> dict[str, float]:
    summary = json.loads((run_dir / "summary.json").read_text())
    tables = trajectory.load(run_dir)
    answers = tables["anchor_reasoning"].iloc[-1]
    last = tables["condensation"]["layer"].max()  # noqa: F841 (named in the queries)
    cosines = tables["condensation"].query("layer == @last and role in ('query', 'key')")
    stable = tables["effective_rank"].query("layer == @last and role == 'mlp_down'")
    stable = stable["stable_rank_over_null"]
    return {
        "seen": summary["metrics"]["val/seen/accuracy"],
        "composition": answers["composition"],
        "symmetry": answers["symmetry"],
        "condensation": cosines["mean_squared_cosine_over_null"].max(),
        "lowest_rank": stable.min(),
        "final_rank": stable.iloc[-1],
        "seconds": summary["seconds"],
    }


def table(runs: pd.DataFrame) -> str:
    lines = [
        "| γ | seen pairs, held-out keys | composition | symmetry | peak cos² ÷ null, last Q, K | "
        "stable rank ÷ null, last MLP down, lowest → final |",
        "|---|---|---|---|---|---|",
    ]
    for gamma, group in runs.groupby("gamma"):
        cells = [spread(group[name]) for name in ("seen", "composition", "symmetry")]
        cells += [f"{group['condensation'].mean():.1f}"]
        cells += [f"{group['lowest_rank'].mean():.2f} → {group['final_rank'].mean():.2f}"]
        lines.append(f"| {gamma} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: pd.Series) -> str:
    return f"{values.mean():.3f} ({values.min():.3f} .. {values.max():.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/anchor_gamma"))
    args = parser.parse_args()
    # Seeds outermost: a study that is cut short has all γ for fewer seeds.
    points = [(gamma, seed) for seed, gamma in product(args.seeds, args.gammas)]
    with ThreadPoolExecutor(args.jobs) as pool:
        found = pool.map(lambda p: train(args.out, *p, "--config=configs/anchor.yaml"), points)
        rows = [
            {"gamma": gamma, "seed": seed, **measured(run_dir)}
            for (gamma, seed), run_dir in zip(points, found, strict=True)
        ]
    runs = pd.DataFrame(rows)
    runs.to_csv(args.out / "runs.csv", index=False)
    print(table(runs))


if __name__ == "__main__":
    main()
