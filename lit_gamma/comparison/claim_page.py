"""A claim's verdict as files: a page, a figure, its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lit_gamma.comparison.claim_verdict import Judged, shown
from lit_gamma.comparison.figure_file import as_file
from lit_gamma.comparison.page import environment
from lit_gamma.comparison.sweep_view import cell_table, said_of
from lit_gamma.errors import InputError
from lit_gamma.files import replacing
from lit_gamma.trajectory.jsonable import jsonable

MOST_CHARTS = 3
"""Charts in the figure."""


def write_claim(judged: Judged, folder: Path, command: str) -> list[Path]:
    """Writes ``claim.html``, ``claim.svg``, ``claim.csv`` and ``claim.json``, each as a whole.

    The figure has charts of what the first part measures, if it has any; the table the
    cells of all sweeps, the JSON the parts.

    Args:
        judged: The claim beside its runs.
        folder: Where; it is made.
        command: What makes the runs.

    Raises:
        InputError: The folder cannot be written.
    """
    sweeps = shown(judged)
    views = [view for _, of in sweeps.values() for view in of]
    drawn = next((view for view in views if view.charts), None)
    n_lines = max([1, *(len(chart.keys) for view in views for chart in view.charts)])
    page = environment().get_template("claim.html.j2")
    tables = [cell_table(of).assign(sweep=name) for name, (_, of) in sweeps.items() if of]
    files = {
        "claim.html": page.render(
            judged=judged, sweeps=sweeps, command=command, n_lines=n_lines, tokens=None
        ),
        "claim.csv": pd.concat(tables).to_csv(index=False) if tables else "",
        "claim.json": json.dumps(jsonable(_as_data(judged, command)), indent=2) + "\n",
        "claim.svg": as_file(drawn.charts[-MOST_CHARTS:], drawn.measure) if drawn else "",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            if content:
                with replacing(folder / name) as draft:
                    draft.write_text(content, encoding="utf-8")
            else:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from error
    return [folder / name for name, content in files.items() if content]


def _as_data(judged: Judged, command: str) -> Mapping[str, Any]:
    claim = judged.claim
    return {
        "claim": claim.name,
        "says": claim.says,
        "preset": judged.preset,
        "command": command,
        "verdict": judged.verdict,
        "absent": judged.absent,
        "parts": [
            {
                "says": part.says,
                "kind": part.kind,
                "verdict": outcome.verdict,
                "what": outcome.what,
                **dict(zip(("value", "low", "high"), outcome.span, strict=True)),
                "note": outcome.note,
            }
            for part, outcome in zip(claim.parts, judged.outcomes, strict=True)
        ],
        "sweeps": {
            name: {
                "grid": {key: list(dict.fromkeys(map(said_of, of.table[key]))) for key in of.keys},
                "runs": len(of.table),
                "ended": len(of.ended),
                "seeds": int(of.table["seed"].nunique()),
                "hours": float(of.ended.get("seconds", pd.Series(dtype=float)).sum()) / 3600,
            }
            for name, of in judged.sweeps.items()
        },
    }
