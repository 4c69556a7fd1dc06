"""Gated attention for a model that has none, without forking it."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from lit_gamma.errors import InputError
from lit_gamma.weights.parameters import Parameter, parameters, plain_path

Granularity = Literal["elementwise", "headwise"]


def gate_attention_(module: nn.Module, granularity: Granularity = "elementwise") -> list[str]:
    r"""Gives every attention layer a gate, :math:`o = W_o(\sigma(W_g x) \odot \text{SDPA})`.

    As in "Gated Attention for LLMs" (arXiv 2505.06708): a new submodule ``gate`` of the layer, a
    linear layer of its input x without bias, multiplies what goes into the output projection, per
    channel or per head. Hooks on the layer and on that projection do it, so the model's code stays.

    To be called on a model as made, before :func:`lit_gamma.gamma_init_` (which draws the gates as
    well, role ``attention_gate``), before compiling and sharding, before the optimizer is made, and
    before ``load_state_dict`` of weights that have gates. A fresh gate is about 1/2, so it halves
    what the attention of a trained model writes.

    Args:
        module: A model whose attention layers take x as first argument or as ``hidden_states`` and
            call their output projection as a module, as those of Hugging Face do;
            ``torch.nn.MultiheadAttention`` does not.
        granularity: One gate per channel, or one per head.

    Returns:
        Paths of the gated layers.

    Raises:
        InputError: No attention layer can be gated, or one has a gate already. Nothing has been
            changed then.
    """
    if granularity not in ("elementwise", "headwise"):
        raise InputError(f"granularity {granularity!r} is unknown; known: elementwise, headwise")
    found = parameters(module)
    queries = [p for p in found if "query" in p.roles]
    places = [_place(p, queries) for p in found if p.roles == ("attention_out",) and _is_weight(p)]
    if not places:
        raise InputError(f"{type(module).__name__} has no attention output projection to gate")
    for place in places:
        if any(p.roles == ("attention_gate",) and place.layer in p.chain for p in found):
            raise InputError(f"{place.path} has a gate already")
    for place in places:
        _gate(place, granularity)
    return [place.path for place in places]


class _Place(NamedTuple):
    layer: nn.Module
    path: str
    out: Parameter
    out_name: str
    d_model: int


def _is_weight(parameter: Parameter) -> bool:
    return parameter.kind == "matrix" and not isinstance(parameter.chain[-2], nn.MultiheadAttention)


def _d_in(parameter: Parameter) -> int:
    return parameter.tensor.shape[-2 if parameter.transposed else -1]


def _place(out: Parameter, queries: list[Parameter]) -> _Place:
    """The attention layer of an output projection: the nearest module around it with a query."""
    for depth in range(len(out.chain) - 2, -1, -1):
        layer = out.chain[depth]
        query = next((p for p in queries if layer in p.chain), None)
        if query is not None:
            name = next(name for name, part in layer.named_modules() if part is out.owner)
            names = out.path.split(".")
            path = ".".join(names[: len(names) - len(plain_path(name.split(".")).split("."))])
            return _Place(layer, path, out, name, _d_in(query))
    raise InputError(f"{out.path} projects an attention whose query is not recognised")


def _gate(place: _Place, granularity: Granularity) -> None:
    channels, like = _d_in(place.out), place.out.tensor
    n_heads, _ = place.out.heads
    if granularity == "headwise" and (not n_heads or channels % n_heads):
        raise InputError(f"{place.path}: {channels} channels do not split into {n_heads} heads")
    n_gates = channels if granularity == "elementwise" else n_heads
    assert n_gates
    place.layer.gate = nn.Linear(
        place.d_model, n_gates, bias=False, device=like.device, dtype=like.dtype
    )
    place.layer.register_forward_pre_hook(
        partial(_compute, out_name=place.out_name), with_kwargs=True
    )
    place.out.owner.register_forward_pre_hook(_apply)


def _compute(layer: Any, args: Any, kwargs: Any, out_name: str) -> None:
    """Leaves the gate of this call where the output projection finds it."""
    x = args[0] if args else kwargs["hidden_states"]
    layer.get_submodule(out_name).gate_values = torch.sigmoid(layer.gate(x))


def _apply(projection: Any, args: Any) -> Any:
    """Multiplies the heads' output, (..., channels), by the gate, (..., channels or heads)."""
    o, gate = args[0], projection.gate_values
    del projection.gate_values
    return ((o.unflatten(-1, (gate.shape[-1], -1)) * gate.unsqueeze(-1)).flatten(-2), *args[1:])
