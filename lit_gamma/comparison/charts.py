"""Charts as inline SVG: sized by their container, coloured by the style sheet of the page.

A group's colour is the style sheet's class ``g0``, ``g1``, ...; the same for its dashes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 340, 190, 40, 8, 8, 20

Floats = npt.NDArray[np.float64]
Span = tuple[float, float, float]


@dataclass(frozen=True)
class Line:
    """One curve of a panel.

    Attributes:
        group: Number of the group.
        steps: (n,).
        values: (n,).
        low: Lower edge of the band, (n,); None for no band.
        high: Its upper edge.
    """

    group: int
    steps: npt.NDArray[np.int64]
    values: Floats
    low: Floats | None = None
    high: Floats | None = None


@dataclass(frozen=True)
class Phase:
    """The phases of a run: each the step with its interval, NaN for none."""

    group: int
    condensation: Span
    expansion: Span


def panel(
    lines: Sequence[Line],
    log: bool = False,
    base: float | None = None,
    limits: tuple[float, float] | None = None,
    phases: Sequence[Phase] = (),
) -> Markup:
    """Draws curves over log(1 + step).

    Args:
        lines: The curves.
        log: Whether the vertical axis is logarithmic.
        base: A value to mark by a line across, and to show.
        limits: Of the vertical axis; by default those of what is drawn.
        phases: Marks under the axis, a row per group.

    Returns:
        An ``<svg>``.
    """
    last = max(int(line.steps[-1]) for line in lines)
    edges = [edge for line in lines for edge in (line.values, line.low, line.high)]
    shown = np.concatenate([e for e in edges if e is not None] + [[] if base is None else [base]])
    low, high = limits or _limits(shown[np.isfinite(shown)], log)
    bend: Callable[[Floats], Floats] = np.log if log else np.asarray
    bottom, span = _HEIGHT - _BOTTOM, bend(np.array([low, high], float))

    def x(step: npt.ArrayLike) -> Floats:
        inner = _WIDTH - _LEFT - _RIGHT
        return _LEFT + inner * np.log1p(np.asarray(step, float)) / math.log1p(max(last, 1))

    def y(value: npt.ArrayLike) -> Floats:
        inside = np.clip(np.asarray(value, float), low, high)
        return bottom - (bottom - _TOP) * (bend(inside) - span[0]) / (span[1] - span[0])

    rows = sorted({phase.group for phase in phases})
    height = _HEIGHT + 9 * len(rows)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">']
    for tick in _ticks(low, high, log):
        at = y(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{at + 3.5:.1f}" class="end">{tick:g}</text>')
    for step in [0, *(10**i for i in range(int(math.log10(max(last, 1))) + 1))]:
        parts.append(f'<path class="grid" d="M{x(step):.1f} {_TOP}V{bottom}"/>')
        parts.append(f'<text x="{x(step):.1f}" y="{bottom + 14}" class="mid">{step}</text>')
    if base is not None:
        parts.append(f'<path class="base" d="M{_LEFT} {y(base):.1f}H{_WIDTH - _RIGHT}"/>')
    for line in lines:
        if line.low is not None and line.high is not None:
            around = np.append(line.steps, line.steps[::-1])
            edge = _path(x(around), y(np.append(line.low, line.high[::-1])))
            parts.append(f'<path class="band g{line.group}" d="{edge}Z"/>')
    for line in lines:
        curve = _path(x(line.steps), y(line.values))
        parts.append(f'<path class="line g{line.group}" d="{curve}"/>')
    for phase in phases:
        at = _HEIGHT + 9 * rows.index(phase.group) + 3
        parts += [_mark(phase.group, x, at, phase.condensation, last, "up"),
                  _mark(phase.group, x, at, phase.expansion, last, "down")]  # fmt: skip
    return Markup("".join([*parts, "</svg>"]))


def interval_bar(
    spans: Sequence[tuple[int, Span]], low: float, high: float, mark: float | None = None
) -> Markup:
    """Draws values with their intervals on one line per group.

    Args:
        spans: Group and (value, low, high).
        low: Left end of the axis.
        high: Right end; what is beyond, ∞ included, ends in an arrow.
        mark: A value to mark by a line across.

    Returns:
        An ``<svg>``.
    """
    width, row = 180, 12

    def x(value: float) -> float:
        return 4 + (width - 12) * (min(max(value, low), high) - low) / (high - low)

    parts = [f'<svg class="bar" viewBox="0 0 {width} {row * len(spans)}" aria-hidden="true">']
    if mark is not None:
        parts.append(f'<path class="base" d="M{x(mark):.1f} 0V{row * len(spans)}"/>')
    for i, (group, (value, left, right)) in enumerate(spans):
        at = row * i + row / 2
        if not math.isnan(left + right):
            head = f"M{width - 8} {at - 3}l5 3l-5 3" if right > high else ""
            span = f"M{x(left):.1f} {at}H{x(right):.1f}{head}"
            parts.append(f'<path class="whisker g{group}" d="{span}"/>')
        if math.isfinite(value):
            parts.append(f'<circle class="dot g{group}" cx="{x(value):.1f}" cy="{at}" r="3.5"/>')
    return Markup("".join([*parts, "</svg>"]))


def _mark(
    group: int, x: Callable[[float], Floats], at: float, span: Span, last: int, kind: str
) -> str:
    step, low, high = span
    if math.isnan(step):
        return ""
    middle, height = x(step), 3.5 if kind == "up" else -3.5
    ends = f"M{x(low):.1f} {at}H{x(min(high, last)):.1f}"
    triangle = f"M{middle - 4:.1f} {at + height}h8l-4 {-2 * height}Z"
    return (
        f'<path class="whisker g{group}" d="{ends}"/><path class="{kind} g{group}" d="{triangle}"/>'
    )


def _path(x: Floats, y: Floats) -> str:
    drawn = np.isfinite(y)
    points = (f"{a:.1f} {b:.1f}" for a, b in zip(x[drawn], y[drawn], strict=True))
    return "M" + "L".join(points) if drawn.any() else ""


def _limits(values: Floats, log: bool) -> tuple[float, float]:
    if not len(values):
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if log:
        low = max(low, 1e-9)
        return low / 1.08, max(high, low * 1.2) * 1.08
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Three to six round values between two."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factors in ((1, 10), (1, 3), (1, 2, 5), (1, 1.2, 1.5, 2, 3, 5, 7)):
            found = sorted({f * 10.0**d for d in decades for f in factors})
            inside = [tick for tick in found if low <= tick <= high]
            if len(inside) >= 3:
                return inside
        return inside
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(f * step for f in (5, 2, 1) if (high - low) / (f * step) >= 2.5)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]
