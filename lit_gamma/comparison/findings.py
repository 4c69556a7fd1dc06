"""The numbers in words."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from lit_gamma.comparison.alignment import Comparison
from lit_gamma.comparison.bootstrap import Curves, interval

_SHOWN = ("context_constrained", "trivial")
FEW_BLOCKS = 8
"""With fewer blocks an interval is too narrow to be trusted."""

Parts = dict[tuple[str, str], Curves]


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number to read; – for none, and a proper minus."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def step_number(value: float) -> str:
    """A step to read."""
    return "not reached" if math.isinf(value) else number(value, 0)


def readable(name: str) -> str:
    """The name of a class, role or quantity, to read."""
    joined = name.replace("context_constrained", "context-constrained")
    return joined.replace("_over_null", " ÷ null").replace("_", " ")


def verdict(value: float, low: float, high: float) -> str:
    """What a difference and its interval say."""
    if math.isnan(value):
        return "unknown (a loss is not a number)"
    if math.isnan(low) or low <= 0 <= high:
        shown = ", ".join(number(v, sign=True) for v in (low, high))
        return f"not clearly different ({number(value, sign=True)} [{shown}])"
    ends = sorted((abs(low), abs(high)))
    size = f"{number(abs(value))} [{number(ends[0])}, {number(ends[1])}] nats"
    return f"{'lower' if value < 0 else 'higher'} by {size}"


def main_findings(comparison: Comparison, parts: Parts, by_mean: Parts) -> list[list[str]]:
    """What differs at the last step: sentences for each group beside the reference.

    Args:
        comparison: The runs.
        parts: Curves by the classes of what the best group predicts.
        by_mean: Curves by the classes of what all groups predict.

    Returns:
        Sentences per group.
    """
    reference, *others = comparison.groups
    return [
        _of_group(comparison, parts, by_mean, i, f"{group}, against {reference},")
        for i, group in enumerate(others, 1)
    ]


def _of_group(comparison: Comparison, parts: Parts, by_mean: Parts, i: int, pair: str) -> list[str]:
    shown = [(name, parts["", name]) for name in _SHOWN if ("", name) in parts]
    over_all = f"{_said(parts['', ''], i)} over all tokens"
    on = [
        f"{_said(c, i)} on {readable(name)} tokens ({c.n_tokens:,} of {len(comparison.tokens):,})"
        for name, c in shown
    ]
    last = f"{comparison.steps[-1]:,}"
    sentences = [f"At step {last} the loss of {pair} is {_joined(on, over_all)}."]
    sets = [f"{_said(c, i)} on {s}" for (s, of_class), c in parts.items() if s and not of_class]
    if sets:
        sentences.append(f"By validation set: {', '.join(sets)}.")
    if len(shown) == 2:
        sentences.append(_gap(shown[0][1], shown[1][1], i))
    few = [(name, c.n_blocks) for name, c in shown if c.n_blocks < FEW_BLOCKS]
    sentences += [
        f"{n} {'blocks hold' if n > 1 else 'block holds'} {readable(name)} tokens: too few to "
        "trust that interval."
        for name, n in few
    ]
    other = {name: by_mean["", name] for name, _ in shown if ("", name) in by_mean}
    changed = [
        f"{_said(other[name], i)} on {readable(name)} tokens ({other[name].n_tokens:,})"
        for name, c in shown
        if name in other and _sign(c, i) != _sign(other[name], i)
    ]
    if changed:
        sentences.append(
            "This hangs on how the classes are made: counting as predictable only what every "
            f"setting predicts, {'; '.join(changed)}."
        )
    return sentences


def _gap(constrained: Curves, trivial: Curves, i: int) -> str:
    low, high = interval(_last(constrained, i) - _last(trivial, i))
    gap = _mean(constrained, i) - _mean(trivial, i)
    ends = ", ".join(number(v, sign=True) for v in (low, high))
    return (
        "Difference on context-constrained tokens less that on trivial ones: "
        f"{number(gap, sign=True)} [{ends}]."
    )


def _said(curves: Curves, i: int) -> str:
    return verdict(*_last_difference(curves, i))


def order_of_sets(learnt: pd.DataFrame, share: float) -> list[str]:
    """When each validation set was learnt, a sentence per group; none for a single set."""
    rows = learnt[(learnt["set"] != "") & (learnt["class"] == "") & (learnt["share"] == share)]
    found = []
    for group, of_group in rows.groupby("group", sort=False):
        steps = [
            f"{row['set']} at step {step_number(row['step'])} "
            f"[{step_number(row['step_low'])}, {step_number(row['step_high'])}]"
            if math.isfinite(row["step"])
            else f"{row['set']}: not reached"
            for row in of_group.sort_values("step").to_dict("records")
        ]
        found.append(f"{group}: {', then '.join(steps)}.")
    return found


def _joined(said: list[str], last: str) -> str:
    return f"{', '.join(said)}, and {last}" if said else last


def _last(curves: Curves, i: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return curves.resampled[:, i, -1] - curves.resampled[:, 0, -1]


def _mean(curves: Curves, i: int) -> float:
    return float(curves.by_group[i, -1] - curves.by_group[0, -1])


def _last_difference(curves: Curves, i: int) -> tuple[float, float, float]:
    low, high = interval(_last(curves, i))
    return _mean(curves, i), float(low), float(high)


def _sign(curves: Curves, i: int) -> int:
    """-1 and 1 for a clear difference, 0 for none."""
    _, low, high = _last_difference(curves, i)
    return int(high < 0) * -1 + int(low > 0)
