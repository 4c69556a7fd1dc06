"""Where attention goes: its mass on the first token, its entropy, and what uniform attention reads.

Attention weights have the shape (..., n_queries, n_keys) and rows that add up to 1. A row that sees
no key is NaN and does not count; neither does the first query, which under causal attention sees
nothing but the first token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_logits(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Computes q kᵀ · scale, as ``torch.nn.functional.scaled_dot_product_attention`` does.

    Args:
        query: Shape (..., heads, n_queries, d_head).
        key: Shape (..., heads or fewer, n_keys, d_head).
        attn_mask: True where a query may attend, or numbers to add to its logits; broadcast to
            (..., heads, n_queries, n_keys).
        is_causal: Query i sees the keys 0 .. i.
        scale: 1/√d_head if None.
        enable_gqa: Consecutive query heads share a key head.

    Returns:
        Shape (..., heads, n_queries, n_keys), at least float32, autocast or not; -∞ where a query
        may not attend.

    Example:
        >>> ones = torch.ones(1, 2, 4)
        >>> attention_logits(ones, ones, is_causal=True).tolist()
        [[[2.0, -inf], [2.0, 2.0]]]
    """
    query, key = (x if x.dtype == torch.float64 else x.float() for x in (query, key))
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    with torch.autocast(query.device.type, enabled=False):
        products = query @ key.mT
    logits = products * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    return _masked(logits, attn_mask, is_causal)


def attention_weights(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Computes softmax(q kᵀ · scale), the softmax of :func:`attention_logits`.

    Example:
        >>> zeros = torch.zeros(1, 2, 4)  # All logits are equal.
        >>> attention_weights(zeros, zeros, is_causal=True).tolist()
        [[[1.0, 0.0], [0.5, 0.5]]]
    """
    return attention_logits(query, key, attn_mask, is_causal, scale, enable_gqa).softmax(-1)


def _masked(logits: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    if is_causal:
        visible = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        logits = logits.masked_fill(~visible, -math.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        logits = logits + attn_mask
    return logits


def uniform_attention(weights: Tensor) -> Tensor:
    """Spreads each query's attention evenly over the keys it sees.

    Args:
        weights: Attention weights; a key is seen if its weight is not zero.

    Returns:
        Same shape and dtype: what small initialization starts from, as its logits are near zero.

    Example:
        >>> uniform_attention(torch.tensor([[1.0, 0.0], [0.9, 0.1]])).tolist()
        [[1.0, 0.0], [0.5, 0.5]]
    """
    seen = (weights != 0).to(weights.dtype)
    return seen / seen.sum(-1, keepdim=True) + 0 * weights


def first_token_mass(weights: Tensor) -> Tensor:
    """Computes the mean attention on the first key: the attention sink (arXiv 2505.06708).

    Args:
        weights: Attention weights, shape (..., n_queries, n_keys).

    Returns:
        Shape (...), 0 .. 1; NaN for a single query.

    Example:
        >>> first_token_mass(torch.tensor([[1.0, 0.0], [0.75, 0.25]]))
        tensor(0.7500)
    """
    return weights[..., 1:, 0].nanmean(-1)


def attention_entropy(weights: Tensor) -> Tensor:
    """Computes the mean entropy of attention, -Σ w ln w.

    Args:
        weights: Attention weights, shape (..., n_queries, n_keys).

    Returns:
        Shape (...), nats, 0 .. ln(n_keys); NaN for a single query.

    Example:
        >>> attention_entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))  # ln 2
        tensor(0.6931)
    """
    return -torch.xlogy(weights, weights).sum(-1)[..., 1:].nanmean(-1)
