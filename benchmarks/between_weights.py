"""Draws states, updates, gradients, circuits and attention of runs beside the query weights.

python -m lit_gamma fit --config configs/everything.yaml
python -m lit_gamma fit --config configs/everything.yaml --model.gamma 0.5
python benchmarks/between_weights.py runs/everything/gamma0.8-seed1 runs/everything/gamma0.5-seed1

It also prints, for each, when cos² has gone half of its way, in log, from step 0 to its extreme.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lit_gamma import trajectory

COSINE, RANK = "mean_squared_cosine_over_null", "effective_rank_over_null"
BLOCKS, QK = "layer >= 0", "role == 'qk'"
PANELS = (  # title, table, which rows, column, scale
    ("states: cos² ÷ random", "hidden_states", "", COSINE, "log"),
    ("query weights: cos² ÷ random", "weight_norms", "role == 'query'", COSINE, "log"),
    ("states: effective rank ÷ random", "hidden_states", "", RANK, "linear"),
    ("states: largest entry ÷ rms", "hidden_states", "", "largest_over_rms", "linear"),
    ("share that the MLP writes", "hidden_states", BLOCKS, "mlp_share", "linear"),
    ("updates: effective rank ÷ random", "updates", BLOCKS, RANK, "linear"),
    ("updates: cos with the weights", "updates", BLOCKS, "cosine_with_weight", "linear"),
    ("gradients: norm", "gradients", BLOCKS, "norm", "log"),
    ("QK circuits: stable rank ÷ random", "circuits", QK, "stable_rank_over_null", "log"),
    ("last token: attention on anchor 2", "anchor_attention", "", "second_anchor", "linear"),
    ("keys: eigenvalues 1, 2, 3 of the covariance", "key_embedding", "", "eigenvalue", "log"),
    ("keys: cos of neighbours", "key_embedding", "", "neighbour_cosine", "linear"),
)  # fmt: skip
STYLES = {
    **{"input": ":", "layer 0": "--", "layer 1": "-"},
    **{"eigenvalue_3": ":", "eigenvalue_2": "--", "eigenvalue_1": "-", "neighbour_cosine": "-"},
}


def curves(run: Path, table: str, rows: str, column: str) -> pd.DataFrame:
    """Of a row per step the columns of that name; else a column per layer, its matrices' mean."""
    values = trajectory.load(run, [table])[table]
    if "layer" not in values:
        named = values.set_index("step").filter(like=column)
        return named[[name for name in named if name in STYLES]]
    values = values.query(rows) if rows else values
    layers = values["layer"].map("layer {:.0f}".format, na_action="ignore").fillna("input")
    return values.groupby(["step", layers])[column].mean().unstack()


def half_way(curve: pd.Series) -> float:
    """The first step at which a curve has gone half of its way to its extreme, in log."""
    way = np.abs(np.log(curve / curve.iloc[0]))
    return float(way.index[np.argmax(way >= way.max() / 2)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/between-weights.png"))
    args = parser.parse_args()
    figure = Figure(figsize=(18, 5.6), layout="constrained")
    for axes, (title, *what, scale) in zip(figure.subplots(2, 6).flat, PANELS, strict=True):
        for run, color in zip(args.runs, ("#0072b2", "#d55e00", "#009e73"), strict=False):
            for name, curve in curves(run, *what).items():
                curve = curve.dropna()
                label = f"{run.name}, {name}"
                axes.plot(curve.index, curve, STYLES[name], color=color, linewidth=1.2, label=label)
                if what[-1] == COSINE:
                    extreme = curve.loc[np.abs(np.log(curve / curve.iloc[0])).idxmax()]
                    print(
                        f"{title}, {label}: {curve.iloc[0]:.2f} at step 0, half way at step "
                        f"{half_way(curve):.0f} to {extreme:.2f}"
                    )
        axes.set_title(title, fontsize=10)
        axes.set(xscale="symlog", yscale=scale)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=6, fontsize=9)
    figure.savefig(args.out, dpi=90)


if __name__ == "__main__":
    main()
