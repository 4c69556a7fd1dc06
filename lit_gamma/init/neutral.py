"""What leaves a norm neutral: told by running it, since names differ."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def neutral_value(owner: nn.Module, leaf: str) -> float | None:
    """The value of a norm's parameter at which it neither scales nor shifts.

    One for a scale, zero for a shift, and zero for a scale that the layer adds one to, as Gemma's
    RMSNorm does. A layer that is not PyTorch's own is run on the input (1, -1, 1, ...), outside of
    its hooks, with all its parameters zero but this.

    Args:
        owner: The norm.
        leaf: Name of its parameter.

    Returns:
        The value; None if the layer cannot be run that way.
    """
    if _is_torchs(owner):
        return 1.0
    try:
        at_zero, at_one = _output(owner, leaf, 0.0), _output(owner, leaf, 1.0)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return None
    change = at_one - at_zero
    shifts = bool(change[0] * change[1] > 0)
    return 0.0 if shifts or bool(at_zero.any()) else 1.0


def _output(owner: nn.Module, leaf: str, value: float) -> Tensor:
    parameter = owner._parameters[leaf]
    assert parameter is not None
    device = "cpu" if parameter.is_meta else parameter.device
    twin = copy.copy(owner)
    twin._parameters = {
        name: nn.Parameter(torch.zeros(p.shape, dtype=p.dtype, device=device))
        for name, p in owner._parameters.items()
        if p is not None
    }
    twin._parameters[leaf].fill_(value)  # type: ignore[union-attr]
    signs = 1 - 2 * (torch.arange(parameter.numel(), device=device) % 2)
    output: Tensor = twin.forward(signs.to(parameter.dtype)[None])
    return output[0]


def _is_torchs(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.nn")
