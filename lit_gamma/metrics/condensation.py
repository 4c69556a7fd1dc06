"""Condensation: how far the neurons of a layer align in direction.

Neurons are the rows of a weight matrix. Everything but `cosine_matrix` takes the matrix that
`cosine_matrix` returns, so that several measures of one layer share it, and none of it waits for
the device. Condensation and its cosine measure: Zhou et al., "Towards understanding the
condensation of neural networks at initial training", NeurIPS 2022.
"""

import torch
from torch import Tensor

from lit_gamma.metrics._matrix import as_float, divide_by_largest, exact_products

_MAX_GROUPS = 8
_SMALLEST_ENERGY = 1e-6  # of a unit vector: below it, only float32 rounding is left


def cosine_matrix(weight: Tensor) -> Tensor:
    """Computes the cosine similarity D(i, j) = wᵢ·wⱼ / (‖wᵢ‖‖wⱼ‖) between all rows.

    A zero row has no direction: its row and column are 0, its diagonal entry included, so that the
    trace is exactly the number of non-zero rows. A row that is not finite reads NaN. Memory is
    quadratic in n: a vocabulary of 50,000 rows takes 10 GB.

    Args:
        weight: Matrices of shape (..., n, d), rows are neurons; strided views are fine.

    Returns:
        Shape (..., n, n), values in [-1, 1], float32 (float64 for float64 weights).

    Raises:
        ValueError: If `weight` is empty or has fewer than two dimensions.

    Example:
        >>> cosine_matrix(torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
        tensor([[1.0000, 0.7071],
                [0.7071, 1.0000]])
    """
    rows, _, is_neuron = divide_by_largest(as_float(weight), -1)
    squared_norms = (rows * rows).sum(-1, keepdim=True)
    units = rows / torch.where(squared_norms == 0, 1, squared_norms).sqrt()
    with exact_products(weight.device):
        cosines = (units @ units.mT).clamp_(-1, 1)
    cosines.diagonal(dim1=-2, dim2=-1).copy_(is_neuron.squeeze(-1))
    return cosines


def _mean_over_pairs(values: Tensor, cosines: Tensor) -> Tensor:
    """Averages values (..., n, n) over the ordered pairs i ≠ j of the non-zero rows."""
    n_neurons = cosines.diagonal(dim1=-2, dim2=-1).sum(-1)
    off_diagonal = values.sum((-2, -1)) - values.diagonal(dim1=-2, dim2=-1).sum(-1)
    return mean_of_pairs(off_diagonal, n_neurons)


def mean_of_pairs(total: Tensor, n_neurons: Tensor) -> Tensor:
    """Divides sums over the ordered pairs of distinct neurons by their number, n (n - 1).

    Args:
        total: Shape (...).
        n_neurons: Non-zero rows, same shape.

    Returns:
        Shape (...); NaN where fewer than two rows are non-zero, as no pair exists: a sum that is
        0 but for rounding over 0 would read NaN on one machine and infinity on another.

    Example:
        >>> mean_of_pairs(torch.tensor(3.0), torch.tensor(3))
        tensor(0.5000)
    """
    return torch.where(n_neurons > 1, total / (n_neurons * (n_neurons - 1)), torch.nan)


def mean_cosine(cosines: Tensor) -> Tensor:
    """Averages the cosine over pairs of distinct neurons; 0 for random rows.

    It does not detect condensation alone: neurons align with +v and -v, and the signs cancel.

    Args:
        cosines: Shape (..., n, n), from `cosine_matrix`.

    Returns:
        Shape (...), in [-1, 1]; NaN where fewer than two rows are non-zero, as no pair exists.

    Example:
        >>> mean_cosine(cosine_matrix(torch.tensor([[1.0], [1.0], [-1.0]])))
        tensor(-0.3333)
    """
    return _mean_over_pairs(cosines, cosines)


def mean_squared_cosine(cosines: Tensor) -> Tensor:
    """Averages the squared cosine over pairs of distinct neurons; 1/d for random rows.

    Args:
        cosines: Shape (..., n, n), from `cosine_matrix`.

    Returns:
        Shape (...), in [0, 1]; NaN where fewer than two rows are non-zero, as no pair exists.

    Example:
        >>> mean_squared_cosine(cosine_matrix(torch.eye(3)))
        tensor(0.)
    """
    return _mean_over_pairs(cosines.square(), cosines)


def mean_absolute_cosine(cosines: Tensor) -> Tensor:
    """Averages the absolute cosine over pairs of distinct neurons; √(2/(πd)) for random rows.

    Args:
        cosines: Shape (..., n, n), from `cosine_matrix`.

    Returns:
        Shape (...), in [0, 1]; NaN where fewer than two rows are non-zero, as no pair exists.

    Example:
        >>> mean_absolute_cosine(cosine_matrix(torch.tensor([[1.0], [1.0], [-1.0]])))
        tensor(1.)
    """
    return _mean_over_pairs(cosines.abs(), cosines)


def aligned_fraction(cosines: Tensor, threshold: float = 0.9) -> Tensor:
    """Computes the fraction of pairs of distinct neurons with ``|cos|`` > threshold.

    Args:
        cosines: Shape (..., n, n), from `cosine_matrix`.
        threshold: Cosine above which, in absolute value, a pair counts as aligned.

    Returns:
        Shape (...), in [0, 1]; NaN where fewer than two rows are non-zero, as no pair exists.

    Example:
        >>> aligned_fraction(cosine_matrix(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])))
        tensor(0.3333)
    """
    # In place, the zeros and ones keep the dtype and the memory of the cosines.
    return _mean_over_pairs(cosines.abs().gt_(threshold), cosines)


def opposed_fraction(cosines: Tensor, threshold: float = 0.9) -> Tensor:
    """Computes the fraction of pairs of distinct neurons with cos < -threshold.

    `aligned_fraction` minus this is the fraction that points the same way.

    Args:
        cosines: Shape (..., n, n), from `cosine_matrix`.
        threshold: A pair counts as opposed below minus this cosine.

    Returns:
        Shape (...), in [0, 1]; NaN where fewer than two rows are non-zero, as no pair exists.

    Example:
        >>> opposed_fraction(cosine_matrix(torch.tensor([[1.0], [1.0], [-1.0]])))
        tensor(0.6667)
    """
    return _mean_over_pairs(cosines.neg().gt_(threshold), cosines)


def sorted_by_alignment(cosines: Tensor) -> Tensor:
    """Orders neurons so that those of one direction become neighbours, for heat maps.

    Up to 8 groups are found by pivoted Cholesky decomposition (Harbrecht, Peters, Schneider, "On
    the low-rank approximation by the pivoted Cholesky decomposition", 2012): the neuron that
    explains most of what is left becomes the next pivot and is projected out. A neuron joins the
    pivot on which it loads most in absolute value. Unlike leading eigenvectors, pivots also tell
    apart groups of equal size and groups at an acute angle. Groups follow each other in the order
    of their pivots, and in a group the neurons go from the pivot's direction to its opposite;
    zero rows come last.

    Args:
        cosines: Shape (..., n, n), from `cosine_matrix`.

    Returns:
        Permutations of shape (..., n), int64; for one matrix, show ``cosines[order][:, order]``.

    Example:
        >>> sorted_by_alignment(cosine_matrix(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])))
        tensor([0, 2, 1])
    """
    loadings = _pivot_loadings(cosines)
    group = loadings.abs().argmax(-1, keepdim=True)
    loading = loadings.take_along_dim(group, -1).squeeze(-1)
    is_zero_row = cosines.diagonal(dim1=-2, dim2=-1) == 0
    group = group.squeeze(-1).masked_fill(is_zero_row, loadings.shape[-1])
    return torch.argsort(3 * group - loading, dim=-1, stable=True)  # loadings lie in [-1, 1]


def _pivot_loadings(cosines: Tensor) -> Tensor:
    """Returns the leading columns (..., n, groups) of the pivoted Cholesky factor."""
    residual, columns = cosines, []
    for _ in range(min(_MAX_GROUPS, cosines.shape[-1])):
        energy = residual.diagonal(dim1=-2, dim2=-1).clamp(min=_SMALLEST_ENERGY)
        pivot = (residual.square().sum(-1) / energy).argmax(-1, keepdim=True)
        column = residual.take_along_dim(pivot.unsqueeze(-1), -2).squeeze(-2)
        columns.append(column / energy.take_along_dim(pivot, -1).sqrt())
        residual = residual - columns[-1].unsqueeze(-1) * columns[-1].unsqueeze(-2)
    return torch.stack(columns, -1)
