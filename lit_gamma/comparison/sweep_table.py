"""The table of a sweep: a row per run, of what its summary says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv

from lit_gamma.errors import InputError
from lit_gamma.files import parsed, replacing

TABLE = "sweep.arrow"
"""An Arrow IPC stream in the sweep's folder; ``sweep.csv`` beside it holds the same."""

_STOPPED = ("interrupted", "terminated")
_TOLD_ELSEWHERE = (
    "status",
    "gamma",
    "init_std",
    "init_from",
    "seed",
    "overhead",
    "findings",
    "in_words",
    "validations",
)

_KINDS: dict[str, type | tuple[type, ...]] = {
    "status": str,
    "seed": (int, type(None)),
    "steps": int,
    "seconds": (int, float),
    "measured_at": (int, type(None)),
    "overhead": (dict, type(None)),
    **dict.fromkeys(("metrics", "findings", "phases", "validations"), dict),
    "in_words": list,
}
"""What the keys of a summary hold; an older one may lack some."""


def summary_of(run_dir: Path) -> dict[str, Any]:
    """What a run's ``summary.json`` holds; empty if it has none.

    Raises:
        InputError: It is damaged.
    """
    path = run_dir / "summary.json"
    if not path.is_file():
        return {}
    with parsed(f"{path} is damaged; remove it: reports do without, a sweep redoes the run"):
        summary = dict(json.loads(path.read_text()))
        for key, kind in _KINDS.items():
            if key in summary and not isinstance(summary[key], kind):
                raise TypeError(f"{key} is {summary[key]!r}")
        return summary


def has_ended(summary: Mapping[str, Any], max_steps: int) -> bool:
    """Whether there is nothing to go on with: the run is finished, or diverged on its whole way.

    Args:
        summary: The run's.
        max_steps: Optimizer steps of the whole run; -1 if epochs limit it.
    """
    status = str(summary.get("status"))
    diverged = status.startswith("diverged") and summary["steps"] >= max_steps
    return status == "finished" or diverged


def row(
    run: str, setting: Mapping[str, Any], seed: int, summary: Mapping[str, Any] | None, ended: bool
) -> dict[str, Any]:
    """A run's row.

    Args:
        run: Its name.
        setting: The grid's keys and their values in this run.
        seed: Its seed.
        summary: What it has come to; None before it begins.
        ended: See :func:`has_ended`. Other runs have no values, whatever they came to so far.

    Returns:
        ``run``, the setting, ``seed``, ``status``, and what the summary holds, a column for every
        number: ``steps``, ``seconds``, the metrics by their names, ``<extreme>/<role>/<value>`` and
        ``phases/<role>/<quantity>/<phase>``.
    """
    known = {"run": run, **{key: _cell(value) for key, value in setting.items()}, "seed": seed}
    if summary is None:
        return {**known, "status": "missing"}
    if ended:
        values = {k: v for k, v in summary.items() if k not in _TOLD_ELSEWHERE}
        metrics = {name: _number(value) for name, value in values.pop("metrics").items()}
        return {**known, "status": summary["status"], **metrics, **dict(_flat(values))}
    said = str(summary.get("status", "interrupted"))
    goes_on = said in _STOPPED or said.startswith("diverged")
    return {**known, "status": "unfinished" if goes_on else f"failed: {said}"}


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Puts rows of :func:`row` into a table; a value that is not there is null."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def write_table(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes ``sweep.csv`` and ``sweep.arrow``, each whole or not at all.

    A value that is not there is null in Arrow and empty in CSV; one that is not a number, NaN.
    """
    table = table_of(rows)
    with (
        replacing(folder / TABLE) as draft,
        pa.OSFile(str(draft), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table)
    with replacing(folder / "sweep.csv") as draft:
        csv.write_csv(table, draft)


def read_table(folder: str | Path) -> pa.Table:
    """What :func:`write_table` wrote.

    Raises:
        InputError: There is no table, or it is damaged.
    """
    path = Path(folder, TABLE)
    if not path.is_file():
        raise InputError(f"{folder} is no sweep: it has no {TABLE}")
    with parsed(f"{path} is damaged; the sweep's own command writes it anew"):
        return pa.ipc.open_stream(path.read_bytes()).read_all()


def runs_of(folder: str) -> list[str]:
    """The directories of a sweep's runs that have recorded something; of a run, its own.

    Raises:
        InputError: It is a sweep in which none has.
    """
    if not Path(folder, TABLE).is_file():
        return [folder]
    found = [str(Path(folder, name)) for name in read_table(folder)["run"].to_pylist()]
    begun = [run for run in found if any(Path(run).glob("trajectory/*.arrow"))]
    if not begun:
        raise InputError(f"no run of the sweep in {folder} has recorded anything yet")
    return begun


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers in nested mappings, by path; those of roles, not of each matrix."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            if key != "matrices":
                yield from _flat(value, f"{prefix}{key}/")
        elif not isinstance(value, list):
            yield prefix + key, _number(value)


def _number(value: Any) -> Any:
    """A number that JSON could not hold was written as text."""
    return float(value) if value in ("nan", "inf", "-inf") else value


def _cell(value: Any) -> Any:
    """A value of the grid as one cell: what is no single value as JSON."""
    single = value is None or isinstance(value, (bool, int, float, str))
    return value if single else json.dumps(value, default=vars)


def _column(values: list[Any]) -> pa.Array:
    if len({isinstance(value, str) for value in values if value is not None}) > 1:
        values = [value if value is None else str(value) for value in values]
    return pa.array(values)
