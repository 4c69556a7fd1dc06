"""What runs recorded once a step: the training loss, and what a task's own callback says."""

from __future__ import annotations

import pandas as pd
from pandas.api.types import is_numeric_dtype

from lit_gamma.comparison.averages import of_groups, thinned
from lit_gamma.comparison.runs import Runs

LOSS = "token_loss"
"""The table of the training loss; of it only the mean is drawn."""

_DRAWN_ELSEWHERE = ("token_loss_profile", "probe_loss", "probe_tokens")


def scalar_curves(side_by_side: Runs) -> pd.DataFrame:
    """Tables with a row per step and no items, averaged over the runs of a group.

    Args:
        side_by_side: The runs.

    Returns:
        Columns ``table``, ``quantity``, ``group``, ``step``, ``value``, ``lowest`` and ``highest``
        of the runs, at the steps of the first run that has the table; empty if no run has one.
    """
    names = dict.fromkeys(name for run in side_by_side.runs for name in run.tables)
    found = []
    for name in sorted(names, key=lambda n: n != LOSS):
        tables = {i: r.tables[name] for i, r in enumerate(side_by_side.runs) if name in r.tables}
        rows = [
            thinned(table, [], column)
            .rename(columns={column: "value"})
            .assign(run=i, table=name, quantity=column)
            for i, table in tables.items()
            for column in _columns(name, table)
        ]
        if rows:
            last = min(of["step"].max() for of in rows)
            steps = rows[0]["step"].to_numpy(float)
            joined = pd.concat(rows, ignore_index=True)
            found.append(
                of_groups(joined, side_by_side, ["table", "quantity"], steps[steps <= last])
            )
    curves: pd.DataFrame = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    return curves


def _columns(name: str, table: pd.DataFrame) -> list[str]:
    """The quantities of a table that are drawn; none of a table with several rows a step."""
    if name in _DRAWN_ELSEWHERE or not table["step"].is_unique:
        return []
    if name == LOSS:
        return ["mean"]
    numbers = [c for c in table if c != "step" and is_numeric_dtype(table[c])]
    return [str(c) for c in numbers if f"{c}_over_null" not in table]
