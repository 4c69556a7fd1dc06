"""A decoder-only transformer: pre- or post-norm, gated attention, RoPE or learned positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_gamma.errors import InputError
from lit_gamma.model.kv_cache import KVCache, LayerCache
from lit_gamma.model.rms_norm import RMSNorm
from lit_gamma.model.rope import Rope, Rotation, rotate

Gate = Literal["elementwise", "headwise", "none"]
Position = Literal["rope", "learned"]
MLP = Literal["gelu", "swiglu"]
Norm = Literal["rmsnorm", "layernorm"]
NormPosition = Literal["pre", "post"]
_CHOICES = {
    "gate": get_args(Gate),
    "position": get_args(Position),
    "mlp": get_args(MLP),
    "norm": get_args(Norm),
    "norm_position": get_args(NormPosition),
}


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a :class:`Transformer`.

    Attributes:
        vocab_size: Number of tokens.
        context_length: Longest sequence, in tokens.
        n_layers: Number of blocks.
        n_heads: Attention heads per block; must divide d_model if d_head is None.
        d_model: Width of the residual stream.
        d_ff: Width of the MLP's hidden layer; 4 * d_model if None.
        norm_eps: ε of the norms. Small weights make small activations, which a larger ε (1e-5)
            keeps from being normalized (arXiv 2606.17945).
        gate: Gated attention (arXiv 2505.06708): one sigmoid gate per channel (``elementwise``),
            per head (``headwise``), or ``none``.
        position: Rotary embeddings (``rope``) or a ``learned`` table added to the input.
        mlp: ``gelu`` (two matrices) or ``swiglu`` (three).
        tie_embeddings: Use the embedding table as the output projection.
        bias: Give every linear layer a bias.
        d_head: Channels per attention head; d_model / n_heads if None.
        norm: ``rmsnorm``, or ``layernorm`` (arXiv 1607.06450) with scale and shift.
        norm_position: ``pre``, x + f(norm(x)) and a norm before the output projection; or ``post``,
            norm(x + f(x)) as in arXiv 1706.03762: the embedding enters the first block as it is,
            the last block's output is normalized already and no other norm follows it.
    """

    vocab_size: int
    context_length: int
    n_layers: int = 2
    n_heads: int = 1
    d_model: int = 128
    d_ff: int | None = None
    norm_eps: float = 1e-12
    gate: Gate = "elementwise"
    position: Position = "rope"
    mlp: MLP = "gelu"
    tie_embeddings: bool = False
    bias: bool = False
    d_head: int | None = None
    norm: Norm = "rmsnorm"
    norm_position: NormPosition = "pre"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "n_layers", "n_heads", "d_model"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if not self.norm_eps >= 0:
            raise InputError(f"norm_eps must not be negative, got {self.norm_eps}")
        for name in ("d_ff", "d_head"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise InputError(f"{name} must be at least 1 or null, got {size}")
        if self.d_head is None and self.d_model % self.n_heads:
            raise InputError(
                f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}; "
                f"choose n_heads among the divisors of d_model, or set d_head"
            )
        if self.position == "rope" and self.head_width % 2:
            raise InputError(
                f"rope rotates pairs of channels, but d_head (null: d_model / n_heads) = "
                f"{self.head_width} is odd; make it even, or set position: learned"
            )

    @property
    def head_width(self) -> int:
        """Channels per attention head."""
        return self.d_head or self.d_model // self.n_heads

    @property
    def hidden_width(self) -> int:
        """Width of the MLP's hidden layer."""
        return self.d_ff or 4 * self.d_model


class Transformer(nn.Module):
    """Decoder-only language model: token ids in, logits out.

    Args:
        config: The model's shape.

    Attributes:
        activation_checkpointing: Compute each block again in the backward pass, in place of keeping
            its activations.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.position == "learned":
            self.position = nn.Embedding(config.context_length, config.d_model)
        else:
            self.rope = Rope(config.head_width, config.context_length)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = _norm(config) if config.norm_position == "pre" else nn.Identity()
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight

    def forward(
        self,
        input_ids: Tensor,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Computes next-token logits.

        Args:
            input_ids: int64 of shape (batch, length), length at most ``context_length``.
            document_ids: int64 of the same shape; tokens attend to their own document only. None:
                to all before them.
            cache: The tokens before these ones, which are added to it; see :meth:`new_cache`.

        Returns:
            Logits of shape (batch, length, vocab_size).

        Raises:
            InputError: The sequence is longer than ``context_length``.
        """
        start = cache[0].length if cache else 0
        end = start + input_ids.shape[1]
        if end > self.config.context_length:
            raise InputError(
                f"a sequence of {end} tokens exceeds context_length {self.config.context_length}"
            )
        x = self.embedding(input_ids)
        rotation = None
        if self.config.position == "learned":
            x = x + self.position.weight[start:end]
        else:
            rotation = self.rope(end, start)
        mask = _mask(start, end, document_ids, x.device)
        for i, block in enumerate(self.blocks):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rotation, mask, None, use_reentrant=False)
            else:
                x = block(x, rotation, mask, cache[i] if cache else None)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache of keys and values for a batch of that many sequences."""
        config = self.config
        shape = (batch, config.n_heads, config.context_length, config.head_width)
        weight = self.lm_head.weight
        return [LayerCache(shape, weight.dtype, weight.device) for _ in self.blocks]


def _mask(start: int, end: int, document_ids: Tensor | None, device: torch.device) -> Tensor | None:
    """Which of ``end`` keys each query from ``start`` on may see; None for the plain causal mask.

    Shape (end - start, end), or (batch, 1, end, end) with documents.
    """
    if document_ids is not None:
        causal = torch.ones(end, end, dtype=torch.bool, device=device).tril()
        same = document_ids[:, :, None] == document_ids[:, None, :]
        return (same & causal)[:, None]
    if start == 0:
        return None
    return torch.ones(end - start, end, dtype=torch.bool, device=device).tril(start)


def _norm(config: TransformerConfig) -> nn.Module:
    kind = RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return kind(config.d_model, eps=config.norm_eps)


class Block(nn.Module):
    """Attention and MLP, each with a norm before it or after its sum with the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norms_after = config.norm_position == "post"
        self.attention_norm = _norm(config)
        self.attention = Attention(config)
        self.mlp_norm = _norm(config)
        self.mlp = GeluMLP(config) if config.mlp == "gelu" else SwiGLU(config)

    def forward(
        self, x: Tensor, rotation: Rotation | None, mask: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        """Maps (batch, length, d_model) to the same shape."""
        out: Tensor
        if self.norms_after:
            x = self.attention_norm(x + self.attention(x, rotation, mask, cache))
            out = self.mlp_norm(x + self.mlp(x))
        else:
            x = x + self.attention(self.attention_norm(x), rotation, mask, cache)
            out = x + self.mlp(self.mlp_norm(x))
        return out


class Attention(nn.Module):
    """Causal self-attention with a sigmoid gate on its output, before the output projection.

    The gate is G1 of arXiv 2505.06708: o = σ(W_g x) ⊙ SDPA(q, k, v), which removes attention sinks.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d_model, width = config.d_model, config.n_heads * config.head_width
        self.n_heads = config.n_heads
        self.query = nn.Linear(d_model, width, config.bias)
        self.key = nn.Linear(d_model, width, config.bias)
        self.value = nn.Linear(d_model, width, config.bias)
        self.gate: nn.Linear | None = None
        if config.gate != "none":
            gates = width if config.gate == "elementwise" else config.n_heads
            self.gate = nn.Linear(d_model, gates, config.bias)
        self.out = nn.Linear(width, d_model, config.bias)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Maps (batch, length, d_model) to the same shape; ``mask`` is causal if None."""
        q, k, v = self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x))
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        if cache is not None:
            k, v = cache.extend(k, v)
        o = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        if self.gate is not None:
            # One gate per head broadcasts over the head's channels.
            o = o * torch.sigmoid(self._heads(self.gate(x)))
        out: Tensor = self.out(o.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        return x.view(batch, length, self.n_heads, -1).transpose(1, 2)


class GeluMLP(nn.Module):
    """down(GELU(up(x)))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.hidden_width, config.bias)
        self.down = nn.Linear(config.hidden_width, config.d_model, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, length, d_model) to the same shape."""
        out: Tensor = self.down(F.gelu(self.up(x)))
        return out


class SwiGLU(nn.Module):
    """down(SiLU(gate(x)) ⊙ up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.hidden_width, config.bias)
        self.gate = nn.Linear(config.d_model, config.hidden_width, config.bias)
        self.down = nn.Linear(config.hidden_width, config.d_model, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, length, d_model) to the same shape."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out
