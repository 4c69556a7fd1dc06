"""How the weights of runs develop: curves of each role relative to the null, and their phases."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from lit_gamma import trajectory
from lit_gamma.comparison.runs import Comparison
from lit_gamma.trajectory.phase_finding import QUANTITIES, phases_of_roles, role_means

_POINTS = 90


Recorded = list[dict[str, pd.DataFrame]]
"""Each run's tables that :data:`lit_gamma.trajectory.phase_finding.QUANTITIES` are in."""


def recorded(comparison: Comparison) -> Recorded:
    """Reads what the runs recorded of their weights, once for all that is made of it."""
    names = [table for table, _ in QUANTITIES.values()]
    return [trajectory.load(run.path, names) for run in comparison.runs]


def weight_curves(comparison: Comparison, of_runs: Recorded) -> pd.DataFrame:
    """Means over the matrices of a role and the runs of a group, at log-spaced steps.

    Args:
        comparison: The runs.
        of_runs: What :func:`recorded` returns.

    Returns:
        Columns ``quantity`` (of :data:`~lit_gamma.trajectory.phase_finding.QUANTITIES`), ``role``,
        ``group``, ``step``, ``value`` ÷ null, ``lowest`` and ``highest`` of the runs. Steps reach
        as far as the shortest record; empty if no run has one.
    """
    rows = [
        pd.DataFrame(
            {"quantity": quantity, "role": role, "run": i, "step": curve.index, "v": curve}
        )
        for i, tables in enumerate(of_runs)
        for quantity, (table, _) in QUANTITIES.items()
        if table in tables
        for role, curve in role_means(tables[table], quantity).items()
    ]
    if not rows:
        empty: pd.DataFrame = pd.DataFrame()
        return empty
    seen = pd.concat(rows, ignore_index=True)
    steps = _log_spaced(int(seen.groupby("run")["step"].max().min()))
    found = []
    for (quantity, role), of_role in seen.groupby(["quantity", "role"], sort=False):
        curve_of = {
            i: np.interp(np.log1p(steps), np.log1p(curve["step"]), curve["v"])
            for i, curve in of_role.groupby("run")
        }
        for group, of in comparison.groups.items():
            values = [curve_of[i] for i in of if i in curve_of]
            if values:
                of_group = {
                    "quantity": quantity, "role": role, "group": group, "step": steps,
                    "value": np.mean(values, axis=0), "lowest": np.min(values, axis=0),
                    "highest": np.max(values, axis=0),
                }  # fmt: skip
                found.append(pd.DataFrame(of_group))
    curves: pd.DataFrame = pd.concat(found, ignore_index=True)
    return curves


def all_phases(comparison: Comparison, of_runs: Recorded) -> pd.DataFrame:
    """The phases of every run.

    Args:
        comparison: The runs.
        of_runs: What :func:`recorded` returns.

    Returns:
        Columns ``run``, ``group``, and those of :func:`lit_gamma.trajectory.phases`; empty if no
        run has a record of its weights.
    """
    group_of = {i: group for group, of in comparison.groups.items() for i in of}
    found = []
    for i, tables in enumerate(of_runs):
        if tables:
            phases = phases_of_roles(tables)
            phases.insert(0, "group", group_of[i])
            phases.insert(0, "run", comparison.runs[i].path)
            found.append(phases)
    table: pd.DataFrame = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    return table


def _log_spaced(last: int) -> npt.NDArray[np.float64]:
    spaced: npt.NDArray[np.float64] = np.unique(
        np.expm1(np.linspace(0, np.log1p(last), _POINTS)).round()
    )
    return spaced
