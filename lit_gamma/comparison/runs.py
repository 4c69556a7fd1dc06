"""Runs as they lie on disk, grouped by what sets them apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from lit_gamma import trajectory
from lit_gamma.comparison.settings import differing, flat, setting
from lit_gamma.comparison.sweep_table import summary_of
from lit_gamma.errors import InputError
from lit_gamma.files import parsed
from lit_gamma.trajectory.arrow import schema_of
from lit_gamma.trajectory.sources import PER_DECADE

Steps = npt.NDArray[np.int64]
Losses = npt.NDArray[np.float32]

_PROBE = ("probe_loss", "probe_tokens")


@dataclass(frozen=True)
class Probe:
    """What a run's ProbeLoss recorded.

    Attributes:
        steps: Its steps, (n_steps,).
        losses: Nats, (n_steps, n_tokens).
        tokens: The table of tokens.
    """

    steps: Steps
    losses: Losses
    tokens: pd.DataFrame

    @property
    def hash(self) -> str:
        """The same for runs that followed the same tokens."""
        return str(self.tokens.attrs["probe"])

    @property
    def ended(self) -> bool:
        """Whether training ended, so that losses with truncated contexts are there."""
        return "full_context" in self.tokens


@dataclass(frozen=True)
class Run:
    """One run: a folder with a config, a summary and whatever was recorded.

    Attributes:
        path: Its directory, as given.
        config: The flattened config, see :func:`lit_gamma.comparison.settings.flat`.
        gamma: γ; None if the module has no such hyper-parameter.
        seed: Seed of the run; None if it was not set.
        summary: What ``summary.json`` holds; empty while the run goes on.
        probe: What ProbeLoss recorded; None without it.
    """

    path: str
    config: dict[str, Any]
    gamma: float | None
    seed: int | None
    summary: dict[str, Any]
    probe: Probe | None

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """What else was recorded, by the name of the table; read when it is asked for.

        Of ``weight_norms``, which has every matrix at every step, it is log-spaced steps.
        """
        names = {path.stem for path in Path(self.path, "trajectory").glob("*.arrow")} - set(_PROBE)
        if not names:
            return {}
        every_step = names & {"weight_norms"}
        tables = trajectory.load(self.path, names - every_step)
        return tables | trajectory.load(self.path, every_step, PER_DECADE)

    def meanings(self, table: str) -> dict[str, str]:
        """What each column of a table is, as its callback says."""
        schema = schema_of(Path(self.path, "trajectory", f"{table}.arrow"))
        return {f.name: (f.metadata or {}).get(b"meaning", b"").decode() for f in schema}


@dataclass(frozen=True)
class Runs:
    """Runs side by side.

    Attributes:
        runs: In the order given.
        groups: Label to the indices of its runs (seeds of one setting); the first group is the
            reference.
    """

    runs: list[Run]
    groups: dict[str, list[int]]

    @property
    def group_of(self) -> list[int]:
        """The number of each run's group."""
        return [
            next(g for g, of in enumerate(self.groups.values()) if i in of)
            for i in range(len(self.runs))
        ]

    @property
    def names(self) -> list[str]:
        """What to call each run: its group, and its seed where the group has several."""
        labels = list(self.groups)
        named = []
        for run, g in zip(self.runs, self.group_of, strict=True):
            alone = len(self.groups[labels[g]]) == 1 or run.seed is None
            named.append(labels[g] if alone else f"{labels[g]}, seed {run.seed}")
        return named


def load_run(run_dir: str | Path) -> Run:
    """Reads what a report needs of a run, finished or not.

    Raises:
        InputError: The directory is not that of a run.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise InputError(f"{run_dir} is not a directory; give the directory of a run")
    records = sorted(path.glob("trajectory/*.arrow"))
    config, summary = _config_of(path), summary_of(path)
    if not (records or summary):
        raise InputError(
            f"{run_dir} holds no trajectory/*.arrow and no summary.json; give the directory of a "
            "run, such as runs/anchor/gamma0.8-seed1"
        )
    about = _metadata(records)
    made_with = about.get("hyperparameters") or {}
    seed = summary.get("seed", about.get("seed"))
    return Run(
        str(run_dir), flat(config or {"model": made_with}),
        summary.get("gamma", made_with.get("gamma")), None if seed is None else int(seed),
        summary, _probe(path),
    )  # fmt: skip


def gather(run_dirs: Sequence[str | Path]) -> Runs:
    """Reads runs, and groups those that differ by chance alone.

    Args:
        run_dirs: Directories of runs; the group of the first is the reference.

    Returns:
        The runs.

    Raises:
        InputError: One comes twice, or is no run.
    """
    places = [Path(run_dir).resolve() for run_dir in run_dirs]
    for i, place in enumerate(places):
        if (first := places.index(place)) < i:
            raise InputError(f"{run_dirs[first]} and {run_dirs[i]} are the same run")
    runs = [load_run(run_dir) for run_dir in run_dirs]
    return Runs(runs, _grouped(runs))


def _metadata(records: Sequence[Path]) -> dict[str, Any]:
    """What the first record that can be opened says of its run."""
    said = (schema_of(path).metadata for path in records)
    return next((dict(json.loads(about[b"lit_gamma"])) for about in said if about), {})


def _probe(path: Path) -> Probe | None:
    if not all((path / "trajectory" / f"{name}.arrow").is_file() for name in _PROBE):
        return None
    steps, losses, tokens = trajectory.probe(path)
    return Probe(steps.to_numpy(), losses.astype(np.float32), tokens)


def _config_of(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "config.yaml"
    if not path.is_file():
        return {}
    with parsed(f"{path} is damaged"):
        return dict(yaml.safe_load(path.read_text()) or {})


_ONE_OF = ("gamma", "model.init_std", "model.init_from")
"""Of these a run has one; the other is null and says nothing."""


def _grouped(runs: Sequence[Run]) -> dict[str, list[int]]:
    """Runs of the same setting, told by the values that differ; seeds if nothing else does."""
    values = [{"gamma": run.gamma, **setting(run.config)} for run in runs]
    for of_run in values:
        of_run.pop("model.gamma", None)
    if len(runs) == 1:
        return {runs[0].path if runs[0].gamma is None else _named("gamma", runs[0].gamma): [0]}
    apart = differing(values) or differing([{"seed": run.seed} for run in runs])
    labels = [
        ", ".join(_named(k, v[i]) for k, v in apart.items() if v[i] is not None or k not in _ONE_OF)
        for i in range(len(runs))
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
