"""Gradients: how large are they, do they agree from step to step, and does the step follow them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lit_gamma.recording.current import index_of
from lit_gamma.recording.gradients import GradientTrajectory
from lit_gamma.recording.rows import (
    Rows,
    add_over_ranks,
    grouped_rows,
    in_own_slot,
    parts_held,
    whole_matrices,
)
from lit_gamma.recording.run import Run
from lit_gamma.recording.schedule import Schedule
from lit_gamma.recording.side_stream import side_stream
from lit_gamma.recording.weights import TIERED
from lit_gamma.trajectory.table import Index, Quantity
from lit_gamma.weights.neurons import NeuronMatrix, gradients, trained


@dataclass
class _Read:
    """What was read of the gradients of a step, of each group of rows.

    Attributes:
        step: The step.
        gradients: The gradients, (rows, d_in).
        weights: The weights W_step, (rows, d_in).
        sums: Of each matrix Σg², Σ g·g', Σg'² (g' of the step before), number of entries, (m, 4).
        largest: Of each matrix the largest magnitude in the rows held here, (m,).
        clipped: Of each matrix Σg² when the optimizer has taken its step, (m, 1); NaN until then.
        readable: Whether that is still to be read.
    """

    step: int
    gradients: list[Tensor]
    weights: list[Tensor]
    sums: list[Tensor]
    largest: list[Tensor]
    clipped: list[Tensor]
    readable: bool


class Gradients(GradientTrajectory):
    """Records the gradient of every weight matrix that is trained from the start.

    It is read when it is complete: added up over micro-batches and processes, unscaled, before it
    is clipped and zeroed. Gradients of step t are those of W_t, as the loss of step t is; the
    cosine is with step t - 1, and the update is W_(t+1) - W_t. So at the two steps of a record all
    gradients are copied, at one also the weights; in between nothing is kept. A matrix without a
    gradient reads NaN, and so does the share of clipping where the optimizer did not step.

    Logged as ``4_gradients/rms/<role>``, the mean over the matrices of a role, and
    ``4_gradients/clipped_share``, the mean over all; the file has the ``quantities`` below of each.

    A checkpoint of a recorded step holds the gradients of the step before, 4 bytes per weight. In a
    loop of one's own call ``trajectory.gradients()`` between ``backward()`` and clipping. Hugging
    Face's Trainer shows gradients after it has clipped them: there sizes are the clipped ones, and
    the share is NaN, unless ``max_grad_norm`` is 0.

    Args:
        schedule: The steps to record; by default the first three and four per factor of ten.
    """

    default_schedule = TIERED
    quantities: ClassVar[Sequence[Quantity]] = (
        Quantity("norm", "Frobenius norm of the gradient", range=">= 0"),
        Quantity("rms", "root mean square of its entries", range=">= 0", chart="rms of a gradient"),
        Quantity("largest", "largest magnitude of its entries", range=">= 0"),
        Quantity(
            "cosine_with_last",
            "cosine with the gradient of the step before",
            range="-1..1",
            note="null 0",
        ),
        Quantity(
            "cosine_with_update",
            "cosine of minus the gradient with the update that the optimizer makes of it",
            range="-1..1",
            note="1 for plain gradient descent",
        ),
        Quantity(
            "clipped_share",
            "share of the norm that clipping took",
            range="0..1",
            chart="share of the gradient that clipping took, mean",
            joined="mean",
        ),
    )

    section = "4"

    def __init__(self, schedule: Schedule | None = None) -> None:
        super().__init__(schedule)
        self._loaded: Mapping[int, Tensor] = {}
        self._names: set[str] = set()
        self._last: tuple[int, list[Tensor]] = -1, []
        self._read: _Read | None = None

    @override
    def items(self, pl_module: Any) -> tuple[Index, Sequence[str]]:
        return index_of(self._chosen(self.run.weights.matrices))

    @override
    def start(self, run: Run) -> None:
        self._names = trained(run.module, run.per_head)
        self._last, self._read = (-1, []), None
        if run.step > 0 and self._loaded:
            self._last = run.step - 1, parts_held(self._rows(), self._loaded, run.device)
        super().start(run)

    @override
    def read(self, clipped: bool) -> None:
        step = self.run.step
        now, next_one = self.file.came(self.due, step), self.due(step + 1)
        if not now and not next_one:
            return
        with self.bill.billed("prepare"), torch.no_grad():
            copies = self._copies()
            if now:
                self._read = self._first_read(copies, not clipped)
            self._last = (step, copies) if next_one else (-1, [])

    @override
    def read_clipped(self) -> None:
        read = self._read
        if read is None or not read.readable:
            return
        with self.bill.billed("prepare"), torch.no_grad():
            copies = self._copies()
            with side_stream(self.run.device):
                pairs = zip(self._rows(), copies, strict=True)
                read.clipped = [rows.dots((values, values)) for rows, values in pairs]
        read.readable = False

    @override
    def record_step(self, step: int) -> None:
        read, self._read = self._read, None
        if read is None or read.step != step or step <= self.file.last_step:
            return
        with self.bill.billed("record"), torch.no_grad():
            groups = self._rows()
            weights = [rows.copy() for rows in groups]
            with side_stream(self.run.device):
                added = [_added(rows, read, i, weights[i]) for i, rows in enumerate(groups)]
                ranks = [rows.ranks for rows in groups for _ in range(2)]
                add_over_ranks([part for parts in added for part in parts], ranks)
                for rows, (sums, largest) in zip(groups, added, strict=True):
                    values = {"sums": sums, "largest": largest.amax(1)}
                    self.file.append(step, values, rows.positions)
            self.file.last_step = step

    @override
    def settle(self, measured: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        square, with_last, last, entries, clipped, with_update, update = (
            measured["sums"].double().unbind(1)
        )
        return {
            "norm": square.sqrt(),
            "rms": (square / entries).sqrt(),
            "largest": measured["largest"],
            "cosine_with_last": with_last / (square * last).sqrt(),
            "cosine_with_update": -with_update / (square * update).sqrt(),
            "clipped_share": 1 - (clipped / square).sqrt(),
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        step, copies = self._last
        if not copies or step != self.run.step - 1:
            return super().state_dict()
        return {**super().state_dict(), "last": whole_matrices(self._rows(), copies)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._loaded = state_dict.get("last", {})

    def _chosen(self, matrices: Sequence[NeuronMatrix]) -> list[NeuronMatrix]:
        return [matrix for matrix in matrices if matrix.name in self._names]

    def _rows(self) -> list[Rows]:
        return list(grouped_rows(self._chosen(self.run.weights.matrices)))

    def _copies(self) -> list[Tensor]:
        """The gradients held here, in the order of :meth:`_rows`."""
        found = self._chosen(list(gradients(self.run.module, self.run.per_head)))
        return [rows.copy() for rows in grouped_rows(found)]

    def _first_read(self, copies: list[Tensor], readable: bool) -> _Read:
        step, (of, last) = self.run.step, self._last
        groups = self._rows()
        weights = [rows.copy() for rows in groups]
        with side_stream(self.run.device):
            if not last or of != step - 1:
                last = [torch.full_like(values, torch.nan) for values in copies]
            sums, largest = [], []
            for rows, now, before in zip(groups, copies, last, strict=True):
                entries = rows.sums(now.new_full((len(now), 1), rows.d_in))
                dots = rows.dots((now, now), (now, before), (before, before))
                sums.append(torch.cat([dots, entries], dim=1))
                largest.append(rows.maxima(now.abs().amax(1)))
            clipped = [torch.full_like(of_group[:, :1], torch.nan) for of_group in sums]
        return _Read(step, copies, weights, sums, largest, clipped, readable)


def _added(rows: Rows, read: _Read, i: int, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of group i what is added up over ranks: sums, (m, 7), and the largest, a slot per rank."""
    update, gradient = weight - read.weights[i], read.gradients[i]
    dots = rows.dots((gradient, update), (update, update))
    sums = torch.cat([read.sums[i], read.clipped[i], dots], dim=1)
    return sums, in_own_slot(read.largest[i], rows.ranks)
