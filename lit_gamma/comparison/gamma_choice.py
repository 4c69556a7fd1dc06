"""Which γ to take: where nothing is lost, in loss or reasoning, and what short runs cannot tell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lit_gamma.comparison.best_rate import at_best_rate
from lit_gamma.comparison.critical import CHANCE, Span, Window, flatness, window
from lit_gamma.comparison.findings import number
from lit_gamma.comparison.sweep_runs import GAMMA, RATE, Cells, SweepRuns, cells, lower_is_better
from lit_gamma.comparison.sweep_table import summary_of
from lit_gamma.errors import InputError

LOSS = "val/loss"
"""The column of the validation loss that is judged."""

LEAST = 0.01
"""What may be lost at least, in nats or as a share: less is not told apart."""

CLOSED = 0.97
"""A γ is catching up if its gap has come down to that share of its widest at most, and still
learning if its loss fell to that share at most in the last fifth of its run."""


@dataclass(frozen=True)
class Judged:
    """What a sweep over γ says by one measure.

    Attributes:
        measure: The measure.
        line: Its means over γ.
        window: The γ that lose nothing by it: whose mean is within :data:`LEAST` of the best, or
            within the best's standard error, if that is more (the one-standard-error rule of
            Breiman et al., *Classification and Regression Trees*, 1984).
        better_half: The γ around the best that are on its side of half way to the worst mean.
        tells_nothing: Why it does not tell the γ apart, so that none loses by it; empty if it does.
        doubt: Why its seeds disagree; empty if they agree.
    """

    measure: str
    line: Cells
    window: Window
    better_half: Window
    tells_nothing: str
    doubt: str


def judge(sweep: SweepRuns, measure: str) -> tuple[Judged, pd.DataFrame]:
    """Judges γ by a measure, each at its best learning rate if there are several.

    The seeds disagree if at the best γ one is on the worse side of half way between the best and
    the worst mean, where these are more than :data:`LEAST` apart. The measure tells nothing if they
    do not, but shuffled runs spread the means over γ as far in more than 5 % of shuffles.

    Returns:
        What it says, and the runs that it says it of.

    Raises:
        InputError: Fewer than two γ have a run with that measure.
    """
    runs = sweep.ended.dropna(subset=[measure])
    if RATE in sweep.keys:
        runs, _ = at_best_rate(sweep, measure, by=LOSS)
    line = cells(runs, sweep.table[[GAMMA]], measure)
    line = line.of(np.flatnonzero(line.n_runs > 0).tolist())
    if len(line.at) < 2:
        raise InputError(f"{measure}: {len(line.at)} γ with a run that ended; two are needed")
    sign = -1.0 if lower_is_better(measure) else 1.0
    at = int(np.nanargmax(np.where(np.isfinite(line.value), sign * line.value, -np.inf)))
    best = line.runs[at]
    error = float(best.std(ddof=1) / math.sqrt(len(best))) if len(best) > 1 else 0.0
    half = window(line, lower_is_better(measure), None)
    apart = 2 * abs(half.threshold - line.value[at]) > LEAST
    astray = int((sign * best < sign * half.threshold).sum()) if apart else 0
    at_best = f"γ {line.at[GAMMA][at]:g}, the best"
    doubt = f"by {named(measure)} {astray} of {len(best)} seeds fail at {at_best}"
    found = window(line, lower_is_better(measure), max(LEAST, error))
    nothing = "" if astray else _why_nothing(line, measure)
    return Judged(measure, line, found, half, nothing, doubt if astray else ""), runs


def _why_nothing(line: Cells, measure: str) -> str:
    """Why a measure does not tell γ apart; empty if it does."""
    if line.n_runs.max() < 2:
        return f"{named(measure)} has one seed of each γ, which tells nothing of chance"
    chance = flatness(line.runs)
    if chance > CHANCE:
        return f"{named(measure)} does not tell the γ apart from the seeds (p = {chance:.2f})"
    return ""


def with_loss(sweep: SweepRuns, name: str | None) -> SweepRuns:
    """The sweep with the column :data:`LOSS`: the loss named, or the mean over all sets."""
    losses = [name] if name else [m for m in sweep.measures if lower_is_better(m)]
    if missing := [n for n in losses if n not in sweep.table] or not losses:
        raise InputError(f"the runs of {sweep.folder} have no validation loss ({missing})")
    return replace(sweep, table=sweep.table.assign(**{LOSS: sweep.table[losses].mean(axis=1)}))


def shared_range(judged: list[Judged]) -> tuple[Span, Span] | None:
    """The γ that lose nothing by any measure, and the ends' intervals; None if there are none."""
    lower = max((of.window.lower for of in judged), key=lambda span: span[0])
    upper = min((of.window.upper for of in judged), key=lambda span: span[0])
    return (lower, upper) if lower[0] <= upper[0] else None


def loss_curves(
    sweep: SweepRuns, runs: pd.DataFrame, losses: list[str]
) -> dict[float, pd.DataFrame]:
    """The validation loss over the steps.

    Returns:
        γ to its loss, the mean over the sets, a row per step and a column per seed.
    """
    found: dict[float, dict[int, pd.Series]] = {}
    for gamma, seed, run in zip(runs[GAMMA], runs["seed"], runs["run"], strict=True):
        said = summary_of(Path(sweep.folder, run)).get("validations", {})
        values = {int(step): np.mean([float(m[n]) for n in losses]) for step, m in said.items()}
        found.setdefault(float(gamma), {})[int(seed)] = pd.Series(values, dtype=float)
    return {gamma: pd.DataFrame(found[gamma]) for gamma in sorted(found)}


def gaps(curves: Mapping[float, pd.DataFrame], best: float) -> dict[float, pd.DataFrame]:
    """How far each larger γ is behind the best one, where both were validated more than once.

    Returns:
        γ to the gap in nats, a row per step and a column per seed.
    """
    apart = {g: (of - curves[best]).dropna(axis=1, how="all") for g, of in curves.items()}
    found = {g: of.dropna() for g, of in apart.items() if g > best}
    return {g: of for g, of in found.items() if len(of) > 1 and len(of.columns)}


def in_words(judged: list[Judged], curves: Mapping[float, pd.DataFrame]) -> list[str]:
    """The sentence, then what so short runs cannot tell.

    Args:
        judged: By validation loss, and by reasoning if that is measured.
        curves: The validation loss of each γ, of :func:`loss_curves`.
    """
    best = ", ".join(f"{named(of.measure)} is best at γ {of.window.best:g}" for of in judged)
    telling = [of for of in judged if not of.tells_nothing]
    said = [of.tells_nothing for of in judged if of.tells_nothing]
    doubts = [of.doubt for of in judged if of.doubt]
    if doubts or not telling:
        reason = f", as {' and '.join(doubts)}" if doubts else ""
        said.append(f"nothing is recommended{reason}")
    else:
        said.append(_recommended(telling, len(judged)))
    return [f"{_upper('; '.join([best, *said]))}.", _trend(judged[0], curves)]


def _recommended(telling: list[Judged], n_measures: int) -> str:
    """The range that loses nothing by the measures that tell γ apart, and where reasoning is."""
    tried = telling[0].line.at[GAMMA]
    span = shared_range(telling)
    by = f"nothing by {named(telling[0].measure)}" if len(telling) < n_measures else "nothing"
    loses = "neither" if len(telling) > 1 else by
    said = "no γ loses neither"
    if span is not None:
        said = f"the range that loses {loses} is {_range(span, tried)}"
    for of in telling:
        if of.measure != LOSS:
            half = _range((of.better_half.lower, of.better_half.upper), tried)
            said += f"; {named(of.measure)} is on the better side of half way from {half}"
    return said


def _trend(loss: Judged, curves: Mapping[float, pd.DataFrame]) -> str:
    """Whether a larger γ catches up, or was still learning when its runs ended."""
    best = loss.window.best
    behind = gaps(curves, best)
    if best == loss.line.at[GAMMA].max():
        return f"The largest γ tried, {best:g}, has the lowest loss: a larger one may be lower yet."
    if not behind:
        return "How the loss went over the steps was not recorded: a longer run may tell otherwise."
    if catching := list(_catching_up(behind)):
        return f"Longer runs may prefer a larger γ: {'; '.join(catching)}, in every seed."
    if learning := list(_still_learning({g: curves[g] for g in behind})):
        return f"Too short to judge a larger γ: {'; '.join(learning)}, in every seed."
    return (
        "No larger γ was catching up in every seed by the end of these runs, or still learning; "
        "smaller initialization learns later, so longer runs may still tell otherwise."
    )


def _still_learning(curves: Mapping[float, pd.DataFrame]) -> Iterator[str]:
    for gamma, table in curves.items():
        table = table.dropna()
        since = max(0, int((table.index <= 0.8 * table.index[-1]).sum()) - 1)
        before, now = table.iloc[since], table.iloc[-1]
        if (now < CLOSED * before).all():
            yield (
                f"the loss of γ {gamma:g} fell from {number(before.mean())} to "
                f"{number(now.mean())} in the last {table.index[-1] - table.index[since]:,} steps"
            )


def _catching_up(behind: Mapping[float, pd.DataFrame]) -> Iterator[str]:
    for gamma, table in behind.items():
        widest = int(table.index[int(table.mean(axis=1).to_numpy(float).argmax())])
        before, now = table.loc[widest], table.iloc[-1]
        if (now > 0).all() and (now < CLOSED * before).all():
            yield (
                f"γ {gamma:g} was {number(before.mean())} nats behind at step {widest:,} and "
                f"{number(now.mean())} at step {table.index[-1]:,}"
            )


def _range(span: tuple[Span, Span], tried: pd.Series) -> str:
    low, high = span
    said = f"γ {_end(low, 'the smallest tried')} to {_end(high, 'the largest tried')}"
    inside = [f"{g:g}" for g in tried if low[0] <= g <= high[0]]
    outside = [f"{g:g}" for g in (*tried[tried < low[0]][-1:], *tried[tried > high[0]][:1])]
    if not outside:
        return said
    return f"{said} (of those tried {', '.join(inside) or 'none'}, not {' and '.join(outside)})"


def _end(span: Span, open_end: str) -> str:
    if math.isinf(span[0]):
        return open_end
    return f"{number(span[0], 2)} [{number(span[1], 2)}, {number(span[2], 2)}]"


def named(measure: str) -> str:
    """What a measure is called."""
    return "validation loss" if measure == LOSS else measure


def _upper(words: str) -> str:
    return words[0].upper() + words[1:]
