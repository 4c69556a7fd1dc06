"""Runs side by side: the same tokens at the same steps, grouped by what sets the runs apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from lit_gamma import trajectory
from lit_gamma.comparison.settings import differing, flat, setting
from lit_gamma.errors import InputError
from lit_gamma.trajectory.token_classes import NGRAMS, TokenClasses

Steps = npt.NDArray[np.int64]
Losses = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Run:
    """One run's probe, and what is known of the run.

    Attributes:
        path: Its directory, as given.
        config: The flattened config, see :func:`lit_gamma.comparison.settings.flat`.
        gamma: γ; None if the module has no such hyper-parameter.
        seed: Seed of the run; None if it was not set.
        summary: What ``summary.json`` holds; empty while the run goes on.
        steps: Steps of the probe, (n_steps,).
        losses: Nats, (n_steps, n_tokens).
        tokens: The table of tokens.
    """

    path: str
    config: dict[str, Any]
    gamma: float | None
    seed: int | None
    summary: dict[str, Any]
    steps: Steps
    losses: Losses
    tokens: pd.DataFrame

    @property
    def probe(self) -> str:
        """The hash of the probe."""
        return str(self.tokens.attrs["probe"])

    @property
    def ended(self) -> bool:
        """Whether training ended, so that losses with truncated contexts are there."""
        return "full_context" in self.tokens


@dataclass(frozen=True)
class Comparison:
    """Runs that followed the same tokens.

    Attributes:
        runs: In the order given.
        groups: Label to the indices of its runs (seeds of one setting); the first group is the
            reference.
        steps: Steps that all runs recorded, (n_steps,).
        losses: Nats, (n_runs, n_steps, n_tokens).
        tokens: What the tokens are: ``token``, ``set``, ``block``, ``position``, ``token_id``,
            ``text``, ``unigram``, ``bigram``, ``trigram`` and, if all runs have ended, ``class``
            (by what the best group predicts) and ``class_by_mean`` (by what all predict).
    """

    runs: list[Run]
    groups: dict[str, list[int]]
    steps: Steps
    losses: Losses
    tokens: pd.DataFrame


def load_run(run_dir: str | Path) -> Run:
    """Reads what a comparison needs of a run, finished or not.

    Raises:
        InputError: The directory is not a run, or the run has no probe.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise InputError(f"{run_dir} is not a directory; give the directory of a run")
    steps, losses, tokens = trajectory.probe(path)
    about = tokens.attrs
    config = _read(path / "config.yaml") or {"model": about["hyperparameters"]}
    summary = _read(path / "summary.json")
    seed = about["seed"]
    return Run(
        str(run_dir), flat(config), about["hyperparameters"].get("gamma"),
        None if seed is None else int(seed), summary, steps.to_numpy(), losses.astype(np.float32),
        tokens,
    )  # fmt: skip


def align(run_dirs: Sequence[str | Path], classes: TokenClasses | None = None) -> Comparison:
    """Puts runs side by side.

    Args:
        run_dirs: Directories of at least two runs with the same probe; the group of the first is
            the reference.
        classes: Thresholds of the classes of tokens.

    Returns:
        The comparison.

    Raises:
        InputError: There are fewer than two runs or one comes twice; one is no run or has no probe;
            the probes differ; or no step is common to all.
    """
    places = [Path(run_dir).resolve() for run_dir in run_dirs]
    if len(places) < 2:
        raise InputError(f"compare needs at least two runs, got {len(places)}")
    for i, place in enumerate(places):
        if (first := places.index(place)) < i:
            raise InputError(f"{run_dirs[first]} and {run_dirs[i]} are the same run")
    runs = [load_run(run_dir) for run_dir in run_dirs]
    for run in runs[1:]:
        _refuse_other_probe(runs[0], run)
    steps = np.array(sorted(set.intersection(*(set(run.steps.tolist()) for run in runs))))
    if not len(steps):
        ranges = (f"{run.path}: {run.steps[0]} .. {run.steps[-1]}" for run in runs)
        raise InputError(f"no step of the probe is common to all runs; {', '.join(ranges)}")
    losses = np.stack([run.losses[np.isin(run.steps, steps)] for run in runs])
    groups = _grouped(runs)
    tokens = _common_tokens(runs, list(groups.values()), classes or TokenClasses())
    return Comparison(runs, groups, steps, losses, tokens)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        text = path.read_text()
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


def _refuse_other_probe(first: Run, other: Run) -> None:
    if first.probe == other.probe:
        return
    a, b = (len(run.tokens) for run in (first, other))
    found = [f"they hold {a} and {b} tokens"] if a != b else []
    apart = differing([first.config, other.config])
    decisive = ["data.class_path"] if "data.class_path" in apart else list(apart)
    for key in decisive:
        unrelated = key.endswith((".seed", "cache_dir", "batch_size"))
        of_data = key.startswith("data.") and not unrelated
        if of_data or key.endswith(("ProbeLoss.blocks", "ProbeLoss.seed")):
            found.append(f"{key} is {apart[key][0]} and {apart[key][1]}")
    raise InputError(
        f"{first.path} and {other.path} followed different tokens: probe {first.probe[:12]} and "
        f"{other.probe[:12]}; "
        + ("; ".join(found) or "their configs agree, so the texts themselves must differ")
    )


def _grouped(runs: Sequence[Run]) -> dict[str, list[int]]:
    """Runs of the same setting, told by the values that differ; seeds if nothing else does."""
    values = [{"gamma": run.gamma, **setting(run.config)} for run in runs]
    for of_run in values:
        of_run.pop("model.gamma", None)
    apart = differing(values) or differing([{"seed": run.seed} for run in runs])
    labels = [
        ", ".join(_named(key, column[i]) for key, column in apart.items()) for i in range(len(runs))
    ]
    if not apart or (len(set(labels)) < len(runs) and not differing(values)):
        labels = [run.path for run in runs]
    return {
        label: [i for i, of_run in enumerate(labels) if of_run == label]
        for label in dict.fromkeys(labels)
    }


def _named(key: str, value: Any) -> str:
    name = key.rsplit(".", 1)[-1]
    return f"{'γ' if name == 'gamma' else name} = {value}"


def _common_tokens(
    runs: Sequence[Run], groups: Sequence[Sequence[int]], classes: TokenClasses
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
        runs[0].tokens[["token", "set", "block", "position", "token_id", "text"]].copy()
    )
    named = next((run.tokens["text"] for run in runs if run.tokens["text"].notna().any()), None)
    if named is not None:
        tokens["text"] = named
    shared = [c for c in runs[0].tokens if all(c in run.tokens for run in runs)]
    measured = [c for c in shared if c not in tokens and c != "class"]
    of_groups = {
        c: [np.mean([runs[i].tokens[c] for i in of], axis=0) for of in groups] for c in measured
    }
    joined: list[dict[str, Any]] = [
        {"position": tokens["position"]} | {str(c): join(v, axis=0) for c, v in of_groups.items()}
        for join in (np.min, np.mean)
    ]
    for name in NGRAMS:
        tokens[name] = joined[0][name]
    if all(run.ended for run in runs):
        given = set().union(*(run.tokens["class"].unique() for run in runs))
        # The anchor task says itself what its answers need.
        said = given.pop() if len(given) == 1 else None
        for name, columns in zip(("class", "class_by_mean"), joined, strict=True):
            tokens[name] = said or classes.of(columns)
    return tokens
