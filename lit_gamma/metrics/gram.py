"""What one product of a matrix with itself tells of it, without eigenvalues or all pairs in memory.

The mean squared cosine is a sum over the squares of ŴŴᵀ (Ŵ is W with rows of length 1), and the
participation ratio is ‖W‖_F⁴ / ‖WWᵀ‖_F². Both sums are the same over ŴᵀŴ and WᵀW, so the smaller
side serves; that of the columns adds up over parts of the rows, which may lie on several devices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_ROWS_AT_ONCE = 4096
_HALVED_ABOVE = 128


class GramSums(NamedTuple):
    """Sums over the Gram matrices of matrices with singular values s; shape (...) each.

    Attributes:
        cosines: Σ cos over the ordered pairs of distinct rows that are not zero.
        squared_cosines: Σ cos² over them.
        concentration: Σ s⁴ / (Σ s²)², 1 over the participation ratio; NaN for a zero matrix.
        product: YWWᵀ or YWᵀW for the block Y that was given, shape (..., b, side).
    """

    cosines: Tensor
    squared_cosines: Tensor
    concentration: Tensor
    product: Tensor


class ColumnGrams(NamedTuple):
    """Sums over the rows of W; those of several parts of the rows add up.

    Attributes:
        plain: WᵀW, shape (..., d, d).
        of_directions: ŴᵀŴ, same shape.
        directions: Sum of the rows of Ŵ, shape (..., d).
    """

    plain: Tensor
    of_directions: Tensor
    directions: Tensor


def inverse_norms(norms: Tensor) -> Tensor:
    """Computes 1 / ‖wᵢ‖, 0 for zero rows, which have no direction; NaN stays.

    Example:
        >>> inverse_norms(torch.tensor([2.0, 0.0]))
        tensor([0.5000, 0.0000])
    """
    return torch.where(norms == 0, 0, norms.reciprocal())


def sums_by_rows(weight: Tensor, norms: Tensor, block: Tensor) -> GramSums:
    """Sums over ŴŴᵀ and WWᵀ, from the one product ŴŴᵀ: for matrices with no more rows than columns.

    Args:
        weight: W, float32 or float64, shape (..., n, d).
        norms: ‖wᵢ‖ of its rows, shape (..., n).
        block: Y, shape (..., b, n).

    Example:
        >>> weight = torch.tensor([[1.0, 0.0], [3.0, 3.0]])
        >>> sums = sums_by_rows(weight, weight.norm(dim=1), torch.tensor([[1.0, 0.0]]))
        >>> [round(x, 3) for x in (sums.squared_cosines.item(), 1 / sums.concentration.item())]
        [1.0, 1.052]
    """
    units = weight * inverse_norms(norms).unsqueeze(-1)
    cosines = _product_with_itself(units)
    cosines.diagonal(dim1=-2, dim2=-1).zero_()
    one = torch.ones_like(norms).unsqueeze(-2)
    weighted = block * norms.unsqueeze(-2)
    through = torch.cat((one, weighted), dim=-2) @ cosines
    squared_norms = norms.square()
    energy = squared_norms / squared_norms.sum(-1, keepdim=True)
    squares = torch.cat((one, energy.unsqueeze(-2)), dim=-2) @ cosines.square_()
    return GramSums(
        cosines=through[..., 0, :].sum(-1),
        squared_cosines=squares[..., 0, :].sum(-1),
        concentration=(energy * (squares[..., 1, :] + energy)).sum(-1),
        product=(through[..., 1:, :] + weighted) * norms.unsqueeze(-2),
    )


def column_grams(weight: Tensor, norms: Tensor) -> ColumnGrams:
    """Computes WᵀW and ŴᵀŴ, of a part of the rows or all, which may be none.

    Args:
        weight: W, float32 or float64, shape (..., n, d).
        norms: ‖wᵢ‖ of its rows, shape (..., n).

    Example:
        >>> grams = column_grams(torch.tensor([[2.0, 0.0]]), torch.tensor([2.0]))
        >>> grams.plain.tolist(), grams.of_directions.tolist(), grams.directions.tolist()
        ([[4.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]], [1.0, 0.0])
    """
    square = (*weight.shape[:-2], weight.shape[-1], weight.shape[-1])
    of_directions, directions = weight.new_zeros(square), weight.new_zeros(square[:-1])
    inverse = inverse_norms(norms).unsqueeze(-1)
    # In parts, so that a vocabulary's table is not copied.
    for start in range(0, weight.shape[-2], _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        units = weight[..., part, :] * inverse[..., part, :]
        of_directions += _product_with_itself(units.mT)
        directions += units.sum(-2)
    return ColumnGrams(_product_with_itself(weight.mT), of_directions, directions)


def sums_by_columns(grams: ColumnGrams, n_rows: Tensor, block: Tensor) -> GramSums:
    """Sums over ŴŴᵀ and WWᵀ from the Gram matrices of the columns, added up over all rows.

    Args:
        grams: See :func:`column_grams`.
        n_rows: How many rows are not zero, floating point, shape (...).
        block: Y, shape (..., b, d).

    Example:
        >>> weight, block = torch.tensor([[1.0], [3.0], [-3.0]]), torch.ones(1, 1)
        >>> grams = column_grams(weight, weight.norm(dim=1))
        >>> sums = sums_by_columns(grams, torch.tensor(3.0), block)
        >>> sums.cosines.item(), sums.squared_cosines.item(), sums.product.item()
        (-2.0, 6.0, 19.0)
    """
    product = block @ grams.plain
    trace = grams.plain.diagonal(dim1=-2, dim2=-1).sum(-1)
    shares = grams.plain / trace[..., None, None]  # Squares of it cannot underflow.
    return GramSums(
        cosines=grams.directions.square().sum(-1) - n_rows,
        squared_cosines=_squared(grams.of_directions) - n_rows,
        concentration=_squared(shares),
        product=product,
    )


def _product_with_itself(rows: Tensor) -> Tensor:
    """Computes XXᵀ. On a CPU half of it, mirrored, saves up to 40 %: torch has no syrk."""
    n = rows.shape[-2]
    if rows.device.type != "cpu" or n <= _HALVED_ABOVE:
        return rows @ rows.mT
    product = rows.new_empty((*rows.shape[:-1], n))
    for matrix, out in zip(rows.reshape(-1, *rows.shape[-2:]), product.view(-1, n, n), strict=True):
        _fill(out, matrix)
    return product


def _fill(out: Tensor, rows: Tensor) -> None:
    n = len(rows)
    if n <= _HALVED_ABOVE:
        torch.mm(rows, rows.T, out=out)
        return
    half = n // 2
    _fill(out[:half, :half], rows[:half])
    _fill(out[half:, half:], rows[half:])
    torch.mm(rows[:half], rows[half:].T, out=out[:half, half:])
    out[half:, :half] = out[:half, half:].T


def _squared(matrices: Tensor) -> Tensor:
    """‖G‖_F², row by row: float32 summed one after the other would lose digits."""
    norms: Tensor = torch.linalg.vector_norm(matrices, dim=-1)
    return norms.square().sum(-1)
