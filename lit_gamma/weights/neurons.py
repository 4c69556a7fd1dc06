"""How a module's parameters are seen as neurons.

A neuron is one row of a weight matrix: the input weights of one output unit. Every weight matrix of
a module is seen here once, as a view of shape (n_neurons, d_in), with the role it plays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_gamma.weights.parameters import Parameter, Roles, parameters
from lit_gamma.weights.parts import Part, parts, whole
from lit_gamma.weights.roles import ROLES
from lit_gamma.weights.sharding import padded, summed

__all__ = ["ROLES", "NeuronMatrix", "gradients", "neurons", "trained"]


@dataclass(frozen=True)
class NeuronMatrix:
    """One weight matrix, its rows the neurons.

    Attributes:
        name: Path of the parameter in its module, without the final ``.weight``; of a fused one,
            followed by role and number: ``h.0.attn.c_attn.query``, ``experts.down_proj.3``.
        role: One of :data:`ROLES`.
        layer: Index of the block the matrix belongs to; None outside the blocks.
        weight: Shape (n_neurons, d_in). Memory of the parameter wherever strides allow it, so to be
            read, not written; a DTensor where the parameter is sharded.
        head: Which head of queries, keys or values it is, where these are seen head by head.
    """

    name: str
    role: str
    layer: int | None
    weight: Tensor
    head: int | None = None

    @property
    def label(self) -> str:
        """Short name for charts, ``layer0.query``, ``layer0.query.head1``, ``lm_head``."""
        name = self.name.rpartition(".")[2] if self.role == "other" else self.role
        name = name if self.head is None else f"{name}.head{self.head}"
        return name if self.layer is None else f"layer{self.layer}.{name}"


def neurons(
    module: nn.Module, roles: Roles | None = None, per_head: bool = False
) -> Iterator[NeuronMatrix]:
    """Yields every weight matrix of a module once, in the order of its parameters.

    Linear, Embedding, convolutions (a neuron is a filter), the fused projection of
    MultiheadAttention, Hugging Face's transposed ``Conv1D``, fused query-key-value and gate-up
    projections (split per role, also under GQA and where heads are interleaved), experts stored as
    one 3-D parameter (one matrix each). An embedding table is (vocab_size, d_model): its neurons
    are the tokens' vectors. Tied weights appear once, under their first name; norm scales and
    biases are not matrices. A parametrized weight is seen as what the layer computes with.

    Args:
        module: Any module. Roles are told by structure and the usual names; what is not recognised
            has the role ``other``.
        roles: Pattern of a path to its role, or to the roles of its rows: ``{"*.mixer.in_proj":
            ["mlp_gate", "mlp_up"]}``. An attribute ``neuron_roles`` of the module does the same for
            every caller, callbacks included.
        per_head: Whether every head of the queries, keys and values is a matrix: ``q_proj.head0``,
            of d_head neurons. Keys and values have fewer heads under GQA.

    Yields:
        One :class:`NeuronMatrix` per matrix.

    Raises:
        InputError: A role is unknown, a pattern fits nothing, or a projection cannot be split.
    """
    yield from _matrices(parameters(module, roles), lambda parameter: parameter.tensor, per_head)


def gradients(module: nn.Module, per_head: bool = False) -> Iterator[NeuronMatrix]:
    """Yields the gradient of every matrix, seen as :func:`neurons` sees the matrix.

    It is NaN where there is none; what a parametrization computes has none, and is left out.
    """
    own = [parameter for parameter in parameters(module) if not parameter.parametrization]
    yield from _matrices(own, _gradient, per_head)


def trained(module: nn.Module, per_head: bool = False) -> set[str]:
    """Names of the matrices that have a gradient of their own: not frozen, not parametrized."""
    own = (p for p in parameters(module) if not (p.frozen or p.parametrization))
    return {matrix.name for matrix in _matrices(own, lambda parameter: parameter.tensor, per_head)}


def _gradient(parameter: Parameter) -> Tensor:
    tensor = parameter.tensor
    if tensor.grad is not None:
        return tensor.grad.to_dense() if tensor.grad.is_sparse else tensor.grad
    if isinstance(tensor, DTensor):
        return torch.full_like(tensor, torch.nan)
    return tensor.new_full((), torch.nan).expand(tensor.shape)


def _matrices(
    seen: Iterable[Parameter], values: Callable[[Parameter], Tensor], per_head: bool
) -> Iterator[NeuronMatrix]:
    for parameter in seen:
        if parameter.kind != "matrix":
            continue
        cuts = parts(parameter, per_head)
        for part, matrix in zip(cuts, _cut(values(parameter).detach(), cuts), strict=True):
            name = f"{parameter.path}{part.suffix}"
            yield NeuronMatrix(name, part.role, parameter.layer, matrix, part.head)


def _cut(tensor: Tensor, cuts: list[Part]) -> list[Tensor]:
    if not isinstance(tensor, DTensor) or cuts[0].cut is whole:
        return [part.matrix(tensor) for part in cuts]
    local = padded(tensor)
    return [summed(part.matrix(local), tensor) for part in cuts]
