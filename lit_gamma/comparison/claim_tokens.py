"""Where a gain sits: on a class of tokens against all of them, seed by seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from lit_gamma.comparison.alignment import Comparison, aligned
from lit_gamma.comparison.bootstrap import Floats
from lit_gamma.comparison.charts import Chart
from lit_gamma.comparison.findings import readable
from lit_gamma.comparison.runs import Runs, load_run
from lit_gamma.comparison.svg import Line, panel
from lit_gamma.comparison.sweep_runs import SweepRuns
from lit_gamma.comparison.sweep_view import MeasureView, named
from lit_gamma.errors import InputError


def context_gains(
    here: SweepRuns, there: SweepRuns, tokens: str, classes: str, equal_loss: bool
) -> pd.Series:
    """How much lower the loss of a setting is on a class of tokens, beyond what it is over all.

    With g the fall of the mean loss from ``there`` to ``here`` on the class and G that over all
    tokens, it is g - max(G, 0): above 0 only if there is a gain on the class, and it exceeds the
    gain over all. At equal steps the losses are those of the last common step. At equal loss each
    run is taken at the step at which its mean loss over all first comes down to the worse of the
    two final ones, linear in log(1 + step) between recorded steps, so that G is 0.

    Args:
        here: The runs of the setting, one a seed.
        there: Those that it is compared with.
        tokens: The class.
        classes: ``class`` or ``class_by_mean``, see :class:`~lit_gamma.comparison.Comparison`.
        equal_loss: Compare at equal loss, not at equal steps.

    Returns:
        Nats per token, a value per seed of both.

    Raises:
        InputError: The runs followed no tokens, or none of such a class.
    """
    comparison, seeds = _compared(here, there)
    inside = _inside(comparison, tokens, classes)
    gains = [
        _gain(comparison, inside, before, after, equal_loss)
        for before, after in zip(*comparison.groups.values(), strict=True)
    ]
    by_seed: pd.Series = pd.Series(gains, seeds, dtype=float)
    return by_seed


def token_view(here: SweepRuns, there: SweepRuns, tokens: str, classes: str) -> MeasureView:
    """Shows the loss over the steps, on a class of tokens and over all of them; see above."""
    comparison, _ = _compared(here, there)
    inside = _inside(comparison, tokens, classes)
    keys = tuple(enumerate(comparison.groups))
    charts, cells = [], []
    for what, share in ((readable(tokens), inside), ("all", np.ones_like(inside))):
        losses = comparison.losses @ share / share.sum()
        by_setting = [losses[runs] for runs in comparison.groups.values()]
        lines = [
            Line(g, comparison.steps, of.mean(0), of.min(0), of.max(0))
            for g, of in enumerate(by_setting)
        ]
        charts.append(Chart(f"{what}: {int(share.sum()):,} tokens", panel(lines), _SEEN, keys))
        cells += [
            {"view": f"{what} tokens, {name}", "n_runs": len(of), "value": of[:, -1].mean(),
             "low": of[:, -1].min(), "high": of[:, -1].max()}
            for name, of in zip(comparison.groups, by_setting, strict=True)
        ]  # fmt: skip
    measure = f"loss on {readable(tokens)} tokens, by {readable(classes)}"
    return MeasureView(measure, charts, [], pd.DataFrame(cells).assign(measure=measure), [])


_SEEN = "Nats per token, mean and range over the seeds of both settings."


def _compared(here: SweepRuns, there: SweepRuns) -> tuple[Comparison, list[int]]:
    """The runs of the seeds that both have, ``there`` first, as groups named by what differs."""
    seeds = sorted({*here.table["seed"]} & {*there.table["seed"]})
    if not seeds:
        raise InputError("no seed has ended in both settings")
    both = [of.table.set_index("seed").loc[seeds] for of in (there, here)]
    runs = [load_run(Path(here.folder, run)) for of in both for run in of["run"]]
    apart = [key for key in here.keys if not both[0][key].equals(both[1][key])]
    if not apart:
        raise InputError("both settings are the same")
    names = [named(apart, tuple(of[apart].iloc[0])) for of in both]
    n = len(seeds)
    groups = {names[0]: list(range(n)), names[1]: list(range(n, 2 * n))}
    return aligned(Runs(runs, groups)), seeds


def _inside(comparison: Comparison, tokens: str, classes: str) -> Floats:
    of = comparison.tokens
    if classes not in of:
        raise InputError(f"the probe's tokens have no {classes}: a run has not ended")
    inside = (of[classes] == tokens).to_numpy(float)
    if not inside.any():
        raise InputError(f"no token of the probe is {tokens}: takes a larger probe, or longer runs")
    return inside


def _gain(
    comparison: Comparison, inside: Floats, before: int, after: int, equal_loss: bool
) -> float:
    losses = comparison.losses[[before, after]].astype(float)
    over_all = losses.mean(axis=2)
    on_class = losses @ inside / inside.sum()
    if not equal_loss:
        gained = float(over_all[0, -1] - over_all[1, -1])
        return float(on_class[0, -1] - on_class[1, -1]) - max(gained, 0.0)
    x, level = np.log1p(comparison.steps), over_all[:, -1].max()
    first, second = (_at(x, over_all[i], on_class[i], level) for i in (0, 1))
    return first - second


def _at(x: Floats, over_all: Floats, on_class: Floats, level: float) -> float:
    """The loss on the class when that over all first comes down to a level."""
    at = int((over_all <= level).argmax())
    if at == 0 or over_all[at] == over_all[at - 1]:
        return float(on_class[at])
    part = (over_all[at - 1] - level) / (over_all[at - 1] - over_all[at])
    return float(on_class[at - 1] + part * (on_class[at] - on_class[at - 1]))
