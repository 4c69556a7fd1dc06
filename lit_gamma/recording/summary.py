"""The summary of a run: one JSON file at the end, however it ends."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping
from typing import Any

import pandas as pd

from lit_gamma import trajectory
from lit_gamma.files import replacing
from lit_gamma.recording.run import Run
from lit_gamma.recording.weights import WeightTrajectory
from lit_gamma.trajectory.jsonable import jsonable
from lit_gamma.trajectory.phase_finding import QUANTITIES, phases_of
from lit_gamma.trajectory.phase_words import phases_in_words
from lit_gamma.trajectory.reading import load_curves
from lit_gamma.trajectory.sources import tables_of
from lit_gamma.trajectory.tensorboard import write_phases
from lit_gamma.weights.sharding import all_finite


def summarize(
    run: Run,
    status: str,
    seconds: float,
    bill: Mapping[str, Any],
    metrics: Mapping[str, float],
    measured_at: int | None = None,
) -> dict[str, Any]:
    """Says what a run has come to, after writing what is pending.

    Args:
        run: The run.
        status: ``finished``, ``interrupted`` or the error.
        seconds: Seconds of training, of all parts of a resumed run.
        bill: See :func:`bill_of`.
        metrics: The validation metrics by name, as last measured.
        measured_at: The step at which they were, if that is known.

    Returns:
        All of that with gamma, init_std or init_from, seed and steps, what the callbacks find and,
        where they were recorded, the extremes of each role and the phases, which TensorBoard gets
        as text.
    """
    for callback in run.callbacks:
        callback.flush()
    summary = {
        "status": _divergence(run) or status,
        "gamma": run.hyperparameters.get("gamma"),
        "init_std": run.hyperparameters.get("init_std"),
        "init_from": run.hyperparameters.get("init_from"),
        "seed": run.seed,
        "steps": run.step,
        "seconds": round(seconds, 2),
        "metrics": dict(metrics),
        "measured_at": measured_at,
        "overhead": dict(bill),
    }
    holes = {c.name: c.file.holes for c in run.callbacks if c.file.holes}
    if holes:
        summary["holes"] = holes
    if any(run.folder.glob("trajectory/*.arrow")):
        summary["findings"] = _findings(run)
        with run.optional("what the record says as a whole"):
            summary |= _of_record(run)
    return summary


def _of_record(run: Run) -> dict[str, Any]:
    """The extremes of each role, and the phases, which TensorBoard gets too."""
    tables = load_curves(run.folder)
    found: dict[str, Any] = {**trajectory.extremes(tables)}
    if any(tables_of(tables, quantity) for quantity in QUANTITIES):
        phases = phases_of(tables)
        words = phases_in_words(phases)
        found |= {"in_words": words, "phases": _nested(phases)}
        if run.writer is not None:
            write_phases(run.writer, phases, words, run.step)
    return found


def _findings(run: Run) -> dict[str, str]:
    """What each callback says of its record, if it says anything."""
    found = {}
    for callback in run.callbacks:
        with run.optional(f"{callback.name}: its record in words"):
            if sentence := callback.in_words():
                found[callback.name] = str(sentence)
    return found


def _divergence(run: Run) -> str | None:
    """The status of a run whose weights are not finite; None if they are."""
    if all_finite(run.module):
        return None
    table = "weight_norms"
    if (run.folder / "trajectory" / f"{table}.arrow").is_file():
        rows = trajectory.load(run.folder, [table]).get(table)
        if rows is not None and rows["rms"].isna().any():
            return f"diverged at step {rows.loc[rows['rms'].isna(), 'step'].min()}"
    return f"diverged by step {run.step}"


def bill_of(run: Run) -> dict[str, dict[str, float | None]]:
    """What each callback cost.

    Args:
        run: The run.

    Returns:
        For each callback its milliseconds per step on the host, the same as a share of a step
        without callbacks, and how many matrices took turns at each step.
    """
    steps, training = max(1, run.step - run.began), run.seconds - run.recording_seconds
    bill: dict[str, dict[str, float | None]] = {}
    for callback in run.callbacks:
        bill[callback.name] = {
            "ms_per_step": round(callback.bill.seconds * 1e3 / steps, 3),
            "share_of_step": round(callback.bill.seconds / training, 4),
        }
        if isinstance(callback, WeightTrajectory):
            bill[callback.name]["matrices_per_step"] = callback.pace
    return bill


def bill_in_words(bill: Mapping[str, Mapping[str, float | None]]) -> str:
    """What recording took in all, and each callback, the dearest first, as :func:`in_lines`."""
    shares = {name: cost["share_of_step"] or 0.0 for name, cost in bill.items()}
    dearest = sorted(shares, key=lambda name: -shares[name])
    parts = ", ".join(f"{name}\N{NO-BREAK SPACE}{shares[name]:.1%}" for name in dearest)
    return in_lines(f"recording took {sum(shares.values()):.1%} on top of training: {parts}")


def in_lines(sentence: str) -> str:
    """Breaks a sentence, if need be, into lines of 78 at most, to be indented by two."""
    lines = textwrap.wrap(sentence, 76, subsequent_indent="  ", break_on_hyphens=False)
    return "\n  ".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def write_summary(run: Run, summary: Mapping[str, Any]) -> None:
    """Writes ``summary.json``, whole or not at all; a disk that refuses it gives a warning."""
    path = run.folder / "summary.json"
    try:
        with replacing(path) as draft:
            draft.write_text(json.dumps(jsonable(summary), indent=2) + "\n")
    except OSError as error:
        run.warn(f"{path} cannot be written ({error.strerror})")


def _nested(phases: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Role to quantity to the steps of its phases; under ``matrices`` the same of each matrix."""
    found: dict[str, dict[str, Any]] = {}
    for row in phases.set_index(["role", "matrix", "quantity"]).itertuples():
        role, matrix, quantity = row.Index
        of_role = found.setdefault(role, {})
        of = of_role.setdefault("matrices", {}).setdefault(matrix, {}) if matrix else of_role
        steps = row._asdict()
        del steps["Index"]
        of[quantity] = {k: v if math.isfinite(v) else None for k, v in steps.items()}
    return found
