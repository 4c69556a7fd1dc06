"""The weight matrices of a module in training, without walking through it at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from lightning import LightningModule
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_gamma.weights.neurons import NeuronMatrix, neurons


class _Views(NamedTuple):
    parameters: list[Tensor]
    pointers: list[int]
    matrices: list[NeuronMatrix]


_VIEWS: WeakKeyDictionary[LightningModule, _Views] = WeakKeyDictionary()


def current_matrices(pl_module: LightningModule) -> list[NeuronMatrix]:
    """Returns :func:`lit_gamma.neurons` of a module with its current weights.

    Matrices that are views of their parameters stay so while the optimizer writes to these, and are
    looked up once; sharded and parametrized weights are looked up anew each time.

    Args:
        pl_module: The module that is trained.
    """
    known = _VIEWS.get(pl_module)
    if known is not None and known.pointers == _pointers(known.parameters):
        return known.matrices
    matrices = list(neurons(pl_module))
    parameters: list[Tensor] = list(pl_module.parameters())
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        pointers = _pointers(parameters)
        if set(_pointers([matrix.weight for matrix in matrices])) <= set(pointers):
            _VIEWS[pl_module] = _Views(parameters, pointers, matrices)
    return matrices


def stay_current(pl_module: LightningModule, matrices: Sequence[NeuronMatrix]) -> bool:
    """Whether matrices are views that :func:`current_matrices` returns again while they last."""
    known = _VIEWS.get(pl_module)
    return known is not None and known.matrices is matrices


def forget_matrices(pl_module: LightningModule) -> None:
    """Looks the matrices up anew next time, as the module may have changed."""
    _VIEWS.pop(pl_module, None)


def _pointers(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.untyped_storage().data_ptr() for tensor in tensors]
