"""Charts and rows of what the probe shows: losses, differences, and when each part was learnt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from lit_gamma.comparison.alignment import Comparison
from lit_gamma.comparison.svg import Line, interval_bar, panel

_KEY = ["set", "class"]


def loss_panels(differences: pd.DataFrame) -> list[dict[str, Any]]:
    """Loss and difference over steps: of all, each set, each class; then the classes of sets.

    Args:
        differences: See :func:`lit_gamma.comparison.bootstrap.loss_differences`.

    Returns:
        Of each part ``part``, ``n_tokens`` and the charts ``loss`` and, for several groups,
        ``difference``.
    """
    table = differences[differences["classes"] == "best"]
    limits = span(table[["loss_low", "loss_high"]], from_zero=True)
    found = []
    for part, rows in table.groupby(_KEY, sort=False):
        lines, changes = [], []
        for g, (_, of) in enumerate(rows.groupby("group", sort=False)):
            steps = of["step"].to_numpy()
            lines.append(Line(g, steps, *_columns(of, "loss")))
            if g:
                changes.append(Line(g, steps, *_columns(of, "difference")))
        found.append(
            {
                "part": part,
                "n_tokens": int(rows["n_tokens"].iloc[0]),
                "loss": panel(lines, limits=limits),
                "difference": panel(changes, base=0.0, height=130) if changes else None,
            }
        )
    return sorted(found, key=lambda f: all(f["part"]))


def final_rows(comparison: Comparison, differences: pd.DataFrame) -> list[dict[str, Any]]:
    """Per part: the groups' last losses, and their differences to the first."""
    last = differences[differences["step"] == comparison.steps[-1]]
    others = last[last["group"] != next(iter(comparison.groups))]
    low, high = span(others[["difference_low", "difference_high"]])
    found = []
    for (classes, *part), rows in last.groupby(["classes", *_KEY], sort=False):
        groups = rows_of(rows)
        spans = [(g, _interval(row, "difference")) for g, row in enumerate(groups) if g]
        found.append(
            {"classes": classes, "part": part, "n_tokens": groups[0]["n_tokens"],
             "groups": groups, "bar": interval_bar(spans, low, high, mark=0.0)}
        )  # fmt: skip
    return found


def learnt_rows(comparison: Comparison, learnt: pd.DataFrame) -> list[dict[str, Any]]:
    """Per part and share: the steps of the groups."""
    steps = learnt[["step", "step_low"]].to_numpy()
    first = 0.9 * float(np.log1p(steps[np.isfinite(steps)].min(initial=comparison.steps[-1])))
    last = float(np.log1p(comparison.steps[-1])) + 1e-9
    found = []
    for (*part, share), rows in learnt.groupby([*_KEY, "share"], sort=False):
        groups = rows_of(rows)
        spans = [(g, _interval(row, "step", np.log1p)) for g, row in enumerate(groups)]
        found.append(
            {"part": part, "share": share, "groups": groups,
             "threshold": groups[0]["threshold"], "bar": interval_bar(spans, first, last)}
        )  # fmt: skip
    return found


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table."""
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


def _columns(table: pd.DataFrame, name: str) -> list[np.ndarray[Any, Any]]:
    return [table[c].to_numpy(float) for c in (name, f"{name}_low", f"{name}_high")]


def span(table: pd.DataFrame, from_zero: bool = False) -> tuple[float, float]:
    """Limits of an axis that holds 0 and the finite values of a table, with a margin."""
    values = table.to_numpy(float)
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    low, high = (0.0 if from_zero else min(low, 0.0)), max(high, 0.0)
    margin = 0.03 * (high - low) or 0.5
    return (0.0 if from_zero else float(low - margin)), float(high + margin)


def _interval(
    row: dict[str, Any], name: str, scale: Callable[[float], float] = float
) -> tuple[float, float, float]:
    return scale(row[name]), scale(row[f"{name}_low"]), scale(row[f"{name}_high"])
