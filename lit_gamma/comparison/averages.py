"""Curves of single runs made into curves of groups, at steps that a chart can show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from lit_gamma.comparison.runs import Runs

MOST_STEPS = 300
"""Most steps of a curve; a longer record is averaged, evenly in log(1 + step), to so many."""

_POINTS = 90


def thinned(table: pd.DataFrame, keys: Sequence[str], column: str) -> pd.DataFrame:
    """A table as it is if it has few steps, else its means over bins of log(1 + step).

    Only a table with all its items at every step is averaged: in others they take turns.

    Args:
        table: With the column ``step``.
        keys: Columns that name an item.
        column: The quantity.

    Returns:
        Columns ``step`` (of a bin: the last), the keys and the quantity.
    """
    kept: pd.DataFrame = table[["step", *keys, column]]
    n_steps = table["step"].nunique()
    n_items = len(table[list(keys)].drop_duplicates()) if keys else 1
    if n_steps <= MOST_STEPS or len(table) < n_steps * n_items:
        return kept
    x = np.log1p(table["step"].to_numpy(float))
    bins = np.ceil(x / x.max() * MOST_STEPS)
    last = table.groupby(bins)["step"].transform("max")
    means: pd.DataFrame = (
        kept.assign(step=last).groupby(["step", *keys], sort=False)[column].mean().reset_index()
    )
    return means


def of_groups(
    rows: pd.DataFrame, side_by_side: Runs, keys: list[str], steps: npt.NDArray[np.float64]
) -> pd.DataFrame:
    """Means over the runs of each group, with the least and the largest.

    Args:
        rows: Columns ``run`` (its place), the keys, ``step`` and ``value``.
        side_by_side: The runs.
        keys: Columns that name a curve.
        steps: Where the curves are taken, linear in log(1 + step) between those recorded.

    Returns:
        The keys, ``group``, ``step``, ``value``, ``lowest``, ``highest``.
    """
    found = []
    for named, of_curve in rows.dropna(subset="value").groupby(keys, sort=False):
        curve_of = {
            i: np.interp(np.log1p(steps), np.log1p(of["step"]), of["value"], left=np.nan)
            for i, of in of_curve.groupby("run")
        }
        for group, of in side_by_side.groups.items():
            values = [curve_of[i] for i in of if i in curve_of]
            if values:
                of_group = {
                    **dict(zip(keys, named, strict=True)), "group": group, "step": steps,
                    "value": np.mean(values, axis=0), "lowest": np.min(values, axis=0),
                    "highest": np.max(values, axis=0),
                }  # fmt: skip
                found.append(pd.DataFrame(of_group))
    curves: pd.DataFrame = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    return curves


def log_spaced(last: int) -> npt.NDArray[np.float64]:
    """Steps from 0 to the last, evenly in log(1 + step)."""
    spaced: npt.NDArray[np.float64] = np.unique(
        np.expm1(np.linspace(0, np.log1p(last), _POINTS)).round()
    )
    return spaced
