"""lit-gamma's transformer for ``transformers``: pre- or post-norm, gated attention.

``AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)`` finds this file in the
folder of an exported model; it needs torch and transformers alone.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

OUTPUTS = {field.name for field in fields(CausalLMOutputWithPast)}
CACHE = "cache" if "cache" in OUTPUTS else "past_key_values"  # As versions of transformers differ.


class LitGammaConfig(PretrainedConfig):
    """The shape of the model."""

    model_type = "lit_gamma"
    attribute_map: ClassVar[dict[str, str]] = {
        "max_position_embeddings": "context_length",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "hidden_size": "d_model",
        "intermediate_size": "d_ff",
        "head_dim": "d_head",
        "tie_word_embeddings": "tie_embeddings",
    }

    vocab_size: int = 257
    context_length: int = 128
    n_layers: int = 2
    n_heads: int = 1
    d_model: int = 128
    d_ff: int = 512
    d_head: int = 128
    norm: str = "rmsnorm"
    norm_position: str = "pre"
    norm_eps: float = 1e-12
    gate: str = "elementwise"
    position: str = "rope"
    mlp: str = "gelu"
    bias: bool = False
    tie_embeddings: bool = False


class Rope(nn.Module):
    """Rotary position embeddings (arXiv 2104.09864)."""

    def __init__(self, config: LitGammaConfig) -> None:
        super().__init__()
        self.size = config.context_length, config.d_head
        self.table: Tensor | None = None  # No buffer: from_pretrained would leave it unset.

    def forward(self, position_ids: Tensor) -> Tensor:
        """Cosines and sines of (batch, length) positions: (2, batch, 1, length, d_head)."""
        if self.table is None or self.table.device != position_ids.device:
            length, d_head = self.size
            frequency = 10000.0 ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
            angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
            table = torch.stack((angle.cos(), angle.sin())).float().repeat(1, 1, 2)
            self.table = table.to(position_ids.device)
        return self.table[:, position_ids][:, :, None]


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotates channel i together with channel i + d_head/2."""
    cos, sin = rotation.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal attention, its output gated by σ(W x) per channel or per head (arXiv 2505.06708)."""

    def __init__(self, config: LitGammaConfig, layer: int) -> None:
        super().__init__()
        d_model, width = config.d_model, config.n_heads * config.d_head
        self.n_heads, self.layer = config.n_heads, layer
        self.query = nn.Linear(d_model, width, config.bias)
        self.key = nn.Linear(d_model, width, config.bias)
        self.value = nn.Linear(d_model, width, config.bias)
        self.gate = None
        if config.gate != "none":
            gates = width if config.gate == "elementwise" else config.n_heads
            self.gate = nn.Linear(d_model, gates, config.bias)
        self.out = nn.Linear(width, d_model, config.bias)

    def forward(self, x: Tensor, rotation: Tensor | None, mask: Tensor | None, cache: Any) -> Any:
        """Maps (batch, length, d_model) to the same shape."""
        q, k, v = (self.heads(layer(x)) for layer in (self.query, self.key, self.value))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        o = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        if self.gate is not None:
            o = o * torch.sigmoid(self.heads(self.gate(x)))
        return self.out(o.transpose(1, 2).flatten(2))

    def heads(self, x: Tensor) -> Tensor:
        """Splits (batch, length, width) to (batch, heads, length, width / heads)."""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    """down(GELU(up x)), or SwiGLU: down(SiLU(gate x) ⊙ up x)."""

    def __init__(self, config: LitGammaConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff, config.bias)
        self.gate = None
        if config.mlp == "swiglu":
            self.gate = nn.Linear(config.d_model, config.d_ff, config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, config.bias)

    def forward(self, x: Tensor) -> Any:
        """Maps (batch, length, d_model) to the same shape."""
        if self.gate is None:
            return self.down(F.gelu(self.up(x)))
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """x + f(norm(x)), or norm(x + f(x)), for attention and then the MLP."""

    def __init__(self, config: LitGammaConfig, layer: int) -> None:
        super().__init__()
        self.norms_after = config.norm_position == "post"
        self.attention_norm = new_norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = new_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotation: Tensor | None, mask: Tensor | None, cache: Any) -> Any:
        """Maps (batch, length, d_model) to the same shape."""
        if self.norms_after:
            x = self.attention_norm(x + self.attention(x, rotation, mask, cache))
            return self.mlp_norm(x + self.mlp(x))
        x = x + self.attention(self.attention_norm(x), rotation, mask, cache)
        return x + self.mlp(self.mlp_norm(x))


def new_norm(config: LitGammaConfig) -> nn.Module:
    """RMSNorm or LayerNorm."""
    kind = nn.RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return kind(config.d_model, eps=config.norm_eps)


def seen(start: int, end: int, attention_mask: Tensor | None, device: torch.device) -> Any:
    """Which of ``end`` keys each query from ``start`` on sees; None for the plain causal mask."""
    if attention_mask is None and start == 0:
        return None
    causal = torch.ones(end - start, end, dtype=torch.bool, device=device).tril(start)
    if attention_mask is None:
        return causal
    own = torch.eye(end, dtype=torch.bool, device=device)[start:]  # Padding must see something.
    return (causal & attention_mask[:, None, None].bool()) | own


class LitGammaForCausalLM(PreTrainedModel, GenerationMixin):
    """Token ids in, logits of the next token out."""

    config_class = LitGammaConfig
    _supports_sdpa = True
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "embedding.weight"}

    def __init__(self, config: LitGammaConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position = self.rope = None
        if config.position == "learned":
            self.position = nn.Embedding(config.context_length, config.d_model)
        else:
            self.rope = Rope(config)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        self.norm = new_norm(config) if config.norm_position == "pre" else nn.Identity()
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of the tokens."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The output projection."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of (batch, length) tokens, and their loss if there are labels."""
        cache = past_key_values if cache is None else cache
        if cache is None and use_cache:
            cache = DynamicCache()
        start = 0 if cache is None else cache.get_seq_length()
        end = start + input_ids.shape[1]
        if end > self.config.context_length:
            raise ValueError(f"{end} tokens exceed context_length {self.config.context_length}")
        if position_ids is None:
            position_ids = torch.arange(start, end, device=input_ids.device)[None]
        x = self.embedding(input_ids)
        if self.position is not None:
            x = x + self.position(position_ids)
        rotation = None if self.rope is None else self.rope(position_ids)
        mask = seen(start, end, attention_mask, x.device)
        for block in self.blocks:
            x = block(x, rotation, mask, cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(self.norm(x[:, kept]))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})
