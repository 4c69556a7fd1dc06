"""Draws the picture of one run at each of two γ from runs of ``benchmarks/anchor_gamma.py``.

python benchmarks/plot_anchor.py --runs runs/anchor_gamma --seed 1 --out docs/anchor.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_gamma import trajectory

COLORS = {0.5: "#b2182b", 0.8: "#2166ac"}


def draw(runs: Path, seed: int) -> Figure:
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    answers, condensation, rank = figure.subplots(1, 3)
    for gamma, color in COLORS.items():
        tables = trajectory.load(runs / f"gamma{gamma}" / f"seed{seed}")
        share = tables["anchor_reasoning"]
        answers.plot(share["step"], share["composition"], color=color, label=f"γ = {gamma}")
        answers.plot(share["step"], share["symmetry"], ":", color=color)
        lines(
            condensation,
            tables["condensation"],
            "mean_squared_cosine_over_null",
            color,
            "query",
            "key",
        )
        lines(rank, tables["effective_rank"], "stable_rank_over_null", color, "mlp_down", "lm_head")
    answers.set_title("answers on the unseen pair: composed —, mirrored ···", fontsize=9)
    answers.legend()
    condensation.set_title("cos² of neurons ÷ random: Q —, K - -", fontsize=9)
    condensation.set_yscale("log")
    rank.set_title("stable rank ÷ random: MLP down —, lm_head - -", fontsize=9)
    for axes in (answers, condensation, rank):
        axes.set_xscale("symlog", linthresh=10)
        axes.set_xlim(left=0)
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.2)
    return figure


def lines(axes: Axes, table: pd.DataFrame, quantity: str, color: str, *roles: str) -> None:
    last_layer = table["layer"].isna() | (table["layer"] == table["layer"].max())
    for role, style in zip(roles, ("-", "--"), strict=True):
        rows = table[(table["role"] == role) & last_layer]
        axes.plot(rows["step"], rows[quantity], style, color=color, linewidth=1.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/anchor_gamma"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/anchor.png"))
    args = parser.parse_args()
    draw(args.runs, args.seed).savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
