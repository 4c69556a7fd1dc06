"""What the callbacks record, computed again in float64 NumPy."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor, nn

from helpers.families import HEADS, WIDTH, Encoder, Family
from lit_gamma import metrics

NULLS = {
    "mean_squared_cosine": lambda n, d: 1 / d,
    "mean_absolute_cosine": lambda n, d: metrics.null_mean_absolute_cosine(d),
    "effective_rank": metrics.null_effective_rank,
    "participation_ratio": lambda n, d: (n * d + 2) / (n + d + 1),
    "stable_rank": metrics.null_stable_rank,
}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Between two matrices, as vectors of their entries."""
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def geometry(w: np.ndarray, before: np.ndarray | None) -> dict[str, float]:
    """Every quantity that the weight callbacks record."""
    n, d = w.shape
    s = np.linalg.svd(w, compute_uv=False)
    p = s / s.sum()
    rms = np.sqrt((w**2).mean())
    rows = w[w.any(axis=1)]  # a padding row, zero, has no direction
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = (unit @ unit.T)[~np.eye(len(rows), dtype=bool)] if n > 1 else np.array([np.nan])
    share = np.nan if n == 1 else 1.0
    found = {
        "mean_squared_cosine": (pairs**2).mean(),
        "mean_absolute_cosine": np.abs(pairs).mean(),
        "mean_cosine": pairs.mean(),
        "aligned_fraction": share * (np.abs(pairs) > 0.9).mean(),
        "opposed_fraction": share * (pairs < -0.9).mean(),
        "effective_rank": np.exp(-(p * np.log(p)).sum()),
        "participation_ratio": (s**2).sum() ** 2 / (s**4).sum(),
        "stable_rank": (s**2).sum() / s[0] ** 2,
        "frobenius_norm": np.linalg.norm(w),
        "rms": rms,
        "max_row_norm": np.linalg.norm(w, axis=1).max(),
        "spectral_norm": s[0],
        "implied_gamma": -np.log(rms) / np.log(d),
        "update_ratio": np.nan,
    }
    if before is not None:
        found["update_ratio"] = np.linalg.norm(w - before) / np.linalg.norm(before)
    return found | {f"{name}_over_null": found[name] / null(n, d) for name, null in NULLS.items()}


def sink(weights: np.ndarray, causal: bool = True) -> dict[str, np.ndarray]:
    """Of weights (batch, heads, length, length): means over batch and queries 1 .., per head."""
    later, length = weights[:, :, 1:], weights.shape[-1]
    entropy = -np.where(later > 0, later * np.log(np.where(later > 0, later, 1)), 0).sum(-1)
    visible = np.arange(2, length + 1) if causal else np.full(length - 1, length)
    mass, entropy = later[..., 0].mean((0, 2)), entropy.mean((0, 2))
    return {
        "first_token_mass": mass,
        "entropy": entropy,
        "first_token_mass_over_null": mass / (1 / visible).mean(),
        "entropy_over_null": entropy / np.log(visible).mean(),
    }


def saturation(x: np.ndarray, out: np.ndarray, eps: float, centered: bool) -> dict[str, float]:
    """Of a norm's input and of its output before scale and shift, (..., d)."""
    size = x.var(-1) if centered else (x**2).mean(-1)
    return {
        "epsilon_share": (eps / (size + eps)).mean(),
        "normalized_rms": np.sqrt((out**2).mean()),
        "input_rms": np.sqrt((x**2).mean()),
    }


STATES = ("effective_rank", "participation_ratio", "mean_squared_cosine", "mean_cosine", "rms")


def states(x: np.ndarray) -> dict[str, float]:
    """Of the states of all tokens, (..., d)."""
    rows = x.reshape(-1, x.shape[-1])
    found = geometry(rows, None)
    over_null = (f"{name}_over_null" for name in STATES)
    kept = {name: found[name] for name in (*STATES, *over_null) if name in found}
    return {**kept, "largest_over_rms": np.abs(rows).max() / found["rms"]}


def share(write: np.ndarray, whole: np.ndarray) -> float:
    """How much of a sum, as a share of its squared norm, one of what is added is."""
    return float((write * whole).sum() / (whole**2).sum())


def watch_stream(model: nn.Module, family: Family) -> list[dict[str, np.ndarray]]:
    """A list of what each block and its parts give, which fills as the model runs."""
    blocks = model.get_submodule(family.blocks)
    seen: list[dict[str, np.ndarray]] = [{} for _ in blocks]
    parts = (*family.writes, *([family.norm] if family.norm else []))
    for of, block in zip(seen, blocks, strict=True):

        def keep(_: nn.Module, args: object, kwargs: object, out: object, of=of, name="") -> None:
            if not name:  # the block itself
                of["in"] = next(x for x in (*args, *kwargs.values()) if torch.is_tensor(x)).numpy()
            of[name] = (out[0] if isinstance(out, tuple) else out).numpy().reshape(-1, WIDTH)

        for name in ("", *parts):
            hook = partial(keep, name=name)
            block.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
    return seen


def stream(seen: list[dict[str, np.ndarray]], family: Family) -> list[dict[str, float]]:
    """Of what :func:`watch_stream` has seen: the input of the first block, then each block."""
    rows = [states(seen[0]["in"])]
    for of in seen:
        x = of["in"].reshape(-1, WIDTH)
        attention, mlp = (of[name] for name in family.writes)
        first = x + attention
        second = (of[family.norm] if family.norm else first) + mlp
        if not family.norm:
            np.testing.assert_allclose(second, of[""], atol=1e-12)
        shares = share(attention, second if family.parallel else first), share(mlp, second)
        names = ("attention_share", "mlp_share")
        rows.append(states(of[""]) | dict(zip(names, shares, strict=True)))
    return rows


def attention_weights(model: nn.Module, batch: dict[str, Tensor]) -> list[np.ndarray]:
    """Attention of every layer, (batch, heads, length, length), as Hugging Face's eager code says.

    That takes the softmax of float64 logits in float32 in some families. Of
    torch.nn.TransformerEncoder it is computed here, from the input of each layer.
    """
    inputs = {n: x.double() if x.is_floating_point() else x for n, x in batch.items()}
    if not isinstance(model, Encoder):
        model.set_attn_implementation("eager")
        return [w.numpy() for w in model(**inputs, output_attentions=True).attentions]
    found: list[np.ndarray] = []

    def attend(layer: nn.MultiheadAttention, args: tuple[Tensor, ...], _: object) -> None:
        x, w, b = (t.numpy() for t in (args[0], layer.in_proj_weight, layer.in_proj_bias))
        split = (x @ w.T + b).reshape(*x.shape[:2], 3, HEADS, -1)
        q, k, _ = split.transpose(2, 0, 3, 1, 4)
        found.append(softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]), axis=-1))

    for layer in model.encoder.layers:
        layer.self_attn.register_forward_hook(attend)
    model(inputs["input_ids"])
    return found


def watch_norms(model: nn.Module) -> list[tuple[str, np.ndarray, np.ndarray, float, bool]]:
    """A list that fills as the model runs: a norm's name, and what :func:`saturation` takes."""
    config = model.config.to_dict() if hasattr(model, "config") else {"norm_eps": 1e-5}
    (eps,) = {value for key, value in config.items() if "norm_eps" in key}
    seen: list[tuple[str, np.ndarray, np.ndarray, float, bool]] = []

    def watch(name: str, norm: nn.Module, x: Tensor, out: Tensor) -> None:
        kind = type(norm).__name__
        scale = norm.weight + 1 if "Gemma" in kind else norm.weight
        plain = (out - getattr(norm, "bias", torch.zeros(()))) / scale
        seen.append((name, x.numpy(), plain.numpy(), eps, "LayerNorm" in kind))

    for name, norm in model.named_modules():
        if "Norm" in type(norm).__name__:
            norm.register_forward_hook(lambda n, x, out, name=name: watch(name, n, x[0], out))
    return seen
