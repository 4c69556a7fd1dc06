"""Tiny models of many families, each with a reference that takes its weights apart by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

VOCAB, WIDTH, HIDDEN, HEADS, LENGTH = 40, 16, 24, 4, 12

Taken = dict[str, "np.ndarray"]
"""Role to matrix, in the order of the rows of a fused projection."""


def transposed(role: str) -> Callable[[np.ndarray], Taken]:
    return lambda w: {role: w.T}


def rows(**sizes: int) -> Callable[[np.ndarray], Taken]:
    """Consecutive rows, so many for each role."""
    ends = np.cumsum(list(sizes.values()))
    return lambda w: dict(zip(sizes, np.split(w, ends[:-1]), strict=True))


def gpt2_qkv(w: np.ndarray) -> Taken:
    return rows(query=WIDTH, key=WIDTH, value=WIDTH)(w.T)


def neox_qkv(w: np.ndarray) -> Taken:
    """Row h * 3 * d_head + i * d_head + c: channel c of head h of projection i."""
    d_head = WIDTH // HEADS
    starts = [h * 3 * d_head for h in range(HEADS)]
    return {
        role: np.concatenate([w[s + i * d_head : s + (i + 1) * d_head] for s in starts])
        for i, role in enumerate(("query", "key", "value"))
    }


def experts_gate_up(w: np.ndarray) -> list[Taken]:
    return [{"mlp_gate": e[:HIDDEN], "mlp_up": e[HIDDEN:]} for e in w]


def experts_down(w: np.ndarray) -> list[Taken]:
    return [{"mlp_down": e} for e in w]


SWIGLU = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "attention_out",
    "gate_proj": "mlp_gate",
    "up_proj": "mlp_up",
    "down_proj": "mlp_down",
    "embed_tokens": "embedding",
    "lm_head": "lm_head",
}


@dataclass(frozen=True)
class Family:
    """A model and, for each of its parameters that holds matrices, what they are.

    ``weights`` maps the end of a parameter's path to a role or to a function of the stored array.
    ``writes`` are the modules of each of its ``blocks`` that give what attention and MLP add to the
    stream: one after the other, both at once where they are ``parallel``, or each before a norm,
    of which ``norm`` is the first.
    """

    build: Callable[[], nn.Module]
    weights: dict[str, str | Callable]
    task: str = "causal"
    blocks: str = "model.layers"
    writes: tuple[str, str] = ("self_attn", "mlp")
    parallel: bool = False
    norm: str | None = None
    seen_as: str = "separate projections"

    def unfused(self, parameters: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
        """Role and matrix of every weight, in the order of the parameters."""
        found = []
        for path, stored in parameters.items():
            name = path.removesuffix(".weight")
            taken = [take for end, take in self.weights.items() if name.endswith(end)]
            if not taken:
                assert stored.ndim == 1, f"the reference has no entry for {path}"
                continue
            take = {taken[0]: stored} if isinstance(taken[0], str) else taken[0](stored)
            for matrices in take if isinstance(take, list) else [take]:
                found += matrices.items()
        return found


def hugging_face(model: str, config: str, **options) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        tokens = dict.fromkeys(("bos_token_id", "eos_token_id"), 1) | {"pad_token_id": 0}
        made = getattr(transformers, config)(**tokens, **options)
        return getattr(transformers, model)(made)

    return build


SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 32,
}
GQA = {**SHAPE, "num_key_value_heads": 2}


def causal(name: str, **options) -> Callable[[], nn.Module]:
    return hugging_face(f"{name}ForCausalLM", f"{name}Config", **options)


class Encoder(nn.Module):
    """A plain torch.nn.TransformerEncoder over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.lm_head = nn.Linear(WIDTH, VOCAB)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lm_head(self.encoder(self.embedding(input_ids)))


class MLP(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(48, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))


FAMILIES = {
    "GPT-2": Family(
        hugging_face(
            "GPT2LMHeadModel", "GPT2Config", vocab_size=VOCAB, n_embd=WIDTH, n_layer=2,
            n_head=HEADS, n_positions=32, n_inner=HIDDEN, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        ),
        {
            "wte": "embedding",
            "wpe": "position",
            "c_attn": gpt2_qkv,
            "attn.c_proj": transposed("attention_out"),
            "c_fc": transposed("mlp_up"),
            "mlp.c_proj": transposed("mlp_down"),
        },
        blocks="transformer.h",
        writes=("attn", "mlp"),
        seen_as="`c_attn` transposed and split, tied unembedding once",
    ),
    "Llama": Family(causal("Llama", **GQA), SWIGLU, seen_as="separate projections, GQA"),
    "Qwen3": Family(
        causal("Qwen3", **GQA, head_dim=8), SWIGLU, seen_as="separate projections, GQA"
    ),
    "GPT-NeoX, Pythia": Family(
        causal("GPTNeoX", **SHAPE),
        {
            "embed_in": "embedding",
            "query_key_value": neox_qkv,
            "attention.dense": "attention_out",
            "dense_h_to_4h": "mlp_up",
            "dense_4h_to_h": "mlp_down",
            "lm_head": "lm_head",
            "embed_out": "lm_head",
        },
        blocks="gpt_neox.layers",
        writes=("attention", "mlp"),
        parallel=True,
        seen_as="`query_key_value` split, heads interleaved",
    ),
    "Mistral": Family(
        causal("Mistral", **GQA, head_dim=4), SWIGLU, seen_as="separate projections, GQA"
    ),
    "Gemma": Family(
        causal("Gemma", **GQA, head_dim=8),
        SWIGLU,
        seen_as="separate projections, GQA, norms that add one, tied unembedding once",
    ),
    "OLMo2": Family(
        causal("Olmo2", **GQA),
        SWIGLU,
        writes=("post_attention_layernorm", "post_feedforward_layernorm"),
        seen_as="separate projections, GQA",
    ),
    "Phi-3": Family(
        causal("Phi3", **GQA),
        {
            "qkv_proj": rows(query=WIDTH, key=WIDTH // 2, value=WIDTH // 2),
            "gate_up_proj": rows(mlp_gate=HIDDEN, mlp_up=HIDDEN),
            **SWIGLU,
        },
        seen_as="`qkv_proj` and `gate_up_proj` split, GQA",
    ),
    "Mixtral": Family(
        causal("Mixtral", **GQA, num_local_experts=3, experts_implementation="eager"),
        {
            "experts.gate_up_proj": experts_gate_up,
            "experts.down_proj": experts_down,
            "mlp.gate": "router",
            **SWIGLU,
        },
        seen_as="experts of a 3-D parameter one by one, gate and up split, router",
    ),
    "BERT": Family(
        hugging_face("BertForMaskedLM", "BertConfig", **SHAPE, hidden_dropout_prob=0,
                     attention_probs_dropout_prob=0),
        {
            "word_embeddings": "embedding",
            "position_embeddings": "position",
            "token_type_embeddings": "embedding",
            "self.query": "query",
            "self.key": "key",
            "self.value": "value",
            "attention.output.dense": "attention_out",
            "intermediate.dense": "mlp_up",
            "output.dense": "mlp_down",
            "transform.dense": "other",
        },
        task="masked",
        blocks="bert.encoder.layer",
        writes=("attention.output.dense", "output.dense"),
        norm="attention.output.LayerNorm",
        seen_as="separate projections, tied unembedding once",
    ),
    "ViT": Family(
        hugging_face(
            "ViTForImageClassification", "ViTConfig", hidden_size=WIDTH, intermediate_size=HIDDEN,
            num_hidden_layers=2, num_attention_heads=HEADS, image_size=8, patch_size=4,
        ),
        {
            "cls_token": lambda w: {"embedding": w.reshape(1, WIDTH)},
            "position_embeddings": lambda w: {"position": w.reshape(-1, WIDTH)},
            "patch_embeddings.projection": lambda w: {"embedding": w.reshape(WIDTH, 48)},
            "q_proj": "query",
            "k_proj": "key",
            "v_proj": "value",
            "o_proj": "attention_out",
            "fc1": "mlp_up",
            "fc2": "mlp_down",
            "classifier": "lm_head",
        },
        task="image",
        blocks="vit.layers",
        writes=("attention", "mlp"),
        seen_as="separate projections, a patch filter is a neuron",
    ),
    "nn.TransformerEncoder": Family(
        Encoder,
        {
            "embedding": "embedding",
            "in_proj_weight": rows(query=WIDTH, key=WIDTH, value=WIDTH),
            "out_proj": "attention_out",
            "linear1": "mlp_up",
            "linear2": "mlp_down",
            "lm_head": "lm_head",
        },
        task="masked",
        blocks="encoder.layers",
        writes=("self_attn", "linear2"),
        norm="norm1",
        seen_as="`in_proj_weight` split",
    ),
    "MLP": Family(MLP, {"0": "other", "2": "other"}, task="vector", seen_as="a matrix per layer"),
}  # fmt: skip


def batch_of(task: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Four random samples."""
    if task in ("causal", "masked"):
        ids = torch.randint(2, VOCAB, (4, LENGTH), generator=generator)
        labels = ids.clone() if task == "causal" else ids.roll(1, 1)
        labels[0, 3:7] = -100
        return {"input_ids": ids, "labels": labels}
    labels = torch.randint(2, (4,), generator=generator)
    if task == "image":
        return {"pixel_values": torch.randn(4, 3, 8, 8, generator=generator), "labels": labels}
    return {"input": torch.randn(4, 48, generator=generator), "labels": labels}


def token_loss(model: nn.Module, task: str, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of every label, NaN where it is ignored."""
    inputs = {name: x for name, x in batch.items() if name != "labels"}
    dtype = next(model.parameters()).dtype
    inputs = {n: x.to(dtype) if x.is_floating_point() else x for n, x in inputs.items()}
    out = model(*inputs.values()) if isinstance(model, (Encoder, MLP)) else model(**inputs)
    logits, labels = getattr(out, "logits", out), batch["labels"]
    if task == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    loss = nn.functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), reduction="none", ignore_index=-100
    )
    return loss.where(labels.flatten() != -100, torch.nan)
