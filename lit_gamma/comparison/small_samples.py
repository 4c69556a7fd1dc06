"""Intervals of 95 % from few seeds: of a mean, of a share, of a difference of shares."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from lit_gamma.comparison.critical import Span

LEVEL = 0.95
MOST = 1000
"""More seeds or runs than that are not counted."""


def mean_interval(values: npt.ArrayLike) -> Span:
    """A mean with Student's interval, mean ± t_{n-1} s / √n; NaN ends for a single value.

    Args:
        values: Finite, (n,), n ≥ 1.

    Returns:
        Mean, low, high.
    """
    x = np.asarray(values, float)
    mean = float(x.mean())
    if len(x) < 2:
        return mean, math.nan, math.nan
    half = student_quantile(len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return mean, mean - half, mean + half


def seeds_needed(values: npt.ArrayLike) -> int | None:
    """How many values it takes for the interval to leave 0 out, if mean and spread stay.

    Returns:
        The number; None if it is more than :data:`MOST`.
    """
    x = np.asarray(values, float)
    mean, spread = abs(float(x.mean())), float(x.std(ddof=1))
    enough = (n for n in range(2, MOST) if student_quantile(n - 1) * spread < mean * math.sqrt(n))
    return next(enough, None) if mean * math.sqrt(MOST) > 1.96 * spread else None


def student_quantile(degrees: int, level: float = LEVEL) -> float:
    """The t that a two-sided interval of Student's distribution reaches to.

    With t = √ν tan θ the density over θ is proportional to cos^(ν-1) θ, which is integrated.
    """
    theta = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(theta).clip(0) ** (degrees - 1)
    inside = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    at = float(np.interp(level, inside / inside[-1], theta))
    return math.sqrt(degrees) * math.tan(at)


def share_interval(found: int, of: int) -> Span:
    """A share with Wilson's interval (JASA 22, 1927).

    Args:
        found: How many had it.
        of: Of how many, at least 1.

    Returns:
        Share, low, high.
    """
    z2 = NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2
    p = found / of
    middle = (p + z2 / (2 * of)) / (1 + z2 / of)
    half = math.sqrt(z2 * (p * (1 - p) / of + z2 / (4 * of * of))) / (1 + z2 / of)
    return p, max(0.0, middle - half), min(1.0, middle + half)


def share_difference(one: tuple[int, int], other: tuple[int, int]) -> Span:
    """The difference of two shares, one less other, with Newcombe's interval.

    It is his method 10 (Statistics in Medicine 17, 1998), made of Wilson's intervals.

    Args:
        one: How many had it, of how many.
        other: The same of the other group.
    """
    p, low, high = share_interval(*one)
    q, other_low, other_high = share_interval(*other)
    return (
        p - q,
        p - q - math.hypot(p - low, other_high - q),
        p - q + math.hypot(high - p, q - other_low),
    )
