"""The norms of a module, and what they do in a forward."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_gamma import metrics
from lit_gamma.probing.forward import Seen, tensors_in
from lit_gamma.weights.parameters import plain_path


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


@contextmanager
def watched_norms(module: nn.Module) -> Iterator[list[Seen]]:
    """Collects, of each call of a norm, the share of ε in its denominator.

    Args:
        module: Any module; see :func:`lit_gamma.probing.norms.norms`.

    Yields:
        A list that fills up: ``epsilon_share``, mean over the vectors; ``normalized_rms``, the RMS
        of what comes out before the scale; ``input_rms``. All of shape ().
    """
    seen: list[Seen] = []
    with ExitStack() as hooks:
        for norm in norms(module):

            def watch(
                layer: nn.Module, args: Any, kwargs: Any, output: Any, norm: Norm = norm
            ) -> None:
                seen.append(Seen(norm.path, _saturation(norm, next(tensors_in((args, kwargs))))))

            handle = norm.layer.register_forward_hook(watch, with_kwargs=True)
            hooks.callback(handle.remove)
        yield seen


def _saturation(norm: Norm, x: Tensor) -> dict[str, Tensor]:
    eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
    share = metrics.epsilon_share(x, eps, norm.centered, norm.dims)
    return {
        "epsilon_share": share.mean(),
        "normalized_rms": (1 - share).mean().sqrt(),
        "input_rms": x.float().square().mean().sqrt(),
    }
