"""What runs recorded besides their weights' geometry: loss, a task's answers, heads, norms, ..."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lit_gamma.comparison.averages import of_groups, thinned
from lit_gamma.comparison.runs import Runs

LOSS = "token_loss"
"""The table of the training loss; of it only the mean is drawn."""

_DRAWN_ELSEWHERE = (
    "condensation", "effective_rank", "weight_norms", "overhead", "token_loss_profile",
)  # fmt: skip


def scalar_curves(side_by_side: Runs) -> pd.DataFrame:
    """Each quantity over steps, averaged over its items and over the runs of a group.

    Args:
        side_by_side: The runs.

    Returns:
        Columns ``table``, ``quantity``, ``n_items`` (matrices, heads, ... that it is the mean of; 1
        for a table with one row per step), ``group``, ``step``, ``value``, ``lowest`` and
        ``highest`` of the runs, at the steps of the first run that has the table; empty if no run
        has one.
    """
    names = dict.fromkeys(name for run in side_by_side.runs for name in run.tables)
    found = []
    for name in sorted(names, key=lambda n: n != LOSS):
        tables = {i: r.tables[name] for i, r in enumerate(side_by_side.runs) if name in r.tables}
        rows = [
            _over_items(table, column).assign(run=i, table=name, quantity=column)
            for i, table in tables.items()
            for column in _columns(name, table)
        ]
        if rows:
            last = min(of["step"].max() for of in rows)
            steps = rows[0]["step"].to_numpy(float)
            joined = pd.concat(rows, ignore_index=True)
            keys = ["table", "quantity", "n_items"]
            found.append(of_groups(joined, side_by_side, keys, steps[steps <= last]))
    curves: pd.DataFrame = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    return curves


def _columns(name: str, table: pd.DataFrame) -> list[str]:
    """The quantities of a table that are drawn: those in single precision, ÷ null if they can."""
    if name in _DRAWN_ELSEWHERE:
        return []
    if name == LOSS:
        return ["mean"]
    numbers = [str(c) for c in table if table[c].dtype == np.float32]
    return [c for c in numbers if f"{c}_over_null" not in table]


def _over_items(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Means over the items of a table, between measurements linear in the step.

    Returns:
        Columns ``step``, ``value`` and ``n_items``.
    """
    named = [c for c in table if c != "step" and table[c].dtype != np.float32]
    if table["step"].is_unique or not named:
        each, n_items = table[["step", column]].rename(columns={column: "value"}), 1
    else:
        item = table.groupby(named, dropna=False, sort=False).ngroup()
        of_items = table.assign(item=item).pivot(index="step", columns="item", values=column)
        means = of_items.interpolate(method="index").mean(axis=1)
        each, n_items = means.rename("value").reset_index(), of_items.shape[1]
    rows: pd.DataFrame = thinned(each, [], "value").assign(n_items=n_items)
    return rows
