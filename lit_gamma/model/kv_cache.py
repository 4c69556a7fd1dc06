"""Keys and values of the tokens so far, so that generation computes each token once."""

from __future__ import annotations

import torch
from torch import Tensor


class LayerCache:
    """The keys and values of one attention layer.

    Args:
        shape: (batch, heads, context_length, d_head).
        dtype: Their dtype.
        device: Where they are.

    Attributes:
        length: Tokens held.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds tokens.

        Args:
            keys: Shape (batch, heads, length, d_head).
            values: Same shape.

        Returns:
            The keys and values of all tokens so far.
        """
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


KVCache = list[LayerCache]
"""One :class:`LayerCache` per block."""
