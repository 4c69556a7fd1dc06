"""The runs of a sweep: their arguments and configs, read and checked as fit does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from typing_extensions import override

from lit_gamma.cli.lightning_cli import LitGammaCLI
from lit_gamma.cli.nearest import nearest_key
from lit_gamma.cli.sweep.grid import cells, name_of
from lit_gamma.cli.sweep.planned import Config, PlannedRun, content
from lit_gamma.cli.sweep.seeds import Place, at_seed, places_of_seed
from lit_gamma.comparison.settings import flat
from lit_gamma.errors import InputError
from lit_gamma.model.language_model import LanguageModel


class FitConfigs(LitGammaCLI):
    """Reads the arguments of fits, and goes no further.

    Attributes:
        base: The config without a grid.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``fit`` alone."""
        return {"fit": LightningCLI.subcommands()["fit"]}

    @override
    def _set_seed(self) -> None:
        """Nothing is drawn."""

    @override
    def _add_instantiators(self) -> None:
        self.parser.add_instantiator(_without_memory, LanguageModel)

    @override
    def instantiate_classes(self) -> None:
        self.base = self._plain()

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is trained."""

    def read(self, arguments: Sequence[str]) -> Config:
        """The config of a fit, as it would be saved with the run.

        Raises:
            InputError: ``fit`` would refuse the arguments.
        """
        self.parse_arguments(self.parser, ["fit", *arguments])
        return self._plain()

    def read_saved(self, path: Path) -> Config:
        """A saved config with the options of today, those that it lacks as by default.

        Raises:
            InputError: It has an option that is no more.
        """
        return self.read([f"--config={path}"])

    def check(self) -> None:
        """Makes the model, the data and the callbacks of what was read last, without memory.

        Raises:
            InputError: A value is of the right type and cannot be meant.
        """
        self.before_instantiate_classes()
        config = deepcopy(self.config)
        config["fit"]["trainer"]["logger"] = False
        self.parser.instantiate(config)

    def _plain(self) -> Config:
        saved = self._parser("fit").dump(self.config["fit"], skip_unset=False)
        return dict(yaml.load(saved, yaml.CSafeLoader))


def plan(
    fits: FitConfigs, shared: Sequence[str], grid: Mapping[str, list[str]], n_seeds: int, out: Path
) -> list[PlannedRun]:
    """The runs of a grid, all of them checked; the whole grid with one seed, then with the next.

    Args:
        fits: Reads configs; its ``base`` is that of ``shared``.
        shared: The arguments of ``fit`` that all runs have.
        grid: See :func:`~lit_gamma.cli.sweep.grid.axes`.
        n_seeds: Runs of each combination, from the config's seed on.
        out: Where the runs go.

    Raises:
        InputError: A run cannot be, or two are the same.
    """
    for key in grid:
        if not _has(fits.base, key):
            known = {*flat(fits.base)}
            raise InputError(f"--grid {key}: the config has no such key{nearest_key(key, known)}")
    first, *others = (int(fits.base["seed_everything"]) + i for i in range(n_seeds))
    runs = []
    for cell in cells(grid):
        runs.append(_read(fits, shared, cell, first, out))
        fits.check()
    places = _places_of_seed(fits, shared, grid, others[-1]) if others else None
    of_first = [*zip(cells(grid), runs, strict=True)]
    for seed, (cell, run) in product(others, of_first):
        if places is None:
            runs.append(_read(fits, shared, cell, seed, out))
        else:
            name, arguments = _written(fits, shared, cell, seed, out)
            what = at_seed(run.content, places, seed)
            runs.append(replace(run, name=name, arguments=arguments, seed=seed, content=what))
    _refuse_twins(runs)
    return runs


def _read(
    fits: FitConfigs, shared: Sequence[str], cell: dict[str, str], seed: int, folder: Path
) -> PlannedRun:
    name, arguments = _written(fits, shared, cell, seed, folder)
    try:
        config = fits.read(arguments)
    except InputError as error:
        given = " ".join(f"{key}={value}" for key, value in cell.items())
        raise InputError(f"--grid {given}: {error}") from error
    setting = {key: _at(fits.config["fit"], key) for key in cell}
    return PlannedRun(
        name, arguments, setting, seed, content(config), config["trainer"]["max_steps"]
    )


def _written(
    fits: FitConfigs, shared: Sequence[str], cell: dict[str, str], seed: int, folder: Path
) -> tuple[str, tuple[str, ...]]:
    """A run's name and the arguments of its fit."""
    name = f"{name_of(cell)}-seed{seed}"
    place = json.dumps(_placed(fits.base["trainer"]["logger"], folder, name))
    return name, (
        *shared,
        *(f"--{key}={value}" for key, value in cell.items()),
        f"--seed_everything={seed}",
        f"--trainer.logger={place}",
        f"--trainer.default_root_dir={folder}",
    )


def _places_of_seed(
    fits: FitConfigs, shared: Sequence[str], grid: Mapping[str, list[str]], largest: int
) -> list[Place] | None:
    """Where the configs hold their seed; None if each has to be read.

    Raises:
        InputError: The largest seed is too large.
    """
    other = content(fits.read([*shared, f"--seed_everything={largest}"]))
    if any("${" in value for values in grid.values() for value in values):
        return None
    return places_of_seed(content(fits.base), other, grid)


def _refuse_twins(runs: Sequence[PlannedRun]) -> None:
    names: dict[str, str] = {}
    for run in runs:
        if (other := names.setdefault(run.content, run.name)) != run.name:
            raise InputError(f"--grid: {run.name} and {other} are one and the same run")


def _placed(logger: Any, folder: Path, name: str) -> Any:
    """A config's loggers, told to keep their files in the sweep's folder."""
    if isinstance(logger, list):
        return [_placed(one, folder, name) for one in logger]
    if not isinstance(logger, Mapping):
        return logger
    place = {"save_dir": str(folder)}
    if logger["class_path"].endswith(("TensorBoardLogger", "CSVLogger")):
        place |= {"name": "", "version": name}
    return {**logger, "init_args": {**logger.get("init_args", {}), **place}}


def _has(config: Any, key: str) -> bool:
    try:
        _at(config, key)
    except (KeyError, TypeError):
        return False
    return True


def _at(config: Any, key: str) -> Any:
    """The value of a key, in which ``init_args`` may be left out as on the command line."""
    for part in key.split("."):
        if part not in config and "init_args" in config:
            config = config["init_args"]
        config = config[part]
    return config


def _without_memory(
    class_type: type[LanguageModel], *args: Any, applied_instantiation_links: Any, **kwargs: Any
) -> LanguageModel:
    with torch.device("meta"):
        return class_type(*args, **kwargs)
