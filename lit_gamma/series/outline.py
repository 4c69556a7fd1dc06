"""A module with the names and shapes of a checkpoint, without its class and without memory."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from lit_gamma.weights.parameters import Roles
from lit_gamma.weights.roles import roles_of

_TABLES = {"wte", "wpe", "shared", "relative_attention_bias"}
"""Embedding tables whose names do not have ``emb`` in them."""

_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


class Conv1D(nn.Module):
    """GPT-2's linear layer, whose weight is stored as (d_in, n_neurons)."""


def outline(
    shapes: Mapping[str, torch.Size],
    about: Mapping[str, Any],
    zero: torch.Tensor,
    roles: Roles | None = None,
) -> nn.Module:
    """Makes a module in which :func:`lit_gamma.neurons` sees what a checkpoint's own class holds.

    Classes are told by names and shapes: tables, convolutions, transposed and numbered layers.

    Args:
        shapes: Name of each tensor to its shape.
        about: The model's config, or a :class:`LanguageModel`'s hyper-parameters, which may say how
            many heads it has.
        zero: A scalar, which all parameters show in place of their values.
        roles: See :func:`lit_gamma.neurons`.
    """
    owned: dict[str, dict[str, torch.Size]] = {}
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        owned.setdefault(path, {})[leaf] = shape
    root = nn.Module()
    said = {**about, **about.get("transformer", {})}
    root.config = SimpleNamespace(**{str(k): v for k, v in said.items()})  # type: ignore[assignment]
    root.neuron_roles = dict(roles or {})  # type: ignore[assignment]
    modules: dict[str, nn.Module] = {"": root}

    def module(path: str) -> nn.Module:
        if path not in modules:
            above, _, name = path.rpartition(".")
            modules[path] = _bare(_class_of(path, owned))
            module(above).add_module(name, modules[path])
        return modules[path]

    for path, leaves in owned.items():
        for leaf, shape in leaves.items():
            parameter = nn.Parameter(zero.expand(shape), requires_grad=False)
            module(path).register_parameter(leaf, parameter)
    return root


def _bare(kind: type[nn.Module]) -> nn.Module:
    """A module of a class, without the parameters that it would make."""
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    return made


def _class_of(path: str, owned: Mapping[str, Mapping[str, torch.Size]]) -> type[nn.Module]:
    leaves = owned.get(path, {})
    if "weight" not in leaves:
        inside = {name[len(path) + 1 :].partition(".")[0] for name in owned if _in(path, name)}
        return nn.Sequential if inside and all(map(str.isdigit, inside)) else nn.Module
    weight, name = leaves["weight"], path.rpartition(".")[2]
    if len(weight) != 2:
        return _CONVOLUTIONS.get(len(weight), nn.Module)
    if _is_table(path, name):
        return nn.Embedding
    return Conv1D if name.startswith("c_") and _transposes(owned) else nn.Linear


def _in(path: str, name: str) -> bool:
    return name.startswith(f"{path}.")


def _is_table(path: str, name: str) -> bool:
    """Whether a weight is an embedding table by its name, and nothing else by the usual ones."""
    unknown = roles_of(path.split("."), (nn.Module(), nn.Module())) == ("other",)
    return unknown and (name in _TABLES or "emb" in name.lower())


def _transposes(owned: Mapping[str, Mapping[str, torch.Size]]) -> bool:
    """Whether layers named as GPT-2's have a bias for each column, not for each row."""
    for path, leaves in owned.items():
        weight, bias = leaves.get("weight", ()), leaves.get("bias", ())
        named = path.rpartition(".")[2].startswith("c_")
        if named and len(weight) == 2 and len(bias) == 1 and weight[0] != weight[1]:
            return bias[0] == weight[1]
    return False
