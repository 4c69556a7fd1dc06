"""Reading a recorded run back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from lit_gamma.arrow_stream import read_batches
from lit_gamma.errors import InputError


def load(run_dir: str | Path) -> dict[str, pd.DataFrame]:
    """Reads every table of a run, finished or not.

    Args:
        run_dir: The run's directory, ``runs/<experiment>/version_N``.

    Returns:
        Name of the table (``condensation``, ``effective_rank``, ...) to its rows, in the order of
        the steps. What a column means is in the schema of the file.

    Raises:
        InputError: The directory holds no record.
    """
    paths = sorted(Path(run_dir, "trajectory").glob("*.arrow"))
    if not paths:
        raise InputError(f"{run_dir} holds no trajectory/*.arrow; give the directory of a run")
    tables = {path.stem: read_batches(path) for path in paths}
    return {
        name: pa.Table.from_batches(batches).to_pandas()
        for name, batches in tables.items()
        if batches
    }


def extremes(tables: dict[str, pd.DataFrame]) -> dict[str, dict[str, dict[str, Any]]]:
    """Finds, per role, where condensation was strongest and the effective rank lowest.

    Both are means over the matrices of the role, each with its newest value, relative to their
    random-matrix null.

    Args:
        tables: What :func:`load` returns.

    Returns:
        ``strongest_condensation`` and ``lowest_effective_rank``: role to step and value. Empty
        where the run has no such record.
    """
    return {
        "strongest_condensation": _extreme(
            tables.get("condensation"), "mean_squared_cosine_over_null", largest=True
        ),
        "lowest_effective_rank": _extreme(
            tables.get("effective_rank"), "effective_rank_over_null", largest=False
        ),
    }


def _extreme(table: pd.DataFrame | None, column: str, largest: bool) -> dict[str, dict[str, Any]]:
    if table is None:
        return {}
    roles = table.drop_duplicates("matrix").set_index("matrix")["role"]
    newest = table.pivot(index="step", columns="matrix", values=column)[list(roles.index)].ffill()
    by_role = newest.T.groupby(roles, sort=False).mean().T
    steps = by_role.idxmax() if largest else by_role.idxmin()
    values = by_role.max() if largest else by_role.min()
    return {
        str(role): {"step": int(step), column: float(value)}
        for role, step, value in zip(by_role.columns, steps, values, strict=True)
    }
