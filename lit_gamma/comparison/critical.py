"""The critical γ: where along a sweep a measure turns from one plateau to the other, if it does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lit_gamma.comparison.bootstrap import RESAMPLES, Floats, interval
from lit_gamma.comparison.sweep_runs import GAMMA, Cells

CHANCE = 0.05
"""A curve is flat if shuffling its runs over γ spreads the means as far at least so often."""

Span = tuple[float, float, float]


@dataclass(frozen=True)
class Window:
    """The γ around the best one at which a measure is beyond a threshold.

    Attributes:
        best: The γ of the best mean.
        threshold: Of the measure.
        lower: Where the window begins, with its 95 % interval; -∞: before the smallest γ tried.
        upper: Where it ends; ∞: beyond the largest γ tried.
        between: The γ tried on either side of ``lower`` and of ``upper``; NaN for none.
    """

    best: float
    threshold: float
    lower: Span
    upper: Span
    between: tuple[tuple[float, float], tuple[float, float]]


def critical(line: Cells, lower_is_better: bool) -> Window | str:
    """Finds the critical γ of a curve, from below and from above.

    The threshold is half way between the lowest and the highest mean of the curve's cells. The
    window is the stretch around the best cell in which the measure is at it or beyond, linear in γ
    between neighbouring cells; its ends are the critical γ. There are two, as too small an
    initialization can fail as too large a one does; an end that lies outside of the grid is none.
    Each bootstrap resample has its own means, threshold and best cell. On simulated sweeps of six γ
    the interval covers the critical γ of the expected means in 93 % of sweeps with five seeds of
    Gaussian scatter, and in 90 % where each run answers one way or the other; with three seeds in
    88 % and 75 % (``benchmarks/critical.py``).

    There is no critical γ where the curve is flat within its seeds' noise: where the runs, shuffled
    over the cells, spread the cells' means as far in more than 5 % of the shuffles (a permutation
    test of the variance between cells; it takes at least two γ with four seeds, or three with two).

    Args:
        line: The cells of a curve.
        lower_is_better: Whether the measure is a loss.

    Returns:
        The window, or why there is none.
    """
    present = np.flatnonzero(line.n_runs > 0)
    if len(present) < 2:
        return f"{len(present)} γ with a run that ended: too few"
    chance = flatness([line.runs[i] for i in present])
    if chance > CHANCE:
        return f"flat within the seeds' noise (p = {chance:.2f})"
    return window(line, lower_is_better, None)


def window(line: Cells, lower_is_better: bool, tolerance: float | None) -> Window:
    """The γ around the best one that lose at most so much against it.

    Args:
        line: The cells of a curve; two at least have runs.
        lower_is_better: Whether the measure is a loss.
        tolerance: What may be lost; None for half way to the worst cell.
    """
    line = line.of(np.flatnonzero(line.n_runs > 0).tolist())
    line = line.of(np.argsort(line.at[GAMMA].to_numpy(float)).tolist())
    x = line.at[GAMMA].to_numpy(float)
    sign = -1.0 if lower_is_better else 1.0
    y = _finite(sign * np.vstack([line.value, line.resampled]))
    best = y.max(axis=1)
    threshold = (best + y.min(axis=1)) / 2 if tolerance is None else best - tolerance
    lower, begins = _first_edge(x, y, threshold)
    upper, ends = _first_edge(-x[::-1], y[:, ::-1], threshold)
    return Window(
        float(x[y[0].argmax()]),
        float(sign * threshold[0]),
        _span(lower),
        _span(-upper),
        (begins, (-ends[1], -ends[0])),
    )


def flatness(runs: list[Floats]) -> float:
    """How often shuffled runs spread the means of their cells as far as they are.

    Args:
        runs: The values of each cell's runs.

    Returns:
        The p-value of the permutation test, by 2,000 shuffles, of which the data are one more.
    """
    values = np.concatenate(runs)
    values = np.where(np.isfinite(values), values, values[np.isfinite(values)].max(initial=0.0))
    sizes = np.array([len(of) for of in runs])
    generator = np.random.default_rng(0)
    shuffled = generator.permuted(np.tile(values, (RESAMPLES, 1)), axis=1)
    sums = np.add.reduceat(np.vstack([values, shuffled]), np.cumsum([0, *sizes[:-1]]), axis=1)
    between = (sums**2 / sizes).sum(axis=1)
    as_far = between[1:] >= between[0] * (1 - 1e-12)
    return float((1 + as_far.sum()) / (1 + RESAMPLES))


def _finite(y: Floats) -> Floats:
    """Means in which what diverged is as bad as the worst that did not."""
    worst = np.where(np.isfinite(y), y, np.inf).min(axis=1, keepdims=True)
    return np.where(np.isfinite(y), y, np.where(np.isfinite(worst), worst, 0.0))


def _first_edge(x: Floats, y: Floats, threshold: Floats) -> tuple[Floats, tuple[float, float]]:
    """Where each row last comes up to its threshold before its best: (m,), -∞ for nowhere.

    Also returned are the x on either side of it in the first row.
    """
    place = np.arange(len(x))
    outside = (y < threshold[:, None]) & (place < y.argmax(axis=1)[:, None])
    last = len(x) - 1 - outside[:, ::-1].argmax(axis=1)
    last = np.minimum(last, len(x) - 2)
    row = np.arange(len(y))
    y0, y1 = y[row, last], y[row, last + 1]
    rise = np.where(y1 > y0, y1 - y0, 1.0)
    at = x[last] + (threshold - y0) / rise * (x[last + 1] - x[last])
    found: Floats = np.where(outside.any(axis=1), at, -np.inf)
    sides = (float(x[last[0]]), float(x[last[0] + 1])) if outside[0].any() else (math.nan,) * 2
    return found, sides


def _span(edges: Floats) -> Span:
    """That of the data, which come first, with the interval of the resamples."""
    low, high = interval(edges[1:])
    return float(edges[0]), float(low), float(high)
