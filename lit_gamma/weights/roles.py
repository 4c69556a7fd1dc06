"""Which role a weight plays, told by its name, its neighbours and its class.

The names are those of PyTorch, of the model families in Hugging Face ``transformers``, of timm, and
of :class:`lit_gamma.Transformer`. A fused projection has several roles, in the order of its rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

ROLES = (
    "embedding",
    "position",
    "query",
    "key",
    "value",
    "attention_gate",
    "attention_out",
    "router",
    "mlp_up",
    "mlp_gate",
    "mlp_down",
    "lm_head",
    "other",
)
"""Every role a weight matrix can play, in the order of the forward pass.

``router`` chooses the experts of a mixture, ``lm_head`` is the output head (the unembedding, or a
classifier), ``other`` is what is not recognised.
"""

QKV = ("query", "key", "value")


def _by_name(names: dict[str | tuple[str, ...], str]) -> dict[str, tuple[str, ...]]:
    return {
        name: (roles,) if isinstance(roles, str) else roles
        for roles, row in names.items()
        for name in row.split()
    }


_ANYWHERE = _by_name(
    {
        "query": "q_proj q_proj_weight query_proj to_q wq q_lin",
        "key": "k_proj k_proj_weight key_proj to_k wk k_lin",
        "value": "v_proj v_proj_weight value_proj to_v wv v_lin",
        QKV: "c_attn qkv qkv_proj wqkv query_key_value w_pack in_proj_weight",
        "attention_out": "o_proj",
        "mlp_up": "up_proj c_fc dense_h_to_4h",
        ("mlp_gate", "mlp_up"): "gate_up_proj",
        "mlp_down": "down_proj dense_4h_to_h",
        "lm_head": "lm_head embed_out unembedding unembed head classifier score",
        "embedding": "embedding patch_embedding cls_token class_token mask_token register_tokens",
        "position": "position pos_embed pos_embedding position_embedding position_embeddings",
    }
)
_IN_ATTENTION = _by_name(
    {
        "query": "q query q_attn",
        "key": "k key",
        "value": "v value",
        QKV: "in_proj",
        "attention_gate": "gate gate_proj g_proj",
        "attention_out": "o out out_proj out_lin to_out wo c_proj dense proj",
    }
)
_IN_MLP = _by_name(
    {
        "mlp_up": "up fc1 fc_in linear1 lin1 wi wi_1 w1 w3",
        "mlp_gate": "gate gate_proj wi_0",
        "mlp_down": "down fc2 fc_out linear2 lin2 wo w2 c_proj",
    }
)
_MLP_NAMES = ("ffn", "ff", "feed_forward", "feedforward", "experts", "densereludense")
_BERT = {"intermediate": ("mlp_up",), "output": ("mlp_down",)}


def roles_of(names: Sequence[str], chain: Sequence[nn.Module]) -> tuple[str, ...]:
    """Tells the role of a weight, or the roles in a fused one.

    Args:
        names: The components of its path, without a final ``weight``.
        chain: The modules on the way to it, from the root to the owner.

    Returns:
        One of :data:`ROLES`, or several for a fused projection.
    """
    *above, leaf = [name.lower() for name in names] or [""]
    owner = chain[-1]
    parent = chain[-2] if len(chain) > 1 else owner
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        where = any(word in leaf for word in ("pos", "wpe", "relative"))
        return ("position",) if where else ("embedding",)
    if _is_output_embedding(owner, chain):
        return ("lm_head",)
    if _is_router(owner, parent, leaf):
        return ("router",)
    context = _context(above, parent)
    if leaf.isdigit() and isinstance(parent, nn.Sequential):
        return _numbered(above, owner, parent, context)
    if context == "attention":
        if leaf == "c_attn" and hasattr(parent, "q_attn"):  # GPT-2's cross-attention
            return ("key", "value")
        return _IN_ATTENTION.get(leaf) or _ANYWHERE.get(leaf, ("other",))
    if leaf == "w1" and hasattr(parent, "w3"):  # Llama's own names for SwiGLU
        return ("mlp_gate",)
    if context == "mlp" and leaf in _IN_MLP:
        return _IN_MLP[leaf]
    if leaf == "dense" and above and above[-1] in _BERT:
        return _BERT[above[-1]]
    if any(name.startswith("patch_embed") for name in [*above, leaf]):
        return ("embedding",)
    if leaf == "gate_proj":
        return ("mlp_gate",)
    return _ANYWHERE.get(leaf, ("other",))


def _context(above: Sequence[str], parent: nn.Module) -> str | None:
    """Whether the nearest telling module around a weight is an attention or an MLP."""
    for name in reversed(above[-3:]):
        if "attn" in name or "attention" in name:
            return "attention"
        if name in _MLP_NAMES or "mlp" in name:
            return "mlp"
    # OPT and torch.nn.TransformerEncoderLayer keep their MLP beside the attention.
    beside = (name.lower() for name, _ in parent.named_children())
    return "mlp" if any("attn" in name or "attention" in name for name in beside) else None


def _numbered(
    above: Sequence[str], owner: nn.Module, parent: nn.Module, context: str | None
) -> tuple[str, ...]:
    """The role of a numbered layer, as in ``self.mlp = nn.Sequential(Linear, GELU, Linear)``."""
    linears = [module for module in parent.children() if isinstance(module, nn.Linear)]
    if context == "mlp" and len(linears) == 2:
        return ("mlp_up",) if owner is linears[0] else ("mlp_down",)
    return _IN_ATTENTION.get(above[-1], ("other",)) if context == "attention" else ("other",)


def _is_router(owner: nn.Module, parent: nn.Module, leaf: str) -> bool:
    chooses = leaf in ("gate", "router") and hasattr(parent, "experts")
    return chooses or "router" in type(owner).__name__.lower()


def _is_output_embedding(owner: nn.Module, chain: Sequence[nn.Module]) -> bool:
    """Whether a Hugging Face model on the way names ``owner`` as its unembedding."""
    return any(
        callable(getattr(module, "get_output_embeddings", None))
        and module.get_output_embeddings() is owner  # type: ignore[operator]
        for module in chain[:-1]
    )
