"""A decoder-only transformer: pre-norm RMSNorm, gated attention, RoPE or learned positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gamma.errors import InputError

Gate = Literal["elementwise", "headwise", "none"]
Position = Literal["rope", "learned"]
MLP = Literal["gelu", "swiglu"]
_CHOICES = {"gate": get_args(Gate), "position": get_args(Position), "mlp": get_args(MLP)}


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a :class:`Transformer`.

    Attributes:
        vocab_size: Number of tokens.
        context_length: Longest sequence, in tokens.
        n_layers: Number of blocks.
        n_heads: Attention heads per block; must divide d_model.
        d_model: Width of the residual stream.
        d_ff: Width of the MLP's hidden layer; 4 * d_model if None.
        norm_eps: ε of RMSNorm. Small weights make small activations, which a larger ε (1e-5)
            keeps from being normalized (arXiv 2606.17945).
        gate: Gated attention (arXiv 2505.06708): one sigmoid gate per channel (``elementwise``),
            per head (``headwise``), or ``none``.
        position: Rotary embeddings (``rope``) or a ``learned`` table added to the input.
        mlp: ``gelu`` (two matrices) or ``swiglu`` (three).
        tie_embeddings: Use the embedding table as the output projection.
        bias: Give every linear layer a bias.
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
        if self.d_ff is not None and self.d_ff < 1:
            raise InputError(f"d_ff must be at least 1 or null, got {self.d_ff}")
        if self.d_model % self.n_heads:
            raise InputError(
                f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}; "
                f"choose n_heads among the divisors of d_model"
            )
        if self.position == "rope" and self.d_head % 2:
            raise InputError(
                f"rope rotates pairs of channels, but d_model / n_heads = {self.d_head} is odd; "
                f"change n_heads or d_model, or set position: learned"
            )

    @property
    def d_head(self) -> int:
        """Channels per attention head."""
        return self.d_model // self.n_heads


class Transformer(nn.Module):
    """Decoder-only language model: token ids in, logits out.

    Args:
        config: The model's shape.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.position == "learned":
            self.position = nn.Embedding(config.context_length, config.d_model)
        else:
            self.rope = Rope(config.d_head, config.context_length)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """Computes next-token logits.

        Args:
            input_ids: int64 of shape (batch, length), length at most ``context_length``.

        Returns:
            Logits of shape (batch, length, vocab_size).

        Raises:
            InputError: The sequence is longer than ``context_length``.
        """
        length = input_ids.shape[1]
        if length > self.config.context_length:
            raise InputError(
                f"a sequence of {length} tokens exceeds context_length {self.config.context_length}"
            )
        x = self.embedding(input_ids)
        rotation = None
        if self.config.position == "learned":
            x = x + self.position.weight[:length]
        else:
            rotation = self.rope(length)
        for block in self.blocks:
            x = block(x, rotation)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


class Block(nn.Module):
    """Attention and MLP, each on a normalized copy of the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.mlp = GeluMLP(config) if config.mlp == "gelu" else SwiGLU(config)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """Maps (batch, length, d_model) to the same shape."""
        x = x + self.attention(self.attention_norm(x), rotation)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class Attention(nn.Module):
    """Causal self-attention with a sigmoid gate on its output, before the output projection.

    The gate is G1 of arXiv 2505.06708: o = σ(W_g x) ⊙ SDPA(q, k, v), which removes attention sinks.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.d_model
        self.n_heads = config.n_heads
        self.query = nn.Linear(width, width, config.bias)
        self.key = nn.Linear(width, width, config.bias)
        self.value = nn.Linear(width, width, config.bias)
        self.gate: nn.Linear | None = None
        if config.gate != "none":
            gates = width if config.gate == "elementwise" else config.n_heads
            self.gate = nn.Linear(width, gates, config.bias)
        self.out = nn.Linear(width, width, config.bias)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """Maps (batch, length, d_model) to the same shape."""
        q, k, v = self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x))
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
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
        d_ff = config.d_ff or 4 * config.d_model
        self.up = nn.Linear(config.d_model, d_ff, config.bias)
        self.down = nn.Linear(d_ff, config.d_model, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, length, d_model) to the same shape."""
        out: Tensor = self.down(F.gelu(self.up(x)))
        return out


class SwiGLU(nn.Module):
    """down(SiLU(gate(x)) ⊙ up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d_ff = config.d_ff or 4 * config.d_model
        self.up = nn.Linear(config.d_model, d_ff, config.bias)
        self.gate = nn.Linear(config.d_model, d_ff, config.bias)
        self.down = nn.Linear(d_ff, config.d_model, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, length, d_model) to the same shape."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class Rope(nn.Module):
    """Table of rotary position embeddings (arXiv 2104.09864), base 10000."""

    cos: Tensor
    sin: Tensor

    def __init__(self, d_head: int, context_length: int) -> None:
        super().__init__()
        frequency = 10000.0 ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
        angle = torch.outer(torch.arange(context_length, dtype=torch.float64), frequency)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """Returns (cos, sin), each of shape (length, d_head / 2)."""
        return self.cos[:length], self.sin[:length]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates channel i together with channel i + d_head/2 by the position's angle.

    Args:
        x: Queries or keys, shape (batch, heads, length, d_head).
        cos: Shape (length, d_head / 2).
        sin: Shape (length, d_head / 2).

    Returns:
        Same shape and dtype as ``x``.
    """
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
