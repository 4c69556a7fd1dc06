"""The charts of a page, each with what it shows in words: tasks first, then the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from lit_gamma.comparison.findings import readable
from lit_gamma.comparison.runs import Runs
from lit_gamma.comparison.scalar_curves import LOSS
from lit_gamma.comparison.svg import Line, Marks, panel
from lit_gamma.comparison.token_panels import rows_of, span
from lit_gamma.comparison.weight_curves import ALL_ROLES
from lit_gamma.trajectory import phase_words
from lit_gamma.trajectory.phase_finding import QUANTITIES
from lit_gamma.trajectory.sources import TABLES

MOST_LINES = 8
"""Quantities of a task that share a chart."""

NAMES = {q: f"{name} ÷ null" for q, name in phase_words.NAMES.items()}
NAMES["update_ratio"] = "update ratio"
"""What the quantities of the weights are called."""

_SEEN = {
    "mean_squared_cosine_over_null": (
        "How far the neurons (rows) of a matrix point the same or the opposite way: the mean cos² "
        "of their pairs. 1, dashed, is what random rows of that width show, as at initialization; "
        "a rise is condensation, a fall after it expansion."
    ),
    "effective_rank_over_null": (
        "How many directions a matrix uses: exp of the entropy of its singular values. 1, dashed, "
        "is a random matrix of that shape; a fall is condensation, and it comes late, as the whole "
        "spectrum counts."
    ),
    "stable_rank_over_null": (
        "The sum of the squared singular values over the largest of them. 1, dashed, is a random "
        "matrix of that shape; it falls as soon as one direction grows above the rest, before the "
        "effective rank does."
    ),
    "participation_ratio_over_null": (
        "How many singular values carry the squared norm. 1, dashed, is a random matrix of that "
        "shape; it follows the few largest ones, between stable and effective rank."
    ),
    "update_ratio": (
        "How far a step moved a matrix, as a share of its norm; where only every k-th step is "
        "recorded, a k-th of the way over k steps. It has no null: at 0.01 a hundred steps in one "
        "direction replace the matrix; it falls as weights grow and the learning rate decays."
    ),
}

_LOSS_SEEN = (
    "The mean loss of each step's batch, nats per token, where the record is long averaged between "
    "neighbouring steps. A uniform guess reads ln(vocabulary); a start above it is a large "
    "initialization's."
)

_PROBE_SEEN = (
    "The mean loss on the validation tokens that the probe follows, nats per token, with 95 % "
    "intervals. A uniform guess reads ln(vocabulary); the classes say what a token needs to be "
    "predicted."
)


@dataclass(frozen=True)
class Chart:
    """A chart to place on a page.

    Attributes:
        title: What is drawn.
        svg: The drawing.
        seen: What it shows, and its null.
        keys: Number and name of each line, where these are not the groups.
        note: What the lines are means over.
        first: Whether it belongs on the first screen.
    """

    title: str
    svg: Markup
    seen: str
    keys: tuple[tuple[int, str], ...] = ()
    note: str = ""
    first: bool = True


def task_charts(side_by_side: Runs, curves: pd.DataFrame) -> Iterator[Chart]:
    """The training loss, and what other tables hold that are not of the weights' geometry.

    Args:
        side_by_side: The runs.
        curves: See :func:`lit_gamma.comparison.scalar_curves.scalar_curves`; may be empty.

    Yields:
        One chart a table for a single group, else one a quantity; means over items come last.
    """
    if not len(curves):
        return
    by_table = curves.sort_values("n_items", kind="stable").groupby("table", sort=False)
    for table, of_table in by_table:
        if table == LOSS:
            yield Chart("training loss", _by_group(side_by_side, of_table, zero=True), _LOSS_SEEN)
        else:
            yield from _of_table(side_by_side, str(table), of_table)


def _of_table(side_by_side: Runs, table: str, curves: pd.DataFrame) -> Iterator[Chart]:
    quantities = [str(name) for name in dict.fromkeys(curves["quantity"])]
    n_items = curves["n_items"].max()
    note = f"mean of {n_items}" if n_items > 1 else ""
    said = next(run.meanings(table) for run in side_by_side.runs if table in run.tables)
    seen = {c: f"{readable(c)}: {_meaning(said, c)}." for c in quantities}
    by_quantity = curves.groupby("quantity", sort=False)
    if len(side_by_side.groups) == 1 and 1 < len(quantities) <= MOST_LINES and n_items == 1:
        lines = [_line(i, of) for i, (_, of) in enumerate(by_quantity)]
        keys = tuple((i, readable(name)) for i, name in enumerate(quantities))
        yield Chart(readable(table), panel(lines), " ".join(seen.values()), keys)
        return
    for quantity, of in by_quantity:
        base = 1.0 if str(quantity).endswith("_over_null") else None
        title = f"{readable(table)}: {readable(str(quantity))}"
        svg = _by_group(side_by_side, of, base=base)
        yield Chart(title, svg, seen[str(quantity)], note=note, first=n_items == 1)


def _meaning(said: Mapping[str, str], column: str) -> str:
    """What a column is; of one ÷ null also what it is without."""
    of = dict.fromkeys((column.removesuffix("_over_null"), column))
    return "; ".join(said[c] for c in of if said.get(c)) or "the callback does not say what"


def probe_charts(side_by_side: Runs, differences: pd.DataFrame) -> Iterator[Chart]:
    """The loss of the probe: of a single group its classes, else the groups' over all tokens.

    Args:
        side_by_side: The runs.
        differences: See :func:`lit_gamma.comparison.bootstrap.loss_differences`; may be empty.
    """
    if not len(differences):
        return
    names = {"loss": "value", "loss_low": "lowest", "loss_high": "highest"}
    of_best = differences[(differences["set"] == "") & (differences["classes"] == "best")]
    drawn = of_best.rename(columns=names)
    whole, classes = drawn[drawn["class"] == ""], drawn[drawn["class"] != ""]
    if len(side_by_side.groups) > 1 or not len(classes):
        yield Chart("probe loss", _by_group(side_by_side, whole, zero=True), _PROBE_SEEN)
        return
    lines = [_line(i, of) for i, (_, of) in enumerate(classes.groupby("class", sort=False))]
    keys = tuple(enumerate(readable(name) for name in dict.fromkeys(classes["class"])))
    svg = panel(lines, limits=span(classes[["lowest", "highest"]], from_zero=True))
    yield Chart("probe loss", svg, _PROBE_SEEN, keys, "by class of token")


def weight_charts(side_by_side: Runs, weights: pd.DataFrame) -> Iterator[Chart]:
    """One chart a quantity: its roles for a single group, else the groups' mean over roles.

    Args:
        side_by_side: The runs.
        weights: See :func:`lit_gamma.comparison.weight_curves.weight_curves`.
    """
    for quantity in TABLES:
        drawn = weights[weights["quantity"] == quantity] if len(weights) else weights
        whole = drawn[drawn["role"] == ALL_ROLES] if len(drawn) else drawn
        if quantity not in _AT_FIRST or not len(whole):
            continue
        base = 1.0 if quantity in QUANTITIES else None
        if len(side_by_side.groups) > 1:
            svg = _by_group(side_by_side, whole, log=True, base=base)
            seen = f"{_SEEN[quantity]} A line is the geometric mean over the roles."
            yield Chart(NAMES[quantity], svg, seen, note="over all roles")
            continue
        of_roles = drawn[drawn["role"] != ALL_ROLES]
        lines = [_line(i, of) for i, (_, of) in enumerate(of_roles.groupby("role", sort=False))]
        keys = tuple(enumerate(readable(r) for r in dict.fromkeys(of_roles["role"])))
        svg = panel(lines, log=True, base=base)
        seen = f"{_SEEN[quantity]} A line is the mean over the matrices of a role."
        yield Chart(NAMES[quantity], svg, seen, keys, "by role")


def role_charts(
    side_by_side: Runs, weights: pd.DataFrame, phases: pd.DataFrame
) -> dict[str, list[Chart]]:
    """Per role a chart of each quantity, with the phases of its runs.

    Args:
        side_by_side: The runs.
        weights: See :func:`lit_gamma.comparison.weight_curves.weight_curves`.
        phases: See :func:`lit_gamma.comparison.weight_curves.all_phases`.
    """
    if not len(weights):
        return {}
    found: dict[str, list[Chart]] = {}
    for (role, quantity), drawn in weights.groupby(["role", "quantity"], sort=False):
        if role != ALL_ROLES and quantity in QUANTITIES:
            marks = _marks(side_by_side, phases, str(role), str(quantity))
            svg = _by_group(side_by_side, drawn, log=True, base=1.0, marks=marks)
            chart = Chart(NAMES[str(quantity)], svg, _SEEN[str(quantity)])
            found.setdefault(str(role), []).append(chart)
    return found


_AT_FIRST = tuple(quantity for quantity in TABLES if not quantity.startswith("participation"))
"""What is drawn of all roles at once; the participation ratio lies between the other ranks."""


def _marks(side_by_side: Runs, phases: pd.DataFrame, role: str, quantity: str) -> list[Marks]:
    if not len(phases):
        return []
    labels = list(side_by_side.groups)
    rows = rows_of(phases[(phases["role"] == role) & (phases["quantity"] == quantity)])
    spans = [
        [tuple(row[f"{kind}_{end}"] for end in ("step", "low", "high")) for kind in _KINDS]
        for row in rows
    ]
    return [
        Marks(labels.index(row["group"]), *of_run) for row, of_run in zip(rows, spans, strict=True)
    ]


_KINDS = ("condensation", "expansion")


def _by_group(
    side_by_side: Runs,
    table: pd.DataFrame,
    log: bool = False,
    base: float | None = None,
    marks: tuple[Marks, ...] | list[Marks] = (),
    zero: bool = False,
) -> Markup:
    labels = list(side_by_side.groups)
    lines = [
        _line(labels.index(str(group)), of) for group, of in table.groupby("group", sort=False)
    ]
    limits = span(table[["lowest", "highest"]], from_zero=True) if zero else None
    return panel(lines, log=log, base=base, marks=marks, limits=limits)


def _line(number: int, of: pd.DataFrame) -> Line:
    values, low, high = (of[c].to_numpy(float) for c in ("value", "lowest", "highest"))
    return Line(number, of["step"].to_numpy(), values, low, high)
