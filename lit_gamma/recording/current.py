"""The weights of a module in training: looked up once, copied once a step, shared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from lit_gamma.errors import InputError
from lit_gamma.metrics import cosine_matrix, singular_values_of_gram, smaller_gram
from lit_gamma.recording.rows import Rows, grouped_rows
from lit_gamma.recording.side_stream import lend
from lit_gamma.trajectory.table import Index
from lit_gamma.weights.neurons import NeuronMatrix, neurons

MAX_COSINE_ROWS = 4096
"""Most neurons of a matrix whose cosines are all formed."""

_MAX_STACK = 2**18
"""Most entries stacked on a CPU, of the weights and of their cosines.

Stacking saves calls, but temporaries above 1 MiB leave the caches, and the allocator asks the
system for them anew each time.
"""


@dataclass(frozen=True, eq=False)
class WeightGroup:
    """Weight matrices of one shape at one step; rows are neurons.

    Attributes:
        positions: Where the matrices stand in the order of :func:`lit_gamma.neurons`.
        matrices: The matrices.
        weight: A copy of all of them, shape (len(matrices), n_neurons, d_in).
    """

    positions: list[int]
    matrices: list[NeuronMatrix]
    weight: Tensor

    @cached_property
    def cosines(self) -> Tensor:
        """Cosines between rows, shape (b, m, m), m at most :data:`MAX_COSINE_ROWS`.

        Of a matrix with more neurons, as a vocabulary's, every k-th is taken: all pairs of 50,000
        rows would fill 10 GB. A mean over the pairs of m rows has a relative standard error of the
        order of 1 / sqrt(m), 1.6 % for the 4096.
        """
        every = -(-self.weight.shape[1] // MAX_COSINE_ROWS)
        return cosine_matrix(self.weight[:, ::every])

    @cached_property
    def gram(self) -> Tensor:
        """The smaller Gram matrix, float64, shape (b, m, m) with m = min(n_neurons, d_in)."""
        return smaller_gram(self.weight)

    @cached_property
    def singular_values(self) -> Tensor:
        """Singular values, descending, float64, (b, min(n_neurons, d_in)); waits for the device."""
        return singular_values_of_gram(self.gram)


class CurrentWeights:
    """The weight matrices of a module, whatever the optimizer has made of them by now.

    Matrices that are views of their parameters stay so while the optimizer writes to these, and are
    looked up once; sharded and parametrized weights are looked up anew each time.

    Args:
        module: The module that is trained.
        per_head: Whether queries, keys and values are seen head by head.
    """

    def __init__(self, module: nn.Module, per_head: bool = False) -> None:
        self._module, self._per_head = module, per_head
        self._parameters: list[Tensor] = []
        self._links: list[tuple[Mapping[str, Any], str, Any]] = []
        self._pointers: list[int] = []
        self._views: list[NeuronMatrix] | None = None
        self._rows: list[Rows] = []
        self._copies: tuple[int, list[WeightGroup]] = -1, []
        self._shapes: dict[str, torch.Size] = {}

    @property
    def matrices(self) -> list[NeuronMatrix]:
        """:func:`lit_gamma.neurons` of the module with its current weights.

        A matrix that comes later is passed over: what is recorded are those of the beginning.

        Raises:
            InputError: Some have no shape yet, or one is gone or has another shape than before.
        """
        if self._views is not None and self._unchanged():
            return self._views
        parameters: list[Tensor] = list(self._module.parameters())
        if any(map(is_lazy, parameters)):
            raise InputError(
                f"{type(self._module).__name__} has lazy parameters, which have no shape yet: run "
                "a batch through it before it is trained"
            )
        matrices = self._those_of_before(neurons(self._module, per_head=self._per_head))
        self._views, self._rows = None, []
        if not any(isinstance(parameter, DTensor) for parameter in parameters):
            pointers = _pointers(parameters)
            if set(_pointers([matrix.weight for matrix in matrices])) <= set(pointers):
                self._parameters, self._pointers, self._views = parameters, pointers, matrices
                self._links = list(_links(self._module))
        return matrices

    def _those_of_before(self, found: Iterable[NeuronMatrix]) -> list[NeuronMatrix]:
        matrices = {matrix.name: matrix for matrix in found}
        self._shapes = self._shapes or {name: of.weight.shape for name, of in matrices.items()}
        for name, shape in self._shapes.items():
            now = matrices[name].weight.shape if name in matrices else None
            if now != shape:
                has = f"has shape {tuple(now)}" if now else "is gone"
                raise InputError(
                    f"{name} {has}, and had {tuple(shape)} when recording began: begin another "
                    "record where the module changes"
                )
        return [matrices[name] for name in self._shapes]

    def _unchanged(self) -> bool:
        """Whether the module has the parts, and these the memory, that they had."""
        replaced = any(of.get(name) is not part for of, name, part in self._links)
        return not replaced and self._pointers == _pointers(self._parameters)

    def index(self) -> tuple[Index, list[str]]:
        """The columns that tell the matrices apart, and their labels in TensorBoard."""
        return index_of(self.matrices)

    def rows(self) -> list[Rows]:
        """The rows of all matrices that this rank holds, see :func:`grouped_rows`."""
        matrices = self.matrices
        if self._views is not None and self._rows:
            return self._rows
        for module in self._module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # An evaluation leaves the outermost weights gathered.
                matrices = []
        self._rows = list(grouped_rows(matrices or self.matrices))
        return self._rows

    def groups(self, step: int, positions: Sequence[int] | None = None) -> Iterator[WeightGroup]:
        """Yields copies of current weights, those of all matrices shared by a step's callbacks.

        Matrices of one shape are stacked, which saves calls; on a CPU only small ones. Sharded
        parameters (FSDP2) are gathered, one matrix at a time and not shared, so all ranks must
        iterate together.

        Args:
            step: Optimizer steps taken.
            positions: The matrices, as positions in :attr:`matrices`; all by default.

        Yields:
            Groups that hold every matrix asked for once.
        """
        matrices = self.matrices
        positions = range(len(matrices)) if positions is None else positions
        if any(isinstance(matrix.weight, DTensor) for matrix in matrices):
            for i in positions:
                weight = matrices[i].weight
                full = weight.full_tensor() if isinstance(weight, DTensor) else weight.clone()
                yield WeightGroup([i], [matrices[i]], lend(full[None]))
        elif len(positions) < len(matrices):
            yield from _stacked(matrices, positions)
        else:
            if self._copies[0] != step:
                self._copies = step, list(_stacked(matrices, positions))
            yield from self._copies[1]

    def release(self) -> None:
        """Frees the copies that the callbacks of a step share."""
        self._copies = -1, []


def index_of(matrices: Sequence[NeuronMatrix]) -> tuple[Index, list[str]]:
    """The columns that tell matrices apart, and their labels in TensorBoard."""
    index: Index = {
        "matrix": [m.name for m in matrices],
        "role": [m.role for m in matrices],
        "layer": [m.layer for m in matrices],
        "n_neurons": [m.weight.shape[0] for m in matrices],
        "d_in": [m.weight.shape[1] for m in matrices],
    }
    if any(m.head is not None for m in matrices):
        index = {**index, "head": [m.head for m in matrices]}
    return index, [m.label for m in matrices]


def _links(module: nn.Module) -> Iterator[tuple[Mapping[str, Any], str, Any]]:
    """Every submodule and parameter, with the mapping and the name that it stands under."""
    for part in module.modules():
        for of in (part._modules, part._parameters):
            yield from ((of, name, entry) for name, entry in of.items())


def _pointers(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.untyped_storage().data_ptr() for tensor in tensors]


def _stacked(matrices: Sequence[NeuronMatrix], positions: Sequence[int]) -> Iterator[WeightGroup]:
    alike: dict[Any, list[int]] = {}
    for i in positions:
        weight = matrices[i].weight
        alike.setdefault((weight.shape, weight.dtype, weight.device), []).append(i)
    for (shape, _, device), members in alike.items():
        largest = max(shape.numel(), min(shape[0], MAX_COSINE_ROWS) ** 2)
        size = len(members) if device.type != "cpu" else max(1, _MAX_STACK // largest)
        for start in range(0, len(members), size):
            chunk = members[start : start + size]
            stack = torch.stack([matrices[i].weight for i in chunk])
            yield WeightGroup(chunk, [matrices[i] for i in chunk], lend(stack))
