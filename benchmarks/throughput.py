"""Training throughput beside the peers: same shapes, data, dtype, batch and threads, in turn.

    pip install greenlet && pip install --no-deps litgpt psutil
    python benchmarks/throughput.py --shapes laptop --rounds 5 --steps 300 --planned 300

Every model has the same layers, heads, width, context, vocabulary and, up to norms and biases, as
many parameters; the bare loop is the same for all: fused AdamW, clipping, cross-entropy. On a GPU
everything is compiled and runs in bfloat16. A round trains every variant once from a fresh
initialization, a step of each in turn, as in ``overhead.py``. The table gives medians over the
rounds, the smallest and largest in brackets; a ratio is taken within a round, to the fastest peer
of that round. Peak memory is that of three steps in a process of their own, above what was held.
"""

from __future__ import annotations

import argparse
import logging
import platform
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from overhead import GPU, VARIANTS, Row, bare, in_turns, module
from torch import Tensor, nn

from lit_gamma import TransformerConfig

SHAPES = {  # vocab_size, context_length, n_layers, n_heads, d_model; batch size
    "laptop": Row(TransformerConfig(65, 64, 4, 4, 128, gate="none"), 12),
    "small": Row(TransformerConfig(65, 256, 6, 6, 384, gate="none"), 64),
    "gpt2": Row(TransformerConfig(50304, 1024, 12, 12, 768, gate="none"), 32 if GPU else 1),
}


def litgpt(row: Row) -> nn.Module:
    """LitGPT's GPT with its GELU MLP and full rotary embeddings."""
    from litgpt import GPT, Config

    shape = row.transformer
    return GPT(
        Config(
            block_size=shape.context_length,
            n_layer=shape.n_layers,
            n_head=shape.n_heads,
            n_embd=shape.d_model,
            padded_vocab_size=shape.vocab_size,
            vocab_size=shape.vocab_size,
            norm_class_name="RMSNorm",
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
        )
    )


class Logits(nn.Module):
    """A Hugging Face model that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids, use_cache=False).logits


def hf_gpt2(row: Row) -> nn.Module:
    """GPT-2 of transformers; its output projection is the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = row.transformer
    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.context_length,
        n_embd=shape.d_model,
        n_layer=shape.n_layers,
        n_head=shape.n_heads,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    return Logits(GPT2LMHeadModel(config))


def hf_llama(row: Row) -> nn.Module:
    """Llama of transformers, whose three MLP matrices are 8/3 d_model wide."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = row.transformer
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.context_length,
        hidden_size=shape.d_model,
        intermediate_size=round(8 * shape.d_model / 3),
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_heads,
    )
    return Logits(LlamaForCausalLM(config))


class PlainBlock(nn.Module):
    """Pre-norm attention and GELU MLP, as one would write them."""

    def __init__(self, d: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norms = nn.ModuleList(nn.LayerNorm(d, bias=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class PlainGPT(nn.Module):
    """A GPT with LayerNorm, learned positions and nothing else, 30 lines of PyTorch."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        shape = row.transformer
        d = shape.d_model
        self.tokens = nn.Embedding(shape.vocab_size, d)
        self.positions = nn.Embedding(shape.context_length, d)
        self.blocks = nn.Sequential(*(PlainBlock(d, shape.n_heads) for _ in range(shape.n_layers)))
        self.norm = nn.LayerNorm(d, bias=False)
        self.head = nn.Linear(d, shape.vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def ours_like(row: Row, **changed: str) -> nn.Module:
    """Our transformer, changed to be compared with others."""
    transformer = replace(row.transformer, **changed)
    return module(replace(row, transformer=transformer)).transformer


PEERS = {
    "litgpt": litgpt,
    "transformers GPT-2": hf_gpt2,
    "transformers Llama": hf_llama,
    "plain LayerNorm GPT": PlainGPT,
}
LOOPS = {
    **PEERS,
    "lit-gamma, bare loop": ours_like,
    "with learned positions": partial(ours_like, position="learned"),
    "with learned positions and LayerNorm": partial(
        ours_like, position="learned", norm="layernorm"
    ),
}
LIGHTNING = {"lit-gamma, Lightning": "Lightning", "lit-gamma, default callbacks": "defaults"}


def variants(row: Row, steps: int, planned: int) -> dict[str, Callable[[], float]]:
    """What is run, by name."""
    loops = {name: partial(bare, row, steps, planned, make) for name, make in LOOPS.items()}
    fits = {name: partial(VARIANTS[v], row, steps, planned) for name, v in LIGHTNING.items()}
    return {**loops, **fits}


def peak_memory(shape: str, variant: str) -> float:
    """What three steps need above what the process held before them, MiB."""
    quiet()
    run = variants(SHAPES[shape], 3, 3)[variant]
    if GPU:
        in_turns({variant: run}, 0, 3)
        return torch.cuda.max_memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts from here.
    before = _resident("VmRSS")
    in_turns({variant: run}, 0, 3)
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_flush_denormal(True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["laptop"], choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first", type=int, default=10, help="step at which the clock starts")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--planned", type=int, default=300)
    args = parser.parse_args()
    quiet()
    name = torch.cuda.get_device_name() if GPU else platform.machine()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"{args.rounds} rounds, steps {args.first} to {args.steps} of {args.planned}")
    print("| shape | variant | parameters | tokens/s | ÷ fastest peer | peak memory, MiB |")
    print("|---|---|---|---|---|---|")
    for shape in args.shapes:
        row = SHAPES[shape]
        runs = variants(row, args.steps, args.planned)
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh:
            memory = dict(zip(runs, fresh.map(partial(peak_memory, shape), runs), strict=True))
        in_turns({"warm-up": partial(bare, row, 2, 2)}, 0, 2)
        rounds = [in_turns(runs, args.first, args.steps) for _ in range(args.rounds)]
        tokens = row.batch_size * row.transformer.context_length
        for variant in runs:
            speed = np.array([tokens / r[variant].ms * 1e3 for r in rounds])
            peer = np.array([min(r[p].ms for p in PEERS) / r[variant].ms for r in rounds])
            make = LOOPS.get(variant, LOOPS["lit-gamma, bare loop"])
            size = sum(p.numel() for p in make(row).parameters()) / 1e6
            print(
                f"| {shape} | {variant} | {size:.2f} M | {np.median(speed):,.0f} "
                f"({speed.min():,.0f} .. {speed.max():,.0f}) | {np.median(peer):.3f} "
                f"({peer.min():.3f} .. {peer.max():.3f}) | {memory[variant]:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
