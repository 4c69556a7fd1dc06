"""What a claim's runs say: each part's outcome, the verdict, and what is shown of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from lit_gamma.comparison.claim_cells import (
    Sweeps,
    at_lowest_loss,
    phase_name,
    selected,
    with_measure,
    with_phase,
)
from lit_gamma.comparison.claim_file import Claim, Part
from lit_gamma.comparison.claim_kinds import KINDS, Outcome
from lit_gamma.comparison.claim_tokens import token_view
from lit_gamma.comparison.findings import number
from lit_gamma.comparison.sweep_runs import SweepRuns
from lit_gamma.comparison.sweep_view import MeasureView, view_of
from lit_gamma.errors import InputError

Verdict = Literal["held", "held in part", "not held", "undecided"]


@dataclass(frozen=True)
class Judged:
    """A claim beside its runs.

    Attributes:
        claim: The claim.
        preset: Whose runs these are.
        sweeps: The sweeps, by the names that the parts use.
        outcomes: What each part came to.
    """

    claim: Claim
    preset: str
    sweeps: Sweeps
    outcomes: list[Outcome]

    @property
    def verdict(self) -> Verdict:
        """All parts yes: held; some: held in part; none: not held, or undecided if one is."""
        said = [outcome.verdict for outcome in self.outcomes]
        if "yes" in said:
            return "held" if set(said) == {"yes"} else "held in part"
        return "undecided" if "undecided" in said else "not held"

    @property
    def absent(self) -> str:
        """How many runs have not ended, and why; empty if none."""
        counts: dict[str, int] = {}
        for sweep in self.sweeps.values():
            for kind, runs in sweep.absent.items():
                counts[kind] = counts.get(kind, 0) + len(runs)
        n_runs = sum(len(sweep.table) for sweep in self.sweeps.values())
        said = ", ".join(f"{n} {kind}" for kind, n in counts.items())
        return f"of {n_runs} runs {said}" if counts else ""


def refuse_absent_settings(claim: Claim, sweeps: Sweeps) -> None:
    """Refuses a claim of settings that its grids lack.

    Raises:
        InputError: A part's ``where`` or ``than`` names one.
    """
    for part in claim.parts:
        for of in contrasts(part):
            selected(sweeps[of["sweep"]], of.get("where") or {})
            selected(sweeps[of.get("than_sweep", of["sweep"])], of.get("than") or {})


def judge(claim: Claim, preset: str, sweeps: Sweeps) -> Judged:
    """Tests each part of a claim.

    Args:
        claim: The claim.
        preset: Whose runs these are.
        sweeps: All sweeps that its parts look at.

    Raises:
        InputError: No run of any of them has finished.
    """
    if not any(len(sweep.ended) for sweep in sweeps.values()):
        raise InputError(f"no run of claim {claim.name}, preset {preset}, has finished")
    return Judged(claim, preset, sweeps, [_outcome(part, sweeps) for part in claim.parts])


def in_words(outcome: Outcome) -> str:
    """What was measured, with its interval."""
    value, low, high = outcome.span
    measured = "" if value != value else f" {number(value)} [{number(low)}, {number(high)}]"
    note = f" ({outcome.note})" if outcome.note else ""
    return f"{outcome.what}{measured}{note}"


def shown(judged: Judged) -> dict[str, tuple[SweepRuns, list[MeasureView]]]:
    """The sweeps, each with views of what the parts measure in it."""
    asked: dict[str, dict[Hashable, Mapping[str, Any]]] = {name: {} for name in judged.sweeps}
    for part in judged.claim.parts:
        for of in contrasts(part):
            for name in (of[key] for key in ("sweep", "than_sweep") if of.get(key)):
                asked[name].setdefault(tuple(map(of.get, _MEASURED)), of)
    found: dict[str, tuple[SweepRuns, list[MeasureView]]] = {}
    for name, contrasted in asked.items():
        found[name] = judged.sweeps[name], []
        for of in contrasted.values():
            with suppress(InputError):  # The part's own outcome says why.
                found[name][1].append(_view(judged.sweeps[name], of))
    return found


_MEASURED = ("measure", "role", "quantity", "phase", "tokens", "classes")
"""The keys of a part that say what is measured."""


def _view(sweep: SweepRuns, of: Mapping[str, Any]) -> MeasureView:
    if "phase" in of:
        seen = of["role"], of["quantity"], of["phase"]
        return view_of(with_phase(sweep, *seen), phase_name(*seen))
    if "tokens" in of:
        here, there = (at_lowest_loss(sweep, of[key]) for key in ("where", "than"))
        return token_view(here, there, of["tokens"], of["classes"])
    return view_of(with_measure(sweep, of["measure"]), of["measure"])


def _outcome(part: Part, sweeps: Sweeps) -> Outcome:
    try:
        return KINDS[part.kind](sweeps, **part.asked)
    except InputError as reason:
        return Outcome("undecided", "nothing measured", note=str(reason))


def contrasts(part: Part) -> list[Mapping[str, Any]]:
    """What a part looks at: a setting of a sweep, or two."""
    nested = [part.asked[key] for key in ("gain", "over") if key in part.asked]
    return nested or [part.asked]
