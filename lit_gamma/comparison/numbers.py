"""The numbers of a report, as tables."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pandas as pd

from lit_gamma.comparison.alignment import Comparison
from lit_gamma.comparison.bootstrap import curves, learnt, loss_differences
from lit_gamma.comparison.findings import Parts
from lit_gamma.comparison.runs import Runs
from lit_gamma.comparison.scalar_curves import scalar_curves
from lit_gamma.comparison.settings import flat
from lit_gamma.comparison.weight_curves import all_phases, weight_curves

CSV = ("runs", "losses", "differences", "learnt", "tokens", "phases", "weights", "curves")
"""The tables of :class:`Numbers` that are written as CSV."""


_OWN_TABLES = ("phases.", "validations.")
"""What of a summary is no column of its run."""


@dataclass(frozen=True)
class Numbers:
    """All that a report shows, as tables; those that the record says nothing of are empty.

    Attributes:
        runs: A row per run: what its summary holds.
        curves: See :func:`~lit_gamma.comparison.scalar_curves.scalar_curves`.
        weights: See :func:`~lit_gamma.comparison.weight_curves.weight_curves`.
        phases: See :func:`~lit_gamma.comparison.weight_curves.all_phases`.
        losses: Mean losses of parts of the probe in each run.
        differences: See :func:`~lit_gamma.comparison.bootstrap.loss_differences`.
        learnt: See :func:`~lit_gamma.comparison.bootstrap.learnt`.
        tokens: The tokens of the probe with their last loss in each group.
        parts: What ``losses``, ``differences`` and ``learnt`` are made of.
        by_mean: The same by the classes of what all groups predict.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    weights: pd.DataFrame
    phases: pd.DataFrame
    losses: pd.DataFrame = field(default_factory=pd.DataFrame)
    differences: pd.DataFrame = field(default_factory=pd.DataFrame)
    learnt: pd.DataFrame = field(default_factory=pd.DataFrame)
    tokens: pd.DataFrame = field(default_factory=pd.DataFrame)
    parts: Parts = field(default_factory=dict)
    by_mean: Parts = field(default_factory=dict)


def compute(side_by_side: Runs) -> Numbers:
    """Computes the tables of a report; those of tokens if the runs followed the same.

    Args:
        side_by_side: The runs, a :class:`Comparison` if they followed the same tokens.
    """
    numbers = Numbers(
        _runs(side_by_side), scalar_curves(side_by_side), weight_curves(side_by_side),
        all_phases(side_by_side),
    )  # fmt: skip
    return _with_tokens(numbers, side_by_side) if isinstance(side_by_side, Comparison) else numbers


def _with_tokens(numbers: Numbers, comparison: Comparison) -> Numbers:
    parts = curves(comparison)
    by_mean = curves(comparison, classes="class_by_mean")
    differences = loss_differences(comparison, parts).assign(classes="best")
    again = loss_differences(comparison, by_mean).assign(classes="mean")
    return replace(
        numbers,
        parts=parts,
        by_mean=by_mean,
        losses=_losses(comparison, parts),
        differences=pd.concat([differences, again[again["class"] != ""]], ignore_index=True),
        learnt=learnt(comparison, parts),
        tokens=_tokens(comparison),
    )


def _runs(side_by_side: Runs) -> pd.DataFrame:
    labels = list(side_by_side.groups)
    rows = [
        {"run": run.path, "group": labels[g], "gamma": run.gamma, "seed": run.seed,
         **{k: v for k, v in flat(run.summary).items() if not k.startswith(_OWN_TABLES)}}
        for run, g in zip(side_by_side.runs, side_by_side.group_of, strict=True)
    ]  # fmt: skip
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def _losses(comparison: Comparison, parts: Parts) -> pd.DataFrame:
    tables = [
        pd.DataFrame(
            {"set": part[0], "class": part[1], "step": comparison.steps, "run": run.path,
             "n_tokens": c.n_tokens, "loss": c.by_run[i]}
        )
        for part, c in parts.items()
        for i, run in enumerate(comparison.runs)
    ]  # fmt: skip
    losses: pd.DataFrame = pd.concat(tables, ignore_index=True)
    return losses


def _tokens(comparison: Comparison) -> pd.DataFrame:
    last = {
        f"loss: {group}": comparison.losses[of, -1].mean(axis=0)
        for group, of in comparison.groups.items()
    }
    table: pd.DataFrame = comparison.tokens.assign(**last)
    return table
