"""How the weights of runs develop: curves of each role relative to the null, and their phases."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lit_gamma.comparison.averages import log_spaced, of_groups, thinned
from lit_gamma.comparison.runs import Run, Runs
from lit_gamma.trajectory.phase_finding import QUANTITIES, phases_of_roles, role_means
from lit_gamma.trajectory.sources import TABLES, table_of, tables_of

ALL_ROLES = "all roles"
"""In place of a role: the geometric mean over the roles."""


def weight_curves(side_by_side: Runs) -> pd.DataFrame:
    """Means over the matrices of a role and the runs of a group, at log-spaced steps.

    Args:
        side_by_side: The runs.

    Returns:
        Columns ``quantity`` (of :data:`~lit_gamma.trajectory.sources.TABLES`), ``role`` (or
        :data:`ALL_ROLES`), ``group``, ``step``, ``value``, ``lowest`` and ``highest`` of
        the runs. Steps reach as far as the shortest record; empty if no run has one.
    """
    seen = [_of_run(i, run) for i, run in enumerate(side_by_side.runs)]
    rows: pd.DataFrame = pd.concat([of_run for of_run in seen if len(of_run)] or [pd.DataFrame()])
    if not len(rows):
        return rows
    steps = log_spaced(int(rows.groupby("run")["step"].max().min()))
    return of_groups(rows, side_by_side, ["quantity", "role"], steps)


def all_phases(side_by_side: Runs) -> pd.DataFrame:
    """The phases of every run.

    Args:
        side_by_side: The runs.

    Returns:
        Columns ``run``, ``group``, and those of :func:`lit_gamma.trajectory.phases`; empty if no
        run has a record of its weights.
    """
    labels = list(side_by_side.groups)
    found = []
    for run, g in zip(side_by_side.runs, side_by_side.group_of, strict=True):
        if any(tables_of(run.tables, quantity) for quantity in QUANTITIES):
            phases = phases_of_roles(run.tables)
            phases.insert(0, "group", labels[g])
            phases.insert(0, "run", run.path)
            found.append(phases)
    table: pd.DataFrame = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    return table


def _of_run(i: int, run: Run) -> pd.DataFrame:
    """Each quantity of a run by role: ``run``, ``quantity``, ``role``, ``step``, ``value``."""
    found = []
    for quantity in TABLES:
        table = table_of(run.tables, quantity)
        if table is None:
            continue
        by_role = role_means(thinned(table, ["matrix", "role"], quantity), quantity)
        by_role = by_role.where(by_role > 0).dropna(axis=1, how="all")
        by_role[ALL_ROLES] = np.exp(np.log(by_role).mean(axis=1))
        by_role.columns.name = "role"
        long = by_role.stack().rename("value").reset_index()
        found.append(long.assign(run=i, quantity=quantity))
    rows: pd.DataFrame = pd.concat(found) if found else pd.DataFrame()
    return rows
