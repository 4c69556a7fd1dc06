"""Rotary position embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BASE = 10000.0
"""Of the geometric series of frequencies."""

Rotation = tuple[Tensor, Tensor]
"""Cosines and signed sines, as ``rotate`` takes them: each of shape (length, d_head)."""


class Rope(nn.Module):
    """Table of rotary position embeddings (arXiv 2104.09864)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, d_head: int, context_length: int) -> None:
        super().__init__()
        frequency = BASE ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
        angle = torch.outer(torch.arange(context_length, dtype=torch.float64), frequency)
        cos, sin = angle.cos().float(), angle.sin().float()
        self.register_buffer("cos", torch.cat((cos, cos), dim=-1), persistent=False)
        self.register_buffer("sin", torch.cat((-sin, sin), dim=-1), persistent=False)

    def forward(self, end: int, start: int = 0) -> Rotation:
        """Returns (cos, sin) of the positions, each of shape (end - start, d_head)."""
        return self.cos[start:end], self.sin[start:end]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates channel i together with channel i + d_head/2 by the position's angle.

    Args:
        x: Queries or keys, shape (batch, heads, length, d_head).
        cos: Cosines of channel i's angle, the same in both halves; shape (length, d_head).
        sin: Its sines, negative in the first half; shape (length, d_head).

    Returns:
        Same shape and dtype as ``x``.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
