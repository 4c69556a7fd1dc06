"""Where each head attends, watched while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gamma import metrics
from lit_gamma.probing.forward import Seen
from lit_gamma.weights.parameters import plain_path


@contextmanager
def watched_attention(module: nn.Module) -> Iterator[list[Seen]]:
    """Collects, of each call of attention, where each head attends.

    Seen is what goes through ``torch.nn.functional.scaled_dot_product_attention``, whose weights
    are computed again from query and key, and every softmax over the last of four dimensions, as
    eager attention takes it. Kernels of other packages (flash, flex) are not seen.

    Args:
        module: Any module, to be run inside in evaluation mode: dropout is not computed again.

    Yields:
        A list that fills up: ``first_token_mass``, ``entropy`` (nats), and what uniform attention
        would read, ``uniform_mass`` and ``uniform_entropy``; all of shape (heads,).
    """
    seen: list[Seen] = []
    inside = [""]

    def note(weights: Tensor) -> None:
        seen.append(Seen(inside[-1], _attention(weights)))

    with ExitStack() as open_:
        open_.enter_context(_current_path(module, inside))
        open_.enter_context(_without_fast_path())
        open_.enter_context(_replaced(F, "scaled_dot_product_attention", _eager_too))
        for owner in (torch, Tensor):
            watched = _watched_softmax(owner.softmax, note)
            open_.enter_context(_replaced(owner, "softmax", watched))
        yield seen


def _attention(weights: Tensor) -> dict[str, Tensor]:
    uniform = metrics.uniform_attention(weights)
    values = {
        "first_token_mass": metrics.first_token_mass(weights),
        "entropy": metrics.attention_entropy(weights),
        "uniform_mass": metrics.first_token_mass(uniform),
        "uniform_entropy": metrics.attention_entropy(uniform),
    }
    return {name: value.flatten(0, -2).nanmean(0) for name, value in values.items()}


_ATTEND = F.scaled_dot_product_attention


def _eager_too(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """Attends, after the weights were computed in the open, where their softmax is watched."""
    metrics.attention_weights(query, key, attn_mask, is_causal, **options)
    return _ATTEND(query, key, value, attn_mask, dropout_p, is_causal, **options)


def _watched_softmax(
    function: Callable[..., Tensor], note: Callable[[Tensor], None]
) -> Callable[..., Tensor]:
    def softmax(x: Tensor, dim: Any, *args: Any, **kwargs: Any) -> Tensor:
        out = function(x, dim, *args, **kwargs)
        if out.ndim == 4 and dim in (-1, 3):
            note(out.float())
        return out

    return softmax


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


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Keeps torch.nn.MultiheadAttention from its fused kernel, which hides the weights."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
