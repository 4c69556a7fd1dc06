"""Spectra of products AᵀB, from the side that the factors share, and what random ones read.

Attention's circuits are such products: W_Qᵀ W_K and W_O W_V of a head, d_model × d_model matrices
of rank d_head, of which nothing larger than d_head × d_head is formed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lit_gamma.metrics.rank import ranks, singular_values_of_gram

_DRAWN_ROWS = 4096
"""Rows of all factors that are drawn for a null: the more, the narrower each is."""

_AT_LEAST = 16
"""Products that are drawn in any case."""


def singular_values_of_product(left: Tensor, right: Tensor) -> Tensor:
    """Computes the singular values of AᵀB from AAᵀ and BBᵀ.

    Their squares are the eigenvalues of AAᵀ BBᵀ; with AAᵀ = HHᵀ these are those of the symmetric
    Hᵀ BBᵀ H. As in :func:`~lit_gamma.metrics.smaller_gram`, what is below 3e-8 of the largest is
    rounding noise. Products that are not finite read NaN. Waits for the device if that is a GPU.

    Args:
        left: AAᵀ of factors A of shape (..., k, d), float64, shape (..., k, k).
        right: BBᵀ of factors B of shape (..., k, e), float64, shape (..., k, k).

    Returns:
        Shape (..., k), descending, float64; the rest of the min(d, e) are zero.

    Example:
        >>> left, right = torch.tensor([[4.0]]), torch.tensor([[9.0]])  # A = [[2]], B = [[3]]
        >>> singular_values_of_product(left, right)
        tensor([6.])
    """
    finite = left.isfinite().all(-1).all(-1)[..., None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, left, 0))
    half = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    return singular_values_of_gram(torch.where(finite, half.mT @ right @ half, torch.nan))


@cache
def null_product_ranks(k: int, d: int, e: int) -> Mapping[str, float]:
    """Mean ranks of AᵀB, of independent Gaussian factors A (k, d) and B (k, e), by simulation.

    A Gaussian factor is LQ with orthonormal rows of Q and a trapezoid L of independent entries:
    Gaussian below the diagonal and χ with d, d - 1, ... degrees of freedom on it (Bartlett, Proc.
    R. Soc. Edinburgh 53, 1933), so LᵀL' has the ranks. Products of 4096 rows in all are drawn, and
    16 at least, from a fixed seed. For k up to 128 the standard error is at most 0.1 % of the
    effective rank, 0.5 % of the participation ratio and 0.8 % of the stable rank.

    Args:
        k: Rows of both factors.
        d: Columns of A.
        e: Columns of B.

    Returns:
        ``effective_rank``, ``participation_ratio`` and ``stable_rank``.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> {name: round(x, 1) for name, x in null_product_ranks(64, 768, 768).items()}
        {'effective_rank': 62.6, 'participation_ratio': 54.7, 'stable_rank': 32.5}
    """
    if min(k, d, e) < 1:
        raise ValueError(f"sizes must be positive, got {(k, d, e)}")
    rng, n = np.random.default_rng(0), max(_AT_LEAST, math.ceil(_DRAWN_ROWS / k))
    products = _trapezoids(rng, n, k, d).swapaxes(1, 2) @ _trapezoids(rng, n, k, e)
    s = np.linalg.svd(products, compute_uv=False)
    return {name: each.mean().item() for name, each in ranks(torch.from_numpy(s)).items()}


def _trapezoids(rng: np.random.Generator, n: int, k: int, d: int) -> npt.NDArray[np.float64]:
    """Draws n times the L of a Gaussian (k, d), shape (n, k, min(k, d))."""
    width = min(k, d)
    drawn = np.tril(rng.standard_normal((n, k, width)), -1)
    diagonal = np.arange(width)
    drawn[:, diagonal, diagonal] = np.sqrt(rng.chisquare(d - diagonal, (n, width)))
    return drawn
