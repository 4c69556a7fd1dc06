"""What every weight metric does to its input first: check the shape, up-cast, rescale."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Multiplies matrices in full float32, whatever training uses: TF32 keeps three digits.

    Args:
        device: Where the matrices are.

    Example:
        >>> with exact_products(torch.device("cpu")):
        ...     torch.get_float32_matmul_precision()
        'highest'
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def as_float(weight: Tensor) -> Tensor:
    """Returns the weights in float32, or in float64 if they are already.

    Args:
        weight: Matrices of shape (..., n, d), any real dtype.

    Raises:
        ValueError: If there are fewer than two dimensions or the matrices are empty.
    """
    if weight.ndim < 2 or 0 in weight.shape[-2:]:
        raise ValueError(
            f"expected non-empty weight matrices of shape (..., n, d), got {tuple(weight.shape)}"
        )
    return weight if weight.dtype == torch.float64 else weight.to(torch.float32)


def divide_by_largest(values: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Divides by the largest magnitude along `dim`, so that squares cannot underflow.

    Args:
        values: Floating-point values of any shape.
        dim: The dimension over which the largest magnitude is taken; it is kept, of size 1.

    Returns:
        The rescaled values (all-zero slices stay zero), the largest magnitudes, and an indicator
        in the same dtype: 0 where the slice is all zero, 1 elsewhere, NaN where it is not finite.
    """
    largest = values.abs().amax(dim, keepdim=True)
    divisor = torch.where(largest == 0, 1, largest)
    return values / divisor, largest, largest / divisor
