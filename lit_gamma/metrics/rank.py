"""Soft ranks of weight matrices, all functions of the singular values s.

They are exponentials of Rényi entropies: stable rank, order ∞ of s² / Σ s²; participation ratio,
order 2 of the same; effective rank, order 1 of s / Σ s. Hence, for every matrix but zero,
1 ≤ stable rank ≤ participation ratio ≤ effective rank ≤ min(n, d).
"""

import torch
from torch import Tensor

from lit_gamma.metrics._matrix import as_float, divide_by_largest

_ROWS_AT_ONCE = 1024
"""Rows that are made float64 together: a vocabulary's table would fill twice its memory."""


def smaller_gram(weight: Tensor) -> Tensor:
    """Computes WWᵀ or WᵀW, whichever is smaller, in float64.

    The Gram matrix squares the spectrum, so in float32 everything below √(6e-8) ≈ 2e-4 of the
    largest singular value would be rounding noise, and a rank-one 768×768 matrix would read an
    effective rank of 1.25. In float64 noise stays below 3e-8, that matrix reads 1.00003, and
    float32 weights as small as 1e-38 do not underflow when squared.

    Args:
        weight: Matrices of shape (..., n, d), on a device that has float64.

    Returns:
        Shape (..., m, m) with m = min(n, d), float64.

    Raises:
        ValueError: If `weight` is empty or has fewer than two dimensions.

    Example:
        >>> smaller_gram(torch.tensor([[3.0, 4.0]]))
        tensor([[25.]], dtype=torch.float64)
    """
    as_float(weight)
    if weight.shape[-2] < weight.shape[-1]:
        matrix = weight.to(torch.float64)
        return matrix @ matrix.mT
    gram = weight.new_zeros((*weight.shape[:-2], *2 * weight.shape[-1:]), dtype=torch.float64)
    for rows in torch.split(weight, _ROWS_AT_ONCE, dim=-2):
        part = rows.to(torch.float64)
        gram += part.mT @ part
    return gram


def singular_values_of_gram(gram: Tensor) -> Tensor:
    """Computes singular values as square roots of a Gram matrix's eigenvalues.

    Grams that are not finite read NaN instead of failing the eigen-solver, which alone here waits
    for the device if that is a GPU.

    Args:
        gram: Symmetric matrices of shape (..., m, m), from `smaller_gram`.

    Returns:
        Shape (..., m), descending, in units of the weights, dtype of `gram`.

    Example:
        >>> singular_values_of_gram(torch.diag(torch.tensor([4.0, 9.0]))).round(decimals=3)
        tensor([3., 2.])
    """
    is_finite = gram.isfinite().all(-1).all(-1).unsqueeze(-1)
    eigenvalues: Tensor = torch.linalg.eigvalsh(torch.where(is_finite.unsqueeze(-1), gram, 0))
    return torch.where(is_finite, eigenvalues.clamp(min=0).sqrt().flip(-1), torch.nan)


def singular_values(weight: Tensor) -> Tensor:
    """Computes all singular values, from the smaller Gram matrix in float64.

    See `smaller_gram` for why; rounding the results to float32 loses nothing more.

    Args:
        weight: Matrices of shape (..., n, d), on a device that has float64.

    Returns:
        Shape (..., min(n, d)), descending, in units of the weights; float32 (float64 for float64).

    Raises:
        ValueError: If `weight` is empty or has fewer than two dimensions.

    Example:
        >>> singular_values(torch.tensor([[0.0, 3.0], [4.0, 0.0]])).round(decimals=3)
        tensor([4., 3.])
    """
    return singular_values_of_gram(smaller_gram(weight)).to(as_float(weight).dtype)


def effective_rank(singular_values: Tensor) -> Tensor:
    """Computes exp(-Σ pᵢ ln pᵢ) with pᵢ = sᵢ / Σ s.

    Roy & Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    The pᵢ are singular values, not their squares (von Neumann entropy).

    Args:
        singular_values: Shape (..., k), non-negative.

    Returns:
        Shape (...), in [1, k]; 0 for a zero matrix.

    Example:
        >>> effective_rank(torch.tensor([2.0, 1.0, 1.0]))  # 2 to the power of 3/2
        tensor(2.8284)
    """
    values, _, is_nonzero = divide_by_largest(singular_values, -1)
    shares = values / values.sum(-1, keepdim=True).clamp(min=1)
    entropy: Tensor = torch.special.entr(shares).sum(-1)
    return entropy.exp() * is_nonzero.squeeze(-1)


def stable_rank(singular_values: Tensor) -> Tensor:
    """Computes Σ sᵢ² / max sᵢ² = ‖W‖_F² / ‖W‖₂².

    Rudelson & Vershynin, "Sampling from large matrices", J. ACM 2007 (their numerical rank).

    Args:
        singular_values: Shape (..., k), non-negative.

    Returns:
        Shape (...), in [1, k]; 0 for a zero matrix.

    Example:
        >>> stable_rank(torch.tensor([2.0, 1.0, 1.0]))
        tensor(1.5000)
    """
    values, _, _ = divide_by_largest(singular_values, -1)
    return values.square().sum(-1)


def participation_ratio(singular_values: Tensor) -> Tensor:
    """Computes (Σ sᵢ²)² / Σ sᵢ⁴ = ‖W‖_F⁴ / ‖WᵀW‖_F².

    The inverse participation ratio of Bell & Dean (1970) applied to the spectrum, as in Gao et
    al., "A theory of multineuronal dimensionality, dynamics and measurement", 2017.

    Args:
        singular_values: Shape (..., k), non-negative.

    Returns:
        Shape (...), in [1, k]; 0 for a zero matrix.

    Example:
        >>> participation_ratio(torch.tensor([2.0, 1.0, 1.0]))
        tensor(2.)
    """
    values, _, _ = divide_by_largest(singular_values, -1)
    squares = values.square()
    return squares.sum(-1).square() / squares.square().sum(-1).clamp(min=1)


def ranks(singular_values: Tensor) -> dict[str, Tensor]:
    """Computes the three ranks by name.

    Args:
        singular_values: Shape (..., k), non-negative.

    Returns:
        ``effective_rank``, ``participation_ratio`` and ``stable_rank``, shape (...) each.

    Example:
        >>> {name: round(rank.item(), 3) for name, rank in ranks(torch.tensor([2.0, 1.0])).items()}
        {'effective_rank': 1.89, 'participation_ratio': 1.471, 'stable_rank': 1.25}
    """
    return {
        "effective_rank": effective_rank(singular_values),
        "participation_ratio": participation_ratio(singular_values),
        "stable_rank": stable_rank(singular_values),
    }
