"""The kinds of tests that parts of a claim name: each says yes, no, or what it would take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pandas as pd

from lit_gamma.comparison.claim_cells import (
    Sweeps,
    Where,
    at_lowest_loss,
    by_seed,
    chosen,
    phase_name,
    selected,
    with_phase,
)
from lit_gamma.comparison.claim_tokens import context_gains
from lit_gamma.comparison.critical import CHANCE, Span, Window
from lit_gamma.comparison.critical import critical as critical_of
from lit_gamma.comparison.small_samples import (
    MOST,
    mean_interval,
    seeds_needed,
    share_difference,
    share_interval,
)
from lit_gamma.comparison.sweep_runs import GAMMA, SweepRuns, cells, lower_is_better
from lit_gamma.errors import InputError

Verdict = Literal["yes", "no", "undecided"]


@dataclass(frozen=True)
class Outcome:
    """What a test came to.

    Attributes:
        verdict: Whether it is so.
        what: What was measured.
        span: Its value and 95 % interval; NaN where there is none.
        note: What it is made of, why there is none, or what a decision would take.
    """

    verdict: Verdict
    what: str
    span: Span = (math.nan,) * 3
    note: str = ""


def critical(sweeps: Sweeps, sweep: str, measure: str, where: Where | None = None) -> Outcome:
    """Does the measure become better at a γ inside of the grid?

    Yes if there is a critical γ from below whose 95 % interval lies inside of the grid; no if the
    smallest γ is beyond it. A curve that is flat within the seeds' noise decides nothing.
    """
    found = _window(sweeps, sweep, measure, where)
    if isinstance(found, Outcome):
        return found
    value, low, high = found.lower
    what = "critical γ, from below"
    if math.isfinite(low) and math.isfinite(high):
        return Outcome("yes", what, found.lower)
    if math.isinf(high):
        return Outcome("no", what, note="the smallest γ tried is beyond it already")
    takes = "takes a smaller γ, or more seeds"
    return Outcome("undecided", what, (value, low, high), takes)


def critical_stays(sweeps: Sweeps, sweep: str, measure: str, where: Where | None = None) -> Outcome:
    """Does the measure stay better up to the largest γ?

    Yes if no critical γ from above lies inside of the grid, in its 95 % interval neither.
    """
    found = _window(sweeps, sweep, measure, where)
    if isinstance(found, Outcome):
        return found
    _, low, high = found.upper
    what = "critical γ, from above"
    if math.isinf(low):
        return Outcome("yes", what, note="none up to the largest γ tried")
    if math.isfinite(high):
        return Outcome("no", what, found.upper)
    return Outcome("undecided", what, found.upper, "takes a larger γ, or more seeds")


def better(
    sweeps: Sweeps,
    sweep: str,
    measure: str,
    where: Where,
    than: Where | None = None,
    than_sweep: str | None = None,
    by: float = 0.0,
) -> Outcome:
    """Is a measure better in one setting than in another, by more than ``by``?

    Paired over seeds; losses are better if lower. Yes and no by Student's 95 % interval.
    """
    gains = _gains(sweeps, sweep, measure, where, than, than_sweep)
    return _above(gains, by, f"gain in {measure}")


def gains_more(sweeps: Sweeps, gain: Mapping[str, Any], over: Mapping[str, Any]) -> Outcome:
    """Is one gain larger than another?

    Each is that of :func:`better`, of losses the log of their ratio, so that sets compare. Paired
    over seeds.
    """
    one, other = (_gains(sweeps, **of, relative=True) for of in (gain, over))
    if lower_is_better(gain["measure"]) != lower_is_better(over["measure"]):
        raise InputError(f"{gain['measure']} and {over['measure']} have no unit in common")
    return _above((one - other).dropna(), 0.0, "gain less the other gain")


def phases(
    sweeps: Sweeps,
    sweep: str,
    role: str,
    quantity: str,
    phase: str,
    where: Where,
    than: Where | None = None,
    above: float = 0.5,
) -> Outcome:
    """Do more than a share ``above`` of the seeds show a phase, or more than in another setting?

    A seed shows it if most of its runs do that measured it: runs of a seed begin alike, so that
    they are no evidence of their own. Wilson's interval, or Newcombe's of a difference.
    """
    found, of = _n_with_phase(sweeps[sweep], where, role, quantity, phase)
    said = f"{found} of {of} seeds"
    if than is None:
        span = share_interval(found, of)
        more = (n for n in range(of, MOST) if share_interval(round(span[0] * n), n)[1] > above)
        takes = f"some {next(more, MOST)} seeds" if span[0] > above else "more seeds"
        return _decided(span, above, f"share of seeds with {phase}", said, takes)
    other = _n_with_phase(sweeps[sweep], than, role, quantity, phase)
    said = f"{said} against {other[0]} of {other[1]}"
    span = share_difference((found, of), other)
    return _decided(span, 0.0, f"difference of the shares with {phase}", said, "more seeds")


def tokens(
    sweeps: Sweeps,
    sweep: str,
    at: Literal["equal_steps", "equal_loss"],
    tokens: str,
    classes: str,
    where: Where,
    than: Where,
) -> Outcome:
    """Does a setting gain more on a class of tokens than over all?

    What is compared: the gain in loss on these tokens, less that over all tokens if there is one;
    paired over seeds, see :func:`~lit_gamma.comparison.claim_tokens.context_gains`.
    """
    here, there = (at_lowest_loss(sweeps[sweep], setting) for setting in (where, than))
    gains = context_gains(here, there, tokens, classes, at == "equal_loss")
    return _above(gains, 0.0, f"gain on these tokens beyond that over all, {at.replace('_', ' ')}")


KINDS: dict[str, Callable[..., Outcome]] = {
    f.__name__: f for f in (critical, critical_stays, better, gains_more, phases, tokens)
}
"""The kinds, by name."""


def _window(sweeps: Sweeps, sweep: str, measure: str, where: Where | None) -> Window | Outcome:
    found = chosen(sweeps[sweep], where or {}, measure, keep=(GAMMA,))
    planned = selected(sweeps[sweep], where or {}).table[[GAMMA]]
    line = cells(found.ended, planned, measure)
    if not (line.n_runs > 0).all():
        bare = ", ".join(f"{gamma:g}" for gamma in line.at[GAMMA][line.n_runs == 0])
        return Outcome("undecided", "critical γ", note=f"no run at γ {bare} has ended")
    window = critical_of(line, lower_is_better(measure))
    if isinstance(window, Window):
        return window
    takes = _what_a_test_takes([int(n) for n in line.n_runs])
    note = takes or f"none found: {window}; takes more seeds, or a wider grid"
    return Outcome("undecided", "critical γ", note=note)


def _what_a_test_takes(sizes: list[int]) -> str:
    """Whether so many runs of each γ can differ by more than chance; what it takes if not."""
    orders = math.factorial(sum(sizes)) // math.prod(map(math.factorial, sizes))
    alike = math.prod(math.factorial(n) for n in Counter(sizes).values())
    if len(sizes) > 1 and Fraction(alike, orders) <= CHANCE:
        return ""
    return "too few runs to tell a curve from noise: takes 2 γ with 4 seeds, or 3 γ with 3"


def _gains(
    sweeps: Sweeps,
    sweep: str,
    measure: str,
    where: Where,
    than: Where | None = None,
    than_sweep: str | None = None,
    relative: bool = False,
) -> pd.Series:
    """How much better a measure is in one setting than in another, a value per seed of both."""
    here = by_seed(sweeps[sweep], where, measure)
    there = by_seed(sweeps[than_sweep or sweep], than or {}, measure)
    is_loss = lower_is_better(measure)
    if is_loss and relative:
        here, there = np.log(here), np.log(there)
    both = here.index.intersection(there.index)
    gains: pd.Series = (there - here if is_loss else here - there)[both]
    return gains


def _above(gains: pd.Series, threshold: float, what: str) -> Outcome:
    """Whether the mean of paired differences is above a threshold."""
    if len(gains) < 2:
        return Outcome("undecided", what, note=f"{len(gains)} seeds in both; takes 2 at least")
    if not np.isfinite(gains).all():
        seeds = ", ".join(str(seed) for seed in gains.index[~np.isfinite(gains)])
        return Outcome("undecided", what, note=f"seed {seeds} diverged; takes runs that do not")
    if (gains == threshold).all():
        note = "the same in each seed; takes runs or a measure that tell them apart"
        return Outcome("undecided", what, mean_interval(gains), note)
    n = seeds_needed(gains - threshold)
    takes = f"some {n} seeds, if mean and spread stay" if n else f"more than {MOST:,} seeds"
    return _decided(mean_interval(gains), threshold, what, f"{len(gains)} seeds", takes)


def _decided(span: Span, threshold: float, what: str, made_of: str, takes: str) -> Outcome:
    _, low, high = span
    beyond = f", to be above {threshold:g}" if threshold else ""
    if low > threshold:
        return Outcome("yes", what + beyond, span, made_of)
    if high <= threshold:
        return Outcome("no", what + beyond, span, made_of)
    return Outcome("undecided", what + beyond, span, f"{made_of}; takes {takes}")


def _n_with_phase(
    sweep: SweepRuns, where: Where, role: str, quantity: str, phase: str
) -> tuple[int, int]:
    """How many seeds of a setting have a phase in most runs, and how many measured it."""
    runs = with_phase(selected(sweep, where), role, quantity, phase).ended
    by_run = runs[phase_name(role, quantity, phase)]
    shares = by_run.groupby(runs["seed"]).mean().dropna()
    return int((shares > 0.5).sum()), len(shares)
