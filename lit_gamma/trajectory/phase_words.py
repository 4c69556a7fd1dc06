"""Phases in words: a few short sentences, the strongest first."""

from __future__ import annotations

import re
from math import isinf, log
from typing import NamedTuple

import pandas as pd

from lit_gamma.trajectory.phase_finding import QUANTITIES

NAMES = {
    "mean_squared_cosine_over_null": "cos²",
    "effective_rank_over_null": "effective rank",
    "participation_ratio_over_null": "participation ratio",
    "stable_rank_over_null": "stable rank",
}
"""What the quantities of phases are called in a sentence."""

_MOST = 3
"""Sentences of a kind; what is beyond is named in one more."""

_NAMED = 5
"""Names in a sentence; what is beyond is counted."""


class _Move(NamedTuple):
    """One phase of one curve."""

    name: str
    quantity: str
    step: float
    low: float
    high: float
    before: float
    after: float

    @property
    def size(self) -> float:
        return abs(log(self.after / self.before))

    def along_with(self, other: _Move) -> bool:
        """Whether two moves show in the same quantity and end, or begin, at one time."""
        overlap = self.low <= other.high and other.low <= self.high
        same_end = isinf(self.high) == isinf(other.high)
        return self.quantity == other.quantity and overlap and same_end


def phases_in_words(phases: pd.DataFrame) -> list[str]:
    """Says what condensed and what expanded again.

    Each role speaks through the quantity that moved most. Roles that did so in the same quantity
    with overlapping intervals are named together, the strongest first; the step is the first one's.
    A curve that stays on the other side of its random value, 1, has not condensed.
    A matrix is named where its role as a whole does not show the phase.

    Args:
        phases: See :func:`lit_gamma.trajectory.phases`.

    Returns:
        Sentences without a full stop, at least one.
    """
    condensed = _together(_moves(phases, "condensation", "start", "extreme"))
    expanded = _together(_moves(phases, "expansion", "extreme", "end"))
    said = [
        f"{_until(of[0])}: {_listed([f'{m.name} {m.after:.2g}' for m in of])} {_measure(of[0])}"
        for of in condensed[:_MOST]
    ]
    said += _rest("condensed less", condensed)
    said += [
        f"expanded again from step {of[0].step:.0f}: "
        f"{_listed([f'{m.name} {m.before:.2g} → {m.after:.2g}' for m in of])} {_measure(of[0])}"
        for of in expanded[:_MOST]
    ]
    said += _rest("expanded again less", expanded)
    if phases["start"].isna().all():
        return ["no phases: too few steps were measured"]
    return said or ["no phases: no curve moved beyond its noise and the least change that counts"]


def _moves(phases: pd.DataFrame, kind: str, before: str, after: str) -> list[_Move]:
    """The strongest move of each role, or of its matrices if it has none; the strongest first.

    A curve whose extreme lies on the other side of 1 is left out.
    """
    found: dict[tuple[str, str], _Move] = {}
    for row in phases[phases[f"{kind}_step"].notna()].to_dict("records"):
        if QUANTITIES[row["quantity"]] * log(row["extreme"]) <= 0:
            continue
        step, low, high = (float(row[f"{kind}_{part}"]) for part in ("step", "low", "high"))
        name, key = _name(row["role"], row["matrix"]), (row["role"], row["matrix"])
        move = _Move(name, row["quantity"], step, low, high, row[before], row[after])
        found[key] = max(found.get(key, move), move, key=lambda m: m.size)
    told = [m for (role, matrix), m in found.items() if not matrix or (role, "") not in found]
    return sorted(told, key=lambda m: -m.size)


def _name(role: str, matrix: str) -> str:
    """A role, or a matrix as charts name it: ``layer0.query`` for ``blocks.0.attention.query``."""
    layer = re.search(r"(?<!\w)(\d+)\.", matrix)
    return f"layer{layer[1]}.{role}" if layer else matrix or role


def _together(moves: list[_Move]) -> list[list[_Move]]:
    """Groups moves with the first that they go along with."""
    groups: list[list[_Move]] = []
    for move in moves:
        group = next((of for of in groups if of[0].along_with(move)), None)
        if group is None:
            groups.append([move])
        else:
            group.append(move)
    return groups


def _until(move: _Move) -> str:
    return "still condensing" if isinf(move.high) else f"condensed until step {move.step:.0f}"


def _measure(move: _Move) -> str:
    return f"({NAMES[move.quantity]} ÷ random)"


def _rest(verb: str, groups: list[list[_Move]]) -> list[str]:
    names = [move.name for of in groups[_MOST:] for move in of]
    return [f"{verb}: {_listed(names)}"] if names else []


def _listed(parts: list[str]) -> str:
    more = f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
    return ", ".join(parts[:_NAMED]) + more
