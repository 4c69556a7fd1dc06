"""What a page shows of a sweep: phase diagrams, curves over γ, their critical γ, and all cells."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lit_gamma.comparison.best_rate import at_best_rate
from lit_gamma.comparison.charts import Chart
from lit_gamma.comparison.critical import Span, critical
from lit_gamma.comparison.findings import number
from lit_gamma.comparison.heat_map import Tile, heat_map
from lit_gamma.comparison.svg import Line, Marks, panel
from lit_gamma.comparison.sweep_runs import GAMMA, RATE, Cells, SweepRuns, cells, lower_is_better
from lit_gamma.errors import InputError

FIXED, BEST = "each learning rate", "the best learning rate"
_MAP_SEEN = (
    "The mean over the seeds of each cell, the darker the larger; – has no run that ended, ∞ one "
    "that diverged. Point at a cell for its interval."
)
_CURVE_SEEN = (
    "Means over seeds with 95 % intervals, linear between the γ tried. Below, the critical γ with "
    "its interval: ▲ where the measure comes to half way between its worst and its best cell, ▽ "
    "where it leaves it again; no mark, no critical γ."
)


@dataclass(frozen=True)
class MeasureView:
    """What a page shows of one measure.

    Attributes:
        measure: Its name.
        charts: Phase diagrams, then curves over γ at each learning rate and at the best one.
        critical: A row per curve: ``view``, ``line``, and the critical γ or why there is none.
        cells: A row per cell of each view.
        notes: How the best rate is chosen, or why it is not.
    """

    measure: str
    charts: list[Chart]
    critical: list[dict[str, Any]]
    cells: pd.DataFrame
    notes: list[str]


def views(sweep: SweepRuns) -> list[MeasureView]:
    """Analyses every measure of a sweep."""
    return [view_of(sweep, measure) for measure in sweep.measures]


def critical_table(found: list[MeasureView]) -> pd.DataFrame:
    """The critical γ of all measures."""
    rows = [{"measure": view.measure, **row} for view in found for row in view.critical]
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def cell_table(found: list[MeasureView]) -> pd.DataFrame:
    """The cells of all measures."""
    table: pd.DataFrame = pd.concat([view.cells for view in found], ignore_index=True)
    return table


def edge(row: dict[str, Any], name: str) -> str:
    """An end of the window in words; – where it lies outside of the grid."""
    value, low, high = (float(row[column]) for column in (name, f"{name}_low", f"{name}_high"))
    if math.isinf(value):
        return "–"
    ends = ", ".join(number(end, 2) for end in (low, high))
    after, before = (number(row[f"{name}_{side}"], 2) for side in ("after", "before"))
    return f"{number(value, 2)} [{ends}], between {after} and {before}"


def view_of(sweep: SweepRuns, measure: str) -> MeasureView:
    """Analyses one measure of a sweep, a column of its table."""
    plain = cells(sweep.ended, sweep.table[sweep.keys], measure)
    by_view, notes = {FIXED: plain}, []
    others = [key for key in sweep.keys if key != RATE]
    if RATE in sweep.keys and others:
        try:
            chosen, rule = at_best_rate(sweep, measure)
            by_view[BEST] = cells(chosen, sweep.table[others], measure)
            notes.append(f"The best learning rate of a setting is that of {rule}.")
        except InputError as reason:
            notes.append(f"{str(reason)[0].upper()}{str(reason)[1:]}.")
    charts, found = [], []
    if GAMMA in sweep.keys:
        lines = {view: _lines(of) for view, of in by_view.items()}
        found = [_row(view, name, line, measure) for view in lines for name, line in lines[view]]
        charts = [*_maps(sweep.keys, by_view), *_curves(lines, found)]
    tables = [_as_table(view, of, measure) for view, of in by_view.items()]
    return MeasureView(measure, charts, found, pd.concat(tables, ignore_index=True), notes)


def _lines(of: Cells) -> list[tuple[str, Cells]]:
    """The curves over γ: one for each combination of the other keys; cells without γ are none."""
    drawn = of.of(np.flatnonzero(of.at[GAMMA].notna()).tolist())
    others = [str(key) for key in of.at if key != GAMMA]
    if not others:
        return [("", drawn)]
    groups = drawn.at.groupby(others, sort=False, dropna=False).indices
    return [(named(others, at), drawn.of(list(places))) for at, places in groups.items()]


def named(keys: list[str], at: Any) -> str:
    """A setting: the keys with their values, in a tuple if there are several."""
    values = at if isinstance(at, tuple) else (at,)
    return ", ".join(f"{short(k)} {said_of(v)}" for k, v in zip(keys, values, strict=True))


def short(key: str) -> str:
    """The last part of a key, as a figure names it."""
    return "γ" if key == GAMMA else key.rpartition(".")[2]


def said_of(value: Any) -> str:
    """A value of the grid, as figures and tables show it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "null"
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _row(view: str, name: str, line: Cells, measure: str) -> dict[str, Any]:
    found = critical(line, lower_is_better(measure))
    row: dict[str, Any] = {"view": view, "line": name}
    if isinstance(found, str):
        return {**row, "none": found}
    row |= {"best": found.best, "threshold": found.threshold}
    for edge, span, sides in zip(
        ("lower", "upper"), (found.lower, found.upper), found.between, strict=True
    ):
        row |= dict(zip((edge, f"{edge}_low", f"{edge}_high"), span, strict=True))
        row |= dict(zip((f"{edge}_after", f"{edge}_before"), sides, strict=True))
    return {**row, "none": ""}


def _maps(keys: list[str], by_view: dict[str, Cells]) -> Iterator[Chart]:
    """γ × every other key: with the learning rate as it is, with others at the best one."""
    for key in keys:
        if key == GAMMA:
            continue
        view = FIXED if key == RATE or BEST not in by_view else BEST
        of = by_view[view]
        rest = [str(other) for other in of.at if other not in (GAMMA, key)]
        groups = of.at.groupby(rest, sort=False, dropna=False).indices if rest else {(): None}
        for at, places in groups.items():
            shown = of if places is None else of.of(list(places))
            where = [named(rest, at)] if rest else []
            note = ", ".join([*where, *([view] if view == BEST else [])])
            yield Chart(f"γ × {short(key)}", _map(shown, key), _MAP_SEEN, note=note)


def _map(of: Cells, key: str) -> Any:
    across, up = (list(dict.fromkeys(map(said_of, of.at[k]))) for k in (GAMMA, key))
    place = {
        (said_of(u), said_of(g)): i
        for i, (g, u) in enumerate(zip(of.at[GAMMA], of.at[key], strict=True))
    }
    tiles = [[_tile(of, place.get((u, g)), f"γ {g}, {short(key)} {u}") for g in across] for u in up]
    return heat_map(tiles, ("γ", across), (short(key), up))


def _tile(of: Cells, i: int | None, where: str) -> Tile:
    if i is None or not of.n_runs[i]:
        return Tile(math.nan, f"{where}: no run that ended")
    spread = "" if math.isnan(of.low[i]) else f" [{number(of.low[i])}, {number(of.high[i])}]"
    n = int(of.n_runs[i])
    return Tile(of.value[i], f"{where}: {number(of.value[i])}{spread}, {n} seed{'s' * (n > 1)}")


def _curves(
    lines: dict[str, list[tuple[str, Cells]]], found: list[dict[str, Any]]
) -> Iterator[Chart]:
    """One chart a view, on the same axes."""
    every = [line for of_view in lines.values() for _, line in of_view]
    gammas = sorted({float(g) for line in every for g in line.at[GAMMA]})
    if len(gammas) < 2:
        return
    edges = np.concatenate([np.r_[line.value, line.low, line.high] for line in every])
    edges = edges[np.isfinite(edges)]
    margin = 0.04 * float(np.ptp(edges)) or 0.5 if len(edges) else 0.5
    limits = (float(edges.min()) - margin, float(edges.max()) + margin) if len(edges) else (0, 1)
    for view, of_view in lines.items():
        drawn = [
            Line(g, line.at[GAMMA].to_numpy(float), line.value, *_band(line))
            for g, (_, line) in enumerate(of_view)
        ]
        rows = [row for row in found if row["view"] == view]
        marks = [
            Marks(g, _mark(row, "lower"), _mark(row, "upper"))
            for g, row in enumerate(rows)
            if not row["none"]
        ]
        svg = panel(drawn, limits=limits, marks=marks, places=gammas)
        keys = tuple((g, name) for g, (name, _) in enumerate(of_view) if name)
        yield Chart("over γ", svg, _CURVE_SEEN, keys, view if len(lines) > 1 else "")


def _band(line: Cells) -> tuple[Any, Any]:
    """The intervals; a single run is its own."""
    return (
        np.where(np.isnan(line.low), line.value, line.low),
        np.where(np.isnan(line.high), line.value, line.high),
    )


def _mark(row: dict[str, Any], edge: str) -> Span:
    value, low, high = (float(row[name]) for name in (edge, f"{edge}_low", f"{edge}_high"))
    return (value if math.isfinite(value) else math.nan, low, high)


def _as_table(view: str, of: Cells, measure: str) -> pd.DataFrame:
    table: pd.DataFrame = of.at.assign(
        measure=measure, view=view, n_runs=of.n_runs, value=of.value, low=of.low, high=of.high
    )
    return table
