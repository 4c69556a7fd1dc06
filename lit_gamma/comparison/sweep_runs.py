"""A sweep read back: its grid, its runs, and the means over the seeds of each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from lit_gamma.comparison.bootstrap import RESAMPLES, Floats, drawn, interval
from lit_gamma.comparison.sweep_table import read_table
from lit_gamma.errors import InputError

GAMMA, RATE = "model.gamma", "model.optimizer.lr"
"""The keys of a grid that have a part of their own in its analysis."""


@dataclass(frozen=True)
class SweepRuns:
    """The runs of a sweep.

    Attributes:
        folder: Its folder, as given.
        keys: The grid's keys.
        table: A row per run, see :func:`lit_gamma.comparison.sweep_table.row`.
    """

    folder: str
    keys: list[str]
    table: pd.DataFrame

    @cached_property
    def ended(self) -> pd.DataFrame:
        """The runs that finished, or diverged on their whole way; a loss that diverged is ∞."""
        status = self.table["status"].astype(str)
        diverged = status.str.startswith("diverged")
        found: pd.DataFrame = self.table[diverged | (status == "finished")].copy()
        for name in self.measures:
            if lower_is_better(name):
                found.loc[diverged & found[name].isna(), name] = np.inf
        return found

    @property
    def measures(self) -> list[str]:
        """The validation metrics; a perplexity says what its loss says."""
        named = (str(name) for name in self.table if str(name).startswith("val/"))
        return [name for name in named if not name.endswith("perplexity")]

    @property
    def absent(self) -> dict[str, list[str]]:
        """What became of the other runs (missing, unfinished, failed), and their names."""
        others = self.table.drop(self.ended.index)
        kind = [str(status).partition(":")[0] for status in others["status"]]
        return {
            str(k): list(of["run"]) for k, of in others.groupby(np.array(kind, object), sort=False)
        }


@dataclass(frozen=True)
class Cells:
    """Means of a measure over the seeds of each cell of a grid.

    Attributes:
        at: The keys' values, a row per cell.
        runs: The values of each cell's runs; none for a cell that is missing.
        value: Means, (n_cells,), NaN for a missing one.
        low: Lower ends of their 95 % intervals, NaN for fewer than two runs.
        high: Upper ends.
        resampled: The means of every resample, (n_resamples, n_cells).
    """

    at: pd.DataFrame
    runs: list[Floats]
    value: Floats
    low: Floats
    high: Floats
    resampled: Floats

    @property
    def n_runs(self) -> npt.NDArray[np.int64]:
        """How many runs each cell has, (n_cells,)."""
        return np.array([len(of) for of in self.runs], np.int64)

    def of(self, places: Sequence[int]) -> Cells:
        """Some of the cells, in that order."""
        i = list(places)
        return Cells(
            self.at.iloc[i].reset_index(drop=True), [self.runs[j] for j in i], self.value[i],
            self.low[i], self.high[i], self.resampled[:, i],
        )  # fmt: skip


def load_sweep(folder: str | Path) -> SweepRuns:
    """Reads a sweep's table.

    Raises:
        InputError: There is none, or no run of it has finished.
    """
    found = sweep_of(folder, read_table(folder))
    if not len(found.ended):
        known = ", ".join(f"{len(runs)} {kind}" for kind, runs in found.absent.items())
        raise InputError(f"no run of the sweep in {folder} has finished ({known})")
    return found


def sweep_of(folder: str | Path, table: pa.Table) -> SweepRuns:
    """The sweep that a table is of; none of its runs need have finished."""
    names = table.column_names
    return SweepRuns(str(folder), names[1 : names.index("seed")], table.to_pandas())


def lower_is_better(measure: str) -> bool:
    """Whether a measure is a loss."""
    return measure.endswith("loss")


def set_of(measure: str) -> str:
    """The validation set that a measure is of: of ``val/seen/loss``, ``seen``."""
    return measure.removeprefix("val/").rpartition("/")[0]


def cells(
    runs: pd.DataFrame, grid: pd.DataFrame, measure: str, n_resamples: int = RESAMPLES
) -> Cells:
    """Means and intervals over seeds.

    Resampled are the runs of each cell by themselves, n - 1 of n, see
    :func:`lit_gamma.comparison.bootstrap.curves`: few seeds make an interval coarse, and a single
    one has none.

    Args:
        runs: A row per run that ended.
        grid: The grid's keys, with a row for every combination, whether or not it has a run.
        measure: The column to average.
        n_resamples: Number of resamples; the draws are the same at every call.
    """
    at = grid.drop_duplicates().sort_values(list(grid), key=_in_order, ignore_index=True)
    with_value = runs.dropna(subset=[measure])
    place = {tuple(map(str, row)): i for i, row in enumerate(at.itertuples(index=False))}
    cell_of = np.array(
        [place[tuple(map(str, row))] for row in with_value[list(grid)].itertuples(index=False)],
        np.intp,
    )
    values = with_value[measure].to_numpy(float)
    weights = drawn(cell_of, n_resamples, np.random.default_rng(0))
    inside = np.eye(len(at))[cell_of]
    by_cell = [values[cell_of == i] for i in range(len(at))]
    n_runs = np.array([len(of) for of in by_cell])
    with np.errstate(invalid="ignore", divide="ignore"):
        value = _sums(np.ones((1, len(values))), values, inside)[0] / n_runs
        resampled = _sums(weights, values, inside) / (weights @ inside)
    low, high = np.array([interval(column) for column in resampled.T]).T
    single = n_runs < 2
    return Cells(
        at, by_cell, value, np.where(single, np.nan, low), np.where(single, np.nan, high), resampled
    )


def _sums(weights: Floats, values: Floats, inside: Floats) -> Floats:
    """Weighted sums in each cell, where a weight of 0 leaves out an ∞: (n_resamples, n_cells)."""
    finite = np.isfinite(values)
    sums: Floats = weights[:, finite] * values[finite] @ inside[finite]
    infinite = weights[:, ~finite] @ inside[~finite] > 0
    return np.where(infinite, np.inf, sums)


def _in_order(column: pd.Series) -> pd.Series:
    """Numbers by size, text by letters, what is null last."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    return column.map(lambda value: "~" if value is None else str(value))
