"""Weights that a parametrization computes: reading them, and giving them values."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm

_READS = 15
"""Power iterations that bring spectral norm up to date, as many as at its construction."""


def tensors_of(owner: nn.Module) -> list[tuple[str, Tensor, str | None]]:
    """What a module has itself: name, tensor, and the parametrization that computes it, if any."""
    tensors: list[tuple[str, Tensor, str | None]] = []
    for leaf, parameter in owner._parameters.items():
        if leaf == "weight_v" and "weight_g" in owner._parameters:
            tensors.append(("weight", _weight_normed(owner), "weight_norm"))
        elif parameter is not None and (hook := _hook_on(owner, leaf)) is not None:
            name = leaf.removesuffix("_orig")
            tensors.append((name, _hooked(owner, name), type(hook).__name__))
        elif parameter is not None and not (leaf == "weight_g" and "weight_v" in owner._parameters):
            tensors.append((leaf, parameter, None))
    for leaf, steps in getattr(owner, "parametrizations", {}).items():
        tensors.append((leaf, _computed(owner, leaf), type(steps[0]).__name__.strip("_")))
    return tensors


def originals(owner: nn.Module, leaf: str) -> list[nn.Parameter]:
    """The parameters that a parametrized weight is computed from."""
    if _is_old_style(owner):
        return [owner.get_parameter("weight_g"), owner.get_parameter("weight_v")]
    if _hook_on(owner, f"{leaf}_orig") is not None:
        return [owner.get_parameter(f"{leaf}_orig")]
    return list(owner.parametrizations[leaf].parameters())  # type: ignore[index,union-attr]


def assign_parametrized(owner: nn.Module, leaf: str, values: Tensor) -> Tensor | None:
    """Sets what a parametrized weight is computed from, so that it comes to ``values``.

    Returns:
        The weight as it is now computed, which a constraint may keep from being ``values``; None,
        and nothing set, if the parametrization has no right inverse.
    """
    if _is_old_style(owner):
        g, v = originals(owner, leaf)
        v.copy_(values)
        g.copy_(_norms(g, v))
        return _weight_normed(owner)
    if _hook_on(owner, f"{leaf}_orig") is not None:
        owner.get_parameter(f"{leaf}_orig").copy_(values)
        return _hooked(owner, leaf)
    try:
        setattr(owner, leaf, values)
    except (NotImplementedError, RuntimeError, ValueError, AssertionError):
        return None
    for _ in range(_READS):
        _computed(owner, leaf, training=True)
    return _computed(owner, leaf)


@torch.no_grad()
def _computed(owner: nn.Module, leaf: str, training: bool = False) -> Tensor:
    """The weight, by default as in evaluation: spectral norm iterates when read in training."""
    steps: nn.Module = owner.parametrizations[leaf]  # type: ignore[index,assignment]
    modes = {step: step.training for step in steps.modules()}
    steps.train(training)
    weight: Tensor = getattr(owner, leaf)
    for step, mode in modes.items():
        step.training = mode
    return weight


def _hook_on(owner: nn.Module, leaf: str) -> SpectralNorm | BasePruningMethod | None:
    """The hook, spectral norm of old or pruning, that computes a weight from a parameter."""
    name = leaf.removesuffix("_orig")
    if name == leaf:
        return None
    for hook in owner._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm) and hook.name == name:
            return hook
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            return hook
    return None


@torch.no_grad()
def _hooked(owner: nn.Module, name: str) -> Tensor:
    """The weight that such a hook would compute before the next forward, without a trace."""
    hook = _hook_on(owner, f"{name}_orig")
    if isinstance(hook, SpectralNorm):
        weight: Tensor = hook.compute_weight(owner, do_power_iteration=False)
        return weight
    assert isinstance(hook, BasePruningMethod)
    masked: Tensor = hook.apply_mask(owner)  # type: ignore[no-untyped-call]
    return masked


def _is_old_style(owner: nn.Module) -> bool:
    """Whether ``torch.nn.utils.weight_norm`` computes the weight before each forward."""
    return {"weight_g", "weight_v"} <= owner._parameters.keys()


def _weight_normed(owner: nn.Module) -> Tensor:
    g, v = (parameter.detach() for parameter in originals(owner, "weight"))
    return v * (g / _norms(g, v))


def _norms(g: Tensor, v: Tensor) -> Tensor:
    over = [i for i, size in enumerate(g.shape) if size == 1]
    one_for_all = g.ndim == 0  # weight_norm(dim=None)
    dims = None if one_for_all else over
    norms: Tensor = torch.linalg.vector_norm(v, dim=dims, keepdim=not one_for_all)
    return norms
