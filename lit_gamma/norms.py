"""The norms of a module, and what leaves one neutral: told by running it, since names differ."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_gamma.parameters import plain_path


@dataclass(frozen=True, eq=False)
class Norm:
    """A layer that divides vectors by their size.

    Attributes:
        path: Its path in the module.
        layer: The layer.
        eps: Its ε; None for that of the input's dtype, as in torch.nn.RMSNorm.
        centered: Whether it takes the mean away first, as LayerNorm does.
        dims: The dimensions that it normalizes together.
    """

    path: str
    layer: nn.Module
    eps: float | None
    centered: bool
    dims: tuple[int, ...]


def norms(module: nn.Module) -> Iterator[Norm]:
    """Yields every RMSNorm and LayerNorm of a module, also those of others' making.

    Such a one has ``Norm`` in the name of its class and an ``eps``, ``variance_epsilon`` or
    ``epsilon``, and normalizes the last dimension. Norms over a batch or over groups of channels
    are none of these.

    Args:
        module: Any module.
    """
    for name, layer in module.named_modules():
        path = plain_path(name.split("."))
        if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
            dims = tuple(range(-len(layer.normalized_shape), 0))
            yield Norm(path, layer, layer.eps, isinstance(layer, nn.LayerNorm), dims)
        elif "norm" in type(layer).__name__.lower() and not _is_torchs(layer):
            named = (getattr(layer, key, None) for key in ("eps", "variance_epsilon", "epsilon"))
            eps = next((value for value in named if isinstance(value, float)), None)
            if eps is not None:
                yield Norm(path, layer, eps, _takes_the_mean_away(layer), (-1,))


def _is_torchs(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.nn")


def _takes_the_mean_away(layer: nn.Module) -> bool:
    """Whether (1, -1, ...) and (4, 2, ...) come out the same; False if it cannot be run."""
    width = next((p.numel() for p in layer._parameters.values() if p is not None), 8)
    twin = copy.copy(layer)
    twin._parameters = {
        name: nn.Parameter(torch.ones(p.shape))
        for name, p in layer._parameters.items()
        if p is not None
    }
    signs = 1.0 - 2 * (torch.arange(width) % 2)
    try:
        out, moved = twin.forward(signs[None]), twin.forward(signs[None] + 3)
        return bool(torch.allclose(out, moved, atol=1e-3))
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False


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
