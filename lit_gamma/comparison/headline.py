"""What happened, in two sentences a group: when it condensed and expanded, and what it learnt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lit_gamma.comparison.findings import FEW_BLOCKS, number, readable, step_number
from lit_gamma.comparison.numbers import Numbers
from lit_gamma.comparison.runs import Run, Runs
from lit_gamma.comparison.scalar_curves import LOSS
from lit_gamma.trajectory.phase_words import phases_in_words

_SHARE = 0.9
"""What counts as learnt here: that share of the way."""


@dataclass(frozen=True)
class Headline:
    """What a group of runs has come to.

    Attributes:
        group: Its label.
        weights: What condensed and what expanded, and when; empty without a record of it.
        learnt: What was learnt, and what it cost.
    """

    group: str
    weights: str
    learnt: str


def headlines(side_by_side: Runs, numbers: Numbers) -> list[Headline]:
    """Says what each group has come to.

    Args:
        side_by_side: The runs.
        numbers: What was computed of them.
    """
    found = []
    for group, of in side_by_side.groups.items():
        runs = [side_by_side.runs[i] for i in of]
        said = [*_learnt_first(numbers, group), *_answers(runs, numbers.curves, group)]
        learnt = "; ".join([*said, *_cost(runs)])
        found.append(
            Headline(group, _sentence(_phases(numbers.phases, group, len(of))), _sentence(learnt))
        )
    return found


def _phases(phases: pd.DataFrame, group: str, n_runs: int) -> str:
    """What condensed first and what expanded first; over several seeds the medians."""
    of_group = phases[phases["group"] == group] if len(phases) else phases
    if not len(of_group):
        return ""
    by = ["role", "matrix", "quantity"]
    numeric = of_group.drop(columns=["run", "group"])
    said = phases_in_words(numeric.groupby(by, sort=False).median().reset_index())
    expanded = [words for words in said if words.startswith("expanded again from")]
    shown = "; ".join([said[0], *expanded[:1]] if said[0] not in expanded else expanded[:1])
    return shown if n_runs == 1 else f"{shown} (medians over {n_runs} runs)"


def _learnt_first(numbers: Numbers, group: str) -> Iterator[str]:
    """The order in which the classes, or the validation sets, were learnt.

    Left out are what nobody predicts, and parts in too few blocks to be sure of.
    """
    if not len(numbers.learnt):
        return
    table = numbers.learnt
    of_group = table[(table["group"] == group) & (table["share"] == _SHARE)].sort_values("step")
    for column in ("class", "set"):
        steps = [
            f"{readable(row[column])} at step {step_number(row['step'])}"
            for row in of_group.to_dict("records")
            if row[column] == row["set"] + row["class"] not in ("", "unpredictable")
            and numbers.parts[row["set"], row["class"]].n_blocks >= FEW_BLOCKS
            and not math.isnan(row["step"])
        ]
        if len(steps) > 1:
            yield f"learnt first: {', then '.join(steps)}"
            return


def _answers(runs: list[Run], curves: pd.DataFrame, group: str) -> Iterator[str]:
    """What the task's own callbacks say: in their words of one run, else the last values."""
    said = runs[0].summary.get("findings") or {}
    if len(runs) == 1 and said:
        yield from said.values()
        return
    of_group = curves[curves["group"] == group] if len(curves) else curves
    for table, rows in of_group.groupby("table", sort=False) if len(of_group) else ():
        last = rows.groupby("quantity", sort=False).last()
        if table == LOSS or len(last) > 4 or last["n_items"].max() > 1:
            continue
        values = [f"{readable(str(name))} {_spread(row)}" for name, row in last.iterrows()]
        step = last["step"].max()
        yield f"{readable(str(table))} at step {step:,.0f}: {', '.join(values)}"


def _spread(row: pd.Series) -> str:
    ends = (row["lowest"], row["highest"])
    spread = f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends[0] != ends[1] else ""
    return f"{number(row['value'], 2)}{spread}"


def _cost(runs: list[Run]) -> Iterator[str]:
    """How they ended, how long they took, and the share of recording, as their summaries say."""
    ended = [run.summary for run in runs if {"status", "steps", "seconds"} <= set(run.summary)]
    if len(ended) < len(runs):
        yield "no summary yet: still training, or killed"
    yield from dict.fromkeys(s["status"] for s in ended if s["status"] != "finished")
    if not ended:
        return
    steps, seconds = (np.mean([summary[key] for summary in ended]) for key in ("steps", "seconds"))
    each = "" if len(ended) == 1 else f"{len(ended)} runs of "
    yield f"{each}{steps:,.0f} steps in {seconds:,.0f} s"
    bills = [bill.values() for summary in ended if (bill := summary.get("overhead"))]
    shares = [sum(cost["share_of_step"] or 0.0 for cost in bill) for bill in bills]
    if shares:
        yield f"recording took {np.mean(shares):.1%} on top"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}." if words else ""
