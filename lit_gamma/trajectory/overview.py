"""A run at a glance: loss, condensation, ranks and updates over the steps, in one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lit_gamma.errors import InputError
from lit_gamma.trajectory.phase_finding import QUANTITIES, phases_of_roles, role_means
from lit_gamma.trajectory.reading import load_curves, outcomes
from lit_gamma.trajectory.sources import BESIDE, TABLES, tables_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = pd.DataFrame
"""Lines of a panel: a column each, indexed by step."""

BY_ROLE = {
    "mean_squared_cosine_over_null": "cos² between neurons ÷ random",
    "effective_rank_over_null": "effective rank ÷ random",
    "stable_rank_over_null": "stable rank ÷ random",
    "update_ratio": "update ÷ weights",
}
"""What is drawn with a line for each role: column to its title."""

_LOGARITHMIC = ("mean_squared_cosine_over_null", "update_ratio")
_COLOURS = (
    "#0072b2", "#56b4e9", "#009e73", "#7fbf3f", "#e69f00", "#d55e00", "#cc79a7", "#8c564b",
    "#777777", "#222222", "#6a3d9a", "#17becf", "#f781bf", "#800000",
)  # fmt: skip


def plot(run_dir: str | Path, title: str | None = None) -> Figure:
    """Draws a run, finished or not, over log(1 + step).

    From top to bottom, as far as it was recorded: the training loss; the answers of the task's own
    callback; by role of the matrices cos² between neurons, effective and stable rank, each ÷ its
    expectation for a random matrix (1: as at initialization), with those of the tokens' states
    and of the heads' circuits where these were recorded, and the size of an update over that of the
    weights. A filled triangle marks where a role is most condensed, an open one where it begins to
    expand again, see :func:`lit_gamma.trajectory.phases`.

    Args:
        run_dir: The run's directory.
        title: What stands above it; the directory's name by default.

    Returns:
        The figure, to be shown by a notebook or saved; narrow enough for a phone.

    Raises:
        InputError: The directory holds no record, or one with nothing of this.
    """
    tables = load_curves(run_dir, ["token_loss", *outcomes(run_dir)])
    panels = _panels(tables)
    if not panels:
        raise InputError(f"{run_dir} holds no loss and no record of weights to draw")
    by_role = [quantity for quantity in panels if quantity in BY_ROLE]
    roles = list(dict.fromkeys(str(role) for quantity in by_role for role in panels[quantity]))
    colours = {role: _COLOURS[i % len(_COLOURS)] for i, role in enumerate(roles)}
    figure, axes = _stacked([1.4 if quantity in BY_ROLE else 0.95 for quantity in panels])
    drawn = dict(zip(panels, axes, strict=True))
    for quantity, ax in drawn.items():
        _draw(ax, quantity, panels[quantity], colours)
    _mark_phases(drawn, tables, colours)
    _number_steps(axes[-1], max(int(curves.index[-1]) for curves in panels.values()))
    height = figure.get_figheight()
    figure.suptitle(title or Path(run_dir).name, fontsize=11, weight="bold", y=1 - 0.08 / height)
    if by_role:
        lines = {line.get_label(): line for quantity in by_role for line in drawn[quantity].lines}
        handles = [lines[role] for role in roles]
        names = [role.replace("_", " ") for role in roles]
        figure.legend(handles, names, loc="lower center", ncols=3, fontsize=9, frameon=False)
    return _shown_by_notebooks(figure)


def _shown_by_notebooks(figure: Figure) -> Figure:
    """The figure, which a notebook else shows only after ``%matplotlib inline``."""
    shown: Any = figure
    shown._repr_png_ = partial(_png, figure)
    return figure


def _png(figure: Figure) -> bytes:
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    return drawn.getvalue()


def _stacked(heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """Axes of these heights in inches, one below the other, with room for titles and a legend."""
    from matplotlib.figure import Figure

    width, top, between, bottom = 5.2, 0.5, 0.3, 1.25
    whole = top + sum(heights) + between * (len(heights) - 1) + bottom
    figure = Figure(figsize=(width, whole), dpi=110)
    axes: list[Axes] = []
    at = whole - top
    for height in heights:
        at -= height
        axes.append(figure.add_axes((0.115, at / whole, 0.87, height / whole)))
        axes[-1].sharex(axes[0])
        axes[-1].tick_params(labelbottom=False)
        at -= between
    axes[-1].tick_params(labelbottom=True)
    return figure, axes


def _panels(tables: Mapping[str, pd.DataFrame]) -> dict[str, Curves]:
    """What is drawn, from top to bottom: a column, or a whole table, to its curves."""
    panels = {
        name: table.set_index("step")
        for name, table in tables.items()
        if not any(name in (*BESIDE, *sources) for sources in TABLES.values())
    }
    if "token_loss" in panels:
        panels = {"training loss": panels.pop("token_loss")[["mean"]], **panels}
    for quantity in BY_ROLE:
        of_roles = [role_means(table, quantity) for table in tables_of(tables, quantity)]
        if of_roles:
            panels[quantity] = pd.concat(of_roles, axis=1, sort=True)
    return {q: curves for q, curves in panels.items() if np.isfinite(curves.to_numpy()).any()}


def _draw(ax: Axes, quantity: str, curves: Curves, colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    title = BY_ROLE.get(quantity, quantity.replace("_", " "))
    ax.set_title(title, loc="left", fontsize=10, pad=3)
    for name, curve in curves.items():
        known = curve.dropna()
        ax.plot(np.log10(1 + known.index), known, color=colours.get(str(name)), lw=1.3, label=name)
    if quantity in _LOGARITHMIC:
        ax.set_yscale("log")
        seen = curves.to_numpy()
        wide = np.nanmax(seen) > 100 * np.nanmin(np.where(seen > 0, seen, np.nan))
        ax.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(NullLocator())
    elif quantity not in BY_ROLE and len(curves.columns) > 1:
        ax.legend(fontsize=8, frameon=False, handlelength=1.2)
    if quantity.endswith("_over_null"):
        ax.axhline(1, color="#444444", lw=0.9, ls=":")
    ax.tick_params(labelsize=9)
    ax.grid(alpha=0.25, lw=0.6)
    ax.margins(x=0.01)


def _mark_phases(
    drawn: Mapping[str, Axes], tables: Mapping[str, pd.DataFrame], colours: Mapping[str, str]
) -> None:
    """Puts a triangle on each curve that has a phase, and one under the loss."""
    if not any(tables_of(tables, quantity) for quantity in QUANTITIES):
        return
    undrawn = [quantity for quantity in QUANTITIES if quantity not in drawn]
    phases = phases_of_roles(
        {n: t.drop(columns=undrawn, errors="ignore") for n, t in tables.items()}
    )
    loss = drawn.get("training loss")
    for kind, marker in (("condensation", "^"), ("expansion", "v")):
        for quantity, of in phases[phases[f"{kind}_step"].notna()].groupby("quantity"):
            x = np.log10(1 + of[f"{kind}_step"])
            edges = of["role"].map(colours)
            style: dict[str, Any] = {"marker": marker, "s": 24, "zorder": 3, "edgecolors": edges}
            style["facecolors"] = edges if kind == "condensation" else "white"
            drawn[str(quantity)].scatter(x, of["extreme"], **style)
            if loss is not None:
                loss.scatter(x, x * 0 + 0.05, transform=loss.get_xaxis_transform(), **style)


def _number_steps(ax: Axes, last: int) -> None:
    """Numbers the axis of log10(1 + step) by steps."""
    steps = [0, *(10**i for i in range(len(str(max(last, 1)))))]
    ax.set_xticks(np.log10(1 + np.array(steps)), [f"{step:,}" for step in steps])
    ax.set_xlabel("optimizer step (▲ most condensed, ▽ begins to expand)", fontsize=9)
