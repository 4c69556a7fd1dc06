"""How far a norm is from normalizing: the share of its denominator that is ε."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def epsilon_share(
    x: Tensor, eps: float, centered: bool = False, dims: Sequence[int] = (-1,)
) -> Tensor:
    r"""Computes :math:`\varepsilon / (\overline{x^2} + \varepsilon)` of every vector.

    A norm divides by the root of that denominator, so its output, before the learned scale, has an
    RMS of :math:`\sqrt{1 - \text{share}}`. Where small weights make small activations, the share
    nears 1 and the norm only multiplies by a constant (saturation; arXiv 2606.17945).

    Args:
        x: What goes into the norm, shape (..., d).
        eps: The norm's ε.
        centered: Take the variance in place of the mean square, as LayerNorm does.
        dims: The dimensions that are normalized together.

    Returns:
        Shape of ``x`` without ``dims``, at least float32, 0 .. 1; NaN where ``x`` and ε are zero.

    Example:
        >>> import torch
        >>> epsilon_share(torch.ones(3, 8), eps=1.0)
        tensor([0.5000, 0.5000, 0.5000])
    """
    dims = list(dims)
    x = x if x.is_floating_point() and x.itemsize >= 4 else x.float()
    size = x.var(dims, correction=0) if centered else x.square().mean(dims)
    return eps / (size + eps)
