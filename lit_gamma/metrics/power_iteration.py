"""The spectral norm of a matrix that changes slowly, from one product with a few vectors a step.

Block power iteration (subspace iteration) with a warm start: an orthonormal block V, of a few rows,
follows the leading right singular vectors of W while training changes W. Every step takes Y = VWᵀW,
reads the Rayleigh-Ritz values of the block and their residual, and goes on with V = orth(Y) (Saad,
"Numerical Methods for Large Eigenvalue Problems", 2011, sections 4.3 and 5.1, where vectors are
columns). Y is a sum over the rows of W, so these may lie on several devices.
"""

import torch
from torch import Tensor

from lit_gamma.metrics._matrix import as_float
from lit_gamma.metrics.rank import smaller_gram

_ROUNDING = 1e-6  # Relative, of a float32 sum over rows.


def leading_block(weight: Tensor, size: int) -> Tensor:
    """Computes the exact block to start from; waits for the device if that is a GPU.

    Args:
        weight: Matrices of shape (..., n, d).
        size: Most vectors of the block.

    Returns:
        Orthonormal rows, shape (..., min(size, d), d), spanning the leading right singular vectors;
        float32 (float64 for float64 weights). Where W is not finite, any orthonormal block.

    Example:
        >>> leading_block(torch.diag(torch.tensor([1.0, 3.0, 2.0])), size=1).abs().round()
        tensor([[0., 1., 0.]])
    """
    gram = smaller_gram(weight)
    vectors = torch.linalg.eigh(torch.where(gram.isfinite(), gram, 0)).eigenvectors.mT.flip(-2)
    if weight.shape[-2] < weight.shape[-1]:
        vectors = vectors @ torch.where(weight.isfinite(), weight, 0).to(torch.float64)
    size = min(size, weight.shape[-1])
    missing = torch.eye(size, weight.shape[-1], dtype=torch.float64, device=weight.device)
    missing = missing.expand(*weight.shape[:-2], -1, -1)
    vectors = torch.cat((vectors[..., :size, :], missing), dim=-2)
    return next_block(vectors)[..., :size, :].to(as_float(weight).dtype)


def gram_product(weight: Tensor, block: Tensor) -> Tensor:
    """Computes VWᵀW for rows W; products of several parts of the rows add up.

    Args:
        weight: Shape (..., n, d).
        block: V, shape (..., b, d).

    Returns:
        Y, shape (..., b, d).

    Example:
        >>> gram_product(2 * torch.eye(2), torch.tensor([[1.0, 0.0]]))
        tensor([[4., 0.]])
    """
    rows = as_float(weight)
    return (block @ rows.mT) @ rows


def ritz_matrix(block: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """Computes VWᵀWVᵀ and the norm of the residual Y - (VWᵀWVᵀ) V.

    Args:
        block: V, shape (..., b, d), orthonormal.
        product: Y = VWᵀW, shape (..., b, d).

    Returns:
        The matrix, shape (..., b, b), symmetric but for rounding, and the Frobenius norm of the
        residual, (...).

    Example:
        >>> ritz_matrix(torch.tensor([[1.0, 0.0]]), torch.tensor([[4.0, 0.0]]))
        (tensor([[4.]]), tensor(0.))
    """
    projected = product @ block.mT
    residual = torch.linalg.vector_norm(product - projected @ block, dim=(-2, -1))
    return projected, residual


def spectral_norm_bounds(ritz: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Computes an estimate of σ₁ = ‖W‖₂ and its certificate: estimate ≤ σ₁ ≤ estimate + error.

    With θ the largest Ritz value and r the residual, θ ≤ σ₁² always; and σ₁² ≤ θ + r as long as
    no direction orthogonal to the block exceeds θ itself, for the whole matrix then is
    [[ritz, R], [Rᵀ, C]] with ‖R‖ ≤ r and ‖C‖ ≤ θ (Weyl's inequality). The error includes float32
    rounding. Waits for the device if that is a GPU.

    Args:
        ritz: Shape (..., b, b), from `ritz_matrix`.
        residual: Shape (...).

    Returns:
        Estimate and error, shape (...), in units of the weights; NaN where ritz is not finite.

    Example:
        >>> estimate, error = spectral_norm_bounds(torch.tensor([[4.0]]), torch.tensor(0.0))
        >>> round(estimate.item(), 3), error.item() < 1e-5
        (2.0, True)
    """
    is_finite = ritz.isfinite().all(-1).all(-1)
    symmetric = (ritz + ritz.mT) / 2
    values = torch.linalg.eigvalsh(torch.where(is_finite[..., None, None], symmetric, 0))
    largest = torch.where(is_finite, values[..., -1].clamp(min=0), torch.nan)
    estimate = largest.sqrt() * (1 - _ROUNDING)
    return estimate, (largest + residual).sqrt() * (1 + _ROUNDING) - estimate


def next_block(product: Tensor) -> Tensor:
    """Orthonormalizes Y = VWᵀW to the next step's block, without waiting for the device.

    Rows that vanish, where W has a lower rank than the block, still give an orthonormal block.

    Args:
        product: Shape (..., b, d).

    Returns:
        Shape (..., b, d).

    Example:
        >>> next_block(torch.tensor([[3.0, 0.0], [1.0, 2.0]])).abs().round().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    scale = product.abs().amax((-2, -1), keepdim=True)
    smallest = torch.finfo(product.dtype).tiny
    block: Tensor = torch.linalg.qr((product / scale.clamp(min=smallest)).mT).Q.mT
    return block
