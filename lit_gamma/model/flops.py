"""How much arithmetic a transformer needs, and how much of it a GPU could do."""

from __future__ import annotations

import warnings

import torch
from lightning.fabric.utilities.throughput import get_available_flops

from lit_gamma.model.transformer import Transformer


def flops_per_token(model: Transformer, length: int) -> float:
    """Floating-point operations of forward and backward per token (arXiv 2204.02311, appendix B).

    Six per weight of a matrix product, and 12 · n_layers · n_heads · d_head · length for
    attention; tables that are only looked up do not count, nor does the causal mask halve
    attention.

    Args:
        model: The transformer, its weights whole or sharded.
        length: Tokens per sequence.
    """
    config = model.config
    matrices = [p for p in model.parameters() if p.ndim == 2]
    looked_up = config.context_length * config.d_model if config.position == "learned" else 0
    if not config.tie_embeddings:
        looked_up += config.vocab_size * config.d_model
    weights = sum(p.numel() for p in matrices) - looked_up
    width = config.n_heads * config.head_width
    return 6.0 * weights + 12.0 * config.n_layers * width * length


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Floating-point operations per second that a device can do at most; None if not known.

    Args:
        device: The device.
        precision: Lightning's name, such as ``bf16-mixed``.
    """
    if device.type != "cuda":
        return None
    dtype = torch.float32
    if "16" in precision:
        dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # An unknown GPU is not worth a warning.
        return get_available_flops(device, dtype)
