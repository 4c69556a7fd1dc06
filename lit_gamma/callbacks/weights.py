"""Callbacks that measure weight matrices, with the work they share done once per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_gamma.callbacks.base import TrajectoryCallback
from lit_gamma.metrics import cosine_matrix, singular_values
from lit_gamma.neurons import NeuronMatrix, neurons
from lit_gamma.recorder import Index

MAX_LABELS = 40
"""With more matrices than this, TensorBoard shows the mean of each role; the file has them all."""


MAX_COSINE_ROWS = 4096
"""Most neurons of a matrix whose cosines are all formed."""


@dataclass(frozen=True, eq=False)
class WeightGroup:
    """Weight matrices of one shape at one step; rows are neurons.

    Attributes:
        positions: Where the matrices stand in the order of :func:`lit_gamma.neurons.neurons`.
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
    def singular_values(self) -> Tensor:
        """Singular values, descending, shape (b, min(n_neurons, d_in))."""
        return singular_values(self.weight)


class WeightTrajectory(TrajectoryCallback):
    """Records quantities of every weight matrix. Subclasses implement :meth:`measure`."""

    def measure(self, weights: WeightGroup) -> Mapping[str, Tensor]:
        """Measures a group of matrices of one shape.

        Args:
            weights: The matrices; what other callbacks have computed of them is not done again.

        Returns:
            For each quantity a tensor of shape (b,), one value per matrix; always the same names.
        """
        raise NotImplementedError

    def null(self, n_neurons: int, d_in: int) -> Mapping[str, float]:
        """Expected values of quantities for an i.i.d. Gaussian matrix of the given shape."""
        return {}

    def items(self, pl_module: LightningModule) -> tuple[Index, Sequence[str]]:
        """One row per weight matrix."""
        matrices = list(neurons(pl_module))
        index: Index = {
            "matrix": [m.name for m in matrices],
            "role": [m.role for m in matrices],
            "layer": [m.layer for m in matrices],
            "n_neurons": [m.weight.shape[0] for m in matrices],
            "d_in": [m.weight.shape[1] for m in matrices],
        }
        few = len(matrices) <= MAX_LABELS
        return index, [m.label if few else m.role for m in matrices]

    def nulls(self, pl_module: LightningModule) -> Mapping[str, npt.NDArray[np.float64]]:
        """The nulls of every matrix."""
        rows = [self.null(*m.weight.shape) for m in neurons(pl_module)]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}

    def observe(self, trainer: Trainer, pl_module: LightningModule) -> Mapping[str, Tensor]:
        """Measures all matrices of the current weights."""
        groups = weight_groups(trainer, pl_module)
        measured = [self.measure(group) for group in groups]
        order = np.argsort([p for group in groups for p in group.positions])
        return {
            name: torch.cat([values[name].float() for values in measured])[order]
            for name in measured[0]
        }


_GROUPS: WeakKeyDictionary[Trainer, tuple[int, list[WeightGroup]]] = WeakKeyDictionary()


def weight_groups(trainer: Trainer, pl_module: LightningModule) -> list[WeightGroup]:
    """The current weights, the same objects for every callback of one step.

    Matrices of one shape are stacked: it saves launches on an accelerator, and on a CPU, where it
    costs a copy, 15 % of the time for matrices of 128 x 128. Sharded parameters (FSDP2) are
    gathered, so all ranks must call this together.

    Args:
        trainer: The trainer; its ``global_step`` tells the steps apart.
        pl_module: The module with the weights.

    Returns:
        Groups that hold every matrix of the module once.
    """
    step, groups = _GROUPS.get(trainer, (-1, []))
    if step != trainer.global_step:
        groups = _group(list(neurons(pl_module)))
        _GROUPS[trainer] = (trainer.global_step, groups)
    return groups


def _group(matrices: list[NeuronMatrix]) -> list[WeightGroup]:
    members: dict[Any, list[int]] = {}
    weights = []
    for i, matrix in enumerate(matrices):
        weight = matrix.weight
        weights.append(weight.full_tensor() if isinstance(weight, DTensor) else weight)
        members.setdefault((weight.shape, weight.dtype, weight.device), []).append(i)
    return [
        WeightGroup(
            positions,
            [matrices[i] for i in positions],
            torch.stack([weights[i] for i in positions]),
        )
        for positions in members.values()
    ]
