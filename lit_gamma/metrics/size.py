"""Sizes of weight matrices and of their updates.

Squares are summed in float32 (float64 for float64 weights), so entries below about 1e-19 count as
zero. Pairwise `sum` is used throughout: on CPU `torch.linalg.vector_norm` accumulates float32 one
after the other and reads 0.3 % too small on a 50257×768 embedding.
"""

import math

import torch
from torch import Tensor

from lit_gamma.metrics._matrix import as_float
from lit_gamma.metrics.rank import singular_values


def frobenius_norm(weight: Tensor) -> Tensor:
    """Computes ‖W‖_F = √(Σ wᵢⱼ²).

    Args:
        weight: Matrices of shape (..., n, d).

    Returns:
        The norms, shape (...), in units of the weights.

    Raises:
        ValueError: If `weight` is empty or has fewer than two dimensions.

    Example:
        >>> frobenius_norm(torch.tensor([[3.0, 4.0]]))
        tensor(5.)
    """
    return as_float(weight).square().sum((-2, -1)).sqrt()


def rms(weight: Tensor) -> Tensor:
    """Computes the root mean square of the entries, ‖W‖_F / √(nd).

    Args:
        weight: Matrices of shape (..., n, d).

    Returns:
        The RMS, shape (...), in units of the weights.

    Raises:
        ValueError: If `weight` is empty or has fewer than two dimensions.

    Example:
        >>> rms(torch.tensor([[1.0, 7.0]]))
        tensor(5.)
    """
    return as_float(weight).square().mean((-2, -1)).sqrt()


def max_row_norm(weight: Tensor) -> Tensor:
    """Computes the Euclidean norm of the longest row, the largest neuron.

    Args:
        weight: Matrices of shape (..., n, d), rows are neurons.

    Returns:
        The norms of those rows, shape (...), in units of the weights.

    Raises:
        ValueError: If `weight` is empty or has fewer than two dimensions.

    Example:
        >>> max_row_norm(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
        tensor(5.)
    """
    return as_float(weight).square().sum(-1).amax(-1).sqrt()


def spectral_norm(weight: Tensor) -> Tensor:
    """Computes ‖W‖₂, the largest singular value.

    Args:
        weight: Matrices of shape (..., n, d).

    Returns:
        The largest singular values, shape (...), in units of the weights.

    Raises:
        ValueError: If `weight` is empty or has fewer than two dimensions.

    Example:
        >>> round(spectral_norm(torch.tensor([[0.0, 3.0], [4.0, 0.0]])).item(), 3)
        4.0
    """
    return singular_values(weight)[..., 0]


def update_ratio(weight: Tensor, previous: Tensor) -> Tensor:
    """Computes the relative change ‖W - W_previous‖_F / ‖W_previous‖_F.

    The difference is explicit: expanding the square would lose relative steps of 1e-5. bfloat16
    weights hide such steps as well; pass their float32 master copy.

    Args:
        weight: Matrices of shape (..., n, d).
        previous: The same weights at an earlier step, same shape.

    Returns:
        Shape (...), dimensionless; NaN where the previous weights are all zero.

    Raises:
        ValueError: If the shapes differ, are empty or have fewer than two dimensions.

    Example:
        >>> update_ratio(torch.tensor([[3.0, 4.5]]), torch.tensor([[3.0, 4.0]]))
        tensor(0.1000)
    """
    if weight.shape != previous.shape:
        raise ValueError(f"shapes differ: {tuple(weight.shape)} against {tuple(previous.shape)}")
    size = frobenius_norm(previous)
    change = frobenius_norm(as_float(weight) - as_float(previous))
    return change / torch.where(size == 0, torch.nan, size)


def implied_gamma(weight: Tensor) -> Tensor:
    """Computes γ = -ln(rms) / ln(d), at which the rule std = d^(-γ) gives the weights' RMS.

    It inverts the γ rule of "Scalable Complexity Control Facilitates Reasoning Ability of LLMs",
    arXiv 2505.23013: entries drawn from N(0, σ²) with σ = d_in^(-γ).

    Args:
        weight: Matrices of shape (..., n, d), d inputs per neuron.

    Returns:
        Shape (...), dimensionless; +inf for all-zero weights, NaN for d = 1, where every γ gives
        the same std.

    Raises:
        ValueError: If `weight` is empty or has fewer than two dimensions.

    Example:
        >>> implied_gamma(torch.full((3, 100), 0.1))  # 0.1 = 100 ** -0.5
        tensor(0.5000)
    """
    size = rms(weight)
    d_in = weight.shape[-1]
    return -size.log() / (math.log(d_in) if d_in > 1 else math.nan)
