"""Where what is known of the weights is read: of several tables with a quantity, the densest.

The states of the tokens, which condense as weights do, stand beside them as a role of their own,
and the circuits of the heads as two.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

TABLES = {
    "mean_squared_cosine_over_null": ("weight_norms", "condensation"),
    "effective_rank_over_null": ("effective_rank",),
    "stable_rank_over_null": ("effective_rank",),
    "participation_ratio_over_null": ("weight_norms", "effective_rank"),
    "update_ratio": ("weight_norms",),
}
"""Column to the tables that may have it, in the order of how many steps they have."""

STATES = "hidden_states"
"""The table of the tokens' states, and the role that they have among those of the weights."""

CIRCUITS = "circuits"
"""The table of the heads' circuits; its roles are qk and ov."""

BESIDE = (STATES, CIRCUITS)
"""Tables of what stands beside the weights."""

EVERY_STEP = ("weight_norms", "token_loss")
"""Tables with so many rows that a reader of curves takes log-spaced steps of them."""

PER_DECADE = 60
"""Such steps per factor of ten."""


def table_of(tables: Mapping[str, pd.DataFrame], quantity: str) -> pd.DataFrame | None:
    """The first of :data:`TABLES` that has a quantity of the weights; None without any.

    Args:
        tables: What :func:`lit_gamma.trajectory.load` returns.
        quantity: One of :data:`TABLES`.
    """
    held = (tables[name] for name in TABLES[quantity] if quantity in tables.get(name, ()))
    return next(held, None)


def tables_of(tables: Mapping[str, pd.DataFrame], quantity: str) -> list[pd.DataFrame]:
    """That of :func:`table_of`, and those beside it.

    Of the tokens' states the role is :data:`STATES`, the matrix a block.

    Args:
        tables: What :func:`lit_gamma.trajectory.load` returns.
        quantity: One of :data:`TABLES`.
    """
    found = table_of(tables, quantity)
    beside = {name: tables[name] for name in BESIDE if quantity in tables.get(name, ())}
    if STATES in beside:
        as_matrices = beside[STATES].rename(columns={"module": "matrix"})
        beside[STATES] = as_matrices.assign(role=STATES)
    return [*([] if found is None else [found]), *beside.values()]
