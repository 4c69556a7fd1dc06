"""Draws cos² of the queries at every step of two runs, beside what the turns alone would show.

python -m lit_gamma fit --config configs/anchor.yaml --overhead 0.1
python -m lit_gamma fit --config configs/anchor.yaml --overhead 0.1 --model.gamma 0.5
python benchmarks/every_step.py runs/anchor/gamma0.8-seed1 runs/anchor/gamma0.5-seed1
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_gamma import trajectory

COLUMN = "mean_squared_cosine_over_null"


def queries(run: Path, table: str) -> pd.DataFrame:
    """cos² over null of the query matrices, a column per layer."""
    rows = trajectory.load(run, [table])[table].query("role == 'query'")
    return rows.pivot(index="step", columns="layer", values=COLUMN)


def draw(axes: Axes, run: Path) -> None:
    every, turns = queries(run, "weight_norms"), queries(run, "condensation")
    for layer, color in zip(every, ("#0072b2", "#d55e00"), strict=False):
        measured = turns[layer].dropna()
        label = f"layer {layer:.0f}: {len(every)} steps, {len(measured)} of them in turn"
        axes.plot(every.index, every[layer], color=color, linewidth=1, label=label)
        axes.plot(measured.index, measured, "o", color=color, markersize=3.5, markerfacecolor="w")
        between = np.interp(every.index, measured.index, measured)
        apart = (every[layer] / between - 1).abs()
        print(
            f"{run.name}, layer {layer:.0f}: a line through {len(measured)} turns is off by "
            f"{apart.max():.1%} at most, at step {apart.idxmax()}"
        )
    axes.set(title=run.name, xlabel="optimizer step", xscale="symlog", yscale="log")
    axes.set_xlim(left=0)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/every-step.png"))
    args = parser.parse_args()
    figure = Figure(figsize=(5.5 * len(args.runs), 3.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(args.runs), sharey=True))
    for axes, run in zip(panels, args.runs, strict=True):
        draw(axes, run)
    panels[0].set_ylabel("cos² of query neurons ÷ random")
    figure.savefig(args.out, dpi=90)


if __name__ == "__main__":
    main()
