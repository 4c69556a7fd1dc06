"""Callbacks that measure weight matrices: all of them at some steps, a few in turn between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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

from lit_gamma.errors import InputError
from lit_gamma.metrics import cosine_matrix, singular_values_of_gram, smaller_gram
from lit_gamma.recording.budget import Plan
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.current import current_matrices, forget_matrices
from lit_gamma.recording.schedule import Schedule
from lit_gamma.recording.side_stream import lend, side_stream
from lit_gamma.trajectory.table import Index
from lit_gamma.weights.neurons import NeuronMatrix

TIERED = Schedule(dense_until=3, per_decade=4)
"""The steps at which the exact measures take all matrices by default: 18 in the first 10,000."""

MAX_LABELS = 40
"""With more matrices than this, TensorBoard shows the mean of each role; the file has them all."""

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


class WeightTrajectory(TrajectoryCallback):
    """Records quantities of every weight matrix. Subclasses implement :meth:`measure`.

    At the steps of the schedule all matrices are measured. With a budget, matrices also take turns
    at the steps between: after ten steps of calibration as many at each step as the budget allows,
    in the order of :func:`lit_gamma.neurons`. A row of the record holds the step at which
    its matrix was measured.

    Args:
        schedule: The steps to record all matrices; every step by default.
        overhead: What recording may cost, as a share of the time of training without it; None for
            no turns and no limit. A schedule over the budget gives one warning.
        matrices_per_step: How many matrices take turns at each step, instead of calibrating: for a
            record that repeats exactly. Below 1, one matrix takes its turn every so many steps.
        pictures: The steps to draw, see :meth:`draw`; none by default.
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        overhead: float | None = None,
        matrices_per_step: float | None = None,
        pictures: Schedule | None = None,
    ) -> None:
        super().__init__(schedule, overhead, pictures)
        if matrices_per_step is not None and not 0 <= matrices_per_step < math.inf:
            raise InputError(
                f"matrices_per_step must be a number from 0 on, got {matrices_per_step}"
            )
        self.matrices_per_step = matrices_per_step
        self._n_matrices = 0

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
        matrices = current_matrices(pl_module)
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
        rows = [self.null(*m.weight.shape) for m in current_matrices(pl_module)]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the record, or continues it after a resume, and takes W_0."""
        forget_matrices(pl_module)
        self._n_matrices = len(current_matrices(pl_module))
        super().on_train_start(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Frees what the callbacks of the last step shared."""
        _STEPS.pop(trainer, None)

    def due(self, step: int) -> bool:
        """Whether the step is on the schedule or is the turn of some matrix."""
        return super().due(step) or bool(self._turn(step))

    def take(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records the matrices whose step this is."""
        step = trainer.global_step
        positions = None if self.schedule.due(step) else self._turn(step)
        for group in weight_groups(trainer, pl_module, positions):
            with side_stream(group.weight.device):
                self.record(step, self.measure(group), group.positions)

    def apply(self, plan: Plan, trainer: Trainer) -> None:
        """Fixes how many matrices take turns."""
        if self.matrices_per_step is None and self.overhead is not None:
            affordable = plan.matrices_per_step(self.overhead, self._n_matrices)
            self.matrices_per_step = trainer.strategy.broadcast(affordable)

    def state_dict(self) -> dict[str, Any]:
        """Lightning hook: the record, and the number of matrices that take turns."""
        return {**super().state_dict(), "matrices_per_step": self.matrices_per_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning hook: see :meth:`state_dict`; a number given by the user stays."""
        super().load_state_dict(state_dict)
        if self.matrices_per_step is None:
            self.matrices_per_step = state_dict["matrices_per_step"]

    def _turn(self, step: int) -> list[int]:
        """Positions of the matrices whose turn a step is: a function of the step alone."""
        rate = min(self.matrices_per_step or 0, self._n_matrices)
        turns = range(math.floor(rate * (step - 1)), math.floor(rate * step))
        return sorted({turn % self._n_matrices for turn in turns})


_STEPS: WeakKeyDictionary[Trainer, tuple[int, list[WeightGroup]]] = WeakKeyDictionary()


def weight_groups(
    trainer: Trainer, pl_module: LightningModule, positions: Sequence[int] | None = None
) -> Iterator[WeightGroup]:
    """Yields copies of current weights, those of all matrices shared by the callbacks of a step.

    Matrices of one shape are stacked, which saves calls; on a CPU only small ones.
    Sharded parameters (FSDP2) are gathered, one matrix at a time and not shared, so all ranks must
    iterate together.

    Args:
        trainer: The trainer; its ``global_step`` tells the steps apart.
        pl_module: The module with the weights.
        positions: The matrices, as positions in the order of :func:`lit_gamma.neurons`;
            all by default.

    Yields:
        Groups that hold every matrix asked for once.
    """
    matrices = current_matrices(pl_module)
    positions = range(len(matrices)) if positions is None else positions
    if any(isinstance(matrix.weight, DTensor) for matrix in matrices):
        for i in positions:
            weight = matrices[i].weight
            full = weight.full_tensor() if isinstance(weight, DTensor) else weight.clone()
            yield WeightGroup([i], [matrices[i]], lend(full[None]))
    elif len(positions) < len(matrices):
        yield from _stacked(matrices, positions)
    else:
        step, groups = _STEPS.get(trainer, (-1, []))
        if step != trainer.global_step:
            groups = list(_stacked(matrices, positions))
            _STEPS[trainer] = (trainer.global_step, groups)
        yield from groups


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
