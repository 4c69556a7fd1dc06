"""Callbacks that measure weight matrices: all of them at some steps, a few in turn between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from typing_extensions import override

from lit_gamma.errors import InputError
from lit_gamma.recording.budget import Turns
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.current import WeightGroup
from lit_gamma.recording.run import Run
from lit_gamma.recording.schedule import Schedule
from lit_gamma.recording.side_stream import side_stream
from lit_gamma.trajectory.table import Index, Quantity

TIERED = Schedule(dense_until=3, per_decade=4)
"""The steps at which the exact measures take all matrices by default: 18 in the first 10,000."""


def gaussian_nulls(
    quantities: Sequence[Quantity], shapes: Sequence[Sequence[int]]
) -> dict[str, npt.NDArray[np.float64]]:
    """Expected values of quantities that have a null, an array over matrices of these shapes."""
    known = [(q.name, q.null) for q in quantities if q.null is not None]
    return {name: np.array([null(*shape) for shape in shapes]) for name, null in known}


class WeightTrajectory(TrajectoryCallback):
    """Records quantities of every weight matrix. Subclasses implement :meth:`measure`.

    At the steps of the schedule, and at the end of training, all matrices are measured. Where the
    run has a budget (:class:`~lit_gamma.callbacks.Overhead`), matrices also take turns at the steps
    between: after ten steps of calibration as many at each step as is left of the budget, in the
    order of :func:`lit_gamma.neurons`. A row of the record holds the step at which its matrix was
    measured.

    Args:
        schedule: The steps to record all matrices; every step by default.
        matrices_per_step: How many matrices take turns at each step, instead of what the budget
            leaves: for a record that repeats exactly. Below 1, one matrix takes its turn every so
            many steps.
        pictures: The steps to draw, see :meth:`draw`; none by default.
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        matrices_per_step: float | None = None,
        pictures: Schedule | None = None,
    ) -> None:
        super().__init__(schedule, pictures)
        if matrices_per_step is not None and not 0 <= matrices_per_step < math.inf:
            raise InputError(
                f"matrices_per_step must be a number from 0 on, got {matrices_per_step}"
            )
        self.matrices_per_step = matrices_per_step
        self._n_matrices = 0
        self._taken: set[int] = set()

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
        return {q.name: q.null(n_neurons, d_in) for q in self.quantities if q.null is not None}

    @override
    def items(self, pl_module: Any) -> tuple[Index, Sequence[str]]:
        return self.run.weights.index()

    @override
    def nulls(self, pl_module: Any) -> Mapping[str, npt.NDArray[np.float64]]:
        rows = [self.null(*m.weight.shape) for m in self.run.weights.matrices]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}

    @override
    def start(self, run: Run) -> None:
        self._n_matrices = len(run.weights.matrices)
        super().start(run)

    @override
    def due(self, step: int) -> bool:
        return super().due(step) or bool(self._turn(step))

    @override
    def take(self) -> None:
        step = self.run.step
        self._take(None if self.file.came(super().due, step) else self._turns_since(step))

    @override
    def take_rest(self) -> None:
        taken = self._taken if self.run.step == self.file.last_step else set()
        if rest := sorted(set(range(self._n_matrices)) - taken):
            self._take(rest)
            self._taken.update(taken)

    def _take(self, positions: list[int] | None) -> None:
        """Records the current weights of some matrices, or of all."""
        for group in self.run.weights.groups(self.run.step, positions):
            with side_stream(group.weight.device):
                self.file.append(self.run.step, self.measure(group), group.positions)
        self._taken = set(range(self._n_matrices) if positions is None else positions)

    @override
    def turns(self) -> Turns | None:
        cost = self.bill.cost("record")
        if self.matrices_per_step is not None or cost is None or not self._n_matrices:
            return None
        return Turns(self.name, self._n_matrices, cost)

    @property
    def pace(self) -> float:
        """How many matrices take turns at each step: what was given, or what the budget leaves."""
        if self.matrices_per_step is not None:
            return self.matrices_per_step
        return self.share.matrices_per_step

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "taken": sorted(self._taken)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._taken = set(state_dict.get("taken", ()))

    def _turns_since(self, step: int) -> list[int]:
        """Positions of the matrices whose turn it is, or came at a step that was jumped over."""
        turns = (self._turn(passed) for passed in range(self.file.since + 1, step + 1))
        return sorted({position for turn in turns for position in turn})

    def _turn(self, step: int) -> list[int]:
        """Positions of the matrices whose turn a step is: a function of the step alone."""
        rate = min(self.pace, self._n_matrices)
        turns = range(math.floor(rate * (step - 1)), math.floor(rate * step))
        return sorted({turn % self._n_matrices for turn in turns})
