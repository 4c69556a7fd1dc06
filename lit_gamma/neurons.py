"""How a module's parameters are seen as neurons.

A neuron is one row of a weight matrix: the input weights of one output unit. Every weight matrix of
a module is seen here once, as a view of shape (n_neurons, d_in), with the role it plays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

ROLES = (
    "embedding",
    "position",
    "query",
    "key",
    "value",
    "attention_gate",
    "attention_out",
    "mlp_up",
    "mlp_gate",
    "mlp_down",
    "lm_head",
    "other",
)
"""Every role a weight matrix can play, in the order of the forward pass."""

_ROLE_BY_SUFFIX = {
    "embedding": "embedding",
    "position": "position",
    "attention.query": "query",
    "attention.key": "key",
    "attention.value": "value",
    "attention.gate": "attention_gate",
    "attention.out": "attention_out",
    "mlp.up": "mlp_up",
    "mlp.gate": "mlp_gate",
    "mlp.down": "mlp_down",
    "lm_head": "lm_head",
}


@dataclass(frozen=True)
class NeuronMatrix:
    """One weight matrix, its rows the neurons.

    Attributes:
        name: Path of the parameter in its module, without the final ``.weight``.
        role: One of :data:`ROLES`.
        layer: Index of the block the matrix belongs to; None outside the blocks.
        weight: View of the parameter, shape (n_neurons, d_in). Writing to it writes the parameter.
    """

    name: str
    role: str
    layer: int | None
    weight: Tensor

    @property
    def label(self) -> str:
        """Short name for charts: ``layer0.query``, ``lm_head``."""
        name = self.name.rpartition(".")[2] if self.role == "other" else self.role
        return name if self.layer is None else f"layer{self.layer}.{name}"


def neurons(module: nn.Module) -> Iterator[NeuronMatrix]:
    """Yields every weight matrix of a module once, in the order of its parameters.

    An embedding table is (vocab_size, d_model): its neurons are the tokens' vectors. Tied weights
    appear under their first name. Vectors (norm scales, biases) are not matrices and are left out.

    Args:
        module: Any module. The names of :class:`lit_gamma.Transformer` are recognised as roles;
            every other matrix has the role ``other``.

    Yields:
        One :class:`NeuronMatrix` per two-dimensional parameter.
    """
    for path, parameter in module.named_parameters():
        if parameter.ndim == 2:
            name = path.removesuffix(".weight")
            yield NeuronMatrix(name, _role(name), _layer(name), parameter.detach())


def _role(name: str) -> str:
    parts = name.split(".")
    return _ROLE_BY_SUFFIX.get(".".join(parts[-2:])) or _ROLE_BY_SUFFIX.get(parts[-1], "other")


def _layer(name: str) -> int | None:
    index = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(index.group(1)) if index else None
