"""How a parameter is cut into matrices of one role each.

A cut is a strided view: what is written to it is written to the parameter. It is the same for a
parameter and for a fresh tensor of its shape, which is how sharded weights are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_gamma.errors import InputError
from lit_gamma.weights.parameters import Parameter
from lit_gamma.weights.roles import QKV

_ONE_MATRIX = (
    nn.Linear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
)
_TRANSPOSED_CONVS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Cut = Callable[[Tensor], Tensor]


def whole(tensor: Tensor) -> Tensor:
    """The cut that takes everything."""
    return tensor


@dataclass(frozen=True)
class Part:
    """One matrix in a parameter.

    Attributes:
        suffix: What follows the parameter's name in the matrix's; empty if it is all of it.
        role: One of :data:`lit_gamma.weights.roles.ROLES`.
        cut: Takes the parameter, returns a view of this part, neurons first.
        neuron_dims: How many of the view's dimensions count neurons; the others are inputs.
        head: Which head it is, of a projection that is seen head by head; else None.
    """

    suffix: str
    role: str
    cut: Cut = whole
    neuron_dims: int = 1
    head: int | None = None

    def matrix(self, tensor: Tensor) -> Tensor:
        """The part as (n_neurons, d_in): a view where strides allow it, else a copy."""
        view = self.cut(tensor)
        if view.ndim <= self.neuron_dims:
            return view.reshape(1, -1)
        rows = view if self.neuron_dims == 1 else view.flatten(0, self.neuron_dims - 1)
        return rows if rows.ndim == 2 else rows.flatten(1)


def parts(parameter: Parameter, per_head: bool = False) -> list[Part]:
    """The matrices in a parameter, in the order of its rows.

    Args:
        parameter: The parameter.
        per_head: Whether queries, keys and values are cut further, into their heads.

    Raises:
        InputError: A fused projection cannot be split as its name says, or its heads are not known.
    """
    found = _by_role(parameter)
    return [head for part in found for head in _heads(parameter, part)] if per_head else found


def _by_role(parameter: Parameter) -> list[Part]:
    shape, owner = parameter.tensor.shape, parameter.owner
    if isinstance(owner, _TRANSPOSED_CONVS):
        return [Part("", parameter.roles[0], lambda tensor: tensor.transpose(0, 1))]
    if len(shape) <= 2 or isinstance(owner, _ONE_MATRIX):
        if parameter.transposed:
            return _split(parameter, shape[1], lambda tensor: tensor.T)
        return _split(parameter, shape[0] if shape else 1, whole)
    if all(size == 1 for size in shape[:-2]):  # (1, 1, d_model): a class token
        return [Part("", parameter.roles[0], lambda tensor: tensor.flatten(0, -2))]
    return _stacked(parameter)


def _stacked(parameter: Parameter) -> list[Part]:
    """Matrices stacked along the leading dimensions, as a mixture's experts."""
    shape, transposed = parameter.tensor.shape, parameter.transposed
    found = []
    for i in range(shape[:-2].numel()):

        def expert(tensor: Tensor, i: int = i) -> Tensor:
            matrix = tensor.flatten(0, -3)[i]
            return matrix.T if transposed else matrix

        for part in _split(parameter, shape[-1 if transposed else -2], expert):
            found.append(Part(f"{part.suffix}.{i}", part.role, part.cut, part.neuron_dims))
    return found


def _split(parameter: Parameter, n_rows: int, rows: Cut) -> list[Part]:
    """Cuts the rows of a matrix by role."""
    roles = parameter.roles
    if len(roles) == 1:
        return [Part("", roles[0], rows)]
    if parameter.path.endswith("query_key_value") and not parameter.given:
        return _by_head(parameter, n_rows, rows)
    every = len(roles)
    if getattr(parameter.owner, "is_concatenated", True):
        return _consecutive(roles, _sizes(parameter, n_rows), rows)
    return [
        Part(f".{role}", role, lambda tensor, i=i: rows(tensor)[i::every])  # type: ignore[misc]
        for i, role in enumerate(roles)
    ]


def _consecutive(roles: Sequence[str], sizes: Sequence[int], rows: Cut) -> list[Part]:
    found, start = [], 0
    for role, size in zip(roles, sizes, strict=True):

        def cut(tensor: Tensor, start: int = start, size: int = size) -> Tensor:
            return rows(tensor)[start : start + size]

        found.append(Part(f".{role}", role, cut))
        start += size
    return found


def _sizes(parameter: Parameter, n_rows: int) -> list[int]:
    """Rows of each role; keys and values have fewer heads than queries under GQA."""
    n_heads, head_dim = parameter.heads
    if parameter.roles == QKV and n_heads and head_dim:
        shared, odd = divmod(n_rows - n_heads * head_dim, 2)
        if shared > 0 and not odd:
            return [n_heads * head_dim, shared, shared]
    size, rest = divmod(n_rows, len(parameter.roles))
    if rest:
        raise _unsplittable(parameter, n_rows)
    return [size] * len(parameter.roles)


def _by_head(parameter: Parameter, n_rows: int, rows: Cut) -> list[Part]:
    """Rows in Megatron's order: for each key head its query heads, the key, the value."""
    n_heads, head_dim = parameter.heads
    groups = parameter.integer("num_kv_heads", "num_query_groups") or n_heads
    if not n_heads or not head_dim or not groups or n_rows != (n_heads + 2 * groups) * head_dim:
        raise _unsplittable(parameter, n_rows)
    queries = n_heads // groups
    bounds = {"query": (0, queries), "key": (queries, queries + 1)}
    bounds["value"] = (queries + 1, queries + 2)
    found = []
    for role, span in bounds.items():

        def cut(tensor: Tensor, span: tuple[int, int] = span) -> Tensor:
            by_head = rows(tensor).view(groups, queries + 2, head_dim, -1)
            return by_head[:, slice(*span)]

        found.append(Part(f".{role}", role, cut, neuron_dims=3))
    return found


def _heads(parameter: Parameter, part: Part) -> list[Part]:
    """The heads of queries, keys or values; other matrices as they are."""
    if part.role not in QKV:
        return [part]
    n_heads, head_dim = parameter.heads
    n_rows = len(part.matrix(torch.empty(parameter.tensor.shape, device="meta")))
    width = head_dim or n_rows + 1
    count, rest = divmod(n_rows, width)
    grouped = part.role != "query" and count and n_heads and n_heads % count == 0
    if rest or not (count == n_heads or grouped):
        raise InputError(
            f"the heads of {parameter.path}{part.suffix} are asked for (per_head, Circuits), but "
            f"its {n_rows} rows are not what the modules around it tell ({n_heads} of {head_dim}); "
            "give its attention num_heads and head_dim, or leave out what asks"
        )
    found = []
    for head in range(count):

        def cut(tensor: Tensor, head: int = head) -> Tensor:
            rows = part.cut(tensor)
            if part.neuron_dims == 3:  # By group and head already.
                return rows[divmod(head, rows.shape[1])]
            return rows[head * width : (head + 1) * width]

        found.append(Part(f"{part.suffix}.head{head}", part.role, cut, head=head))
    return found


def _unsplittable(parameter: Parameter, n_rows: int) -> InputError:
    n_heads, head_dim = parameter.heads
    return InputError(
        f"{parameter.path} looks like {', '.join(parameter.roles)} in one, but its {n_rows} rows "
        f"do not split that way ({n_heads} heads of {head_dim}); say what it is, "
        f"as roles={{{parameter.path!r}: 'other'}}"
    )
