"""The lines that a logger draws of a table: few of its steps, and items joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lit_gamma.trajectory.layouts import Measured
from lit_gamma.trajectory.table import Table


@dataclass(frozen=True)
class Shown:
    """What is shown of a table at a step.

    Attributes:
        step: The step.
        walltime: When it was measured, in seconds since the epoch.
        values: Tag to value.
        again: Whether it was shown before the run was resumed.
    """

    step: int
    walltime: float
    values: Mapping[str, float]
    again: bool


View = Callable[[Shown], None]
"""Draws a step of a table, the steps in their order."""


class Lines:
    """What loggers get of a table: every step up to 100, then one for each 1 % later.

    These are some 1,000 of a million steps: TensorBoard draws no more points of a tag. Items that
    share a tag are joined, each with its newest value.

    Args:
        table: The table.
        views: Who draws them.
    """

    def __init__(self, table: Table, views: Sequence[View]) -> None:
        self._table = table
        self._views = views
        self._joined: dict[str, _Joined] = {}
        self._touched = np.zeros(table.n_items, bool)
        self._next_step = 0

    def show(self, measured: Measured, walltimes: Mapping[int, float], again: bool = False) -> None:
        """Shows rows sorted by step; a quantity with a null is shown over it alone."""
        steps, items, values = measured
        distinct, row = np.unique(steps, return_inverse=True)
        measured_at = np.zeros((len(distinct), len(self._touched)), bool)
        measured_at[row, items] = True
        touched = self._touched_since_shown(distinct, measured_at)
        scalars: dict[int, dict[str, float]] = {i: {} for i in touched}
        for name, column in values.items():
            if f"{name}_over_null" in values or not self._table.shows(name):
                continue
            lines = self._joined.setdefault(name, _Joined(self._table, name))
            grid = np.full((len(distinct), len(self._touched)), np.nan)
            grid[row, items] = column
            joined = lines.joined(grid)
            for i, fresh in touched.items():
                drawn = ((lines.member @ fresh > 0) & np.isfinite(joined[i])).tolist()
                of_lines = zip(lines.tags, joined[i].tolist(), drawn, strict=True)
                scalars[i] |= {tag: value for tag, value, draw in of_lines if draw}
        for i, of_step in scalars.items():
            step = int(distinct[i])
            for view in self._views:
                view(Shown(step, walltimes[step], of_step, again))

    def _touched_since_shown(
        self, steps: npt.NDArray[np.int64], measured_at: npt.NDArray[np.bool_]
    ) -> dict[int, npt.NDArray[np.bool_]]:
        """Position of each step to show: the items measured since the one shown before."""
        since = {}
        for i, step in enumerate(steps.tolist()):
            self._touched = self._touched | measured_at[i]
            if step >= self._next_step:
                since[i] = self._touched
                self._touched = np.zeros_like(self._touched)
                self._next_step = step + 1 + step // 100
        return since


class _Joined:
    """The lines that show a column, and the newest value of each item.

    Attributes:
        tags: Their tags.
        member: Which items each joins, 0 or 1, shape (n_lines, n_items).
    """

    def __init__(self, table: Table, column: str) -> None:
        of_items = table.tags(column)
        self.tags = list(dict.fromkeys(of_items))
        self.member = np.array([[x == y for y in of_items] for x in self.tags], float)
        self._sums = table.joined(column) == "sum"
        self._newest = np.full(len(of_items), np.nan)

    def joined(self, grid: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Joins values (n_steps, n_items), NaN where not measured, to (n_steps, n_lines)."""
        grid = np.concatenate([self._newest[None], grid])
        known = np.isfinite(grid)
        newest = np.maximum.accumulate(np.where(known, np.arange(len(grid))[:, None], 0), axis=0)
        grid = np.take_along_axis(grid, newest, axis=0)
        self._newest = grid[-1]
        known = np.isfinite(grid[1:])
        sums: npt.NDArray[np.float64] = np.where(known, grid[1:], 0) @ self.member.T
        n = known @ self.member.T
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(n > 0, sums, np.nan) if self._sums else sums / n
