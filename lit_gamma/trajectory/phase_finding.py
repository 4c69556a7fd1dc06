"""Phases of a run: when does each role or matrix condense, and when does it expand again?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import inf, nan

import numpy as np
import numpy.typing as npt
import pandas as pd

from lit_gamma.errors import InputError
from lit_gamma.trajectory.sources import tables_of

QUANTITIES = {
    "mean_squared_cosine_over_null": 1,
    "effective_rank_over_null": -1,
    "participation_ratio_over_null": -1,
    "stable_rank_over_null": -1,
}
"""What shows condensation: column to the sign of the move (up, down)."""

PER_DECADE = 20
"""Points per factor of ten of steps that a curve is averaged to."""

SPANS = (5, 9)
"""Points that a local fit may span."""

REACH = 1.4
"""The weights of a local fit vanish at so many times the distance of its farthest point."""

NEAR = 13
"""Points around one that tell how far off it is."""

MAD_TO_STD = 1.4826
"""The standard deviation of a Gaussian over its median absolute deviation."""

STANDARD_ERRORS = 4.0
"""A difference is significant beyond so many of its standard errors."""

_RESAMPLES = 500

Floats = npt.NDArray[np.float64]
Curve = tuple[str, str, pd.Series]
"""Role, matrix, values by step."""


@dataclass(frozen=True)
class Phases:
    """The phases of one curve; steps are NaN where there is none.

    Attributes:
        start: Smoothed value at step 0.
        condensation_step: Step of the extreme, if the move to it is significant.
        condensation_low: Lower end of its 90 % interval.
        condensation_high: Upper end; ∞ if the extreme is at the end: condensation was going on.
        extreme: Smoothed value there.
        expansion_step: Last step at which the curve is at its extreme, if it leaves it for good.
        expansion_low: Lower end of its 90 % interval.
        expansion_high: Upper end.
        end: Smoothed value at the end.
    """

    start: float = nan
    condensation_step: float = nan
    condensation_low: float = nan
    condensation_high: float = nan
    extreme: float = nan
    expansion_step: float = nan
    expansion_low: float = nan
    expansion_high: float = nan
    end: float = nan


def find_phases(
    steps: npt.ArrayLike, values: npt.ArrayLike, sign: int, min_change: float = 0.1
) -> Phases:
    """Finds the condensation step and the onset of expansion in one curve.

    The curve y = ± ln(value) is averaged to :data:`PER_DECADE` points per decade of 1 + step and
    smoothed by local quadratic regression with tricube weights (Cleveland, JASA 74, 1979, of the
    second degree) over that number of points of :data:`SPANS` whose residuals are least, each as if
    its point had been left out. A smoothed value is kept within those of its point and the two next
    to it. Two points of the curve differ significantly by more than δ, the larger of
    ln(1 + min_change) and four standard errors: those of the local fits, with the noise as 1.48
    times the median size of these residuals at the :data:`NEAR` nearest points.

    - Condensation: the maximum of the smoothed curve, if it lies more than δ above the start.
    - Expansion: the curve ends more than δ below that maximum; its onset is the last point after
      the maximum that lies within δ of it.

    Intervals are the 5 % and 95 % quantiles over wild-bootstrap curves (residuals with random
    signs on the smoothed curve, smoothed again) that show the phase, and hold at least the
    neighbouring points.

    How often a phase is found in simulated curves that have it, by its size, and how often one that
    is not there (none); 60 curves a cell, by ``python benchmarks/phases.py``. The expansion follows
    a fall to 0.3. Curves of the default experiment are off by less than 0.01 from smooth ones, nine
    in ten, once they have made their main move.

    ====================================  ====  ====  ====  ====  ====  ====  ====  ====  ====
    found, in per cent                    condensation            expansion
    ------------------------------------  ----------------------  ----------------------------
    curve, relative noise of a value      none  10 %  20 %  40 %  none  10 %  20 %  40 %  80 %
    ====================================  ====  ====  ====  ====  ====  ====  ====  ====  ====
    mean of a role, measured often, 0.01     0    83   100   100     0    25    95   100   100
    mean of a role, measured often, 0.05     0    18    70    98     0     3    15    77    98
    a matrix, measured seldom, 0.01          0    72   100   100     0    47    87    98   100
    a matrix, measured seldom, 0.05          0     5    25    82     0     0     7    48    85
    ====================================  ====  ====  ====  ====  ====  ====  ====  ====  ====

    A change by 5 %, which does not count, is taken for a phase in at most 3 %.

    Args:
        steps: Optimizer steps, ascending, shape (n,).
        values: Positive values relative to their null, shape (n,).
        sign: 1 where condensation is a rise, -1 where it is a fall.
        min_change: Smallest relative change that counts.

    Returns:
        The phases; without any for fewer points than a local fit spans.
    """
    x, y = _averaged(np.asarray(steps, float), sign * np.log(np.asarray(values, float)))
    if len(x) < max(SPANS):
        return Phases()
    smoother, residuals = _smoothed(x, y)
    curve = _between_neighbours(y[None], smoother)[0]
    noise = MAD_TO_STD * np.median(np.abs(residuals)[_nearest(x, NEAR)[0]], axis=1)
    errors = STANDARD_ERRORS * noise * np.linalg.norm(smoother, axis=1)
    peak, onset = _turns(curve[None], errors, min_change)[:, 0]
    start, end = (float(np.exp(sign * curve[i])) for i in (0, -1))
    if peak < 0:
        return Phases(start=start, end=end)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (_RESAMPLES, len(x)))
    again = _between_neighbours(curve + signs * residuals, smoother)
    peaks, onsets = _turns(again, errors, min_change)
    points = np.rint(10**x - 1)
    low, high = _interval(points, peak, peaks)
    condensed = points[peak], low, inf if peak == len(points) - 1 else high
    expanded = (nan, nan, nan)
    if onset >= 0:
        expanded = points[onset], *_interval(points, onset, onsets)
    return Phases(start, *condensed, float(np.exp(sign * curve[peak])), *expanded, end)


def phases_of(tables: Mapping[str, pd.DataFrame], min_change: float = 0.1) -> pd.DataFrame:
    """Finds the phases of every role and matrix, by each of :data:`QUANTITIES` recorded of it.

    Args:
        tables: What :func:`lit_gamma.trajectory.load` returns.
        min_change: See :func:`find_phases`.

    Returns:
        A row per role and quantity, and below them, where a role has several matrices, one per
        matrix and quantity: ``role``, ``matrix`` (empty for the mean over a role), ``quantity``,
        and the attributes of :class:`Phases`.

    Raises:
        InputError: None of them was recorded, or ``min_change`` is not positive.
    """
    return _found(tables, min_change, _means_of_roles, _matrices)


def phases_of_roles(tables: Mapping[str, pd.DataFrame], min_change: float = 0.1) -> pd.DataFrame:
    """The rows of roles of :func:`phases_of`."""
    return _found(tables, min_change, _means_of_roles)


def role_means(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Means over the matrices of each role, between measurements interpolated in the step.

    Args:
        table: A table with a row per step and matrix.
        column: The quantity.

    Returns:
        A column per role, indexed by step.
    """
    roles = table.drop_duplicates("matrix").set_index("matrix")["role"]
    measured = table.pivot(index="step", columns="matrix", values=column)[list(roles.index)]
    each = measured.interpolate(method="index")
    means: pd.DataFrame = each.T.groupby(roles, sort=False).mean().T
    return means


def _found(
    tables: Mapping[str, pd.DataFrame],
    min_change: float,
    *curves_of: Callable[[pd.DataFrame, str], Iterator[Curve]],
) -> pd.DataFrame:
    if not min_change > 0:
        raise InputError(f"min_change must be positive, such as 0.1 for 10 %, got {min_change}")
    recorded = [
        (quantity, table) for quantity in QUANTITIES for table in tables_of(tables, quantity)
    ]
    if not recorded:
        raise InputError(
            "phases need the tables weight_norms, condensation, effective_rank, circuits or "
            "hidden_states; the run has none"
        )
    rows = []
    for curves in curves_of:
        for quantity, table in recorded:
            sign = QUANTITIES[quantity]
            for role, matrix, curve in curves(table, quantity):
                seen = curve[np.isfinite(curve) & (curve > 0)]
                phases = find_phases(seen.index.to_numpy(), seen.to_numpy(), sign, min_change)
                row = {"role": role, "matrix": matrix, "quantity": quantity}
                rows.append({**row, **asdict(phases)})
    found: pd.DataFrame = pd.DataFrame(rows)
    return found


def _means_of_roles(table: pd.DataFrame, quantity: str) -> Iterator[Curve]:
    for role, curve in role_means(table, quantity).items():
        yield str(role), "", curve


def _matrices(table: pd.DataFrame, quantity: str) -> Iterator[Curve]:
    """The matrices of roles that have several, each at the steps at which it was measured."""
    several = table.groupby("role")["matrix"].transform("nunique") > 1
    for (role, matrix), rows in table[several].groupby(["role", "matrix"], sort=False):
        yield role, matrix, rows.set_index("step")[quantity]


def _averaged(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Means of log10(1 + step) and of the values, over bins of equal width in it."""
    x = np.log10(1 + steps)
    _, which, n = np.unique((x * PER_DECADE).round(), return_inverse=True, return_counts=True)
    return np.bincount(which, x) / n, np.bincount(which, values) / n


def _smoothed(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """The smoother of the span whose residuals are least, and these: each point left out."""
    fits = []
    for span in SPANS:
        smoother = _smoother(x, span)
        fits.append((smoother, (y - smoother @ y) / np.maximum(1 - np.diag(smoother), 0.1)))
    return min(fits, key=lambda fit: float(np.linalg.norm(fit[1])))


def _between_neighbours(values: Floats, smoother: Floats) -> Floats:
    """Smooths values (m, n); a parabola would overshoot the corner at the foot of a steep fall."""
    padded = np.pad(values, ((0, 0), (1, 1)), mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, 3, axis=1)
    smoothed: Floats = np.clip(values @ smoother.T, around.min(axis=2), around.max(axis=2))
    return smoothed


def _smoother(x: Floats, span: int) -> Floats:
    """The matrix that smooths a curve given at x: local quadratics, shape (n, n)."""
    near, distance = _nearest(x, span)
    u = (x[near] - x[:, None]) / (distance.max(axis=1, keepdims=True) * REACH)
    root = np.sqrt((1 - np.abs(u) ** 3) ** 3)
    design = np.stack([np.ones_like(u), u, u**2], axis=2)
    smoother = np.zeros((len(x), len(x)))
    fits = np.linalg.pinv(design * root[:, :, None])[:, 0] * root
    np.put_along_axis(smoother, near, fits, axis=1)
    return smoother


def _nearest(x: Floats, n: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """The n points nearest to each, and their distances."""
    distance = np.abs(x[:, None] - x)
    near = np.argsort(distance, axis=1, kind="stable")[:, :n]
    return near, np.take_along_axis(distance, near, axis=1)


def _turns(curves: Floats, errors: Floats, min_change: float) -> npt.NDArray[np.int64]:
    """Places of peak and onset in each curve (m, n), -1 where there is none: shape (2, m)."""
    n = curves.shape[1]
    peak = curves.argmax(axis=1)
    delta = np.maximum(np.log1p(min_change), np.hypot(errors, errors[peak][:, None]))
    below = curves.max(axis=1, keepdims=True) - curves
    moved = below[:, 0] > delta[:, 0]
    last = n - 1 - (below <= delta)[:, ::-1].argmax(axis=1)
    return np.stack([np.where(moved, peak, -1), np.where(moved & (last < n - 1), last, -1)])


def _interval(points: Floats, found: int, again: npt.NDArray[np.int64]) -> tuple[float, float]:
    low, high = np.quantile(points[np.append(again[again >= 0], found)], [0.05, 0.95])
    last = len(points) - 1
    return min(low, points[max(found - 1, 0)]), max(high, points[min(found + 1, last)])
