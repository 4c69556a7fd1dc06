"""Reading a recorded run back."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from lit_gamma.errors import InputError
from lit_gamma.trajectory.arrow import log_spaced, read_batches, schema_of
from lit_gamma.trajectory.layouts import vectors
from lit_gamma.trajectory.phase_finding import phases_of, role_means
from lit_gamma.trajectory.sources import BESIDE, EVERY_STEP, PER_DECADE, TABLES, table_of

_MOST_OUTCOMES = 4


def load(
    run_dir: str | Path, names: Collection[str] | None = None, per_decade: int | None = None
) -> dict[str, pd.DataFrame]:
    """Reads the tables of a run, finished or not.

    Args:
        run_dir: The run's directory, ``runs/<experiment>/<run>``.
        names: The tables to read, of those that there are; all by default.
        per_decade: Most recorded steps to read per factor of ten, log-spaced; all by default.

    Returns:
        Name of the table (``condensation``, ``effective_rank``, ...) to its rows, in the order of
        the steps. What a column means is in the schema of the file.

    Raises:
        InputError: The directory holds no record.
    """
    paths = sorted(Path(run_dir, "trajectory").glob("*.arrow"))
    if not paths:
        raise InputError(f"{run_dir} holds no trajectory/*.arrow; give the directory of a run")
    wanted = [path for path in paths if names is None or path.stem in names]
    tables = {
        path.stem: read_batches(path, None if per_decade is None else log_spaced(per_decade))
        for path in wanted
    }
    return {
        name: pa.Table.from_batches(batches).to_pandas()
        for name, batches in tables.items()
        if batches
    }


def load_curves(run_dir: str | Path, others: Collection[str] = ()) -> dict[str, pd.DataFrame]:
    """Reads what is known of weights and states, of tables with every step at log-spaced steps.

    Args:
        run_dir: The run's directory.
        others: More tables to read.

    Raises:
        InputError: The directory holds no record.
    """
    names = {*BESIDE, *(name for tables in TABLES.values() for name in tables), *others}
    sparse = load(run_dir, names - set(EVERY_STEP))
    return sparse | load(run_dir, names & set(EVERY_STEP), PER_DECADE)


def outcomes(run_dir: str | Path) -> list[str]:
    """Names the tables of a task's own callback: one row per step, of four quantities at most."""
    found = []
    for path in sorted(Path(run_dir, "trajectory").glob("*.arrow")):
        others = list(schema_of(path))[1:]
        if 0 < len(others) <= _MOST_OUTCOMES and all(f.type == pa.float32() for f in others):
            found.append(path.stem)
    return found


def probe(run_dir: str | Path) -> tuple[pd.Series, npt.NDArray[np.float16], pd.DataFrame]:
    """Reads a run's probe without repeating at each step what its tokens are.

    Args:
        run_dir: The run's directory.

    Returns:
        The steps, (n_steps,); the losses in nats, (n_steps, n_tokens); and the table of tokens,
        whose ``attrs`` hold what the file says of itself: ``probe`` (the hash), ``seed``,
        ``hyperparameters``.

    Raises:
        InputError: The run has no probe.
    """
    names = ("probe_loss", "probe_tokens")
    paths = [Path(run_dir, "trajectory", f"{name}.arrow") for name in names]
    batches = [read_batches(path) if path.is_file() else [] for path in paths]
    if not all(batches):
        raise InputError(
            f"{run_dir} holds no trajectory/probe_loss.arrow and probe_tokens.arrow; train with "
            "the callback ProbeLoss"
        )
    losses, described = map(pa.Table.from_batches, batches)
    words = {f.name: "category" for f in described.schema if f.type == pa.string()}
    tokens: pd.DataFrame = described.to_pandas().astype(words)
    tokens.attrs.update(json.loads(losses.schema.metadata[b"lit_gamma"]))
    return losses["step"].to_pandas(), vectors(losses["loss"].combine_chunks()), tokens


def tokens(run_dir: str | Path) -> pd.DataFrame:
    """Reads the losses of a run's probe, see :class:`lit_gamma.callbacks.ProbeLoss`.

    Args:
        run_dir: The run's directory.

    Returns:
        A row per step and token, with ``step``, ``loss`` (nats, float16), and what it is,
        ``token`` (its number), ``set``, ``block``, ``position``, ``token_id``, ``text``, ``class``,
        its loss under n-grams and with truncated contexts. ``attrs["probe"]`` is the hash.

    Raises:
        InputError: The run has no probe.
    """
    steps, losses, described = probe(run_dir)
    n_steps, n_tokens = losses.shape
    table: pd.DataFrame = described.take(np.tile(np.arange(n_tokens), n_steps)).reset_index(
        drop=True
    )
    table.insert(0, "step", np.repeat(steps.to_numpy(), n_tokens))
    table.insert(2, "loss", losses.ravel())
    table.attrs = {"probe": described.attrs["probe"]}
    return table


def phases(run_dir: str | Path, min_change: float = 0.1) -> pd.DataFrame:
    """Finds when each role and matrix condensed, and when it began to expand again.

    Args:
        run_dir: The run's directory.
        min_change: Smallest relative change that counts as a move.

    Returns:
        A row per role and quantity, then per matrix and quantity; NaN where a phase is not there,
        see :func:`~lit_gamma.trajectory.phase_finding.phases_of`.

    Raises:
        InputError: The run has no record of condensation or effective rank.
    """
    return phases_of(load_curves(run_dir), min_change)


def extremes(tables: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, dict[str, Any]]]:
    """Finds, per role, where condensation was strongest and the effective rank lowest.

    Both are means over the matrices of the role, each interpolated between the steps at which it
    was measured, relative to their random-matrix null.

    Args:
        tables: What :func:`load` returns.

    Returns:
        ``strongest_condensation`` and ``lowest_effective_rank``, role to step and value. Empty
        where the run has no such record.
    """
    return {
        "strongest_condensation": _extreme(tables, "mean_squared_cosine_over_null", largest=True),
        "lowest_effective_rank": _extreme(tables, "effective_rank_over_null", largest=False),
    }


def _extreme(
    tables: Mapping[str, pd.DataFrame], column: str, largest: bool
) -> dict[str, dict[str, Any]]:
    table = table_of(tables, column)
    if table is None:
        return {}
    by_role = role_means(table, column).dropna(axis=1, how="all")  # A single neuron has no pair.
    steps = by_role.idxmax() if largest else by_role.idxmin()
    values = by_role.max() if largest else by_role.min()
    return {
        str(role): {"step": int(step), column: float(value)}
        for role, step, value in zip(by_role.columns, steps, values, strict=True)
    }
