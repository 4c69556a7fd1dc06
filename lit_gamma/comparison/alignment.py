"""Runs that followed the same tokens: their losses at common steps, and what the tokens are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lit_gamma.comparison.runs import Losses, Probe, Run, Runs, Steps, gather
from lit_gamma.comparison.settings import differing
from lit_gamma.errors import InputError
from lit_gamma.trajectory.token_classes import NGRAMS, TokenClasses


@dataclass(frozen=True)
class Comparison(Runs):
    """Runs that followed the same tokens.

    Attributes:
        steps: Steps that all runs recorded, (n_steps,).
        losses: Nats, (n_runs, n_steps, n_tokens).
        tokens: What the tokens are: ``token``, ``set``, ``block``, ``position``, ``token_id``,
            ``text``, ``unigram``, ``bigram``, ``trigram`` and, if all runs have ended, ``class``
            (by what the best group predicts) and ``class_by_mean`` (by what all predict).
    """

    steps: Steps
    losses: Losses
    tokens: pd.DataFrame

    @property
    def probe(self) -> str:
        """The hash of the probe."""
        return str(self.tokens.attrs["probe"])


def align(run_dirs: Sequence[str | Path], classes: TokenClasses | None = None) -> Comparison:
    """Puts runs side by side, token by token.

    Args:
        run_dirs: Directories of runs with the same probe; the group of the first is the reference.
        classes: Thresholds of the classes of tokens.

    Returns:
        The comparison.

    Raises:
        InputError: One comes twice; one is no run or has no probe; the probes differ; or no step is
            common to all.
    """
    return aligned(gather(run_dirs), classes)


def aligned(side_by_side: Runs, classes: TokenClasses | None = None) -> Comparison:
    """The same for runs that were read.

    Raises:
        InputError: A run has no probe, the probes differ, or no step is common to all.
    """
    runs, groups = side_by_side.runs, side_by_side.groups
    probes = [_probe_of(run) for run in runs]
    for run in runs[1:]:
        _refuse_other_probe(runs[0], run)
    steps = np.array(sorted(set.intersection(*(set(probe.steps.tolist()) for probe in probes))))
    if not len(steps):
        ranges = (
            f"{run.path}: {probe.steps[0]} .. {probe.steps[-1]}"
            for run, probe in zip(runs, probes, strict=True)
        )
        raise InputError(f"no step of the probe is common to all runs; {', '.join(ranges)}")
    losses = np.stack([probe.losses[np.isin(probe.steps, steps)] for probe in probes])
    tokens = _common_tokens(probes, list(groups.values()), classes or TokenClasses())
    return Comparison(runs, groups, steps, losses, tokens)


def _probe_of(run: Run) -> Probe:
    if run.probe is None:
        raise InputError(
            f"{run.path} followed no tokens (it holds no trajectory/probe_loss.arrow and "
            "probe_tokens.arrow); train with the callback ProbeLoss"
        )
    return run.probe


def _refuse_other_probe(first: Run, other: Run) -> None:
    one, another = _probe_of(first), _probe_of(other)
    if one.hash == another.hash:
        return
    a, b = len(one.tokens), len(another.tokens)
    found = [f"they hold {a} and {b} tokens"] if a != b else []
    apart = differing([first.config, other.config])
    decisive = ["data.class_path"] if "data.class_path" in apart else list(apart)
    for key in decisive:
        unrelated = key.endswith((".seed", "cache_dir", "batch_size"))
        of_data = key.startswith("data.") and not unrelated
        if of_data or key.endswith(("ProbeLoss.blocks", "ProbeLoss.seed")):
            found.append(f"{key} is {apart[key][0]} and {apart[key][1]}")
    raise InputError(
        f"{first.path} and {other.path} followed different tokens: probe {one.hash[:12]} and "
        f"{another.hash[:12]}; "
        + ("; ".join(found) or "their configs agree, so the texts themselves must differ")
    )


def _common_tokens(
    probes: Sequence[Probe], groups: Sequence[Sequence[int]], classes: TokenClasses
) -> pd.DataFrame:
    """The table of tokens, with classes that do not depend on which group is the reference.

    They are made of the columns of losses, each first averaged over the runs of a group, then
    joined over the groups in two ways.

    - ``class`` takes the least: what the best setting reaches, so that what only one setting
      learns counts as predictable, and "unpredictable" means that none predicts it. It selects on
      the outcome: a token joins a predictable class because some setting has a low loss there, by
      skill or by luck, and the others then look worse on that class. Luck cancels between settings
      with equally many seeds; one with fewer seeds varies more and gains by it. The least over
      single runs would be worse: it favours the setting with more seeds.
    - ``class_by_mean`` takes the mean: what all settings predict. It leaves out just the tokens
      that only one setting learns, and so makes differences on predictable classes small.

    What holds under both does not hang on the choice.
    """
    tokens: pd.DataFrame = (
        probes[0].tokens[["token", "set", "block", "position", "token_id", "text"]].copy()
    )
    texts = (probe.tokens["text"] for probe in probes)
    named = next((text for text in texts if text.notna().any()), None)
    if named is not None:
        tokens["text"] = named
    shared = [c for c in probes[0].tokens if all(c in probe.tokens for probe in probes)]
    measured = [c for c in shared if c not in tokens and c != "class"]
    of_groups = {
        c: [np.mean([probes[i].tokens[c] for i in of], axis=0) for of in groups] for c in measured
    }
    joined: list[dict[str, Any]] = [
        {"position": tokens["position"]} | {str(c): join(v, axis=0) for c, v in of_groups.items()}
        for join in (np.min, np.mean)
    ]
    for name in NGRAMS:
        tokens[name] = joined[0][name]
    if all(probe.ended for probe in probes):
        given = set().union(*(probe.tokens["class"].unique() for probe in probes))
        # The anchor task says itself what its answers need.
        said = given.pop() if len(given) == 1 else None
        for name, columns in zip(("class", "class_by_mean"), joined, strict=True):
            tokens[name] = said or classes.of(columns)
    return tokens
