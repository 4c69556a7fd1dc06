"""The first line of a fit, from its configs alone: what it runs is imported after that."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from lit_gamma.cli.config_files import layers
from lit_gamma.errors import InputError

RECORDS_NOTHING = (
    "Checkpoints",
    "GammaInit",
    "KeepCheckpoints",
    "Overview",
    "Progress",
    "RunSummary",
)
"""The package's callbacks that make no table."""


def first_line(arguments: list[str]) -> str | None:
    """What the configs and the command line say of a fit: model, γ, data, steps, what is recorded.

    Args:
        arguments: Those of ``fit``; later ones win.

    Returns:
        The line. None if no training is asked for, this is not the first process, or the
        arguments are such that the parser has to say what is wrong with them.

    Raises:
        InputError: A config file cannot be read.
    """
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    if any(rank != "0" for rank in ranks) or re.search(r"help\b|print_config", " ".join(arguments)):
        return None
    try:
        config = OmegaConf.to_container(OmegaConf.create(_merged(arguments)), resolve=True)
        return "; ".join(_said(config))
    except InputError:
        raise
    except Exception:  # Whatever it is, the parser says it better.
        return None


def _merged(arguments: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for option, value in re.findall(r"(?m)^--?([\w.]+\+?)[=\n](.*)$", "\n".join(arguments)):
        if option in ("c", "config"):
            for _, layer in layers(Path(value)):
                _merge(config, OmegaConf.to_container(layer))
        else:
            *sections, key = option.split(".")
            nested: dict[str, Any] = {key: yaml.safe_load(value)}
            for section in reversed(sections):
                nested = {section: nested}
            _merge(config, nested)
    return config


def _merge(config: dict[str, Any], layer: Any) -> None:
    """Writes a layer over a config, as the parser does."""
    for name, value in layer.items():
        key = str(name).rstrip("+")
        before = config.get(key)
        if isinstance(value, dict) and isinstance(before, list):
            continue  # A key of the last item, which the line does not show.
        if key != name:
            config[key] = (before or []) + (value if isinstance(value, list) else [value])
        elif isinstance(value, dict):
            config[key] = before if isinstance(before, dict) else {}
            _merge(config[key], value)
        elif isinstance(value, str) and isinstance(before, dict):
            before["class_path"] = value
        else:
            config[key] = value


def _said(config: Any) -> Iterator[str]:
    model, trainer, data = (config.get(name) or {} for name in ("model", "trainer", "data"))
    shape = model.get("transformer", {})
    width = shape.get("d_model")
    name = OmegaConf.select(OmegaConf.create(trainer), "logger.init_args.name") or "fit"
    layered = f"{shape['n_layers']} layers, d_model {width}" if shape else "a model"
    yield f"{name}: {layered}"
    gamma, std, folder = (model.get(name) for name in ("gamma", "init_std", "init_from"))
    if folder is not None:
        yield f"weights of {folder}"
    elif gamma is not None:
        gamma = float(gamma)
        yield f"γ {gamma:g}" + (f" (std {width**-gamma:.3g} at d_in {width})" if width else "")
    elif std is not None:
        std = float(std)
        rate = f" (γ {-math.log(std, width):.3g} at d_in {width})" if width else ""
        yield f"std {std:g}{rate}"
    yield _class_path(data).rpartition(".")[2]
    for limit, unit in (("max_steps", "steps"), ("max_epochs", "epochs")):
        if trainer.get(limit, -1) >= 0:
            yield f"{trainer[limit]} {unit}"
    callbacks = trainer.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    limit = config.get("overhead")
    within = "" if limit is None else f", within {float(limit):.0%} of training"
    yield f"recording {', '.join(_recorded(callbacks)) or 'nothing'}{within}"


def _recorded(callbacks: list[Any]) -> Iterator[str]:
    for path in map(_class_path, callbacks):
        name = path.rpartition(".")[2]
        if not path.startswith("lightning.") and name not in RECORDS_NOTHING:
            yield re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _class_path(value: Any) -> str:
    return value if isinstance(value, str) else str(value["class_path"])
