"""Each setting of a sweep at its best learning rate, chosen on other data than it is judged by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lit_gamma.comparison.sweep_runs import RATE, SweepRuns, lower_is_better, set_of
from lit_gamma.errors import InputError


def at_best_rate(
    sweep: SweepRuns, measure: str, by: str | None = None, over: Sequence[str] = (RATE,)
) -> tuple[pd.DataFrame, str]:
    """Chooses a learning rate, or other values, for each seed of each setting.

    It is the rate of the lowest mean loss on the *other* validation sets, in runs of that very
    seed, as someone would tune who has one seed. Where the loss to choose by is of the same set as
    the measure, it is the rate of the lowest mean loss over the *other seeds*: what a seed shows
    is never what its rate was chosen by.

    Args:
        sweep: The sweep; its grid has learning rates.
        measure: What the runs are judged by.
        by: The loss to choose by; by default the mean of the losses on the other sets, or, where
            there is none, on the only set.
        over: The keys whose values are chosen, together.

    Returns:
        The chosen runs, a row per setting and seed, and the rule in words.

    Raises:
        InputError: There is no loss to choose by, or it takes other seeds and there are none.
    """
    losses = [name for name in sweep.measures if lower_is_better(name)]
    others = [name for name in losses if set_of(name) != set_of(measure)]
    chosen_by = [by] if by else others or losses
    if not chosen_by:
        raise InputError(f"no {_chosen(over)} can be chosen: {measure} is the only measure")
    keys = [key for key in sweep.keys if key not in over]
    runs = sweep.ended.dropna(subset=[measure, *chosen_by])
    loss = runs[chosen_by].mean(axis=1).rename("loss")
    apart = all(set_of(name) != set_of(measure) for name in chosen_by)
    if not apart:
        if runs["seed"].nunique() < 2:
            raise InputError(
                f"no {_chosen(over)} can be chosen for {measure}: there is no other validation "
                "set, and no second seed; give --seeds 2 or more"
            )
        loss = _of_other_seeds(runs, loss, sweep.keys)
    ranked = runs.assign(loss=loss).dropna(subset=["loss"]).sort_values("loss", kind="stable")
    best = ranked.drop_duplicates([*keys, "seed"]).drop(columns="loss").sort_index()
    whose = "in the same seed" if apart else "over the other seeds"
    return best, f"the lowest {_named(chosen_by)} {whose}"


def _of_other_seeds(runs: pd.DataFrame, loss: pd.Series, cell: list[str]) -> pd.Series:
    """The mean loss of each run's cell over its other seeds; NaN where it has none."""
    groups = loss.groupby([runs[key] for key in cell], dropna=False)
    n_others = groups.transform("size") - 1
    infinite = np.isinf(loss)
    finite = loss.where(~infinite, 0.0)
    others = finite.groupby([runs[key] for key in cell], dropna=False).transform("sum") - finite
    diverged = infinite.groupby([runs[key] for key in cell], dropna=False).transform("sum")
    means = (others / n_others).where(diverged - infinite == 0, np.inf)
    found: pd.Series = means.where(n_others > 0)
    return found


def _named(losses: list[str]) -> str:
    return losses[0] if len(losses) == 1 else f"mean of {', '.join(losses)}"


def _chosen(over: Sequence[str]) -> str:
    return "learning rate" if list(over) == [RATE] else " and ".join(over)
