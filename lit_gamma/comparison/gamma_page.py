"""The figure and the sentence of ``find-gamma``, as a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lit_gamma.comparison.charts import Chart
from lit_gamma.comparison.gamma_choice import (
    LOSS,
    Judged,
    gaps,
    in_words,
    judge,
    loss_curves,
    named,
    with_loss,
)
from lit_gamma.comparison.page import environment
from lit_gamma.comparison.svg import Line, Marks, panel
from lit_gamma.comparison.sweep_runs import GAMMA, SweepRuns, lower_is_better
from lit_gamma.files import replacing


def write_choice(
    sweep: SweepRuns, loss: str | None, reasoning: str | None, left_out: Sequence[str] = ()
) -> tuple[Path, list[str]]:
    """Writes ``find-gamma.html`` into the sweep's folder.

    Args:
        sweep: Runs over γ, and over learning rates if asked.
        loss: The validation loss; None for the mean over all sets.
        reasoning: The measure of reasoning; None if there is none.
        left_out: Which γ were not tried, and why.

    Returns:
        The page, and what it says in words.
    """
    sweep = with_loss(sweep, loss)
    by_loss, runs = judge(sweep, LOSS)
    judged = [by_loss]
    if reasoning is not None and reasoning in sweep.table:
        judged.append(judge(sweep, reasoning)[0])
    losses = [loss] if loss else [m for m in sweep.measures if lower_is_better(m) and m != LOSS]
    curves = loss_curves(sweep, runs, losses)
    behind = gaps(curves, by_loss.window.best)
    said = [*in_words(judged, curves), *(f"{reason}." for reason in left_out)]
    charts = [*(_over_gamma(of) for of in judged), *_trend(behind, by_loss.window.best)]
    path = Path(sweep.folder, "find-gamma.html")
    n_lines = max(len(chart.keys) for chart in charts) + 1
    page = environment().get_template("find_gamma.html.j2")
    with replacing(path) as draft:
        draft.write_text(
            page.render(charts=charts, said=said, n_lines=n_lines, tokens=None), encoding="utf-8"
        )
    return path, said


def _over_gamma(of: Judged) -> Chart:
    line, found, told = of.line, of.window, not (of.tells_nothing or of.doubt)
    x = line.at[GAMMA].to_numpy(float)
    low = np.where(np.isnan(line.low), line.value, line.low)
    high = np.where(np.isnan(line.high), line.value, line.high)
    spans = [
        (s[0] if math.isfinite(s[0]) and told else math.nan, s[1], s[2])
        for s in (found.lower, found.upper)
    ]
    marks = [Marks(0, *spans)] if told else []
    svg = panel([Line(0, x, line.value, low, high)], marks=marks, places=x.tolist())
    seen = (
        "Means over the seeds with 95 % intervals. Below, the γ at which it begins (▲) and ceases "
        "(▽) to be as good as the best, with intervals; no mark where that is beyond the γ tried."
    )
    return Chart(f"{named(of.measure)} over γ", svg, seen)


def _trend(behind: Mapping[float, pd.DataFrame], best: float) -> Iterator[Chart]:
    if behind:
        lines = [
            Line(g, of.index.to_numpy(), *(of.agg(how, axis=1).to_numpy(float) for how in _HOW))
            for g, of in enumerate(behind.values())
        ]
        keys = tuple((g, f"γ {gamma:g}") for g, gamma in enumerate(behind))
        seen = "Validation loss less that of the best γ, mean and range over the seeds, over steps."
        yield Chart(f"nats behind γ {best:g}", panel(lines, base=0.0), seen, keys)


_HOW = ("mean", "min", "max")
