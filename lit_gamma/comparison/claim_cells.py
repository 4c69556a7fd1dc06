"""The runs of a sweep that a part of a claim looks at, and what was measured in them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from lit_gamma import trajectory
from lit_gamma.comparison.best_rate import at_best_rate
from lit_gamma.comparison.findings import readable
from lit_gamma.comparison.sweep_runs import SweepRuns, lower_is_better
from lit_gamma.errors import InputError

Sweeps = Mapping[str, SweepRuns]
"""The sweeps that a claim looks at, by name."""

Where = Mapping[str, Any]
"""Key of a grid to its value, or to several."""


def selected(sweep: SweepRuns, where: Where) -> SweepRuns:
    """The part of a sweep with certain values.

    Args:
        sweep: The sweep.
        where: What a key's value must be; of several values those that the grid lacks are passed
            over.

    Raises:
        InputError: The grid has no such key, or no such value.
    """
    table = sweep.table
    for key, asked in where.items():
        if key not in sweep.keys:
            raise InputError(f"the grid of {sweep.folder} has no {key}")
        wanted = [_value(one) for one in (asked if isinstance(asked, list) else [asked])]
        inside = table[key].map(lambda cell, wanted=wanted: any(_same(cell, w) for w in wanted))
        if not inside.any():
            raise InputError(f"the grid of {sweep.folder} has no {key} {asked}")
        table = table[inside]
    return replace(sweep, table=table)


def with_measure(sweep: SweepRuns, measure: str) -> SweepRuns:
    """A sweep whose table has a measure.

    Args:
        sweep: The sweep.
        measure: A column; or ``answer_accuracy/accuracy``, what a callback recorded last, its mean
            where there are several rows.

    Raises:
        InputError: No run that ended has it.
    """
    if measure not in sweep.table:
        name, _, column = measure.partition("/")
        values = pd.Series(math.nan, sweep.table.index)
        for i, run in sweep.ended["run"].items():
            values[i] = _last(Path(sweep.folder, str(run)), name, column)
        sweep = replace(sweep, table=sweep.table.assign(**{measure: values}))
    if not len(sweep.ended):
        raise InputError(f"no run of it in {sweep.folder} has finished")
    if sweep.ended[measure].isna().all():
        raise InputError(f"no run in {sweep.folder} measured {measure}")
    return sweep


def with_phase(sweep: SweepRuns, role: str, quantity: str, phase: str) -> SweepRuns:
    """A sweep whose table has, as :func:`phase_name`, whether a run shows a phase.

    Raises:
        InputError: No run that ended measured it.
    """
    column = f"phases/{role}/{quantity}"
    measured, at = (
        sweep.table[name].notna() if name in sweep.table else pd.Series(False, sweep.table.index)
        for name in (f"{column}/start", f"{column}/{phase}_step")
    )
    shows = at.astype(float).where(measured)
    named = phase_name(role, quantity, phase)
    return with_measure(replace(sweep, table=sweep.table.assign(**{named: shows})), named)


def phase_name(role: str, quantity: str, phase: str) -> str:
    """What the share of runs with a phase is called."""
    return f"{readable(role)}, {readable(quantity)}: {phase}"


def chosen(sweep: SweepRuns, where: Where, measure: str, keep: tuple[str, ...] = ()) -> SweepRuns:
    """The runs of a setting; what that leaves open is taken at its best.

    Args:
        sweep: The sweep.
        where: The setting. Keys that it does not name, or gives several values of, are chosen for
            each seed by :func:`~lit_gamma.comparison.best_rate.at_best_rate`.
        measure: What the runs are judged by.
        keep: Keys that are not chosen.

    Returns:
        The sweep with these runs alone, all of which have ended.

    Raises:
        InputError: No run has ended, or nothing can be chosen.
    """
    found = with_measure(selected(sweep, where), measure)
    is_open = [k for k in found.keys if k not in keep and found.table[k].nunique(dropna=False) > 1]
    if not is_open:
        return replace(found, table=found.ended)
    best, _ = at_best_rate(found, measure, over=is_open)
    return replace(found, table=best)


def at_lowest_loss(sweep: SweepRuns, where: Where) -> SweepRuns:
    """The runs of a setting; what that leaves open is taken where the first loss is lowest."""
    losses = [name for name in sweep.measures if lower_is_better(name)]
    if not losses:
        raise InputError(f"no run in {sweep.folder} has a validation loss")
    return chosen(sweep, where, losses[0])


def by_seed(sweep: SweepRuns, where: Where, measure: str) -> pd.Series:
    """A measure of a setting, a value per seed; see :func:`chosen`."""
    runs = chosen(sweep, where, measure).ended.dropna(subset=[measure])
    values: pd.Series = runs.set_index("seed")[measure].astype(float)
    return values


def _last(run: Path, name: str, column: str) -> float:
    """The mean of what a callback recorded last; NaN if it recorded no such thing."""
    try:
        table = trajectory.load(run, [name]).get(name)
    except InputError:
        return math.nan
    if table is None or column not in table:
        return math.nan
    values = table[["step", column]].dropna()
    return float(values.loc[values["step"] == values["step"].max(), column].mean())


def _value(asked: Any) -> Any:
    """A value that is written as on the command line."""
    return yaml.safe_load(asked) if isinstance(asked, str) else asked


def _same(cell: Any, wanted: Any) -> bool:
    """Whether a cell of the table is a value; a list is there as JSON."""
    if wanted is None:
        return cell is None or (isinstance(cell, float) and math.isnan(cell))
    if isinstance(wanted, (list, dict)):
        return isinstance(cell, str) and bool(json.loads(cell) == wanted)
    if isinstance(cell, (int, float, np.number)) and isinstance(wanted, (int, float)):
        return math.isclose(float(cell), wanted)
    return bool(cell == wanted)
