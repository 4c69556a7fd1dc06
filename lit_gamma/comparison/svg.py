"""Charts as inline SVG: sized by their container, coloured by the style sheet of the page.

A group's colour is the style sheet's class ``g0``, ``g1``, ...; the same for its dashes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 340, 40, 8, 8, 20

Floats = npt.NDArray[np.float64]
Span = tuple[float, float, float]


@dataclass(frozen=True)
class Line:
    """One curve of a panel.

    Attributes:
        group: Number of the group.
        steps: Where along the horizontal axis, ascending, (n,).
        values: (n,).
        low: Lower edge of the band, (n,); None for no band.
        high: Its upper edge.
    """

    group: int
    steps: npt.NDArray[Any]
    values: Floats
    low: Floats | None = None
    high: Floats | None = None


@dataclass(frozen=True)
class Marks:
    """Two marks of a group under the axis, ▲ and ▽: each with its interval, NaN for none."""

    group: int
    up: Span
    down: Span


def panel(
    lines: Sequence[Line],
    log: bool = False,
    base: float | None = None,
    limits: tuple[float, float] | None = None,
    marks: Sequence[Marks] = (),
    height: int = 190,
    places: Sequence[float] | None = None,
) -> Markup:
    """Draws curves over log(1 + step), or over another quantity.

    Args:
        lines: The curves.
        log: Whether the vertical axis is logarithmic.
        base: A value to mark by a line across, and to show.
        limits: Of the vertical axis; by default those of what is drawn.
        marks: What to mark under the axis, a row per group.
        height: Without these marks, where the width is 340.
        places: The values of another quantity, in ascending order, for a linear horizontal axis.

    Returns:
        An ``<svg>``.
    """
    edges = [edge for line in lines for edge in (line.values, line.low, line.high)]
    shown = np.concatenate([e for e in edges if e is not None] + [[] if base is None else [base]])
    low, high = limits or _limits(shown[np.isfinite(shown)], log)
    last = max(float(line.steps[-1]) for line in lines)
    axes = _Axes(last, low, high, log, height - _BOTTOM, places)
    rows = sorted({of.group for of in marks})
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height + 9 * len(rows)}" role="img">', *_grid(axes)]
    if base is not None:
        parts.append(f'<path class="base" d="M{_LEFT} {axes.y(base):.1f}H{_WIDTH - _RIGHT}"/>')
    for line in lines:
        if line.low is not None and line.high is not None:
            around = np.append(line.steps, line.steps[::-1])
            edge = _path(axes.x(around), axes.y(np.append(line.low, line.high[::-1])))
            parts.append(f'<path class="band g{line.group}" d="{edge}Z"/>')
    for line in lines:
        curve = _path(axes.x(line.steps), axes.y(line.values))
        parts.append(f'<path class="line g{line.group}" d="{curve}"/>')
        if places is not None:
            parts += _dots(axes, line)
    for of in marks:
        at = height + 9 * rows.index(of.group) + 3
        parts.append(_mark(axes, at, of.up, f"up g{of.group}"))
        parts.append(_mark(axes, at, of.down, f"down g{of.group}"))
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


@dataclass(frozen=True)
class _Axes:
    """Where steps from 0 to ``last``, or places, and values from ``low`` to ``high`` are drawn."""

    last: float
    low: float
    high: float
    log: bool
    bottom: int
    places: Sequence[float] | None = None

    def x(self, step: npt.ArrayLike) -> Floats:
        at = np.asarray(step, float)
        if self.places is None:
            share: Floats = np.log1p(at) / math.log1p(max(self.last, 1))
        else:
            first, last = self.places[0], self.places[-1]
            share = 0.03 + 0.94 * (at - first) / (last - first) if last > first else at * 0 + 0.5
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * np.clip(share, 0, 1)

    @property
    def along(self) -> list[float]:
        """What is marked on the horizontal axis."""
        if self.places is None:
            return [0, *(10**i for i in range(int(math.log10(max(self.last, 1))) + 1))]
        return list(self.places[:: math.ceil(len(self.places) / 10)])

    def y(self, value: npt.ArrayLike) -> Floats:
        value = np.clip(np.asarray(value, float), self.low, self.high)
        bend = np.log if self.log else np.positive
        low, high = bend(self.low), bend(self.high)
        at: Floats = self.bottom - (self.bottom - _TOP) * (bend(value) - low) / (high - low)
        return at


def _grid(axes: _Axes) -> Iterator[str]:
    for tick in _ticks(axes.low, axes.high, axes.log):
        at = float(axes.y(tick))
        yield f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>'
        yield f'<text x="{_LEFT - 5}" y="{at + 3.5:.1f}" class="end">{tick:g}</text>'
    for step in axes.along:
        x = float(axes.x(step))
        yield f'<path class="grid" d="M{x:.1f} {_TOP}V{axes.bottom}"/>'
        yield f'<text x="{x:.1f}" y="{axes.bottom + 14}" class="mid">{step:.10g}</text>'


def _dots(axes: _Axes, line: Line) -> Iterator[str]:
    for x, y in zip(axes.x(line.steps), axes.y(line.values), strict=True):
        if math.isfinite(y):
            yield f'<circle class="dot g{line.group}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'


def _mark(axes: _Axes, at: float, span: Span, kind: str) -> str:
    """A triangle on its interval, up or down; empty for no phase."""
    step, low, high = span
    if math.isnan(step):
        return ""
    left, middle, right = (float(x) for x in axes.x(np.minimum([low, step, high], axes.last)))
    height = 3.5 if kind.startswith("up") else -3.5
    triangle = f"M{middle - 4:.1f} {at + height}h8l-4 {-2 * height}Z"
    group = kind.split()[1]
    return (
        f'<path class="whisker {group}" d="M{left:.1f} {at}H{right:.1f}"/>'
        f'<path class="{kind}" d="{triangle}"/>'
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
    if log and high / low > 4:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factors in ((1, 10), (1, 3), (1, 2, 5)):
            found = sorted({f * 10.0**d for d in decades for f in factors})
            inside = [tick for tick in found if low <= tick <= high]
            if len(inside) >= 3:
                return inside
        return inside
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(f * step for f in (5, 2, 1) if (high - low) / (f * step) >= 2.5)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]
