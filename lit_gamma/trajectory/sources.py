"""Where what is known of the weights is read: of several tables with a quantity, the densest."""

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
