"""What cos² and the participation ratio of every matrix cost at least, in plain PyTorch.

    python benchmarks/products.py

The products of the default experiment's matrices (of the smaller side; of one that has more neurons
than inputs two, plain and of normalized rows) and the sums of their squares. One thread, batched by
shape, with other memory used between the takes, as training does.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lit_gamma import Transformer, TransformerConfig, neurons

TAKES = 300


def main() -> None:
    torch.set_num_threads(1)
    shape = TransformerConfig(110, 9, 2, 1, 128, gate="none", position="learned")
    shapes = Counter(tuple(matrix.weight.shape) for matrix in neurons(Transformer(shape)))
    stacks = [torch.randn(n, *of) for of, n in shapes.items()]
    alone = milliseconds(lambda: [products(w) for w in stacks])
    squared = milliseconds(lambda: [squares_of_products(w) for w in stacks])
    print(f"products {alone:.2f} ms, with their squares {squared:.2f} ms")


def products(weights: Tensor) -> tuple[Tensor, ...]:
    """Of matrices, (b, n_neurons, d_in)."""
    n_neurons, d_in = weights.shape[1:]
    if n_neurons <= d_in:
        return (weights @ weights.mT,)
    rows = normalize(weights, dim=2)
    return weights.mT @ weights, rows.mT @ rows


def squares_of_products(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of squares: of the product, and of that of normalized rows; each (b,)."""
    plain, *normalized = products(weights)
    scale = plain.diagonal(dim1=1, dim2=2).rsqrt()
    cosines = normalized[0] if normalized else plain * scale[:, :, None] * scale[:, None]
    return plain.square().sum((1, 2)), cosines.square().sum((1, 2))


def milliseconds(measure: Callable[[], object]) -> float:
    """The median of many takes."""
    other, taken = torch.randn(10_000_000), []
    for _ in range(TAKES):
        other.add_(1)
        start = time.perf_counter()
        measure()
        taken.append(time.perf_counter() - start)
    return 1e3 * float(np.median(taken))


if __name__ == "__main__":
    main()
