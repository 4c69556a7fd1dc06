"""Attention, watched while it runs: by default where each head attends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lit_gamma import metrics
from lit_gamma.probing.forward import Seen
from lit_gamma.weights.parameters import plain_path

Measure = Callable[[Tensor, Tensor | None], Mapping[str, Tensor]]
"""What is kept of a call: made of its weights and logits, (batch, heads, queries, keys)."""


def where_heads_attend(weights: Tensor, logits: Tensor | None) -> dict[str, Tensor]:
    """Means over the batch, by head.

    Args:
        weights: Attention, shape (..., heads, queries, keys).
        logits: What it is the softmax of, same shape; None where they are not known.

    Returns:
        ``first_token_mass``, ``entropy`` (nats), ``largest_logit``, and what uniform attention
        would read, ``uniform_mass`` and ``uniform_entropy``; all of shape (heads,).
    """
    uniform = metrics.uniform_attention(weights)
    values = {
        "first_token_mass": metrics.first_token_mass(weights),
        "entropy": metrics.attention_entropy(weights),
        "uniform_mass": metrics.first_token_mass(uniform),
        "uniform_entropy": metrics.attention_entropy(uniform),
    }
    means = {name: value.flatten(0, -2).nanmean(0) for name, value in values.items()}
    if logits is None:
        largest = torch.full_like(means["entropy"], torch.nan)
    else:
        largest = logits.flatten(0, -4).amax((0, 2, 3)).float()
    return {**means, "largest_logit": largest}


@contextmanager
def watched_attention(
    module: nn.Module, measure: Measure = where_heads_attend
) -> Iterator[list[Seen]]:
    """Collects something of each call of attention.

    Seen is what goes through ``torch.nn.functional.scaled_dot_product_attention``, whose logits
    are computed again from query and key, ``torch.nn.MultiheadAttention``, which shows weights but
    no logits, and every softmax over the last of four dimensions, as eager attention takes it.
    Kernels of other packages (flash, flex) are not seen.

    Args:
        module: Any module, to be run inside in evaluation mode: dropout is not computed again.
        measure: What is kept of a call.

    Yields:
        A list that fills up with what it has returned.
    """
    seen: list[Seen] = []
    inside = [""]

    def note(weights: Tensor, logits: Tensor | None) -> None:
        seen.append(Seen(inside[-1], measure(weights, logits)))

    with _current_path(module, inside), _Watch(note):
        yield seen


_SOFTMAXES = (F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax)


class _Watch(TorchFunctionMode):
    """Sees every call of PyTorch's functions, whatever name it goes by, and notes attention."""

    def __init__(self, note: Callable[[Tensor, Tensor | None], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:  # Nothing that it calls is seen.
            return self._multi_head(args, kwargs)
        if func is F.scaled_dot_product_attention:
            logits = _logits(*args, **kwargs)
            self._note(logits.softmax(-1), logits)
        out = func(*args, **kwargs)
        if func in _SOFTMAXES and out.ndim == 4 and _dim(*args, **kwargs) in (-1, 3):
            self._note(out.float(), args[0] if args else kwargs["input"])
        return out

    def _multi_head(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The forward of torch.nn.MultiheadAttention, made to give the weights of each head."""
        of_each_head = {**kwargs, "need_weights": True, "average_attn_weights": False}
        out, weights = F.multi_head_attention_forward(*args, **of_each_head)
        assert weights is not None
        self._note(weights.float() if weights.ndim == 4 else weights.float().unsqueeze(0), None)
        if not kwargs.get("need_weights", True):
            return out, None
        return out, weights.mean(-3) if kwargs.get("average_attn_weights", True) else weights


def _logits(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """The logits of scaled_dot_product_attention, by its arguments."""
    return metrics.attention_logits(query, key, attn_mask, is_causal, **options)


def _dim(input: Tensor, dim: Any = None, *_: Any, **__: Any) -> Any:
    """The dimension of a softmax, by its arguments."""
    return dim


@contextmanager
def _current_path(module: nn.Module, inside: list[str]) -> Iterator[None]:
    """Keeps the path of the module whose forward runs at the end of ``inside``."""

    def leave(*_: Any) -> None:
        inside.pop()

    with ExitStack() as hooks:
        for name, part in module.named_modules():
            path = plain_path(name.split("."))

            def enter(*_: Any, path: str = path) -> None:
                inside.append(path)

            hooks.callback(part.register_forward_pre_hook(enter).remove)
            hooks.callback(part.register_forward_hook(leave).remove)
        yield
