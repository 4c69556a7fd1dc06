"""The report: one HTML file that needs nothing else, and its numbers as CSV."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lit_gamma.comparison import findings
from lit_gamma.comparison.bootstrap import (
    RESAMPLES,
    SHARES,
    curves,
    learnt,
    loss_differences,
)
from lit_gamma.comparison.findings import Parts, number, readable, step_number
from lit_gamma.comparison.probe_text import probe_text
from lit_gamma.comparison.runs import Comparison
from lit_gamma.comparison.settings import differing, flat
from lit_gamma.comparison.svg import Line, Phase, interval_bar, panel
from lit_gamma.comparison.weight_curves import all_phases, recorded, weight_curves
from lit_gamma.errors import InputError
from lit_gamma.trajectory.phase_finding import QUANTITIES
from lit_gamma.weights.roles import ROLES

_KEY = ["set", "class"]


@dataclass(frozen=True)
class Numbers:
    """All that a report shows, as tables; ``parts`` and ``by_mean`` are what they are made of."""

    parts: Parts
    by_mean: Parts
    runs: pd.DataFrame
    losses: pd.DataFrame
    differences: pd.DataFrame
    learnt: pd.DataFrame
    tokens: pd.DataFrame
    phases: pd.DataFrame
    weights: pd.DataFrame


def compute(comparison: Comparison) -> Numbers:
    """Computes the tables of a report, see the functions that each is from."""
    of_runs = recorded(comparison)
    parts = curves(comparison)
    by_mean = curves(comparison, classes="class_by_mean")
    differences = loss_differences(comparison, parts).assign(classes="best")
    again = loss_differences(comparison, by_mean).assign(classes="mean")
    differences = pd.concat([differences, again[again["class"] != ""]], ignore_index=True)
    return Numbers(
        parts, by_mean, _runs(comparison), _losses(comparison, parts), differences,
        learnt(comparison, parts), _tokens(comparison), all_phases(comparison, of_runs),
        weight_curves(comparison, of_runs),
    )  # fmt: skip


def write_report(comparison: Comparison, out: str | Path) -> list[Path]:
    """Writes a report, each file whole or not at all.

    Args:
        comparison: The runs.
        out: The HTML file; the tables go beside it, ``<name>_losses.csv`` for ``<name>.html``.

    Returns:
        The files.

    Raises:
        InputError: ``out`` is a directory or cannot be written.
    """
    path = Path(out)
    if path.is_dir():
        raise InputError(f"--out {out} is a directory; give the name of an HTML file")
    numbers = compute(comparison)
    tables = ("runs", "losses", "differences", "learnt", "tokens", "phases", "weights")
    files = {path: render(comparison, numbers)}
    for name in tables:
        if len(table := getattr(numbers, name)):
            files[path.with_name(f"{path.stem}_{name}.csv")] = table.to_csv(index=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            draft = file.with_name(file.name + ".tmp")
            draft.write_text(content, encoding="utf-8")
            os.replace(draft, file)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error}") from error
    return list(files)


def render(comparison: Comparison, numbers: Numbers) -> str:
    """Makes the HTML."""
    environment = Environment(
        loader=PackageLoader("lit_gamma.comparison", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "steps": step_number, "readable": readable}
    group_of = {i: g for g, of in enumerate(comparison.groups.values()) for i in of}
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        group_of=group_of,
        singles=[label for label, of in comparison.groups.items() if len(of) == 1],
        resamples=RESAMPLES,
        shares=SHARES,
        n_blocks=comparison.tokens.groupby("set", observed=True)["block"].nunique().to_dict(),
        findings=findings.main_findings(comparison, numbers.parts, numbers.by_mean),
        order_of_sets=findings.order_of_sets(numbers.learnt, SHARES[-1]),
        configs=differing([run.config for run in comparison.runs]),
        panels=_loss_panels(numbers),
        finals=_final_rows(comparison, numbers),
        learnt=_learnt_rows(comparison, numbers),
        text=probe_text(comparison),
        weights=_weight_panels(comparison, numbers),
        phases=numbers.phases.to_dict("records"),
        metrics=_metrics(comparison),
    )


def _runs(comparison: Comparison) -> pd.DataFrame:
    group_of = {i: group for group, of in comparison.groups.items() for i in of}
    rows = [
        {"run": run.path, "group": group_of[i], "gamma": run.gamma, "seed": run.seed,
         **{k: v for k, v in flat(run.summary).items() if not k.startswith("phases.")}}
        for i, run in enumerate(comparison.runs)
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


def _loss_panels(numbers: Numbers) -> list[dict[str, Any]]:
    """Loss and difference over steps: of all, each set, each class; then the classes of sets."""
    table = numbers.differences[numbers.differences["classes"] == "best"]
    limits = _span(table[["loss_low", "loss_high"]], from_zero=True)
    found = []
    for part, rows in table.groupby(_KEY, sort=False):
        lines, changes = [], []
        for g, (_, of) in enumerate(rows.groupby("group", sort=False)):
            steps = of["step"].to_numpy()
            lines.append(Line(g, steps, *_columns(of, "loss")))
            if g:
                changes.append(Line(g, steps, *_columns(of, "difference")))
        found.append(
            {
                "part": part,
                "n_tokens": int(rows["n_tokens"].iloc[0]),
                "loss": panel(lines, limits=limits),
                "difference": panel(changes, base=0.0, height=130),
            }
        )
    return sorted(found, key=lambda f: all(f["part"]))


def _columns(table: pd.DataFrame, name: str) -> list[np.ndarray[Any, Any]]:
    return [table[c].to_numpy(float) for c in (name, f"{name}_low", f"{name}_high")]


def _span(table: pd.DataFrame, from_zero: bool = False) -> tuple[float, float]:
    values = table.to_numpy(float)
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    low, high = (0.0 if from_zero else min(low, 0.0)), max(high, 0.0)
    margin = 0.03 * (high - low) or 0.5
    return (0.0 if from_zero else float(low - margin)), float(high + margin)


def _final_rows(comparison: Comparison, numbers: Numbers) -> list[dict[str, Any]]:
    """Per part: the groups' last losses, and their differences to the first."""
    table = numbers.differences
    last = table[table["step"] == comparison.steps[-1]]
    others = last[last["group"] != next(iter(comparison.groups))]
    low, high = _span(others[["difference_low", "difference_high"]])
    found = []
    for (classes, *part), rows in last.groupby(["classes", *_KEY], sort=False):
        groups = _rows(rows)
        spans = [(g, _interval(row, "difference")) for g, row in enumerate(groups) if g]
        found.append(
            {"classes": classes, "part": part, "n_tokens": groups[0]["n_tokens"],
             "groups": groups, "bar": interval_bar(spans, low, high, mark=0.0)}
        )  # fmt: skip
    return found


def _learnt_rows(comparison: Comparison, numbers: Numbers) -> list[dict[str, Any]]:
    """Per part and share: the steps of the groups."""
    steps = numbers.learnt[["step", "step_low"]].to_numpy()
    first = 0.9 * float(np.log1p(steps[np.isfinite(steps)].min(initial=comparison.steps[-1])))
    last = float(np.log1p(comparison.steps[-1])) + 1e-9
    found = []
    for (*part, share), rows in numbers.learnt.groupby([*_KEY, "share"], sort=False):
        groups = _rows(rows)
        spans = [(g, _interval(row, "step", np.log1p)) for g, row in enumerate(groups)]
        found.append(
            {"part": part, "share": share, "groups": groups,
             "threshold": groups[0]["threshold"], "bar": interval_bar(spans, first, last)}
        )  # fmt: skip
    return found


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


def _interval(
    row: dict[str, Any], name: str, scale: Callable[[float], float] = float
) -> tuple[float, float, float]:
    return scale(row[name]), scale(row[f"{name}_low"]), scale(row[f"{name}_high"])


def _weight_panels(comparison: Comparison, numbers: Numbers) -> list[dict[str, Any]]:
    """Per role: cos² and effective rank ÷ null of the groups, with the phases of their runs."""
    number_of = {group: g for g, group in enumerate(comparison.groups)}
    if not len(numbers.weights):
        return []
    found = []
    for role in [r for r in ROLES if (numbers.weights["role"] == r).any()]:
        panels: dict[str, Markup] = {}
        for quantity in QUANTITIES:
            drawn = numbers.weights.query("role == @role and quantity == @quantity")
            if not len(drawn):
                continue
            lines = [
                Line(number_of[str(group)], *(of[c].to_numpy() for c in _CURVE))
                for group, of in drawn.groupby("group", sort=False)
            ]
            marks = numbers.phases.query("role == @role and quantity == @quantity")
            phases = [
                Phase(number_of[row["group"]], *(_phase(row, k) for k in _KINDS))
                for row in _rows(marks)
            ]
            panels[quantity] = panel(lines, log=True, base=1.0, phases=phases)
        found.append({"role": role, "panels": panels})
    return found


_CURVE = ("step", "value", "lowest", "highest")
_KINDS = ("condensation", "expansion")


def _phase(row: dict[str, Any], kind: str) -> tuple[float, float, float]:
    return row[f"{kind}_step"], row[f"{kind}_low"], row[f"{kind}_high"]


def _metrics(comparison: Comparison) -> dict[str, dict[str, list[Any]]]:
    """What the summaries hold, by the first part of the key: name to the value of each run."""
    flats = [flat(run.summary) for run in comparison.runs]
    found: dict[str, dict[str, list[Any]]] = {}
    for key in dict.fromkeys(key for of_run in flats for key in of_run):
        first, _, rest = key.partition(".")
        if rest and first != "phases":
            found.setdefault(first, {})[rest] = [of_run.get(key) for of_run in flats]
    return found
