"""The transformer that is a Llama of ``transformers`` too: its config and its weights' names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lit_gamma.errors import InputError
from lit_gamma.model.rope import BASE
from lit_gamma.model.transformer import TransformerConfig

_SHAPE: dict[str, Any] = {
    "position": "rope",
    "mlp": "swiglu",
    "gate": "none",
    "norm": "rmsnorm",
    "norm_position": "pre",
}
"""What every Llama has."""

_NAMES = {
    "embedding": "model.embed_tokens",
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "norm": "model.norm",
    "lm_head": "lm_head",
}
"""Modules of :class:`~lit_gamma.Transformer`, those of a block without its number, and Llama's."""


def is_llama(config: TransformerConfig) -> bool:
    """Whether a Llama computes the same; it wants a d_model that its heads divide."""
    alike = all(getattr(config, name) == value for name, value in _SHAPE.items())
    return alike and config.d_model % config.n_heads == 0


def llama_name(name: str) -> str:
    """Llama's name of a weight.

    >>> llama_name("blocks.3.attention.query.weight")
    'model.layers.3.self_attn.q_proj.weight'
    """
    match = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.(\w+)", name)
    assert match is not None
    number, module, leaf = match.groups()
    block = "" if number is None else f"model.layers.{number}."
    return f"{block}{_NAMES[module]}.{leaf}"


def to_llama(config: TransformerConfig) -> dict[str, Any]:
    """The ``config.json`` of the Llama that computes the same, its tokens left out."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_heads,
        "head_dim": config.head_width,
        "hidden_size": config.d_model,
        "intermediate_size": config.hidden_width,
        "hidden_act": "silu",
        "rms_norm_eps": float(config.norm_eps),
        "rope_parameters": {"rope_type": "default", "rope_theta": BASE},
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "tie_word_embeddings": config.tie_embeddings,
    }


def from_llama(llama: Mapping[str, Any]) -> TransformerConfig:
    """The transformer that computes the same as a Llama.

    Args:
        llama: What its ``config.json`` holds, of any version of ``transformers``.

    Raises:
        InputError: The message names what :class:`~lit_gamma.Transformer` does not have.
        KeyError: A size is missing.
    """
    rope = llama.get("rope_parameters") or llama.get("rope_scaling") or {}
    n_heads, bias = llama["num_attention_heads"], llama.get("attention_bias", False)
    needed = {
        "hidden_act": (llama.get("hidden_act", "silu"), "silu"),
        "num_key_value_heads": (llama.get("num_key_value_heads") or n_heads, n_heads),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "rope_theta": (rope.get("rope_theta", llama.get("rope_theta", BASE)), BASE),
        "mlp_bias": (llama.get("mlp_bias", False), bias),
    }
    if other := [f"{n} {has}, not {ours}" for n, (has, ours) in needed.items() if has != ours]:
        raise InputError(f"lit_gamma's transformer has no such Llama: {', '.join(other)}")
    return TransformerConfig(
        vocab_size=llama["vocab_size"],
        context_length=llama.get("max_position_embeddings", 2048),
        n_layers=llama["num_hidden_layers"],
        n_heads=n_heads,
        d_model=llama["hidden_size"],
        d_ff=llama["intermediate_size"],
        norm_eps=llama.get("rms_norm_eps", 1e-6),
        tie_embeddings=llama.get("tie_word_embeddings", False),
        bias=bias,
        d_head=llama.get("head_dim"),
        **_SHAPE,
    )
